package wire

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// RecordOverhead is what a Data or a Zero takes on the wire beside its payload, at most.
const RecordOverhead = HeaderSize + dataSize

// costUnit is what costs are rounded up to: a page, so that many small records cannot pile up more in
// memory than the window says.
const costUnit = 4096

// Cost is what a message takes of the peer's window: Data its raw length in whole pages, Zero one page,
// all else nothing, so that control frames are never held back.
func Cost(m Message) int64 {
	switch m := m.(type) {
	case *Data:
		return (int64(m.RawLength) + costUnit - 1) / costUnit * costUnit
	case *Zero:
		return costUnit
	}
	return 0
}

// SendWindow is the sender's half of flow control: it holds back what the peer has not granted. Waiters
// are served in the order in which they came. Safe for concurrent use.
//
// No request is larger than MaxRun, no first grant is smaller (Opened is checked for it), and a Meter
// grants again as soon as all is done and less than MaxRun is left: so every request is granted in time.
type SendWindow struct {
	mu      sync.Mutex
	granted uint64 // both count from the begin of the session
	used    uint64
	waiters []*waiter // in order; the first does not fit yet
	err     error     // why it was closed

	// What is under way, in bytes on the wire (flow.go); limit 0: that is not looked at.
	limit, most         int64
	admitted, delivered int64
	held                uint64 // how often somebody had to wait for the limit
	largest             int64
}

type waiter struct {
	n     uint64
	bytes int64
	ready chan struct{} // closed when granted, or when the window was
}

// NewWindow returns a SendWindow with a first grant.
func NewWindow(granted uint64) *SendWindow { return &SendWindow{granted: granted} }

// Acquire takes n bytes of the window and waits until they are granted. Where it returns an error, that
// of ctx (its cause) or of Close, nothing was taken. n is at most MaxRun.
func (w *SendWindow) Acquire(ctx context.Context, n int64) error { return w.Admit(ctx, n, 0) }

// Admit is Acquire for what takes so many bytes on the wire. It waits as well while as much as Limit says is
// under way: what was admitted and not Delivered.
func (w *SendWindow) Admit(ctx context.Context, n, bytes int64) error {
	if n < 0 || n > MaxRun {
		return fmt.Errorf("acquire %d bytes of the send window: want 0 to %d", n, MaxRun)
	}
	w.mu.Lock()
	if w.err != nil {
		defer w.mu.Unlock()
		return w.err
	}
	own := &waiter{n: uint64(n), bytes: bytes}
	if n == 0 || len(w.waiters) == 0 && w.fitsLocked(own) {
		w.takeLocked(own)
		w.mu.Unlock()
		return nil
	}
	own.ready = make(chan struct{})
	w.waiters = append(w.waiters, own)
	w.mu.Unlock()

	select {
	case <-own.ready:
		return w.settled(own)
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.waiters, own); i >= 0 {
		w.waiters = slices.Delete(w.waiters, i, i+1)
		w.serveLocked() // those behind may have waited for this one only
		return context.Cause(ctx)
	}
	return w.outcomeLocked(own) // granted or closed in the same instant
}

func (w *SendWindow) settled(own *waiter) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.outcomeLocked(own)
}

// outcomeLocked tells what became of a waiter that is no longer waiting: n is cleared by a grant.
func (w *SendWindow) outcomeLocked(own *waiter) error {
	if own.n == 0 {
		return nil
	}
	return w.err
}

// Grant takes a Window frame's total in. A total below an earlier one breaks the protocol.
func (w *SendWindow) Grant(total uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if total < w.granted {
		return broken("window goes back from %d to %d", w.granted, total)
	}
	w.granted = total
	w.serveLocked()
	return nil
}

// Close releases all waiters, now and later, with err. The first Close counts.
func (w *SendWindow) Close(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	if err == nil {
		err = ErrClosed
	}
	w.err = err
	for _, own := range w.waiters {
		close(own.ready)
	}
	w.waiters = nil
}

