package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/engine/doctor"
	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// gate knows who is at the other end of a connection, what he may do, and which connections stand: trust is
// looked at when one begins, and again every second. Without an identity it lets everybody through, and the
// connections are plain TCP on loopback.
type gate struct {
	id       *identity.Node // nil: --insecure
	stateDir string         // named to a person who is to trust somebody
	narrow   *narrow
	log      func(string)

	mu       sync.Mutex
	standing map[*pass]struct{}
	seats    map[seat]identity.Peer // who was there last, for status
	twins    map[string]*twins      // by the peer's name (twins.go)
}

// seat is a place that only one peer has: a primary's mirror, by its configured name, or a mirror's primary ("").
type seat struct{ volume, mirror string }

func newGate(id *identity.Node, stateDir string, log func(string)) *gate {
	return &gate{id: id, stateDir: stateDir, narrow: newNarrow(log), log: log, standing: map[*pass]struct{}{}, seats: map[seat]identity.Peer{}, twins: map[string]*twins{}}
}

// asOf is what a peer that has this role in a session is to the volume.
func asOf(r wire.Role) identity.As {
	if r == wire.RolePrimary || r == wire.RoleSource {
		return identity.AsPrimary
	}
	return identity.AsMirror
}

// dial connects to a peer that may be as to the volume. Its errors are *Error.
func (g *gate) dial(ctx context.Context, addr, volume string, as identity.As) (net.Conn, identity.Peer, error) {
	var peer identity.Peer
	nc, err := wire.DialBy(ctx, addr, g.narrow.forDial(addr))
	if err == nil {
		to, segment := wire.RemoteOf(nc), wire.SegmentOf(nc)
		g.narrow.reached(addr, to)
		limited, stop := context.WithTimeout(ctx, wire.HandshakeTimeout)
		defer stop()
		nc, peer, err = secure(limited, g.id, nc, volume, as)
		g.narrow.learn(addr, to, segment, err)
	}
	if err != nil {
		return nil, peer, g.explain(networkError(addr, err), addr, volume, as, true)
	}
	return nc, peer, nil
}

// secure makes of a fresh connection one on which both sides have proved who they are, with a peer that may be as to the
// volume; without an identity (plain text) it makes sure that nothing leaves this machine. On an error it has closed nc.
func secure(ctx context.Context, id *identity.Node, nc net.Conn, volume string, as identity.As) (net.Conn, identity.Peer, error) {
	if id != nil {
		return id.Dial(ctx, nc, volume, as)
	}
	if err := wire.CheckPlainConn(nc); err != nil {
		nc.Close()
		return nil, identity.Peer{}, err
	}
	return nc, identity.Peer{}, nil
}

// options of a connection with a peer.
func (g *gate) options(peer identity.Peer) wire.ConnOptions { return connOptions(g.id, peer) }

func connOptions(id *identity.Node, peer identity.Peer) wire.ConnOptions {
	if id == nil {
		return wire.ConnOptions{}
	}
	return wire.ConnOptions{Keys: id.Rollover(peer)}
}

// explain says what a person can do where one of the two sides does not trust the other: whoever dials sees it
// first. here: it is this side; what the other one thinks is not known then.
func (g *gate) explain(err error, addr, volume string, as identity.As, here bool) error {
	own, told := errors.AsType[*Error](err)
	if g.id == nil || wire.Classify(err) != wire.ClassAuth || told && own.Kind == KindAuth && own.Next != "" {
		return err
	}
	if told {
		err = own.Err
	}
	ours, theirs := "primary", "mirror"
	if as == identity.AsPrimary {
		ours, theirs = theirs, ours
	}
	self := hostName()
	if identity.CheckName(self) != nil {
		self = "NAME"
	}
	next := fmt.Sprintf("there run `blkmirror keys trust %s %v --volume %s --as %s`", self, g.id.ID(), volume, ours)
	if here {
		next = fmt.Sprintf("run `blkmirror keys show` there, and here `blkmirror keys trust NAME ID --volume %s --as %s --state %s` with that ID; %s, as far as that was not done",
			volume, theirs, g.stateDir, next)
		if len(g.id.Peers()) == 0 {
			next = "nobody is trusted here yet: " + next
		}
	}
	return &Error{Kind: KindAuth, Op: "connect to", On: addr, Err: err, Next: next, code: wire.CodeAuth}
}

// pass is one connection's place among those that stand.
type pass struct {
	gate   *gate
	conn   *wire.Conn
	peer   identity.Peer // once it stands: under gate.mu
	name   string        // its; "": nobody has to prove who he is
	addr   string
	from   netip.Addr // who dialled us
	end    context.CancelCauseFunc
	volume string
	as     identity.As
	since  time.Time // it stands
	claims claims    // under gate.mu
	// It is the second of two nodes under one identity, and is ended.
	refused bool
}

