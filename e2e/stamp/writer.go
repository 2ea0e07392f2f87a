package stamp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Load says where to write, and how. Network is "unix" or "tcp", where the Address has an NBD server, or
// "file", where it is a path.
type Load struct {
	Network, Address, Export string

	Depth    int           // requests under way at once; 0: 8
	Longest  int64         // pages of the longest request; 0: 32
	Seed     uint64        // of what is written where
	Pause    time.Duration // of each worker between two requests; 0: none
	From, To int64         // pages that are written to; 0, 0: all
	NoTrim   bool          // leave out TRIM
	Most     int           // writes in the history from which on none begins, but for those that are beginning; 0: no end
}

// Writer keeps writing through connections that come and go. An error that is not the end of a connection
// or an answer of the server is a finding, and ends it.
type Writer struct {
	Load
	h *History

	// Errors counts requests that the server answered with an error, Lost those without a reply,
	// Reconnects the connections after the first.
	Errors, Lost, Reconnects atomic.Int64

	cancel context.CancelCauseFunc
	ctx    context.Context
	all    sync.WaitGroup

	mu       sync.Mutex
	change   *sync.Cond
	client   Disk
	active   int   // workers with a request under way
	quiet    int   // who wants that there are none
	unknown  []Seq // requests of unknown fate, their pages still reserved
	failures error
}

// NewWriter prepares a writer.
func NewWriter(h *History, l Load) *Writer {
	if l.Depth == 0 {
		l.Depth = 8
	}
	if l.Longest == 0 {
		l.Longest = 32
	}
	if l.To == 0 {
		l.To = h.Pages()
	}
	w := &Writer{Load: l, h: h, unknown: h.open()}
	for _, seq := range w.unknown { // of a history that is gone on with
		h.reserve(h.writes[seq-1].Page, h.writes[seq-1].Pages)
	}
	w.change = sync.NewCond(&w.mu)
	w.ctx, w.cancel = context.WithCancelCause(context.Background())
	return w
}

// Start begins. It connects by itself, as soon as there is something to connect to.
func (w *Writer) Start() {
	w.all.Go(w.connect)
	for i := range w.Depth {
		w.all.Go(func() { w.work(rand.New(rand.NewPCG(w.Seed, uint64(i)))) })
	}
}

// Stop ends the writer when no request is under way, and returns what it found wrong. Pages of unknown fate
// stay so.
func (w *Writer) Stop() error {
	w.cancel(nil)
	w.mu.Lock()
	w.change.Broadcast()
	for w.active > 0 {
		w.change.Wait()
	}
	c := w.client
	w.client = nil
	w.mu.Unlock()
	if c != nil {
		c.Close()
	}
	w.all.Wait()
	return w.failures
}

// Err is what was found wrong so far.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failures
}

// Quiesce lets no request begin and waits until none is under way and none of unknown fate, until
// Resume. It fails when ctx ends first, and then needs no Resume.
func (w *Writer) Quiesce(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.change.Broadcast()
	})
	defer stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quiet++
	for w.active > 0 || len(w.unknown) > 0 {
		if err := context.Cause(ctx); err != nil || w.failures != nil {
			w.quiet--
			w.change.Broadcast()
			return errors.Join(err, w.failures)
		}
		w.change.Wait()
	}
	return nil
}

// Hold lets no request begin and waits until none is under way, until Resume. Requests of unknown fate are
// looked up meanwhile, as soon as there is a connection.
func (w *Writer) Hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quiet++
	for w.active > 0 {
		w.change.Wait()
	}
}

// Resume lets the workers go on.
func (w *Writer) Resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quiet--
	w.change.Broadcast()
}

