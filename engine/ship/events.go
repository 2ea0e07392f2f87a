package ship

import (
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// Rename takes a generation up that was learned from a mirror. No session is open.
func (c *Core) Rename(g wire.Generation) { c.generation = g }

// Tune takes a changed configuration up.
func (c *Core) Tune(cfg Config) { c.cfg = cfg.withDefaults() }

// Pause and Resume are a person's. Resume also asks for another try where the mirror holds.
func (c *Core) Pause() { c.paused = true }

// Resume ends a pause and a wait between failures.
func (c *Core) Resume() {
	c.paused, c.notBefore = false, time.Time{}
}

// Postpone puts off whatever takes a number: there is none now, for a reason that is not the mirror's.
func (c *Core) Postpone(until time.Time) { c.postponed = until }

// WantCut says that a person wants a cut now, with a number above after.
func (c *Core) WantCut(after uint64) { c.wanted, c.asked = max(c.wanted, after+1), true }

// CutTaken answers Cut: the step was made under a number that is durable.
func (c *Core) CutTaken(number uint64, now time.Time) {
	c.cur = &epoch{number: number, base: c.base(), old: c.old, began: now}
	c.lastSent, c.lastCut, c.spoilt = number, now, false
	c.asked = c.asked && number < c.wanted
}

// base is the cut on which a new epoch stands: the last one, also while its Commit is not answered.
func (c *Core) base() uint64 {
	if c.sent != nil {
		return c.sent.number
	}
	return c.committed
}

// Rebased answers SendRebase: the frame, which Seq it has, is about to be sent.
func (c *Core) Rebased(m *wire.Rebase) {
	if m.Old == 0 {
		c.records.restart()
	}
	c.records.rebase(m)
	c.records.epoch = m.New
	c.cur.rebased, c.old, c.theirs = true, 0, m.New
}

// CommitSent answers SendCommit: all of the epoch is staged. It returns the Commit to send.
func (c *Core) CommitSent(pages uint64, holes []wire.Extent, holePages uint64, unproven bool) *wire.Commit {
	e := c.cur
	e.records, e.chain, e.seq = c.records.chain.Records(), c.records.chain.Sum(), c.records.last()
	e.pages, e.holes, e.holePages = pages, holes, holePages
	c.sent, c.cur, c.theirs = e, nil, 0
	c.records.restart()
	return e.commit(unproven)
}

// CommitAgain answers SendCommit with Again: the Commit that may be lost, as it was. nil: it was answered in the
// meantime.
func (c *Core) CommitAgain(unproven bool) *wire.Commit {
	if c.sent == nil {
		return nil
	}
	c.sent.resend = false
	return c.sent.commit(unproven)
}

func (e *epoch) commit(unproven bool) *wire.Commit {
	m := &wire.Commit{Epoch: e.number, Base: e.base, Records: e.records, Pages: e.pages, Chain: e.chain, Holes: e.holes}
	if unproven {
		m.Flags |= wire.CommitUnproven
	}
	return m
}

// Committed takes the mirror's answer to a Commit. The caller has made what it says durable enough
// (docs/LIVE.md) before the sets change. ok is false where nothing of the kind was asked.
func (c *Core) Committed(m *wire.Committed) (holes uint64, ok bool) {
	e := c.sent
	if e == nil || m.Epoch != e.number || m.Records != e.records || m.Chain != e.chain {
		return 0, false
	}
	c.commit(e)
	return e.holePages, true
}

func (c *Core) commit(e *epoch) {
	c.committed, c.bulkBase, c.inconsistent = e.number, false, false
	c.sent, c.failures, c.holding, c.missing = nil, 0, false, 0
	c.notBefore, c.reason, c.due = time.Time{}, "", false
}

// noRoom counts a give-up for room and says when the next cut may be tried.
func (c *Core) noRoom(now time.Time) {
	c.failures++
	pause := min(c.cfg.Interval, HoldEvery)
	for range c.failures - 1 {
		pause = min(max(2*pause, time.Millisecond), HoldEvery)
	}
	if c.failures >= holdAfter {
		c.holding, pause = true, HoldEvery
	}
	c.notBefore = now.Add(pause)
}

// GaveUp answers GiveUp: no batch of the epoch is in anybody's hands, and none will be sent. notStaged are
// the extents that were sent and are not known to be staged; with those in hands they go back to todo.
// uncommit: it was the epoch whose Commit the mirror refused, and the one after it with it. room tells that
// room was the reason.
func (c *Core) GaveUp(room bool, now time.Time) (notStaged []wire.Extent, uncommit bool) {
	e := c.cur
	c.cur, c.spoilt = nil, false
	switch {
	case c.sent != nil && c.sent.refused:
		c.uncommit()
		room, uncommit = true, true
	case e.rebased && !c.voidIt:
		c.old = e.number
	case !e.rebased:
		c.old = e.old
	}
	if !room {
		c.asked = c.asked || c.wants()
		return c.records.orphan(), uncommit
	}
	c.noRoom(now)
	if c.inconsistent && c.sent == nil && c.phase == Shipping {
		c.phase, c.bulk = Bulk, bulk{}
	}
	return c.records.orphan(), uncommit
}

// uncommit makes an epoch whose Commit was refused one that is staged and owned by nobody. Of the one after
// it the mirror has nothing; what was sent of it is still to be answered.
func (c *Core) uncommit() {
	e := c.sent
	c.sent, c.old, c.theirs = nil, e.number, e.number
	c.records.back(e)
}

// Spoil says that the epoch under way cannot be completed: content of its cut is gone.
func (c *Core) Spoil() { c.spoilt = c.cur != nil }

// Voided answers Void: nothing that is staged counts.
func (c *Core) Voided() { c.voidIt, c.old = false, 0 }

// Dropped answers Drop. m is nil where nothing was staged.
func (c *Core) Dropped(m *wire.Rebase) {
	c.voidIt, c.old, c.theirs = false, 0, 0
	c.records.restart()
	if m != nil {
		c.records.seq = m.Seq
	}
}

// BulkBegun answers BeginBulk. number is durable, and was told in Bulk.
func (c *Core) BulkBegun(number uint64, now time.Time) {
	c.bulk = bulk{begun: true, flushed: now, number: number}
	c.lastSent = number
	c.inconsistent, c.old, c.theirs, c.voidIt = true, 0, 0, false
	c.records.restart()
}

// PassBegun answers Pass: todo pages are to be shipped. number is that of BulkNumber, or a new one of which the
// same holds.
func (c *Core) PassBegun(number, todo uint64, now time.Time) {
	c.lastSent, c.lastCut, c.bulk.number = number, now, number
	c.bulk.pass++
	c.bulk.passing, c.bulk.before, c.bulk.flushed, c.bulk.bytes = true, todo, now, 0
}

// Passes is how many passes of a bulk were begun on this connection.
func (c *Core) Passes() int { return c.bulk.pass }

// BulkNumber is that of the next Flush, towards which pages are sent in place; 0: the mirror knows none.
func (c *Core) BulkNumber() uint64 { return c.bulk.number }

// FlushSent answers Flush: that of BulkNumber goes out behind everything that was read, and then a Bulk to next,
// which is durable; 0: none, because nothing was left to send and the pass ends.
func (c *Core) FlushSent(next uint64, now time.Time) {
	b := &c.bulk
	b.flushing, b.final, b.flushed, b.bytes = b.number, next == 0, now, 0
	b.number, c.lastSent = next, max(c.lastSent, next)
}

// Flushed takes the mirror's answer. fresh is how many pages were written since the pass began.
func (c *Core) Flushed(number, fresh uint64) bool {
	b := &c.bulk
	if b.flushing == 0 || number != b.flushing {
		return false
	}
	c.flushed(number)
	if !b.final {
		return true
	}
	b.final, b.passing = false, false
	left := int64(fresh) * pageSize
	if left > c.cfg.SmallRest && (left > c.room || fresh*2 < b.before) {
		return true // another pass
	}
	c.phase = Shipping
	c.lastCut = time.Time{} // the cut that ends it need not wait
	return true
}

func (c *Core) flushed(number uint64) {
	c.committed, c.bulkBase, c.bulk.flushing = number, true, 0
}

// Flushing is the number of the Flush that is not answered, 0 where there is none.
func (c *Core) Flushing() uint64 { return c.bulk.flushing }

// AllowOffers says how many offers may be unanswered.
func (c *Core) AllowOffers(n int) { c.offersMax = n }

// Offered answers Offer.
func (c *Core) Offered() { c.offers++ }

// Swept answers Offer where no page in doubt is left that was not offered.
func (c *Core) Swept() { c.swept = true }

// Wanted takes the answer to an offer.
func (c *Core) Wanted() { c.offers = max(0, c.offers-1) }

// Report takes what the mirror tells of itself. more: room that a holding mirror lacked was found.
func (c *Core) Report(m *wire.Report, now time.Time) {
	if c.holding && m.Room > c.room && m.Room >= c.missing {
		c.notBefore = now
	}
	c.applied, c.room = max(c.applied, m.Applied), m.Room
}

// NoRoom says that the mirror refused a record or a Commit because its staging or its device is full;
// bytes is what the epoch would need. The epoch under way is to be given up.
func (c *Core) NoRoom(bytes int64) { c.missing = max(0, bytes-c.room) }

// Lost says that the connection is gone.
func (c *Core) Lost(now time.Time) {
	if c.phase == Away {
		return
	}
	c.phase, c.lostAt, c.offers = Away, now, 0
}

// Shipped counts bytes of a bulk pass.
func (c *Core) Shipped(n int64) { c.bulk.bytes += n }

// State is what a status tells.
type State struct {
	Phase        Phase
	Reason       string
	Paused       bool
	Holding      bool
	Inconsistent bool
	Committed    uint64
	BulkBase     bool
	Applied      uint64
	Missing      int64
	Began        time.Time // of the epoch under way; zero: none
	Epoch        uint64    // its number, that of the last cut; 0: none
}

// State tells how the mirror stands.
func (c *Core) State() State {
	s := State{Phase: c.phase, Reason: c.reason, Paused: c.paused, Holding: c.holding, Inconsistent: c.inconsistent,
		Committed: c.committed, BulkBase: c.bulkBase, Applied: c.applied, Missing: c.missing}
	if c.cur != nil {
		s.Began, s.Epoch = c.cur.began, c.cur.number
	} else if c.sent != nil {
		s.Began, s.Epoch = c.sent.began, c.sent.number
	}
	return s
}
