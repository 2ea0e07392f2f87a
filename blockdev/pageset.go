package blockdev

import (
	"fmt"
	"math"
)

// PageSet is a set of page numbers in [0, Len).
//
// It is cut into chunks of 65,536 pages (256 MiB of a volume), each kept in the smallest of four forms:
// nothing, everything, a short sorted list, or a bitmap of 8 KiB. So a set of 2^28 pages (1 TiB) takes
// 32 KiB while it is empty or full, a few bytes a page while it is sparse, and never more than 32.3 MiB;
// operations on ranges cost per chunk, not per page.
//
// A PageSet is not safe for concurrent use. Page numbers outside [0, Len) are a mistake of the caller and
// panic, as an index outside a slice does: to drop them silently would be to lose a write.
type PageSet struct {
	n      uint64 // fixed
	count  uint64
	chunks []*chunk // nil: empty; fullChunk: full; no other empty or full chunk exists
}

// NewPageSet makes an empty set of pages in [0, n).
func NewPageSet(n uint64) *PageSet {
	return &PageSet{n: n, chunks: make([]*chunk, (n+chunkPages-1)/chunkPages)}
}

// Len is the number of pages that the set could hold.
func (s *PageSet) Len() uint64 { return s.n }

// Count is the number of pages in the set. It costs nothing.
func (s *PageSet) Count() uint64 { return s.count }

// Contains reports whether a page is in the set.
func (s *PageSet) Contains(page uint64) bool {
	s.checkRange(page, 1)
	c := s.chunks[page/chunkPages]
	return c != nil && c.contains(int(page%chunkPages))
}

// Add puts count pages from first on into the set, and returns how many were not in it before.
func (s *PageSet) Add(first, count uint64) (added uint64) {
	s.eachChunk(first, count, func(i uint64, lo, hi int) {
		before := s.countOf(i)
		if size := s.sizeOf(i); before == size {
			return
		} else if hi-lo == size {
			s.chunks[i] = fullChunk
		} else {
			if s.chunks[i] == nil {
				s.chunks[i] = &chunk{}
			}
			s.chunks[i].add(lo, hi)
			s.settle(i)
		}
		added += uint64(s.countOf(i) - before)
	})
	s.count += added
	return added
}

// Remove takes count pages from first on out of the set, and returns how many were in it.
func (s *PageSet) Remove(first, count uint64) (removed uint64) {
	s.eachChunk(first, count, func(i uint64, lo, hi int) {
		before := s.countOf(i)
		if before == 0 {
			return
		} else if hi-lo == s.sizeOf(i) {
			s.chunks[i] = nil
		} else {
			s.own(i).remove(lo, hi)
			s.settle(i)
		}
		removed += uint64(before - s.countOf(i))
	})
	s.count -= removed
	return removed
}

// NextSet returns the first run of pages in the set at or after from, as long as it goes. ok is false
// where there is none.
func (s *PageSet) NextSet(from uint64) (first, count uint64, ok bool) {
	return s.NextRun(from, math.MaxUint64)
}

// NextRun is NextSet for a run of at most limit pages, for walking a long run in steps without looking for
// its end in each. from may be anything up to Len, and beyond it too.
func (s *PageSet) NextRun(from, limit uint64) (first, count uint64, ok bool) {
	first, ok = s.nextSet(from)
	if !ok || limit == 0 {
		return 0, 0, false
	}
	end := s.n
	if limit < s.n-first {
		end = first + limit
	}
	return first, s.nextClear(first, end) - first, true
}

// nextSet is the first page in the set at or after from.
func (s *PageSet) nextSet(from uint64) (page uint64, ok bool) {
	for ; from < s.n; from = (from/chunkPages + 1) * chunkPages {
		c := s.chunks[from/chunkPages]
		if c == fullChunk {
			return from, true
		}
		if c == nil {
			continue
		}
		if at := c.next(int(from%chunkPages), true); at < chunkPages {
			return from/chunkPages*chunkPages + uint64(at), true
		}
	}
	return 0, false
}

// nextClear is the first page at or after from that is not in the set, or end.
func (s *PageSet) nextClear(from, end uint64) uint64 {
	for ; from < end; from = (from/chunkPages + 1) * chunkPages {
		c := s.chunks[from/chunkPages]
		if c == fullChunk {
			continue
		}
		if c == nil {
			return from
		}
		if at := c.next(int(from%chunkPages), false); at < chunkPages {
			return min(end, from/chunkPages*chunkPages+uint64(at))
		}
	}
	return end
}

