package track

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// finish waits for all of a history. Somebody who waits for ever is what it is there to show; its limit is
// far beyond what any machine takes.
func finish(t *testing.T, seed uint64, wg *sync.WaitGroup) {
	t.Helper()
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		buf := make([]byte, 1<<20)
		t.Fatalf("seed %d: somebody waits for ever\n%s", seed, buf[:runtime.Stack(buf, true)])
	}
}

const (
	lockCell    = 64 // pages; more than there are workers
	lockCells   = 12
	lockWorkers = 16
	lockAsks    = 50
	keeperPage  = 1 << 40
)

// timedAsk is an ask with the moments of a clock at which it was made, granted and given back.
type timedAsk struct {
	Run
	shared                            bool
	arrival, asked, granted, released uint64
}

func (a *timedAsk) conflicts(b *timedAsk) bool {
	return a.First < b.End() && b.First < a.End() && !(a.shared && b.shared)
}

// lockHistory drives a RangeLock from many goroutines. Every worker's ranges end on pages of its own, so
// that an ask can be told from all others by its range.
type lockHistory struct {
	t     *testing.T
	seed  uint64
	lock  RangeLock
	clock atomic.Uint64

	mu   sync.Mutex
	asks []*timedAsk
}

func (h *lockHistory) ask(worker uint64, first, cells uint64, shared bool) *timedAsk {
	a := &timedAsk{Run: Run{first * lockCell, cells*lockCell - worker}, shared: shared, asked: h.clock.Add(1)}
	if shared {
		h.lock.RLock(a.First, a.Count)
	} else {
		h.lock.Lock(a.First, a.Count)
	}
	a.granted = h.clock.Add(1)
	a.arrival = h.arrival(a)
	return a
}

// arrival is the number that the lock gave to an ask that is held.
func (h *lockHistory) arrival(a *timedAsk) uint64 {
	h.lock.mu.Lock()
	defer h.lock.mu.Unlock()
	i := slices.IndexFunc(h.lock.asked, func(b ask) bool { return b.first == a.First && b.end == a.End() })
	if i < 0 {
		h.t.Errorf("seed %d: %+v is granted and not on the list", h.seed, *a)
		return 0
	}
	return h.lock.asked[i].arrival
}

func (h *lockHistory) release(a *timedAsk) {
	a.released = h.clock.Add(1)
	if a.shared {
		h.lock.RUnlock(a.First, a.Count)
	} else {
		h.lock.Unlock(a.First, a.Count)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asks = append(h.asks, a)
}

func (h *lockHistory) work(worker uint64) {
	rng := rand.New(rand.NewPCG(h.seed, 100+worker))
	for range lockAsks {
		first := rng.Uint64N(lockCells)
		a := h.ask(worker, first, 1+rng.Uint64N(min(4, lockCells-first)), rng.IntN(2) == 0)
		for range rng.IntN(4) {
			runtime.Gosched()
		}
		h.release(a)
		if rng.IntN(4) == 0 { // shared with somebody who holds it all the time
			h.lock.RLock(keeperPage, 1)
			h.lock.RUnlock(keeperPage, 1)
		}
	}
}

// block takes everything, and lets go when each worker that is not done waits. So there are moments with
// the longest queue there can be, whatever the scheduler does.
func (h *lockHistory) block(done *atomic.Int32) {
	a := h.ask(0, 0, lockCells, false)
	for waiting := 0; waiting+int(done.Load()) < lockWorkers; runtime.Gosched() {
		h.lock.mu.Lock()
		waiting = h.lock.waiting
		h.lock.mu.Unlock()
	}
	h.release(a)
}

// check looks at every pair. An ask that arrived before another one, and conflicts with it, is given back
// before that is granted: this is mutual exclusion, and that nobody is overtaken.
func (h *lockHistory) check() {
	for i, a := range h.asks {
		for _, b := range h.asks[:i] {
			if a.arrival > b.arrival {
				a, b = b, a
			}
			switch {
			case a.arrival == b.arrival:
				h.t.Fatalf("seed %d: arrived as one: %+v %+v", h.seed, *a, *b)
			case b.granted < a.asked:
				h.t.Fatalf("seed %d: arrived before, but asked behind its end: %+v %+v", h.seed, *a, *b)
			case a.conflicts(b) && a.granted < b.released && b.granted < a.released:
				h.t.Fatalf("seed %d: both are held: %+v %+v", h.seed, *a, *b)
			case a.conflicts(b) && b.granted < a.released:
				h.t.Fatalf("seed %d: overtaken: %+v by %+v", h.seed, *a, *b)
			}
		}
	}
}

func (h *lockHistory) run() {
	var wg sync.WaitGroup
	var done atomic.Int32
	h.lock.RLock(keeperPage, 1)
	wg.Go(func() {
		for range 6 {
			h.block(&done)
		}
	})
	for w := range uint64(lockWorkers) {
		wg.Go(func() {
			defer done.Add(1)
			h.work(w + 1)
		})
	}
	finish(h.t, h.seed, &wg)
	h.lock.RUnlock(keeperPage, 1)
}

// TestRangeLockHistories: TestRangeLockGrantsLikeModel takes one step at a time. Here many ask, hold and
// give back at once, and what they saw is judged behind it.
func TestRangeLockHistories(t *testing.T) {
	for seed := range uint64(12) {
		h := &lockHistory{t: t, seed: seed}
		h.run()
		h.check()
		if n := len(h.asks); n != lockWorkers*lockAsks+6 {
			t.Errorf("seed %d: %d asks were granted", seed, n)
		}
		if len(h.lock.asked) != 0 || h.lock.waiting != 0 {
			t.Errorf("seed %d: %d asks are left, %d of them wait", seed, len(h.lock.asked), h.lock.waiting)
		}
	}
}
