package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

type syncFlags struct {
	state                                  string
	rate                                   rate
	blockSize                              blockSize
	retry                                  time.Duration
	verify, dryRun, noCompress, trustIndex bool
	growOK, insecure, json, quiet          bool
	keys                                   saidOfKeys
}

func (a *app) syncCommand() *cli.Command {
	var f syncFlags
	return &cli.Command{
		Name:      "sync",
		Usage:     "make one disk or image identical to another, once",
		ArgsUsage: "SRC DST",
		Description: `
SRC and DST are a path of an image or a block device, or a volume of another node as
blk://HOST:PORT/VOLUME; at least one is a path. An image that does not exist is created. What DST
has already is not sent again, and a sync that was interrupted goes on where it stopped: run the
same command again. Nobody should write to SRC meanwhile (take a snapshot of a disk in use): the
copy could be a mixture, which is noticed and told. Nobody may write to DST.

The other node has to trust this one, and the other way round: 'blkmirror keys', with the same --state.`,
		UsageText: `
blkmirror sync disk.img copy.img
blkmirror sync --rate 100M /dev/vg0/snapshot /dev/sdb
blkmirror sync --json disk.img blk://pluto:7417/backup`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "state", Destination: &f.state, Usage: stateUsage},
			&cli.GenericFlag{Name: "rate", Value: &f.rate, Usage: "ship at most `BYTES` a second, such as 100M or 20MiB/s"},
			&cli.GenericFlag{Name: "block-size", Value: &f.blockSize, DefaultText: "64K",
				Usage: "hash and ship blocks of `BYTES`, a power of two from 4K to 1M"},
			&cli.BoolFlag{Name: "verify", Destination: &f.verify, Usage: "read every block back after writing it"},
			&cli.BoolFlag{Name: "dry-run", Destination: &f.dryRun, Usage: "only say what would be shipped"},
			&cli.BoolFlag{Name: "no-compress", Destination: &f.noCompress, Usage: "ship blocks as they are"},
			&cli.BoolFlag{Name: "trust-index", Destination: &f.trustIndex,
				Usage: "skip by the hashes recorded for DST, without reading it, where nobody touched it since"},
			&cli.BoolFlag{Name: "grow-ok", Destination: &f.growOK, Usage: "DST may be larger than SRC; the rest of it is left alone"},
			&cli.BoolFlag{Name: "insecure", Destination: &f.insecure, Usage: "plain TCP without keys, on loopback only; for both sides"},
			&cli.DurationFlag{Name: "retry", Destination: &f.retry, Value: time.Minute,
				Usage: "keep trying for `TIME` after a connection was lost"},
			&cli.BoolFlag{Name: "json", Destination: &f.json, Usage: "print the report as one JSON object"},
			&cli.BoolFlag{Name: "quiet", Destination: &f.quiet, Usage: "no progress and no summary"},
		}, keyFlags(&f.keys, "tls-")...),
		Action: func(c *cli.Context) error {
			return a.sync(c.Context, c.Args().Get(0), c.Args().Get(1), f)
		},
	}
}

const stateUsage = "keep progress and index in `DIR` (default /var/lib/blkmirror as root, else " +
	"$XDG_STATE_HOME/blkmirror or ~/.local/state/blkmirror)"

func (a *app) sync(ctx context.Context, source, target string, f syncFlags) error {
	o, err := f.options(source, target)
	if err != nil {
		return err
	}
	o.Progress = new(engine.Progress)
	view := a.startProgress(func() figures { return syncFigures(o.Progress) }, f.quiet || f.json && !isTerminal(a.stderr))
	o.Warn = view.warn
	report, err := engine.Sync(ctx, o)
	view.stop()

	switch {
	case f.json && (err == nil || o.Progress.Size.Load() > 0):
		a.printReport(report, err)
	case err == nil && !f.quiet:
		a.printSummary(report)
	}
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return interruptedSync(o, o.Progress)
	}
	return err
}

