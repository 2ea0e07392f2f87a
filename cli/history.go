package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/blkmirror/blkmirror/engine"
)

// history shows the last disconnects.
func (a *app) history(ctx context.Context, control, volume string, json bool) error {
	h, err := engine.FetchHistory(ctx, control, volume)
	switch {
	case err != nil:
		return err
	case json:
		return a.printJSON(h)
	}
	printHistory(a.stdout, h)
	return nil
}

// printHistory writes a table, and below it each cause with its next step: both are too long for a column.
func printHistory(w io.Writer, h engine.History) {
	if len(h.History) == 0 {
		fmt.Fprintln(w, "no disconnects")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tLAST\tVOLUME\tAS\tPEER\tCLASS\tCONNECTION\tTRIES\tSENT\tRECEIVED")
	for i, d := range h.History {
		life := "none"
		if d.Established {
			life = engine.FormatSeconds(d.Seconds)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", i+1, d.Last, cmp.Or(d.Volume, "-"), d.Role, cmp.Or(d.Peer, d.Address), d.Class, life,
			d.Tries, formatBytes(d.Sent), formatBytes(d.Received))
	}
	t.Flush()
	fmt.Fprintln(w)
	for i, d := range h.History {
		fmt.Fprintf(w, "%d  %s: %s\n", i+1, d.Address, d.Error)
		printNext(w, d.Next)
	}
}
