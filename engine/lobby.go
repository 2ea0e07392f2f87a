package engine

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// What strangers can make the node hold. Handshakes are counted apart from sessions: a flood of connections
// takes no session's place, and no memory to speak of.
const (
	maxHandshakes    = 64
	maxHandshakesOne = 16                // of one address
	maxLeaving       = 4 * maxHandshakes // that were put out, and have not ended yet: on a busy node that takes a moment
	strangersEvery   = time.Second
)

// maxProven addresses are remembered from which trusted peers came: for them there is room when strangers, at a handful
// of addresses, hold all of it.
const maxProven = 256

// guest is a handshake that is under way.
type guest struct {
	nc       net.Conn
	from     netip.Addr
	stranger bool // no trusted peer is known to have come from its address
	putOut   bool // to make room for another
}

// lobby holds the handshakes that are under way. Where all places are taken, those of strangers or those of an address, the next one
// still gets in, for one that has proven nothing so far: who merely holds places keeps nobody out.
type lobby struct {
	mu      sync.Mutex
	count   int                // strangers
	from    map[netip.Addr]int // all, by their address
	silent  []*guest           // who have not proven who they are, oldest first
	leaving int                // who were put out, and whose goroutines have not ended yet; in no other number
	proven  map[netip.Addr]bool
}

// enter begins a handshake, if there is room for it or can be made.
func (d *lobby) enter(nc net.Conn) (*guest, bool) {
	g := &guest{nc: nc, from: origin(nc)}
	d.mu.Lock()
	defer d.mu.Unlock()
	g.stranger = !d.proven[g.from]
	if d.from[g.from] >= maxHandshakesOne && !d.makeRoomLocked(func(o *guest) bool { return o.from == g.from }) {
		return nil, false
	}
	if g.stranger && d.count >= maxHandshakes && !d.makeRoomLocked(func(o *guest) bool { return o.stranger }) {
		return nil, false
	}
	if d.from == nil {
		d.from = map[netip.Addr]int{}
	}
	d.from[g.from]++
	d.silent = append(d.silent, g)
	if g.stranger {
		d.count++
	}
	return g, true
}

// makeRoomLocked puts out one of those that may go: the oldest of the address that has most places. Where one who is trusted
// comes from an address of his own, it is not he, however fast the others come.
func (d *lobby) makeRoomLocked(may func(*guest) bool) bool {
	has := map[netip.Addr]int{}
	for _, g := range d.silent {
		if may(g) {
			has[g.from]++
		}
	}
	var out *guest
	for _, g := range d.silent {
		if may(g) && (out == nil || has[g.from] > has[out.from]) {
			out = g
		}
	}
	if out == nil || d.leaving >= maxLeaving {
		return false
	}
	d.forgetLocked(out)
	out.putOut = true
	d.leaving++
	out.nc.Close() // its goroutine learns of it, and leaves
	return true
}

// forgetLocked takes a guest out of all numbers.
func (d *lobby) forgetLocked(g *guest) {
	d.silent = slices.DeleteFunc(d.silent, func(other *guest) bool { return g == other })
	if g.stranger {
		d.count--
	}
	if d.from[g.from]--; d.from[g.from] == 0 {
		delete(d.from, g.from)
	}
}

// leave ends a handshake. putOut: it had to.
func (d *lobby) leave(g *guest) (putOut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g.putOut {
		d.leaving--
	} else {
		d.forgetLocked(g)
	}
	return g.putOut
}

// prove notes that the guest is a trusted peer, who keeps his place, and that such a one came from his address. false: he
// was put out before.
func (d *lobby) prove(g *guest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g.putOut {
		return false
	}
	d.silent = slices.DeleteFunc(d.silent, func(other *guest) bool { return g == other })
	if d.proven == nil {
		d.proven = map[netip.Addr]bool{}
	}
	for old := range d.proven {
		if len(d.proven) < maxProven || d.proven[g.from] {
			break
		}
		delete(d.proven, old) // any
	}
	d.proven[g.from] = true
	return true
}

// origin is the address that a connection comes from; with IPv6 its /64, of which everybody has as many addresses
// as he likes.
func origin(nc net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() && !a.IsLoopback() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// The connections behind their handshake: sessions of volumes, one-shot syncs, probes, knocks. No peer, however much he is
// trusted, takes the places of all others.
const (
	maxConnections    = 128
	maxConnectionsOne = maxConnections / 2 // of one peer; with Insecure there are no peers
)

// places counts them.
type places struct {
	mu    sync.Mutex
	count int
	of    map[string]int // by the peer's name
}

// take takes a place for the peer, if there is one.
func (p *places) take(peer string) (leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.count >= maxConnections:
		return nil, fmt.Errorf("%d connections are open", p.count)
	case peer != "" && p.of[peer] >= maxConnectionsOne:
		return nil, fmt.Errorf("%d connections of peer %s are open", p.of[peer], peer)
	}
	if p.of == nil {
		p.of = map[string]int{}
	}
	p.count++
	p.of[peer]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.count--
		if p.of[peer]--; p.of[peer] == 0 {
			delete(p.of, peer)
		}
	}, nil
}

