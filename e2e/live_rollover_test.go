package e2e

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// configured gives a node that is not started a config file with these lines, beside its flags.
func (n *node) configured(lines string) {
	n.t.Helper()
	path := n.state + ".toml"
	write(n.t, path, []byte(lines))
	n.line = append(n.line, "--config", path)
}

// ownKeys are the IDs of a node, oldest first.
func ownKeys(t testing.TB, n *node) (ids []string) {
	t.Helper()
	var own struct {
		Keys []struct{ ID string } `json:"keys"`
	}
	r := keys(t, n.state, "show", "--json").ok(t)
	if err := json.Unmarshal([]byte(r.stdout), &own); err != nil {
		t.Fatal(err)
	}
	for _, k := range own.Keys {
		ids = append(ids, k.ID)
	}
	return ids
}

// rolls collects the keys that the nodes have, until each had that many.
func (s *stamped) rolls(n int, had map[*node]map[string]bool) {
	s.t.Helper()
	until(s.t, "keys that roll over", func() bool {
		done := true
		for node, ids := range had {
			for _, id := range ownKeys(s.t, node) {
				ids[id] = true
			}
			done = done && len(ids) >= n
		}
		s.written(20)
		return done
	})
}

// Ten rollovers of both nodes under load, by the config alone: nobody is disconnected, and a peer that was away through
// whole overlaps comes back by itself.
func TestKeysLifetime(t *testing.T) {
	t.Parallel()
	p := newKeyedPair(t, 16*mib)
	p.trust()
	for _, n := range []*node{p.primary, p.mirror} {
		n.configured("key_lifetime = \"3s\"\n")
	}
	p.mirrorUp()
	p.primary.up()
	p.cut()
	s := stampedOn(p, 16*mib, stamp.Load{})
	s.rolls(11, map[*node]map[string]bool{p.primary: {}, p.mirror: {}})
	s.settled()
	if m := p.primary.peer(); m.Reconnects != 0 || m.Disconnect != nil {
		t.Errorf("disconnected: %d times, %+v", m.Reconnects, m.Disconnect)
	}
	for n, role := range map[*node]string{p.primary: "primary", p.mirror: "mirror"} {
		if all, _ := n.history(role); len(all) > 0 {
			t.Errorf("the history of the %s: %+v", role, all)
		}
	}
	var shown string
	until(t, "a key of the mirror that the primary knows it by", func() bool {
		shown = p.primary.peer().Key
		return slices.Contains(ownKeys(t, p.mirror), shown)
	})

	// Away while the primary's next key was announced, and took over; twice.
	p.mirror.down()
	s.rolls(4+len(ownKeys(t, p.primary)), map[*node]map[string]bool{p.primary: {}})
	p.mirrorUp()
	s.settled()
	if all, _ := p.primary.history("primary"); len(all) != 1 || all[0].Class != "peer-stopped" {
		t.Errorf("the history of the primary: %+v", all)
	}
	s.finish()
	for _, n := range []*node{p.primary, p.mirror} {
		if strings.Contains(n.err.String(), "auth") {
			t.Errorf("somebody was not trusted: %s", tail(n.err.String()))
		}
	}
	if !strings.Contains(mustRun(t, "inspect", filepath.Join(p.primary.state, "keys")).stdout, "the secrets are not shown") {
		t.Error("inspect does not know keys")
	}
}
