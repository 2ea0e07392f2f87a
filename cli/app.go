// Package cli is the command line: one file per command. It is the only package that prints and that
// decides exit codes. urfave/cli defines flags, converts their values and knows their help; which
// command is meant, where flags may stand and what a misuse says is decided in args.go, before it runs.
package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
)

const name = "blkmirror"

// profileEnv names a file for a CPU profile of this process. `bench sync --cpuprofile` sets it for the
// processes that it measures.
const profileEnv = "BLKMIRROR_CPUPROFILE"

// memoryLimit is where the collector stops letting garbage pile up. The engine's buffers have limits of
// their own, and are most of what there is; without this the heap could grow to twice of them.
const memoryLimit = 160 << 20

// app holds what every command needs of the outside.
type app struct {
	stdin  io.Reader
	stdout *output
	stderr io.Writer
}

// Main runs one command line, without the program's name, and returns the exit code.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: &output{w: stdout}, stderr: stderr}
	ctx, stop := withSignals(ctx)
	defer stop()
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}

	stopProfile, err := startProfile(os.Getenv(profileEnv))
	if err == nil {
		err = a.run(ctx, args)
		stopProfile()
	}
	if err == nil {
		// A report that did not reach its reader, for instance on a full disk, must not look like success.
		err = a.stdout.err
	}
	if err != nil {
		printError(stderr, err)
	}
	return exitCode(err)
}

func (a *app) commands() []*cli.Command {
	return []*cli.Command{
		a.quickstartCommand(),
		a.syncCommand(),
		a.serveCommand(),
		a.statusCommand(),
		a.cutCommand(),
		a.verifyCommand(),
		a.repairCommand(),
		a.scrubCommand(),
		a.pauseCommand(),
		a.resumeCommand(),
		a.rebuildCommand(),
		a.keysCommand(),
		a.probeCommand(),
		a.doctorCommand(),
		a.inspectCommand(),
		a.benchCommand(),
		a.versionCommand(),
		a.completionCommand(),
	}
}

func (a *app) run(ctx context.Context, args []string) error {
	commands := a.commands()
	call, err := parseArgs(commands, args)
	if err != nil {
		return err
	}
	if call.help {
		printHelp(a.stdout, commands, call)
		return nil
	}
	quiet(commands)
	root := &cli.App{
		Name: name, Commands: commands, HideHelp: true, HideVersion: true,
		Reader: a.stdin, Writer: a.stdout, ErrWriter: a.stderr,
		ExitErrHandler: func(*cli.Context, error) {}, // errors come back to Main; nothing exits inside
	}
	argv := slices.Concat([]string{name}, call.path, call.flags, []string{"--"}, call.args)
	return root.RunContext(ctx, argv)
}

// quiet turns off what urfave/cli would print or add on its own.
func quiet(commands []*cli.Command) {
	for _, c := range commands {
		c.HideHelp = true
		c.OnUsageError = func(ctx *cli.Context, err error, _ bool) error {
			// The flag package speaks of -name.
			text := strings.Replace(err.Error(), "for flag -", "for flag --", 1)
			return usageError{command: strings.TrimPrefix(ctx.Command.HelpName, name+" "), text: text}
		}
		quiet(c.Subcommands)
	}
}

// withSignals ends ctx at the first SIGINT or SIGTERM. The second one kills the process, in case the
// clean end hangs.
func withSignals(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // gives the signals back to the system
	return ctx, stop
}

func startProfile(path string) (stop func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, nil
}

// output keeps the first write error, which fmt's callers do not look at.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.w.Write(b)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}
