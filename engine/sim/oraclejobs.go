package sim

import (
	"slices"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// What verify and scrub say has to be so: nothing differs that no disk has spoilt, and what was spoilt before such
// a job began and stayed as it was is found.

// sight is what somebody who sees through everything sees when a job begins.
type sight struct {
	step    uint64
	bad     []bool // blocks that the job has to find, if nothing touches them until it ends
	ours    []bool // blocks of which the primary's index knows that the mirror has what was written, and the primary not
	entries []wire.Hash
}

// pagesOf are the pages of a block.
func (w *World) pagesOf(block int) (first, end uint64) {
	per := uint64(w.setup.block) / pageSize
	return uint64(block) * per, min(uint64(block+1)*per, uint64(w.setup.pages))
}

// anyPage tells whether a page of a block is something.
func (w *World) anyPage(block int, is func(page uint64) bool) bool {
	first, end := w.pagesOf(block)
	for page := first; page < end; page++ {
		if is(page) {
			return true
		}
	}
	return false
}

// still tells that a block was not touched since a step.
func (n *node) still(block int, step uint64) bool {
	return n.renewed <= step && !n.w.anyPage(block, func(page uint64) bool { return n.changed[page] > step })
}

// spoilt tells that a page of a block was changed behind the engine's back in one of these ways, and was so at a
// step or later.
func (n *node) spoilt(block int, step uint64, ways ...taint) bool {
	return n.w.anyPage(block, func(page uint64) bool {
		return slices.ContainsFunc(ways, func(t taint) bool {
			at, was := n.stains[t][page]
			return n.taint[page] == t || was && at >= step
		})
	})
}

func covers(list []engine.CheckedExtent, off int64) bool {
	return slices.ContainsFunc(list, func(e engine.CheckedExtent) bool { return e.Offset <= off && off < e.Offset+e.Length })
}

// unneeded tells that a mirror needs no page of a block.
func (o *oracle) unneeded(mirror, block int) bool {
	return !o.w.anyPage(block, func(page uint64) bool { return o.w.primary.volume.Needed(mirror, page) })
}

// beforeVerify finds what a verify has to find.
func (o *oracle) beforeVerify(mirror int) *sight {
	p, m := o.w.primary, o.w.mirrors[mirror]
	s := &sight{step: o.w.step, bad: make([]bool, o.w.blocks()), ours: make([]bool, o.w.blocks())}
	for b := range s.bad {
		s.bad[b] = o.unneeded(mirror, b) &&
			o.w.anyPage(b, func(page uint64) bool { return p.disk.PageID(page) != m.disk.PageID(page) })
		entry, known := p.index.Known(uint64(b))
		s.ours[b] = s.bad[b] && known && !o.unsure(&p.node, b) && p.hashOf(b) != entry && m.hashOf(b) == entry
	}
	return s
}

// cutOff notes a verify that did not end: the next one may go on where it stopped.
func (o *oracle) cutOff(m *mirrorNode, before *sight, err error) {
	if o.w.inspects {
		o.w.failf("nothing is broken, and a verify of %s ends with: %v", m.name, err)
	}
	if m.verify.since == nil || m.verify.life != o.w.primary.opens {
		m.verify.since, m.verify.life = before, o.w.primary.opens
	}
}

// verified checks what a verify says.
func (o *oracle) verified(mirror int, before *sight, r *engine.VerifyResult) {
	p, m := o.w.primary, o.w.mirrors[mirror]
	first := before // of those that this one goes on with
	if r.ResumedAt > 0 && m.verify.life == p.opens && m.verify.since != nil {
		first = m.verify.since
		o.w.cover(coverAction, "verify goes on")
	}
	m.verify.since = nil
	for b := range before.bad {
		off, s := int64(b)*o.w.setup.block, before
		if off < r.ResumedAt {
			s = first
		}
		switch {
		case covers(r.Rot, off) && !p.spoilt(b, before.step, hidden):
			o.w.failf("verify says that block %d of the primary is rotten, and its disk has not changed it", b)
		case covers(r.Extents, off):
			o.w.cover(coverAction, "verify finds a difference")
			switch {
			case m.spoilt(b, before.step, hidden, found):
			case !p.spoilt(b, before.step, hidden):
				o.w.failf("verify says that block %d of %s differs, and no disk has changed it", b, m.name)
			case before.ours[b] && p.still(b, before.step) && m.still(b, before.step):
				o.w.failf("verify says that block %d of %s differs, and the primary's index knows that it is its own rot", b, m.name)
			}
		case covers(r.Rot, off):
			o.w.cover(coverAction, "verify finds rot of the primary")
		case s.bad[b] && r.SkippedBytes == 0 && p.still(b, s.step) && m.still(b, s.step) && o.unneeded(mirror, b):
			o.w.failf("verify does not find that block %d of %s differs, as it did when it began at step %d", b, m.name, s.step)
		}
	}
	if o.w.inspects && r.SkippedBytes > 0 {
		o.w.failf("nobody writes, and a verify of %s leaves %d bytes out", m.name, r.SkippedBytes)
	}
}

// unsure tells that a block of a node is none that a scrub judges, of a primary because it is not indexed, of a
// mirror because it is in doubt.
func (o *oracle) unsure(n *node, block int) bool {
	if p := o.w.primary; n == &p.node {
		needs := p.volume.NeedsIndex()
		return p.volume.Unproven() || o.w.anyPage(block, needs.Contains)
	}
	for _, m := range o.w.mirrors {
		if n == &m.node {
			return o.w.anyPage(block, func(page uint64) bool { return in(page, m.facts.Doubts) })
		}
	}
	return true
}

// beforeScrub finds what a scrub has to find: what has another hash than its entry.
func (o *oracle) beforeScrub(n *node) *sight {
	s := &sight{step: o.w.step, bad: make([]bool, o.w.blocks()), entries: make([]wire.Hash, o.w.blocks())}
	for b := range s.bad {
		entry, known := n.index.Known(uint64(b))
		s.entries[b] = entry
		s.bad[b] = known && n.spoilt(b, s.step, hidden) && !o.unsure(n, b) && n.hashOf(b) != entry
	}
	return s
}

// hashOf is what a block hashes to now.
func (n *node) hashOf(block int) wire.Hash {
	var c checkedBlock
	first, end := n.w.pagesOf(block)
	c.look(n, first, end)
	return c.hash
}

// scrubbed checks what a scrub says.
func (o *oracle) scrubbed(n *node, before *sight, r *engine.ScrubResult) {
	p, w := o.w.primary, o.w
	primary := n == &p.node
	for b := range before.bad {
		entry, known := n.index.Known(uint64(b))
		still := n.still(b, before.step) && known && entry == before.entries[b] && !o.unsure(n, b)
		switch {
		case covers(r.Extents, int64(b)*w.setup.block):
			w.cover(coverAction, "scrub finds rot")
			// What somebody else wrote to a mirror is in doubt; in quarantine as well, it is told like rot.
			if !n.spoilt(b, before.step, hidden) && (primary || !n.spoilt(b, before.step, found)) {
				w.failf("scrub says that block %d of %s is rotten, and its disk has not changed it", b, n.name)
			}
			if primary && still && !slices.Contains(p.volume.Rotten(), uint64(b)) {
				w.failf("block %d of %s was found rotten, and is not told", b, n.name)
			}
		case before.bad[b] && still && (primary || r.SkippedBytes == 0):
			w.failf("scrub does not find that block %d of %s is rotten, as it was when it began at step %d", b, n.name, before.step)
		}
	}
	if w.inspects && !primary && r.SkippedBytes > 0 {
		w.failf("nothing goes on, and a scrub of %s leaves %d bytes out", n.name, r.SkippedBytes)
	}
	for _, m := range w.mirrors {
		if m.follow(); n == &m.node && len(r.Extents) > 0 && !m.mended && m.facts.ReadOnly.Class == 0 && !m.failed {
			w.failf("rot was found on %s, and it is not read-only", n.name)
		}
	}
}

// blamed checks why a mirror became read-only: verify and scrub find only what a disk has changed.
func (o *oracle) blamed(m *mirrorNode, why *journal.ReadOnly) {
	for _, bad := range why.Blocks {
		b := int(bad.Offset / o.w.setup.block)
		switch {
		case why.Class == journal.ClassRot && !m.spoilt(b, 0, hidden),
			why.Class == journal.ClassVerify && !m.spoilt(b, 0, hidden, found) && !o.w.primary.spoilt(b, 0, hidden):
			o.w.failf("I5: %s is read-only because of block %d, which no disk has changed: %s", m.name, b, why.Reason)
		}
	}
}

// checkRotten: what the primary knows to be rotten never passes for right.
func (o *oracle) checkRotten() {
	p := o.w.primary
	for _, b := range p.volume.Rotten() {
		entry, known := p.index.Known(b)
		if known && !o.unsure(&p.node, int(b)) && p.spoilt(int(b), o.w.step, hidden) && p.hashOf(int(b)) == entry {
			o.w.failf("I12: the index of the primary has rotten content of block %d, which is known to be rotten", b)
		}
	}
}
