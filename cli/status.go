package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

const watchInterval = time.Second

type statusFlags struct {
	controlFlags
	json, watch, check, history bool
	maxLag                      time.Duration
}

func (a *app) statusCommand() *cli.Command {
	var f statusFlags
	return &cli.Command{
		Name:      "status",
		Usage:     "ask the daemon on this machine how its volumes are",
		ArgsUsage: "[VOLUME]",
		Description: `
` + controlHelp + `
--check is for monitoring: one line, exit 0 where everything is as it should be, 7 where a volume or a
mirror needs a look (not connected, behind, without room, read-only, failed…), or where a right or a
certificate ends within three weeks; 3 without a daemon.

--history shows the last disconnects, also those before a restart of the daemon: when, of whom, how old the
connection was, the class, how many attempts failed after it for the same reason, and what to do next.`,
		UsageText: `
blkmirror status
blkmirror status db --watch
blkmirror status --check --max-lag 10s
blkmirror status --history`,
		Flags: append(f.controlFlags.flags(),
			&cli.BoolFlag{Name: "json", Destination: &f.json, Usage: "print one JSON object"},
			&cli.BoolFlag{Name: "watch", Destination: &f.watch, Usage: "show it anew every second, until interrupted"},
			&cli.BoolFlag{Name: "check", Destination: &f.check, Usage: "print one line; exit 7 where something needs a look"},
			&cli.BoolFlag{Name: "history", Destination: &f.history, Usage: "show the last disconnects, oldest first; with --json as one object"},
			&cli.DurationFlag{Name: "max-lag", Destination: &f.maxLag, DefaultText: "each volume's own",
				Usage: "with --check: a mirror may be `TIME` behind"},
		),
		Action: func(c *cli.Context) error {
			misuse := func(text string) error { return usageError{command: "status", text: text} }
			switch {
			case f.json && f.watch, f.json && f.check, f.watch && f.check:
				return misuse("only one of --json, --watch and --check can be meant")
			case f.history && (f.watch || f.check):
				return misuse("--history goes with --json, or alone")
			case c.IsSet("max-lag") && !f.check:
				return misuse("--max-lag goes with --check")
			case c.IsSet("max-lag") && f.maxLag <= 0:
				return misuse("--max-lag must be more than 0")
			}
			return a.status(c.Context, c.Args().First(), f)
		},
	}
}

func (a *app) status(ctx context.Context, volume string, f statusFlags) error {
	control, err := f.find()
	if err != nil {
		return err
	}
	if f.history {
		return a.history(ctx, control, volume, f.json)
	}
	if f.watch {
		return a.watchStatus(ctx, control, volume)
	}
	s, err := engine.FetchVolume(ctx, control, volume)
	switch {
	case err != nil:
		return err
	case f.json:
		return a.printJSON(s)
	case f.check:
		return a.checkStatus(s, f.maxLag)
	}
	printStatus(a.stdout, s, time.Now())
	return nil
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// watchStatus goes on while the daemon is away: it may come back. An interrupt is its ordinary end.
func (a *app) watchStatus(ctx context.Context, control, volume string) error {
	terminal := isTerminal(a.stdout.w)
	refresh := time.NewTicker(watchInterval)
	defer refresh.Stop()
	for a.stdout.err == nil {
		var page bytes.Buffer
		s, err := engine.FetchVolume(ctx, control, volume)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && exitCode(err) != exitNetwork:
			return err // no such volume
		case err != nil:
			printError(&page, err)
		default:
			printStatus(&page, s, time.Now())
		}
		if terminal {
			// One write, each line cleared behind its end: nothing flickers.
			fmt.Fprintf(a.stdout, "\x1b[H%s\x1b[J", strings.ReplaceAll(page.String(), "\n", "\x1b[K\n"))
		} else {
			fmt.Fprintf(a.stdout, "%s\n%s\n", time.Now().Format(time.RFC3339), page.Bytes())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-refresh.C:
		}
	}
	return nil // the write error is kept
}

// checkStatus prints one line.
func (a *app) checkStatus(s engine.Status, maxLag time.Duration) error {
	var all []string
	for _, warning := range s.Node.Warnings {
		all = append(all, "keys: "+warning)
	}
	worst, mirrors := 0.0, 0
	for _, v := range s.Volumes {
		for _, t := range troubles(v, maxLag) {
			all = append(all, v.Name+": "+t)
		}
		for _, m := range v.Mirrors {
			mirrors, worst = mirrors+1, max(worst, m.LagSeconds)
		}
	}
	if len(all) > 0 {
		fmt.Fprintln(a.stdout, strings.Join(all, "; "))
		return &attentionError{exitState}
	}
	fmt.Fprintf(a.stdout, "ok: %d volumes, %d mirrors, lag at most %s\n", len(s.Volumes), mirrors, formatSeconds(worst))
	return nil
}

// troubles are what a person should look at. maxLag 0: the volume's own.
func troubles(v engine.VolumeStatus, maxLag time.Duration) []string {
	var all []string
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	because := func(why string) string {
		if why == "" {
			return ""
		}
		return ": " + why
	}
	switch {
	case v.ReadOnly != nil:
		add("read-only%s", because(v.ReadOnly.Reason))
	case v.State != "ok":
		add("%s%s", v.State, because(v.Error))
	}
	if len(v.Rot) > 0 {
		add("rot: %d blocks of its disk are not what was written, the first is %d", len(v.Rot), v.Rot[0])
	}
	if v.Unproven {
		add("unproven: the disk is still compared with its index")
	}
	limit := firstDuration(maxLag, time.Duration(v.MaxLag*float64(time.Second)), engine.DefaultMaxLag).Seconds()
	for _, m := range v.Mirrors {
		switch {
		case m.ReadOnly != nil:
			add("mirror %s is read-only%s", cmp.Or(m.Name, m.Node), because(m.ReadOnly.Reason))
		case m.State != "connected" && m.State != "catching-up":
			add("mirror %s is %s%s", cmp.Or(m.Name, m.Node), m.State, because(m.Reason))
		case m.LagSeconds > limit:
			add("mirror %s lags by %s", cmp.Or(m.Name, m.Node), formatSeconds(m.LagSeconds))
		}
		if p := m.Probe; p != nil && !p.OK {
			add("mirror %s: the next connection would fail: %s: %s", cmp.Or(m.Name, m.Node), p.Class, p.Error)
		}
		if m.Holes > 0 {
			add("mirror %s has %d holes", cmp.Or(m.Name, m.Node), m.Holes)
		}
	}
	if v.Role == "mirror" {
		switch p := v.Primary; {
		case p == nil:
			add("no primary has come yet")
		case p.State != "connected" && p.State != "catching-up":
			add("its primary %s is %s%s", p.Node, p.State, because(p.Reason))
		}
	}
	return all
}

func firstDuration(values ...time.Duration) time.Duration {
	for _, v := range values {
		if v > 0 {
			return v
		}
	}
	return 0
}

// attentionError makes the exit code of --check, probe and doctor; what is wrong is printed already.
type attentionError struct{ code int }

func (*attentionError) Error() string { return "something needs a look" }
