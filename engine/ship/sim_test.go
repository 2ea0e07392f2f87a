package ship_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/wire"
)

// A primary and a mirror in one thread, from one seed: both cores, the real tracker and write path, and
// models of the line, of both journals and of staging. Writes, cuts, losses and crashes come in any order.
// After every step
//
//   - the mirror shows the primary at its committed cut, exactly (I3);
//   - what differs is in needs, and what is not in needs would survive a crash of the mirror (I2);
//   - neither side finds that the other breaks the protocol;
//
// and when nothing is broken any more, both sides are soon equal.
//
//	go test ./engine/ship -run TestSimulated -sim.seed 17 -sim.steps 20000 -v

const (
	pageSize    = blockdev.PageSize
	blockPages  = 4
	regionPages = 1024
	simRegions  = 5
	simPages    = (simRegions-1)*regionPages + activePages
	activePages = 30 // at the front of each region; the others stay zero on both sides
	keepHot     = 5 * time.Second
	payload     = 1 << 20 // bytes that a page takes on the wire, so that staging is synced now and then
	roomy       = 1 << 40
	lineRecords = 40 // unanswered ones
)

var (
	le         = binary.LittleEndian
	generation = wire.Generation{ID: [16]byte{7}, Counter: 1}

	simSeed  = flag.Uint64("sim.seed", 0, "run only this seed of the simulation")
	simSteps = flag.Int("sim.steps", 2100, "steps of the simulation with each seed")
)

// simConn is a connection: what is on its way in both directions.
type simConn struct {
	down []any // wire.Message or *dataMsg
	up   []wire.Message
}

type world struct {
	t      *testing.T
	seed   uint64
	rng    *rand.Rand
	config ship.Config
	clock  time.Time
	last   []string // of what happened
	nth    int

	p       *simPrimary
	m       *simMirror
	focus   uint64              // the region that is written most by now
	history map[uint64][]uint64 // content of the active pages by cut
	written uint64              // the last content that was given out
	known   bool                // nothing happened to the mirror that the primary cannot know yet
	trouble int                 // in a hundred steps
	wild    bool                // one side may be put back to an older state, or replaced
	quiet   bool                // nothing is broken any more

	backupM *simMirror
	backupP *simPrimary
}

func (w *world) now() time.Time { return w.clock }

func (w *world) version() uint64 {
	w.written++
	return w.written
}

func (w *world) log(format string, args ...any) {
	w.last = append(w.last, fmt.Sprintf("%5d ", w.nth)+fmt.Sprintf(format, args...))
	if len(w.last) > 120 {
		w.last = slices.Clone(w.last[60:])
	}
}

func (w *world) story() string {
	return fmt.Sprintf("%s\nprimary %v\nmirror at %+v\nseed %d, step %d: ", strings.Join(w.last, "\n"), w.p, w.m.facts.Mirror, w.seed, w.nth)
}

// cut notes what the primary holds at a cut.
func (w *world) cut(n uint64) {
	var content []uint64
	for p := range active {
		content = append(content, w.p.dev.pages[p])
	}
	w.history[n] = content
}

// cutLine breaks the connection: the primary knows at once, the mirror when it has read what it already got.
func (w *world) cutLine() {
	if c := w.p.session; c != nil {
		w.cutLineAt(w.rng.IntN(len(c.down) + 1))
	}
}

// cutLineAt has so many messages arrive at the mirror.
func (w *world) cutLineAt(n int) {
	c := w.p.session
	w.log("line cut with %d and %d on the way, %d arrive", len(c.down), len(c.up), n)
	c.down = c.down[:n]
	w.p.lost()
}

// cutBeforeCommit loses a Commit and what was sent behind it.
func (w *world) cutBeforeCommit() {
	if w.p.session == nil {
		return
	}
	isCommit := func(m any) bool { _, ok := m.(*wire.Commit); return ok }
	down := w.p.session.down
	if i := slices.IndexFunc(down, isCommit); i >= 0 && len(down) > i+1+w.rng.IntN(4) {
		w.cutLineAt(i)
	}
}

