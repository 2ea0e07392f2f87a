package paths

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/campaign/daemon"
)

// watch looks at the primary many times a second, and notes what becomes of its mirror. Of disconnects the status has
// the numbers; when one of them has changed, the history says what happened.
type watch struct {
	node *daemon.Node
	stop context.CancelFunc
	done chan struct{}

	counted map[string]int64 // disconnects by class, at the last look; of who looks

	mu     sync.Mutex
	last   daemon.Peer
	losses []loss
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

// newWatch begins with what is: a mirror that follows, and no disconnect yet.
func newWatch(ctx context.Context, n *daemon.Node) (*watch, error) {
	w := &watch{node: n, done: make(chan struct{}), states: map[string]bool{}}
	if err := w.look(ctx); err != nil {
		return nil, err
	}
	ctx, w.stop = context.WithCancel(context.WithoutCancel(ctx))
	go w.routineLook(ctx)
	return w, nil
}

func (w *watch) close() {
	w.stop()
	<-w.done
}

// end takes a last look.
func (w *watch) end(ctx context.Context) error {
	w.close()
	return w.look(ctx)
}

func (w *watch) routineLook(ctx context.Context) {
	defer close(w.done)
	for ctx.Err() == nil {
		w.look(ctx) // a daemon that does not answer is found by others
		time.Sleep(lookEvery)
	}
}

func (w *watch) look(ctx context.Context) error {
	st, v, err := w.node.Whole(ctx)
	if err == nil && len(v.Mirrors) != 1 {
		err = fmt.Errorf("the primary tells of %d mirrors", len(v.Mirrors))
	}
	if err != nil {
		return err
	}
	now := time.Now()
	if !maps.Equal(st.Node.Disconnects, w.counted) {
		history, counted, err := w.node.History(ctx)
		if err != nil {
			return err
		}
		w.counted = counted
		w.note(history, now)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := v.Mirrors[0]
	w.last = p
	w.states[p.State] = true
	w.lag, w.rtt = max(w.lag, p.Lag), max(w.rtt, p.RTT)
	return nil
}

// note takes the lost connections in that are new in a history.
func (w *watch) note(history []daemon.Disconnect, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := len(w.losses)
	for _, d := range history {
		if d.Role != "primary" || !d.Established {
			continue
		}
		if seen--; seen < 0 {
			w.losses = append(w.losses, loss{now, d.Class})
		}
	}
}

// tries are those in vain, by the class of the entry that counts them: one that is of a lost connection has the tries
// that failed after it for the same reason.
func tries(history []daemon.Disconnect) map[string]int {
	vain := map[string]int{}
	for _, d := range history {
		n := int(d.Tries)
		if !d.Established {
			n++
		}
		if d.Role == "primary" && n > 0 {
			vain[d.Class] += n
		}
	}
	return vain
}

// tallies tells whether the counters of a node are what its history says: none of the two is older than the other here.
func tallies(history []daemon.Disconnect, counted map[string]int64) bool {
	told := map[string]int64{}
	for class := range counted {
		told[class] = 0
	}
	for _, d := range history {
		told[d.Class]++
	}
	return maps.Equal(told, counted)
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
