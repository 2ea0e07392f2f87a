package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

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
		wait := awakeEvery
		if a, session := s.next(); a.Kind == ship.Wait {
			if !a.At.IsZero() {
				wait = min(wait, max(time.Until(a.At), 0))
			}
		} else {
			if err := s.do(a, session); err != nil {
				s.failed(session, err)
			}
			if ctx.Err() != nil {
				return
			}
			continue
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

// next asks the core. The counts are taken so that what moves from one to the next is never missed: a page
// leaves todo for a batch in somebody's hands, and that becomes an unanswered record.
func (s *shipper) next() (ship.Action, *shipSession) {
	n := s.p.tracker.Counts(s.sets)
	hands := int(s.inHand.Load())
	s.mu.Lock()
	defer s.mu.Unlock()
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
	if s.p.journal.Err() != nil {
		s.p.fail("take a cut", s.p.journal.Err())
	}
	if session != nil {
		session.end(err)
	}
}

func (s *shipper) do(a ship.Action, session *shipSession) error {
	switch a.Kind {
	case ship.Cut:
		return s.doCut()
	case ship.SendRebase:
		return s.doRebase(a, session)
	case ship.SendCommit:
		return s.doCommit(a, session)
	case ship.GiveUp:
		s.doGiveUp(a, session)
	case ship.Void:
		s.p.tracker.VoidStaging(s.sets)
		s.mu.Lock()
		s.core.Voided()
		s.mu.Unlock()
	case ship.Drop:
		return s.doDrop(a, session)
	case ship.BeginBulk:
		return s.doBeginBulk(a, session)
	case ship.Pass:
		return s.doPass()
	case ship.Flush:
		return s.doFlush(session)
	case ship.Offer:
		return s.doOffer(session)
	case ship.RetryHoles:
		s.p.tracker.RetryHoles(s.sets)
	}
	return nil
}

// doCut takes a cut: the number first, durably, then the step.
func (s *shipper) doCut() error {
	number, err := s.p.facts.number(s.config.Name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	voids := s.p.tracker.CutStep(s.sets.Epoch())
	s.voids = nil
	if len(voids) > 0 {
		s.voids = voids[0]
	}
	s.full = false
	s.core.CutTaken(number, s.p.now())
	return nil
}

// doRebase begins the epoch on the wire. The void pages may need several frames, which are one record.
func (s *shipper) doRebase(a ship.Action, session *shipSession) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	m := &wire.Rebase{Seq: s.core.NextSeq(), Base: a.Base, Old: a.Old, New: a.New}
	if a.Old != 0 && s.voids != nil {
		for first, n, ok := s.voids.NextSet(0); ok; first, n, ok = s.voids.NextSet(first + n) {
			m.Voids = append(m.Voids, s.extent(first, n))
		}
	}
	s.core.Rebased(m)
	s.mu.Unlock()
	var frames []wire.Message
	for voids := m.Voids; ; {
		n := min(len(voids), wire.MaxEntries)
		part := *m
		part.Voids, voids = voids[:n], voids[n:]
		part.More = len(voids) > 0
		frames = append(frames, &part)
		if !part.More {
			break
		}
	}
	if err := session.conn.Send(frames...); err != nil {
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

// doCommit says that the epoch is whole.
func (s *shipper) doCommit(a ship.Action, session *shipSession) error {
	var holes []wire.Extent
	var holePages, pages uint64
	runs := s.p.tracker.Holes(s.sets, wire.MaxHoles+1)
	if len(runs) > wire.MaxHoles {
		s.mu.Lock()
		s.full = true
		s.mu.Unlock()
		s.doGiveUp(ship.Action{Reason: "more pages cannot be read than a commit can name"}, session)
		return nil
	}
	for _, r := range runs {
		holes = append(holes, s.extent(r.First, r.Count))
		holePages += r.Count
	}
	if !a.Again {
		pages = s.p.tracker.Counts(s.sets).Staged
		if err := s.p.tracker.StartCommit(s.sets); err != nil {
			s.mu.Lock()
			s.full = true // the write path gave it up in this very moment
			s.mu.Unlock()
			return nil
		}
	}
	s.mu.Lock()
	m := s.core.CommitSent(pages, holes, holePages, s.p.unproven())
	s.mu.Unlock()
	return session.conn.Send(m)
}

// doGiveUp ends the epoch under way: nobody reads or sends for it any more, and what is not staged is todo
// again.
func (s *shipper) doGiveUp(a ship.Action, session *shipSession) {
	if session != nil {
		session.stopShipping()
	}
	s.hands.Lock()
	defer s.hands.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	extents := append(s.core.GaveUp(s.full, s.p.now()), s.refused...)
	for _, it := range s.again {
		extents = append(extents, wire.Extent{Offset: it.off, Length: it.length})
	}
	s.forgetKept()
	s.p.tracker.GiveUp(s.sets, runsOf(extents))
	s.stats.givenUp.Add(1)
	if session != nil {
		session.shipAgain()
	}
	s.p.log(fmt.Sprintf("mirror %s: the cut was given up: %s", s.config.Name, a.Reason))
	s.notifyLocked()
}

// doDrop throws away what is staged, so that offers can be answered.
func (s *shipper) doDrop(a ship.Action, session *shipSession) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	var m *wire.Rebase
	if a.Old != 0 {
		m = &wire.Rebase{Seq: s.core.NextSeq(), Old: a.Old}
	}
	s.p.tracker.DropEpoch(s.sets)
	s.core.Dropped(m)
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	return session.conn.Send(m)
}

func (s *shipper) doBeginBulk(a ship.Action, session *shipSession) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	s.p.tracker.DropEpoch(s.sets)
	s.forgetKept()
	s.core.BulkBegun(s.p.now())
	s.mu.Unlock()
	return session.conn.Send(&wire.Bulk{Base: a.Base})
}

// doPass begins a pass of a bulk: everything that is needed is todo, and nothing is captured.
func (s *shipper) doPass() error {
	number, err := s.p.facts.number(s.config.Name)
	if err != nil {
		return err
	}
	s.p.tracker.CutStep(s.sets.Bulk())
	n := s.p.tracker.Counts(s.sets)
	s.mu.Lock()
	if s.core.Passes() > 0 {
		s.blank = -1 // something was sent
	}
	s.core.PassBegun(number, n.Todo, s.p.now())
	s.notifyLocked()
	s.mu.Unlock()
	return nil
}

// doFlush asks the mirror to make durable what was sent. With hands held, all that was read is on its way,
// before the Flush.
func (s *shipper) doFlush(session *shipSession) error {
	number, err := s.p.facts.number(s.config.Name)
	if err != nil {
		return err
	}
	s.hands.Lock()
	defer s.hands.Unlock()
	if !s.p.tracker.BulkFlush(s.sets) {
		return nil
	}
	n := s.p.tracker.Counts(s.sets)
	s.mu.Lock()
	s.core.FlushSent(number, n.Todo == 0 && len(s.again) == 0, s.p.now())
	s.mu.Unlock()
	return session.conn.Send(&wire.Flush{Number: number})
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
