package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Usage is what processes took. A process inherits its parent's peak memory at its start, so a peak says
// no less than that of the harness, some 20 MiB.
type Usage struct {
	CPUSeconds float64 `json:"cpu_seconds"` // user and system, of all processes
	PeakBytes  int64   `json:"peak_bytes"`  // of the largest process
}

func (u *Usage) add(p *os.ProcessState) {
	u.CPUSeconds += (p.UserTime() + p.SystemTime()).Seconds()
	if r, ok := p.SysUsage().(*syscall.Rusage); ok {
		u.PeakBytes = max(u.PeakBytes, r.Maxrss<<10)
	}
}

const (
	startPoll  = 5 * time.Millisecond   // while a server starts: it is looked at before the clock runs
	statusPoll = 100 * time.Millisecond // while it works: looking costs it something
	cutTimeout = 10 * time.Minute       // only a mirror that will never come needs longer
)

// process is one child, ended by its own id, never by its name.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer // to be read when it has ended
	ended          chan struct{}
	err            error // set before ended is closed
}

func start(ctx context.Context, profile string, argv ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "BLKMIRROR_CPUPROFILE="+profile)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 10 * time.Second // a child that does not end by itself is killed then
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// wait waits for a client's own end.
func (p *process) wait(u *Usage) error {
	<-p.ended
	u.add(p.cmd.ProcessState)
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(p.cmd.Args, " "), p.err, bytes.TrimSpace(p.stderr.Bytes()))
	}
	return nil
}

// stop ends a server and waits until it is gone.
func (p *process) stop(u *Usage) error {
	select {
	case <-p.ended:
		return errors.Join(fmt.Errorf("the server ended too early"), p.wait(u))
	default:
	}
	p.cmd.Cancel()
	select {
	case <-p.ended:
	case <-time.After(p.cmd.WaitDelay):
		p.cmd.Process.Kill()
		<-p.ended
	}
	u.add(p.cmd.ProcessState)
	return nil
}

// await polls until ready says so, or the process ended, or ctx did.
func (p *process) await(ctx context.Context, every time.Duration, ready func() bool) error {
	poll := time.NewTicker(every)
	defer poll.Stop()
	for !ready() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.ended:
			return p.wait(new(Usage))
		case <-poll.C:
		}
	}
	return nil
}

// find returns the path of a program, or nothing.
func find(program string) string {
	for _, path := range []string{program, filepath.Join("/usr/sbin", program)} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	return ""
}
