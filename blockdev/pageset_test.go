package blockdev_test

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
)

// setModel is a PageSet as a slice of bool.
type setModel struct {
	set  *blockdev.PageSet
	want []bool
}

func newSetModel(n uint64) *setModel {
	return &setModel{set: blockdev.NewPageSet(n), want: make([]bool, n)}
}

func (m *setModel) clone() *setModel {
	return &setModel{set: m.set.Clone(), want: append([]bool(nil), m.want...)}
}

// change sets or clears a range in both, and compares what the set says of it.
func (m *setModel) change(t *testing.T, first, count uint64, to bool) {
	t.Helper()
	changed := uint64(0)
	for p := first; p < first+count; p++ {
		if m.want[p] != to {
			changed++
		}
		m.want[p] = to
	}
	got := uint64(0)
	if to {
		got = m.set.Add(first, count)
	} else {
		got = m.set.Remove(first, count)
	}
	if got != changed {
		t.Fatalf("set %d+%d to %v: told %d changed, want %d", first, count, to, got, changed)
	}
}

// check compares everything that can be asked.
func (m *setModel) check(t *testing.T) {
	t.Helper()
	count, at := uint64(0), uint64(0)
	n := uint64(len(m.want))
	for at < n {
		first := at
		for first < n && !m.want[first] {
			first++
		}
		end := first
		for end < n && m.want[end] {
			end++
		}
		f, c, ok := m.set.NextSet(at)
		if ok != (first < n) || ok && (f != first || c != end-first) {
			t.Fatalf("NextSet(%d) = %d+%d %v, want %d+%d", at, f, c, ok, first, end-first)
		}
		count += end - first
		at = max(end, first)
	}
	if m.set.Count() != count {
		t.Fatalf("Count is %d, want %d", m.set.Count(), count)
	}
}

func TestPageSetAgainstModel(t *testing.T) {
	for _, n := range []uint64{0, 1, 63, 64, 65, 65535, 65536, 65537, 200_003} {
		for seed := range uint64(6) {
			wanderSet(t, n, seed)
		}
	}
}

func wanderSet(t *testing.T, n, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, n))
	m, other := newSetModel(n), newSetModel(n)
	for range 150 {
		if n == 0 {
			break
		}
		first := rng.Uint64N(n)
		count := min(n-first, rng.Uint64N(1<<rng.IntN(18)+1))
		switch rng.IntN(12) {
		case 0, 1, 2:
			m.change(t, first, count, true)
		case 3, 4, 5:
			m.change(t, first, count, false)
		case 6: // many single pages: lists that become bitmaps
			for range rng.IntN(3000) {
				m.change(t, rng.Uint64N(n), 1, true)
			}
		case 7: // and back
			for range rng.IntN(3000) {
				m.change(t, rng.Uint64N(n), 1, false)
			}
		case 8:
			m, other = other, m
		case 9:
			m.set.Union(other.set)
			for p, in := range other.want {
				m.want[p] = m.want[p] || in
			}
		case 10:
			m.set.Subtract(other.set)
			for p, in := range other.want {
				m.want[p] = m.want[p] && !in
			}
		case 11:
			old := m
			m = m.clone()
			old.set.Add(0, n) // a clone shares nothing
			old.set.Remove(first, count)
		}
		if p := rng.Uint64N(n); m.set.Contains(p) != m.want[p] {
			t.Fatalf("Contains(%d) is %v", p, !m.want[p])
		}
		limit := 1 + rng.Uint64N(100)
		if f, c, ok := m.set.NextSet(first); ok {
			if f2, c2, ok := m.set.NextRun(first, limit); !ok || f2 != f || c2 != min(c, limit) {
				t.Fatalf("NextRun(%d, %d) = %d+%d, NextSet says %d+%d", first, limit, f2, c2, f, c)
			}
		}
	}
	m.check(t)
	other.check(t)
	m.set.Fill()
	if _, c, ok := m.set.NextSet(0); m.set.Count() != n || ok != (n > 0) || c != n {
		t.Fatalf("full: count %d, run %d of %d", m.set.Count(), c, n)
	}
	m.set.Clear()
	if _, _, ok := m.set.NextSet(0); ok || m.set.Count() != 0 {
		t.Fatal("cleared, but not empty")
	}
}