func hashOf(content []uint64) wire.Hash {
	b := make([]byte, 0, 8*len(content))
	for _, v := range content {
		b = le.AppendUint64(b, v)
	}
	return wire.Sum(b)
}

func newSimWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 5)), clock: time.Unix(1e6, 0), history: map[uint64][]uint64{}}
	w.config = ship.Config{Interval: time.Duration(w.rng.IntN(3)/2) * 300 * time.Millisecond, BulkWhenFull: w.rng.IntN(2) == 0}
	w.wild, w.trouble = seed%4 == 3, 1+w.rng.IntN(3)
	dev := &simDevice{pages: make([]uint64, simPages), unsaved: map[uint64]uint64{}, bad: map[uint64]bool{}}
	for p := range active {
		if w.rng.IntN(2) == 0 {
			dev.pages[p] = w.version()
		}
	}
	w.m = newSimMirror(w)
	w.p = newSimPrimary(w, dev, &simJournal{hot: map[uint64]bool{}})
	return w
}

// active are the pages that are ever written.
func active(yield func(uint64) bool) {
	for r := range uint64(simRegions) {
		for p := range uint64(activePages) {
			if !yield(r*regionPages + p) {
				return
			}
		}
	}
}

// page is one of them.
func (w *world) page() uint64 {
	switch w.rng.IntN(100) {
	case 0:
		w.focus = w.rng.Uint64N(simRegions)
	case 1, 2:
		return w.rng.Uint64N(simRegions)*regionPages + w.rng.Uint64N(activePages)
	}
	return w.focus*regionPages + w.rng.Uint64N(activePages)
}

func (w *world) write() {
	if w.rng.IntN(15) == 0 {
		w.p.tracker.CutStep(w.p.index.Bulk()) // of another consumer
	}
	first := w.page()
	n := 1 + w.rng.Uint64N(min(6, activePages-first%regionPages))
	off := int64(first) * pageSize
	if w.rng.IntN(6) == 0 {
		w.must(w.p.path.Zero(off, int64(n)*pageSize, true))
		return
	}
	b := make([]byte, n*pageSize)
	for i := range n {
		le.PutUint64(b[i*pageSize:], w.version())
	}
	w.must(w.p.path.WriteAt(b, off))
}

func (w *world) must(err error) {
	if err != nil {
		w.t.Fatalf("%s%v", w.story(), err)
	}
}

// move does one thing of the ordinary course of things.
func (w *world) move(which int) {
	p, m := w.p, w.m
	switch which {
	case 0:
		p.drive()
	case 1:
		p.read()
	case 2:
		if len(p.hands) > 0 && p.session != nil && len(p.kept) < lineRecords {
			p.ship(w.rng.IntN(len(p.hands)))
		}
	case 3:
		if m.session != nil && len(m.session.down) > 0 && !m.core.Holding() {
			m.guard(m.receive)
		}
	case 4:
		if p.session != nil && len(p.session.up) > 0 {
			msg := p.session.up[0]
			p.session.up = p.session.up[1:]
			p.handle(msg)
		}
	case 5:
		if m.applying {
			m.guard(func() { m.apply(!w.quiet && w.rng.IntN(2) == 0) })
		}
	case 6:
		if len(m.writes) > 0 {
			m.guard(func() { m.write(0) })
		}
	case 7:
		if len(m.compares) > 0 {
			m.guard(m.compare)
		}
	case 8:
		if p.session == nil && !p.stopped {
			m.guard(func() { p.connect(m) })
		}
	case 9:
		m.guard(m.measure)
	}
}