// connect keeps a connection. A new one is handed out only when the fate of all requests of the old one
// has been looked up on it, while no one writes.
func (w *Writer) connect() {
	for connected := false; ; {
		w.mu.Lock()
		for w.ctx.Err() == nil && (w.client != nil || w.active > 0) {
			w.change.Wait()
		}
		w.mu.Unlock()
		if w.ctx.Err() != nil {
			return
		}
		c, err := Open(w.Load)
		if err == nil {
			if err = w.settle(c); err != nil {
				c.Close()
			}
		}
		if err != nil {
			// Whoever serves the export is down: nothing tells when it is back.
			select {
			case <-w.ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		if connected {
			w.Reconnects.Add(1)
		}
		connected = true
		w.mu.Lock()
		w.client = c
		w.change.Broadcast()
		w.mu.Unlock()
	}
}

// settle looks up what became of the requests without a reply. Nobody writes meanwhile.
func (w *Writer) settle(c Disk) error {
	for len(w.unknown) > 0 {
		if err := w.lookUp(c, w.unknown[0]); err != nil {
			return err
		}
		w.mu.Lock()
		w.unknown = w.unknown[1:]
		w.change.Broadcast()
		w.mu.Unlock()
	}
	return nil
}

// lookUp reads the pages of a request of unknown fate and releases them.
func (w *Writer) lookUp(c Disk, seq Seq) error {
	w.h.mu.Lock()
	r := w.h.writes[seq-1]
	w.h.mu.Unlock()
	b := make([]byte, r.Pages*PageSize)
	if err := c.Read(b, r.Page*PageSize); err != nil {
		return err
	}
	if err := w.h.settle(seq, b); err != nil {
		w.found(err)
		return err
	}
	w.h.release(r.Page, r.Pages)
	return nil
}

// found notes something that is wrong, and ends the writer.
func (w *Writer) found(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures = errors.Join(w.failures, err)
	w.cancel(err)
	w.change.Broadcast()
}

// enter waits for its turn. It returns nil when the writer ends.
func (w *Writer) enter() Disk {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.ctx.Err() == nil && (w.client == nil || w.quiet > 0 || w.Most > 0 && w.h.Writes() >= w.Most) {
		w.change.Wait()
	}
	if w.ctx.Err() != nil {
		return nil
	}
	w.active++
	return w.client
}

// leave ends a turn.
func (w *Writer) leave(c Disk, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if errors.Is(err, ErrLost) {
		w.dropLocked(c)
	}
	w.active--
	w.change.Broadcast()
}

// dropLocked gives up a connection, if it is the present one.
func (w *Writer) dropLocked(c Disk) {
	if w.client == c {
		w.client = nil
	}
	w.change.Broadcast()
}

func (w *Writer) work(rng *rand.Rand) {
	buf := make([]byte, w.Longest*PageSize)
	for {
		c := w.enter()
		if c == nil {
			return
		}
		err := w.request(c, rng, buf)
		w.leave(c, err)
		if code := Errno(0); errors.As(err, &code) {
			w.Errors.Add(1)
			select { // a server that refuses all would be asked in a busy loop
			case <-w.ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		} else if w.Pause > 0 {
			select {
			case <-w.ctx.Done():
			case <-time.After(w.Pause):
			}
		}
	}
}

// request does one thing. Half of the writes go to a sixteenth of the pages, so that pages of a cut that is
// under way are written again.
func (w *Writer) request(c Disk, rng *rand.Rand, buf []byte) error {
	kind := rng.IntN(100)
	if kind < 2 {
		return w.flush(c)
	}
	span := w.To - w.From
	if rng.IntN(2) == 0 {
		span = max(span/16, min(span, w.Longest))
	}
	n := int64(1)
	if rng.IntN(3) == 0 {
		n += rng.Int64N(min(w.Longest, span))
	}
	page := w.From + rng.Int64N(span-n+1)
	if !w.h.reserve(page, n) {
		return nil // somebody else is there: try elsewhere
	}
	switch {
	case kind < 12:
		return w.read(c, page, n, buf)
	case kind < 18:
		return w.alter(c, page, n, nil, func() error { return c.Zero(page*PageSize, int(n)*PageSize, uint16(kind%2)*NoHole) })
	case kind < 20 && !w.NoTrim:
		return w.trim(c, page, n)
	}
	b := buf[:n*PageSize]
	return w.alter(c, page, n, b, func() error { return c.Write(b, page*PageSize, uint16(kind%20/19)*FUA) })
}

// alter records a request that changes pages, does it, and records how it ended.
func (w *Writer) alter(c Disk, page, n int64, buf []byte, do func() error) error {
	seq := w.h.issue(page, n, buf)
	err := do()
	if err == nil {
		w.h.ack(seq)
		w.h.release(page, n)
		return nil
	}
	return w.doubt(c, seq, err)
}

// trim may leave zeroes or what was there: which, only a look can tell.
func (w *Writer) trim(c Disk, page, n int64) error {
	seq := w.h.trim(page, n)
	return w.doubt(c, seq, c.Trim(page*PageSize, int(n)*PageSize))
}

// doubt looks up what became of a request, at once, or where that fails on the next connection.
func (w *Writer) doubt(c Disk, seq Seq, err error) error {
	if errors.Is(err, ErrLost) {
		w.Lost.Add(1)
	} else if look := w.lookUp(c, seq); look == nil || w.ctx.Err() != nil {
		return err
	} else {
		err = errors.Join(err, look)
	}
	// Unknown requests are looked up on a new connection, while nobody writes.
	c.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unknown = append(w.unknown, seq)
	w.dropLocked(c)
	return err
}

// read expects every page as it was last written.
func (w *Writer) read(c Disk, page, n int64, buf []byte) error {
	defer w.h.release(page, n)
	b := buf[:n*PageSize]
	if err := c.Read(b, page*PageSize); err != nil {
		return err
	}
	for i := range n {
		if err := w.h.expect(page+i, b[i*PageSize:(i+1)*PageSize]); err != nil {
			w.found(fmt.Errorf("read from the export: %w", err))
		}
	}
	return nil
}

func (w *Writer) flush(c Disk) error {
	now := w.h.Now()
	err := c.Flush()
	if err == nil {
		w.h.flush(now)
	}
	return err
}

// Flush flushes, and returns an instant by which all was flushed. Where there is no connection it waits for
// one.
func (w *Writer) Flush() (Tick, error) {
	for {
		w.mu.Lock()
		for w.ctx.Err() == nil && w.client == nil {
			w.change.Wait()
		}
		c := w.client
		w.mu.Unlock()
		if w.ctx.Err() != nil {
			return 0, errors.Join(context.Cause(w.ctx), w.Err())
		}
		now := w.h.Now()
		err := c.Flush()
		if err == nil {
			w.h.flush(now)
		}
		if !errors.Is(err, ErrLost) {
			return now, err
		}
		w.mu.Lock()
		w.dropLocked(c)
		w.mu.Unlock()
	}
}
