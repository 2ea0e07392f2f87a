package ship

import (
	"cmp"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// The core's constants (DESIGN §4, Pace and Holding).
const (
	AwayLimit     = 10 * time.Second // a mirror that is away for longer costs no capture
	HoldEvery     = 60 * time.Second // while holding, a cut is tried that often
	holdAfter     = 3                // give-ups for room in a row
	flushEvery    = 2 * time.Second  // of a bulk pass
	flushBytes    = 1 << 30
	smallRest     = 16 << 20 // bytes after a bulk pass that a normal epoch is to end
	holesEvery    = 60 * time.Second
	MaxTries      = 3 // of one block after a first mismatch
	commitPatient = 2 // intervals after which an epoch under way means `catching-up`
)

// Config is what a user chose.
type Config struct {
	Interval     time.Duration // between cuts; 0: as soon as the last is committed
	BulkWhenFull bool          // on_staging_full = "bulk"

	// Of a bulk pass, in bytes; 0 stands for 1 GiB and 16 MiB.
	FlushBytes int64 // sent between two flushes
	SmallRest  int64 // left behind it that a normal epoch is to end
}

func (c Config) withDefaults() Config {
	c.FlushBytes, c.SmallRest = cmp.Or(c.FlushBytes, flushBytes), cmp.Or(c.SmallRest, smallRest)
	return c
}

// Phase is what a Core is doing with its mirror.
//
//	Away ─Attached→ Refused | Reconciling | Bulk | Shipping
//	Reconciling ─no doubt left→ Bulk | Shipping
//	Bulk ─what is left fits→ Shipping ─first commit given up for room→ Bulk
//	any ─the mirror is read-only→ ReadOnly ─repair→ Reconciling | Bulk | Shipping
//	any ─connection lost→ Away
type Phase uint8

const (
	Away        Phase = iota // no session
	Refused                  // a session, but nothing may move until a person says so
	Reconciling              // pages in doubt are compared
	Bulk                     // straight into the device
	Shipping                 // epochs
	ReadOnly                 // a session, and nothing is taken until a repair
)

// Counts are the sizes of the mirror's sets at the moment of a call, in pages.
type Counts struct {
	Fresh  uint64 // open and waiting: written since the last cut taken
	Todo   uint64
	Staged uint64
	Doubt  uint64
	Holes  uint64
	Hands  int  // batches that were read and are not sent
	Full   bool // the mirror's capture found no room: its cut is lost
}

// Kind says what an Action asks for.
type Kind uint8

const (
	Wait       Kind = iota // nothing, until something happens or until At
	Cut                    // take a cut for this mirror: a durable number, then the step; answer: Core.CutTaken
	SendRebase             // send Action.Old, New, Base and the voids kept since the cut; answer: Core.Rebased
	SendCommit             // the epoch is whole; answer: Core.CommitSent. With Again: the same Commit once more
	GiveUp                 // give the epoch up: hands emptied, then Core.GaveUp and the set transition
	Void                   // what is staged counts no longer: staged → todo; answer: Core.Voided
	Drop                   // send Rebase(old, 0), todo and staged → waiting; answer: Core.Dropped
	BeginBulk              // a durable number, then Bulk to it; answer: Core.BulkBegun
	Pass                   // begin a bulk pass: a cut without capture, and a Bulk behind a Flush; answer: Core.PassBegun
	Flush                  // Flush of what was sent, then Bulk to a durable number; answer: Core.FlushSent
	Offer                  // offer the next pages in doubt; answer: Core.Offered
	RetryHoles             // pages that could not be read are tried with the next epoch; answer: none
)

// Action is one thing to do.
type Action struct {
	Kind   Kind
	At     time.Time // Wait: when to ask again; zero: only when something happened
	Base   uint64
	Old    uint64
	New    uint64
	Again  bool
	Reason string // GiveUp: for a person
}

// epoch is what takes the mirror from one cut to the next.
type epoch struct {
	number, base uint64
	old          uint64 // whose staging it takes over; 0: none
	began        time.Time
	rebased      bool // its Rebase went out, on this connection or one before
	records      uint64
	pages        uint64
	chain        wire.Hash // of its Commit
	seq          uint64    // of its last record, once its Commit was sent
	holes        []wire.Extent
	holePages    uint64
	resend       bool // its Commit is to be sent again on this connection
	refused      bool // its Commit was not taken: the mirror's device has no room
}

// Core is the state of one mirror. See the package comment.
type Core struct {
	cfg         Config
	generation  wire.Generation
	incarnation uint64

	phase  Phase
	reason string // of Refused, or why all is in doubt; for a person
	paused bool

	// What both sides know.
	committed    uint64 // the mirror's last cut
	bulkBase     bool   // it is a bulk number
	inconsistent bool   // the device is no state of ours: bulk has to make it one
	lastSent     uint64
	applied      uint64
	attached     bool // an Attached was taken up in this process
	known        bool // of an earlier process, or this one: the mirror once attached
	room         int64

	cur    *epoch // being shipped
	sent   *epoch // its Commit is not answered
	old    uint64 // number under which something is staged that no epoch owns; 0: nothing
	voidIt bool   // what is staged is of no use
	spoilt bool   // a page that is wanted again is gone: the epoch cannot be completed
	theirs uint64 // number under which the mirror has something staged in part; 0: nothing

	records records

	// Pace.
	lastCut   time.Time
	notBefore time.Time // after a give-up
	postponed time.Time // no number is to be had before
	wanted    uint64    // a person wants a cut of at least this number; 0: nobody does
	asked     bool      // … and it need not keep to the pace
	due       bool      // a commit has to tell the mirror that it is of our history, whatever was written
	lostAt    time.Time
	failures  int // give-ups for room in a row
	holding   bool
	missing   int64 // bytes of room that were missing
	holesAt   time.Time

	bulk bulk
	// Reconciling.
	offers    int // unanswered
	offersMax int
	swept     bool // everything in doubt was offered
}

// bulk is the state of a first full sync.
type bulk struct {
	begun    bool // Bulk was sent on this connection
	pass     int
	passing  bool   // a pass is under way
	number   uint64 // of the next Flush, as Bulk said; 0: no Bulk since the last
	flushing uint64 // number of the unanswered Flush; 0: none
	final    bool   // that Flush ends the pass
	flushed  time.Time
	bytes    int64  // sent since the last Flush
	before   uint64 // pages that were to do when the last pass began
}

// History is what the journal remembers of a mirror.
type History struct {
	Committed, Sent uint64
	Bulk            bool
	Known           bool // it attached once
}

// New makes the core of a mirror at the start of a process.
func New(cfg Config, g wire.Generation, incarnation uint64, h History) *Core {
	return &Core{cfg: cfg.withDefaults(), generation: g, incarnation: incarnation,
		committed: h.Committed, bulkBase: h.Bulk, lastSent: h.Sent, known: h.Known}
}

// Next says what to do now. It is called again after every answer to it and after every event, until it
// says Wait.
func (c *Core) Next(now time.Time, n Counts) Action {
	if limit := now.Add(HoldEvery); c.notBefore.After(limit) {
		c.notBefore = limit // no pause is longer: the clock was put back
	}
	a := c.next(now, n)
	if k := a.Kind; (k == Cut || k == Pass || k == Flush) && now.Before(c.postponed) {
		return Action{Kind: Wait, At: c.postponed}
	}
	return a
}

func (c *Core) next(now time.Time, n Counts) Action {
	if c.Doomable() {
		if a, ok := c.endangered(now, n); ok {
			return a
		}
	}
	switch c.phase {
	case Away, Refused, ReadOnly:
		if c.phase == Away && c.cur != nil {
			return Action{Kind: Wait, At: c.lostAt.Add(AwayLimit)}
		}
		return Action{}
	case Reconciling:
		return c.nextReconcile(now, n)
	case Bulk:
		return c.nextBulk(now, n)
	}
	return c.nextShip(now, n)
}

// Doomable tells whether there is an epoch that could be given up.
func (c *Core) Doomable() bool { return c.cur != nil || c.sent != nil && c.sent.refused }

// endangered gives up an epoch under way where it cannot or must not be completed.
func (c *Core) endangered(now time.Time, n Counts) (Action, bool) {
	give := func(reason string) (Action, bool) { return Action{Kind: GiveUp, Reason: reason}, true }
	switch {
	case c.sent != nil && c.sent.refused:
		return give("the mirror's device has no room for it")
	case n.Full:
		return give("no room to keep what the cut holds")
	case c.paused:
		return give("paused")
	case c.phase == Away && now.Sub(c.lostAt) >= AwayLimit:
		return give("the mirror is away")
	case c.phase == Refused:
		return give("nothing may move")
	case c.phase == ReadOnly:
		return give("the mirror is read-only")
	case c.voidIt:
		return give("what was staged is gone")
	case c.spoilt:
		return give("a page that the mirror lost was written since")
	}
	return Action{}, false
}

func (c *Core) nextShip(now time.Time, n Counts) Action {
	if c.sent != nil && c.sent.resend {
		return Action{Kind: SendCommit, Again: true}
	}
	if c.cur != nil {
		return c.nextEpoch(n)
	}
	if c.voidIt {
		return Action{Kind: Void}
	}
	if c.paused {
		return Action{}
	}
	if n.Doubt > 0 {
		if c.sent != nil {
			return Action{} // an epoch under way is finished first
		}
		c.phase = Reconciling
		return c.nextReconcile(now, n)
	}
	if c.holding && c.cfg.BulkWhenFull && c.sent == nil {
		c.phase, c.bulk = Bulk, bulk{}
		c.holding, c.failures, c.notBefore = false, 0, time.Time{}
		return c.nextBulk(now, n)
	}
	if n.Holes > 0 && !now.Before(c.holesAt) {
		c.holesAt = now.Add(holesEvery)
		return Action{Kind: RetryHoles}
	}
	if !c.wants() && !c.due && !c.inconsistent && n.Fresh == 0 && n.Todo == 0 && n.Staged == 0 {
		return Action{}
	}
	if at := c.cutAt(); now.Before(at) {
		return Action{Kind: Wait, At: at}
	}
	return Action{Kind: Cut}
}

// wants tells whether a person wants a later cut than those that were taken.
func (c *Core) wants() bool { return c.wanted > c.base() }

// cutAt is when the next cut may be taken. A person's wish overrides the pace once, but not the pause
// between failures.
func (c *Core) cutAt() time.Time {
	at := c.notBefore
	if c.asked && c.wants() {
		if c.holding || c.failures == 0 {
			return time.Time{}
		}
		return at
	}
	interval := c.cfg.Interval
	if c.failures > 0 {
		interval = min(interval, HoldEvery)
	}
	if regular := c.lastCut.Add(interval); regular.After(at) {
		at = regular
	}
	return at
}

// nextEpoch drives the epoch under way: a Rebase first, when nothing of the former one is unanswered; then
// pages; then the Commit, when all is acknowledged and the one before is answered.
func (c *Core) nextEpoch(n Counts) Action {
	settled := c.records.unanswered() == 0
	if !c.cur.rebased {
		if !settled {
			return Action{}
		}
		return Action{Kind: SendRebase, Base: c.cur.base, Old: c.cur.old, New: c.cur.number}
	}
	if n.Todo > 0 || n.Hands > 0 || !settled || c.sent != nil {
		return Action{}
	}
	return Action{Kind: SendCommit}
}

func (c *Core) nextReconcile(now time.Time, n Counts) Action {
	switch {
	case c.sent != nil:
		return Action{}
	case c.old != 0 || c.voidIt || c.theirs != 0:
		if c.records.unanswered() > 0 {
			return Action{}
		}
		return Action{Kind: Drop, Old: c.theirs}
	case n.Doubt == 0 && c.offers == 0: // all is answered
		c.phase = Shipping
		if c.inconsistent {
			c.phase, c.bulk = Bulk, bulk{}
		}
		return c.Next(now, n)
	case c.paused || c.offers >= c.offersMax || c.swept && c.offers > 0:
		return Action{}
	}
	c.swept = false
	return Action{Kind: Offer}
}

func (c *Core) nextBulk(now time.Time, n Counts) Action {
	b := &c.bulk
	switch {
	case c.sent != nil || c.records.unanswered() > 0 && !b.begun:
		return Action{}
	case n.Doubt > 0:
		if b.passing || b.flushing != 0 {
			break
		}
		c.phase = Reconciling
		return c.nextReconcile(now, n)
	case c.paused && !b.passing:
		return Action{}
	}
	switch {
	case !b.begun:
		return Action{Kind: BeginBulk, Base: c.committed}
	case b.flushing != 0:
		return Action{}
	case !b.passing:
		return Action{Kind: Pass, Base: c.committed}
	case n.Todo == 0 && n.Hands == 0 && c.records.unanswered() == 0:
		return Action{Kind: Flush}
	case b.bytes == 0:
		return Action{}
	case now.Sub(b.flushed) >= flushEvery || b.bytes >= c.cfg.FlushBytes:
		return Action{Kind: Flush}
	}
	return Action{Kind: Wait, At: b.flushed.Add(flushEvery)}
}

// MayShip tells whether pages of todo may be read and sent now, and under which epoch number: 0 in bulk.
func (c *Core) MayShip() (epoch uint64, ok bool) {
	switch {
	case c.phase == Shipping && c.cur != nil && c.cur.rebased && !c.voidIt && !c.paused:
		return c.cur.number, true
	case c.phase == Bulk && c.bulk.begun && c.bulk.passing && !c.bulk.final && !c.paused:
		return 0, true
	}
	return 0, false
}