func TestPageSetWithItself(t *testing.T) {
	s := blockdev.NewPageSet(1000)
	s.Add(10, 20)
	s.Union(s)
	if s.Count() != 20 {
		t.Errorf("united with itself: %d pages", s.Count())
	}
	s.Subtract(s)
	if s.Count() != 0 {
		t.Errorf("without itself: %d pages", s.Count())
	}
}

func TestPageSetOutOfRangePanics(t *testing.T) {
	s := blockdev.NewPageSet(100)
	for name, do := range map[string]func(){
		"Add":      func() { s.Add(99, 2) },
		"overflow": func() { s.Add(1, 1<<64-1) },
		"Remove":   func() { s.Remove(101, 0) },
		"Contains": func() { s.Contains(100) },
		"Union":    func() { s.Union(blockdev.NewPageSet(99)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s beyond the set did not panic", name)
				}
			}()
			do()
		}()
	}
	if _, _, ok := s.NextSet(100); ok {
		t.Error("NextSet at the end found something")
	}
}

// tebibyte is the number of pages of 1 TiB.
const tebibyte = 1 << 28

func TestPageSetMemory(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct {
		name  string
		limit int64
		make  func(s *blockdev.PageSet)
	}{
		{"empty", 40 << 10, func(*blockdev.PageSet) {}},
		{"full", 40 << 10, func(s *blockdev.PageSet) { s.Fill() }},
		{"full but a little", 80 << 10, func(s *blockdev.PageSet) { s.Fill(); s.Remove(12345, 7); s.Remove(tebibyte-1, 1) }},
		{"65536 random pages", 1 << 20, func(s *blockdev.PageSet) {
			for range 65536 {
				s.Add(rng.Uint64N(tebibyte), 1)
			}
		}},
		{"every second page", 33 << 20, func(s *blockdev.PageSet) {
			for chunk := uint64(0); chunk < tebibyte; chunk += 1 << 16 {
				for p := uint64(0); p < 1<<16; p += 64 {
					s.Add(chunk+p, 1)
				}
				for p := uint64(32); p < 1<<16; p += 64 {
					s.Add(chunk+p, 1)
				}
			}
		}},
		{"emptied again", 40 << 10, func(s *blockdev.PageSet) {
			for range 10000 {
				s.Add(rng.Uint64N(tebibyte), 1)
			}
			s.Remove(0, tebibyte)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := heap()
			s := blockdev.NewPageSet(tebibyte)
			c.make(s)
			real, told := heap()-before, s.MemoryBytes()
			t.Logf("heap %d bytes, told %d", real, told)
			if real > c.limit || told > c.limit {
				t.Errorf("heap %d, MemoryBytes %d, limit %d", real, told, c.limit)
			}
			// What the set tells is what it takes, give or take the allocator's size classes.
			if diff := real - told; diff > told/4+64<<10 || diff < -told/4-64<<10 {
				t.Errorf("MemoryBytes %d is far from the heap's %d", told, real)
			}
			runtime.KeepAlive(s)
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkPageSetAddRandomPage(b *testing.B) {
	s := blockdev.NewPageSet(tebibyte)
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		s.Add(rng.Uint64N(tebibyte), 1)
	}
}

func BenchmarkPageSetAddRemoveGiB(b *testing.B) {
	s := blockdev.NewPageSet(tebibyte)
	for b.Loop() {
		s.Add(1000, 1<<18)
		s.Remove(1000, 1<<18)
	}
}

func BenchmarkPageSetUnionDense(b *testing.B) {
	s, o := blockdev.NewPageSet(tebibyte), blockdev.NewPageSet(tebibyte)
	for p := uint64(0); p < tebibyte; p += 16 {
		s.Add(p, 1)
		o.Add(p+1, 1)
	}
	b.SetBytes(32 << 20)
	for b.Loop() {
		s.Union(o)
	}
}

func BenchmarkPageSetWalkSparse(b *testing.B) {
	s := blockdev.NewPageSet(tebibyte)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 65536 {
		s.Add(rng.Uint64N(tebibyte), 1)
	}
	for b.Loop() {
		runs := 0
		for at := uint64(0); ; runs++ {
			first, n, ok := s.NextSet(at)
			if !ok {
				break
			}
			at = first + n
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/65536, "ns/run")
}
