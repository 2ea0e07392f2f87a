package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/bench"
)

type benchLiveFlags struct {
	size                   size
	seconds, warmUp, pairs int
	scenarios              words
	dir                    string
	json                   bool
}

func (a *app) benchLiveCommand() *cli.Command {
	f := benchLiveFlags{size: 4 << 30}
	return &cli.Command{
		Name:  "live",
		Usage: "measure live volumes beside qemu-nbd and nbdkit",
		Description: `
Puts the same load, fio with its nbd engine, on exports in turn: of blkmirror without a mirror and with
one, both on this machine; of qemu-nbd with O_DIRECT (--cache=none) in each of its aio modes; of nbdkit's
file plugin, which uses the page cache. They are compared within the same rounds. After the first round the
mirror is compared with the primary. Everything is removed at the end. Needs about five times the size as
room; the scenario memory needs some GiB more.

Scenarios:
  ` + strings.Join(bench.LiveScenarioNames(), "\n  "),
		UsageText: `
blkmirror bench live
blkmirror bench live --scenario randwrite-d32 --scenario latency --seconds 30
blkmirror bench live --size 1G --pairs 1 --json`,
		Flags: []cli.Flag{
			&cli.GenericFlag{Name: "size", Value: &f.size, Usage: "make volumes of `BYTES`"},
			&cli.IntFlag{Name: "seconds", Destination: &f.seconds, Value: 20, Usage: "measure each run for `N` seconds (hot-set and memory: three times)"},
			&cli.IntFlag{Name: "warm-up", Destination: &f.warmUp, Value: 3, Usage: "let each run go for `N` seconds before"},
			&cli.IntFlag{Name: "pairs", Destination: &f.pairs, Value: 3, Usage: "run every export `N` times"},
			&cli.GenericFlag{Name: "scenario", Value: &f.scenarios, Usage: "measure only scenario `NAME`; may be repeated"},
			&cli.StringFlag{Name: "dir", Destination: &f.dir, Usage: "make the volumes in `DIR` (default: the system's folder for temporary files)"},
			&cli.BoolFlag{Name: "json", Destination: &f.json, Usage: "print one JSON object"},
		},
		Action: func(c *cli.Context) error { return a.benchLive(c.Context, f) },
	}
}

func (a *app) benchLive(ctx context.Context, f benchLiveFlags) error {
	const least = 16 << 20
	misuse := func(format string, args ...any) error {
		return usageError{command: "bench live", text: fmt.Sprintf(format, args...)}
	}
	switch {
	case f.size < least || f.size%pageSize != 0:
		return misuse("--size must be at least %s, and whole pages of 4K", formatBytes(least))
	case f.seconds < 1 || f.pairs < 1:
		return misuse("--seconds and --pairs must be at least 1")
	case f.warmUp < 0:
		return misuse("--warm-up must not be negative")
	}
	if err := checkScenarios(misuse, f.scenarios, bench.LiveScenarioNames()); err != nil {
		return err
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	if f.dir == "" {
		f.dir = os.TempDir()
	}
	if err := enoughRoom(f.dir, 5*int64(f.size)); err != nil {
		return err
	}
	result, err := bench.RunLive(ctx, bench.LiveOptions{
		Binary: binary, Dir: f.dir, Size: int64(f.size), Seconds: f.seconds, WarmUp: f.warmUp, Pairs: f.pairs, Scenarios: f.scenarios,
		Tell: func(text string) { fmt.Fprintf(a.stderr, "%s: %s\n", name, text) },
	})
	if ctx.Err() != nil {
		err = &interruptedError{text: "bench live: interrupted, the volumes are removed", next: "run it again"}
	}
	return a.benchReport(f.json, len(result.Scenarios), result, err)
}
