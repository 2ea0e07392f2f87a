package replica

import (
	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

func newSet(size int64) *blockdev.PageSet { return blockdev.NewPageSet(pages(size)) }

// bulk opens the device for writing in place, up to the next Flush. The first byte comes after the facts say
// so, durably, with the number of that Flush, and after the index is gone. Where the device was open already,
// the index holds what passed by since.
func (c *Core) bulk(m *wire.Bulk) bool {
	s, f := c.session, c.mirror()
	switch {
	case m.Base != f.Committed:
		return c.end(wire.CodeIntegrity, "Bulk on %d, and the mirror is at %d", m.Base, f.Committed)
	case m.Number <= f.Committed:
		return c.end(wire.CodeProtocol, "Bulk to %d, and the mirror is at %d", m.Number, f.Committed)
	case len(f.Epochs) > 0 || s.offers > 0 || s.writes > 0:
		return false
	}
	c.drop()
	first := !f.InPlace || !f.Inconsistent
	if first || f.Under != m.Number {
		f.InPlace, f.Inconsistent, f.Under = true, true, m.Number
		c.journal()
	}
	if first {
		c.do(DropIndex{})
	}
	s.bulk, s.refused = true, false
	return true
}

// direct has a run written in place.
func (c *Core) direct() {
	if !c.session.bulk {
		c.end(wire.CodeProtocol, "Data of epoch 0 outside bulk")
		return
	}
	c.session.writes++
	c.stirred++
	c.settled = false
	c.do(Write{ReadBack: c.session.repairing})
}

// placed notes what was written in place. It is vouched for again from the next Flush on.
func (c *Core) placed(extents []blockdev.Extent) {
	if c.doubts.Count() > 0 || c.session.repairing {
		c.session.placed = append(c.session.placed, extents...)
	}
}

// flush makes all that came before it in bulk durable, and its number the place from which to go on.
func (c *Core) flush(m *wire.Flush) bool {
	s, f := c.session, c.mirror()
	switch {
	case !s.bulk:
		return c.end(wire.CodeProtocol, "Flush %d outside bulk", m.Number)
	case m.Number != f.Under:
		return c.end(wire.CodeProtocol, "Flush %d, and Bulk named %d", m.Number, f.Under)
	case s.writes > 0:
		return false
	}
	c.do(FlushDevice{})
	c.settled = true
	f.Committed, f.Applied, f.Bulk, f.Under = m.Number, m.Number, true, 0
	s.bulk = false
	f.Holes, f.Unproven = nil, false
	f.Incarnation = s.incarnation
	if clearWhole(c.doubts, s.placed, c.facts.Size) {
		c.listDoubts()
	}
	if s.repairing && clearWhole(c.quarantine, s.placed, c.facts.Size) {
		c.mended()
	}
	s.placed = nil
	c.settleHistory()
	c.journal()
	c.send(&wire.Flushed{Number: m.Number, Position: m.Position})
	return true
}

// offer compares hashes with the device, when nothing is staged or unapplied and what was written is durable.
func (c *Core) offer(m *wire.Offer) bool {
	s := c.session
	if m.Flags&wire.OfferVerify != 0 {
		s.checks = append(s.checks, m)
		c.check()
		return true
	}
	switch {
	case c.staged != nil:
		return c.end(wire.CodeProtocol, "Offer %d while epoch %d is staged", m.Seq, c.staged.Number)
	case len(c.mirror().Epochs) > 0 || s.writes > 0:
		return false
	}
	if !c.settled {
		c.do(FlushDevice{})
		c.settled = true
	}
	s.offers++
	c.do(Compare{m})
	return true
}

// check answers the offers of a verify from a device that holds the committed cut and nothing else.
func (c *Core) check() {
	s := c.session
	if s == nil || s.ended || len(s.checks) == 0 || len(c.mirror().Epochs) > 0 || s.writes > 0 {
		return
	}
	for _, m := range s.checks {
		s.offers++
		c.do(Compare{m})
	}
	s.checks = nil
}

// compared ends an offer. What is equal is vouched for again; the journal learns it with the next record
// that is made anyway, or when the last doubt goes.
func (c *Core) compared(e *Compared) {
	c.session.offers--
	c.foundEqual(e.Equal)
	if c.doubts.Count() == 0 || !clearWhole(c.doubts, e.Equal, c.facts.Size) {
		return
	}
	c.listDoubts()
	if c.doubts.Count() == 0 {
		c.journal()
	}
}
