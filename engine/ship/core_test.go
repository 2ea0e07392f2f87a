package ship_test

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/wire"
)

const pageSize = 4096

var (
	generation = wire.Generation{ID: [16]byte{7}, Counter: 1}
	kinds      = [...]string{"Wait", "Cut", "SendRebase", "SendCommit", "GiveUp", "Void", "Drop", "BeginBulk", "Pass", "Flush", "Offer", "RetryHoles"}
)

// hashOf is the hash of a content of words.
func hashOf(content []uint64) wire.Hash {
	b := make([]byte, 0, 8*len(content))
	for _, v := range content {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return wire.Sum(b)
}

// script drives a Core by hand.
type script struct {
	t    *testing.T
	c    *ship.Core
	now  time.Time
	n    ship.Counts
	cuts uint64
}

const second = time.Second

func newScript(t *testing.T, h ship.History) *script {
	return &script{t: t, c: ship.New(ship.Config{Interval: second}, generation, 9, h), now: time.Unix(5000, 0), cuts: h.Sent}
}

// atCut is a mirror that is at a cut and holds nothing else.
func atCut(n uint64) *wire.Attached {
	return &wire.Attached{Generation: generation, LastCut: n, Applied: n}
}

// connected is a script whose mirror is at cut 5.
func connected(t *testing.T) *script {
	s := newScript(t, ship.History{Committed: 5, Sent: 5, Known: true})
	if v := s.c.Attached(atCut(5), false); v.AllDoubt != "" || v.AllDirty || v.Refused != "" {
		t.Fatalf("attached: %+v", v)
	}
	return s
}

// want asks the core.
func (s *script) want(kind ship.Kind) ship.Action {
	s.t.Helper()
	a := s.c.Next(s.now, s.n)
	if a.Kind != kind {
		s.t.Fatalf("Next is %s %+v, want %s", kinds[a.Kind], a, kinds[kind])
	}
	return a
}

// idle wants the core to wait, until a time from now or, where that is 0, for something to happen.
func (s *script) idle(until time.Duration) {
	s.t.Helper()
	a := s.want(ship.Wait)
	switch {
	case until == 0 && !a.At.IsZero():
		s.t.Fatalf("waits until %v, want for something to happen", a.At.Sub(s.now))
	case until != 0 && !a.At.Equal(s.now.Add(until)):
		s.t.Fatalf("waits until %v, want %v", a.At.Sub(s.now), until)
	}
}

func (s *script) cut() uint64 {
	s.t.Helper()
	s.want(ship.Cut)
	s.cuts++
	s.c.CutTaken(s.cuts, s.now)
	return s.cuts
}

func (s *script) rebase() *wire.Rebase {
	s.t.Helper()
	a := s.want(ship.SendRebase)
	m := &wire.Rebase{Seq: s.c.NextSeq(), Base: a.Base, Old: a.Old, New: a.New}
	s.c.Rebased(m)
	return m
}

// send sends a page, and gives its record.
func (s *script) send(page int64) ship.Record {
	epoch, ok := s.c.MayShip()
	if !ok {
		s.t.Fatal("nothing may be shipped")
	}
	r := ship.Record{Seq: s.c.NextSeq(), Offset: page * pageSize, Length: pageSize, Hash: hashOf([]uint64{uint64(page)})}
	s.c.Sent(r, epoch == 0)
	return r
}

func (s *script) ack(r ship.Record) {
	s.t.Helper()
	if _, v := s.c.Acked(wire.AckEntry{Seq: r.Seq, Offset: r.Offset, Hash: r.Hash}); v != ship.Taken {
		s.t.Fatalf("ack of %d: verdict %d", r.Seq, v)
	}
}

func (s *script) commit(holes ...wire.Extent) *wire.Commit {
	s.t.Helper()
	s.want(ship.SendCommit)
	return s.c.CommitSent(1, holes, uint64(len(holes)), false)
}

func (s *script) committed(m *wire.Commit) {
	s.t.Helper()
	if _, ok := s.c.Committed(&wire.Committed{Epoch: m.Epoch, Records: m.Records, Chain: m.Chain}); !ok {
		s.t.Fatal("Committed is not taken")
	}
}

// epoch takes the mirror to the next cut.
func (s *script) epoch() *wire.Commit {
	s.t.Helper()
	s.n.Fresh = 1
	s.cut()
	s.rebase()
	s.ack(s.send(1))
	s.n.Fresh = 0
	m := s.commit()
	s.committed(m)
	return m
}

func TestPace(t *testing.T) {
	s := connected(t)
	s.idle(0) // nothing was written
	s.epoch()
	s.n.Fresh = 1
	s.idle(second)
	s.now = s.now.Add(second)
	s.epoch()
	s.n.Fresh = 0
	s.now = s.now.Add(time.Hour)
	s.idle(0)
}

// A wish is for a cut later than itself: one whose number was taken before does not fulfil it.
func TestWantedCut(t *testing.T) {
	s := connected(t)
	s.epoch() // 6
	s.c.WantCut(7)
	s.cut() // 7
	s.rebase()
	s.committed(s.commit())
	s.cut() // 8, at once, though nothing was written
	s.rebase()
	s.committed(s.commit())
	s.idle(0)
}

// A wish outlives a give-up, but does not hurry a mirror without room more than once.
func TestWantedCutGivenUp(t *testing.T) {
	s := connected(t)
	s.epoch()
	s.c.WantCut(6)
	s.cut()
	s.rebase()
	s.c.Spoil()
	s.want(ship.GiveUp)
	s.c.GaveUp(false, s.now)
	s.cut()
	s.rebase()
	s.n.Full = true
	s.want(ship.GiveUp)
	s.c.GaveUp(true, s.now)
	s.n.Full = false
	s.idle(second)
}

func TestHolding(t *testing.T) {
	s := connected(t)
	s.n.Fresh = 1
	for i, pause := range []time.Duration{second, 2 * second, ship.HoldEvery, ship.HoldEvery} {
		s.cut()
		s.rebase()
		s.n.Full = true
		s.want(ship.GiveUp)
		s.c.GaveUp(true, s.now)
		s.n.Full = false
		if st := s.c.State(); st.Holding != (i >= 2) {
			t.Fatalf("after %d failures holding is %t", i+1, st.Holding)
		}
		s.idle(pause)
		s.now = s.now.Add(pause)
	}
	s.now = s.now.Add(-second)
	s.idle(second)
	s.c.NoRoom(100)
	s.c.Report(&wire.Report{Room: 99}, s.now)
	s.idle(second)
	s.c.Report(&wire.Report{Room: 200}, s.now)
	s.epoch()
	if st := s.c.State(); st.Holding || st.Missing != 0 {
		t.Errorf("after a commit: %+v", st)
	}
}

// However long the interval is, a cut that found no room is tried again within a minute.
func TestHoldingLongInterval(t *testing.T) {
	s := connected(t)
	s.c.Tune(ship.Config{Interval: time.Hour})
	s.n.Fresh = 1
	for range 4 {
		s.cut()
		s.rebase()
		s.n.Full = true
		s.want(ship.GiveUp)
		s.c.GaveUp(true, s.now)
		s.n.Full = false
		s.idle(ship.HoldEvery)
		s.now = s.now.Add(ship.HoldEvery)
	}
	s.epoch()
	s.n.Fresh = 1
	s.idle(time.Hour)
}

func TestHoldingBulkWhenFull(t *testing.T) {
	s := connected(t)
	s.c.Tune(ship.Config{BulkWhenFull: true})
	s.n.Fresh = 1
	for range 3 {
		s.now = s.now.Add(ship.HoldEvery)
		s.cut()
		s.rebase()
		s.n.Full = true
		s.want(ship.GiveUp)
		s.c.GaveUp(true, s.now)
		s.n.Full = false
	}
	s.want(ship.BeginBulk)
}

func TestGiveUp(t *testing.T) {
	for _, c := range []struct {
		name   string
		reason string // "": the epoch goes on
		do     func(s *script)
	}{
		{"nothing wrong", "", func(*script) {}},
		{"capture full", "no room", func(s *script) { s.n.Full = true }},
		{"paused", "paused", func(s *script) { s.c.Pause() }},
		{"content gone", "written since", func(s *script) { s.c.Spoil() }},
		{"away for 9 s", "", func(s *script) { s.c.Lost(s.now); s.now = s.now.Add(9 * second) }},
		{"away for 10 s", "away", func(s *script) { s.c.Lost(s.now); s.now = s.now.Add(10 * second) }},
		{"staging gone", "staged is gone", func(s *script) { s.c.Lost(s.now); s.c.Attached(atCut(5), false) }},
		{"refused", "may move", func(s *script) { s.c.Lost(s.now); s.c.Attached(atCut(99), false) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := connected(t)
			s.n.Fresh = 1
			s.cut()
			s.rebase()
			s.ack(s.send(1))
			s.n.Todo = 1
			c.do(s)
			a := s.c.Next(s.now, s.n)
			if got := a.Kind == ship.GiveUp; got != (c.reason != "") || !strings.Contains(a.Reason, c.reason) {
				t.Errorf("%s %q, want %q", kinds[a.Kind], a.Reason, c.reason)
			}
		})
	}
}

// What takes a number waits where there is none, whatever a person wants.
func TestPostponed(t *testing.T) {
	s := connected(t)
	s.c.WantCut(5)
	s.want(ship.Cut)
	s.c.Postpone(s.now.Add(second))
	s.idle(second)
	s.now = s.now.Add(second)
	s.cut()
}

// One epoch may be shipped while the Commit of the one before is not answered; its own Commit waits.
func TestPipelined(t *testing.T) {
	s := connected(t)
	s.c.Tune(ship.Config{})
	s.n.Fresh = 1
	s.cut()
	s.rebase()
	s.ack(s.send(1))
	first := s.commit()
	second := s.cut()
	if m := s.rebase(); m.Base != first.Epoch || m.Old != 0 {
		t.Errorf("Rebase %+v behind %d", m, first.Epoch)
	}
	s.ack(s.send(2))
	s.idle(0)
	s.committed(first)
	if m := s.commit(); m.Epoch != second || m.Base != first.Epoch {
		t.Errorf("Commit %+v", m)
	}
}

// A Rebase waits for the answers to what was sent for a former epoch; a Commit for everything.
func TestWaitsForAnswers(t *testing.T) {
	s := connected(t)
	s.n.Fresh = 1
	number := s.cut()
	s.rebase()
	r := s.send(1)
	s.idle(0)
	s.n.Todo = 1
	s.c.Spoil()
	s.want(ship.GiveUp)
	if lost, _ := s.c.GaveUp(false, s.now); len(lost) != 1 || lost[0].Offset != r.Offset {
		t.Errorf("not known to be staged: %v", lost)
	}
	s.now = s.now.Add(second)
	s.cut()
	s.idle(0)
	s.ack(r)
	if m := s.rebase(); m.Old != number || m.Base != 5 {
		t.Errorf("Rebase %+v, want of %d", m, number)
	}
	s.n.Todo = 0
	s.n.Hands = 1
	s.idle(0)
	s.n.Hands = 0
	s.want(ship.SendCommit)
}

// A mirror whose device has no room refuses a Commit. What it staged stays, and what stood on it is refused
// as well; the next epoch takes the staging over.
func TestRefusedCommit(t *testing.T) {
	for _, lost := range []bool{false, true} {
		s := connected(t)
		s.n.Fresh = 1
		s.cut()
		s.rebase()
		s.ack(s.send(1))
		m := s.commit()
		s.now = s.now.Add(second)
		s.cut()
		s.rebase()
		ahead := s.send(2)
		if _, v := s.c.Naked(wire.NakEntry{Cause: wire.NakRoom}); v != ship.NoRoomForAll {
			t.Fatalf("verdict %d", v)
		}
		s.want(ship.GiveUp)
		if _, uncommit := s.c.GaveUp(false, s.now); !uncommit {
			t.Fatal("the Commit stands")
		}
		s.idle(second)
		s.now = s.now.Add(second)
		s.cut()
		if lost {
			s.c.Lost(s.now)
			a := atCut(5)
			a.StagedIncarnation, a.StagedBase, a.StagedNumber, a.StagedSeq, a.StagedRecords, a.StagedChain = 9, 5, m.Epoch, 2, m.Records, m.Chain
			s.c.Attached(a, false)
		} else {
			s.idle(0) // the answer to ahead is due
			if _, v := s.c.Naked(wire.NakEntry{Seq: ahead.Seq, Offset: ahead.Offset, Cause: wire.NakRoom}); v != ship.NoRoomAt {
				t.Fatalf("verdict %d", v)
			}
		}
		r := s.rebase()
		if r.Old != m.Epoch || r.Base != 5 {
			t.Errorf("Rebase %+v, want of %d on 5", r, m.Epoch)
		}
		s.n.Fresh = 0
		again := s.commit()
		chain := wire.ChainAt(m.Chain, m.Records)
		chain.AddRebase(r)
		if again.Chain != chain.Sum() || again.Records != m.Records+1 {
			t.Errorf("Commit of %d records, want %d and their chain", again.Records, m.Records+1)
		}
		s.committed(again)
		s.idle(0)
	}
}

// A Commit that is sent again says what it said before, whatever became of the holes.
func TestCommitAgain(t *testing.T) {
	s := connected(t)
	s.n.Fresh = 1
	s.cut()
	r := s.rebase()
	first := s.commit(wire.Extent{Offset: pageSize, Length: pageSize})
	s.c.Lost(s.now)
	a := atCut(5)
	a.StagedIncarnation, a.StagedBase, a.StagedNumber, a.StagedSeq, a.StagedRecords, a.StagedChain = 9, 5, first.Epoch, r.Seq, first.Records, first.Chain
	if v := s.c.Attached(a, false); v.Uncommit {
		t.Fatal("the mirror has it all")
	}
	if a := s.want(ship.SendCommit); !a.Again {
		t.Error("not again")
	}
	m := s.c.CommitAgain(false)
	if len(m.Holes) != 1 || m.Holes[0] != first.Holes[0] || m.Pages != first.Pages || m.Chain != first.Chain {
		t.Errorf("%+v, and before %+v", m, first)
	}
	s.committed(m)
}

func TestBulk(t *testing.T) {
	s := newScript(t, ship.History{})
	s.idle(0)
	blank := &wire.Attached{Flags: wire.AttachedBlank | wire.AttachedInconsistent, Room: 1 << 30}
	if v := s.c.Attached(blank, false); !v.AllDirty || !v.Restart {
		t.Fatalf("%+v", v)
	}
	s.n.Fresh = 10
	s.want(ship.BeginBulk)
	s.c.BulkBegun(2, s.now)
	s.want(ship.Pass)
	s.c.PassBegun(2, 10, s.now)
	s.n.Fresh, s.n.Todo = 0, 9
	s.now = s.now.Add(5 * second)
	s.idle(0) // nothing was sent: nothing to flush, and no reason to look again
	s.c.PassBegun(2, 10, s.now)
	r := s.send(1)
	s.c.Shipped(pageSize)
	s.idle(2 * second)
	s.now = s.now.Add(2 * second)
	s.want(ship.Flush)
	s.c.FlushSent(3, s.now)
	s.ack(r)
	s.n.Todo = 0
	s.idle(0)
	if !s.c.Flushed(2, 0) {
		t.Fatal("Flushed is not taken")
	}
	s.want(ship.Flush)
	s.c.FlushSent(0, s.now)
	if _, ok := s.c.MayShip(); ok {
		t.Error("behind the last Flush of a pass there is nothing to ship")
	}
	if s.c.Flushed(2, 0) || !s.c.Flushed(3, 0) {
		t.Fatal("Flushed is not taken, or of another number")
	}
	s.cuts = 3
	s.cut() // though nothing was written
	if m := s.rebase(); m.Base != 3 || m.Old != 0 {
		t.Errorf("Rebase %+v", m)
	}
	s.committed(s.commit())
	if st := s.c.State(); st.Inconsistent || st.BulkBase || st.Committed != 4 {
		t.Errorf("%+v", st)
	}
	s.idle(0)
}

func TestBulkPasses(t *testing.T) {
	const small, much = 4096, 1 << 20 // pages
	for _, c := range []struct {
		name          string
		before, fresh uint64
		room          int64
		another       bool
	}{
		{"nothing left", much, 0, 0, false},
		{"little left, without room", much, small, 0, false},
		{"more than halved", much, much/2 - 1, 1 << 40, true},
		{"not halved", much, much / 2, 1 << 40, false},
		{"not halved, without room", much, much / 2, 1 << 20, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScript(t, ship.History{})
			s.c.Attached(&wire.Attached{Flags: wire.AttachedBlank | wire.AttachedInconsistent, Room: c.room}, false)
			s.c.BulkBegun(2, s.now)
			s.c.PassBegun(2, c.before, s.now)
			s.c.FlushSent(0, s.now)
			s.c.Flushed(2, c.fresh)
			want := ship.Cut
			if c.another {
				want = ship.Pass
			}
			s.want(want)
		})
	}
}