// disturb does one thing that is out of the ordinary.
func (w *world) disturb() {
	p, m := w.p, w.m
	switch w.rng.IntN(21) {
	case 0, 1, 2:
		w.cutLine()
	case 20:
		w.log("a short pause")
		p.core.Pause()
		for range 3 {
			p.drive()
		}
		if !p.paused {
			p.core.Resume()
		}
	case 3:
		w.log("mirror crashes")
		w.cutLine()
		m.restart()
	case 4:
		m.crashIn = 1 + w.rng.IntN(8)
	case 5:
		w.restartPrimary(w.rng.IntN(2) == 0)
	case 6:
		p.beginCheckpoint(w.rng.IntN(3))
		if w.rng.IntN(2) == 0 {
			w.write()
		}
		if w.rng.IntN(4) > 0 {
			w.log("checkpoint")
			p.endCheckpoint(false)
		}
	case 7:
		w.log("clean stop")
		w.cutLine()
		p.beginCheckpoint(0)
		p.endCheckpoint(true)
		w.p = newSimPrimary(w, p.dev, p.journal)
	case 8:
		w.log("pause")
		p.paused = true
		p.core.Pause()
	case 9, 10:
		w.resume(w.rng.IntN(4) == 0)
	case 11:
		w.log("want a cut above %d", p.journal.appended.cut)
		p.core.WantCut(p.journal.appended.cut)
	case 12:
		w.log("little room")
		m.limit = m.staged() + int64(w.rng.IntN(20*payload))
		m.guard(m.measure)
	case 13:
		m.limit = roomy
		m.guard(m.measure)
	case 14:
		if m.facts.UUID == [16]byte{} {
			return
		}
		first := w.page()
		w.log("mirror doubts %d", first)
		m.guard(func() { m.doubt(first, 1+w.rng.Uint64N(min(4, activePages-first%regionPages))) })
	case 15:
		for range 1 + w.rng.IntN(20) {
			p.dev.bad[w.page()] = true
		}
		w.log("%d pages cannot be read", len(p.dev.bad))
	case 16:
		clear(p.dev.bad)
	case 17:
		w.clock = w.clock.Add(time.Duration(w.rng.IntN(90)) * time.Second)
	case 18:
		if w.wild {
			w.turnBack()
		}
	case 19:
		pages := blockdev.NewPageSet(simPages)
		for range w.rng.IntN(5) {
			pages.Add(w.page(), 1)
		}
		w.log("primary doubts %d pages", pages.Count())
		p.tracker.Doubt(p.sets, pages)
	}
}

func (w *world) resume(overwrite bool) {
	w.log("resume, overwrite %t", overwrite)
	p := w.p
	p.paused, p.stopped = false, false
	p.core.Resume()
	clear(p.tries)
	p.overwrite = p.overwrite || overwrite
	if p.core.State().Phase == ship.Refused {
		w.cutLine()
	}
}

// restartPrimary ends its process, with power for the disks or not.
func (w *world) restartPrimary(power bool) {
	w.log("primary crashes, disks keep power: %t", power)
	w.cutLine()
	p := w.p
	if !power {
		for _, at := range slices.Sorted(maps.Keys(p.dev.unsaved)) {
			if w.rng.IntN(2) == 0 {
				p.dev.pages[at] = p.dev.unsaved[at]
			}
		}
		clear(p.dev.unsaved)
	}
	if w.rng.IntN(2) == 0 {
		p.sync() // what was appended happened to arrive
	}
	w.p = newSimPrimary(w, p.dev, p.journal)
}

// turnBack puts one side back to an older state, or has an empty mirror in the place of the old one.
func (w *world) turnBack() {
	w.cutLine()
	switch which := w.rng.IntN(5); {
	case which < 2 || w.backupM == nil:
		w.log("backups are made")
		w.m.restart()
		w.backupM = w.m.clone()
		d := w.p.dev
		w.backupP = &simPrimary{journal: w.p.journal.clone(), dev: &simDevice{pages: slices.Clone(d.pages), unsaved: map[uint64]uint64{}, bad: map[uint64]bool{}}}
	case which == 2:
		w.log("mirror is put back")
		w.known = false
		w.m = w.backupM.clone()
		w.m.open()
	case which == 3:
		w.log("mirror is replaced by an empty one")
		w.known = false
		w.m = newSimMirror(w)
	default:
		w.log("primary is put back")
		w.known = false
		d := w.backupP.dev
		w.p = newSimPrimary(w, &simDevice{pages: slices.Clone(d.pages), unsaved: map[uint64]uint64{}, bad: map[uint64]bool{}}, w.backupP.journal.clone())
	}
}

