package track

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// nullMarker marks at once.
type nullMarker struct{}

func (nullMarker) Mark([]uint64) (uint64, error) { return 0, nil }
func (nullMarker) Sync(uint64) error             { return nil }

// clock is a hand-driven clock.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newClock() *clock { return &clock{time.Unix(1000, 0)} }

type pageMap map[uint64]bool

func (m pageMap) add(o pageMap) {
	for p := range o {
		m[p] = true
	}
}

func (m pageMap) moveTo(o pageMap, r Run) {
	for p := r.First; p < r.End(); p++ {
		if m[p] {
			delete(m, p)
			o[p] = true
		}
	}
}

func (m pageMap) allTo(o pageMap) {
	o.add(m)
	clear(m)
}

// model is the naive double of a Sets and of what is captured for it.
type model struct {
	s                                                     *Sets
	waiting, todo, staged, committing, doubt, holes, kept pageMap

	phase, kind phase
	claims      []Claim
	writes      map[int]bool // writes under way that found something in todo in this round
}

func newModel(s *Sets) *model {
	return &model{s: s, waiting: pageMap{}, todo: pageMap{}, staged: pageMap{}, committing: pageMap{}, doubt: pageMap{},
		holes: pageMap{}, kept: pageMap{}, writes: map[int]bool{}}
}

func (m *model) stop() {
	for p := range m.kept {
		delete(m.staged, p)
		m.todo[p] = true
	}
	clear(m.kept)
	m.claims = nil
	clear(m.writes)
}

func (m *model) giveUp() {
	m.stop()
	if m.phase == epoch || m.phase == bulk {
		m.phase = givenUp
	}
}

// world drives a Tracker and its model.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	clock  *clock
	tr     *Tracker
	open   pageMap
	models []*model
	writes map[int]Write
	nth    int
}

const modelPages = 200

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 3)), clock: newClock(), open: pageMap{}, writes: map[int]Write{}}
	w.tr = NewTracker(modelPages, nullMarker{}, w.clock.now)
	for i := range 3 {
		c := NewCapture(CaptureConfig{Pages: modelPages, BlockPages: 16, Memory: 1 << 30})
		w.models = append(w.models, newModel(w.tr.AddConsumer(fmt.Sprint("m", i), c)))
	}
	return w
}

func (w *world) run() Run {
	first := w.rng.Uint64N(modelPages)
	return Run{first, 1 + w.rng.Uint64N(min(12, modelPages-first))}
}

func (w *world) runs() (out []Run) {
	for range w.rng.IntN(4) {
		out = append(out, w.run())
	}
	return out
}

// busy reports whether a write under way holds one of the pages.
func (w *world) busy(r Run) bool {
	for _, x := range w.writes {
		if x.First < r.End() && r.First < x.End() {
			return true
		}
	}
	return false
}

func (w *world) begin() {
	r := w.run()
	if w.busy(r) || len(w.writes) > 6 {
		return
	}
	x, err := w.tr.Begin(r.First, r.Count)
	if err != nil {
		w.t.Fatal(err)
	}
	w.nth++
	w.writes[w.nth] = x
	for p := r.First; p < r.End(); p++ {
		w.open[p] = true
		for _, m := range w.models {
			delete(m.doubt, p)
			if m.phase == epoch && m.todo[p] {
				m.writes[w.nth] = true
			}
		}
	}
}

// end captures for a write, if it comes to that, and ends it.
func (w *world) end() {
	if len(w.writes) == 0 {
		return
	}
	id := slices.Sorted(maps.Keys(w.writes))[w.rng.IntN(len(w.writes))]
	x := w.writes[id]
	for _, c := range w.tr.wanted(x) {
		c.room, _ = c.sets.capture.reserve(int64(x.Count) * blockdev.PageSize)
		for _, r := range c.runs {
			for p := r.First; p < r.End(); p++ {
				if w.rng.IntN(9) == 0 {
					c.holes = append(c.holes, hole{Run: Run{p, 1}})
				} else {
					e, _ := c.sets.capture.store(&c.room, content{Run{p, 1}, []byte{1}})
					c.entries = append(c.entries, e)
				}
			}
		}
		if w.rng.IntN(5) == 0 {
			w.pass(w.rng.IntN(len(w.models))) // in between
		}
		w.tr.captured(c)
		m := w.models[slices.IndexFunc(w.models, func(m *model) bool { return m.s == c.sets })]
		if !m.writes[id] {
			continue
		}
		for _, e := range c.entries {
			m.todo.moveTo(m.staged, e.Run)
			m.kept[e.First] = true
		}
		for _, h := range c.holes {
			m.todo.moveTo(m.holes, h.Run)
		}
	}
	w.tr.End(x)
	delete(w.writes, id)
	for _, m := range w.models {
		delete(m.writes, id)
	}
}

