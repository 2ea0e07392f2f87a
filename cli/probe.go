package cli

import (
	"cmp"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

func (a *app) probeCommand() *cli.Command {
	var insecure, asJSON bool
	var state string
	var keys saidOfKeys
	timeout := engine.DefaultProbeTimeout
	return &cli.Command{
		Name:      "probe",
		Usage:     "say whether a session with another node would come about now",
		ArgsUsage: "HOST:PORT",
		Description: `
Goes through the whole handshake: the name, its addresses, the connection, who answers, the version, the
volumes that this node may see, the round trip. This node is the one with its keys in --state. For monitoring: the last line is the verdict, beginning
with ok or with the class of what is wrong, and the exit code is

  0  a session would come about
  3  dns, refused, unreachable, timeout, reset, mtu, protocol (something else answers), integrity
  4  auth (not trusted), tls
  7  version (another one, or one without probes), peer-stopped, refused by the node itself`,
		UsageText: `
blkmirror probe mirror.example:7417
blkmirror probe --insecure --timeout 3s --json 127.0.0.1:7417`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "state", Destination: &state, Usage: "be the node with its state in `DIR`"},
			&cli.DurationFlag{Name: "timeout", Destination: &timeout, Value: timeout, Usage: "take no longer than `TIME`"},
			&cli.BoolFlag{Name: "insecure", Destination: &insecure, Usage: "plain TCP, on loopback only"},
			&cli.BoolFlag{Name: "json", Destination: &asJSON, Usage: "print one JSON object"},
		}, keyFlags(&keys, "tls-")...),
		Action: func(c *cli.Context) error {
			target := c.Args().First()
			if timeout <= 0 || timeout > time.Hour {
				return usageError{command: "probe", text: "--timeout must be more than 0 and at most 1h"}
			}
			o := engine.ProbeOptions{Target: target, Timeout: timeout}
			if !insecure {
				dir, err := stateDir(state)
				if err != nil {
					return err
				}
				if o.Identity, err = keys.open(dir); err != nil {
					return err
				}
			}
			r, err := engine.Probe(c.Context, o)
			code := exitCode(err)
			if code == exitUsage || code == exitOther { // a command line that was wrong, or an interrupt
				return err
			}
			if asJSON {
				if err := a.printJSON(r); err != nil {
					return err
				}
			} else {
				a.printProbe(r)
			}
			if err != nil {
				return &attentionError{code}
			}
			return nil
		},
	}
}

// printProbe writes one fact a line, and the verdict last.
func (a *app) printProbe(r engine.ProbeReport) {
	line := func(what, format string, args ...any) {
		fmt.Fprintf(a.stdout, "%-10s %s\n", what, fmt.Sprintf(format, args...))
	}
	if len(r.Addresses) > 0 {
		line("name", "%s, %s", counted(len(r.Addresses), "address tried", "addresses tried"), formatMillis(r.DNSMillis))
	}
	for _, t := range r.Addresses {
		if t.Error != "" {
			line("address", "%s: %s: %s", t.Address, t.Class, t.Error)
		} else {
			line("address", "%s connects in %s", t.Address, formatMillis(t.Connect))
		}
	}
	if r.Node != "" {
		if i := r.Identity; i == nil {
			line("identity", "none: plain text")
		} else {
			line("identity", "%s, trusted as %s", cmp.Or(i.ID, "dns:"+i.CA), i.Name)
			if i.DaysLeft != nil {
				line("keys", "%.1f days left", *i.DaysLeft)
			}
			for _, w := range i.Warnings {
				line("warning", "%s", w)
			}
		}
		line("node", "%s, %s %s, answers in %s", r.Node, name, cmp.Or(r.Version, "of an unknown version"), formatMillis(r.Handshake))
	}
	if r.RTT > 0 {
		line("round trip", "%s", formatMillis(r.RTT))
	}
	if r.ClockOffset != nil {
		line("clock", "%+.3f s against ours, to within %s", *r.ClockOffset/1000, formatMillis(*r.ClockError))
	}
	for _, v := range r.Volumes {
		line("volume", "%s: %s, %s, %s", v.Name, v.Role, v.State, formatBytes(v.Size))
	}
	if r.OK {
		fmt.Fprintf(a.stdout, "ok: %s is %s, %s to be seen, round trip %s\n", r.Target, r.Node, counted(len(r.Volumes), "volume", "volumes"), formatMillis(r.RTT))
		return
	}
	if r.Next != "" {
		line("next", "%s", r.Next)
	}
	fmt.Fprintf(a.stdout, "%s: %s\n", r.Class, r.Error)
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func formatMillis(ms float64) string {
	switch {
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return engine.FormatSeconds(ms / 1000)
}
