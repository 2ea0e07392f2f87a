package engine

import (
	"context"
	"iter"
	"math/bits"
	"sync"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// geometry is what both halves agree on: the size of the volume and its blocks.
type geometry struct {
	size      int64
	blockSize int64
}

// blockEnd is the end of the block that begins at off: the last one of a volume may be shorter.
func (g geometry) blockEnd(off int64) int64 { return min(off+g.blockSize, g.size) }

// down and up round to block boundaries, up not beyond the volume.
func (g geometry) down(off int64) int64 { return off - off%g.blockSize }
func (g geometry) up(off int64) int64   { return min(g.down(off+g.blockSize-1), g.size) }

// covers tells whether [off, off+n) consists of whole blocks of the volume.
func (g geometry) covers(off, n int64) bool {
	return off >= 0 && n > 0 && off%g.blockSize == 0 && n <= g.size-off &&
		((off+n)%g.blockSize == 0 || off+n == g.size)
}

// span is a piece of work for the source: a hole, or data of at most chunkSize, in whole blocks.
type span struct {
	blockdev.Extent
	hole bool
}

// scan walks the extents of dev that lie in r and hands out spans in ascending order, without a gap:
// data cut at multiples of chunkSize, and the holes between them.
func (g geometry) scan(ctx context.Context, dev blockdev.Device, r blockdev.Extent, emit func(span) error) error {
	pos, end := g.down(r.Offset), g.up(min(r.End(), g.size))
	for pos < end {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		data, err := dev.NextData(pos)
		if err != nil {
			return err
		}
		first, last := end, end // no data: all the rest is a hole
		if data.Length > 0 {
			first, last = min(max(g.down(data.Offset), pos), end), min(g.up(data.End()), end)
		}
		if first > pos {
			if err := emit(span{blockdev.Extent{Offset: pos, Length: first - pos}, true}); err != nil {
				return err
			}
		}
		for pos = first; pos < last; {
			next := min(pos-pos%chunkSize+chunkSize, last)
			if err := emit(span{blockdev.Extent{Offset: pos, Length: next - pos}, false}); err != nil {
				return err
			}
			pos = next
		}
		pos = max(pos, last)
	}
	return nil
}

// stretches cuts [0, n) into the longest stretches [i, j) whose neighbours are all alike.
func stretches(n int, alike func(i, j int) bool) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for i := 0; i < n; {
			j := i + 1
			for j < n && alike(j-1, j) {
				j++
			}
			if !yield(i, j) {
				return
			}
			i = j
		}
	}
}

// hashBlocks hashes every block of buf into hashes, which has one element for each. Zero blocks, which are
// common, are recognised faster than they are hashed; the others are hashed two at a time.
func (g geometry) hashBlocks(buf []byte, hashes []wire.Hash) {
	pair := pairHasher{hashes: hashes}
	for i := range hashes {
		b := buf[int64(i)*g.blockSize:]
		b = b[:min(g.blockSize, int64(len(b)))]
		if blockdev.IsZero(b) {
			hashes[i] = zeroBlockHash(int64(len(b)))
		} else {
			pair.add(i, b)
		}
	}
	pair.flush()
}

// hashRange hashes every block of a range, whose content comes by way of buf. Blocks of a hole have the hash of
// zeroes, and are not read. data is NextData of the device: where it fails, all is read.
func (g geometry) hashRange(r blockdev.Extent, buf []byte, data func(off int64) (blockdev.Extent, error), read func(b []byte, off int64) error) ([]wire.Hash, error) {
	hashes := make([]wire.Hash, (r.Length+g.blockSize-1)/g.blockSize)
	step := max(1, len(buf)/int(g.blockSize))
	for i, known := 0, int64(0); i < len(hashes); {
		off := r.Offset + int64(i)*g.blockSize
		if off >= known {
			x, err := data(off)
			if err != nil {
				x = blockdev.Extent{Offset: off, Length: r.End() - off}
			}
			known = x.End()
			if n := g.hashHole(off, x.Offset, hashes[i:]); n > 0 {
				i += n
				continue
			}
		}
		j := min(i+step, len(hashes))
		b := buf[:min(int64(j-i)*g.blockSize, r.End()-off)]
		if err := read(b, off); err != nil {
			return nil, err
		}
		g.hashBlocks(b, hashes[i:j])
		i = j
	}
	return hashes, nil
}

// hashHole hashes the blocks from off on that end by a hole's end, and tells how many these are.
func (g geometry) hashHole(off, end int64, hashes []wire.Hash) (n int) {
	for ; n < len(hashes) && g.blockEnd(off) <= end; n++ {
		next := g.blockEnd(off)
		hashes[n] = zeroBlockHash(next - off)
		off = next
	}
	return n
}

// pairHasher hashes what it is given two at a time.
type pairHasher struct {
	hashes  []wire.Hash
	waiting []byte
	at      int // of waiting, in hashes
}

func (p *pairHasher) add(i int, b []byte) {
	if p.waiting == nil {
		p.waiting, p.at = b, i
		return
	}
	p.hashes[p.at], p.hashes[i] = wire.SumPair(p.waiting, b)
	p.waiting = nil
}

func (p *pairHasher) flush() {
	if p.waiting != nil {
		p.hashes[p.at] = wire.Sum(p.waiting)
		p.waiting = nil
	}
}

// zeroHashes holds the hashes of zero blocks by the logarithm of their size, made when first wanted.
var zeroHashes [32]struct {
	once sync.Once
	hash wire.Hash
}

// zeroBlockHash is the SHA-256 of n zero bytes, n at most MaxBlockSize.
func zeroBlockHash(n int64) wire.Hash {
	if n&(n-1) != 0 { // the last block of a volume
		return wire.Sum(make([]byte, n))
	}
	z := &zeroHashes[bits.TrailingZeros64(uint64(n))]
	z.once.Do(func() { z.hash = wire.Sum(make([]byte, n)) })
	return z.hash
}