// receive takes a connection that was accepted. It waits for nothing.
func (s *server) receive(ctx context.Context, nc net.Conn) {
	if s.Identity == nil {
		s.conns.Go(func() { s.plain(ctx, nc) })
		return
	}
	g, ok := s.lobby.enter(nc)
	if !ok {
		nc.Close()
		s.strangers.say(fmt.Sprintf("%s: closed at once: %d handshakes are under way, or %d of its address", nc.RemoteAddr(), maxHandshakes, maxHandshakesOne))
		return
	}
	s.conns.Go(func() { s.secure(ctx, g) })
}

// plain runs a session without identities, if there is room for one.
func (s *server) plain(ctx context.Context, nc net.Conn) {
	leave, err := s.places.take("")
	if err != nil {
		nc.Close()
		s.strangers.say(fmt.Sprintf("%s: refused: %v", nc.RemoteAddr(), err))
		return
	}
	defer leave()
	s.session(ctx, nc, identity.Peer{}, wire.HandshakeTimeout)
}

// secure does the handshake, and runs a session, if there is room for one.
func (s *server) secure(ctx context.Context, g *guest) {
	limit := time.Now().Add(wire.HandshakeTimeout)
	bounded, stop := context.WithDeadline(ctx, limit)
	conn, peer, err := s.Identity.Accept(bounded, g.nc)
	stop()
	if err == nil && !s.lobby.prove(g) {
		err = errPutOut
		conn.Close()
	}
	if err != nil {
		if s.lobby.leave(g) {
			err = errPutOut // that is why it failed
		}
		s.noHandshake(ctx, g.nc, err)
		return
	}
	leave, err := s.places.take(peer.Name)
	if err != nil {
		s.crowded(ctx, conn, peer, err) // still in the lobby, so these have a bound too
		s.lobby.leave(g)
		return
	}
	s.lobby.leave(g)
	defer leave()
	s.session(ctx, conn, peer, max(time.Until(limit), time.Second))
}

// errPutOut is not told to whoever it was, who had said nothing that would make him a peer.
var errPutOut = fmt.Errorf("it had proven nothing yet, and made room for another, as %d were under way, or %d of its address", maxHandshakes, maxHandshakesOne)

// noHandshake logs that nothing came of a connection.
func (s *server) noHandshake(ctx context.Context, nc net.Conn, err error) {
	switch class := wire.Classify(err); {
	case ctx.Err() != nil:
	case class == wire.ClassAuth:
		s.untrusted.say(fmt.Sprintf("%s: refused (%s): %v", nc.RemoteAddr(), class, err))
	default:
		s.strangers.say(fmt.Sprintf("%s: no handshake (%s): %v", nc.RemoteAddr(), class, err))
	}
}

// crowded tells a peer that there is no place for one more session.
func (s *server) crowded(ctx context.Context, nc net.Conn, peer identity.Peer, why error) {
	s.strangers.say(fmt.Sprintf("%s: refused: %v", nc.RemoteAddr(), why))
	conn := wire.NewConn(nc, s.gate.options(peer))
	release := context.AfterFunc(ctx, func() { conn.Close(context.Cause(ctx)) })
	defer release()
	err := &Error{Kind: KindState, Op: "begin a session with", On: peer.Name, Err: why, Next: nextByCode[wire.CodeBusy], code: wire.CodeBusy}
	refuse(conn, err)
	conn.Close(err)
}

// murmur is a log for what strangers can cause as often as they like: a line a second, and how many were left out.
type murmur struct {
	log func(string)

	mu      sync.Mutex
	next    time.Time
	skipped int
}

// Write says the line that a log.Logger has made.
func (m *murmur) Write(line []byte) (int, error) {
	m.say(strings.TrimSpace(string(line)))
	return len(line), nil
}

func (m *murmur) say(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if now.Before(m.next) {
		m.skipped++
		return
	}
	if m.skipped > 0 {
		text += fmt.Sprintf(" (and %d more since the last such line)", m.skipped)
	}
	m.next, m.skipped = now.Add(strangersEvery), 0
	m.log(text)
}
