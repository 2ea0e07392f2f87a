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
	log func(string)

	mu     sync.Mutex
	ways   map[string]way     // by the HOST:PORT that is dialled
	untold map[netip.Addr]int // peers that dialled, and what was too large for the way to them
}

// way is to be gone with small segments.
type way struct {
	segment int
	until   time.Time // then it is tried without
}

const (
	narrowFor = time.Hour // the way may have been mended, or be another one
	maxUntold = 256
)

func newNarrow(log func(string)) *narrow {
	return &narrow{log: log, ways: map[string]way{}, untold: map[netip.Addr]int{}}
}

// forDial is the largest segment to dial addr with; 0: any.
func (n *narrow) forDial(addr string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w, ok := n.ways[addr]; ok && time.Now().After(w.until) {
		delete(n.ways, addr)
	}
	return n.ways[addr].segment
}

// segment is the same as long as nobody dials: what holds for the connections that stand.
func (n *narrow) segment(addr string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ways[addr].segment
}

// learn takes up why a connection to addr ended, on which lost was the largest segment.
func (n *narrow) learn(addr string, lost int, err error) {
	if !errors.Is(err, wire.ErrBlackHole) {
		return
	}
	segment := wire.SmallerSegment(lost)
	n.mu.Lock()
	now := n.ways[addr].segment
	news := segment > 0 && (now == 0 || segment < now) // another connection may have learned it before
	if news {
		n.ways[addr] = way{segment, time.Now().Add(narrowFor)}
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
