package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

const (
	controlEnv   = "BLKMIRROR_CONTROL"
	controlUsage = "control socket `SOCK` of the daemon (default control.sock in the state directory)"
	controlHelp  = `The daemon is found by --control, else by the environment's ` + controlEnv + `, else by control.sock in
the state directory.`
)

// controlFlags find the daemon that a client command is for.
type controlFlags struct {
	control, state string
}

func (f *controlFlags) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "control", Destination: &f.control, Usage: controlUsage},
		&cli.StringFlag{Name: "state", Destination: &f.state, Usage: "look for the control socket in `DIR`"},
	}
}

func (f *controlFlags) find() (string, error) {
	if f.control != "" {
		return f.control, nil
	}
	if control := os.Getenv(controlEnv); control != "" && f.state == "" {
		return control, nil
	}
	dir, err := stateDir(f.state)
	return filepath.Join(dir, "control.sock"), err
}

// volumeCommand is a client command about one live volume.
func (a *app) volumeCommand(command, usage, description, example string, flags []cli.Flag,
	do func(ctx context.Context, control, volume string) error) *cli.Command {
	var f controlFlags
	return &cli.Command{
		Name: command, Usage: usage, ArgsUsage: "VOLUME",
		Description: description + "\n\n" + controlHelp,
		UsageText:   example,
		Flags:       append(f.flags(), flags...),
		Action: func(c *cli.Context) error {
			volume := c.Args().First()
			if err := engine.CheckVolumeName(volume); err != nil {
				return err
			}
			control, err := f.find()
			if err != nil {
				return err
			}
			if err = do(c.Context, control, volume); err != nil && c.Context.Err() != nil {
				return &interruptedError{text: command + " " + volume + ": interrupted before the daemon answered",
					next: "see '" + name + " status " + volume + "'"}
			}
			return err
		},
	}
}

func (a *app) cutCommand() *cli.Command {
	var wait, asJSON bool
	timeout := time.Minute
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "wait", Destination: &wait, Usage: "until every mirror has committed and applied it, or a later one"},
		&cli.DurationFlag{Name: "timeout", Destination: &timeout, Value: timeout, Usage: "with --wait: no longer than `TIME`"},
		&cli.BoolFlag{Name: "json", Destination: &asJSON, Usage: "print one JSON object"},
	}
	return a.volumeCommand("cut", "take a cut of a live volume now", `
A cut is an instant between writes; mirrors only ever hold cuts. After 'cut --wait' the devices are equal
where nobody writes. When the time is over the exit code is 3, and the mirrors that are missing are named;
they get the cut when they can.`,
		"\nblkmirror cut db --wait --timeout 5m", flags,
		func(ctx context.Context, control, volume string) error {
			if timeout <= 0 || timeout > 24*time.Hour {
				return usageError{command: "cut", text: "--timeout must be more than 0 and at most 24h"}
			}
			r, err := engine.Cut(ctx, control, volume, wait, timeout)
			switch {
			case err != nil:
				return err
			case asJSON:
				return a.printJSON(r)
			case wait:
				fmt.Fprintf(a.stdout, "cut %d of %s: every mirror has it, after %s\n", r.Epoch, r.Volume, engine.FormatSeconds(r.Seconds))
			default:
				fmt.Fprintf(a.stdout, "cut %d of %s\n", r.Epoch, r.Volume)
			}
			return nil
		})
}

func (a *app) pauseCommand() *cli.Command {
	return a.volumeCommand("pause", "stop a live volume's mirroring until it is resumed", `
At a primary nothing is shipped any more; writes go on and are tracked. At a mirror nothing is taken: it
keeps the cut that it has.`,
		"\nblkmirror pause db", nil, engine.Pause)
}

func (a *app) resumeCommand() *cli.Command {
	var overwrite string
	flags := []cli.Flag{&cli.StringFlag{Name: "overwrite-mirror", Destination: &overwrite,
		Usage: "give up what mirror `NAME` has and this primary has not: it is overwritten with what is here"}}
	return a.volumeCommand("resume", "end a pause, or let a mirror that waits for room try again", `
--overwrite-mirror is for a mirror that is ahead of this primary, for instance after the primary was
restored from a backup: nothing moves until a person has decided which of the two is right.`,
		"\nblkmirror resume db\nblkmirror resume db --overwrite-mirror east", flags,
		func(ctx context.Context, control, volume string) error {
			return engine.Resume(ctx, control, volume, overwrite)
		})
}

func (a *app) rebuildCommand() *cli.Command {
	return a.volumeCommand("rebuild", "start a new journal for a volume whose own is damaged or gone", `
The old journal is set aside, not removed. Everything is compared with the mirrors by hash; only what
differs is shipped.`,
		"\nblkmirror rebuild db", nil, engine.Rebuild)
}
