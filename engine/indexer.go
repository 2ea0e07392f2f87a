package engine

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/wire"
)

// The index of a primary is kept up like one more mirror: it has a page set of its own, needs(index), which
// survives crashes as a mirror's does. A block that no page of needs(index) touches has a valid entry or
// none; an entry of any other block counts for nothing, whatever it holds.
//
// indexer reads what was written, at a low rate and not before it came to rest, and notes the hashes. It
// serves only comparison: correctness never waits for it.
type indexer struct {
	p     *primary
	sets  *track.Sets
	index *mirrorIndex
	limit *rate.Limiter
	buf   []byte
}

const (
	indexRate  = 32 << 20 // bytes read a second
	indexEvery = 10 * time.Second
	indexSync  = 64 << 20 // bytes between two syncs of the index
)

func newIndexer(p *primary, index *mirrorIndex) *indexer {
	x := &indexer{p: p, index: index, limit: p.limiter(indexRate), buf: make([]byte, p.blockSize)}
	x.sets = p.tracker.AddConsumer(indexName, track.NewCapture(track.CaptureConfig{Pages: p.tracker.Pages()}))
	return x
}

// routine makes a pass over what was written, from time to time.
func (x *indexer) routine(ctx context.Context) {
	tick := time.NewTicker(indexEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := x.duePass(ctx); err != nil && ctx.Err() == nil {
			x.p.log(fmt.Sprintf("index: %v", err)) // nothing rests on it; the next pass tries again
		}
	}
}

// duePass makes a pass, if there is anything to do and it may be done: not before a checkpoint holds what a
// comparison has found. An entry of what somebody else wrote would make the comparison of the next process, which
// a crash before that checkpoint brings about, find nothing.
func (x *indexer) duePass(ctx context.Context) error {
	if n := x.p.tracker.Counts(x.sets); n.Open+n.Waiting+n.Todo == 0 || x.p.unproven() || x.p.proven() {
		return nil
	}
	return x.pass(ctx)
}

// limiter is for what reads the device beside clients. In steps nothing waits for a clock.
func (p *primary) limiter(bytesPerSecond rate.Limit) *rate.Limiter {
	if p.wait != nil {
		bytesPerSecond = rate.Inf
	}
	return rate.NewLimiter(bytesPerSecond, MaxBlockSize)
}

// pass indexes everything that was written before it began. A block that is written meanwhile is in the
// open set again, so that what is noted for it counts for nothing.
func (x *indexer) pass(ctx context.Context) error {
	t := x.p.tracker
	t.CutStep(x.sets.Bulk())
	defer t.BulkLost(x.sets) // what is not known to be durable is to be done again
	var noted int64
	for {
		c, ok := t.ClaimTodo(x.sets, uint64(x.p.blockSize/pageSize))
		if !ok {
			return x.sync()
		}
		n, err := x.note(ctx, c)
		t.Release(x.sets, c)
		if err != nil {
			return err
		}
		if noted += n; noted >= cmp.Or(x.p.sizes.IndexSync, indexSync) {
			if err := x.sync(); err != nil {
				return err
			}
			noted = 0
		}
	}
}

// sync makes what was noted durable; then those blocks have left needs(index), unless they were written.
func (x *indexer) sync() error {
	t := x.p.tracker
	if !t.BulkFlush(x.sets) {
		return nil
	}
	if err := x.index.sync(); err != nil {
		return err
	}
	t.BulkFlushed(x.sets)
	return nil
}

// note hashes the block in which a claim begins.
func (x *indexer) note(ctx context.Context, c track.Claim) (int64, error) {
	g := geometry{size: x.p.size, blockSize: x.p.blockSize}
	off := int64(c.First) * pageSize
	off -= off % g.blockSize
	n := g.blockEnd(off) - off
	first := uint64(off) / pageSize
	run := track.Run{First: c.First, Count: min(c.Count, pagesOf(off+n)-c.First)}
	defer x.p.tracker.Read(x.sets, c, run)
	if x.spoilt(off, n) {
		return 0, x.index.forget(off, n)
	}
	if data, err := x.p.path.NextData(off); err == nil && (data.Length == 0 || data.Offset >= off+n) {
		return 0, x.index.forget(off, n) // a hole: zeroes are cheaper to find than to note
	}
	if err := x.limit.WaitN(ctx, int(n)); err != nil {
		return 0, err
	}
	if err := x.p.path.ReadRange(first, pagesOf(off+n)-first, x.buf); err != nil {
		return 0, x.index.forget(off, n)
	}
	return n, x.index.learn(off, []wire.Hash{wire.Sum(x.buf[:n])})
}

// restore gives needs(index) back: after a clean stop what it was, after any other also what was hot.
func (x *indexer) restore(needs, hot *blockdev.PageSet) {
	t := x.p.tracker
	if needs == nil {
		t.Dirty(x.sets, 0, t.Pages())
		return
	}
	for _, set := range []*blockdev.PageSet{needs, hot} {
		for first, n, ok := set.NextSet(0); ok; first, n, ok = set.NextSet(first + n) {
			t.Dirty(x.sets, first, n)
		}
	}
}
