package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/bench"
	"github.com/blkmirror/blkmirror/engine"
)

type benchFlags struct {
	size                         size
	pairs                        int
	scenarios                    words
	dir, profile, source, target string
	json, yes                    bool
}

func (a *app) benchCommand() *cli.Command {
	return &cli.Command{
		Name:        "bench",
		Usage:       "measure blkmirror beside other tools",
		Subcommands: []*cli.Command{a.benchSyncCommand(), a.benchLiveCommand(), a.benchFailsafeCommand()},
	}
}

func (a *app) benchSyncCommand() *cli.Command {
	f := benchFlags{size: 4 << 30}
	return &cli.Command{
		Name:  "sync",
		Usage: "measure sync beside nbdcopy and rsync, where these are installed",
		Description: `
Makes images, copies them with each tool in turn, and compares the tools within the same rounds: time
until the target is durable, CPU seconds of all processes, peak memory of each. Caches are dropped
before every run where the user may (root), and after the first run of each tool the copy is compared
with the source. All images are removed at the end. Needs about twice the size as room.

Scenarios:
  ` + strings.Join(bench.ScenarioNames(), "\n  "),
		UsageText: `
blkmirror bench sync
blkmirror bench sync --size 1G --scenario tcp-incompressible --scenario delta-4k
blkmirror bench sync --source-device /dev/sdx --target-device /dev/sdy --json`,
		Flags: []cli.Flag{
			&cli.GenericFlag{Name: "size", Value: &f.size, Usage: "make images of `BYTES`"},
			&cli.IntFlag{Name: "pairs", Destination: &f.pairs, Value: 5, Usage: "run every tool `N` times"},
			&cli.GenericFlag{Name: "scenario", Value: &f.scenarios, Usage: "measure only scenario `NAME`; may be repeated"},
			&cli.StringFlag{Name: "dir", Destination: &f.dir, Usage: "make the images in `DIR` (default: the system's folder for temporary files)"},
			&cli.StringFlag{Name: "source-device", Destination: &f.source, Usage: "use block device `DEV` as the source; it is overwritten"},
			&cli.StringFlag{Name: "target-device", Destination: &f.target, Usage: "use block device `DEV` as the target; it is overwritten"},
			&cli.BoolFlag{Name: "yes", Destination: &f.yes, Usage: "do not ask before devices are overwritten"},
			&cli.StringFlag{Name: "cpuprofile", Destination: &f.profile, Usage: "write CPU profiles of blkmirror's processes to `DIR`"},
			&cli.BoolFlag{Name: "json", Destination: &f.json, Usage: "print one JSON object"},
		},
		Action: func(c *cli.Context) error { return a.benchSync(c.Context, f) },
	}
}

func (a *app) benchSync(ctx context.Context, f benchFlags) error {
	const least = 1 << 20
	misuse := func(format string, args ...any) error {
		return usageError{command: "bench sync", text: fmt.Sprintf(format, args...)}
	}
	switch {
	case f.size < least:
		return misuse("--size must be at least %s", formatBytes(least))
	case f.pairs < 1:
		return misuse("--pairs must be at least 1")
	case f.source != "" && f.source == f.target:
		return misuse("--source-device and --target-device must differ")
	}
	if err := checkScenarios(misuse, f.scenarios, bench.ScenarioNames()); err != nil {
		return err
	}
	if err := a.mayOverwrite(f); err != nil {
		return err
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	if f.dir == "" {
		f.dir = os.TempDir()
	}
	if f.target == "" || f.source == "" {
		if err := enoughRoom(f.dir, 2*int64(f.size)+int64(f.size)/8); err != nil {
			return err
		}
	}
	result, err := bench.Run(ctx, bench.Options{
		Binary: binary, Dir: f.dir, Size: int64(f.size), Pairs: f.pairs, Scenarios: f.scenarios,
		SourceDevice: f.source, TargetDevice: f.target, ProfileDir: f.profile,
		Tell: func(text string) { fmt.Fprintf(a.stderr, "%s: %s\n", name, text) },
	})
	if ctx.Err() != nil {
		err = &interruptedError{text: "bench sync: interrupted, the images are removed", next: "run it again"}
	}
	return a.benchReport(f.json, len(result.Scenarios), result, err)
}

// benchReport prints what was measured, also where an error ended it.
func (a *app) benchReport(asJSON bool, scenarios int, result interface{ Print(io.Writer) }, err error) error {
	switch {
	case err != nil && scenarios == 0:
	case asJSON:
		return errors.Join(err, a.printJSON(result))
	default:
		result.Print(a.stdout)
	}
	return err
}

func checkScenarios(misuse func(string, ...any) error, given, known []string) error {
	for _, s := range given {
		if !slices.Contains(known, s) {
			return misuse("unknown scenario %q%s", s, didYouMean(s, known, ""))
		}
	}
	return nil
}

// mayOverwrite asks before the content of a device is lost.
func (a *app) mayOverwrite(f benchFlags) error {
	var devices []string
	for _, d := range []string{f.source, f.target} {
		if d != "" {
			devices = append(devices, d)
		}
	}
	if len(devices) == 0 || f.yes {
		return nil
	}
	fmt.Fprintf(a.stderr, "Everything on %s will be overwritten. Go on? [y/N] ", strings.Join(devices, " and "))
	answer, _ := bufio.NewReader(a.stdin).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a == "y" || a == "yes" {
		return nil
	}
	return &engine.Error{Kind: engine.KindState, Op: "overwrite", On: strings.Join(devices, " and "),
		Err: errors.New("not allowed"), Next: "answer y, or give --yes"}
}
