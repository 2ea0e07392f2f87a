package track

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

// pacer keeps writers and cuts together without a clock: neither side gets far ahead of the other, so that
// they meet on any machine.
type pacer struct {
	perCut int // writes

	mu      sync.Mutex
	moved   sync.Cond
	writes  int
	cuts    int
	running int  // writers
	blocked int  // of these
	over    bool // nobody cuts any more
}

func newPacer(writers, perCut int) *pacer {
	p := &pacer{running: writers, perCut: perCut}
	p.moved.L = &p.mu
	return p
}

// wrote is called behind every write.
func (p *pacer) wrote() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writes++
	p.moved.Broadcast()
	p.blocked++
	for !p.over && p.writes > (p.cuts+10)*p.perCut {
		p.moved.Wait()
	}
	p.blocked--
}

// left is called by a writer who is done.
func (p *pacer) left() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	p.moved.Broadcast()
}

// end is called when no cuts will come, for those who wait for one.
func (p *pacer) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.moved.Broadcast()
}

// cut is called before every cut. false: nobody writes any more.
func (p *pacer) cut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts++
	p.moved.Broadcast()
	for p.running > 0 && p.writes < (p.cuts-1)*p.perCut/2 {
		p.moved.Wait()
	}
	return p.running > 0
}

// linger waits until a cut is some writes old, or nobody can write.
func (p *pacer) linger(writes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for until := p.writes + writes; p.running > p.blocked && p.writes < until; {
		p.moved.Wait()
	}
}

// span is when something happened: at a moment of the clock between its two ends.
type span struct{ from, to uint64 }

// needsWorld drives a Tracker through a Path with many goroutines, and afterwards says of every Snapshot
// which pages it must and which it may hold. What a page needs is decided by three things: when its writes
// entered, which cuts they were before, and which of these a consumer has confirmed. Each is a step of the
// tracker, of which we know that it lay between call and return.
type needsWorld struct {
	t     *testing.T
	seed  uint64
	clock atomic.Uint64
	tr    *Tracker
	path  *Path
	pace  *pacer

	mu     sync.Mutex
	writes [needsPages][]span // of everybody
	snaps  []snapped
}

type snapped struct {
	span
	sets []Named
}

const needsPages = 160

// timed notes when f ran.
func (w *needsWorld) timed(f func()) span {
	from := w.clock.Add(1)
	f()
	return span{from, w.clock.Add(1)}
}

