package cli

import (
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/journal"
)

func (a *app) inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print what a journal file or folder holds",
		ArgsUsage: "PATH",
		Description: `
Reads only. PATH is a folder in the state directory (of a sync, of a volume, or an index), or a file in one: a segment
of a journal, a checkpoint, a staging file.`,
		UsageText: `blkmirror inspect /var/lib/blkmirror`,
		Action: func(c *cli.Context) error {
			path := c.Args().First()
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
