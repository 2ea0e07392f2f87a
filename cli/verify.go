package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

// extentsShown is how many of the ranges that differ are told to people.
const extentsShown = 20

func (a *app) verifyCommand() *cli.Command {
	var mirror string
	var limit rate
	var asJSON bool
	flags := []cli.Flag{
		&cli.StringFlag{Name: "mirror", Destination: &mirror, Usage: "compare only mirror `NAME`"},
		&cli.GenericFlag{Name: "rate", Value: &limit, Usage: "read at most `BYTES` a second, such as 100MiB"},
		&cli.BoolFlag{Name: "json", Destination: &asJSON, Usage: "print one JSON object a mirror, each on a line of its own"},
	}
	return a.volumeCommand("verify", "compare the mirrors of a live volume with it, block by block", `
Runs on either node, while clients go on writing. Both sides read and hash their own disk; what was written
meanwhile is compared again later, and nothing is shipped. A block that differs, and still does when both
sides have read it again, makes its mirror read-only: it keeps what it has and takes nothing new until
'blkmirror repair VOLUME' has brought that block. The exit code is 5 then. At a mirror its primary is asked
to do it, for that mirror alone, as soon as it is there.`,
		"\nblkmirror verify db\nblkmirror verify db --mirror east --rate 100MiB --json", flags,
		func(ctx context.Context, control, volume string) error {
			view := a.startCheck()
			results, err := engine.Verify(ctx, control, volume, engine.VerifyOptions{Mirror: mirror, Rate: int64(limit.size)}, view.note)
			view.stop()
			return a.verified(volume, results, asJSON, err)
		})
}

// verified prints what a verify came to. A difference that was found counts more than an error behind it.
func (a *app) verified(volume string, results []engine.VerifyResult, asJSON bool, err error) error {
	var differ []string
	rotten := false
	for _, r := range results {
		if len(r.Extents) > 0 {
			differ = append(differ, r.Mirror)
		}
		rotten = rotten || len(r.Rot) > 0
		if asJSON {
			a.printLine(r)
			continue
		}
		fmt.Fprintf(a.stdout, "%s at %s: compared %s in %s, ", r.Volume, r.Mirror, formatBytes(r.CheckedBytes), engine.FormatSeconds(r.Seconds))
		a.printExtents(r.Extents, "ranges that differ", "no difference")
		if len(r.Rot) > 0 {
			fmt.Fprint(a.stdout, "  ")
			a.printExtents(r.Rot, "rot of the primary's own disk, ranges", "")
		}
		if r.ResumedAt > 0 {
			fmt.Fprintf(a.stdout, "  it went on at %s, where one before it was interrupted\n", formatBytes(r.ResumedAt))
		}
		if r.SkippedBytes > 0 {
			fmt.Fprintf(a.stdout, "  %s were not compared: they are not shipped yet, or written all the time\n", formatBytes(r.SkippedBytes))
		}
	}
	if rotten && len(differ) == 0 {
		if err != nil {
			printError(a.stderr, err)
		}
		return &engine.Error{Kind: engine.KindIntegrity, Op: "verify", On: volume, Err: errors.New("rot: the primary's disk does not hold what was written, and the mirror does"),
			Next: fromMirror(volume)}
	}
	return a.differing("verify", volume, differ, "read-only now",
		fmt.Sprintf("run `%s repair %s`: it brings the blocks that differ", name, volume), err)
}

// differing is the end of a command that found differences at these mirrors, or none.
func (a *app) differing(op, volume string, mirrors []string, state, next string, err error) error {
	if len(mirrors) == 0 {
		return err
	}
	if err != nil {
		printError(a.stderr, err)
	}
	text := fmt.Sprintf("mirror %s differs, and is %s", mirrors[0], state)
	if len(mirrors) > 1 {
		text = fmt.Sprintf("mirrors %s differ, and are %s", strings.Join(mirrors, ", "), state)
	}
	return &engine.Error{Kind: engine.KindIntegrity, Op: op, On: volume, Err: errors.New(text), Next: next}
}

// printExtents ends a line, and lists below it what differs.
func (a *app) printExtents(extents []engine.CheckedExtent, what, none string) {
	if len(extents) == 0 {
		fmt.Fprintln(a.stdout, none)
		return
	}
	bytes := int64(0)
	for _, e := range extents {
		bytes += e.Length
	}
	fmt.Fprintf(a.stdout, "%s: %d (%s)\n", what, len(extents), formatBytes(bytes))
	for _, e := range extents[:min(len(extents), extentsShown)] {
		fmt.Fprintf(a.stdout, "  at %d+%d\n", e.Offset, e.Length)
	}
	if more := len(extents) - extentsShown; more > 0 {
		fmt.Fprintf(a.stdout, "  and %d more; --json lists all\n", more)
	}
}

// printLine prints one JSON object on one line.
func (a *app) printLine(v any) {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	e.Encode(v) // a failed write is kept by a.stdout
}

// checkView shows how far a verify or a repair is, of all mirrors together. People who look at something
// else than a terminal want the end of it alone.
type checkView struct {
	*progressView
	mu          sync.Mutex
	first, last map[string]engine.CheckProgress
}

func (a *app) startCheck() *checkView {
	v := &checkView{first: map[string]engine.CheckProgress{}, last: map[string]engine.CheckProgress{}}
	v.progressView = a.startProgress(v.figures, !isTerminal(a.stderr))
	return v
}

func (v *checkView) note(p engine.CheckProgress) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, known := v.last[p.Mirror]; !known {
		v.first[p.Mirror] = p
	}
	v.last[p.Mirror] = p
}

// figures count what an interrupted verify had done before as done, not as speed.
func (v *checkView) figures() figures {
	v.mu.Lock()
	defer v.mu.Unlock()
	var f figures
	for mirror, p := range v.last {
		f.size += p.Total
		f.done += p.Done
		f.moved += p.Done - v.first[mirror].Done
	}
	return f
}