// check holds both sides against the invariants.
func (w *world) check() {
	f := &w.m.facts.Mirror
	excused := func(p uint64, lists ...[]blockdev.Extent) bool {
		for _, list := range lists {
			for _, e := range list {
				if int64(p)*pageSize >= e.Offset && int64(p)*pageSize < e.End() {
					return true
				}
			}
		}
		return false
	}
	if at, ok := w.history[f.Committed]; ok && !f.Inconsistent && f.Committed != 0 {
		i := 0
		for p := range active {
			want := at[i]
			i++
			if (w.m.shows(p, false) != want || w.m.shows(p, true) != want) && !excused(p, f.Holes, f.Doubts) {
				w.t.Fatalf("%sthe mirror at cut %d shows %d (or %d) in page %d, the primary had %d", w.story(), f.Committed,
					w.m.shows(p, false), w.m.shows(p, true), p, want)
			}
		}
	}
	if !w.known {
		return
	}
	n := w.p.tracker.Snapshot()[0]
	for p := range active {
		want := w.p.dev.pages[p]
		if (w.m.shows(p, false) != want || w.m.shows(p, true) != want) && !n.Needs.Contains(p) && !n.Doubt.Contains(p) && !excused(p, f.Doubts) {
			w.t.Fatalf("%spage %d is not needed: the mirror shows %d (or %d), the primary has %d", w.story(), p, w.m.shows(p, false), w.m.shows(p, true), want)
		}
	}
}

// run goes so many steps. How fast everything goes in relation to everything else changes now and then: a slow
// line, a slow disk, a mirror that says nothing for long.
func (w *world) run(steps int) {
	var pace []int
	for range steps {
		w.nth++
		if len(pace) == 0 || w.rng.IntN(80) == 0 {
			pace = pace[:0]
			for which := range 10 {
				for range []int{0, 1, 2, 6}[w.rng.IntN(4)] {
					pace = append(pace, which)
				}
			}
			pace = append(pace, 0, 8)
		}
		switch n := w.rng.IntN(100); {
		case n < 12:
			w.write()
		case n < 14:
			w.clock = w.clock.Add(time.Duration(w.rng.IntN(4000)) * time.Millisecond)
		case n < 14+w.trouble:
			w.disturb()
		case n < 20 && w.rng.IntN(3) == 0:
			w.cutBeforeCommit()
		default:
			w.move(pace[w.rng.IntN(len(pace))])
		}
		w.check()
	}
}

// settle ends all faults; then both sides have to be equal before long.
func (w *world) settle() {
	w.quiet = true
	w.log("nothing is broken any more")
	w.m.crashIn, w.m.limit = 0, roomy
	clear(w.p.dev.bad)
	w.resume(true)
	for range 300 {
		w.clock = w.clock.Add(500 * time.Millisecond)
		for range 40 {
			for which := range 10 {
				w.move(which)
			}
		}
		w.nth++
		w.check()
		n := w.p.tracker.Snapshot()[0]
		if w.known && n.Needs.Count() == 0 && n.Doubt.Count() == 0 && len(w.m.facts.Mirror.Epochs) == 0 && !w.m.facts.Mirror.Inconsistent {
			if !slices.Equal(w.p.dev.pages, w.m.dev) {
				w.t.Fatalf("%snothing is needed, and the sides differ", w.story())
			}
			return
		}
	}
	w.t.Fatalf("%sthe sides do not come together", w.story())
}

// TestSimulated runs many seeds.
func TestSimulated(t *testing.T) {
	seeds := []uint64{*simSeed}
	if *simSeed == 0 {
		seeds = seeds[:0]
		for s := range uint64(60) {
			seeds = append(seeds, s+1)
		}
	}
	for _, seed := range seeds {
		w := newSimWorld(t, seed)
		for range 3 {
			w.run(*simSteps / 3)
			w.settle()
			w.quiet = false
		}
	}
}
