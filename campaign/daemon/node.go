// Package daemon builds the product, runs it, and asks it: what every campaign over real daemons needs. It
// imports nothing of the product.
package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Patience bounds every wait for a condition. It is no expectation.
const Patience = 90 * time.Second

// Until waits for a condition.
func Until(ctx context.Context, what string, met func() (bool, error)) error {
	for deadline := time.Now().Add(Patience); ; {
		ok, err := met()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", what, err)
		case ok:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			return fmt.Errorf("waited %v for %s", Patience, what)
		}
		time.Sleep(4 * time.Millisecond) // between two looks
	}
}

// Output is what a process printed so far.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Tail is the end of it.
func (o *Output) Tail() string {
	s := o.String()
	return s[max(0, len(s)-2000):]
}

// Node is a daemon that is stopped and started again. What is exported and not said to be of the present process may
// be changed between two starts.
type Node struct {
	Binary, State, Control string
	Listen                 string   // HOST:PORT for other nodes; a free port of 127.0.0.1 to begin with
	Flags                  []string // of serve, beside those that follow from the fields
	Env                    []string
	Secure                 bool     // TLS; Pin has it trust a peer
	Wrap                   []string // a command that becomes the daemon, whose command line follows: another namespace

	Log  *Output // of the present process
	Addr string  // where that listens

	http *http.Client
	cmd  *exec.Cmd // the present process; nil: none
	done chan struct{}
}

// New prepares a daemon with a state directory; it is not started.
func New(binary, state string, flags ...string) *Node {
	n := &Node{Binary: binary, State: state, Control: filepath.Join(state, "control.sock"), Listen: "127.0.0.1:0", Flags: flags}
	n.http = &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.Control)
		}}}
	return n
}

// line is the command line.
func (n *Node) line() []string {
	line := append(append([]string(nil), n.Wrap...), n.Binary, "serve", "--state", n.State, "--listen", n.Listen)
	if !n.Secure {
		line = append(line, "--insecure")
	}
	return append(line, n.Flags...)
}

// Up starts the process and waits until its recovery is done, which is when it answers.
func (n *Node) Up(ctx context.Context) error {
	line := n.line()
	cmd := exec.Command(line[0], line[1:]...)
	n.Log = new(Output)
	cmd.Stderr = n.Log
	cmd.Env = append(os.Environ(), n.Env...)
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.done = cmd, make(chan struct{})
	go func() {
		defer close(n.done)
		cmd.Wait() // the outcome is in ProcessState
	}()
	return Until(ctx, "a daemon", func() (bool, error) {
		select {
		case <-n.done:
			return false, fmt.Errorf("%q ended: %s", line, n.Log.Tail())
		default:
		}
		st, err := n.Status(ctx)
		if err != nil {
			return false, nil
		}
		n.Addr = st.Listen
		return true, nil
	})
}

// End ends the process: SIGTERM, or SIGKILL.
func (n *Node) End(s syscall.Signal) error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-n.done:
	case <-time.After(Patience):
		n.cmd.Process.Kill()
		<-n.done
		return fmt.Errorf("%q did not end: %s", n.cmd.Args, n.Log.Tail())
	}
	line, code := n.cmd.Args, n.cmd.ProcessState.ExitCode()
	n.cmd = nil
	if s == syscall.SIGTERM && code != 0 {
		return fmt.Errorf("%q ended with %d: %s", line, code, n.Log.Tail())
	}
	return nil
}

// Answer is how a command ended.
type Answer struct {
	Code           int
	Stdout, Stderr string
}

func (a Answer) String() string { return fmt.Sprintf("exit %d: %s %s", a.Code, a.Stdout, a.Stderr) }

// Ask runs a client command against this daemon.
func (n *Node) Ask(ctx context.Context, args ...string) Answer {
	return n.client(ctx, append(args, "--control", n.Control)...)
}

// client runs a command of the binary.
func (n *Node) client(ctx context.Context, args ...string) Answer {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	var out, stderr Output
	cmd := exec.CommandContext(ctx, n.Binary, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.Run() // the outcome is in ProcessState
	return Answer{cmd.ProcessState.ExitCode(), out.String(), strings.TrimSpace(stderr.String())}
}

// Folder is where it keeps what it knows of its volume.
func (n *Node) Folder() (string, error) {
	found, err := filepath.Glob(filepath.Join(n.State, "*", "*", "journal"))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s: %d journals", n.State, len(found))
	}
	if err != nil {
		return "", err
	}
	return filepath.Dir(found[0]), nil
}
