package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/conformance"
)

const usage = `blkmirror-conformance judges tools that keep a second copy of a disk.

  blkmirror-conformance run [--adapter NAME|PATH] [--seed N] [--keep] [--json] [--verbose] SCENARIO|DIR...
  blkmirror-conformance list [--json] SCENARIO|DIR...
  blkmirror-conformance write --to DISK --history FILE [--writes N] [--time D] [--seed N] ...
  blkmirror-conformance check-image --history FILE [--not-older-than INSTANT] [--list] [--json] IMAGE

blkmirror-conformance COMMAND --help lists the flags. Exit codes: 0 right, 1 other error, 2 usage or a bad
scenario file, 5 a scenario failed or the image is wrong. See docs/CONFORMANCE.md.
`

// The exit codes are those of blkmirror.
const (
	exitOther = 1
	exitUsage = 2
	exitWrong = 5
)

// errWrong is what is found of a tool or an image; it is printed where it is found.
var errWrong = errors.New("wrong")

// usageError is a command line that was not understood.
type usageError struct{ error }

// app holds what every command needs of the outside.
type app struct {
	stdout, stderr io.Writer
}

// Main runs one command line and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout, stderr}
	err := a.run(ctx, args)
	var syntax *conformance.SyntaxError
	var misuse usageError
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errWrong):
		return exitWrong
	}
	fmt.Fprintf(stderr, "blkmirror-conformance: %v\n", err)
	switch {
	case errors.As(err, &misuse):
		fmt.Fprintln(stderr, "  next: see blkmirror-conformance --help")
		return exitUsage
	case errors.As(err, &syntax):
		fmt.Fprintln(stderr, "  next: docs/CONFORMANCE.md lists the words of a scenario")
		return exitUsage
	}
	return exitOther
}

func (a *app) run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usageError{errors.New("no command given")}
	}
	switch args[0] {
	case "run":
		return a.runScenarios(ctx, args[1:])
	case "list":
		return a.list(args[1:])
	case "write":
		return a.write(ctx, args[1:])
	case "check-image":
		return a.checkImage(args[1:])
	case "help", "-h", "--help":
		_, err := io.WriteString(a.stdout, usage)
		return err
	}
	return usageError{fmt.Errorf("unknown command %q", args[0])}
}

// flags makes a set of flags that prints nothing but its help.
func (a *app) flags(command string) *flag.FlagSet {
	f := flag.NewFlagSet(command, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	return f
}

// parse takes flags wherever they stand and returns the arguments.
func (a *app) parse(f *flag.FlagSet, args []string, least, most int) ([]string, error) {
	var rest []string
	for len(args) > 0 {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(a.stdout, "flags of blkmirror-conformance %s:\n", f.Name())
			f.SetOutput(a.stdout)
			f.PrintDefaults()
			return nil, err
		} else if err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", f.Name(), err)}
		}
		behind := len(args) - f.NArg() // what stands behind "--" is no flag
		ended := behind > 0 && args[behind-1] == "--"
		if args = f.Args(); ended {
			rest, args = append(rest, args...), nil
		}
		if len(args) > 0 {
			rest, args = append(rest, args[0]), args[1:]
		}
	}
	if len(rest) < least || len(rest) > most {
		return nil, usageError{fmt.Errorf("%s: %d arguments, which is not the number that it takes", f.Name(), len(rest))}
	}
	return rest, nil
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (a *app) list(args []string) error {
	f := a.flags("list")
	asJSON := f.Bool("json", false, "one array on standard output")
	paths, err := a.parse(f, args, 1, 1000)
	if err != nil {
		return err
	}
	scenarios, err := conformance.Load(paths...)
	if err != nil {
		return err
	}
	type entry struct {
		Name     string   `json:"name"`
		File     string   `json:"file"`
		Needs    []string `json:"needs"`
		Optional []string `json:"optional"`
	}
	var all []entry
	for _, s := range scenarios {
		all = append(all, entry{s.Name, s.Path, s.Needs, s.Optional})
		if *asJSON {
			continue
		}
		needs := ""
		if len(s.Needs) > 0 {
			needs = "  (needs " + strings.Join(s.Needs, ", ") + ")"
		}
		fmt.Fprintf(a.stdout, "%s: %s%s\n", s.Path, s.Name, needs)
	}
	if *asJSON {
		return a.printJSON(all)
	}
	return nil
}

// seedOr takes a seed, or makes one where none is given.
func seedOr(seed uint64) uint64 {
	if seed == 0 {
		return uint64(time.Now().UnixNano())
	}
	return seed
}
