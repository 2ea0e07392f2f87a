package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/wire/identity"
)

const keysHelp = `The keys are in the state directory. A daemon that runs takes a change up within a second.`

func (a *app) keysCommand() *cli.Command {
	return &cli.Command{
		Name:  "keys",
		Usage: "who this node is, and whom it trusts",
		Description: `
Each node has a key, made at its first start, and is known by its ID, which is that key in a form that can be
read aloud. Two nodes talk when each trusts the other's ID: 'keys show' on one, 'keys trust' on the other, both
ways. ` + keysHelp,
		Subcommands: []*cli.Command{a.keysShow(), a.keysTrust(), a.keysRevoke(), a.keysRotate(), a.keysList()},
	}
}

// keysSub is one of them. do has the identity open.
func (a *app) keysSub(sub, usage, args, description, example string, flags []cli.Flag, do func(*identity.Node, cli.Args) error) *cli.Command {
	var state string
	return &cli.Command{
		Name: sub, Usage: usage, ArgsUsage: args, Description: description, UsageText: example,
		Flags: append([]cli.Flag{&cli.StringFlag{Name: "state", Destination: &state, Usage: "of the node with its state in `DIR`"}}, flags...),
		Action: func(c *cli.Context) error {
			dir, err := stateDir(state)
			if err != nil {
				return err
			}
			n, err := openKeys(dir, identity.Options{})
			if err != nil {
				return err
			}
			return do(n, c.Args())
		},
	}
}

// keyView is a key as JSON shows it: an interface, only ever added to.
type keyView struct {
	ID     string    `json:"id"`
	State  string    `json:"state"`
	Made   time.Time `json:"made,omitzero"`
	Switch time.Time `json:"switch,omitzero"`
	Until  time.Time `json:"until,omitzero"`
}

func viewKeys(keys []identity.KeyInfo) []keyView {
	views := []keyView{}
	for _, k := range keys {
		views = append(views, keyView{k.ID.String(), k.State, k.Made, k.Switch, k.Until})
	}
	return views
}

// ownView is what `keys show --json` prints, and a part of what `keys list --json` does.
type ownView struct {
	ID       string    `json:"id"`
	Keys     []keyView `json:"keys"`
	Warnings []string  `json:"warnings"`
}

func viewOwn(n *identity.Node) ownView {
	return ownView{n.ID().String(), viewKeys(n.Own()), append([]string{}, n.Warnings()...)}
}

func (a *app) keysShow() *cli.Command {
	var asJSON bool
	flags := []cli.Flag{&cli.BoolFlag{Name: "json", Destination: &asJSON, Usage: "print one JSON object"}}
	return a.keysSub("show", "print this node's ID, alone on the first line", "", "", "\nblkmirror keys show", flags,
		func(n *identity.Node, _ cli.Args) error {
			if asJSON {
				return a.printJSON(viewOwn(n))
			}
			fmt.Fprintf(a.stdout, "%v\n\n", n.ID())
			for _, k := range n.Own() {
				switch k.State {
				case "current":
					fmt.Fprintf(a.stdout, "This node's key, made on %s.\n", shortTime(k.Made))
				case "next":
					fmt.Fprintf(a.stdout, "From %s on it is %v.\n", shortTime(k.Switch), k.ID)
				case "old":
					is := "is"
					if !k.Until.After(time.Now()) {
						is = "was" // it is destroyed when that is sure
					}
					fmt.Fprintf(a.stdout, "The old one, %v, %s good until %s.\n", k.ID, is, shortTime(k.Until))
				}
			}
			fmt.Fprintf(a.stdout, "On the other node: %s keys trust %s %v\n", name, selfName(), n.ID())
			a.warnings(n.Warnings())
			return nil
		})
}

// selfName is how another node may call this one.
func selfName() string {
	host, err := os.Hostname()
	if err != nil || identity.CheckName(host) != nil {
		return "NAME"
	}
	return host
}

func (a *app) warnings(texts []string) {
	for _, text := range texts {
		fmt.Fprintf(a.stderr, "%s: warning: %s\n", name, text)
	}
}

