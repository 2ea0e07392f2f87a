package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// errNo is wrapped where an adapter answers "no", or "not yet", by exit code 1.
var errNo = errors.New("not yet")

// adapter is the executable that knows the tool.
type adapter struct {
	path string
	env  []string
}

// patience bounds one question to the adapter.
const patience = time.Minute

// ask runs an action to its end and returns what it printed.
func (a adapter) ask(ctx context.Context, action ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.path, action...)
	cmd.Env = a.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // where something that it left behind holds its pipes
	err := cmd.Run()
	said := strings.TrimSpace(tail(stderr.String()))
	var exit *exec.ExitError
	switch {
	case err == nil:
		return strings.TrimSpace(stdout.String()), nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "", fmt.Errorf("adapter %s: no answer in %v: %s", strings.Join(action, " "), patience, said)
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return "", fmt.Errorf("adapter %s: %w: %s", strings.Join(action, " "), errNo, said)
	}
	return "", fmt.Errorf("adapter %s: %w: %s", strings.Join(action, " "), err, said)
}

// tail is the end of what a process printed.
func tail(s string) string {
	const most = 1500
	if len(s) <= most {
		return s
	}
	return "…" + strings.ToValidUTF8(s[len(s)-most:], "")
}

// poll asks until the answer is yes. Each question has an answer sooner or later; in between is a pause.
func poll(ctx context.Context, limit time.Duration, question func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := question()
		switch {
		case err == nil || !errors.Is(err, errNo):
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("waited %v: %w", limit, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(30 * time.Millisecond):
		}
	}
}