// pass makes the place of a connection, which enter takes. The context ends when the peer must go.
func (g *gate) pass(ctx context.Context, conn *wire.Conn, peer identity.Peer, addr string) (context.Context, *pass) {
	p := &pass{gate: g, conn: conn, peer: peer, name: peer.Name, addr: addr}
	ctx, p.end = context.WithCancelCause(ctx)
	return ctx, p
}

// errNoRight is told a peer in the same words whether there is such a volume or not.
var errNoRight = fmt.Errorf("%w: nothing may be done with this volume in this role", wire.ErrAuth)

// enter lets the peer in as what it is to the volume. node is what it calls itself.
func (p *pass) enter(volume string, as identity.As, node wire.Hash) error {
	g := p.gate
	if g.id == nil {
		return nil
	}
	peer := p.peer // sweep changes it from here on
	g.mu.Lock()
	p.volume, p.as, p.since, p.claims.node = volume, as, time.Now(), node
	g.standing[p] = struct{}{}
	g.mu.Unlock()
	// Behind the entry in standing: a change of trust from here on finds it there.
	if err := g.id.May(peer, volume, as); err != nil {
		return &Error{Kind: KindAuth, Op: "open volume", On: volume, Err: err, Next: nextByCode[wire.CodeAuth], code: wire.CodeAuth, told: errNoRight}
	}
	return nil
}

// sees tells whether the peer may know of a volume: of every one, where nobody has to prove who he is.
func (p *pass) sees(volume string) bool {
	id := p.gate.id
	if id == nil {
		return true
	}
	p.gate.mu.Lock()
	peer := p.peer
	p.gate.mu.Unlock()
	return id.May(peer, volume, identity.AsPrimary) == nil || id.May(peer, volume, identity.AsMirror) == nil
}

// sit notes who is where, for status.
func (p *pass) sit(mirror string) {
	g := p.gate
	if g == nil || g.id == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seats[seat{p.volume, mirror}] = p.peer
}

func (p *pass) leave() {
	p.gate.mu.Lock()
	delete(p.gate.standing, p)
	p.gate.mu.Unlock()
	p.end(nil)
}

// sweep ends the connections that are no longer trusted.
func (g *gate) sweep() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.standing {
		p.peer = g.id.Follow(p.peer) // a rollover ends no session, however long that stands
		if err := g.id.May(p.peer, p.volume, p.as); err != nil {
			p.end(&Error{Kind: KindAuth, Op: "go on with", On: p.peer.Name, Err: err, Next: nextByCode[wire.CodeAuth], code: wire.CodeAuth})
		}
	}
	g.separateLocked(time.Now())
}

// warnings are what a person has to do about keys: this node's, and those of all peers, connected or not.
func (g *gate) warnings() []string {
	if g.id == nil {
		return nil
	}
	texts := g.id.Warnings()
	for _, p := range g.id.Peers() {
		texts = append(texts, p.Warnings...)
	}
	return append(texts, g.alarms()...)
}

// describe adds to a status who the peers are.
func (g *gate) describe(v *VolumeStatus) {
	if g.id == nil {
		return
	}
	peers := g.id.Peers()
	fill := func(m *MirrorStatus, mirror string) {
		g.mu.Lock()
		peer, ok := g.seats[seat{v.Name, mirror}]
		g.mu.Unlock()
		if !ok {
			return
		}
		who := identified(g.id.Follow(peer), peers)
		m.Peer, m.Key, m.Warnings, m.KeyDaysLeft = who.Name, cmp.Or(who.CA, who.ID), who.Warnings, who.DaysLeft
	}
	for i := range v.Mirrors {
		fill(&v.Mirrors[i], v.Mirrors[i].Name)
	}
	if v.Primary != nil {
		fill(v.Primary, "")
	}
}

// identified is who a peer is, as people are told: by what it proved, and what is known of it.
func identified(peer identity.Peer, known []identity.PeerInfo) *doctor.Identity {
	who := &doctor.Identity{Name: peer.Name, CA: peer.CA}
	if peer.Own != (identity.ID{}) {
		who.OwnID = peer.Own.String()
	}
	if peer.CA == "" {
		who.ID = peer.Key.String()
	}
	if i := slices.IndexFunc(known, func(p identity.PeerInfo) bool { return p.Name == peer.Name }); i >= 0 {
		who.Warnings, who.DaysLeft = slices.Concat(known[i].Warnings, known[i].Notes), known[i].DaysLeft(time.Now())
	}
	return who
}
