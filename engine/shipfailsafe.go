package engine

import (
	"cmp"
	"fmt"
	"slices"
	"syscall"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// The fail-safe of a primary (docs/FAILSAFE.md): what a mirror is told of mismatches that sending again did not
// clear, and what it says of itself.

// sound tells whether a kept copy still has its hash. One that has not was changed in this machine's memory, and
// sending it again is of no use. s.mu is held.
func (s *shipper) sound(it *item) bool {
	if it.zero {
		return true
	}
	raw := it.payload
	if it.codec != wire.CodecRaw {
		raw = make([]byte, it.length)
		if wire.Unpack(it.codec, raw, it.payload) != nil {
			return false
		}
	}
	return wire.Sum(raw) == it.hash
}

// rereadLocked has a record of the epoch under way read again, whose copy is not what was hashed: where its pages
// were written since the cut, the epoch is lost.
func (s *shipper) rereadLocked(rec ship.Record, it item) error {
	it.buf.release()
	s.mismatches.source++
	s.p.log(fmt.Sprintf("mirror %s: what was read at %d+%d changed in memory after it was hashed: check this machine's memory",
		s.config.Name, rec.Offset, rec.Length))
	if !s.p.tracker.WantAgain(s.sets, runsOf([]wire.Extent{{Offset: rec.Offset, Length: rec.Length}})) {
		s.core.Spoil()
		s.dirtyLocked(rec)
	}
	return nil
}

// suspectLocked notes a block that still differs after all tries. s.mu is held.
func (s *shipper) suspectLocked(rec ship.Record, got answered) {
	s.suspect(got.class, []wire.SuspectEntry{{Offset: rec.Offset, Length: uint32(rec.Length), Want: rec.Hash, Got: got.hash}})
}

// suspect has the mirror told, with the next connection, that blocks of it are not what they must be. s.mu is held.
func (s *shipper) suspect(class journal.Class, entries []wire.SuspectEntry) {
	if len(s.suspects) == 0 {
		s.suspectOf = wire.Suspect{Class: uint8(class), Epoch: s.core.State().Committed}
	}
	for _, e := range entries {
		meets := func(o wire.SuspectEntry) bool {
			return o.Offset < e.Offset+int64(e.Length) && e.Offset < o.Offset+int64(o.Length)
		}
		if !slices.ContainsFunc(s.suspects, meets) && len(s.suspects) < maxSuspects {
			s.suspects = append(s.suspects, e)
		}
	}
	slices.SortFunc(s.suspects, func(a, b wire.SuspectEntry) int { return cmp.Compare(a.Offset, b.Offset) })
	s.told = 0
	s.core.Bar()
}

// maxSuspects is how many a mirror is told at most.
const maxSuspects = 1 << 14

// attachedReadOnly takes up whether a mirror that attached is read-only. One that was told, and is, knows all
// that we do. s.mu is held.
func (s *shipper) attachedReadOnly(readOnly bool) {
	s.gathered, s.readOnly = nil, readOnly
	if !readOnly {
		s.mirrorCause = nil
	} else {
		s.suspects = s.suspects[s.told:]
	}
	s.told = 0
	if len(s.suspects) > 0 {
		s.core.Bar()
	}
}

// greetMirror is what a session begins with: the mirror's own mismatches are told before anything else.
func (s *shipper) greetMirror(session *shipSession) error {
	s.mu.Lock()
	var first wire.Message
	switch {
	case len(s.suspects) > 0:
		m := s.suspectOf
		m.Entries = slices.Clone(s.suspects[:min(len(s.suspects), wire.MaxSuspects)])
		s.told = len(m.Entries)
		first = &m
	}
	s.mu.Unlock()
	if err := s.noteReadOnly(); err != nil {
		return err
	}
	if first != nil {
		return session.conn.Send(first)
	}
	return s.beginRepair(session)
}

// noteReadOnly keeps durably whether the mirror is read-only, for an export that is frozen meanwhile.
func (s *shipper) noteReadOnly() error {
	s.mu.Lock()
	readOnly := s.core.State().Phase == ship.ReadOnly || len(s.suspects) > 0 || s.mirrorCause != nil
	s.mu.Unlock()
	if s.p.facts.of(s.config.Name).ReadOnly != readOnly {
		err := s.p.facts.change(func(f *journal.VolumeFacts) {
			for i := range f.Mirrors {
				if f.Mirrors[i].Name == s.config.Name {
					f.Mirrors[i].ReadOnly = readOnly
				}
			}
		})
		if err != nil {
			s.p.fail("note read-only mirror", err)
			return err
		}
	}
	s.p.freeze()
	return nil
}

// takeQuarantine takes what a mirror says of itself behind its Attached.
func (s *shipper) takeQuarantine(m *wire.Quarantine) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.readOnly {
		return protocolError("Quarantine of a mirror that did not say that it is read-only")
	}
	for _, e := range m.Extents {
		if e.Offset < 0 || e.Length <= 0 || e.Offset%pageSize != 0 || e.Offset > s.p.size-e.Length {
			return protocolError("Quarantine of %d+%d", e.Offset, e.Length)
		}
	}
	if s.gathered == nil {
		s.gathered = m
	} else if err := s.gathered.Join(m); err != nil {
		return err
	}
	if m.More {
		return nil
	}
	known := s.mirrorCause != nil
	s.mirrorCause, s.gathered = s.gathered, nil
	if class := journal.Class(m.Class); !known && class != journal.ClassPayload && class != journal.ClassAck {
		s.mismatches.mirror++ // those two were the line's, or the memory's: they count when they are cleared
	}
	if !known {
		s.p.log(fmt.Sprintf("mirror %s is read-only: %s; %s", s.config.Name, m.Reason, nextByCode[wire.CodeReadOnly]))
	}
	if s.repairing != nil {
		s.repairing.began = false // with what was known before this connection: there may be more now
		s.doubtQuarantineLocked()
	}
	s.notifyLocked()
	return nil
}

