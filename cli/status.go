package cli

import (
	"bytes"
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
	if all := s.Problems(maxLag); len(all) > 0 {
		fmt.Fprintln(a.stdout, strings.Join(all, "; "))
		return &attentionError{exitState}
	}
	worst, mirrors := 0.0, 0
	for _, v := range s.Volumes {
		for _, m := range v.Mirrors {
			mirrors, worst = mirrors+1, max(worst, m.LagSeconds)
		}
	}
	fmt.Fprintf(a.stdout, "ok: %d volumes, %d mirrors, lag at most %s\n", len(s.Volumes), mirrors, engine.FormatSeconds(worst))
	return nil
}

// attentionError makes the exit code of --check, probe and doctor; what is wrong is printed already.
type attentionError struct{ code int }

func (*attentionError) Error() string { return "something needs a look" }
