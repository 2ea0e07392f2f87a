package wire

import "sync"

// turn is the lock of a Conn's sending side, with two queues: control frames go before all bulk (what
// costs the window something), so that they wait for the bulk of one call at most, however many want to
// send some. Within a queue the first who came is the first served.
type turn struct {
	mu     sync.Mutex
	taken  bool
	urgent []chan struct{} // those who wait; a closed channel hands the turn over
	bulk   []chan struct{}
}

func (t *turn) take(bulk bool) {
	t.mu.Lock()
	if !t.taken {
		t.taken = true
		t.mu.Unlock()
		return
	}
	own := make(chan struct{})
	if bulk {
		t.bulk = append(t.bulk, own)
	} else {
		t.urgent = append(t.urgent, own)
	}
	t.mu.Unlock()
	<-own
}

func (t *turn) tryTake() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taken {
		return false
	}
	t.taken = true
	return true
}

// give passes the turn on. It stays taken where somebody waits: nobody comes in between.
func (t *turn) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, queue := range []*[]chan struct{}{&t.urgent, &t.bulk} {
		if q := *queue; len(q) > 0 {
			close(q[0])
			q[0] = nil
			*queue = q[1:]
			return
		}
	}
	t.taken = false
}
