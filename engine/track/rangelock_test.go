package track

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// modelAsk is an ask of the model: it is granted when no earlier one that conflicts is unreleased.
type modelAsk struct {
	Run
	shared  bool
	granted *atomic.Bool
}

func (a *modelAsk) conflicts(b *modelAsk) bool {
	return a.First < b.End() && b.First < a.End() && !(a.shared && b.shared)
}

func TestRangeLockGrantsLikeModel(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			var l RangeLock
			var asks []*modelAsk // unreleased, in order of arrival
			held := func(i int) bool {
				return !slices.ContainsFunc(asks[:i], func(b *modelAsk) bool { return b.conflicts(asks[i]) })
			}
			release := func(i int) {
				a := asks[i]
				asks = slices.Delete(asks, i, i+1)
				if a.shared {
					l.RUnlock(a.First, a.Count)
				} else {
					l.Unlock(a.First, a.Count)
				}
			}
			for step := range 400 {
				if i := rng.IntN(60); i >= len(asks) {
					a := &modelAsk{Run{rng.Uint64N(40), 1 + rng.Uint64N(8)}, rng.IntN(2) == 0, new(atomic.Bool)}
					asks = append(asks, a)
					go func() {
						if a.shared {
							l.RLock(a.First, a.Count)
						} else {
							l.Lock(a.First, a.Count)
						}
						a.granted.Store(true)
					}()
				} else if held(i) {
					release(i)
				}
				synctest.Wait()
				for i, a := range asks {
					if a.granted.Load() != held(i) {
						t.Fatalf("seed %d step %d: %+v is granted: %v", seed, step, a, a.granted.Load())
					}
				}
			}
			for len(asks) > 0 {
				release(0)
				synctest.Wait()
			}
			if len(l.asked) != 0 {
				t.Fatalf("%d asks are left", len(l.asked))
			}
		})
	}
}

// TestRangeLockExcludes lets the race detector look for two writers of a page, or a writer beside a
// reader.
func TestRangeLockExcludes(t *testing.T) {
	const pages = 16
	var l RangeLock
	var content [pages]int
	var sum atomic.Int64
	var wg sync.WaitGroup
	want := 0
	for g := range 8 {
		rng := rand.New(rand.NewPCG(uint64(g), 2))
		var plan []Run
		for range 500 {
			first := rng.Uint64N(pages)
			r := Run{first, 1 + rng.Uint64N(pages-first)}
			plan = append(plan, r)
			want += int(r.Count)
		}
		wg.Go(func() {
			for i, r := range plan {
				l.Lock(r.First, r.Count)
				for p := r.First; p < r.End(); p++ {
					content[p]++
				}
				l.Unlock(r.First, r.Count)
				if i%3 == 0 {
					l.RLock(r.First, r.Count)
					sum.Add(int64(content[r.First]))
					l.RUnlock(r.First, r.Count)
				}
			}
		})
	}
	wg.Wait()
	got := 0
	for _, n := range content {
		got += n
	}
	if got != want {
		t.Errorf("%d increments, want %d", got, want)
	}
}

func TestRangeLockMisuse(t *testing.T) {
	var l RangeLock
	l.Lock(3, 0)
	l.Unlock(3, 0)
	l.RLock(1, 2)
	for name, unlock := range map[string]func(){
		"not locked": func() { l.Unlock(7, 1) },
		"shared":     func() { l.Unlock(1, 2) },
		"in part":    func() { l.RUnlock(1, 1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			unlock()
		}()
	}
}

func BenchmarkRangeLock(b *testing.B) {
	for _, depth := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("held=%d", depth), func(b *testing.B) {
			var l RangeLock
			for i := range depth - 1 {
				l.Lock(uint64(i+1)*10, 4)
			}
			b.ReportAllocs()
			for b.Loop() {
				l.Lock(0, 1)
				l.Unlock(0, 1)
			}
		})
	}
}
