package blockdev_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/blkmirror/blkmirror/blockdev"
)

func TestPoolBuffers(t *testing.T) {
	p := blockdev.NewPool(64 << 20)
	for _, n := range []int{1, 512, 4096, 4097, 12288, 65536, 100_000, 1 << 20, 5<<20 + 1} {
		b, err := p.Get(t.Context(), n)
		if err != nil || len(b) != n {
			t.Fatalf("Get(%d): %d bytes, %v", n, len(b), err)
		}
		if uintptr(unsafe.Pointer(&b[0]))%blockdev.Alignment != 0 {
			t.Errorf("a buffer of %d bytes is not aligned", n)
		}
		if got := p.InUse(); got < int64(n) || got >= int64(max(2*n, 4097)) || got&(got-1) != 0 {
			t.Errorf("%d bytes count as %d", n, got)
		}
		p.Put(b[:1])
		if p.InUse() != 0 {
			t.Errorf("%d in use after the only Put", p.InUse())
		}
	}
	if b, err := p.Get(t.Context(), 0); len(b) != 0 || err != nil || p.InUse() != 0 {
		t.Errorf("Get(0): %v, %v, in use %d", b, err, p.InUse())
	}
}

func TestPoolLimit(t *testing.T) {
	p := blockdev.NewPool(5 << 20)
	for _, n := range []int{5<<20 + 1, -1} {
		if _, err := p.Get(t.Context(), n); err == nil {
			t.Errorf("Get(%d) of a pool of 5 MiB: no error", n)
		}
	}
	// The next power of two is beyond the limit, the request is not.
	b, err := p.Get(t.Context(), 5<<20)
	if err != nil || p.InUse() != 5<<20 {
		t.Fatalf("Get of the limit itself: %v, in use %d", err, p.InUse())
	}
	if _, ok := p.TryGet(1); ok {
		t.Error("TryGet gave a buffer beyond the limit")
	}
	p.Put(b)
	if _, ok := p.TryGet(1); !ok {
		t.Error("TryGet refused an empty pool")
	}
}

func TestPoolCachedCountsAndMakesRoom(t *testing.T) {
	p := blockdev.NewPool(1 << 20)
	var small [][]byte
	for range 256 {
		b, _ := p.TryGet(4096)
		small = append(small, b)
	}
	for _, b := range small {
		p.Put(b)
	}
	if p.InUse() != 0 || p.Footprint() != 1<<20 {
		t.Fatalf("in use %d, kept %d; want all of it kept", p.InUse(), p.Footprint())
	}
	b, ok := p.TryGet(1 << 20)
	if !ok || p.Footprint() != 1<<20 {
		t.Fatalf("a large buffer over cached small ones: %v, kept %d", ok, p.Footprint())
	}
	p.Put(b)
}

func TestPoolWrongPuts(t *testing.T) {
	p := blockdev.NewPool(1 << 20)
	b, _ := p.TryGet(8192)
	p.Put(nil)
	p.Put(make([]byte, 8192))
	p.Put(b[4096:])
	p.Put(b[:0])
	if p.InUse() != 0 {
		t.Fatalf("in use %d after Put of the empty slice at the start", p.InUse())
	}
	p.Put(b) // twice
	x, _ := p.TryGet(8192)
	y, _ := p.TryGet(8192)
	if &x[0] == &y[0] {
		t.Fatal("one buffer was given to two")
	}
	if p.InUse() != 16384 {
		t.Errorf("in use %d, want 16384", p.InUse())
	}
}

// A large request that came first is served before a small one that would fit at once.
func TestPoolIsFair(t *testing.T) {
	p := blockdev.NewPool(1 << 20)
	a, _ := p.TryGet(512 << 10)
	b, _ := p.TryGet(256 << 10)
	order := make(chan string, 2)
	get := func(name string, n int) {
		buf, err := p.Get(t.Context(), n)
		if err != nil {
			t.Error(err)
		}
		order <- name
		p.Put(buf)
	}
	go get("large", 1<<20)
	waitFor(func() bool { return p.Waiting() == 1 })
	go get("small", 4096)
	waitFor(func() bool { return p.Waiting() == 2 })
	if _, ok := p.TryGet(4096); ok {
		t.Error("TryGet overtook those who wait")
	}
	p.Put(a)
	if p.Waiting() != 2 {
		t.Error("somebody was served before the first in line")
	}
	p.Put(b)
	if first := <-order; first != "large" {
		t.Errorf("%s was served first", first)
	}
	<-order
}

// Who gives up at the head of the line lets the next pass.
func TestPoolCancelledHeadLetsOthersPass(t *testing.T) {
	p := blockdev.NewPool(1 << 20)
	a, _ := p.TryGet(512 << 10)
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp, served := make(chan error), make(chan error)
	go func() { _, err := p.Get(ctx, 1<<20); gaveUp <- err }()
	waitFor(func() bool { return p.Waiting() == 1 })
	go func() { _, err := p.Get(t.Context(), 4096); served <- err }()
	waitFor(func() bool { return p.Waiting() == 2 })
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Get: %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	p.Put(a)
	if p.InUse() != 4096 || p.Waiting() != 0 {
		t.Errorf("in use %d, waiting %d", p.InUse(), p.Waiting())
	}
}

// Buffers are never shared and never more than the limit, with cancellations at random moments.
func TestPoolStress(t *testing.T) {
	const limit = 1 << 20
	p := blockdev.NewPool(limit)
	var wg sync.WaitGroup
	var got atomic.Int64
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 3))
			for range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				if rng.IntN(3) == 0 {
					go cancel()
				}
				b, err := p.Get(ctx, 1+rng.IntN(400<<10))
				if err == nil {
					got.Add(1)
					b[0], b[len(b)-1] = byte(w), byte(w)
					runtime.Gosched()
					if b[0] != byte(w) || b[len(b)-1] != byte(w) {
						t.Error("a buffer has two owners")
					}
					if f := p.Footprint(); f > limit {
						t.Errorf("the pool keeps %d bytes, limit %d", f, limit)
					}
					p.Put(b)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if p.InUse() != 0 || p.Waiting() != 0 || got.Load() == 0 {
		t.Errorf("in use %d, waiting %d, served %d", p.InUse(), p.Waiting(), got.Load())
	}
}

// waitFor lets others run until they are where the test wants them.
func waitFor(there func() bool) {
	for !there() {
		runtime.Gosched()
	}
}

func BenchmarkPoolGetPut64K(b *testing.B) {
	p := blockdev.NewPool(64 << 20)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			buf, _ := p.Get(context.Background(), 64<<10)
			p.Put(buf)
		}
	})
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 4095, 4096, 4097, 8192, 65536, 100_003} {
		p := make([]byte, n)
		if !blockdev.IsZero(p) {
			t.Errorf("%d zeroes are not zero", n)
		}
		for _, i := range []int{0, 1, 4095, 4096, n / 2, n - 2, n - 1} {
			if i < 0 || i >= n {
				continue
			}
			p[i] = 0x80
			if blockdev.IsZero(p) {
				t.Errorf("%d bytes with one at %d are zero", n, i)
			}
			p[i] = 0
		}
	}
}

func BenchmarkIsZero(b *testing.B) {
	for _, n := range []int{4 << 10, 64 << 10, 1 << 20} {
		p := make([]byte, n)
		b.Run(map[int]string{4 << 10: "4K", 64 << 10: "64K", 1 << 20: "1M"}[n], func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				if !blockdev.IsZero(p) {
					b.Fatal()
				}
			}
		})
	}
}
