package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/wire"
)

// routineDrive does what the core says, one thing at a time. It lives as long as the shipper: an epoch is
// given up also while there is no connection.
func (s *shipper) routineDrive(ctx context.Context) {
	timer := time.NewTimer(awakeEvery)
	defer timer.Stop()
	for {
		s.keepLimit()
		s.renew()
		a := s.drive()
		if ctx.Err() != nil {
			return
		}
		if a.Kind != ship.Wait {
			continue
		}
		wait := awakeEvery
		if !a.At.IsZero() {
			wait = min(wait, max(a.At.Sub(s.p.now()), 0))
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// drive does one thing, and tells which. Where it is to wait, nothing.
func (s *shipper) drive() ship.Action {
	a, session := s.next()
	if a.Kind == ship.Wait {
		return a
	}
	if err := s.do(a, session); err != nil {
		s.failed(session, err)
	}
	return a
}

// takeHands waits until no batch is between reading and sending, and keeps all from being begun.
func (s *shipper) takeHands() (release func()) {
	if s.p.wait == nil {
		s.hands.Lock()
	} else {
		s.p.wait(s.hands.TryLock)
	}
	return s.hands.Unlock
}

// lendHand begins a batch.
func (s *shipper) lendHand() (release func()) {
	if s.p.wait == nil {
		s.hands.RLock()
	} else {
		s.p.wait(s.hands.TryRLock)
	}
	return s.hands.RUnlock
}

// next asks the core. The counts are taken so that what moves from one to the next is never missed: a page
// leaves todo for a batch in somebody's hands, and that becomes an unanswered record. With s.mu held no record
// goes back to todo meanwhile.
func (s *shipper) next() (ship.Action, *shipSession) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.p.tracker.Counts(s.sets)
	hands := int(s.inHand.Load())
	c := ship.Counts{Fresh: n.Open + n.Waiting, Todo: n.Todo + n.Captured, Staged: n.Staged, Doubt: n.Doubt, Holes: n.Holes,
		Hands: hands + len(s.again), Full: s.full}
	if s.session == nil || s.session.ctx.Err() != nil {
		// Only what needs no connection.
		if a := s.core.Next(s.p.now(), c); a.Kind == ship.GiveUp || a.Kind == ship.Wait || a.Kind == ship.Void {
			return a, nil
		}
		return ship.Action{}, nil
	}
	return s.core.Next(s.p.now(), c), s.session
}

// failed ends what an action could not do: the session, where the connection or the mirror is the cause,
// or all writes, where the journal is.
func (s *shipper) failed(session *shipSession, err error) {
	if errors.Is(err, errJournalLow) {
		s.mu.Lock()
		s.core.Postpone(s.p.now().Add(time.Second))
		s.mu.Unlock()
		return
	}
	if err := s.p.journal.Err(); err != nil {
		s.p.fail("take a cut", err)
		s.mu.Lock()
		s.core.Postpone(s.p.now().Add(time.Minute)) // it takes a restart
		s.mu.Unlock()
		return
	}
	if session != nil {
		session.end(err)
	}
}

func (s *shipper) do(a ship.Action, session *shipSession) error {
	switch a.Kind {
	case ship.Cut:
		return s.doCut(session)
	case ship.SendRebase:
		return s.doRebase(a, session)
	case ship.SendCommit:
		return s.doCommit(a, session)
	case ship.GiveUp:
		s.doGiveUp(a.Reason)
	case ship.Void:
		s.mu.Lock()
		s.p.tracker.VoidStaging(s.sets)
		s.voids = nil
		s.core.Voided()
		s.mu.Unlock()
	case ship.Drop:
		return s.doDrop(a, session)
	case ship.BeginBulk:
		return s.doBeginBulk(a, session)
	case ship.Pass:
		return s.doPass(a, session)
	case ship.Flush:
		return s.doFlush(session)
	case ship.Offer:
		return s.doOffer(session)
	case ship.RetryHoles:
		s.p.tracker.RetryHoles(s.sets)
	}
	return nil
}

// stands tells whether what was decided for a session may still be done: it may have ended since, or another
// one begun, and with it everything may be otherwise. s.mu is held.
func (s *shipper) stands(session *shipSession) bool {
	return s.session == session && session.ctx.Err() == nil
}

// doCut takes a cut: the number first, durably, then the step. With hands held no reader that began before
// reads behind it.
func (s *shipper) doCut(session *shipSession) error {
	number, err := s.p.facts.number(s.config.Name)
	if err != nil {
		return err
	}
	defer s.takeHands()()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stands(session) {
		return nil
	}
	if voids := s.p.tracker.CutStep(s.sets.Epoch())[0]; voids != nil {
		s.voided().Union(voids)
	}
	s.full, s.refused = false, nil
	s.blank = -1 // should another bulk follow, it does not meet a blank device
	s.core.CutTaken(number, s.p.now())
	return nil
}

// voided are the pages that the mirror may have staged and that are to be sent anew: since the last Rebase
// or the begin of the staging. s.mu is held.
func (s *shipper) voided() *blockdev.PageSet {
	if s.voids == nil {
		s.voids = blockdev.NewPageSet(s.p.tracker.Pages())
	}
	return s.voids
}

// doRebase begins the epoch on the wire. The void pages may need several frames, which are one record.
func (s *shipper) doRebase(a ship.Action, session *shipSession) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	if !s.stands(session) {
		s.mu.Unlock()
		return nil
	}
	m := &wire.Rebase{Seq: s.core.NextSeq(), Base: a.Base, Old: a.Old, New: a.New}
	if a.Old != 0 && s.voids != nil {
		for first, n, ok := s.voids.NextSet(0); ok; first, n, ok = s.voids.NextSet(first + n) {
			m.Voids = append(m.Voids, s.extent(first, n))
		}
	}
	s.voids = nil
	s.core.Rebased(m)
	s.mu.Unlock()
	if err := session.conn.Send(m.Frames()...); err != nil {
		return err
	}
	s.notify()
	return nil
}

// extent is a run of pages in bytes, cut off at the volume's end.
func (s *shipper) extent(first, count uint64) wire.Extent {
	off := int64(first) * pageSize
	return wire.Extent{Offset: off, Length: min(int64(count)*pageSize, s.p.size-off)}
}

// doCommit says that the epoch is whole, once more where its Commit may be lost.
func (s *shipper) doCommit(a ship.Action, session *shipSession) error {
	s.mu.Lock()
	m, tooMany := s.commitLocked(a, session)
	s.mu.Unlock()
	switch {
	case tooMany:
		s.doGiveUp("more pages cannot be read than a commit can name")
	case m != nil:
		return session.conn.Send(m)
	}
	return nil
}

// commitLocked makes the epoch one that is committing; nil where that cannot be done now. s.mu is held.
func (s *shipper) commitLocked(a ship.Action, session *shipSession) (m *wire.Commit, tooMany bool) {
	if !s.stands(session) {
		return nil, false
	}
	if a.Again {
		return s.core.CommitAgain(s.p.unproven()), false
	}
	runs := s.p.tracker.Holes(s.sets, wire.MaxHoles+1)
	if len(runs) > wire.MaxHoles {
		s.full = true
		return nil, true
	}
	var holes []wire.Extent
	var holePages uint64
	for _, r := range runs {
		holes = append(holes, s.extent(r.First, r.Count))
		holePages += r.Count
	}
	pages := s.p.tracker.Counts(s.sets).Staged
	if err := s.p.tracker.StartCommit(s.sets); err != nil {
		s.full = s.full || errors.Is(err, track.ErrGivenUp) // by the write path, in this very moment
		return nil, false                                   // else there is something left to ship
	}
	return s.core.CommitSent(pages, holes, holePages, s.p.unproven()), false
}

// doGiveUp ends the epoch under way: nobody reads or sends for it any more, and what is not staged is todo
// again.
func (s *shipper) doGiveUp(reason string) {
	s.mu.Lock()
	session := s.session
	s.mu.Unlock()
	if session != nil {
		session.stopShipping()
		defer session.shipAgain()
	}
	defer s.takeHands()()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.core.Doomable() {
		return // a session that began meanwhile settled it
	}
	unanswered, uncommit := s.core.GaveUp(s.full, s.p.now())
	extents := append(unanswered, s.refused...)
	for _, it := range s.again {
		extents = append(extents, wire.Extent{Offset: it.off, Length: it.length})
	}
	s.forgetKept()
	if uncommit {
		s.p.tracker.Uncommit(s.sets)
	} else {
		s.p.tracker.GiveUp(s.sets, runsOf(extents))
		for _, r := range runsOf(unanswered) {
			s.voided().Add(r.First, r.Count)
		}
	}
	s.stats.givenUp.Add(1)
	s.p.log(fmt.Sprintf("mirror %s: the cut was given up: %s", s.config.Name, reason))
	s.notifyLocked()
}

// doDrop throws away what is staged, so that offers can be answered.
func (s *shipper) doDrop(a ship.Action, session *shipSession) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	if !s.stands(session) {
		s.mu.Unlock()
		return nil
	}
	var m *wire.Rebase
	if a.Old != 0 {
		m = &wire.Rebase{Seq: s.core.NextSeq(), Old: a.Old}
	}
	s.voids = nil
	s.p.tracker.DropEpoch(s.sets)
	s.core.Dropped(m)
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	return session.conn.Send(m)
}

