package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// node is the primary or a mirror: one process of the adapter at a time, which became the tool, and what this
// one started.
type node struct {
	name         string
	image, state string
	listen       string
	log          string
	a            *adapter

	cmd  *exec.Cmd
	done chan struct{} // nil: it was never started
}

func newNode(name, dir, listen string, a *adapter) *node {
	return &node{
		name: name, a: a, listen: listen,
		image: filepath.Join(dir, name+".img"), state: filepath.Join(dir, name+".state"), log: filepath.Join(dir, name+".log"),
	}
}

func (n *node) running() bool {
	if n.done == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// launch starts the process. It is the leader of a process group, so that it can be killed together with
// everything that it started.
func (n *node) launch() error {
	if n.running() {
		return fmt.Errorf("%s runs already", n.name)
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(n.a.path, "serve", n.name)
	cmd.Env, cmd.Stdout, cmd.Stderr = n.a.env, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	n.cmd, n.done = cmd, make(chan struct{})
	go n.reap(cmd.Process.Pid, n.done)
	return nil
}

// reap waits for the leader and kills the rest of its group. The leader is taken off the process table only
// after that, so that the group's number cannot be somebody else's.
func (n *node) reap(pid int, done chan struct{}) {
	defer close(done)
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	syscall.Kill(-pid, syscall.SIGKILL)
	n.cmd.Wait() // how it ended says nothing: a tool may call a clean stop an error
	// The rest belongs to init now, which may take a moment.
	for range 100 {
		if syscall.Kill(-pid, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// start launches it and waits until it takes orders.
func (n *node) start(ctx context.Context, limit time.Duration) error {
	if err := n.launch(); err != nil {
		return err
	}
	err := poll(ctx, limit, func() error {
		if !n.running() {
			return fmt.Errorf("it ended: %s", n.said())
		}
		_, err := n.a.ask(ctx, "ready", n.name)
		return err
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	return nil
}

// kill is kill -9 of the whole group at once.
func (n *node) kill() {
	if n.running() {
		syscall.Kill(-n.cmd.Process.Pid, syscall.SIGKILL)
		<-n.done
	}
}

// stop asks it to end in order.
func (n *node) stop(ctx context.Context, limit time.Duration) error {
	if !n.running() {
		return fmt.Errorf("%s does not run: %s", n.name, n.said())
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", n.name, err)
	}
	select {
	case <-n.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(limit):
		return fmt.Errorf("%s does not end %v after SIGTERM: %s", n.name, limit, n.said())
	}
}

// said is the end of what the process printed.
func (n *node) said() string {
	b, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(b))
}
