package sim

import (
	"fmt"
	"slices"
)

// The oracle knows everything that happened, and says after every step whether the invariants of the design
// hold (I1 to I8, I11 to I14). What it knows comes from the disks and from the moments at which the world saw
// things happen, never from what the engine believes.

// content is the identity of a page's content: equal contents have equal ones.
type content = uint64

const (
	// nobody is the content of a page of a cut that no mirror can ever hold: its write died with its node.
	nobody = ^content(0)
	// anything is the content of a page that nobody can know of: it was changed behind the engine's back.
	anything = ^content(0) - 1
)

// cut is what the primary held at an instant.
type cut struct {
	number uint64
	pages  []content
}

type oracle struct {
	w        *World
	cuts     map[uint64]*cut // by number; of the present history
	highest  uint64          // number that ever left the primary
	inFlight []*clientOp     // entered and not ended
	flushes  []flushing
	written  []uint64        // step of the last change, by page of the primary
	doubtful map[uint64]bool // pages that a failed flush should have made durable: nobody can know
	used     map[uint64]bool // numbers of cuts and bulk flushes of the present history
	reasons  []reasons       // by mirror
}

// flushing is a client's flush under way, and what it has to make durable.
type flushing struct {
	op    *clientOp
	step  uint64
	pages []uint64
}

func newOracle(w *World) *oracle {
	return &oracle{w: w, cuts: map[uint64]*cut{}, written: make([]uint64, w.setup.pages), doubtful: map[uint64]bool{},
		used: map[uint64]bool{}, reasons: newReasons(w)}
}

// spoiled notes that a page of the primary was changed by its disk alone. Where a cut is still to be read from
// there, nobody can tell.
func (o *oracle) spoiled(page uint64) {
	o.written[page] = o.w.step
	for _, c := range o.cuts {
		if c.pages[page] != nobody {
			c.pages[page] = anything
		}
	}
}

// enter notes that a write has entered: every later cut holds it.
func (o *oracle) enter(op *clientOp) {
	op.entered = true
	o.inFlight = append(o.inFlight, op)
}

// taken notes a cut at its instant. Pages of writes in flight get their content when those have ended.
func (o *oracle) taken(number uint64) {
	if number <= o.highest {
		o.w.failf("cut number %d is used, %d was seen already", number, o.highest)
	}
	o.highest, o.used[number] = number, true
	c := &cut{number: number, pages: make([]content, o.w.setup.pages)}
	disk := o.w.primary.disk
	for p := range c.pages {
		if c.pages[p] = disk.PageID(uint64(p)); o.unknown(uint64(p)) {
			c.pages[p] = anything
		}
	}
	for _, op := range o.inFlight {
		op.cuts = append(op.cuts, c)
		first, end := op.pages()
		for p := first; p < end; p++ {
			c.pages[p] = nobody
		}
	}
	o.cuts[number] = c
}

// numbered notes a number that leaves the primary under which no cut is recorded: of a bulk flush.
func (o *oracle) numbered(number uint64) {
	if o.used[number] {
		o.w.failf("number %d is used for a flush, and was used already", number)
	}
	o.used[number] = true
}

// unknown tells whether the engine cannot know what a page of the primary holds: its disk changed it, or
// somebody else did and it is not compared yet.
func (o *oracle) unknown(page uint64) bool {
	p := o.w.primary
	return p.taint[page] == hidden || p.taint[page] == found && (p.volume == nil || p.volume.Unproven())
}

// answered notes the end of a client's request.
func (o *oracle) answered(op *clientOp, err error) {
	first, end := op.pages()
	o.because(-1, first, end)
	switch {
	case op.kind == "flush":
		o.flushed(op, err)
		return
	case !op.entered:
		return
	}
	o.settle(op, false)
	if err == nil && op.kind == "write" && !op.broken {
		o.onDisk(op)
	}
}

// settle gives the pages of a write in flight their content, in every cut that was taken since it entered.
func (o *oracle) settle(op *clientOp, died bool) {
	o.inFlight = slices.DeleteFunc(o.inFlight, func(x *clientOp) bool { return x == op })
	first, end := op.pages()
	for p := first; p < end; p++ {
		o.written[p] = o.w.step
		for _, c := range op.cuts {
			if c.pages[p] = o.w.primary.disk.PageID(p); died {
				c.pages[p] = nobody
			}
		}
	}
	op.cuts = nil
}

// onDisk checks that a write that was answered is on the disk.
func (o *oracle) onDisk(op *clientOp) {
	first, end := op.pages()
	for p := first; p < end; p++ {
		page := o.w.primary.disk.Page(p)
		lo, hi := max(op.off, int64(p)*pageSize), min(op.off+op.n, int64(p+1)*pageSize)
		if string(page[lo-int64(p)*pageSize:hi-int64(p)*pageSize]) != string(op.data[lo-op.off:hi-op.off]) {
			o.w.failf("%v was answered and page %d does not hold it", op, p)
		}
	}
}

