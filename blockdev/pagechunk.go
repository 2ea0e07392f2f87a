package blockdev

import (
	"math/bits"
	"slices"
	"unsafe"
)

const (
	chunkPages = 1 << 16
	chunkWords = chunkPages / 64

	// A list of more than listMax pages becomes a bitmap, a bitmap of fewer than listMin a list again. The
	// distance keeps a chunk at the border from changing its form with every page. A list of listMax
	// takes a quarter of the bitmap, and moving half of it in memory costs tens of nanoseconds.
	listMax = 1024
	listMin = 512

	pageSetBytes = int64(unsafe.Sizeof(PageSet{}))
	chunkBytes   = int64(unsafe.Sizeof(chunk{}))
)

// chunk is a part of a PageSet that is neither empty nor full. Page numbers are relative to it.
type chunk struct {
	count int
	list  []uint16            // sorted; in use while words is nil
	words *[chunkWords]uint64 // page p is bit p%64 of word p/64
}

// fullChunk stands for all full chunks. It is only ever compared with.
var fullChunk = &chunk{count: chunkPages}

// contains is also asked of fullChunk.
func (c *chunk) contains(p int) bool {
	if c == fullChunk {
		return true
	}
	if c.words != nil {
		return c.words[p/64]>>(p%64)&1 != 0
	}
	_, found := slices.BinarySearch(c.list, uint16(p))
	return found
}

// newFull makes a bitmap of size pages, all set.
func newFull(size int) *chunk {
	c := &chunk{words: new([chunkWords]uint64)}
	c.add(0, size)
	return c
}

// add sets [lo, hi).
func (c *chunk) add(lo, hi int) {
	if c.words == nil {
		i, j := c.find(lo), c.find(hi)
		if c.count-(j-i)+(hi-lo) <= listMax {
			c.insert(i, j, lo, hi)
			return
		}
		c.toWords()
	}
	eachWord(lo, hi, func(w int, mask uint64) {
		c.count += bits.OnesCount64(mask &^ c.words[w])
		c.words[w] |= mask
	})
}

// insert replaces list[i:j] by all pages of [lo, hi).
func (c *chunk) insert(i, j, lo, hi int) {
	grow := (hi - lo) - (j - i)
	c.reserve(c.count + grow)
	c.list = c.list[:c.count+grow]
	copy(c.list[j+grow:], c.list[j:c.count])
	for p := lo; p < hi; p++ {
		c.list[i+p-lo] = uint16(p)
	}
	c.count += grow
}

// remove clears [lo, hi).
func (c *chunk) remove(lo, hi int) {
	if c.words == nil {
		i, j := c.find(lo), c.find(hi)
		c.list = append(c.list[:i], c.list[j:]...)
		c.count -= j - i
		return
	}
	eachWord(lo, hi, func(w int, mask uint64) {
		c.count -= bits.OnesCount64(mask & c.words[w])
		c.words[w] &^= mask
	})
}

// next is the first page at or after from that is set, or that is clear; chunkPages where there is none.
func (c *chunk) next(from int, set bool) int {
	if c.words == nil {
		return c.nextInList(from, set)
	}
	var flip uint64
	if !set {
		flip = ^uint64(0)
	}
	w := from / 64
	word := (c.words[w] ^ flip) >> (from % 64) << (from % 64)
	for word == 0 {
		if w++; w == chunkWords {
			return chunkPages
		}
		word = c.words[w] ^ flip
	}
	return w*64 + bits.TrailingZeros64(word)
}

func (c *chunk) nextInList(from int, set bool) int {
	i := c.find(from)
	if set {
		if i == len(c.list) {
			return chunkPages
		}
		return int(c.list[i])
	}
	for i < len(c.list) && int(c.list[i]) == from {
		i++
		from++
	}
	return from
}

// find is the index of the first page in the list at or after p, which may be chunkPages.
func (c *chunk) find(p int) int {
	if p >= chunkPages {
		return len(c.list)
	}
	i, _ := slices.BinarySearch(c.list, uint16(p))
	return i
}

// union sets all pages of o, which is neither empty nor full.
func (c *chunk) union(o *chunk) {
	if o.words == nil {
		for _, p := range o.list {
			c.add(int(p), int(p)+1)
		}
		return
	}
	c.toWords()
	for w, word := range o.words {
		c.count += bits.OnesCount64(word &^ c.words[w])
		c.words[w] |= word
	}
}

// subtract clears all pages of o, which is neither empty nor full.
func (c *chunk) subtract(o *chunk) {
	if c.words == nil {
		c.list = slices.DeleteFunc(c.list, func(p uint16) bool { return o.contains(int(p)) })
		c.count = len(c.list)
		return
	}
	if o.words == nil {
		for _, p := range o.list {
			c.remove(int(p), int(p)+1)
		}
		return
	}
	for w, word := range o.words {
		c.count -= bits.OnesCount64(word & c.words[w])
		c.words[w] &^= word
	}
}

// toWords makes a bitmap of the list.
func (c *chunk) toWords() {
	if c.words != nil {
		return
	}
	c.words = new([chunkWords]uint64)
	for _, p := range c.list {
		c.words[p/64] |= 1 << (p % 64)
	}
	c.list = nil
}

// shrink makes a list of a bitmap that has become sparse, and lets go of a list's unused room.
func (c *chunk) shrink() {
	if c.words == nil {
		if cap(c.list) > 16 && c.count < cap(c.list)/4 {
			c.list = append(make([]uint16, 0, cap(c.list)/2), c.list...)
		}
		return
	}
	if c.count >= listMin {
		return
	}
	words := c.words
	c.words, c.list = nil, make([]uint16, 0, listMin)
	for w, word := range words {
		for ; word != 0; word &= word - 1 {
			c.list = append(c.list, uint16(w*64+bits.TrailingZeros64(word)))
		}
	}
}

// reserve makes room for n pages in the list, growing by doubling.
func (c *chunk) reserve(n int) {
	if n <= cap(c.list) {
		return
	}
	room := max(4, cap(c.list))
	for room < n {
		room *= 2
	}
	c.list = append(make([]uint16, 0, room), c.list...)
}

func (c *chunk) clone() *chunk {
	o := &chunk{count: c.count}
	if c.words != nil {
		words := *c.words
		o.words = &words
		return o
	}
	o.list = slices.Clone(c.list)
	return o
}

func (c *chunk) memory() int64 {
	sum := chunkBytes + 2*int64(cap(c.list))
	if c.words != nil {
		sum += int64(unsafe.Sizeof(*c.words))
	}
	return sum
}

// eachWord calls do for every word that [lo, hi) touches, with the bits that it touches.
func eachWord(lo, hi int, do func(w int, mask uint64)) {
	for w := lo / 64; w*64 < hi; w++ {
		mask := ^uint64(0)
		if base := w * 64; lo > base {
			mask <<= lo - base
		}
		if over := (w+1)*64 - hi; over > 0 {
			mask &= ^uint64(0) >> over
		}
		do(w, mask)
	}
}
