package journaltest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/blkmirror/blkmirror/journal"
)

// maxBlocks bounds a MemIndex, which has room for every block up to the last one that it knows.
const maxBlocks = 1 << 24

// MemIndex is a journal.Index in memory, for one thread and for small volumes, which knows what of it is
// durable. What it promises of an unclean end is what the real one does for a volume whose entries fit into
// one of its pages (512 blocks): some prefix of the changes since the last Sync is there. That holds for a
// killed process too, which takes its cache along.
//
// A failure is sticky until Reset, as the real one's is.
type MemIndex struct {
	// Hook, where it is set, sees every call before it takes place ("get", "put", "delete", "sync", "reset",
	// "close") and may fail it. It may call Kill.
	Hook func(op string) error

	now, durable []journal.Entry
	changes      []indexChange // between the two
	closed, dead bool
	err          error // sticky
}

// indexChange sets the hashes of blocks from first on, or forgets count of them.
type indexChange struct {
	first, count uint64
	hashes       [][32]byte
}

// NewMemIndex returns an empty index.
func NewMemIndex() *MemIndex { return &MemIndex{} }

// Get is journal.Index's.
func (x *MemIndex) Get(first uint64, dst []journal.Entry) error {
	if err := x.enter("get"); err != nil {
		return err
	}
	n := 0
	if first < uint64(len(x.now)) {
		n = copy(dst, x.now[first:])
	}
	clear(dst[n:])
	return nil
}

// PutRun is journal.Index's.
func (x *MemIndex) PutRun(first uint64, hashes [][32]byte) error {
	if err := x.enter("put"); err != nil {
		return err
	}
	if first > maxBlocks || len(hashes) > maxBlocks {
		return x.fail(fmt.Errorf("block %d+%d is beyond what a MemIndex is for", first, len(hashes)))
	}
	if len(hashes) > 0 {
		x.change(indexChange{first, uint64(len(hashes)), slices.Clone(hashes)})
	}
	return nil
}

// Delete is journal.Index's: count may go beyond any volume.
func (x *MemIndex) Delete(first, count uint64) error {
	if err := x.enter("delete"); err != nil {
		return err
	}
	if first < uint64(len(x.now)) && count > 0 {
		x.change(indexChange{first, min(count, uint64(len(x.now))-first), nil})
	}
	return nil
}

// Sync is journal.Index's.
func (x *MemIndex) Sync() error {
	if err := x.enter("sync"); err != nil {
		return err
	}
	x.settle()
	return nil
}

// Reset is journal.Index's: it forgets everything at once and for good, and failures too.
func (x *MemIndex) Reset() error {
	if x.err != nil && !x.closed {
		x.err = nil
	}
	if err := x.enter("reset"); err != nil {
		return err
	}
	x.now, x.durable, x.changes = nil, nil, nil
	return nil
}

// Close is journal.Index's: it makes everything durable. What comes of the index is open again.
func (x *MemIndex) Close() error {
	if x.closed {
		return nil
	}
	err := x.enter("close")
	if err == nil {
		x.settle()
	}
	x.closed = x.closed || !x.dead
	return err
}

func (x *MemIndex) enter(op string) error {
	if err := x.ready(); err != nil || x.Hook == nil {
		return err
	}
	hooked := x.Hook(op)
	if err := x.ready(); err != nil || hooked == nil {
		return err
	}
	return x.fail(fmt.Errorf("%s index: injected: %w", op, hooked))
}

func (x *MemIndex) ready() error {
	switch {
	case x.dead:
		return ErrDead
	case x.closed:
		return fmt.Errorf("index %w", journal.ErrClosed)
	}
	return x.err
}

func (x *MemIndex) fail(err error) error {
	x.err = err
	return err
}

func (x *MemIndex) change(c indexChange) {
	x.now = c.apply(x.now)
	x.changes = append(x.changes, c)
}

func (c indexChange) apply(to []journal.Entry) []journal.Entry {
	if end := int(c.first + c.count); end > len(to) {
		to = append(to, make([]journal.Entry, end-len(to))...)
	}
	if c.hashes == nil {
		clear(to[c.first : c.first+c.count])
	}
	for i, h := range c.hashes {
		to[int(c.first)+i] = journal.Entry{Known: true, Hash: h}
	}
	return to
}

func (x *MemIndex) settle() {
	if len(x.changes) == 0 {
		return
	}
	x.durable = append(x.durable[:0], x.now...)
	clear(x.changes)
	x.changes = x.changes[:0]
}

// Known is what Get would tell of a block, also of a dead or closed index.
func (x *MemIndex) Known(block uint64) (hash [32]byte, ok bool) {
	if block >= uint64(len(x.now)) {
		return hash, false
	}
	e := x.now[block]
	return e.Hash, e.Known
}

// Blocks is the number of the first block of which and behind which nothing is known.
func (x *MemIndex) Blocks() uint64 { return uint64(len(x.now)) }

// Kill ends the process: every later call fails with ErrDead.
func (x *MemIndex) Kill() { x.dead = true }

// Unsynced is the number of changes that are not durable.
func (x *MemIndex) Unsynced() int { return len(x.changes) }

// Keep is the index after an end that left the first n of Unsynced.
func (x *MemIndex) Keep(n int) *MemIndex {
	left := slices.Clone(x.durable)
	for _, c := range x.changes[:n] {
		left = c.apply(left)
	}
	return &MemIndex{now: left, durable: slices.Clone(left)}
}

// PowerCut is the index as a power cut, or a kill, at this moment may leave it: with a prefix of the changes
// since the last Sync.
func (x *MemIndex) PowerCut(rng *rand.Rand) *MemIndex {
	n := len(x.changes)
	switch rng.IntN(4) { // the two extremes are likelier than chance would have it
	case 0:
		n = 0
	case 1, 2:
		n = rng.IntN(n + 1)
	}
	return x.Keep(n)
}

// Killed is the index after a kill by which nothing was lost. What is not synced may still be lost later.
func (x *MemIndex) Killed() *MemIndex {
	return &MemIndex{now: slices.Clone(x.now), durable: slices.Clone(x.durable), changes: slices.Clone(x.changes)}
}

// Clone is a snapshot: what is known now, durable.
func (x *MemIndex) Clone() *MemIndex {
	return &MemIndex{now: slices.Clone(x.now), durable: slices.Clone(x.now)}
}