func (w *world) cut() {
	var takers []Taker
	var taking []*model
	var want []pageMap
	for _, m := range w.models {
		m.waiting.add(w.open)
	}
	clear(w.open)
	for _, m := range w.models {
		k := m.s.Epoch()
		switch w.rng.IntN(5) {
		case 0:
			k = m.s.Bulk()
		case 1, 2:
			continue
		}
		takers = append(takers, k)
		taking = append(taking, m)
		m.stop()
		if m.kind != k.phase {
			m.staged.allTo(m.todo)
		}
		void := pageMap{}
		for p := range m.waiting {
			if m.staged[p] {
				void[p] = true
				delete(m.staged, p)
			}
			delete(m.holes, p)
		}
		want = append(want, void)
		m.waiting.allTo(m.todo)
		m.phase, m.kind = k.phase, k.phase
	}
	for i, got := range w.tr.CutStep(takers...) {
		if got == nil {
			got = blockdev.NewPageSet(modelPages)
		}
		w.same("voids of "+taking[i].s.name, got, want[i])
	}
}

// read claims, reads and releases for one consumer.
func (w *world) read(m *model) {
	if c, ok := w.tr.ClaimTodo(m.s, 1+w.rng.Uint64N(20)); ok {
		for _, o := range m.claims {
			if c.First < o.End() && o.First < c.End() {
				w.t.Fatalf("claims %+v and %+v", c, o)
			}
		}
		for p := c.First; p < c.End(); p++ {
			if !m.todo[p] {
				w.t.Fatalf("claimed %+v, of which %d is not in todo", c, p)
			}
		}
		m.claims = append(m.claims, c)
	} else if (m.phase == epoch || m.phase == bulk) && len(m.claims) == 0 && len(m.todo) > 0 {
		w.t.Fatalf("nothing to claim of %d in todo", len(m.todo))
	}
	if len(m.claims) == 0 || w.rng.IntN(3) == 0 {
		return
	}
	i := w.rng.IntN(len(m.claims))
	c := m.claims[i]
	m.claims = slices.Delete(m.claims, i, i+1)
	if r, ok, err := w.tr.Unread(m.s, c); err != nil {
		w.t.Fatal(err)
	} else if ok && !w.busy(c.Run) {
		if w.rng.IntN(8) == 0 {
			w.tr.Unreadable(m.s, c, r)
			m.todo.moveTo(m.holes, r)
		} else if moved, ok := w.tr.Read(m.s, c, r); !ok || moved != r.Count {
			w.t.Fatalf("Read %+v: %d %v", r, moved, ok)
		} else {
			m.todo.moveTo(m.staged, r)
		}
	}
	w.tr.Release(m.s, c)
}

func (w *world) fetch(m *model) {
	f, ok := m.s.capture.pop(4 * blockdev.PageSize)
	if !ok {
		if len(m.kept) > 0 {
			w.t.Fatal("nothing is captured, the model has something")
		}
		return
	}
	for p := f.First; p < f.End(); p++ {
		if !m.kept[p] {
			w.t.Fatalf("popped %d", p)
		}
		delete(m.kept, p)
	}
}

