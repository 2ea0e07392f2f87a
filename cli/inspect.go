package cli

import (
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire/identity"
)

func (a *app) inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print what a file or folder of a state directory holds",
		ArgsUsage: "PATH",
		Description: `
Reads only. PATH is a folder in the state directory (of a sync, of a volume, or an index), or a file in one: a segment
of a journal, a checkpoint, a staging file. Of keys it prints everything but the secrets.`,
		UsageText: `
blkmirror inspect /var/lib/blkmirror
blkmirror inspect /var/lib/blkmirror/keys`,
		Action: func(c *cli.Context) error {
			path := c.Args().First()
			if known, err := identity.Dump(a.stdout, path); known {
				if err != nil {
					err = keysError("inspect", path, err)
				}
				return err
			}
			err := journal.Dump(a.stdout, path)
			if err == nil || a.stdout.err != nil {
				return err
			}
			next := "check the path and its permissions; the state directory holds what can be inspected"
			if errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrIndexDamaged) {
				next = "the next sync sets aside what is damaged, and compares everything"
			}
			return &engine.Error{Kind: engine.KindDevice, Op: "inspect", On: path, Err: err, Next: next}
		},
	}
}
