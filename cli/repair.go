package cli

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

func (a *app) repairCommand() *cli.Command {
	var o engine.RepairOptions
	var asJSON bool
	flags := []cli.Flag{
		&cli.StringFlag{Name: "mirror", Destination: &o.Mirror, Usage: "repair only mirror `NAME`"},
		&cli.BoolFlag{Name: "all", Destination: &o.All, Usage: "compare every block, not only those in quarantine, whatever state the mirror is in"},
		&cli.BoolFlag{Name: "dry-run", Destination: &o.DryRun, Usage: "only compare, and say what differs; exit 5 where something does"},
		&cli.BoolFlag{Name: "json", Destination: &asJSON, Usage: "print one JSON object a mirror, each on a line of its own"},
	}
	return a.volumeCommand("repair", "bring the blocks that made a mirror read-only, and end that state", `
Runs at the primary, while clients go on writing. The blocks in quarantine are compared by hash; only those
that differ are shipped, with what was written since, as one cut. The mirror reads back what it wrote, and
then takes new cuts again. Without blocks in quarantine there is nothing to do, save with --all. A repair
that was interrupted leaves the mirror read-only and is simply run again.`,
		"\nblkmirror repair db\nblkmirror repair db --mirror east --dry-run", flags,
		func(ctx context.Context, control, volume string) error {
			view := a.startCheck()
			results, err := engine.Repair(ctx, control, volume, o, view.note)
			view.stop()
			return a.repaired(volume, o, results, asJSON, err)
		})
}

// repaired prints what a repair came to.
func (a *app) repaired(volume string, o engine.RepairOptions, results []engine.RepairResult, asJSON bool, err error) error {
	var differ []string
	for _, r := range results {
		if o.DryRun && len(r.Extents) > 0 {
			differ = append(differ, r.Mirror)
		}
		if asJSON {
			a.printLine(r)
			continue
		}
		fmt.Fprintf(a.stdout, "%s at %s: ", r.Volume, r.Mirror)
		switch compared, took := formatBytes(r.ComparedBytes), formatSeconds(r.Seconds); {
		case r.Nothing && o.All:
			fmt.Fprintln(a.stdout, "nothing to repair")
		case r.Nothing:
			fmt.Fprintln(a.stdout, "nothing to repair: no block is in quarantine (--all compares every one)")
		case o.DryRun:
			fmt.Fprintf(a.stdout, "compared %s in %s, ", compared, took)
			a.printExtents(r.Extents, "ranges that differ", "no difference")
		default:
			fmt.Fprintf(a.stdout, "repaired in %s: %d blocks were in question, compared %s, shipped %s, ", took, r.Blocks, compared, formatBytes(r.ShippedBytes))
			a.printExtents(r.Extents, "ranges that differed", "nothing differed any more")
		}
	}
	return a.differing("repair", volume, differ, "left as it was", fmt.Sprintf("run `%s repair %s` without --dry-run", name, volume), err)
}
