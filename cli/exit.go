package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/blkmirror/blkmirror/engine"
)

// The exit codes are an interface: scripts decide by them.
const (
	exitOther     = 1
	exitUsage     = 2
	exitNetwork   = 3
	exitAuth      = 4
	exitIntegrity = 5
	exitDevice    = 6
	exitState     = 7
)

// usageError is a command line that was not understood.
type usageError struct {
	command string // "sync", "bench sync"; empty: none was recognised
	text    string
}

func (e usageError) Error() string {
	if e.command == "" {
		return e.text
	}
	return e.command + ": " + e.text
}

func (e usageError) next() string {
	if e.command == "" {
		return "see " + name + " --help"
	}
	return "see " + name + " " + e.command + " --help"
}

func exitCode(err error) int {
	var usage usageError
	var told *engine.Error
	var attention *attentionError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &attention):
		return attention.code
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, context.Canceled): // interrupted, whatever broke on the way out
		return exitOther
	case !errors.As(err, &told):
		return exitOther
	}
	switch told.Kind {
	case engine.KindUsage:
		return exitUsage
	case engine.KindNetwork:
		return exitNetwork
	case engine.KindAuth:
		return exitAuth
	case engine.KindIntegrity:
		return exitIntegrity
	case engine.KindDevice:
		return exitDevice
	case engine.KindState:
		return exitState
	}
	return exitOther
}

// printError says what was tried, on what, what happened, and what to do next.
func printError(w io.Writer, err error) {
	if _, printed := errors.AsType[*attentionError](err); printed {
		return
	}
	fmt.Fprintf(w, "%s: %v\n", name, err)
	var usage usageError
	var stopped *interruptedError
	var told *engine.Error
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(w, "  next: %s\n", usage.next())
	case errors.As(err, &stopped):
		fmt.Fprintf(w, "  next: %s\n", stopped.next)
	case errors.As(err, &told) && told.Next != "":
		fmt.Fprintf(w, "  next: %s\n", told.Next)
	}
}

// interruptedError is the end by a signal: no fault, but the work is not done either.
type interruptedError struct {
	text, next string
}

func (e *interruptedError) Error() string { return e.text }
func (e *interruptedError) Unwrap() error { return context.Canceled }