// An epoch that is to end a bulk and finds no room is followed by another pass, but not while the Commit
// before it is open: that one may have ended the bulk.
func TestBulkAfterNoRoom(t *testing.T) {
	for _, open := range []bool{false, true} {
		s := newScript(t, ship.History{})
		s.c.Tune(ship.Config{})
		s.c.Attached(&wire.Attached{Flags: wire.AttachedBlank | wire.AttachedInconsistent}, false)
		s.c.BulkBegun(2, s.now)
		s.c.PassBegun(2, 1, s.now)
		s.c.FlushSent(0, s.now)
		s.c.Flushed(2, 0)
		s.cuts = 2
		s.n.Fresh = 1
		s.cut()
		s.rebase()
		var m *wire.Commit
		if open {
			m = s.commit()
			s.cut()
			s.rebase()
		}
		s.n.Full = true
		s.want(ship.GiveUp)
		s.c.GaveUp(true, s.now)
		s.n.Full = false
		if open {
			s.committed(m)
			s.want(ship.Cut)
		} else {
			s.want(ship.BeginBulk)
		}
	}
}

func TestReconcile(t *testing.T) {
	s := connected(t)
	s.c.AllowOffers(2)
	s.n.Fresh, s.n.Doubt = 1, 3
	s.want(ship.Offer)
	s.c.Offered()
	s.want(ship.Offer)
	s.c.Offered()
	s.idle(0)
	s.c.Wanted()
	s.want(ship.Offer)
	s.c.Swept()
	s.idle(0) // one is unanswered
	s.c.Wanted()
	s.want(ship.Offer) // what was put in doubt behind the sweep
	s.n.Doubt = 0
	s.want(ship.Cut)
}

