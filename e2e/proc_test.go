package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for a condition. It is no expectation: a slow machine needs minutes.
const patience = 3 * time.Minute

// until waits for a condition. It looks less and less often, since many conditions take a process to look at, and other
// tests want the processors as well.
func until(t testing.TB, what string, met func() bool) {
	t.Helper()
	pause := 5 * time.Millisecond
	for deadline := time.Now().Add(patience); !met(); pause = min(pause*3/2, 100*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
		time.Sleep(pause)
	}
}

// buffer is what a process printed so far.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// proc is a process under way.
type proc struct {
	t        testing.TB
	cmd      *exec.Cmd
	out, err buffer
	done     chan struct{}
}

// result is how a process ended. A code of -1 is the end by a signal.
type result struct {
	args           []string
	code           int
	stdout, stderr string
	maxRSS         int64 // bytes; not below the test's own
}

// launch starts a command line. The process is killed at the end of the test if it still runs.
func launch(t testing.TB, env []string, line ...string) *proc {
	t.Helper()
	p := &proc{t: t, cmd: exec.Command(line[0], line[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	// The race detector would sleep for a second at each end.
	p.cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), env...)
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %q: %v", line, err)
	}
	go func() {
		defer close(p.done)
		p.cmd.Wait() // the outcome is in ProcessState
	}()
	t.Cleanup(func() {
		p.kill()
		if strings.Contains(p.err.String(), "DATA RACE") {
			t.Errorf("%q: %s", line, p.err.String())
		}
	})
	return p
}

// start runs the binary with the race detector.
func start(t testing.TB, args ...string) *proc {
	t.Helper()
	return launch(t, nil, append([]string{checked}, args...)...)
}

func (p *proc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal sends a signal to this very process.
func (p *proc) signal(s os.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %v to %d: %v", s, p.cmd.Process.Pid, err)
	}
}

// kill is kill -9, and waits until the process is gone.
func (p *proc) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *proc) wait() result {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(2 * patience):
		p.signal(syscall.SIGQUIT) // Go prints its goroutines
		<-p.done
		p.t.Fatalf("%q hangs:\n%s", p.cmd.Args, p.err.String())
	}
	r := result{args: p.cmd.Args, code: p.cmd.ProcessState.ExitCode(), stdout: p.out.String(), stderr: p.err.String()}
	if u, ok := p.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.maxRSS = u.Maxrss << 10
	}
	return r
}

// blkmirror runs the binary with the race detector to its end.
func blkmirror(t testing.TB, args ...string) result {
	t.Helper()
	return start(t, args...).wait()
}

// mustRun runs it and expects success.
func mustRun(t testing.TB, args ...string) result {
	t.Helper()
	return blkmirror(t, args...).ok(t)
}

func (r result) ok(t testing.TB) result {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("%q: exit code %d\nstdout: %.2000s\nstderr: %.2000s", r.args, r.code, r.stdout, r.stderr)
	}
	return r
}

// fails expects an error of this exit code that says what to do next, mentions all words, and shows no
// stack.
func (r result) fails(t testing.TB, code int, words ...string) result {
	t.Helper()
	if r.code != code {
		t.Errorf("%q: exit code %d, want %d", r.args, r.code, code)
	}
	for _, w := range append(words, "next: ") {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("%q: stderr does not say %q", r.args, w)
		}
	}
	for _, w := range []string{"goroutine ", "panic", ".go:"} {
		if strings.Contains(r.stderr, w) {
			t.Errorf("%q: stderr shows a stack (%q)", r.args, w)
		}
	}
	if t.Failed() {
		t.Logf("%q\nstdout: %.2000s\nstderr: %.2000s", r.args, r.stdout, r.stderr)
	}
	return r
}

// report is what --json prints.
type report struct {
	Source, Target string
	Size           int64   `json:"size"`
	Scanned        int64   `json:"scanned_bytes"`
	Shipped        int64   `json:"shipped_bytes"`
	Wire           int64   `json:"wire_bytes"`
	Skipped        int64   `json:"skipped_bytes"`
	Zero           int64   `json:"zero_bytes"`
	Resumed        int64   `json:"resumed_bytes"`
	Retried        int64   `json:"retried_blocks"`
	Seconds        float64 `json:"seconds"`
	Reconnects     int64   `json:"reconnects"`
}

// report expects exactly one object on stdout.
func (r result) report(t testing.TB) report {
	t.Helper()
	var rep report
	d := json.NewDecoder(strings.NewReader(r.stdout))
	if err := d.Decode(&rep); err != nil {
		t.Fatalf("%q: no JSON on stdout: %v\n%s\n%s", r.args, err, r.stdout, r.stderr)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Fatalf("%q: more than one object on stdout: %s", r.args, r.stdout)
	}
	return rep
}

// syncJSON is a sync that must succeed.
func syncJSON(t testing.TB, args ...string) report {
	t.Helper()
	return mustRun(t, append([]string{"sync", "--json"}, args...)...).report(t)
}

// highWater is the largest resident size that a running process has had, in bytes.
func (p *proc) highWater() int64 {
	p.t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/status")
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return kib << 10
		}
	}
	p.t.Fatal("no VmHWM")
	return 0
}
