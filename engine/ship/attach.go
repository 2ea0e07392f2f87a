package ship

import (
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// Verdict of an Attached: what the shell has to do to the sets before it asks Next, in the order of the
// fields.
type Attachment struct {
	Refused string // nothing moves: why, and what a person can do

	Committed bool // the epoch whose Commit was not answered is committed after all: number Core.State().Committed
	Holes     uint64
	Flushed   bool          // so is the bulk flush …
	Unsure    []wire.Extent // … but these may have been refused before it: they are needed
	Uncommit  bool          // it is not, and cannot be: its pages are staged, those of the epoch after it wait

	AllDirty bool   // every page is needed
	AllDoubt string // every page is in doubt: why

	NotStaged []wire.Extent // staged → todo: the mirror lost them, and no epoch is under way
	Lost      []Record      // of the epoch under way: to be sent again …
	Answered  []bool        // … and whether their bytes are no longer kept
	Restart   bool          // of a bulk: what was sent and not flushed waits again
}

// Attached takes up what a mirror says of itself (docs/LIVE.md, the table). overwrite: a person said that
// a mirror of another history may be replaced.
func (c *Core) Attached(a *wire.Attached, overwrite bool) Attachment {
	var v Attachment
	c.room, c.applied = a.Room, a.Applied
	c.inconsistent = a.Flags&wire.AttachedInconsistent != 0
	passing := c.bulk.passing || c.bulk.flushing != 0
	c.bulk.begun, c.offers, c.swept, c.reason = false, 0, false, ""
	isBulk := a.Flags&wire.AttachedBulk != 0
	c.theirs = 0
	if a.StagedIncarnation == c.incarnation {
		c.theirs = a.StagedNumber // of another incarnation's the mirror has dropped it
	}
	same := a.Generation.ID == c.generation.ID
	latest := max(a.LastCut, a.InPlace) // what is written in place towards a number is of its time
	switch {
	case same && latest > c.lastSent && !overwrite:
		v.Refused = fmt.Sprintf("the mirror is at cut %d, and this primary never sent it more than %d: the primary went back in time "+
			"(was it restored from a backup?); promote the mirror, or say `blkmirror resume VOLUME --overwrite-mirror NAME`", latest, c.lastSent)
		c.phase, c.reason = Refused, v.Refused
		return v
	case a.Flags&wire.AttachedBlank != 0:
		v.AllDirty = true
		c.forget(a, isBulk)
	case !same && a.Generation.ID == [16]byte{}:
		v.AllDoubt = "it holds data of unknown origin"
	case !same:
		v.AllDoubt = "it is of another generation"
	case overwrite && latest > c.lastSent:
		v.AllDoubt = "a person said that it is to be overwritten"
	default:
		c.settle(a, isBulk, &v)
	}
	if v.AllDoubt != "" {
		c.forget(a, isBulk)
		c.reason = "everything is compared: " + v.AllDoubt
	}
	c.attached, c.known = true, true
	v.Restart = passing
	c.begin(a, &v)
	if a.Flags&wire.AttachedReadOnly != 0 {
		c.Bar()
	}
	return v
}

// Bar says that nothing may be shipped before a repair: the mirror is read-only, or has to be told to be.
func (c *Core) Bar() { c.phase = ReadOnly }

// Repair ends ReadOnly for the connection: the mirror was told.
func (c *Core) Repair() { c.phase = c.taking() }

// taking is the phase of a mirror that takes what it is sent.
func (c *Core) taking() Phase {
	if c.cur != nil || c.sent != nil || !c.inconsistent {
		return Shipping
	}
	return Bulk
}

// forget starts anew on what the mirror says it holds.
func (c *Core) forget(a *wire.Attached, isBulk bool) {
	c.committed, c.bulkBase, c.due = a.LastCut, isBulk, true
	c.lastSent = max(c.lastSent, a.LastCut, a.InPlace)
	c.cur, c.sent, c.old, c.voidIt, c.spoilt = nil, nil, 0, false, false
	c.bulk = bulk{}
	c.holding, c.failures, c.notBefore = false, 0, time.Time{}
	c.records.restart()
}

// settle compares the cuts of a mirror of our own generation.
func (c *Core) settle(a *wire.Attached, isBulk bool, v *Attachment) {
	switch {
	case c.sent != nil && a.LastCut == c.sent.number && !isBulk:
		v.Committed, v.Holes = true, c.sent.holePages
		c.commit(c.sent)
	case c.bulk.flushing != 0 && a.LastCut == c.bulk.flushing && isBulk:
		v.Flushed, v.Unsure = true, c.records.orphan()
		c.flushed(a.LastCut)
	case a.LastCut == c.committed && isBulk == (c.bulkBase && a.LastCut != 0):
	case !c.attached && c.known && a.LastCut >= c.committed && a.LastCut <= c.lastSent:
		// An earlier process knew more than it wrote down; what it wrote down is enough to go on.
		c.committed, c.bulkBase = a.LastCut, isBulk
	case c.committed == 0 && !c.attached && a.LastCut <= c.lastSent:
		c.committed, c.bulkBase = a.LastCut, isBulk
	default:
		v.AllDoubt = fmt.Sprintf("it is at cut %d where %d was committed: it went back, or was replaced", a.LastCut, c.committed)
	}
}

// begin finds out what is left of a staging in part, and what comes first.
func (c *Core) begin(a *wire.Attached, v *Attachment) {
	if v.AllDoubt == "" && !v.AllDirty {
		c.resume(a, v)
	}
	if c.phase = c.taking(); c.phase == Bulk {
		v.Restart = true
	}
	if v.Restart {
		c.bulk = bulk{}
		c.records.restart()
	}
}

// resume goes on with the epochs that the connection's loss interrupted.
func (c *Core) resume(a *wire.Attached, v *Attachment) {
	if c.sent != nil { // its Commit was not taken; it may have been lost
		c.resumeCommit(a, v)
		return
	}
	number := c.old
	if c.cur != nil && c.cur.rebased {
		number = c.cur.number
	}
	if number == 0 {
		c.records.restart()
		return
	}
	var lost []Record
	var answered []bool
	ok := c.theirs == number && a.StagedBase == c.committed
	if ok {
		lost, answered, ok = c.records.resume(a.StagedSeq, a.StagedRecords, a.StagedChain)
	}
	switch {
	case !ok:
		c.voidIt = true
		c.records.restart()
	case c.cur != nil && c.cur.rebased:
		v.Lost, v.Answered = lost, answered
	default:
		for i, r := range lost {
			if answered[i] && r.Length > 0 {
				v.NotStaged = append(v.NotStaged, wire.Extent{Offset: r.Offset, Length: r.Length})
			}
		}
		if c.cur != nil && len(v.NotStaged) > 0 {
			c.spoilt = true // the epoch that was to take it over lacks these
		}
	}
}

// resumeCommit: the mirror is at the base of an epoch whose Commit was sent. Where it holds all of it, the
// Commit is sent again; what was sent of the epoch after it cannot have been taken and comes again.
func (c *Core) resumeCommit(a *wire.Attached, v *Attachment) {
	e := c.sent
	if c.theirs != e.number || a.StagedRecords != e.records || a.StagedChain != e.chain {
		v.Uncommit = true
		c.sent, c.cur, c.old, c.voidIt = nil, nil, 0, true
		c.records.restart()
		return
	}
	e.resend = true
	if c.cur == nil || !c.cur.rebased {
		c.voidIt = c.old != 0 // what was staged behind it and given up, the mirror has not
		c.records.restart()
		return
	}
	c.cur.rebased, c.cur.old = false, 0
	for i := range c.records.list {
		if r := &c.records.list[i]; r.Length > 0 {
			v.Lost, v.Answered = append(v.Lost, r.Record), append(v.Answered, r.answered)
		}
	}
	c.records.restart()
}
