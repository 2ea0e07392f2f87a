package engine

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// Two nodes under one key: somebody has a copy of the other's state directory, a thief or a machine that was cloned. TLS proves
// that both have the key; what sets them apart they say themselves. A copy that says nothing wrong, and it has no reason to,
// has another process, and that two of them live is proven as well: the older one has answered something that it was asked after
// the newer one came. A node that was started anew, or comes another way, leaves no process behind that could.

// claims is what a peer says of itself.
type claims struct {
	node        wire.Hash // of its state directory; zero: a command, which runs beside the daemon
	incarnation uint64    // of a primary: one for each volume of each process, which only that knows
	attached    bool      // incarnation was told
}

// otherProcess tells whether the two cannot be with one process.
func (p *pass) otherProcess(o *pass) bool {
	a, b := &p.claims, &o.claims
	if a.node == (wire.Hash{}) || b.node == (wire.Hash{}) {
		return false
	}
	return a.node != b.node || p.volume == o.volume && a.attached && b.attached && a.incarnation != b.incarnation
}

// attached notes what a primary has said of its process.
func (p *pass) attached(incarnation uint64) {
	if p.gate == nil {
		return
	}
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.claims.incarnation, p.claims.attached = incarnation, true
}

// twins is an alarm.
type twins struct {
	text         string
	seen, logged time.Time
}

const twinsFor = 24 * time.Hour // an alarm stays in the status, and is not logged again

// separateLocked ends the newer one of two connections with two nodes under one identity, where the older one goes on: it was
// there first, and a person has to say which of them is the right one.
func (g *gate) separateLocked(now time.Time) {
	for p := range g.standing {
		for former := range g.standing {
			if former.peer.Name != p.peer.Name || !former.since.Before(p.since) || !former.otherProcess(p) || p.refused || former.refused {
				continue
			}
			if !former.conn.AnsweredSince(p.since) {
				former.conn.Ask() // it is looked at again in a second
				continue
			}
			p.refused = true
			g.alarmLocked(former, p, now)
			p.end(&Error{Kind: KindAuth, Op: "go on with", On: p.peer.Name, code: wire.CodeAuth, Next: "see the alarm in `blkmirror status`",
				Err: fmt.Errorf("%w: another node with this identity is connected: one of the two needs keys of its own", wire.ErrAuth)})
		}
	}
	maps.DeleteFunc(g.twins, func(_ string, t *twins) bool { return now.Sub(t.seen) > twinsFor })
}

func (g *gate) alarmLocked(former, p *pass, now time.Time) {
	t := g.twins[p.peer.Name]
	if t == nil {
		t = &twins{}
		g.twins[p.peer.Name] = t
	}
	t.seen = now
	t.text = fmt.Sprintf("ALARM: two nodes claim one identity: %s is connected from %s, and another node under its key came from %s and is refused: one of them has a copy of the keys. "+
		"Stop the one that is wrong; if nobody knows of it, revoke %s, move the keys of the right one away and trust its new ID", p.peer.Name, former.addr, p.addr, p.peer.Name)
	if now.Sub(t.logged) > twinsFor {
		t.logged = now
		g.log(t.text)
	}
}

// alarms are those over peers that are still trusted.
func (g *gate) alarms() (texts []string) {
	known := map[string]bool{}
	for _, p := range g.id.Peers() {
		known[p.Name] = true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(g.twins)) {
		if known[name] {
			texts = append(texts, g.twins[name].text)
		}
	}
	return texts
}
