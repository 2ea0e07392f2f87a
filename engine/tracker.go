package engine

import (
	"context"
	"sync"

	"github.com/blkmirror/blkmirror/wire"
)

// tracker tells how far a pass is confirmed without a gap. Pieces are begun in ascending order and are
// done in any order; the mark is the end of the longest prefix of done pieces. Safe for concurrent use.
type tracker struct {
	room chan struct{} // a token for each of pieces

	mu     sync.Mutex
	pieces []*piece // begun and not yet behind the mark, ascending
	mark   int64
	last   wire.Hash // of the block that ends at mark
}

func newTracker() *tracker { return &tracker{room: make(chan struct{}, maxPieces)} }

// piece is a range of the volume on its way. It is done when its worker has finished with it and every
// record that was shipped for it is acknowledged.
type piece struct {
	tracker *tracker
	end     int64

	// Guarded by tracker.mu.
	pending int       // records not acknowledged, plus one while the worker holds it
	last    wire.Hash // of the block that ends at end
}

// begin adds the range that ends at end; it starts where the one begun before ended. It waits while
// maxPieces are not behind the mark: one that hangs must not let the others pile up behind it.
func (t *tracker) begin(ctx context.Context, end int64) (*piece, error) {
	select {
	case t.room <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &piece{tracker: t, end: end, pending: 1}
	t.pieces = append(t.pieces, p)
	return p, nil
}

// hold adds n records that must be acknowledged before p is done.
func (p *piece) hold(n int) {
	p.tracker.mu.Lock()
	defer p.tracker.mu.Unlock()
	p.pending += n
}

// setLast notes the hash of the block that ends p. A retried block may bring another one.
func (p *piece) setLast(h wire.Hash) {
	p.tracker.mu.Lock()
	defer p.tracker.mu.Unlock()
	p.last = h
}

// release takes one hold away, and moves the mark over every done piece that it reaches.
func (p *piece) release() {
	t := p.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	p.pending--
	done := 0
	for done < len(t.pieces) && t.pieces[done].pending == 0 {
		t.mark, t.last = t.pieces[done].end, t.pieces[done].last
		t.pieces[done] = nil
		done++
		<-t.room
	}
	t.pieces = t.pieces[done:]
}

// confirmed returns the mark and the hash of the block that ends there.
func (t *tracker) confirmed() (int64, wire.Hash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mark, t.last
}
