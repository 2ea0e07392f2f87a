package sim

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"

	"github.com/blkmirror/blkmirror/engine"
)

// What a person has nodes look for and put right (docs/FAILSAFE.md), at any time, in every fourth history and some of
// the stubborn ones: verify, scrub and repair, which are cut off now and then. There disks rot more often than
// elsewhere, and at the end everything is looked at once more, so that nothing hidden is left.

// careful tells whether a history has it.
func careful(seed uint64) bool { return seed%4 == 1 || seed%(2*stubbornShare) == stubbornShare+7 }

// job is a task that may be cut off.
type job struct {
	what string
	end  context.CancelCauseFunc
}

var errInterrupted = errors.New("somebody has cut it off")

// employ has a node do a job.
func (n *node) employ(what string, do func(ctx context.Context)) {
	ctx, end := context.WithCancelCause(context.Background())
	j := &job{what, end}
	n.jobs = append(n.jobs, j)
	n.w.note("%s: %s", n.name, what)
	n.w.cover(coverAction, what)
	n.w.spawn(n, what, func() {
		if ctx.Err() == nil {
			do(ctx)
		}
		end(nil)
		n.jobs = slices.DeleteFunc(n.jobs, func(o *job) bool { return o == j })
	})
}

// interrupt cuts all jobs of a node off, as its end does.
func (n *node) interrupt() {
	for _, j := range n.jobs {
		j.end(errInterrupted)
	}
}

// working is how many jobs are under way.
func (w *World) working() (n int) {
	for _, node := range w.nodes() {
		n += len(node.jobs)
	}
	return n
}

// actCare has somebody begin a job or cut one off, or a disk rot.
func (w *World) actCare() {
	w.repairs(w.care)
	if w.quiet {
		return
	}
	i := w.care.IntN(len(w.mirrors))
	unproven := w.primary.volume != nil && w.primary.volume.Unproven()
	switch r := w.care.IntN(64); {
	case r < 8 || unproven && r < 32:
		w.verify(i)
	case r < 14:
		w.scrubPrimary()
	case r < 20:
		w.scrubMirror(w.mirrors[i])
	case r == 20:
		w.repairMirror(i, engine.RepairOptions{All: w.care.IntN(2) == 0, DryRun: w.care.IntN(2) == 0, From: w.believed(w.care)})
	case r < 26:
		n := w.nodes()[w.care.IntN(1+len(w.mirrors))]
		if len(n.jobs) > 0 {
			w.cover(coverAction, "job cut off")
			n.jobs[w.care.IntN(len(n.jobs))].end(errInterrupted)
		}
	case r < 30:
		w.rots(&w.mirrors[i].node)
	case r == 30 && w.seed%8 < 4: // what it does to a mirror is not told apart from a mirror's own fault
		w.rots(&w.primary.node)
	}
}

// rots turns a bit over on a disk.
func (w *World) rots(n *node) {
	p := w.care.Uint64N(uint64(w.setup.pages))
	n.disk.Rot(p, w.care.IntN(8*pageSize))
	n.spoilPage(p)
	w.note("page %d of %s rots", p, n.name)
	w.cover(coverFault, "a page rots where it is looked for")
}

// repairs has mirrors repaired that are read-only, now and then, and in the end in any case.
func (w *World) repairs(dice *rand.Rand) {
	for i, l := range w.primary.lines {
		if w.primary.volume != nil && l.shipper.ReadOnly() && len(w.primary.jobs) == 0 && (w.quiet || dice.IntN(6) == 0) {
			w.repairMirror(i, engine.RepairOptions{From: w.believed(dice)})
		}
	}
}

// believed is whom a repair believes: in the end the primary, also where that is rotten itself.
func (w *World) believed(dice *rand.Rand) string {
	if w.quiet || dice.IntN(2) == 0 {
		return "primary"
	}
	return ""
}