func (w *needsWorld) write(rng *rand.Rand) {
	first := rng.Uint64N(needsPages)
	r := Run{first, 1 + rng.Uint64N(min(6, needsPages-first))}
	x := w.timed(func() {
		var err error
		if rng.IntN(4) == 0 {
			err = w.path.Zero(int64(r.First)*page, int64(r.Count)*page, true)
		} else {
			err = w.path.WriteAt(make([]byte, r.Count*page), int64(r.First)*page)
		}
		if err != nil {
			w.t.Errorf("seed %d: %v", w.seed, err)
		}
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := r.First; p < r.End(); p++ {
		w.writes[p] = append(w.writes[p], x)
	}
}

func (w *needsWorld) snapshot() {
	var s snapped
	s.span = w.timed(func() { s.sets = w.tr.Snapshot() })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.snaps = append(w.snaps, s)
}

// confirmation is what a consumer has told: pages as of a cut.
type confirmation struct {
	told span
	cut  span
	read map[uint64]span // of a bulk pass: the cut of each page instead; nil: all pages, as of cut
}

// taker is a consumer that goes through all that can happen to a pass.
type taker struct {
	w     *needsWorld
	s     *Sets
	rng   *rand.Rand
	dirty [needsPages][]span // for this one alone

	cut        span
	kind       phase
	read       map[uint64]span // of bulk: staged, by the cut of the pass
	unanswered *confirmation
	confirmed  []confirmation
}

// take begins a pass.
func (k *taker) take(as Taker) {
	var voids []*blockdev.PageSet
	k.cut = k.w.timed(func() { voids = k.w.tr.CutStep(as) })
	if k.kind != as.phase {
		clear(k.read)
	}
	k.kind = as.phase
	if voids[0] != nil {
		for r := range runsIn(voids[0], 0, needsPages) {
			k.forget(r)
		}
	}
}

func (k *taker) forget(r Run) {
	for p := r.First; p < r.End(); p++ {
		delete(k.read, p)
	}
}

// ship reads with two goroutines, to the end or not quite.
func (k *taker) ship() (runs []Run, gaveUp bool) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	stop := 1 << 30
	if k.rng.IntN(4) == 0 {
		stop = k.rng.IntN(12)
	}
	for range 2 {
		wg.Go(func() {
			for more := true; more; {
				var out []Piece
				var err error
				out, more, err = k.w.path.ReadClosed(context.Background(), k.s, 4*page, heap{})
				mu.Lock()
				for _, x := range out {
					runs = append(runs, x.Run)
				}
				gaveUp = gaveUp || errors.Is(err, ErrGivenUp) || len(runs) > stop
				more = more && !gaveUp
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return runs, gaveUp
}

func (k *taker) lose(runs []Run) (lost []Run) {
	for _, r := range runs {
		if k.rng.IntN(2) == 0 {
			lost = append(lost, r)
			k.forget(r)
		}
	}
	return lost
}

func (k *taker) told(f func(*Sets)) {
	if k.unanswered != nil {
		k.unanswered.told = k.w.timed(func() { f(k.s) })
		k.confirmed = append(k.confirmed, *k.unanswered)
		k.unanswered = nil
	}
}

// epoch ends a pass whose pages were read.
func (k *taker) epoch(runs []Run, gaveUp bool) {
	tr := k.w.tr
	if gaveUp {
		tr.GiveUp(k.s, k.lose(runs))
		return
	}
	switch n := k.rng.IntN(9); {
	case n == 0:
		tr.VoidStaging(k.s)
	case n == 1:
		tr.DropEpoch(k.s)
		k.unanswered = nil
	case n == 2:
		tr.GiveUp(k.s, k.lose(runs))
	case n < 5 && k.unanswered != nil && k.unanswered.read == nil:
		tr.Uncommit(k.s) // while this epoch is staged
		k.unanswered = nil
	default:
		k.commit()
	}
}

// commit sends the Commit, when the one before is answered. The answer may come behind the next cut.
func (k *taker) commit() {
	tr := k.w.tr
	if tr.Counts(k.s).Committing > 0 {
		if err := tr.StartCommit(k.s); err == nil {
			k.w.t.Errorf("seed %d: a second commit without an answer to the first", k.w.seed)
		}
	}
	k.told(tr.Committed)
	switch err := tr.StartCommit(k.s); {
	case errors.Is(err, ErrGivenUp): // a writer had no room to capture
		tr.GiveUp(k.s, nil)
		return
	case err != nil:
		k.w.t.Errorf("seed %d: %s: %v", k.w.seed, k.s.Name(), err)
		return
	}
	k.unanswered = &confirmation{cut: k.cut}
	switch k.rng.IntN(4) {
	case 0:
		tr.Uncommit(k.s)
		k.unanswered = nil
	case 1: // later
	default:
		k.told(tr.Committed)
	}
}

// bulk ends a bulk pass.
func (k *taker) bulk(runs []Run, gaveUp bool) {
	tr := k.w.tr
	for _, r := range runs {
		for p := r.First; p < r.End(); p++ {
			k.read[p] = k.cut
		}
	}
	if gaveUp {
		tr.GiveUp(k.s, k.lose(runs))
	}
	if k.rng.IntN(3) == 0 && (k.unanswered == nil || k.unanswered.read != nil) {
		tr.BulkLost(k.s)
		k.unanswered = nil
		clear(k.read)
		return
	}
	k.told(tr.BulkFlushed)
	if !tr.BulkFlush(k.s) {
		k.w.t.Errorf("seed %d: no flush of a bulk pass", k.w.seed)
	}
	k.unanswered = &confirmation{read: k.read}
	k.read = map[uint64]span{}
	if k.rng.IntN(2) == 0 {
		k.told(tr.BulkFlushed)
	}
}

func (k *taker) round() {
	if k.rng.IntN(3) == 0 {
		first := k.rng.Uint64N(needsPages)
		x := k.w.timed(func() { k.w.tr.Dirty(k.s, first, 1) })
		k.dirty[first] = append(k.dirty[first], x)
	}
	if k.rng.IntN(3) == 0 {
		k.take(k.s.Bulk())
		runs, gaveUp := k.ship()
		k.bulk(runs, gaveUp)
		return
	}
	k.take(k.s.Epoch())
	if k.rng.IntN(2) == 0 {
		k.w.pace.linger(4)
	}
	k.epoch(k.ship())
}

func (k *taker) run() {
	defer k.w.pace.end()
	for k.w.pace.cut() {
		k.round()
	}
}

// bounds are, of each page, the last cut that its consumer may have confirmed when something happened, and
// the last one that it certainly had.
type bounds struct{ may, surely [needsPages]uint64 }

func (k *taker) bounds(at span) (b bounds) {
	for _, c := range k.confirmed {
		for p := range uint64(needsPages) {
			cut := c.cut
			if c.read != nil {
				var ok bool
				if cut, ok = c.read[p]; !ok {
					continue
				}
			}
			if c.told.from < at.to {
				b.may[p] = max(b.may[p], cut.to)
			}
			if c.told.to < at.from {
				b.surely[p] = max(b.surely[p], cut.from)
			}
		}
	}
	return b
}

// check compares what a snapshot says of this consumer with the history. A write must be there that had
// entered before, and behind every cut that may have been confirmed; one may be there that may have entered
// before, and not before a cut that surely was.
func (k *taker) check(at span, needs *blockdev.PageSet) {
	b := k.bounds(at)
	for p := range uint64(needsPages) {
		must, may := false, false
		for _, all := range [][]span{k.w.writes[p], k.dirty[p]} {
			for _, x := range all {
				must = must || x.to < at.from && x.from > b.may[p]
				may = may || x.from < at.to && x.to > b.surely[p]
			}
		}
		if in := needs.Contains(p); in && !may || !in && must {
			k.w.t.Fatalf("seed %d: %s, page %d at %+v: needed is %v, writes %+v, dirty %+v, confirmed %+v",
				k.w.seed, k.s.Name(), p, at, in, k.w.writes[p], k.dirty[p], k.confirmed)
		}
	}
}

// bystander is a consumer that takes no cut and is in doubt. What it needs does not depend on the order in
// which it and the writers come.
type bystander struct {
	w      *needsWorld
	s      *Sets
	doubt  [needsPages]bool // or was, until a write
	differ [needsPages]bool
}

func (b *bystander) step(rng *rand.Rand) {
	first := rng.Uint64N(needsPages)
	r := Run{first, 1 + rng.Uint64N(min(30, needsPages-first))}
	tr := b.w.tr
	op := rng.IntN(3)
	switch op {
	case 0:
		set := blockdev.NewPageSet(needsPages)
		set.Add(r.First, r.Count)
		tr.Doubt(b.s, set)
	case 1:
		tr.Equal(b.s, r.First, r.Count)
	case 2:
		tr.Differs(b.s, r.First, r.Count)
	}
	for p := r.First; p < r.End(); p++ {
		b.differ[p] = b.differ[p] || op == 2 && b.doubt[p]
		b.doubt[p] = op == 0
	}
}

func (b *bystander) run() {
	rng := rand.New(rand.NewPCG(b.w.seed, 301))
	for range 400 {
		b.step(rng)
		runtime.Gosched()
	}
}

func (b *bystander) check(named Named) {
	for p := range uint64(needsPages) {
		written := len(b.w.writes[p]) > 0
		if needs := written || b.differ[p]; named.Needs.Contains(p) != needs {
			b.w.t.Fatalf("seed %d: bystander, page %d: needed is %v", b.w.seed, p, !needs)
		}
		if doubt := b.doubt[p] && !written && !b.differ[p]; named.Doubt.Contains(p) != doubt {
			b.w.t.Fatalf("seed %d: bystander, page %d: in doubt is %v", b.w.seed, p, !doubt)
		}
	}
}

func newNeedsWorld(t *testing.T, seed uint64, writers int) *needsWorld {
	w := &needsWorld{t: t, seed: seed, pace: newPacer(writers, 6)}
	w.tr = NewTracker(needsPages, nullMarker{}, time.Now)
	path, err := NewPath(Config{
		Device: devtest.NewMem(needsPages*page, 512, 1), Size: needsPages * page, BlockSize: 16 << 10, Tracker: w.tr,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.path = path
	return w
}

func (w *needsWorld) taker(name string, n uint64) *taker {
	memory := int64(8+60*((w.seed+n)%2)) * page // every second has hardly any room
	c := NewCapture(CaptureConfig{Pages: needsPages, BlockPages: 4, Memory: memory})
	return &taker{
		w: w, s: w.tr.AddConsumer(name, c), rng: rand.New(rand.NewPCG(w.seed, 200+n)), read: map[uint64]span{},
	}
}

// TestNeedsOfHistories: writers, two consumers with all that befalls them, one that only looks on, copies
// of the sets at any moment, all at once. Whatever was copied is what some order of the steps gives.
func TestNeedsOfHistories(t *testing.T) {
	const writers = 4
	confirmed := 0
	for seed := range uint64(6) {
		w := newNeedsWorld(t, seed, writers)
		var wg sync.WaitGroup
		takers := []*taker{w.taker("a", 0), w.taker("b", 1)}
		b := &bystander{w: w, s: w.tr.AddConsumer("c", nil)}
		for i := range uint64(writers) {
			wg.Go(func() {
				defer w.pace.left()
				rng := rand.New(rand.NewPCG(seed, 100+i))
				for n := range 120 {
					w.write(rng)
					if n%3 == 0 {
						w.snapshot()
					}
					w.pace.wrote()
				}
			})
		}
		for _, k := range takers {
			wg.Go(k.run)
		}
		wg.Go(b.run)
		finish(t, seed, &wg)
		w.snapshot()
		for _, s := range w.snaps {
			for i, k := range takers {
				k.check(s.span, s.sets[i].Needs)
			}
		}
		b.check(w.snaps[len(w.snaps)-1].sets[2])
		for _, k := range takers {
			confirmed += len(k.confirmed)
			k.settle()
		}
	}
	if confirmed < 60 {
		t.Errorf("only %d confirmations in all histories", confirmed)
	}
}

// settle is a last epoch while nobody writes: then nothing is needed and nothing is kept.
func (k *taker) settle() {
	k.told(k.w.tr.Committed)
	k.take(k.s.Epoch())
	for more := true; more; {
		var err error
		if _, more, err = k.w.path.ReadClosed(context.Background(), k.s, 1<<20, heap{}); err != nil {
			k.w.t.Fatalf("seed %d: %s: %v", k.w.seed, k.s.Name(), err)
		}
	}
	if err := k.w.tr.StartCommit(k.s); err != nil {
		k.w.t.Fatalf("seed %d: %s: %v", k.w.seed, k.s.Name(), err)
	}
	k.w.tr.Committed(k.s)
	memory, spool := k.s.capture.Used()
	if c := k.w.tr.Counts(k.s); c != (Counts{}) || memory+spool != 0 {
		k.w.t.Errorf("seed %d: %s: %+v, %d bytes kept", k.w.seed, k.s.Name(), c, memory+spool)
	}
}