// syncFigures counts what an earlier run confirmed as done, not as speed.
func syncFigures(p *engine.Progress) figures {
	scanned := p.Scanned.Load()
	return figures{size: p.Size.Load(), done: scanned + p.Resumed.Load(), moved: scanned,
		more: fmt.Sprintf(", shipped %s, skipped %s, zero %s", formatBytes(p.Shipped.Load()), formatBytes(p.Skipped.Load()), formatBytes(p.Zero.Load()))}
}

func (f *syncFlags) options(source, target string) (engine.SyncOptions, error) {
	o := engine.SyncOptions{
		BlockSize: int(f.blockSize.size), RateLimit: int64(f.rate.size), Retry: f.retry,
		Verify: f.verify, DryRun: f.dryRun, NoCompress: f.noCompress, TrustIndex: f.trustIndex,
		GrowOK: f.growOK, Insecure: f.insecure,
	}
	var err error
	if o.Source, err = engine.ParseEndpoint(source); err != nil {
		return o, err
	}
	if o.Target, err = engine.ParseEndpoint(target); err != nil {
		return o, err
	}
	if f.retry < 0 {
		return o, usageError{command: "sync", text: "--retry must not be negative"}
	}
	if o.StateDir, err = stateDir(f.state); err != nil || f.insecure || !o.Source.Remote() && !o.Target.Remote() {
		return o, err
	}
	o.Identity, err = f.keys.open(o.StateDir)
	return o, err
}

// printReport prints the one JSON object: the report, and the error where there was one.
func (a *app) printReport(r engine.Report, err error) {
	failed := struct {
		engine.Report
		Error string `json:"error,omitempty"`
	}{Report: r}
	if err != nil {
		failed.Error = err.Error()
	}
	a.printLine(failed)
}

func (a *app) printSummary(r engine.Report) {
	verb, shipped := "synced", "shipped"
	if r.DryRun {
		verb, shipped = "compared", "would ship"
	}
	fmt.Fprintf(a.stdout, "%s %s in %s", verb, formatBytes(r.Size), engine.FormatSeconds(r.Seconds))
	if r.Seconds > 0 {
		fmt.Fprintf(a.stdout, " (%s/s)", formatBytes(int64(float64(r.ScannedBytes)/r.Seconds)))
	}
	fmt.Fprintf(a.stdout, ": %s %s (%s), skipped %s, zero %s, on the wire %s\n", shipped, formatBytes(r.ShippedBytes),
		percent(r.ShippedBytes, r.Size), formatBytes(r.SkippedBytes), formatBytes(r.ZeroBytes), formatBytes(r.WireBytes))
	if r.ResumedBytes > 0 {
		fmt.Fprintf(a.stdout, "%s were confirmed by an earlier run and not looked at again\n", formatBytes(r.ResumedBytes))
	}
	if r.RetriedBlocks > 0 {
		fmt.Fprintf(a.stdout, "%d blocks arrived damaged and were shipped again\n", r.RetriedBlocks)
	}
	if r.Reconnects > 0 {
		fmt.Fprintf(a.stdout, "the connection was lost and regained %d times\n", r.Reconnects)
	}
	if r.SourceChanged {
		fmt.Fprintf(a.stdout, "%s was written to while it was copied: the copy may be a mixture; sync again when nobody writes\n", r.Source)
	}
}

func interruptedSync(o engine.SyncOptions, p *engine.Progress) error {
	at := syncFigures(p)
	e := &interruptedError{
		text: fmt.Sprintf("sync %s to %s: interrupted before it began", o.Source, o.Target),
		next: "run the same command again",
	}
	if at.size > 0 {
		e.text = fmt.Sprintf("sync %s to %s: interrupted at %s of %s (%s)", o.Source, o.Target,
			formatBytes(at.done), formatBytes(at.size), percent(at.done, at.size))
		if !o.DryRun {
			e.next += ": it goes on from there"
		}
	}
	return e
}
