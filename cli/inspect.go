package cli

import (
	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/journal"
)

func (a *app) inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print what a journal file or folder holds",
		ArgsUsage: "PATH",
		Description: `
Reads only. PATH is a segment of a journal, or a folder in the state directory.`,
		UsageText: `blkmirror inspect /var/lib/blkmirror`,
		Action: func(c *cli.Context) error {
			return journal.Dump(a.stdout, c.Args().First())
		},
	}
}
