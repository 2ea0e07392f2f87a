package paths

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/campaign/daemon"
)

// watch looks at the primary many times a second, and notes what becomes of its mirror. Status tells the latest
// disconnect alone, so what comes and goes between two looks is missed, but for the number of lost connections.
type watch struct {
	node *daemon.Node
	stop context.CancelFunc
	done chan struct{}

	mu     sync.Mutex
	looks  int
	last   daemon.Peer
	cause  *daemon.Disconnect // was seen, and is either of a connection that was lost or of a try
	seen   time.Time          // the cause
	losses []loss
	vain   map[string]int // tries that failed, by class
	states map[string]bool
	lag    float64 // seconds, the longest
	rtt    float64 // milliseconds, the longest
}

// loss is the end of a connection that had been established.
type loss struct {
	at    time.Time // it was first told
	class string
}

const lookEvery = 20 * time.Millisecond

func newWatch(n *daemon.Node) *watch {
	w := &watch{node: n, done: make(chan struct{}), vain: map[string]int{}, states: map[string]bool{}}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	go w.routineLook(ctx)
	return w
}

func (w *watch) close() {
	w.stop()
	<-w.done
}

// end takes a last look.
func (w *watch) end(ctx context.Context) error {
	w.close()
	_, err := w.look(ctx)
	return err
}

func (w *watch) routineLook(ctx context.Context) {
	defer close(w.done)
	for ctx.Err() == nil {
		w.look(ctx) // a daemon that does not answer is found by others
		time.Sleep(lookEvery)
	}
}

func (w *watch) look(ctx context.Context) (daemon.Peer, error) {
	v, err := w.node.Volume(ctx)
	if err == nil && len(v.Mirrors) != 1 {
		err = fmt.Errorf("the primary tells of %d mirrors", len(v.Mirrors))
	}
	if err != nil {
		return daemon.Peer{}, err
	}
	w.note(v.Mirrors[0], time.Now())
	return v.Mirrors[0], nil
}

// note takes a look in. A cause is told first, and then that it was of a connection that had been established: it counts
// as a try in vain only when the next cause comes.
func (w *watch) note(p daemon.Peer, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lost := p.Reconnects - w.last.Reconnects
	if w.looks == 0 {
		lost, w.last.Last = 0, p.Last // what was before does not count
	}
	if p.Last != nil && (w.last.Last == nil || *p.Last != *w.last.Last) {
		if w.cause != nil && lost == 0 {
			w.vain[w.cause.Class]++
			w.cause = nil
		}
		if w.cause == nil {
			w.cause, w.seen = p.Last, now
		}
	}
	for range lost {
		l := loss{now, ""}
		switch {
		case w.cause != nil:
			l = loss{w.seen, w.cause.Class}
		case p.Last != nil: // the same words within the same second
			l.class = p.Last.Class
		}
		w.losses = append(w.losses, l)
		w.cause = nil
	}
	w.looks++
	w.last = p
	w.states[p.State] = true
	w.lag, w.rtt = max(w.lag, p.Lag), max(w.rtt, p.RTT)
}

// peer is the mirror as it was last seen.
func (w *watch) peer() daemon.Peer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// lostSince are the connections that were lost after the first n.
func (w *watch) lostSince(n int) []loss {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]loss(nil), w.losses[n:]...)
}