// pass does something to the pass of a consumer.
func (w *world) pass(i int) {
	m := w.models[i]
	tr, s := w.tr, m.s
	switch w.rng.IntN(12) {
	case 0:
		runs := w.runs()
		tr.GiveUp(s, runs)
		m.giveUp()
		for _, r := range runs {
			m.staged.moveTo(m.todo, r)
		}
	case 1:
		tr.VoidStaging(s)
		m.giveUp()
		m.staged.allTo(m.todo)
	case 2, 3, 4:
		err := tr.StartCommit(s)
		if ok := m.phase == epoch && len(m.todo)+len(m.kept)+len(m.committing) == 0; ok != (err == nil) {
			w.t.Fatalf("StartCommit: %v", err)
		} else if ok {
			m.staged.allTo(m.committing)
			m.stop()
			m.phase = idle
		}
	case 5:
		tr.Committed(s)
		clear(m.committing)
	case 6:
		tr.Uncommit(s)
		m.stop()
		m.phase = givenUp
		m.todo.allTo(m.waiting)
		m.staged.allTo(m.waiting)
		m.holes.allTo(m.waiting)
		m.committing.allTo(m.staged)
	case 7:
		tr.DropEpoch(s)
		m.stop()
		m.phase = idle
		m.todo.allTo(m.waiting)
		m.staged.allTo(m.waiting)
		m.committing.allTo(m.waiting)
		for p := range m.waiting {
			delete(m.doubt, p)
		}
	case 8:
		w.wantAgain(m)
	case 9:
		if ok := tr.BulkFlush(s); ok != (m.kind == bulk && len(m.committing) == 0) {
			w.t.Fatal("BulkFlush:", ok)
		} else if ok {
			m.staged.allTo(m.committing)
		}
	case 10:
		if m.phase == bulk {
			tr.BulkLost(s)
			m.stop()
			m.staged.allTo(m.todo)
			m.committing.allTo(m.todo)
		}
	case 11:
		tr.RetryHoles(s)
		m.holes.allTo(m.waiting)
	}
}

func (w *world) wantAgain(m *model) {
	for p := range m.kept {
		// What is captured was rewritten: nobody wants again what was not sent.
		if !w.open[p] && !m.waiting[p] {
			w.t.Fatalf("%d is captured and was not rewritten", p)
		}
	}
	runs := w.runs()
	all := true
	for _, r := range runs {
		for p := r.First; p < r.End(); p++ {
			switch {
			case !m.staged[p]:
			case m.kind != bulk && (w.open[p] || m.waiting[p]):
				all = false
			default:
				m.staged.moveTo(m.todo, Run{p, 1})
			}
		}
	}
	if got := w.tr.WantAgain(m.s, runs); got != all {
		w.t.Fatalf("WantAgain: %v, want %v", got, all)
	}
}

func (w *world) doubt(m *model) {
	tr, s, r := w.tr, m.s, w.run()
	doubt := func(p uint64) {
		if !w.open[p] && !m.waiting[p] && !m.todo[p] && !m.holes[p] {
			m.doubt[p] = true
		}
	}
	switch w.rng.IntN(6) {
	case 0:
		if w.rng.IntN(8) == 0 {
			tr.DoubtAll(s)
			for p := range uint64(modelPages) {
				delete(m.doubt, p)
				doubt(p)
			}
		}
	case 1:
		set := blockdev.NewPageSet(modelPages)
		set.Add(r.First, r.Count)
		tr.Doubt(s, set)
		for p := range m.doubt { // what was in doubt is looked at again
			delete(m.doubt, p)
			doubt(p)
		}
		for p := r.First; p < r.End(); p++ {
			doubt(p)
		}
	case 2:
		tr.Equal(s, r.First, r.Count)
		m.doubt.moveTo(pageMap{}, r)
	case 3:
		tr.Differs(s, r.First, r.Count)
		m.doubt.moveTo(m.waiting, r)
	case 4:
		tr.Dirty(s, r.First, r.Count)
		for p := r.First; p < r.End(); p++ {
			m.waiting[p] = true
			delete(m.doubt, p)
		}
	case 5:
		first, count, ok := tr.NextDoubt(s, r.First, 5)
		for p := r.First; ok && p < first+count; p++ {
			if m.doubt[p] != (p >= first) {
				w.t.Fatalf("NextDoubt(%d): %d+%d", r.First, first, count)
			}
		}
	}
}

func (w *world) same(what string, got *blockdev.PageSet, want pageMap) {
	w.t.Helper()
	ok := got.Count() == uint64(len(want))
	for p := range want {
		ok = ok && got.Contains(p)
	}
	if !ok {
		var pages []uint64
		for r := range runsIn(got, 0, modelPages) {
			for p := r.First; p < r.End(); p++ {
				pages = append(pages, p)
			}
		}
		w.t.Fatalf("%s: %v, want %v", what, pages, slices.Sorted(maps.Keys(want)))
	}
}

