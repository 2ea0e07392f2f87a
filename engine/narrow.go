package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// narrow is what a node knows of ways on which large packets vanish (wire/blackhole.go; docs/DISCONNECTS.md, mtu). Who
// dials goes on with smaller segments. Who was dialled cannot choose: it tells the peer when that comes again.
type narrow struct {
	log    func(string)
	source func(to netip.Addr) netip.Addr // where packets to it leave from now

	mu     sync.Mutex
	ways   map[string]way     // by the HOST:PORT that is dialled
	untold map[netip.Addr]int // peers that dialled, and what was too large for the way to them
}

// way is to be gone with small segments.
type way struct {
	segment int
	until   time.Time // then it is tried without
	ends    ends
}

// ends are where packets come from and go to; zero: nobody knows. Between others they take another way, which may be a
// better one.
type ends struct{ from, to netip.Addr }

func (w way) leads(e ends) bool { return w.ends == e || w.ends == ends{} || e == ends{} }

const (
	narrowFor = time.Hour // the way may have been mended, or be another one
	maxUntold = 256
)

func newNarrow(log func(string)) *narrow {
	return &narrow{log: log, source: wire.SourceOf, ways: map[string]way{}, untold: map[netip.Addr]int{}}
}

// forDial tells the largest segment to dial each of the addresses of addr with; 0: any.
func (n *narrow) forDial(addr string) func(to netip.Addr) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, ok := n.ways[addr]
	if ok && time.Now().After(w.until) {
		delete(n.ways, addr)
		ok = false
	}
	return func(to netip.Addr) int {
		if !ok || !w.leads(n.endsTo(to)) {
			return 0
		}
		return w.segment
	}
}

func (n *narrow) endsTo(to netip.Addr) ends {
	if from := n.source(to); from.IsValid() {
		return ends{from, to}
	}
	return ends{}
}

// reached forgets what is known of addr where the connection that came about takes another way.
func (n *narrow) reached(addr string, to netip.Addr) {
	n.mu.Lock()
	w, ok := n.ways[addr]
	n.mu.Unlock()
	if !ok || w.leads(n.endsTo(to)) {
		return
	}
	n.mu.Lock()
	if ok = n.ways[addr] == w; ok {
		delete(n.ways, addr)
	}
	n.mu.Unlock()
	if ok {
		n.log(fmt.Sprintf("%s: another way leads there now: segments may be as large as the kernel likes", addr))
	}
}

// segment is the same as long as nobody dials: what holds for the connections that stand.
func (n *narrow) segment(addr string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ways[addr].segment
}

// learn takes up why a connection to addr, in fact to the address to, ended, on which lost was the largest segment.
func (n *narrow) learn(addr string, to netip.Addr, lost int, err error) {
	if !errors.Is(err, wire.ErrBlackHole) {
		return
	}
	segment := wire.SmallerSegment(lost)
	e := n.endsTo(to)
	n.mu.Lock()
	now := n.ways[addr]
	news := segment > 0 && (now.segment == 0 || segment < now.segment || !now.leads(e)) // another connection may have learned it before
	if news {
		n.ways[addr] = way{segment, time.Now().Add(narrowFor), e}
	}
	n.mu.Unlock()
	if news {
		n.log(fmt.Sprintf("%s: segments of %d bytes do not get through, nobody on the way says why (a path-MTU black hole): at most %d from now on, for %v; %s",
			addr, lost, segment, narrowFor, nextByClass[wire.ClassMTU]))
	}
}

// owe notes a session that somebody else began, when it has ended.
func (n *narrow) owe(from netip.Addr, conn *wire.Conn) {
	if !errors.Is(conn.Err(), wire.ErrBlackHole) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.untold) >= maxUntold {
		clear(n.untold)
	}
	n.untold[from] = conn.Segment()
}

// tell is the refusal of a peer that comes with segments that will be lost, once: an older version does not know what
// to do about it.
func (n *narrow) tell(from netip.Addr, segment int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	lost, ok := n.untold[from]
	if delete(n.untold, from); !ok || segment < lost {
		return nil
	}
	return &Error{Kind: KindNetwork, Op: "send to", On: from.String(), Err: fmt.Errorf("%w: what this side sends, in segments of up to %d bytes", wire.ErrBlackHole, lost),
		Next: nextByClass[wire.ClassMTU], code: wire.CodeMTU}
}
