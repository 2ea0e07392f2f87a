package engine

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// comparison finds out what somebody wrote to a primary's device behind our back, with the device's own
// index and without the network. Blocks without a valid entry are in doubt for every mirror from the start;
// the others are read here, one after the other, while clients and cuts go on, and a block that differs, by
// a foreign write or by one of a client since, is dirty as a whole. Until it is done the indexer rests, since
// an entry of what is there now would hide what was written before; every Commit says `unproven`, and so does
// the journal: a restart begins anew.
type comparison struct {
	p      *primary
	reason string
	blocks *blockdev.PageSet // numbers of blocks with a valid entry
	next   uint64            // block to look at, of routine
	buf    []byte
	limit  *rate.Limiter

	done   atomic.Int64 // bytes compared
	differ atomic.Int64 // blocks
	over   atomic.Bool
}

// compareRate is what the comparison reads a second: it is short of what a disk does, so that clients
// hardly notice.
const compareRate = 512 << 20

// newComparison sorts the blocks: those with a valid entry are to be compared, all others are in doubt.
func newComparison(p *primary, reason string, needs, hot *blockdev.PageSet) (*comparison, error) {
	perBlock := uint64(p.blockSize / pageSize)
	blocks := (p.tracker.Pages() + perBlock - 1) / perBlock
	c := &comparison{p: p, reason: reason, blocks: blockdev.NewPageSet(blocks), limit: p.limiter(compareRate), buf: make([]byte, p.blockSize)}
	doubt := blockdev.NewPageSet(p.tracker.Pages())
	if needs != nil {
		entries := make([]journal.Entry, recheckBlocks)
		for b := uint64(0); b < blocks; b += recheckBlocks {
			part := entries[:min(recheckBlocks, blocks-b)]
			if err := p.index.index.lookUp(int64(b)*p.blockSize, part); err != nil {
				return nil, err
			}
			for i := range part {
				if part[i].Known {
					c.blocks.Add(b+uint64(i), 1)
				}
			}
		}
		for _, set := range []*blockdev.PageSet{needs, hot} {
			for first, n, ok := set.NextSet(0); ok; first, n, ok = set.NextSet(first + n) {
				end := (first + n - 1) / perBlock
				c.blocks.Remove(first/perBlock, end-first/perBlock+1)
			}
		}
	}
	for b, n, ok := uint64(0), uint64(0), true; ok; {
		first := b + n
		if b, n, ok = c.blocks.NextSet(first); !ok {
			b = blocks
		}
		if lo := first * perBlock; b > first {
			doubt.Add(lo, min(b*perBlock, doubt.Len())-lo)
		}
	}
	for _, s := range p.shippers() {
		p.tracker.Doubt(s.sets, doubt)
	}
	return c, nil
}

func (c *comparison) finished() bool { return c.over.Load() }

// routine compares until all is done, and then notes it.
func (c *comparison) routine(ctx context.Context) {
	for more, err := true, error(nil); more; {
		if more, err = c.step(ctx); err != nil && ctx.Err() == nil {
			c.p.log(fmt.Sprintf("comparison with the index: %v", err))
		}
	}
}

// step compares the next block. more: there may be others. With an error there are none.
func (c *comparison) step(ctx context.Context) (more bool, err error) {
	b, _, ok := c.blocks.NextRun(c.next, 1)
	if !ok {
		c.over.Store(true) // the next checkpoint notes it, with what was found
		c.p.log(fmt.Sprintf("the device was compared with its index: %d blocks differ", c.differ.Load()))
		return false, nil
	}
	c.next = b + 1
	err = c.block(ctx, b)
	return err == nil, err
}

// block compares one.
func (c *comparison) block(ctx context.Context, b uint64) error {
	g := geometry{size: c.p.size, blockSize: c.p.blockSize}
	off := int64(b) * g.blockSize
	n := g.blockEnd(off) - off
	if err := c.limit.WaitN(ctx, int(n)); err != nil {
		return err
	}
	var entry [1]journal.Entry
	if err := c.p.index.index.lookUp(off, entry[:]); err != nil {
		return err
	}
	first := uint64(off) / pageSize
	count := pagesOf(off+n) - first
	err := c.p.path.ReadRange(first, count, c.buf)
	if err != nil || !entry[0].Known || wire.Sum(c.buf[:n]) != entry[0].Hash {
		c.differ.Add(1)
		for _, s := range c.p.shippers() {
			c.p.tracker.Dirty(s.sets, first, count)
		}
		c.p.tracker.Dirty(c.p.index.sets, first, count)
	}
	c.done.Add(n)
	return nil
}
