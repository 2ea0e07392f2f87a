package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

func (a *app) scrubCommand() *cli.Command {
	var limit rate
	var asJSON bool
	flags := []cli.Flag{
		&cli.GenericFlag{Name: "rate", Value: &limit, Usage: "read at most `BYTES` a second (default 32M)"},
		&cli.BoolFlag{Name: "json", Destination: &asJSON, Usage: "print one JSON object"},
	}
	return a.volumeCommand("scrub", "compare the disk of a live volume here with its own index", `
Runs on either node, on that node's own disk, and needs no network; clients go on. Each block is compared
with the checksum that was noted when it was written. One that differs although nobody has written to it is
rot. At a mirror it is healed at once where the primary still has what was written; else the mirror is
read-only, and 'blkmirror repair VOLUME' brings it. At a primary it is told, and 'blkmirror repair VOLUME
--from mirror' takes it from a mirror. The exit code is 5 where rot is left. The daemon does the
same by itself now and then (--scrub of serve).`,
		"\nblkmirror scrub db\nblkmirror scrub db --rate 200MiB --json", flags,
		func(ctx context.Context, control, volume string) error {
			view := a.startCheck()
			results, err := engine.Scrub(ctx, control, volume, engine.ScrubOptions{Rate: int64(limit.size)}, view.note)
			view.stop()
			return a.scrubbed(volume, results, asJSON, err)
		})
}

// fromMirror is what a person can do about rot of the primary's own disk.
func fromMirror(volume string) string {
	return fmt.Sprintf("check the primary's disk (smartctl), then `%s repair %s --from mirror` takes what was written from a mirror", name, volume)
}

// scrubbed prints what a scrub came to. Rot counts more than an error behind it.
func (a *app) scrubbed(volume string, results []engine.ScrubResult, asJSON bool, err error) error {
	var rot error
	for _, r := range results {
		if len(r.Extents) > 0 {
			text, next := "its disk does not hold what was written; the volume goes on", fromMirror(volume)
			if r.Role == "mirror" {
				text, next = "the mirror's disk does not hold what was written, and the mirror is read-only", fmt.Sprintf("check the disk (smartctl), and run `%s repair %s`: it brings those blocks", name, volume)
			}
			rot = &engine.Error{Kind: engine.KindIntegrity, Op: "scrub", On: volume, Err: errors.New("rot: " + text), Next: next}
		}
		if asJSON {
			a.printLine(r)
			continue
		}
		fmt.Fprintf(a.stdout, "%s, %s here: compared %s in %s, ", r.Volume, r.Role, formatBytes(r.CheckedBytes), engine.FormatSeconds(r.Seconds))
		a.printExtents(r.Extents, "rot, ranges", "no rot")
		if len(r.Healed) > 0 {
			fmt.Fprint(a.stdout, "  ")
			a.printExtents(r.Healed, "healed with what the primary has, ranges", "")
		}
		if r.UnknownBytes > 0 {
			fmt.Fprintf(a.stdout, "  %s had no checksum yet\n", formatBytes(r.UnknownBytes))
		}
		if r.SkippedBytes > 0 {
			fmt.Fprintf(a.stdout, "  %s were left out: written to, not in the index yet, in doubt or unreadable\n", formatBytes(r.SkippedBytes))
		}
	}
	if rot != nil && err != nil {
		printError(a.stderr, err)
	}
	if rot != nil {
		return rot
	}
	return err
}