// Delivered says that so many bytes of what was admitted are not under way any more. As in TCP's slow start,
// as much more may be, up to the limit.
func (w *SendWindow) Delivered(bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delivered += bytes
	w.limit = min(w.limit+bytes, w.most)
	w.serveLocked()
}

// Limit bounds what may be under way, and one Admit beyond. A higher limit than before is reached with what
// is delivered.
func (w *SendWindow) Limit(bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.most = max(bytes, 1)
	if w.limit == 0 {
		w.limit = startWindow
	}
	w.limit = min(w.limit, w.most)
	w.serveLocked()
}

// underWay is what Admit and Delivered have counted.
type underWay struct {
	delivered, outstanding int64
	waits                  bool   // somebody does, for the grant or for the limit
	held                   uint64 // how often somebody had to wait for the limit
	largest                int64  // that was admitted since the last call
}

func (w *SendWindow) underWay() underWay {
	w.mu.Lock()
	defer w.mu.Unlock()
	u := underWay{w.delivered, w.admitted - w.delivered, len(w.waiters) > 0, w.held, w.largest}
	w.largest = 0
	return u
}

// answered is what was delivered in all, and what is outstanding.
func (w *SendWindow) answered() (delivered, outstanding int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.delivered, w.admitted - w.delivered
}

// total is all that was granted.
func (w *SendWindow) total() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.granted
}

func (w *SendWindow) fitsLocked(own *waiter) bool {
	if w.granted-w.used < own.n {
		return false
	}
	if own.bytes > 0 && w.limit > 0 && w.admitted-w.delivered >= w.limit {
		w.held++
		return false
	}
	return true
}

func (w *SendWindow) takeLocked(own *waiter) {
	w.used += own.n
	w.admitted += own.bytes
	w.largest = max(w.largest, own.bytes)
	own.n = 0
}

// serveLocked grants to waiters from the front as far as the window goes.
func (w *SendWindow) serveLocked() {
	for len(w.waiters) > 0 && w.fitsLocked(w.waiters[0]) {
		own := w.waiters[0]
		w.takeLocked(own)
		close(own.ready)
		w.waiters[0] = nil
		w.waiters = w.waiters[1:]
	}
}

// Meter is the receiver's half of flow control: it watches that the peer keeps to its grant, and says
// when to grant more. Safe for concurrent use, but see Next.
type Meter struct {
	mu      sync.Mutex
	size    uint64 // of the window; at least MaxRun
	granted uint64 // all three count from the begin of the session; done ≤ taken ≤ granted
	taken   uint64
	done    uint64
}

// NewMeter returns a Meter for a window of size bytes, at least MaxRun, which is also the first grant
// (Opened.Window).
func NewMeter(size uint64) *Meter {
	size = max(size, MaxRun)
	return &Meter{size: size, granted: size}
}

// Take counts a frame that arrived. A frame beyond the grant breaks the protocol and is not counted.
func (m *Meter) Take(cost int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if left := m.granted - m.taken; cost < 0 || uint64(cost) > left {
		return broken("frame of cost %d, where the window has %d left", cost, left)
	}
	m.taken += uint64(cost)
	return nil
}

// Done gives back what was taken, once the memory behind it is free. To give back more than was taken is
// a fault of the caller, and counts as all of it.
func (m *Meter) Done(cost int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = min(m.done+uint64(max(cost, 0)), m.taken)
}

// Next says whether a Window frame is worth its bytes now, and what it has to grant: after a quarter of
// the window came free, or at the latest when nothing is under way and the peer may be waiting for room
// for a run. Calls of Next, each with the Send of its frame, must not overlap: grants never go back.
func (m *Meter) Next() (granted uint64, send bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.done + m.size
	fresh := next - m.granted
	stuck := m.taken == m.done && m.granted-m.taken < MaxRun
	if fresh == 0 || fresh < m.size/4 && !stuck {
		return m.granted, false
	}
	m.granted = next
	return next, true
}
