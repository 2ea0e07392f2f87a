package replica

import (
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

const (
	recordBytes = 128 // what a record takes in staging beside its payload, roughly

	defaultSyncEvery  = 64 << 20
	defaultReportRoom = 64 << 20
)

// Limits of a Core. The zero value of a field stands for its default.
type Limits struct {
	SyncEvery  int64 // appended bytes after which staging is synced; default 64 MiB
	ReportRoom int64 // a change of room worth a Report; default 64 MiB
}

func (l Limits) withDefaults() Limits {
	if l.SyncEvery == 0 {
		l.SyncEvery = defaultSyncEvery
	}
	if l.ReportRoom == 0 {
		l.ReportRoom = defaultReportRoom
	}
	return l
}

// Core is the state of a mirror:
//
//	          ┌─────────────── Lost ────────────────┐
//	          ▼                                     │
//	       away ──Attach──► idle ◄──────────────────┼───────────┐
//	                         │ │                    │           │
//	         Bulk (waits for │ │ Rebase(0, new)     │           │
//	  apply; index and facts)│ │                    │    Applied: facts,
//	                         ▼ ▼                    │    staging removed, Report
//	Flush: facts ┌──► in place │                    │           │
//	Flushed      └────────┘ └──┤ Rebase(0, new)     │           │
//	                           ▼                    │           │
//	 Nak(room of the device) staged ──► committing ─┴─► committed, applying
//	            └──────────────┘  Commit: Reserve, Seal, facts, Committed
//
// What is staged, and what is committed and not applied, are independent of each other and of the session:
// the next epoch is staged while the one before is applied.
type Core struct {
	limits Limits

	facts journal.VolumeFacts // as journaled last
	limit int64               // of what staging may hold
	held  int64               // what it holds

	staged    *Staged // what is staged and not committed; nil: nothing
	unsynced  int64   // bytes appended since its last sync
	applying  bool    // the first of facts.Mirror.Epochs
	settled   bool    // nothing was written in place since the device's last flush
	comparing bool
	flagged   bool              // see flag
	stirred   uint64            // see Stir
	owes      bool              // a Report, as soon as it was measured what an applied epoch left
	doubts    *blockdev.PageSet // facts.Mirror.Doubts

	quarantine *blockdev.PageSet            // facts.Mirror.Quarantine, and in a repair of all everything else
	mending    map[uint64]*blockdev.PageSet // by epoch of a repair: the pages that it brings

	session *session // nil: no primary is attached
	out     []Action
}

// Staged is a staging that is not committed.
type Staged struct {
	Incarnation, Base, Number uint64
	Seq                       uint64     // of its last record
	Chain                     wire.Chain // over its records
}

func (s *Staged) point() journal.StagingPoint {
	return journal.StagingPoint{Seq: s.Seq, Records: s.Chain.Records(), Chain: s.Chain.Sum()}
}

type session struct {
	incarnation uint64
	generation  journal.Generation
	seq         uint64            // of the last record
	bulk        bool              // Data of epoch 0 is taken
	writes      int               // in place, under way
	placed      []blockdev.Extent // written in place since the last Flush, where anything is doubted
	offers      int               // being compared
	checks      []*wire.Offer     // of a verify, that wait for a device that shows the committed cut
	repairing   bool              // the session may offer and stage although the mirror is read-only
	committing  *Commit
	refused     bool  // a Commit was not taken for room: what stands on it has no base
	ended       bool  // nothing more is taken
	held        Event // waits for something at the mirror
	room        int64 // as told last
}

// New makes the core of a mirror of what is durable: its facts, and a staging that is not committed, up to
// its last synced point. Begin is called before anything else.
func New(facts journal.VolumeFacts, staged *Staged) *Core {
	c := &Core{limits: Limits{}.withDefaults(), facts: facts, staged: staged, mending: map[uint64]*blockdev.PageSet{}}
	c.doubts, c.quarantine = newSet(facts.Size), newSet(facts.Size)
	for _, e := range facts.Mirror.Doubts {
		c.doubts.Add(c.pageRange(e))
	}
	for _, e := range facts.Mirror.Quarantine {
		c.quarantine.Add(c.pageRange(e))
	}
	return c
}

// SetLimits puts others in the place of the default ones, before Begin.
func (c *Core) SetLimits(l Limits) { c.limits = l.withDefaults() }

// Begin goes on with what is committed and not applied.
func (c *Core) Begin() []Action {
	c.out = nil
	c.applyNext()
	c.flag()
	return c.out
}

// Facts are those that were journaled last.
func (c *Core) Facts() journal.VolumeFacts { return c.facts }

// DoubtPages is how many pages the mirror cannot vouch for.
func (c *Core) DoubtPages() uint64 { return c.doubts.Count() }

// Staged is what is staged and not committed.
func (c *Core) Staged() (s Staged, ok bool) {
	if c.staged == nil {
		return s, false
	}
	return *c.staged, true
}

// Holding tells that a message of the primary waits for something at the mirror, and those behind it with it.
func (c *Core) Holding() bool { return c.session != nil && c.session.held != nil }

// Step takes an event and says what to do.
func (c *Core) Step(e Event) []Action {
	c.out = nil
	c.take(e)
	c.flag()
	return c.out
}

func (c *Core) take(e Event) {
	switch e := e.(type) {
	case *Attach:
		c.attach(e)
	case *Lost:
		c.lost()
	case *Applied:
		c.applied(e)
	case *Reserved:
		c.reserved(e.Enough)
	case *Measured:
		c.limit, c.held = e.Limit, e.Held
		c.tellRoom()
	case *Written:
		c.session.writes--
		c.stirred++
		c.placed(e.Extents)
	case *Compared:
		c.compared(e)
	case *Doubted:
		c.doubted(e.Extents)
	case *Mismatched:
		c.mistrust(e.Cause, e.Extents)
	case *Unreadable:
		c.unreadable(e)
	case *Comparing:
		c.compares(e)
	case *Pause:
		c.facts.Paused = e.Paused
		c.journal()
	default:
		c.arrived(e)
		return
	}
	c.applyNext()
	if c.Holding() {
		held := c.session.held
		c.session.held = nil
		c.arrived(held)
	}
}

// arrived takes what the primary sent, or has it wait.
func (c *Core) arrived(e Event) {
	if c.session == nil || c.session.ended {
		return
	}
	if c.barred(e) {
		c.end(wire.CodeReadOnly, "%s", c.readOnlyText())
		return
	}
	taken := true
	switch e := e.(type) {
	case *Rebase:
		taken = c.rebase(e.Message)
	case *Record:
		taken = c.record(e)
	case *Commit:
		taken = c.commit(e)
	case *Direct:
		c.direct()
	case *Offer:
		taken = c.offer(e.Message)
	case *Bulk:
		taken = c.bulk(e.Message)
	case *Flush:
		taken = c.flush(e.Message)
	case *Suspect:
		taken = c.suspect(e)
	case *Repair:
		taken = c.repair(e.Message)
	}
	if !taken {
		c.session.held = e
	}
}

// lost ends a session. What is staged is made durable, so that the next one can go on behind it.
func (c *Core) lost() {
	c.session = nil
	c.stirred++
	if c.staged != nil {
		c.syncStaging()
	}
}

func (c *Core) do(actions ...Action)          { c.out = append(c.out, actions...) }
func (c *Core) send(m wire.Message)           { c.do(Send{m}) }
func (c *Core) room() int64                   { return max(0, c.limit-c.held) }
func (c *Core) mirror() *journal.ReplicaFacts { return &c.facts.Mirror }

// end ends the session because of what the primary sent. It counts as taken.
func (c *Core) end(code wire.Code, format string, args ...any) bool {
	c.session.ended = true
	c.do(End{code, fmt.Sprintf(format, args...)})
	return true
}

// journal makes the facts durable. What was handed out before is not changed by later facts.
func (c *Core) journal() {
	f := c.facts
	f.Mirror.Epochs = slices.Clone(f.Mirror.Epochs)
	c.do(Journal{f})
}

// report tells the primary how the mirror stands.
func (c *Core) report() {
	if c.session == nil || c.session.ended {
		return
	}
	m := c.mirror()
	c.session.room = c.room()
	c.send(&wire.Report{Committed: m.Committed, Applied: m.Applied, Room: c.room(), Staged: max(0, c.held),
		Comparing: c.comparing, Quarantine: c.quarantineBlocks()})
}

// tellRoom reports where much room was found or lost, and what was owed.
func (c *Core) tellRoom() {
	owes := c.owes
	c.owes = false
	if c.session == nil {
		return
	}
	if change := c.room() - c.session.room; owes || change >= c.limits.ReportRoom || change <= -c.limits.ReportRoom {
		c.report()
	}
}

// doubted notes, durably, what the mirror can no longer vouch for, and tells it.
func (c *Core) doubted(extents []blockdev.Extent) {
	if len(extents) == 0 {
		return
	}
	for _, e := range extents {
		c.doubts.Add(c.pageRange(e))
	}
	c.listDoubts()
	c.journal()
	if c.session != nil && !c.session.ended {
		c.tellDoubts(extents)
	}
}

// listDoubts writes the doubt set into the facts.
func (c *Core) listDoubts() { c.mirror().Doubts = c.list(c.doubts) }

// list is what the facts hold of a set. Where it has too many extents the last one covers all the rest: to
// doubt too much costs comparing.
func (c *Core) list(set *blockdev.PageSet) (list []blockdev.Extent) {
	for at := uint64(0); ; {
		first, count, ok := set.NextSet(at)
		if !ok {
			return list
		}
		at = first + count
		e := c.extent(first, count)
		if len(list) == journal.MaxListed {
			list[len(list)-1].Length = e.End() - list[len(list)-1].Offset
			continue
		}
		list = append(list, e)
	}
}

// compares notes that the comparison of the device with the index began or ended. Only when it has come to
// its end the journal says in which boot the device was last known to be ours alone.
func (c *Core) compares(e *Comparing) {
	c.comparing = e.Running
	if e.BootID != "" {
		c.facts.BootID = e.BootID
		c.journal()
	}
	c.report()
}

func (c *Core) tellDoubts(extents []blockdev.Extent) {
	for len(extents) > 0 {
		n := min(len(extents), wire.MaxEntries)
		m := &wire.Doubt{More: n < len(extents)}
		for _, e := range extents[:n] {
			m.Extents = append(m.Extents, wire.Extent(e))
		}
		c.send(m)
		extents = extents[n:]
	}
}

func pages(size int64) uint64 { return uint64((size + blockdev.PageSize - 1) / blockdev.PageSize) }

func (c *Core) pageRange(e blockdev.Extent) (first, count uint64) {
	first = uint64(e.Offset / blockdev.PageSize)
	return first, pages(e.End()) - first
}

func (c *Core) extent(first, count uint64) blockdev.Extent {
	off := int64(first) * blockdev.PageSize
	return blockdev.Extent{Offset: off, Length: min(int64(first+count)*blockdev.PageSize, c.facts.Size) - off}
}

// clearWhole takes the pages that lie wholly in ranges out of a set, and tells whether there were any.
func clearWhole(set *blockdev.PageSet, ranges []blockdev.Extent, size int64) (changed bool) {
	for _, e := range ranges {
		first := pages(e.Offset)
		last := uint64(e.End() / blockdev.PageSize)
		if e.End() == size {
			last = pages(e.End())
		}
		if first < last && set.Remove(first, last-first) > 0 {
			changed = true
		}
	}
	return changed
}
