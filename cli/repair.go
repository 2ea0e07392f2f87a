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
	var from side
	flags := []cli.Flag{
		&cli.StringFlag{Name: "mirror", Destination: &o.Mirror, Usage: "repair only mirror `NAME`"},
		&cli.BoolFlag{Name: "all", Destination: &o.All, Usage: "compare every block, not only those in quarantine, whatever state the mirror is in"},
		&cli.BoolFlag{Name: "dry-run", Destination: &o.DryRun, Usage: "only compare, and say what differs; exit 5 where something does"},
		&cli.GenericFlag{Name: "from", Value: &from, Usage: "`primary|mirror`: mirror takes blocks that are rotten at the primary from a mirror that has what was written; primary brings them to a mirror all the same"},
		&cli.BoolFlag{Name: "json", Destination: &asJSON, Usage: "print one JSON object a mirror, each on a line of its own"},
	}
	return a.volumeCommand("repair", "bring the blocks that made a mirror read-only, and end that state", `
Runs on either node, while clients go on writing. The blocks in quarantine are compared by hash; only those
that differ are shipped, with what was written since, as one cut. The mirror reads back what it wrote, and
then takes new cuts again. Without blocks in quarantine there is nothing to do, save with --all. A repair
that was interrupted leaves the mirror read-only and is simply run again. At a mirror its primary is asked to
do it, for that mirror alone, as soon as it is there.

With --from mirror it is the other way round: a block of the primary's disk that scrub or verify found rotten
is replaced by a mirror's, if that has the very checksum that was noted when the block was written. What it
held is kept in the primary's state directory. Without --from such a block is not brought to a mirror.`,
		"\nblkmirror repair db\nblkmirror repair db --mirror east --dry-run", flags,
		func(ctx context.Context, control, volume string) error {
			o.From = string(from)
			view := a.startCheck()
			results, err := engine.Repair(ctx, control, volume, o, view.note)
			view.stop()
			return a.repaired(volume, o, results, asJSON, err)
		})
}

// side is who is right in a repair.
type side string

func (s *side) Set(text string) error {
	if err := oneOf(text, "primary", "mirror"); err != nil {
		return err
	}
	*s = side(text)
	return nil
}

func (s *side) String() string { return string(*s) }

// repaired prints what a repair came to.
func (a *app) repaired(volume string, o engine.RepairOptions, results []engine.RepairResult, asJSON bool, err error) error {
	var differ []string
	for _, r := range results {
		if o.DryRun && o.From != "mirror" && len(r.Extents) > 0 {
			differ = append(differ, r.Mirror)
		}
		if asJSON {
			a.printLine(r)
			continue
		}
		fmt.Fprintf(a.stdout, "%s at %s: ", r.Volume, r.Mirror)
		what := "nothing to repair: no block is in quarantine (--all compares every one)"
		if o.From == "mirror" {
			what = "nothing to repair: no block of the primary is known to be rotten (scrub looks for them)"
		}
		switch compared, took := formatBytes(r.ComparedBytes), engine.FormatSeconds(r.Seconds); {
		case r.Nothing && o.All:
			fmt.Fprintln(a.stdout, "nothing to repair")
		case r.Nothing:
			fmt.Fprintln(a.stdout, what)
		case o.From == "mirror":
			fmt.Fprintf(a.stdout, "%d blocks of the primary were rotten, in %s, ", r.Blocks, took)
			a.printExtents(r.Extents, map[bool]string{false: "ranges taken from there", true: "ranges that it has"}[o.DryRun], "nothing was taken from there")
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
