package cli

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/wire/identity"
)

// grantView and peerView are of `keys list --json`: an interface, only ever added to.
type grantView struct {
	Volume string    `json:"volume"` // "": all
	As     []string  `json:"as"`
	Until  time.Time `json:"until,omitzero"`
}

type peerView struct {
	Name     string      `json:"name"`
	Keys     []keyView   `json:"keys"`
	CA       string      `json:"ca,omitempty"` // the name in its certificate
	Grants   []grantView `json:"grants"`
	Expires  time.Time   `json:"expires,omitzero"`
	DaysLeft *int        `json:"days_left"` // null: it does not end
	Warnings []string    `json:"warnings"`
}

func viewPeer(p identity.PeerInfo, now time.Time) peerView {
	v := peerView{Name: p.Name, Keys: viewKeys(p.Keys), CA: p.CA, Grants: []grantView{}, Expires: p.Expires, Warnings: slices.Concat([]string{}, p.Warnings, p.Notes)}
	for _, g := range p.Grants {
		v.Grants = append(v.Grants, grantView{g.Volume, rolesOf(g.As), g.Until})
	}
	if !p.Expires.IsZero() {
		days := daysLeft(p.Expires, now)
		v.DaysLeft = &days
	}
	return v
}

func rolesOf(as identity.As) []string {
	var roles []string
	if as&identity.AsPrimary != 0 {
		roles = append(roles, "primary")
	}
	if as&identity.AsMirror != 0 {
		roles = append(roles, "mirror")
	}
	return roles
}

// daysLeft are whole days; negative where it is over.
func daysLeft(until, now time.Time) int {
	left := until.Sub(now)
	days := int(left / (24 * time.Hour))
	if left < 0 {
		days--
	}
	return days
}

func (a *app) keysList() *cli.Command {
	var asJSON bool
	flags := []cli.Flag{&cli.BoolFlag{Name: "json", Destination: &asJSON, Usage: "print one JSON object"}}
	return a.keysSub("list", "print who is trusted, to do what, and how many days are left", "",
		"\nThe days are those up to the nearest end: of a right, of the peer's certificate, of our own. "+keysHelp, "\nblkmirror keys list", flags,
		func(n *identity.Node, _ cli.Args) error {
			if asJSON {
				list := struct {
					ownView
					Peers []peerView `json:"peers"`
				}{viewOwn(n), []peerView{}}
				now := time.Now()
				for _, p := range n.Peers() {
					list.Peers = append(list.Peers, viewPeer(p, now))
				}
				return a.printJSON(list)
			}
			fmt.Fprintf(a.stdout, "This node: %v\n", n.ID())
			for _, k := range n.Own() {
				if k.State == "next" {
					fmt.Fprintf(a.stdout, "From %s on: %v\n", shortTime(k.Switch), k.ID)
				}
			}
			fmt.Fprintln(a.stdout)
			peers := n.Peers()
			if len(peers) == 0 {
				fmt.Fprintf(a.stdout, "Nobody is trusted yet: run `%s keys show` there and `%s keys trust NAME ID` here.\n", name, name)
			} else {
				a.printPeers(peers)
			}
			a.warnings(n.Warnings())
			return nil
		})
}

// printPeers prints a table, and then what needs a look.
func (a *app) printPeers(peers []identity.PeerInfo) {
	now := time.Now()
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PEER\tVOLUME\tMAY BE\tUNTIL\tDAYS LEFT\tKEY")
	for _, p := range peers {
		days, key := "-", "dns:"+p.CA
		if !p.Expires.IsZero() {
			days = fmt.Sprint(daysLeft(p.Expires, now))
		}
		if p.CA == "" {
			key = shownKey(p.Keys)
		}
		for i, g := range p.Grants {
			volume, until := g.Volume, "-"
			if volume == "" {
				volume = "all"
			}
			if !g.Until.IsZero() {
				until = shortTime(g.Until)
			}
			if i > 0 {
				days, key = "", ""
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, volume, strings.Join(rolesOf(g.As), ", "), until, days, key)
		}
	}
	t.Flush()
	for _, p := range peers {
		a.warnings(slices.Concat(p.Warnings, p.Notes))
	}
}

// shownKey is the one by which the peer is known now.
func shownKey(keys []identity.KeyInfo) string {
	for _, k := range keys {
		if k.State == "current" {
			return k.ID.String()
		}
	}
	return "-"
}
