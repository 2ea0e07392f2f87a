package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// handle takes what the mirror sends, in the link's reader. It waits for nothing that needs the mirror.
func (s *shipper) handle(m wire.Message) error {
	var err error
	switch m := m.(type) {
	case *wire.Ack:
		err = s.takeAck(m)
	case *wire.Nak:
		err = s.takeNak(m)
	case *wire.Window:
		return s.session.window.Grant(m.Granted)
	case *wire.Synced:
		s.mu.Lock()
		ok := s.core.Synced(m)
		s.mu.Unlock()
		if !ok {
			return fmt.Errorf("%w: the mirror has another chain of what is staged at %d", errMismatch, m.Seq)
		}
		return nil
	case *wire.Committed:
		err = s.takeCommitted(m)
	case *wire.Flushed:
		err = s.takeFlushed(m)
	case *wire.Want:
		err = s.takeWant(m)
	case *wire.Report:
		s.mu.Lock()
		s.core.Report(m, s.p.now())
		recovered := s.mirrorCause != nil && m.Quarantine == 0
		s.mu.Unlock()
		if recovered {
			err = s.recovered()
		}
	case *wire.Quarantine:
		err = s.takeQuarantine(m)
	case *wire.Fetch:
		return s.session.fetches.wanted(geometry{size: s.p.size, blockSize: s.p.blockSize}, m)
	case *wire.Fetched:
		return s.session.fetches.fetched(s.session.conn, m)
	case *wire.Ask:
		return s.takeAsk(s.session, m)
	case *wire.Doubt:
		err = s.takeDoubt(m)
	default:
		return protocolError("a mirror does not send type %d", m.Type())
	}
	s.notify()
	return err
}

func (s *shipper) takeAck(m *wire.Ack) (err error) {
	var bytes int64
	for i := 0; i < len(m.Entries) && err == nil; i++ {
		s.mu.Lock()
		rec, verdict := s.core.Acked(m.Entries[i])
		err = s.settleLocked(rec, verdict, answered{journal.ClassAck, m.Entries[i].Hash})
		s.mu.Unlock()
		bytes += rec.Bytes
	}
	s.session.window.Delivered(bytes)
	return err
}

func (s *shipper) takeNak(m *wire.Nak) (err error) {
	var bytes int64
	for i := 0; i < len(m.Entries) && err == nil; i++ {
		s.mu.Lock()
		rec, verdict := s.core.Naked(m.Entries[i])
		err = s.settleLocked(rec, verdict, answered{journal.ClassPayload, m.Entries[i].Hash})
		s.mu.Unlock()
		bytes += rec.Bytes
	}
	s.session.window.Delivered(bytes)
	return err
}

// answered is which checksum a mirror computed, and what a mismatch of it is: it refused the record, or took it.
type answered struct {
	class journal.Class
	hash  wire.Hash
}

// settleLocked does what an answer to a record comes to. s.mu is held.
func (s *shipper) settleLocked(rec ship.Record, verdict ship.Verdict, got answered) error {
	it, kept := s.kept[rec.Seq]
	if kept {
		delete(s.kept, rec.Seq)
	}
	switch verdict {
	case ship.Unknown:
		return protocolError("an answer to a record that was not sent, or is not its turn")
	case ship.Final:
		return s.mismatchLocked(rec, it, got)
	case ship.NoRoomForAll:
		s.core.NoRoom(s.bytes(s.p.tracker.Counts(s.sets).Needs))
		return nil
	case ship.NoRoomAt:
		it.buf.release()
		s.core.NoRoom(s.bytes(s.p.tracker.Counts(s.sets).Needs))
		s.refused = append(s.refused, wire.Extent{Offset: rec.Offset, Length: rec.Length})
		s.full = true
		return nil
	case ship.Reship:
		return s.reshipLocked(rec, it, kept, got)
	}
	if s.tries[rec.Offset] > 0 {
		delete(s.tries, rec.Offset)
		s.mismatches.wire++ // sending it again was enough
	}
	it.buf.release()
	return nil
}