// Doubt that comes up while something is staged: an epoch under way is finished, one that was given up is
// dropped.
func TestReconcileBesideStaging(t *testing.T) {
	s := connected(t)
	s.c.AllowOffers(1)
	s.n.Fresh = 1
	s.cut()
	s.rebase()
	s.ack(s.send(1))
	s.n.Doubt = 1
	m := s.commit()
	s.idle(0)
	s.committed(m)
	s.want(ship.Offer)
	s.n.Doubt = 0

	s = connected(t)
	s.n.Fresh = 1
	number := s.cut()
	s.rebase()
	s.ack(s.send(1))
	s.c.Spoil()
	s.want(ship.GiveUp)
	s.c.GaveUp(false, s.now)
	s.n.Doubt = 1
	if a := s.want(ship.Drop); a.Old != number {
		t.Errorf("drops %d, want %d", a.Old, number)
	}
	s.c.Dropped(&wire.Rebase{Seq: s.c.NextSeq(), Old: number})
	s.c.AllowOffers(1)
	s.want(ship.Offer)
}

// The table of docs/LIVE.md.
func TestAttach(t *testing.T) {
	other := wire.Generation{ID: [16]byte{8}, Counter: 3}
	for _, c := range []struct {
		name      string
		history   ship.History
		attached  wire.Attached
		overwrite bool
		want      string // a part of what is refused or doubted; "dirty"; "": it goes on
	}{
		{"as recorded", ship.History{Committed: 5, Sent: 7, Known: true}, *atCut(5), false, ""},
		{"more than recorded", ship.History{Committed: 5, Sent: 7, Known: true}, *atCut(7), false, ""},
		{"bulk number since", ship.History{Committed: 5, Sent: 7, Known: true},
			wire.Attached{Generation: generation, LastCut: 6, Flags: wire.AttachedBulk | wire.AttachedInconsistent}, false, ""},
		{"too low", ship.History{Committed: 5, Sent: 7, Known: true}, *atCut(4), false, "went back"},
		{"too high", ship.History{Committed: 5, Sent: 7, Known: true}, *atCut(8), false, "never sent"},
		{"too high, overwritten", ship.History{Committed: 5, Sent: 7, Known: true}, *atCut(8), true, "overwritten"},
		{"a cut where a bulk number is recorded", ship.History{Committed: 5, Sent: 5, Bulk: true}, *atCut(5), false, "went back"},
		{"another generation", ship.History{Committed: 5, Sent: 7, Known: true}, wire.Attached{Generation: other, LastCut: 6}, false, "another generation"},
		{"unknown content", ship.History{}, wire.Attached{Flags: wire.AttachedInconsistent}, false, "unknown origin"},
		{"blank", ship.History{Committed: 5, Sent: 7, Known: true}, wire.Attached{Flags: wire.AttachedBlank | wire.AttachedInconsistent}, false, "dirty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScript(t, c.history)
			v := s.c.Attached(&c.attached, c.overwrite)
			got := v.Refused + v.AllDoubt
			if v.AllDirty {
				got += "dirty"
			}
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
			if v.Refused != "" {
				s.n.Fresh = 1
				s.idle(0)
			}
		})
	}
}

