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

// receive takes a connection that was accepted. It waits for nothing.
func (s *server) receive(ctx context.Context, nc net.Conn) {
	if s.Identity == nil {
		s.conns.Go(func() { s.begin(ctx, nc, identity.Peer{}, wire.HandshakeTimeout) })
		return
	}
	leave, ok := s.lobby.enter(nc)
	if !ok {
		nc.Close()
		s.strangers.say(fmt.Sprintf("%s: closed at once: %d handshakes are under way, or %d of its address", nc.RemoteAddr(), maxHandshakes, maxHandshakesOne))
		return
	}
	s.conns.Go(func() {
		limit := time.Now().Add(wire.HandshakeTimeout)
		bounded, stop := context.WithDeadline(ctx, limit)
		secure, peer, err := s.Identity.Accept(bounded, nc)
		stop()
		leave()
		switch class := wire.Classify(err); {
		case err == nil:
			s.lobby.prove(nc)
			s.begin(ctx, secure, peer, time.Until(limit))
		case ctx.Err() != nil:
		case class == wire.ClassAuth:
			s.untrusted.say(fmt.Sprintf("%s: refused (%s): %v", nc.RemoteAddr(), class, err))
		default:
			s.strangers.say(fmt.Sprintf("%s: no handshake (%s): %v", nc.RemoteAddr(), class, err))
		}
	})
}

// begin runs a session, if there is room for one. left is what is left of the handshake's time.
func (s *server) begin(ctx context.Context, nc net.Conn, peer identity.Peer, left time.Duration) {
	select {
	case s.tokens <- struct{}{}:
		defer func() { <-s.tokens }()
		s.session(ctx, nc, peer, max(left, time.Second))
	default:
		nc.Close()
		s.strangers.say(fmt.Sprintf("%s: refused, %d connections are open", nc.RemoteAddr(), maxConnections))
	}
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
