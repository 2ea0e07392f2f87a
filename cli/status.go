package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

const (
	controlEnv   = "BLKMIRROR_CONTROL"
	controlUsage = "control socket `SOCK` of the daemon (default control.sock in the state directory)"
)

type statusFlags struct {
	control, state string
	json           bool
}

func (a *app) statusCommand() *cli.Command {
	var f statusFlags
	return &cli.Command{
		Name:      "status",
		Usage:     "ask the daemon on this machine how its volumes are",
		ArgsUsage: "[VOLUME]",
		Description: `
The daemon is found by --control, else by the environment's ` + controlEnv + `, else by control.sock in
the state directory.`,
		UsageText: `
blkmirror status
blkmirror status backup --json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "control", Destination: &f.control, Usage: controlUsage},
			&cli.StringFlag{Name: "state", Destination: &f.state, Usage: "look for the control socket in `DIR`"},
			&cli.BoolFlag{Name: "json", Destination: &f.json, Usage: "print one JSON object"},
		},
		Action: func(c *cli.Context) error {
			return a.status(c.Context, c.Args().First(), f)
		},
	}
}

func (a *app) status(ctx context.Context, volume string, f statusFlags) error {
	control, err := findControl(f)
	if err != nil {
		return err
	}
	s, err := engine.FetchStatus(ctx, control)
	if err != nil {
		return unreachable(control, err)
	}
	if volume != "" {
		if s.Volumes, err = onlyVolume(s.Volumes, volume); err != nil {
			return err
		}
	}
	if f.json {
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(s)
	}
	a.printStatus(s)
	return nil
}

func findControl(f statusFlags) (string, error) {
	if control := firstOf(f.control); control != "" {
		return control, nil
	}
	if control := os.Getenv(controlEnv); control != "" && f.state == "" {
		return control, nil
	}
	dir, err := stateDir(f.state)
	return filepath.Join(dir, "control.sock"), err
}

// unreachable makes sure that a daemon that does not run is told as such.
func unreachable(control string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if _, ok := errors.AsType[*engine.Error](err); ok {
		return err
	}
	return &engine.Error{Kind: engine.KindNetwork, Op: "ask the daemon at", On: control, Err: err,
		Next: "start it with '" + name + " serve', or name its socket with --control"}
}

func onlyVolume(all []engine.VolumeStatus, volume string) ([]engine.VolumeStatus, error) {
	for _, v := range all {
		if v.Name == volume {
			return []engine.VolumeStatus{v}, nil
		}
	}
	return nil, &engine.Error{Kind: engine.KindState, Op: "show volume", On: volume,
		Err: errors.New("the daemon has no volume of this name"), Next: "see all with '" + name + " status'"}
}

func (a *app) printStatus(s engine.Status) {
	fmt.Fprintf(a.stdout, "node %s, %s %s, listening on %s\n\n", firstOf(s.Node.Name, s.Node.ID), name, s.Node.Version, s.Listen)
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VOLUME\tSTATE\tROLE\tSIZE\tDEVICE")
	for _, v := range s.Volumes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", v.Name, v.State, v.Role, formatBytes(v.Size), v.Device)
	}
	t.Flush()
	for _, v := range s.Volumes {
		if v.Error != "" {
			fmt.Fprintf(a.stdout, "\n%s: %s\n", v.Name, v.Error)
		}
		for _, c := range v.Sessions {
			fmt.Fprintf(a.stdout, "\n%s: %s of a sync with %s for %s: %s of %s, shipped %s, skipped %s, zero %s, on the wire %s",
				v.Name, c.Role, c.Peer, formatSeconds(c.Seconds), formatBytes(c.ScannedBytes), formatBytes(v.Size),
				formatBytes(c.ShippedBytes), formatBytes(c.SkippedBytes), formatBytes(c.ZeroBytes), formatBytes(c.WireBytes))
			if c.RetriedBlocks > 0 {
				fmt.Fprintf(a.stdout, ", %d blocks sent again", c.RetriedBlocks)
			}
			fmt.Fprintln(a.stdout)
		}
	}
}