// What is needed although nothing was written: a commit that tells a mirror of another history of ours.
func TestAttachOtherHistory(t *testing.T) {
	s := newScript(t, ship.History{})
	s.c.AllowOffers(1)
	s.c.Attached(&wire.Attached{Generation: wire.Generation{ID: [16]byte{8}, Counter: 1}, LastCut: 6}, false)
	s.n.Doubt = 1
	s.want(ship.Offer)
	s.n.Doubt = 0
	s.cuts = 6
	s.epoch()
	s.idle(0)
}

// In bulk a Nak may be lost together with the Flushed behind it: what was not answered is needed.
func TestAttachFlushed(t *testing.T) {
	s := newScript(t, ship.History{})
	s.c.Attached(&wire.Attached{Flags: wire.AttachedBlank | wire.AttachedInconsistent}, false)
	s.c.BulkBegun(2, s.now)
	s.c.PassBegun(2, 2, s.now)
	s.ack(s.send(1))
	s.send(2)
	s.c.FlushSent(0, s.now)
	s.c.Lost(s.now)
	v := s.c.Attached(&wire.Attached{Generation: generation, LastCut: 2, Flags: wire.AttachedBulk | wire.AttachedInconsistent}, false)
	if !v.Flushed || !v.Restart || len(v.Unsure) != 1 || v.Unsure[0].Offset != 2*pageSize {
		t.Errorf("%+v", v)
	}
}

