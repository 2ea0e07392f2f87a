package engine

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// What strangers can make the node hold. Handshakes are counted apart from sessions: a flood of connections
// takes no session's place, and no memory to speak of.
const (
	maxHandshakes    = 64
	maxHandshakesOne = 16 // of one address
	strangersEvery   = time.Second
)

// maxProven addresses are remembered from which trusted peers came: for them there is room when strangers, at a handful
// of addresses, hold all of it.
const maxProven = 256

// lobby counts the handshakes that are under way.
type lobby struct {
	mu     sync.Mutex
	count  int // of addresses that were not proven
	from   map[netip.Addr]int
	proven map[netip.Addr]bool
}

// enter begins a handshake, if there is room for it.
func (d *lobby) enter(nc net.Conn) (leave func(), ok bool) {
	from := origin(nc)
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := 1
	if d.proven[from] {
		counts = 0
	}
	if d.count+counts > maxHandshakes || d.from[from] >= maxHandshakesOne {
		return nil, false
	}
	if d.from == nil {
		d.from = map[netip.Addr]int{}
	}
	d.count += counts
	d.from[from]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.count -= counts
		if d.from[from]--; d.from[from] == 0 {
			delete(d.from, from)
		}
	}, true
}

// prove remembers that a trusted peer came from there.
func (d *lobby) prove(nc net.Conn) {
	from := origin(nc)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proven == nil {
		d.proven = map[netip.Addr]bool{}
	}
	for old := range d.proven {
		if len(d.proven) < maxProven || d.proven[from] {
			break
		}
		delete(d.proven, old) // any
	}
	d.proven[from] = true
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
	leave, ok := s.lobby.enter(nc)
	if !ok {
		nc.Close()
		s.strangers.say(fmt.Sprintf("%s: closed at once: %d handshakes are under way, or %d of its address", nc.RemoteAddr(), maxHandshakes, maxHandshakesOne))
		return
	}
	s.conns.Go(func() { s.secure(ctx, nc, leave) })
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

// secure does the handshake, and runs a session, if there is room for one. leaveLobby ends the handshake.
func (s *server) secure(ctx context.Context, nc net.Conn, leaveLobby func()) {
	limit := time.Now().Add(wire.HandshakeTimeout)
	bounded, stop := context.WithDeadline(ctx, limit)
	conn, peer, err := s.Identity.Accept(bounded, nc)
	stop()
	if err != nil {
		leaveLobby()
		s.noHandshake(ctx, nc, err)
		return
	}
	s.lobby.prove(nc)
	leave, err := s.places.take(peer.Name)
	if err != nil {
		s.crowded(ctx, conn, peer, err) // still in the lobby, so these have a bound too
		leaveLobby()
		return
	}
	leaveLobby()
	defer leave()
	s.session(ctx, conn, peer, max(time.Until(limit), time.Second))
}

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
