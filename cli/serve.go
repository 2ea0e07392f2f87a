package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

const defaultListen = "127.0.0.1:7417"

type serveFlags struct {
	config, state, listen, control string
	volumes                        volumes
	insecure, quiet                bool
}

func (a *app) serveCommand() *cli.Command {
	f := serveFlags{volumes: volumes{}}
	return &cli.Command{
		Name:  "serve",
		Usage: "offer disks and images to other nodes",
		Description: `
Runs until SIGTERM or SIGINT. Each volume is a block device or an image under a name; an image that
does not exist is created by the first sync to it. The control socket, which 'blkmirror status' asks,
appears when the node is ready. A file given with --config holds the same words; flags override it:

  state    = "/var/lib/blkmirror"
  listen   = "127.0.0.1:7417"
  control  = "/run/blkmirror.sock"
  insecure = true

  [volume.backup]
  path = "/dev/sdb"`,
		UsageText: `
blkmirror serve --insecure --volume backup=/srv/backup.img
blkmirror serve --config /etc/blkmirror.toml`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Destination: &f.config, Usage: "read settings from `FILE` (TOML)"},
			&cli.StringFlag{Name: "state", Destination: &f.state, Usage: stateUsage},
			&cli.StringFlag{Name: "listen", Destination: &f.listen,
				Usage: "take connections at `HOST:PORT` (default " + defaultListen + "; port 0: any free one)"},
			&cli.StringFlag{Name: "control", Destination: &f.control, Usage: controlUsage},
			&cli.GenericFlag{Name: "volume", Value: f.volumes, Usage: "offer a volume as `NAME=PATH`; may be repeated"},
			&cli.BoolFlag{Name: "insecure", Destination: &f.insecure, Usage: "allow plain TCP, on loopback only"},
			&cli.BoolFlag{Name: "quiet", Destination: &f.quiet, Usage: "no log"},
		},
		Action: func(c *cli.Context) error {
			return a.serve(c.Context, f, c.IsSet("insecure"))
		},
	}
}

func (a *app) serve(ctx context.Context, f serveFlags, insecureSet bool) error {
	o, err := f.options(insecureSet)
	if err != nil {
		return err
	}
	o.Version = versionOf().Version
	if !f.quiet {
		o.Log = func(text string) {
			fmt.Fprintf(a.stderr, "%s %s\n", time.Now().Format("2006-01-02T15:04:05.000Z07:00"), text)
		}
	}
	return engine.Serve(ctx, o)
}

// options puts the flags over the file.
func (f *serveFlags) options(insecureSet bool) (engine.ServerOptions, error) {
	var o engine.ServerOptions
	var c config
	var err error
	if f.config != "" {
		if c, err = loadConfig(f.config); err != nil {
			return o, err
		}
	}
	o.Listen = firstOf(f.listen, c.Listen, defaultListen)
	o.Control = firstOf(f.control, c.Control)
	o.Insecure = c.Insecure
	if insecureSet {
		o.Insecure = f.insecure
	}
	o.Volumes = map[string]string{}
	for volume, v := range c.Volume {
		o.Volumes[volume] = v.Path
	}
	for volume, path := range f.volumes {
		o.Volumes[volume] = path
	}
	if len(o.Volumes) == 0 {
		return o, usageError{command: "serve", text: "no volume given: name one with --volume NAME=PATH or in the config file"}
	}
	if !o.Insecure {
		return o, insecureNeeded("listen on", o.Listen)
	}
	o.StateDir, err = stateDir(firstOf(f.state, c.State))
	return o, err
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