// What a mirror wrote in place towards a number that we never sent it, a later life of ours has sent it.
func TestAttachInPlaceBeyond(t *testing.T) {
	s := newScript(t, ship.History{Committed: 5, Sent: 6, Bulk: true, Known: true})
	at := func(inPlace uint64) *wire.Attached {
		return &wire.Attached{Generation: generation, LastCut: 5, InPlace: inPlace, Flags: wire.AttachedBulk | wire.AttachedInconsistent}
	}
	if v := s.c.Attached(at(7), false); v.Refused == "" {
		t.Errorf("%+v", v)
	}
	s.c.Lost(s.now)
	if v := s.c.Attached(at(7), true); v.Refused != "" || v.AllDoubt == "" {
		t.Errorf("to be overwritten: %+v", v)
	}
	s = newScript(t, ship.History{Committed: 5, Sent: 6, Bulk: true, Known: true})
	if v := s.c.Attached(at(6), false); v.Refused != "" || v.AllDoubt != "" || !v.Restart {
		t.Errorf("of our own time: %+v", v)
	}
}

// A bulk of a mirror that was consistent, of which it got nothing: its pass is begun anew all the same.
func TestAttachBulkLost(t *testing.T) {
	s := connected(t)
	s.c.BulkBegun(6, s.now)
	s.c.PassBegun(6, 2, s.now)
	s.c.Lost(s.now)
	if v := s.c.Attached(atCut(5), false); !v.Restart {
		t.Errorf("%+v", v)
	}
}

