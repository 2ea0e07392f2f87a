package campaign

import (
	"bytes"
	"context"
	"encoding/json"
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

// patience bounds every wait for a condition. It is no expectation.
const patience = 90 * time.Second

// until waits for a condition.
func until(ctx context.Context, what string, met func() (bool, error)) error {
	for deadline := time.Now().Add(patience); ; {
		ok, err := met()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", what, err)
		case ok:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			return fmt.Errorf("waited %v for %s", patience, what)
		}
		time.Sleep(4 * time.Millisecond) // between two looks
	}
}

// output is what a process printed so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// node is a daemon that is stopped and started again with the same command line.
type node struct {
	binary, state, control, faults string
	line                           []string
	http                           *http.Client

	cmd  *exec.Cmd // the present process; nil: none
	done chan struct{}
	log  *output // of the present process
	addr string  // where it listens
}

func newNode(binary, state, faults string, flags ...string) *node {
	n := &node{binary: binary, state: state, control: filepath.Join(state, "control.sock"), faults: faults}
	n.line = append([]string{"serve", "--insecure", "--state", state, "--listen", "127.0.0.1:0"}, flags...)
	n.http = &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.control)
		}}}
	return n
}

// up starts the process and waits until its recovery is done, which is when it answers.
func (n *node) up(ctx context.Context) error {
	cmd := exec.Command(n.binary, n.line...)
	n.log = new(output)
	cmd.Stderr = n.log
	cmd.Env = append(os.Environ(), "BLKMIRROR_FAULTS="+n.faults)
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.done = cmd, make(chan struct{})
	go func() {
		defer close(n.done)
		cmd.Wait() // the outcome is in ProcessState
	}()
	return until(ctx, "a daemon", func() (bool, error) {
		select {
		case <-n.done:
			return false, fmt.Errorf("%q ended: %s", n.line, tail(n.log.String()))
		default:
		}
		st, err := n.status(ctx)
		if err != nil {
			return false, nil
		}
		n.addr = st.Listen
		return true, nil
	})
}

// end ends the process: SIGTERM, or SIGKILL.
func (n *node) end(s syscall.Signal) error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-n.done:
	case <-time.After(patience):
		n.cmd.Process.Kill()
		<-n.done
		return fmt.Errorf("%q did not end: %s", n.line, tail(n.log.String()))
	}
	code := n.cmd.ProcessState.ExitCode()
	n.cmd = nil
	if s == syscall.SIGTERM && code != 0 {
		return fmt.Errorf("%q ended with %d: %s", n.line, code, tail(n.log.String()))
	}
	return nil
}

// answer is how a command ended.
type answer struct {
	code           int
	stdout, stderr string
}

func (a answer) String() string { return fmt.Sprintf("exit %d: %s %s", a.code, a.stdout, a.stderr) }

// ask runs a client command against this daemon.
func (n *node) ask(ctx context.Context, args ...string) answer {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var out, stderr output
	cmd := exec.CommandContext(ctx, n.binary, append(args, "--control", n.control)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.Run() // the outcome is in ProcessState
	return answer{cmd.ProcessState.ExitCode(), out.String(), strings.TrimSpace(stderr.String())}
}

// status is what a daemon tells; the part of it that counts here.
type status struct {
	Listen  string
	Volumes []volume
}

type volume struct {
	State, Error, Next string
	Epoch              int64
	Unproven           bool
	IndexNeeds         int64 `json:"index_needs_bytes"`
	Rot                []int64
	ReadOnly           *readOnly `json:"read_only"`
	Mirrors            []peer
	Primary            *peer
}

type readOnly struct {
	Class, Reason string
	Blocks        []int64
}

type peer struct {
	Name       string
	State      string
	Reason     string
	Committed  int64     `json:"committed_epoch"`
	Applied    int64     `json:"applied_epoch"`
	Needs      int64     `json:"needs_bytes"`
	Shipped    int64     `json:"shipped_bytes"`
	GivenUp    int64     `json:"given_up"`
	Retried    int64     `json:"retried_blocks"`
	Reconnects int64     `json:"reconnects"`
	ReadOnly   *readOnly `json:"read_only"`
	Mismatches struct{ Wire, Source, Mirror int64 }
	Last       *struct{ Class, Error string } `json:"last_disconnect"`
}

// noticed are the counters that tell of a fault.
func (p *peer) noticed() int64 {
	return p.Retried + p.Mismatches.Wire + p.Mismatches.Source + p.Mismatches.Mirror
}

func (n *node) status(ctx context.Context) (st status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := n.http.Do(r)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

// volume is the one volume of the daemon.
func (n *node) volume(ctx context.Context) (volume, error) {
	st, err := n.status(ctx)
	if err == nil && len(st.Volumes) != 1 {
		err = fmt.Errorf("%d volumes", len(st.Volumes))
	}
	if err != nil {
		return volume{}, fmt.Errorf("status of %s: %w; its log: %s", n.state, err, tail(n.log.String()))
	}
	return st.Volumes[0], nil
}

// tail is the end of a log.
func tail(s string) string { return s[max(0, len(s)-2000):] }
