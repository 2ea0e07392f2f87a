package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/wire/identity"
)

const defaultListen = "127.0.0.1:7417"

type serveFlags struct {
	config, state, listen, control, http string
	volumes                              []said
	keys                                 saidOfKeys
	insecure, insecureSet, quiet         bool
}

func (a *app) serveCommand() *cli.Command {
	var f serveFlags
	return &cli.Command{
		Name:  "serve",
		Usage: "run a node: live volumes, and disks and images for one-shot syncs",
		Description: `
Runs until SIGTERM or SIGINT. Each volume is a block device or an image under a name. A new volume with an
export or a mirror is a primary: clients use it as a disk through the export (NBD), and each mirror follows
it within an interval. What a volume became at its first start, it stays. An image that does not exist is
created by the first primary or sync that comes. The control socket, which 'blkmirror status', 'cut' and the
like ask, appears when every volume is ready. Other nodes are let in, and reached, when each trusts the other's key
('blkmirror keys'). A file given with --config holds the same words; flags
override it, and SIGHUP reads it again:

  state    = "/var/lib/blkmirror"
  listen   = "127.0.0.1:7417"
  control  = "/run/blkmirror.sock"
  http     = "127.0.0.1:9117"      # metrics for Prometheus, and /healthz; left away: none
  key_lifetime = "60d"             # and key_grace, tls_cert, tls_key, tls_ca

  [volume.db]
  path     = "/dev/vg0/db"
  export   = "unix:/run/db.sock"
  interval = "1s"

  rate     = [{from = "08:00", to = "18:00", limit = "20MiB/s"}]

  [[volume.db.mirror]]
  name    = "east"                 # its address, if left away
  address = "127.0.0.1:7418"
  rate    = "5MiB/s"               # of this mirror alone

  [volume.copy]
  path = "/dev/sdb"
  role = "mirror"

Further keys of a volume are those flags below that begin with NAME=, with _ for -.`,
		UsageText: `
blkmirror serve --volume db=/dev/vg0/db --export db=unix:/run/db.sock --mirror db=pluto:7417
blkmirror serve --listen :7417 --volume db=/srv/db.img
blkmirror serve --config /etc/blkmirror.toml`,
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "config", Destination: &f.config, Usage: "read settings from `FILE` (TOML)"},
			&cli.StringFlag{Name: "state", Destination: &f.state, Usage: stateUsage},
			&cli.StringFlag{Name: "listen", Destination: &f.listen,
				Usage: "take connections at `HOST:PORT` (default " + defaultListen + "; port 0: any free one)"},
			&cli.StringFlag{Name: "control", Destination: &f.control, Usage: controlUsage},
			&cli.StringFlag{Name: "http", Destination: &f.http,
				Usage: "serve metrics for Prometheus, and /healthz, at `HOST:PORT`, to whoever asks (:PORT: on all addresses)", DefaultText: "not at all"},
			&cli.BoolFlag{Name: "insecure", Destination: &f.insecure, Usage: "plain TCP without keys, on loopback only; for both sides"},
			&cli.BoolFlag{Name: "quiet", Destination: &f.quiet, Usage: "no log"},
		}, keyFlags(&f.keys, ""), volumeFlags(&f.volumes)),
		Action: func(c *cli.Context) error {
			f.insecureSet = c.IsSet("insecure")
			return a.serve(c.Context, f)
		},
	}
}

// serveProcs is how many goroutines of a daemon may be in system calls at once without being noticed.
const serveProcs = 8

func (a *app) serve(ctx context.Context, f serveFlags) error {
	o, keys, err := f.options()
	if err != nil {
		return err
	}
	o.Version = versionOf().Version
	o.Guard = os.Geteuid() == 0
	// A thread that waits for the disk holds a processor of the scheduler for a while: with as many as the
	// machine has, requests wait for one another at depth.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), serveProcs))
	var logging sync.Mutex
	o.Log = func(text string) {
		if !f.quiet {
			logging.Lock()
			defer logging.Unlock()
			fmt.Fprintf(a.stderr, "%s %s\n", time.Now().Format("2006-01-02T15:04:05.000Z07:00"), text)
		}
	}
	if !o.Insecure {
		keys.Log = o.Log
		if o.Identity, err = openKeys(o.StateDir, keys); err != nil {
			return err
		}
	}
	reload := make(chan map[string]engine.VolumeConfig, 1)
	o.Reload = reload
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	ctx, cancel := context.WithCancel(ctx)
	var routine sync.WaitGroup
	routine.Go(func() { f.routineReload(ctx, o, keys, hangup, reload) })
	err = engine.Serve(ctx, o)
	cancel()
	routine.Wait()
	return err
}

// routineReload reads the config again at each SIGHUP. Only the last one counts that the engine has not
// taken yet. A file that is wrong changes nothing.
func (f *serveFlags) routineReload(ctx context.Context, now engine.ServerOptions, nowKeys identity.Options, hangup <-chan os.Signal, reload chan map[string]engine.VolumeConfig) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		if f.config == "" {
			now.Log("SIGHUP: there is no --config to read again")
			continue
		}
		o, keys, err := f.options()
		if err != nil {
			now.Log(fmt.Sprintf("SIGHUP: nothing changes: %v", err))
			continue
		}
		now.Log("SIGHUP: read " + f.config + " again")
		if o.Listen != now.Listen || o.StateDir != now.StateDir || o.Control != now.Control || o.HTTP != now.HTTP || o.Insecure != now.Insecure || !sameKeys(keys, nowKeys) {
			now.Log("SIGHUP: listen, state, control, http, insecure and what is said of keys change only with a new start; keys and certificates themselves are read again all the time")
		}
		select {
		case <-reload: // is out of date
		default:
		}
		reload <- o.Volumes
	}
}

func sameKeys(a, b identity.Options) bool {
	return a.Lifetime == b.Lifetime && a.Grace == b.Grace && a.Cert == b.Cert && a.Key == b.Key && a.CA == b.CA
}

// options puts the flags over the file.
func (f *serveFlags) options() (o engine.ServerOptions, keys identity.Options, err error) {
	c := config{volumes: map[string]engine.VolumeConfig{}}
	if f.config != "" {
		if c, err = loadConfig(f.config); err != nil {
			return o, keys, err
		}
	}
	keys = c.keys
	for _, set := range f.keys {
		set(&keys)
	}
	o.Listen = firstOf(f.listen, c.listen, defaultListen)
	o.Control = firstOf(f.control, c.control)
	o.HTTP = firstOf(f.http, c.http)
	o.Insecure = c.insecure
	if f.insecureSet {
		o.Insecure = f.insecure
	}
	o.Volumes = c.volumes
	if err := applySaid(o.Volumes, f.volumes); err != nil {
		return o, keys, err
	}
	if len(o.Volumes) == 0 {
		return o, keys, usageError{command: "serve", text: "no volume given: name one with --volume NAME=PATH or in the config file"}
	}
	o.StateDir, err = stateDir(firstOf(f.state, c.state))
	return o, keys, err
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