// reshipLocked has a record sent again whose checksum did not match: in an epoch from the kept copy, in
// bulk by having its pages needed anew, since a Flush may already have been sent that would clear them.
func (s *shipper) reshipLocked(rec ship.Record, it item, kept bool, got answered) error {
	s.stats.retried.Add(1)
	s.tries[rec.Offset]++
	tries := s.tries[rec.Offset]
	if tries > ship.MaxTries {
		return s.mismatchLocked(rec, it, got)
	}
	if kept && s.core.Doomable() && !s.sound(&it) {
		return s.rereadLocked(rec, it)
	}
	if kept && s.core.Doomable() { // also while nothing is shipped: the epoch must not be committed without it
		it.tries, it.follow = tries, 0
		s.again = append(s.again, it)
		// Readers may wait for the very memory that it holds.
		s.session.stopShipping()
		s.session.shipAgain()
		return nil
	}
	it.buf.release()
	s.core.Spoil() // no epoch is complete without it
	s.dirtyLocked(rec)
	return nil
}

// mismatchLocked ends a session because of a record that was sent again often enough. The epoch is without
// it from now on, so it is given up; with the next connection the mirror is told to be read-only. s.mu is held.
func (s *shipper) mismatchLocked(rec ship.Record, it item, got answered) error {
	it.buf.release()
	s.core.Spoil()
	s.dirtyLocked(rec)
	s.suspectLocked(rec, got)
	return mismatchError(rec.Offset, rec.Length, rec.Hash, got.hash)
}

// dirtyLocked has the pages of a record sent with a later cut or pass. s.mu is held.
func (s *shipper) dirtyLocked(rec ship.Record) {
	for _, r := range runsOf([]wire.Extent{{Offset: rec.Offset, Length: rec.Length}}) {
		s.p.tracker.Dirty(s.sets, r.First, r.Count)
	}
}

// takeCommitted: facts first, then the sets (see facts.committed).
func (s *shipper) takeCommitted(m *wire.Committed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.core.Committed(m); !ok {
		return fmt.Errorf("%w: the mirror says that it committed %d, which it was not asked", errMismatch, m.Epoch)
	}
	if err := s.p.facts.committed(s.config.Name, m.Epoch, false); err != nil {
		s.p.fail("note commit", err)
		return err
	}
	s.p.tracker.Committed(s.sets)
	return nil
}

func (s *shipper) takeFlushed(m *wire.Flushed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.p.tracker.Counts(s.sets)
	if !s.core.Flushed(m.Number, n.Open+n.Waiting) {
		return protocolError("Flushed %d, which was not asked", m.Number)
	}
	if err := s.p.facts.committed(s.config.Name, m.Number, true); err != nil {
		s.p.fail("note flush", err)
		return err
	}
	s.p.tracker.BulkFlushed(s.sets)
	return nil
}

// takeDoubt: the mirror cannot vouch for these ranges; they are compared before the next cut.
func (s *shipper) takeDoubt(m *wire.Doubt) error {
	for _, e := range m.Extents {
		if e.Offset < 0 || e.Length <= 0 || e.Offset%pageSize != 0 || e.Offset > s.p.size-e.Length {
			return protocolError("Doubt about %d+%d", e.Offset, e.Length)
		}
	}
	doubt := blockdev.NewPageSet(s.p.tracker.Pages())
	for _, r := range runsOf(m.Extents) {
		doubt.Add(r.First, r.Count)
	}
	s.p.tracker.Doubt(s.sets, doubt)
	return nil
}

// offerJob is pages in doubt that are to be hashed and offered.
type offerJob struct {
	seq uint64
	claim
}

// doOffer hands the next pages in doubt to a routineOffer.
func (s *shipper) doOffer(session *shipSession) error {
	counts := s.p.tracker.Counts(s.sets)
	unit := uint64(1)
	if int64(counts.Doubt)*pageSize > cmp.Or(s.p.sizes.PageOffers, pageOffers) {
		unit = uint64(s.p.blockSize) / pageSize
	}
	most := uint64(cmp.Or(s.p.sizes.OfferBytes, offerBytes)) / pageSize
	s.mu.Lock()
	if !s.stands(session) {
		s.mu.Unlock()
		return nil
	}
	first, n, ok := s.p.tracker.NextDoubt(s.sets, s.doubtAt, most)
	if !ok {
		s.doubtAt = 0
		s.core.Swept()
		s.mu.Unlock()
		return nil
	}
	if unit > 1 { // whole blocks: what of them is not in doubt costs a comparison and no more
		end := first + n
		first -= first % unit
		n = min(most, (end-first+unit-1)/unit*unit, s.p.tracker.Pages()-first)
	}
	s.doubtAt = first + n
	s.offerSeq++
	job := offerJob{s.offerSeq, claim{first, n, unit}}
	s.offers[job.seq] = job.claim
	s.core.Offered()
	s.mu.Unlock()
	select {
	case session.work <- job:
	case <-session.ctx.Done():
	}
	return nil
}