// A mirror that lost a part of what is staged for an epoch that was given up: the one that was to take it over
// cannot be completed.
func TestAttachLessStaged(t *testing.T) {
	s := connected(t)
	s.n.Fresh = 1
	number := s.cut()
	r := s.rebase()
	s.ack(s.send(1))
	s.c.Spoil()
	s.want(ship.GiveUp)
	s.c.GaveUp(false, s.now)
	s.now = s.now.Add(second)
	s.cut()
	s.c.Lost(s.now)
	var chain wire.Chain
	chain.AddRebase(r)
	a := atCut(5)
	a.StagedIncarnation, a.StagedBase, a.StagedNumber, a.StagedSeq, a.StagedRecords, a.StagedChain = 9, 5, number, r.Seq, 1, chain.Sum()
	if v := s.c.Attached(a, false); len(v.NotStaged) != 1 {
		t.Errorf("%+v", v)
	}
	s.want(ship.GiveUp)
}

func TestMismatch(t *testing.T) {
	s := connected(t)
	s.n.Fresh = 1
	s.cut()
	s.rebase()
	r := s.send(1)
	if _, v := s.c.Acked(wire.AckEntry{Seq: r.Seq, Offset: r.Offset, Hash: wire.Hash{1}}); v != ship.Reship {
		t.Errorf("verdict %d", v)
	}
	if _, v := s.c.Acked(wire.AckEntry{Seq: r.Seq, Offset: r.Offset, Hash: r.Hash}); v != ship.Unknown {
		t.Errorf("a second answer: verdict %d", v)
	}
	r, later := s.send(1), s.send(2)
	if _, v := s.c.Acked(wire.AckEntry{Seq: later.Seq, Offset: later.Offset, Hash: later.Hash}); v != ship.Unknown {
		t.Errorf("an answer out of turn: verdict %d", v)
	}
	if _, v := s.c.Naked(wire.NakEntry{Seq: r.Seq, Offset: r.Offset + 1, Cause: wire.NakHash}); v != ship.Unknown {
		t.Errorf("an answer for another place: verdict %d", v)
	}
	last := ship.Record{Seq: s.c.NextSeq(), Offset: pageSize, Length: pageSize, Tries: ship.MaxTries}
	s.ack(r)
	s.ack(later)
	s.c.Sent(last, false)
	if _, v := s.c.Naked(wire.NakEntry{Seq: last.Seq, Offset: last.Offset, Cause: wire.NakHash}); v != ship.Final {
		t.Errorf("verdict %d", v)
	}
}