// Union puts all pages of other, a set of the same length, into s.
func (s *PageSet) Union(other *PageSet) {
	s.checkSame(other)
	if s == other {
		return
	}
	for i, c := range other.chunks {
		before := s.countOf(uint64(i))
		switch {
		case c == nil || s.chunks[i] == fullChunk:
			continue
		case c == fullChunk:
			s.chunks[i] = fullChunk
		case s.chunks[i] == nil:
			s.chunks[i] = c.clone()
		default:
			s.chunks[i].union(c)
			s.settle(uint64(i))
		}
		s.count += uint64(s.countOf(uint64(i)) - before)
	}
}

// Subtract takes all pages of other, a set of the same length, out of s.
func (s *PageSet) Subtract(other *PageSet) {
	s.checkSame(other)
	if s == other {
		s.Clear()
		return
	}
	for i, c := range other.chunks {
		before := s.countOf(uint64(i))
		switch {
		case c == nil || s.chunks[i] == nil:
			continue
		case c == fullChunk:
			s.chunks[i] = nil
		default:
			s.own(uint64(i)).subtract(c)
			s.settle(uint64(i))
		}
		s.count -= uint64(before - s.countOf(uint64(i)))
	}
}

// Clone copies the set.
func (s *PageSet) Clone() *PageSet {
	o := &PageSet{n: s.n, count: s.count, chunks: make([]*chunk, len(s.chunks))}
	for i, c := range s.chunks {
		o.chunks[i] = c
		if c != nil && c != fullChunk {
			o.chunks[i] = c.clone()
		}
	}
	return o
}

// Clear empties the set and gives its memory back.
func (s *PageSet) Clear() {
	clear(s.chunks)
	s.count = 0
}

// Fill puts every page into the set and gives its memory back.
func (s *PageSet) Fill() {
	for i := range s.chunks {
		s.chunks[i] = fullChunk
	}
	s.count = s.n
}

// MemoryBytes is what the set takes on the heap.
func (s *PageSet) MemoryBytes() int64 {
	sum := pageSetBytes + 8*int64(cap(s.chunks))
	for _, c := range s.chunks {
		if c != nil && c != fullChunk {
			sum += c.memory()
		}
	}
	return sum
}

// eachChunk calls do for every chunk that a range touches, with the range within it.
func (s *PageSet) eachChunk(first, count uint64, do func(i uint64, lo, hi int)) {
	s.checkRange(first, count)
	for end := first + count; first < end; {
		i := first / chunkPages
		stop := min(end, (i+1)*chunkPages)
		do(i, int(first-i*chunkPages), int(stop-i*chunkPages))
		first = stop
	}
}

// sizeOf is the number of pages that chunk i could hold: the last one may be short.
func (s *PageSet) sizeOf(i uint64) int { return int(min(chunkPages, s.n-i*chunkPages)) }

func (s *PageSet) countOf(i uint64) int {
	switch c := s.chunks[i]; c {
	case nil:
		return 0
	case fullChunk:
		return s.sizeOf(i)
	default:
		return c.count
	}
}

// own returns chunk i, which is not empty, in a form that can be changed.
func (s *PageSet) own(i uint64) *chunk {
	if s.chunks[i] == fullChunk {
		s.chunks[i] = newFull(s.sizeOf(i))
	}
	return s.chunks[i]
}

// settle brings chunk i into its smallest form after a change.
func (s *PageSet) settle(i uint64) {
	switch c := s.chunks[i]; c.count {
	case 0:
		s.chunks[i] = nil
	case s.sizeOf(i):
		s.chunks[i] = fullChunk
	default:
		c.shrink()
	}
}

func (s *PageSet) checkRange(first, count uint64) {
	if first > s.n || count > s.n-first {
		panic(fmt.Sprintf("blockdev: pages %d+%d are outside a set of %d", first, count, s.n))
	}
}

func (s *PageSet) checkSame(other *PageSet) {
	if s.n != other.n {
		panic(fmt.Sprintf("blockdev: sets of %d and of %d pages", s.n, other.n))
	}
}