func (w *world) check() {
	w.t.Helper()
	w.same("open", w.tr.open.PageSet, w.open)
	snap := w.tr.Snapshot()
	for i, m := range w.models {
		s := m.s
		w.same("waiting", s.waiting.PageSet, m.waiting)
		w.same("todo", s.todo.PageSet, m.todo)
		w.same("staged", s.staged.PageSet, m.staged)
		w.same("committing", s.committing.PageSet, m.committing)
		w.same("doubt", s.doubt, m.doubt)
		w.same("holes", s.holes, m.holes)
		w.same("captured", s.capture.pages, m.kept)
		needs := pageMap{}
		for _, part := range []pageMap{w.open, m.waiting, m.todo, m.staged, m.committing, m.holes} {
			needs.add(part)
		}
		w.same("needs", snap[i].Needs, needs)
		w.same("doubt copied", snap[i].Doubt, m.doubt)
		needs.add(m.doubt)
		if c := w.tr.Counts(s); c.Needs < uint64(len(needs)) || c.Todo != uint64(len(m.todo)) || c.Captured != uint64(len(m.kept)) {
			w.t.Fatalf("%+v, needs %d", c, len(needs))
		}
		if m.s.capturing != (m.phase == epoch) {
			w.t.Fatal("capturing:", m.s.capturing)
		}
		for p := range m.todo {
			if m.staged[p] || m.holes[p] {
				w.t.Fatalf("%d is in todo and elsewhere", p)
			}
		}
	}
}

func TestTrackerLikeModel(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, seed)
		for step := range 500 {
			i := w.rng.IntN(len(w.models))
			switch n := w.rng.IntN(40); {
			case n < 10:
				w.begin()
			case n < 18:
				w.end()
			case n < 30:
				w.read(w.models[i])
			case n < 33:
				w.fetch(w.models[i])
			case n < 35:
				w.cut()
			case n < 37:
				w.pass(i)
			default:
				w.doubt(w.models[i])
			}
			if step%9 == 0 {
				w.check()
			}
		}
	}
}

func TestOldest(t *testing.T) {
	c := newClock()
	tr := NewTracker(100, nullMarker{}, c.now)
	a := tr.AddConsumer("a", NewCapture(CaptureConfig{Pages: 100, Memory: 1 << 20}))
	b := tr.AddConsumer("b", nil)
	write := func(p uint64) {
		w, err := tr.Begin(p, 1)
		if err != nil {
			t.Fatal(err)
		}
		tr.End(w)
	}
	want := func(what string, s *Sets, seconds int) {
		t.Helper()
		if got := s.Oldest(c.at); got != time.Duration(seconds)*time.Second {
			t.Errorf("%s: %s is %v behind, want %d s", what, s.Name(), got, seconds)
		}
	}
	tick := func() { c.at = c.at.Add(time.Second) }
	want("fresh", a, 0)
	write(1)
	tick()
	want("open", a, 1)
	tr.CutStep(a.Epoch())
	write(2)
	tick()
	want("todo", a, 2)
	claim, _ := tr.ClaimTodo(a, 10)
	tr.Read(a, claim, claim.Run)
	tr.Release(a, claim)
	if err := tr.StartCommit(a); err != nil {
		t.Fatal(err)
	}
	want("committing", a, 2)
	want("waiting", b, 2)
	tr.Committed(a)
	want("committed", a, 1)
	want("committed for another", b, 2)
	tr.CutStep(b.Bulk())
	want("after another's cut", a, 1)
	tick()
	want("later", a, 2)
	want("later", b, 3)
}

// TestOldRound: what was claimed in a pass that is over counts for nothing, however late it comes.
func TestOldRound(t *testing.T) {
	tr := NewTracker(100, nullMarker{}, newClock().now)
	s := tr.AddConsumer("m", NewCapture(CaptureConfig{Pages: 100, Memory: 1 << 20}))
	tr.Dirty(s, 0, 10)
	tr.CutStep(s.Epoch())
	old, _ := tr.ClaimTodo(s, 10)
	tr.GiveUp(s, nil)
	if _, ok := tr.ClaimTodo(s, 10); ok {
		t.Error("claimed of what is given up")
	}
	tr.CutStep(s.Epoch())
	next, ok := tr.ClaimTodo(s, 10)
	if !ok || next.Run != old.Run {
		t.Fatalf("claimed %+v", next)
	}
	if _, _, err := tr.Unread(s, old); err == nil {
		t.Error("the old claim is good for reading")
	}
	if _, ok := tr.Read(s, old, old.Run); ok || tr.Unreadable(s, old, old.Run) {
		t.Error("the old claim was entered as read")
	}
	tr.Release(s, old)
	if _, ok := tr.ClaimTodo(s, 10); ok {
		t.Error("the old claim released the new one")
	}
	if c := tr.Counts(s); c.Todo != 10 || c.Staged+c.Holes != 0 {
		t.Errorf("%+v", c)
	}
}
