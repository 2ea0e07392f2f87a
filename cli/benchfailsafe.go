package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/bench"
)

type benchFailsafeFlags struct {
	size            size
	seconds, rounds int
	scenarios       words
	dir, mirrorDir  string
	json            bool
}

func (a *app) benchFailsafeCommand() *cli.Command {
	f := benchFailsafeFlags{size: 1 << 30}
	return &cli.Command{
		Name:  "failsafe",
		Usage: "measure verify, scrub and repair",
		Description: `
Makes a volume with a mirror, both on this machine, and measures verify and scrub beside the device (a
plain read of the same image with O_DIRECT) and one core, their memory, what a scrub costs a writer, and
the repair of 10 damaged blocks in a sparse volume of 100 GiB. What is compared is measured in the same
rounds. Everything is removed at the end. Needs about two and a half times the size as room, and the time
in which a primary indexes a volume: 32 MiB a second.

Scenarios:
  ` + strings.Join(bench.FailsafeScenarioNames(), "\n  "),
		UsageText: `
blkmirror bench failsafe
blkmirror bench failsafe --scenario rates --size 2G --rounds 5
blkmirror bench failsafe --json`,
		Flags: []cli.Flag{
			&cli.GenericFlag{Name: "size", Value: &f.size, Usage: "make volumes of `BYTES`"},
			&cli.IntFlag{Name: "seconds", Destination: &f.seconds, Value: 10, Usage: "let the writer write for `N` seconds each time"},
			&cli.IntFlag{Name: "rounds", Destination: &f.rounds, Value: 5, Usage: "measure everything `N` times"},
			&cli.GenericFlag{Name: "scenario", Value: &f.scenarios, Usage: "measure only scenario `NAME`; may be repeated"},
			&cli.StringFlag{Name: "dir", Destination: &f.dir, Usage: "make the volumes in `DIR` (default: the system's folder for temporary files)"},
			&cli.StringFlag{Name: "mirror-dir", Destination: &f.mirrorDir, Usage: "make the mirror's in `DIR`, on another disk"},
			&cli.BoolFlag{Name: "json", Destination: &f.json, Usage: "print one JSON object"},
		},
		Action: func(c *cli.Context) error { return a.benchFailsafe(c.Context, f) },
	}
}

func (a *app) benchFailsafe(ctx context.Context, f benchFailsafeFlags) error {
	const least = 16 << 20
	misuse := func(format string, args ...any) error {
		return usageError{command: "bench failsafe", text: fmt.Sprintf(format, args...)}
	}
	switch {
	case f.size < least || f.size%pageSize != 0:
		return misuse("--size must be at least %s, and whole pages of 4K", formatBytes(least))
	case f.seconds < 1 || f.rounds < 1:
		return misuse("--seconds and --rounds must be at least 1")
	}
	if err := checkScenarios(misuse, f.scenarios, bench.FailsafeScenarioNames()); err != nil {
		return err
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	if f.dir == "" {
		f.dir = os.TempDir()
	}
	if err := enoughRoom(f.dir, 2*int64(f.size)+int64(f.size)/2); err != nil {
		return err
	}
	result, err := bench.RunFailsafe(ctx, bench.FailsafeOptions{
		Binary: binary, Dir: f.dir, MirrorDir: f.mirrorDir, Size: int64(f.size), Rounds: f.rounds, Seconds: f.seconds, Scenarios: f.scenarios,
		Tell: func(text string) { fmt.Fprintf(a.stderr, "%s: %s\n", name, text) },
	})
	if ctx.Err() != nil {
		err = &interruptedError{text: "bench failsafe: interrupted, the volumes are removed", next: "run it again"}
	}
	return a.benchReport(f.json, len(result.Scenarios), result, err)
}
