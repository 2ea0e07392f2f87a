package blockdev_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
)

// setPair is a set and its double, and setWorld some pairs of one size on which every operation is tried in
// any order. TestPageSetAgainstModel compares at the end; here everything that can be asked is asked behind
// every step, at the places where chunks and words end above all.
type setPair struct {
	set  *blockdev.PageSet
	want []bool
}

type setWorld struct {
	t     *testing.T
	seed  uint64
	step  int
	rng   *rand.Rand
	n     uint64
	empty int64 // bytes of an empty set
	pairs [3]*setPair
}

func newSetWorld(t *testing.T, n, seed uint64) *setWorld {
	w := &setWorld{t: t, seed: seed, n: n, rng: rand.New(rand.NewPCG(seed, n))}
	for i := range w.pairs {
		w.pairs[i] = &setPair{blockdev.NewPageSet(n), make([]bool, n)}
	}
	w.empty = w.pairs[0].set.MemoryBytes()
	return w
}

func (w *setWorld) fatal(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%d pages, seed %d, step %d: "+format, append([]any{w.n, w.seed, w.step}, args...)...)
}

// place is a page number, or the one behind the last, near a border as often as not.
func (w *setWorld) place() uint64 {
	at := w.rng.Uint64N(w.n + 1)
	switch w.rng.IntN(6) {
	case 0:
		at = at >> 16 << 16
	case 1:
		at = at >> 6 << 6
	case 2:
		at = w.n
	default:
		return at
	}
	return min(w.n, max(at+w.rng.Uint64N(5), 2)-2)
}

// some is a range, which may be empty, or all there is.
func (w *setWorld) some() (first, count uint64) {
	switch w.rng.IntN(4) {
	case 0:
		first, end := w.place(), w.place()
		return min(first, end), max(first, end) - min(first, end)
	case 1:
		first = w.place() >> 16 << 16
		return first, min(w.n-first, 1<<16)
	default:
		first = w.place()
		return first, min(w.n-first, w.rng.Uint64N(1<<w.rng.IntN(12)+1))
	}
}

// change sets or clears a range in both, and compares what the set says of it.
func (w *setWorld) change(p *setPair, first, count uint64, to bool) {
	var changed, got uint64
	for i := first; i < first+count; i++ {
		if p.want[i] != to {
			changed++
			p.want[i] = to
		}
	}
	if to {
		got = p.set.Add(first, count)
	} else {
		got = p.set.Remove(first, count)
	}
	if got != changed {
		w.fatal("%d+%d to %v: told %d changed, want %d", first, count, to, got, changed)
	}
}

// sprinkle changes single pages of one chunk: lists become bitmaps and bitmaps lists.
func (w *setWorld) sprinkle(p *setPair, to bool) {
	base := w.rng.Uint64N(w.n) >> 16 << 16
	span := min(w.n-base, 1<<16)
	for range 1 + w.rng.IntN(1500) {
		w.change(p, base+w.rng.Uint64N(span), 1, to)
	}
}

// combine is Union or Subtract, also of a set with itself.
func (w *setWorld) combine(p, o *setPair, to bool) {
	if to {
		p.set.Union(o.set)
	} else {
		p.set.Subtract(o.set)
	}
	for i, in := range o.want {
		if in {
			p.want[i] = to
		}
	}
}

// copy makes another one of the pairs a clone. Both are changed later on, so that what they share shows.
func (w *setWorld) copy(p *setPair) {
	w.pairs[w.rng.IntN(len(w.pairs))] = &setPair{p.set.Clone(), append([]bool(nil), p.want...)}
}

func (w *setWorld) fill(p *setPair, to bool) {
	if to {
		p.set.Fill()
	} else {
		p.set.Clear()
	}
	for i := range p.want {
		p.want[i] = to
	}
}

func (w *setWorld) any() {
	p, o := w.pairs[w.rng.IntN(len(w.pairs))], w.pairs[w.rng.IntN(len(w.pairs))]
	first, count := w.some()
	to := w.rng.IntN(2) == 0
	switch n := w.rng.IntN(24); {
	case n < 12:
		w.change(p, first, count, to)
	case n < 17:
		w.sprinkle(p, to)
	case n < 20:
		w.combine(p, o, to)
	case n < 23:
		w.copy(p)
	default:
		w.fill(p, to)
	}
}

// ask compares one place in all ways.
func (w *setWorld) ask(p *setPair) {
	at, limit := w.place(), uint64(1+w.rng.IntN(100))
	switch w.rng.IntN(6) {
	case 0:
		at += w.rng.Uint64N(1 << 20) // beyond the end is allowed
	case 1:
		limit = 0
	case 2:
		limit = math.MaxUint64
	}
	if at < w.n && p.set.Contains(at) != p.want[at] {
		w.fatal("Contains(%d) is %v", at, !p.want[at])
	}
	first := at
	for first < w.n && !p.want[first] {
		first++
	}
	end := first
	for end < w.n && end-first < limit && p.want[end] {
		end++
	}
	if f, c, ok := p.set.NextRun(at, limit); ok != (end > first) || ok && (f != first || c != end-first) {
		w.fatal("NextRun(%d, %d) = %d+%d %v, want %d+%d", at, limit, f, c, ok, first, end-first)
	}
}

// check walks the whole set.
func (w *setWorld) check(p *setPair) {
	at, count := uint64(0), uint64(0)
	for {
		first, n, ok := p.set.NextSet(at)
		if !ok {
			first = w.n
		}
		for ; at < first; at++ {
			if p.want[at] {
				w.fatal("page %d is missing", at)
			}
		}
		if !ok {
			break
		}
		for ; at < first+n; at++ {
			if !p.want[at] {
				w.fatal("page %d is too much", at)
			}
		}
		count += n
	}
	if p.set.Count() != count || p.set.Len() != w.n {
		w.fatal("Count is %d, want %d", p.set.Count(), count)
	}
	w.checkMemory(p, count)
}

// checkMemory: a set that is empty or full takes no more than a new one, and no chunk more than its bitmap.
func (w *setWorld) checkMemory(p *setPair, count uint64) {
	limit := w.empty
	if count > 0 && count < w.n {
		limit += int64(w.n>>16+1) * (8<<10 + 64)
	}
	if got := p.set.MemoryBytes(); got > limit {
		w.fatal("%d pages take %d bytes, at most %d are allowed", count, got, limit)
	}
}

func (w *setWorld) run(steps int) {
	for w.step = range steps {
		w.any()
		for _, p := range w.pairs {
			w.ask(p)
			if w.step%20 == 19 || w.step == steps-1 {
				w.check(p)
			}
		}
	}
}

// TestPageSetWorlds: a PageSet is not for concurrent use, so the order of the operations is all there is.
// That it is used in one order only is what the tests of the Tracker show.
func TestPageSetWorlds(t *testing.T) {
	for _, n := range []uint64{1, 64, 1000, 1<<16 - 1, 1 << 16, 1<<16 + 1, 3<<16 - 63} {
		for seed := range uint64(2) {
			newSetWorld(t, n, seed).run(140)
		}
	}
}