// flushing notes what a client's flush has to make durable: what was answered before it began.
func (o *oracle) flushing(op *clientOp) {
	f := flushing{op: op, step: o.w.step}
	busy := o.busy()
	for p := range uint64(o.w.setup.pages) {
		if !o.w.primary.disk.Settled(p) && !busy[p] {
			f.pages = append(f.pages, p)
		}
	}
	o.flushes = append(o.flushes, f)
}

// flushed checks I7.
func (o *oracle) flushed(op *clientOp, err error) {
	i := slices.IndexFunc(o.flushes, func(f flushing) bool { return f.op == op })
	f := o.flushes[i]
	o.flushes = slices.Delete(o.flushes, i, i+1)
	busy := o.busy()
	for _, p := range f.pages {
		if err == nil && o.written[p] < f.step && !busy[p] && !o.w.primary.disk.Settled(p) && !o.doubtful[p] {
			o.w.failf("I7: a flush was answered, and page %d is not durable (changed at %d, flush at %d)", p, o.written[p], f.step)
		}
	}
}

// flushFailed notes what may never become durable, whatever later flushes say.
func (o *oracle) flushFailed() {
	for p := range uint64(o.w.setup.pages) {
		if !o.w.primary.disk.Settled(p) {
			o.doubtful[p] = true
		}
	}
}

// busy are the pages of writes in flight.
func (o *oracle) busy() map[uint64]bool {
	busy := map[uint64]bool{}
	for _, op := range o.inFlight {
		first, end := op.pages()
		for p := first; p < end; p++ {
			busy[p] = true
		}
	}
	return busy
}

// died forgets what was in flight when the primary died.
func (o *oracle) died() {
	for len(o.inFlight) > 0 {
		o.settle(o.inFlight[0], true)
	}
	o.flushes = nil
}

// check looks at everything.
func (o *oracle) check() {
	for i, m := range o.w.mirrors {
		o.checkMirror(m)
		if o.w.primary.volume != nil && m.trusted {
			o.checkNeeds(i, m)
		}
		if o.w.primary.volume != nil && o.w.step%16 == 0 {
			o.checkReasons(i, m)
		}
	}
	if o.w.primary.volume != nil {
		o.checkRefusal()
	}
	if o.w.step%16 == 0 {
		o.checkIndexes()
	}
}

// checkNeeds is I2: what is not needed is durable at the mirror with the primary's present content.
func (o *oracle) checkNeeds(i int, m *mirrorNode) {
	p := o.w.primary
	for page := range uint64(o.w.setup.pages) {
		now, held := p.disk.PageID(page), m.durable(page)
		if held == now || held == anything || m.taint[page] != clean || o.unknown(page) || p.volume.Needed(i, page) {
			continue
		}
		if in(page, m.facts.Doubts) {
			continue // it has said so durably, and says it again to every process of its primary
		}
		o.w.failf("I2: page %d is not in needs(%s), which holds %x of it, %s, and the primary %x",
			page, m.name, held, o.explain(page, held), now)
	}
}

// checkMirror is I3: outside of bulk the mirror's device shows a cut, exactly, and never an older one.
func (o *oracle) checkMirror(m *mirrorNode) {
	m.follow()
	f := &m.facts
	if !m.known || f.Inconsistent || f.InPlace || f.Bulk && len(f.Epochs) == 0 || m.base == nil {
		return
	}
	for page := range uint64(o.w.setup.pages) {
		id := m.disk.PageID(page)
		if m.base.allows(page, id) || m.taint[page] != clean || m.exempt(page) {
			continue
		}
		comes := func(c *cut) bool { return c.allows(page, id) || m.torn && c.pages[page] != m.base.pages[page] }
		if !slices.ContainsFunc(m.coming, comes) {
			o.w.failf("I3: page %d of %s at cut %d, where it was %x, holds %x, which is %s (epochs to come %v, torn %v)",
				page, m.name, m.base.number, m.base.pages[page], id, o.explain(page, id), f.Epochs, m.torn)
		}
	}
}

// allows tells whether a page of a mirror at this cut may hold this.
func (c *cut) allows(page uint64, id content) bool {
	return c.pages[page] == id || c.pages[page] == anything
}

// explain says where a content may come from, for the reader of a failure.
func (o *oracle) explain(page uint64, id content) string {
	if o.w.primary.disk.PageID(page) == id {
		return "what the primary holds now"
	}
	var in []uint64
	for n, c := range o.cuts {
		if c.pages[page] == id {
			in = append(in, n)
		}
	}
	slices.Sort(in)
	if len(in) == 0 {
		return "of no cut"
	}
	return fmt.Sprintf("of the cuts %v", in)
}

// equal says whether a mirror shows what the primary holds; for the end of a history.
func (o *oracle) equal(m *mirrorNode) error {
	for page := range uint64(o.w.setup.pages) {
		if m.disk.PageID(page) != o.w.primary.disk.PageID(page) && m.taint[page] != hidden && o.w.primary.taint[page] != hidden {
			return fmt.Errorf("page %d differs", page)
		}
	}
	return nil
}
