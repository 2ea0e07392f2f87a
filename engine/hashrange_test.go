package engine

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// sparseContent is a device in memory that knows its holes by the page, and notes what is read.
type sparseContent struct {
	bytes []byte
	fails bool // to tell holes
	read  []bool
}

func (s *sparseContent) page(p int) []byte {
	return s.bytes[p*pageSize : min((p+1)*pageSize, len(s.bytes))]
}

func (s *sparseContent) NextData(off int64) (blockdev.Extent, error) {
	if s.fails {
		return blockdev.Extent{}, errors.New("it cannot tell")
	}
	size := int64(len(s.bytes))
	first := int(off / pageSize)
	for first < len(s.read) && blockdev.IsZero(s.page(first)) {
		first++
	}
	end := first
	for end < len(s.read) && !blockdev.IsZero(s.page(end)) {
		end++
	}
	lo, hi := min(max(int64(first)*pageSize, off), size), min(int64(end)*pageSize, size)
	return blockdev.Extent{Offset: lo, Length: max(hi-lo, 0)}, nil
}

func (s *sparseContent) ReadAt(b []byte, off int64) error {
	copy(b, s.bytes[off:][:len(b)])
	for p := off / pageSize; p*pageSize < off+int64(len(b)); p++ {
		s.read[p] = true
	}
	return nil
}

// Whatever is a hole, the hashes are those of the content, in blocks and in pages, also at the volume's short end.
func TestHashRange(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		size := 1 + rng.Int64N(3*mib)
		g := geometry{size: size, blockSize: pageSize << rng.IntN(6)}
		s := &sparseContent{bytes: make([]byte, size), fails: rng.IntN(8) == 0, read: make([]bool, pagesOf(size))}
		for p := 0; p < len(s.read); p += 1 + rng.IntN(100) {
			fill(rng, s.page(p))
		}
		first := g.down(rng.Int64N(size))
		r := blockdev.Extent{Offset: first, Length: g.up(first+1+rng.Int64N(size-first)) - first}
		got, err := g.hashRange(r, make([]byte, g.blockSize<<rng.IntN(4)), s.NextData, s.ReadAt)
		if err != nil {
			t.Fatal(err)
		}
		for i, off := 0, r.Offset; off < r.End(); i, off = i+1, off+g.blockSize {
			if got[i] != wire.Sum(s.bytes[off:g.blockEnd(off)]) {
				t.Fatalf("%+v, %+v: the block at %d has another hash", g, r, off)
			}
		}
	}
}

// Holes are not read, and a range of nothing but holes costs one question.
func TestHashRangeReadsNoHoles(t *testing.T) {
	g := geometry{size: 32 * mib, blockSize: DefaultBlockSize}
	s := &sparseContent{bytes: make([]byte, g.size), read: make([]bool, pagesOf(g.size))}
	fill(rand.New(rand.NewPCG(1, 2)), s.bytes[20*mib+pageSize:][:pageSize])
	questions, reads := 0, 0
	_, err := g.hashRange(blockdev.Extent{Length: g.size}, make([]byte, DefaultBlockSize), func(off int64) (blockdev.Extent, error) {
		questions++
		return s.NextData(off)
	}, func(b []byte, off int64) error {
		reads++
		return s.ReadAt(b, off)
	})
	if err != nil || questions != 2 || reads != 1 || !s.read[20*mib/pageSize] {
		t.Errorf("%d questions and %d reads: %v", questions, reads, err)
	}
	broken := errors.New("broken")
	if _, err := g.hashRange(blockdev.Extent{Length: g.size}, make([]byte, DefaultBlockSize), s.NextData, func([]byte, int64) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a read that fails: %v", err)
	}
}

// A slow scrub reads little at once, a fast one a whole chunk, and none less than a block.
func TestScrubPace(t *testing.T) {
	for _, c := range []struct{ rate, chunk int64 }{{0, 256 << 10}, {DefaultScrubRate, 256 << 10}, {1 << 40, mib}, {1, DefaultBlockSize}} {
		limit, chunk := ScrubOptions{Rate: c.rate}.pace(mib)
		x, err := newScrubbing(geometry{size: 8 * mib, blockSize: DefaultBlockSize}, chunk, limit, nil)
		if err != nil || int64(len(x.buf)) != c.chunk || int64(x.most) != c.chunk/DefaultBlockSize || int64(limit.Burst()) != c.chunk {
			t.Errorf("rate %d: reads %d bytes, %d blocks, burst %d, want %d: %v", c.rate, len(x.buf), x.most, limit.Burst(), c.chunk, err)
		}
	}
}