// repairMirror has a mirror repaired.
func (w *World) repairMirror(i int, o engine.RepairOptions) {
	p, m := w.primary, w.mirrors[i]
	v := p.volume
	if v == nil || p.stops {
		return
	}
	o.Mirror = w.setup.name(i)
	if !o.DryRun {
		m.mended, m.repairs = true, m.repairs+1
	}
	p.employ("repair", func(ctx context.Context) {
		l := p.lines[i]
		l.everything = l.everything || o.All && !o.DryRun // also behind one that is cut off, or that refuses others
		r, err := v.Repair(ctx, o)
		if !o.DryRun {
			m.repairs--
		}
		if err != nil || len(r) == 0 {
			w.note("repair of %s: %v", m.name, err)
			return
		}
		w.note("repair of %s: nothing %v, %d blocks, differs %v", m.name, r[0].Nothing, r[0].Blocks, r[0].Extents)
	})
}

// verify has a mirror compared with the primary.
func (w *World) verify(i int) {
	p, m := w.primary, w.mirrors[i]
	v := p.volume
	if v == nil || p.stops {
		return
	}
	p.employ("verify", func(ctx context.Context) {
		before := w.oracle.beforeVerify(i)
		r, err := v.Verify(ctx, engine.VerifyOptions{Mirror: w.setup.name(i)})
		if p.volume != v || p.dead {
			return
		}
		if err != nil {
			w.note("verify of %s: %v", m.name, err)
			w.oracle.cutOff(m, before, err)
			return
		}
		w.note("verify of %s: %d bytes equal or not, %d left out, from %d, differs %v", m.name, r[0].CheckedBytes, r[0].SkippedBytes, r[0].ResumedAt, r[0].Extents)
		w.cover(coverAction, "verify ends")
		w.oracle.verified(i, before, &r[0])
	})
}

// scrubPrimary has the primary compare its disk with its index, and scrubMirror a mirror.
func (w *World) scrubPrimary() {
	p := w.primary
	v := p.volume
	if v == nil || p.stops {
		return
	}
	w.scrub(&p.node, v.Scrub, func() bool { return p.volume == v })
}

func (w *World) scrubMirror(m *mirrorNode) {
	x := m.m
	if x == nil || m.stops || m.dead {
		return
	}
	w.scrub(&m.node, x.Scrub, func() bool { return m.m == x })
}

func (w *World) scrub(n *node, do func(context.Context) ([]engine.ScrubResult, error), lives func() bool) {
	n.employ("scrub", func(ctx context.Context) {
		before := w.oracle.beforeScrub(n)
		r, err := do(ctx)
		if !lives() || n.dead {
			return
		}
		if err != nil {
			w.note("scrub of %s: %v", n.name, err)
			if w.inspects {
				w.failf("nothing is broken, and a scrub of %s ends with: %v", n.name, err)
			}
			return
		}
		w.cover(coverAction, "scrub ends")
		w.oracle.scrubbed(n, before, &r[0])
	})
}

// inspect looks at everything in the end, when nothing goes on any more, and has what differs repaired. What the
// disks have hidden so far may hide no longer, but what is told of the primary's.
func (w *World) inspect() {
	w.inspects = true
	w.finish()
	w.scrubPrimary()
	for _, m := range w.mirrors {
		w.scrubMirror(m)
	}
	w.finish()
	for i := range w.mirrors {
		for range 2 { // the first may go on where one was cut off long ago
			w.verify(i)
			w.finish()
		}
	}
	w.calm()
	for _, m := range w.mirrors {
		for page := range uint64(w.setup.pages) {
			told := slices.Contains(w.primary.volume.Rotten(), page*pageSize/uint64(w.setup.block))
			if !told && m.disk.PageID(page) != w.primary.disk.PageID(page) {
				w.failf("everything was verified and repaired, and page %d of %s differs", page, m.name)
			}
		}
	}
}

// finish goes on until all jobs have ended, and whatever mirrors compare by themselves.
func (w *World) finish() {
	busy := func(m *mirrorNode) bool { return m.m == nil || m.m.Busy() }
	for n := 0; w.working() > 0 || slices.ContainsFunc(w.mirrors, busy); n++ {
		if n == w.setup.patience {
			w.failf("liveness: nothing is broken, and after %d steps a job is still under way: %s", n, w.lacking())
		}
		w.take()
	}
}
