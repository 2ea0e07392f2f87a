package replica

import (
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// The fail-safe state (docs/FAILSAFE.md). A mirror that has found, or was told, that a block is not what it must
// be takes nothing new; what is in quarantine leaves it only when a repair finds it equal, or has brought it
// and read it back; the last of it ends the state.

// readOnly tells whether nothing new is taken.
func (c *Core) readOnly() bool { return c.mirror().ReadOnly.Class != 0 }

// ReadOnly is why nothing new is taken; its Class is 0 where that is not so.
func (c *Core) ReadOnly() journal.ReadOnly { return c.mirror().ReadOnly }

// QuarantinePages is how many pages a repair has still to settle.
func (c *Core) QuarantinePages() uint64 { return c.quarantine.Count() }

// mistrust makes the state durable, with all that is known of its cause, before the primary is told by the
// session's end. What is staged and not committed may rest on what is wrong, and is dropped.
func (c *Core) mistrust(cause journal.ReadOnly, extents []blockdev.Extent) {
	for _, e := range extents {
		c.quarantine.Add(c.pageRange(e))
	}
	ro := &c.mirror().ReadOnly
	if ro.Class == 0 {
		*ro = cause
	} else {
		room := max(0, journal.MaxBadBlocks-len(ro.Blocks))
		ro.Blocks = append(ro.Blocks[:len(ro.Blocks):len(ro.Blocks)], cause.Blocks[:min(room, len(cause.Blocks))]...)
	}
	c.listQuarantine()
	c.drop()
	c.journal()
	if s := c.session; s != nil && !s.ended {
		s.repairing = false
		c.end(wire.CodeReadOnly, "%s", c.readOnlyText())
	}
}

// unreadable puts into quarantine what the device gives an error for, save what is known. A repair that brings it
// anyway goes on.
func (c *Core) unreadable(e *Unreadable) {
	if !slices.ContainsFunc(e.Extents, func(x blockdev.Extent) bool { return !c.Quarantined(x) }) {
		return
	}
	if s := c.session; !e.Wanted || s == nil || !s.repairing {
		c.mistrust(e.Cause, e.Extents)
		return
	}
	for _, x := range e.Extents {
		c.quarantine.Add(c.pageRange(x))
	}
	c.listQuarantine()
	c.journal()
}

// flag has the kernel know that nobody is to write to the device: while the mirror is read-only and does not write
// itself. What it does then has begun with the flag cleared, since every event ends here.
func (c *Core) flag() {
	want := c.readOnly() && len(c.mirror().Epochs) == 0
	if s := c.session; s != nil && (s.repairing || s.writes > 0) {
		want = false
	}
	if want != c.flagged {
		c.flagged = want
		c.do(FlagDevice{want})
	}
}

func (c *Core) readOnlyText() string {
	return fmt.Sprintf("the mirror is read-only: %s; `blkmirror repair VOLUME` compares and brings what differs", c.mirror().ReadOnly.Reason)
}

// barred tells that an event is of a session that may not go on: nothing is staged or written in place while
// the mirror is read-only, save by a repair.
func (c *Core) barred(e Event) bool {
	if !c.readOnly() || c.session.repairing {
		return false
	}
	switch e := e.(type) {
	case *Suspect, *Repair:
		return false
	case *Offer:
		return e.Message.Flags&wire.OfferVerify == 0
	}
	return true
}

// suspect takes the primary's word that blocks here are not what they must be.
func (c *Core) suspect(e *Suspect) bool {
	m := e.Message
	cause := journal.ReadOnly{Class: journal.Class(m.Class), Epoch: m.Epoch, Since: e.Now}
	var extents []blockdev.Extent
	for _, b := range m.Entries {
		extents = append(extents, blockdev.Extent{Offset: b.Offset, Length: int64(b.Length)})
		if len(cause.Blocks) < journal.MaxBadBlocks {
			cause.Blocks = append(cause.Blocks, journal.BadBlock{Offset: b.Offset, Want: b.Want, Got: b.Got})
		}
	}
	first := m.Entries[0]
	cause.Reason = fmt.Sprintf("%v: %d bytes at %d are not what the primary has (%x)", cause.Class, first.Length, first.Offset, first.Want[:6])
	if first.Got != (wire.Hash{}) {
		cause.Reason += fmt.Sprintf(", but %x", first.Got[:6])
	}
	if n := len(m.Entries) - 1; n > 0 {
		cause.Reason += fmt.Sprintf("; and %d more", n)
	}
	c.mistrust(cause, extents)
	return true
}

// repair lets the session offer and stage, once everything that was committed before is applied.
func (c *Core) repair(m *wire.Repair) bool {
	if len(c.mirror().Epochs) > 0 || c.session.offers > 0 {
		return false
	}
	if !c.readOnly() {
		return true
	}
	c.session.repairing = true
	if m.All {
		c.quarantine.Fill() // it ends only when all was compared
	}
	return true
}

// mended takes pages out of quarantine that are durable, with the index, and known to be right. The last of
// them ends the state with the record that is made next.
func (c *Core) mended() {
	if !c.readOnly() {
		return
	}
	c.listQuarantine()
	if c.quarantine.Count() == 0 {
		c.mirror().ReadOnly = journal.ReadOnly{}
		if c.session != nil {
			c.session.repairing = false
		}
	}
}

// foundEqual is mended for what an Offer of a repair found equal. What is equal may be in the device's cache.
func (c *Core) foundEqual(ranges []blockdev.Extent) {
	if !c.session.repairing || !clearWhole(c.quarantine, ranges, c.facts.Size) {
		return
	}
	if c.quarantine.Count() == 0 {
		c.do(FlushDevice{})
	}
	if c.mended(); !c.readOnly() {
		c.journal()
		c.report()
	}
}

// listQuarantine writes the set into the facts.
func (c *Core) listQuarantine() { c.mirror().Quarantine = c.list(c.quarantine) }

// quarantineBlocks is how many blocks it touches, at least.
func (c *Core) quarantineBlocks() uint32 {
	if c.facts.BlockSize == 0 {
		return 0
	}
	perBlock := uint64(c.facts.BlockSize) / blockdev.PageSize
	return uint32(min((c.quarantine.Count()+perBlock-1)/perBlock, 1<<32-1))
}

// tellQuarantine says, behind an Attached, why the mirror is read-only and what is in quarantine.
func (c *Core) tellQuarantine() {
	ro := &c.mirror().ReadOnly
	m := &wire.Quarantine{Class: uint8(ro.Class), Epoch: ro.Epoch, Since: ro.Since, Reason: wire.CleanText(ro.Reason)}
	for _, e := range c.mirror().Quarantine {
		m.Extents = append(m.Extents, wire.Extent(e))
	}
	for _, frame := range m.Frames() {
		c.send(frame)
	}
}

// Stir tells how often something began or ended that changes the device, and whether anything is being written in
// place now. Between two calls with the same count nothing began or ended.
func (c *Core) Stir() (count uint64, placing bool) {
	return c.stirred, c.session != nil && c.session.writes > 0
}

// Vouched tells that nothing of a range is in doubt.
func (c *Core) Vouched(e blockdev.Extent) bool {
	first, _, ok := c.doubts.NextRun(uint64(e.Offset/blockdev.PageSize), 1)
	return !ok || first >= pages(e.End())
}

// Quarantined tells that all of a range is in quarantine.
func (c *Core) Quarantined(e blockdev.Extent) bool {
	at := uint64(e.Offset / blockdev.PageSize)
	first, count, ok := c.quarantine.NextSet(at)
	return ok && first == at && at+count >= pages(e.End())
}
