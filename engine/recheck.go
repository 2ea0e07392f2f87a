package engine

import (
	"context"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// recheck compares a target's device with its own index below the point from which a run goes on. It is
// needed where the device may have been written to since that point was recorded: after a crash of the
// target nobody can tell our last writes from a stranger's. It runs beside the copying, needs neither
// source nor network, and what differs is shipped before the run can end.
//
// Below that point every block that is not zero has an entry, so no entry means zero. The entries are the
// only evidence of what should be there: they stay until the block was shipped anew, so that a run that
// is cut off in between leaves the next one as wise as it was.
type recheck struct {
	geometry
	store *targetStore
	end   int64
	pool  *blockdev.Pool

	done   chan struct{} // closed when doubts is complete
	doubts []blockdev.Extent
	told   bool // owned by duty: the doubts were sent
}

func newRecheck(g geometry, store *targetStore, end int64, pool *blockdev.Pool) *recheck {
	return &recheck{geometry: g, store: store, end: end, pool: pool, done: make(chan struct{})}
}

// routine walks [0, end) in pages of the index.
func (r *recheck) routine(ctx context.Context) error {
	span := r.blockSize * recheckBlocks
	entries := make([]journal.Entry, recheckBlocks)
	for pos := int64(0); pos < r.end; pos += span {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		end := min(pos+span, r.end)
		n := int((end - pos + r.blockSize - 1) / r.blockSize)
		if err := r.page(ctx, pos, end, entries[:n]); err != nil {
			return err
		}
	}
	close(r.done)
	return nil
}

// page compares one page of the index. A stretch that is a hole of the device, without entries, is not
// read.
func (r *recheck) page(ctx context.Context, pos, end int64, entries []journal.Entry) error {
	if err := r.store.index.Get(uint64(pos/r.blockSize), entries); err != nil {
		return r.store.indexError("read index", err)
	}
	known := slices.ContainsFunc(entries, func(e journal.Entry) bool { return e.Known })
	data, err := r.store.dev.NextData(pos)
	if err != nil {
		return deviceError("map target", "", err)
	}
	if !known && (data.Length == 0 || data.Offset >= end) {
		return nil
	}
	for off := pos; off < end; off += chunkSize {
		n := min(chunkSize, end-off)
		first := (off - pos) / r.blockSize
		count := (n + r.blockSize - 1) / r.blockSize
		if err := r.chunk(ctx, off, n, entries[first:first+count]); err != nil {
			return err
		}
	}
	return nil
}

func (r *recheck) chunk(ctx context.Context, off, n int64, entries []journal.Entry) error {
	buf, err := r.pool.Get(ctx, int(n))
	if err != nil {
		return err
	}
	defer r.pool.Put(buf)
	if _, err := r.store.dev.ReadAt(buf, off); err != nil {
		return deviceError("read target", "", err)
	}
	hashes := make([]wire.Hash, len(entries))
	r.hashBlocks(buf, hashes)
	for i, e := range entries {
		lo := int64(i) * r.blockSize
		hi := min(lo+r.blockSize, n)
		want := zeroBlockHash(hi - lo)
		if e.Known {
			want = e.Hash
		}
		if hashes[i] != want {
			r.doubt(off+lo, hi-lo)
		}
	}
	return nil
}

// doubt adds a block. Beyond maxDoubts the last extent grows over what lies between: shipping too much
// is an offer of hashes more, no harm.
func (r *recheck) doubt(off, n int64) {
	if last := len(r.doubts) - 1; last >= 0 && (r.doubts[last].End() == off || len(r.doubts) == maxDoubts) {
		r.doubts[last].Length = off + n - r.doubts[last].Offset
		return
	}
	r.doubts = append(r.doubts, blockdev.Extent{Offset: off, Length: n})
}

// result waits for the comparison, and returns what differs the first time that it is asked.
func (r *recheck) result(ctx context.Context) ([]blockdev.Extent, error) {
	select {
	case <-r.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if r.told {
		return nil, nil
	}
	r.told = true
	return r.doubts, nil
}

// clean tells whether the comparison came to its end and found nothing, so that the recorded position
// may be vouched for.
func (r *recheck) clean() bool {
	select {
	case <-r.done:
		return len(r.doubts) == 0
	default:
		return false
	}
}