func (s *shipper) doBeginBulk(a ship.Action, session *shipSession) error {
	number, err := s.p.facts.number(s.config.Name)
	if err != nil {
		return err
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	if !s.stands(session) {
		s.mu.Unlock()
		return nil
	}
	s.p.tracker.DropEpoch(s.sets)
	s.forgetKept()
	s.core.BulkBegun(number, s.p.now())
	s.mu.Unlock()
	return session.conn.Send(&wire.Bulk{Base: a.Base, Number: number})
}

// doPass begins a pass of a bulk: everything that is needed is todo, and nothing is captured. Behind a Flush the
// mirror is told the number of the next one, before hands are free to send the first page towards it.
func (s *shipper) doPass(a ship.Action, session *shipSession) error {
	s.mu.Lock()
	told := s.core.BulkNumber()
	s.mu.Unlock()
	number, err := told, error(nil)
	if told == 0 {
		if number, err = s.p.facts.number(s.config.Name); err != nil {
			return err
		}
	}
	defer s.takeHands()()
	s.mu.Lock()
	if !s.stands(session) || s.core.BulkNumber() != told {
		s.mu.Unlock()
		return nil
	}
	s.p.tracker.CutStep(s.sets.Bulk())
	if s.core.Passes() > 0 {
		s.blank = -1 // something was sent
	}
	s.core.PassBegun(number, s.p.tracker.Counts(s.sets).Todo, s.p.now())
	s.notifyLocked()
	s.mu.Unlock()
	if told != 0 {
		return nil
	}
	return session.conn.Send(&wire.Bulk{Base: a.Base, Number: number})
}

// doFlush asks the mirror to make durable what was sent. With hands held, all that was read is on its way,
// before the Flush, but for what an ending session has left to be sent again: a Flush that got through all the
// same would clear it.
func (s *shipper) doFlush(session *shipSession) error {
	next, err := s.p.facts.number(s.config.Name)
	if err != nil {
		return err
	}
	defer s.takeHands()()
	s.mu.Lock()
	if !s.stands(session) || len(s.again) > 0 || !s.p.tracker.BulkFlush(s.sets) {
		s.mu.Unlock()
		return nil
	}
	if s.p.tracker.Counts(s.sets).Todo == 0 {
		next = 0     // the pass ends; should another one follow, it takes its own
		s.blank = -1 // … and meets what this one has sent
	}
	number := s.core.BulkNumber()
	s.core.FlushSent(next, s.p.now())
	s.mu.Unlock()
	if err := session.conn.Send(&wire.Flush{Number: number}); err != nil || next == 0 {
		return err
	}
	return session.conn.Send(&wire.Bulk{Base: number, Number: next})
}

// stopShipping makes readers let go of what they wait for; shipAgain lets them go on.
func (s *shipSession) stopShipping() {
	s.mu.Lock()
	s.noShip(track.ErrGivenUp)
	s.mu.Unlock()
}

func (s *shipSession) shipAgain() {
	s.mu.Lock()
	s.ship, s.noShip = context.WithCancelCause(s.ctx)
	s.mu.Unlock()
}

func (s *shipSession) shipping() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ship
}