// Points that a mirror says are durable are held against what it was sent.
func TestSynced(t *testing.T) {
	s := connected(t)
	s.n.Fresh = 1
	number := s.cut()
	r := s.rebase()
	rec := s.send(1)
	var chain wire.Chain
	chain.AddRebase(r)
	chain.Add(&wire.Data{Seq: rec.Seq, Offset: rec.Offset, RawLength: pageSize, Hash: rec.Hash})
	good := wire.Synced{Epoch: number, Seq: rec.Seq, Records: 2, Chain: chain.Sum()}
	for _, c := range []struct {
		name string
		ok   bool
		m    wire.Synced
		ack  bool
	}{
		{"not answered", false, good, false},
		{"another chain", false, wire.Synced{Epoch: number, Seq: rec.Seq, Records: 2}, true},
		{"another count", false, wire.Synced{Epoch: number, Seq: rec.Seq, Records: 3, Chain: good.Chain}, false},
		{"never sent", false, wire.Synced{Epoch: number, Seq: 99, Records: 2, Chain: good.Chain}, false},
		{"another epoch", true, wire.Synced{Epoch: number + 1, Seq: 99}, false},
		{"good", true, good, false},
		{"once more", true, good, false},
	} {
		if c.ack {
			s.ack(rec)
		}
		if ok := s.c.Synced(&c.m); ok != c.ok {
			t.Errorf("%s: %t, want %t", c.name, ok, c.ok)
		}
	}
}