// recovered: a repair has ended the mirror's state; perhaps one of a former connection, whose epoch was applied only now.
func (s *shipper) recovered() error {
	s.mu.Lock()
	s.mirrorCause = nil
	if s.core.State().Phase == ship.ReadOnly && len(s.suspects) == 0 {
		s.core.Repair()
	}
	s.p.log(fmt.Sprintf("mirror %s is repaired", s.config.Name))
	s.notifyLocked()
	s.mu.Unlock()
	return s.noteReadOnly()
}

// readOnlyLocked is what a status tells.
func (s *shipper) readOnlyLocked() *ReadOnlyCause {
	q := s.mirrorCause
	switch {
	case q != nil:
		extents := make([]blockdev.Extent, len(q.Extents))
		for i, e := range q.Extents {
			extents[i] = blockdev.Extent(e)
		}
		return readOnlyCause(&journal.ReadOnly{Class: journal.Class(q.Class), Since: q.Since, Reason: q.Reason}, extents, s.p.blockSize)
	case len(s.suspects) > 0:
		e := s.suspects[0]
		reason := fmt.Sprintf("%d bytes at %d: this primary has %x, the mirror %x; the mirror is not told yet", e.Length, e.Offset, e.Want[:6], e.Got[:6])
		return readOnlyCause(&journal.ReadOnly{Class: journal.Class(s.suspectOf.Class), Since: s.p.now().Unix(), Reason: reason}, nil, s.p.blockSize)
	}
	return nil
}

// errFrozen is what clients get while `on_mismatch = "freeze"` holds writes back.
var errFrozen = fmt.Errorf("a mirror of the volume is read-only, and on_mismatch is freeze: %w", syscall.EROFS)

// freeze makes the export refuse writes while a mirror is read-only, if that was asked for. The facts decide, so
// that it holds from the start of the next process on; whoever changes them calls it.
func (p *primary) freeze() {
	want := false
	if p.config.Load().OnMismatch == "freeze" {
		want = slices.ContainsFunc(p.facts.get().Mirrors, func(m journal.MirrorFacts) bool { return m.ReadOnly })
	}
	switch now := p.path.Refused(); {
	case want && now == nil:
		p.path.Refuse(errFrozen)
		p.log("writes are refused: a mirror is read-only, and on_mismatch is freeze")
	case !want && now == errFrozen:
		p.path.Admit()
		p.log("writes are let in again")
	}
}