// offerBytes is what one offer covers at most: it is read into one buffer, and makes half of wire.MaxOffer
// hashes of pages.
const offerBytes = 1 << 20

// routineOffer reads pages in doubt, under their shared range lock, hashes and offers them.
func (s *shipper) routineOffer(session *shipSession) {
	for {
		select {
		case <-session.ctx.Done():
			return
		case job := <-session.work:
			if err := s.offer(session, job); err != nil {
				session.end(err)
				return
			}
		}
	}
}

func (s *shipper) offer(session *shipSession, job offerJob) error {
	e := s.extent(job.first, job.count)
	buf, err := takeBuffer(session.ctx, s.pool, s.p.wait, int(e.Length))
	if err != nil {
		return context.Cause(session.ctx)
	}
	defer s.pool.Put(buf)
	g := geometry{size: s.p.size, blockSize: int64(job.unit) * pageSize}
	hashes, err := s.p.hashRange(g, blockdev.Extent(e), buf, func(int) error { return nil })
	if err != nil {
		// What cannot be read cannot be compared: it is shipped, and becomes a hole if it still cannot be.
		s.p.tracker.Differs(s.sets, job.first, job.count)
		s.mu.Lock()
		delete(s.offers, job.seq)
		s.core.Wanted()
		s.mu.Unlock()
		s.notify()
		return nil
	}
	s.stats.offered.Add(e.Length)
	return session.conn.Send(&wire.Offer{Seq: job.seq, Offset: e.Offset, Length: uint32(e.Length), Unit: uint32(g.blockSize), Hashes: hashes})
}

// takeWant settles what was offered: equal pages leave doubt, if they still are in it, the others are dirty.
func (s *shipper) takeWant(m *wire.Want) error {
	s.mu.Lock()
	if answer, ok := s.checks[m.Seq]; ok {
		delete(s.checks, m.Seq)
		s.mu.Unlock()
		answer <- m.Bits // has room for one
		return nil
	}
	c, ok := s.offers[m.Seq]
	delete(s.offers, m.Seq)
	s.mu.Unlock()
	units := int((c.count + c.unit - 1) / max(c.unit, 1))
	if !ok || len(m.Bits) != (units+7)/8 {
		return protocolError("Want %d of %d bytes answers no offer", m.Seq, len(m.Bits))
	}
	wanted := func(i int) bool { return m.Bits[i/8]>>(i%8)&1 != 0 }
	for i, j := range stretches(units, func(i, j int) bool { return wanted(i) == wanted(j) }) {
		first := c.first + uint64(i)*c.unit
		n := min(c.first+uint64(j)*c.unit, c.first+c.count) - first
		if wanted(i) {
			s.p.tracker.Differs(s.sets, first, n)
			s.noteDiffering(first, n)
		} else {
			s.p.tracker.Equal(s.sets, first, n)
		}
	}
	s.mu.Lock()
	s.core.Wanted()
	s.mu.Unlock()
	return nil
}

// observer is what the write path tells.
func (p *primary) observer() track.Observer {
	return track.Observer{
		GaveUp: func(sets *track.Sets, _ error) {
			list := p.shippers()
			if i := slices.IndexFunc(list, func(s *shipper) bool { return s.sets == sets }); i >= 0 {
				list[i].gaveUp()
			}
		},
		Hole:   func(*track.Sets, track.Run, error) {}, // Failed has told it
		Failed: func(op string, off, n int64, err error) { p.observe(op, blockdev.Extent{Offset: off, Length: n}, err) },
	}
}

// gaveUp: the write path found no room for what the cut holds.
func (s *shipper) gaveUp() {
	s.mu.Lock()
	s.full = true
	s.mu.Unlock()
	s.poke()
}
