package blockdev

import (
	"container/list"
	"context"
	"fmt"
	"math/bits"
	"sync"
	"unsafe"
)

// Pool hands out buffers for direct I/O within a limit in bytes.
//
// Buffers are aligned to Alignment and come in powers of two from 4 KiB; what counts against the limit is
// that size, of buffers handed out and of free ones kept for reuse alike. Free ones make room where
// another size is wanted.
//
// They are plain Go memory. Memory from mmap would be hidden from the race detector, and a use after Put
// would end the process instead of one test; the price is that the collector counts them, which a process
// that minds sets its memory limit for.
//
// All methods may be called from many goroutines at once.
type Pool struct {
	limit int64

	mu      sync.Mutex
	inUse   int64                 // bytes handed out, or granted to a waiter who has not run yet
	cached  int64                 // bytes in free
	free    [poolClasses][][]byte // by class, last in first out: what is warm in the cache is used again
	out     map[*byte]int64       // buffers handed out, by their first byte, and their sizes
	waiters list.List             // of *waiter, the oldest first
}

const (
	poolMinBits = 12
	poolClasses = 63 - poolMinBits
)

// waiter is a Get that waits for room.
type waiter struct {
	size    int64
	granted chan []byte // capacity 1; nil: the bytes are granted, the buffer is to be made
}

// NewPool makes a pool of at most limit bytes, rounded up to a multiple of 4 KiB.
func NewPool(limit int64) *Pool {
	return &Pool{limit: ceil(max(limit, Alignment), Alignment), out: map[*byte]int64{}}
}

// Get returns a buffer of length n, aligned to Alignment, with undefined content. It waits until there is
// room or ctx ends; who came first is served first, so that small requests cannot starve a large one. An
// n beyond the limit fails at once.
func (p *Pool) Get(ctx context.Context, n int) ([]byte, error) {
	size, err := p.size(n)
	if err != nil || n == 0 {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.waiters.Len() == 0 && p.inUse+size <= p.limit {
		b := p.grant(size)
		p.mu.Unlock()
		return p.deliver(b, size, n), nil
	}
	w := &waiter{size: size, granted: make(chan []byte, 1)}
	e := p.waiters.PushBack(w)
	p.mu.Unlock()

	select {
	case b := <-w.granted:
		return p.deliver(b, size, n), nil
	case <-ctx.Done():
		p.abandon(e, w)
		return nil, ctx.Err()
	}
}

// TryGet is Get for those who will not wait; ok is false where Get would.
func (p *Pool) TryGet(n int) (b []byte, ok bool) {
	size, err := p.size(n)
	if err != nil || n == 0 {
		return nil, err == nil
	}
	p.mu.Lock()
	if p.waiters.Len() > 0 || p.inUse+size > p.limit {
		p.mu.Unlock()
		return nil, false
	}
	b = p.grant(size)
	p.mu.Unlock()
	return p.deliver(b, size, n), true
}

// Put gives a buffer back. Any slice will do that starts where the buffer starts and has a capacity. A
// slice that is none of the pool's, or was given back already, is ignored; a slice from the middle of a
// buffer therefore leaves its bytes counted for ever.
func (p *Pool) Put(b []byte) {
	if cap(b) == 0 {
		return
	}
	first := unsafe.SliceData(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	size, ok := p.out[first]
	if !ok {
		return
	}
	delete(p.out, first)
	p.inUse -= size
	if c := class(size); size == 1<<(c+poolMinBits) {
		p.free[c] = append(p.free[c], unsafe.Slice(first, size))
		p.cached += size
	}
	p.serve()
}

// InUse is the number of bytes handed out, counted as the limit counts them.
func (p *Pool) InUse() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inUse
}

// Limit is what NewPool was given.
func (p *Pool) Limit() int64 { return p.limit }

// size is what a buffer of length n counts: the next power of two, or where that is beyond the limit and
// n is not, just the pages.
func (p *Pool) size(n int) (int64, error) {
	if n < 0 || int64(n) > p.limit {
		return 0, fmt.Errorf("a buffer of %d bytes is beyond the pool's limit of %d", n, p.limit)
	}
	size := int64(1) << (class(int64(n)) + poolMinBits)
	if size > p.limit {
		size = ceil(int64(n), Alignment)
	}
	return size, nil
}

// class is the number of the smallest power of two that holds n, counted from 4 KiB.
func class(n int64) int {
	return max(0, bits.Len64(uint64(max(n, 1)-1))-poolMinBits)
}

// grant takes size bytes, which are free, and a cached buffer if there is one; otherwise it returns nil.
// It keeps inUse + cached within the limit. Under mu.
func (p *Pool) grant(size int64) []byte {
	p.inUse += size
	c := class(size)
	if n := len(p.free[c]); n > 0 && size == 1<<(c+poolMinBits) {
		b := p.free[c][n-1]
		p.free[c][n-1] = nil
		p.free[c] = p.free[c][:n-1]
		p.cached -= size
		return b
	}
	for c := poolClasses - 1; p.inUse+p.cached > p.limit; {
		n := len(p.free[c])
		if n == 0 {
			c--
			continue
		}
		p.cached -= int64(len(p.free[c][n-1]))
		p.free[c][n-1] = nil
		p.free[c] = p.free[c][:n-1]
	}
	return nil
}

// serve grants to waiters, the oldest first, and stops at the first that does not fit. Under mu.
func (p *Pool) serve() {
	for e := p.waiters.Front(); e != nil; e = p.waiters.Front() {
		w := e.Value.(*waiter)
		if p.inUse+w.size > p.limit {
			return
		}
		p.waiters.Remove(e)
		w.granted <- p.grant(w.size)
	}
}

// abandon ends a wait. Bytes that were granted meanwhile go on to the next; and where the one who gave up
// stood first, others may fit now.
func (p *Pool) abandon(e *list.Element, w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case b := <-w.granted:
		p.inUse -= w.size
		if b != nil {
			c := class(w.size)
			p.free[c] = append(p.free[c], b)
			p.cached += w.size
		}
	default:
		p.waiters.Remove(e)
	}
	p.serve()
}

// deliver makes the buffer, if none was cached, and enters it as handed out.
func (p *Pool) deliver(b []byte, size int64, n int) []byte {
	if b == nil {
		b = alignedBytes(int(size))
	}
	p.mu.Lock()
	p.out[unsafe.SliceData(b)] = size
	p.mu.Unlock()
	return b[:n:n]
}

// alignedBytes makes a slice that is aligned to Alignment. The allocator aligns powers of two from 4 KiB
// anyway, but does not promise it.
func alignedBytes(n int) []byte {
	b := make([]byte, n)
	if n == 0 || uintptr(unsafe.Pointer(&b[0]))%Alignment == 0 {
		return b
	}
	b = make([]byte, n+Alignment)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) % Alignment)
	return b[skip : skip+n : skip+n]
}