func (a *app) keysTrust() *cli.Command {
	var volumes words
	var as side
	var until string
	flags := []cli.Flag{
		&cli.GenericFlag{Name: "volume", Value: &volumes, Usage: "only for volume `V`; may be repeated (default: all volumes)"},
		&cli.GenericFlag{Name: "as", Value: &as, Usage: "the peer may only be `primary|mirror` of the volume (default: both)"},
		&cli.StringFlag{Name: "until", Destination: &until, Usage: "up to `DATE`, a day to its end (2027-01-31, UTC) or a time (RFC 3339)"},
	}
	return a.keysSub("trust", "trust another node: its ID, under a name of yours", "NAME ID", `
ID is what 'keys show' prints there. As primary it may write to the mirror of the volume that is here; as
mirror it may have the volume's content. Said again for the same name and ID it adds the rights that are named,
or changes when they end; without any of the flags it only confirms that the ID is the right one. dns:HOST in place of an ID is for nodes with a certificate of a CA (tls_ca of serve). `+keysHelp, `
blkmirror keys trust pluto AAAAAAA-BBBBBBB-CCCCCCC-DDDDDDD-EEEEEEE-FFFFFFF-GGGGGGG-HHHHHHH
blkmirror keys trust pluto ID --volume db --as mirror --until 2027-12-31`, flags,
		func(n *identity.Node, args cli.Args) error {
			misuse := func(err error) error { return usageError{command: "keys trust", text: err.Error()} }
			peer, id := args.Get(0), args.Get(1)
			if err := identity.CheckName(peer); err != nil {
				return misuse(err)
			}
			if !strings.HasPrefix(id, "dns:") {
				if _, err := identity.ParseID(id); err != nil {
					return misuse(err)
				}
			}
			end, err := parseUntil(until)
			if err != nil {
				return misuse(err)
			}
			grants, err := grantsOf(volumes, as, end)
			if err != nil {
				return err
			}
			of := func(p identity.PeerInfo) bool { return p.Name == peer }
			known := slices.ContainsFunc(n.Peers(), of)
			if err := n.Trust(peer, id, grants); err != nil {
				return keysError("trust", peer, err)
			}
			if known && len(grants) == 0 {
				fmt.Fprintf(a.stdout, "%s was known: its rights are as they were; --volume, --as and --until add some\n", peer)
			}
			if !end.IsZero() && !end.After(time.Now()) {
				a.warnings([]string{"that time is over: nothing is allowed by it"})
			}
			a.printPeers(slices.DeleteFunc(n.Peers(), func(p identity.PeerInfo) bool { return !of(p) }))
			return nil
		})
}

// grantsOf puts the flags together. None at all are no grants: a new peer gets everything then, and of one that is
// known only the ID is confirmed, so that nobody who answers an alarm gives more away than before.
func grantsOf(volumes []string, as side, until time.Time) ([]identity.Grant, error) {
	if len(volumes) == 0 && as == "" && until.IsZero() {
		return nil, nil
	}
	role := identity.AsPrimary | identity.AsMirror
	switch as {
	case "primary":
		role = identity.AsPrimary
	case "mirror":
		role = identity.AsMirror
	}
	if len(volumes) == 0 {
		return []identity.Grant{{As: role, Until: until}}, nil
	}
	var grants []identity.Grant
	for _, v := range volumes {
		if err := engine.CheckVolumeName(v); err != nil {
			return nil, err
		}
		grants = append(grants, identity.Grant{Volume: v, As: role, Until: until})
	}
	return grants, nil
}

// parseUntil takes a day to its end.
func parseUntil(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return day.AddDate(0, 0, 1), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, errors.New("--until: give a day such as 2027-01-31, or a time such as 2027-01-31T18:00:00Z")
	}
	return at, nil
}

func (a *app) keysRevoke() *cli.Command {
	return a.keysSub("revoke", "trust a node no longer, whatever it may do and under whichever of its keys", "NAME",
		"\nIts sessions end at once. "+keysHelp, "\nblkmirror keys revoke pluto", nil,
		func(n *identity.Node, args cli.Args) error {
			if err := n.Revoke(args.First()); err != nil {
				return keysError("revoke", args.First(), err)
			}
			fmt.Fprintf(a.stdout, "%s is no longer trusted\n", args.First())
			return nil
		})
}

func (a *app) keysRotate() *cli.Command {
	in := "7d"
	flags := []cli.Flag{&cli.StringFlag{Name: "in", Destination: &in, Value: in, Usage: "the next key takes over after `TIME`, as 7d, 12h or 90s"}}
	return a.keysSub("rotate", "make this node's next key", "", `
Peers are told over the sessions that stand, and take both keys from then on; no session ends when the next one
takes over. A peer that is away meanwhile gets in with the old key for key_grace (30d). Said again before that
it changes when the next key takes over. `+keysHelp, `
blkmirror keys rotate
blkmirror keys rotate --in 12h`, flags,
		func(n *identity.Node, _ cli.Args) error {
			after, err := parseSpan(in)
			if err != nil {
				return usageError{command: "keys rotate", text: "--in: " + err.Error()}
			}
			k, err := n.Rotate(after)
			if err != nil {
				return keysError("rotate", "the key", err)
			}
			fmt.Fprintf(a.stdout, "%v\ntakes over on %s\n", k.ID, shortTime(firstTime(k.Switch, k.Made)))
			return nil
		})
}

func firstTime(times ...time.Time) time.Time {
	for _, t := range times {
		if !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

func shortTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
