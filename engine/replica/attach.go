package replica

import (
	"fmt"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// Refusal is why a primary is not let in.
type Refusal struct {
	Code       wire.Code
	Text, Next string
}

func (r *Refusal) Error() string { return r.Text }

// Admit says whether a primary may attach, before its mirror's device is touched: nil, or why not.
//
// On a mirror facts.Generation is the newest that it has seen, and facts.Parents[0], where there is one, that
// of its content, which a commit of the newer one has not replaced yet.
func (c *Core) Admit(m *wire.Attach) *Refusal {
	f := &c.facts
	overwrite := m.Flags&wire.AttachOverwrite != 0
	switch {
	case f.Paused:
		return &Refusal{wire.CodePaused, "the volume is paused here", "say `blkmirror resume VOLUME` at the mirror"}
	case f.UUID == [16]byte{}:
		return nil
	case f.UUID != m.VolumeID && !overwrite:
		return &Refusal{wire.CodeHistory, "the mirror holds another volume",
			"name another mirror, or say `blkmirror resume VOLUME --overwrite-mirror NAME` at the primary"}
	case f.UUID != m.VolumeID && c.readOnly():
		return &Refusal{wire.CodeState, "the mirror is read-only, with another volume: " + f.Mirror.ReadOnly.Reason,
			"repair that volume with its own primary, or make a new mirror"}
	case f.UUID != m.VolumeID && len(f.Mirror.Epochs) > 0:
		return &Refusal{wire.CodeBusy, "epochs of the volume that it holds are still being applied", "try again later"}
	case f.UUID == m.VolumeID && (f.Size != m.Size || f.BlockSize != m.BlockSize):
		return &Refusal{wire.CodeHistory, fmt.Sprintf("the volume has %d bytes in blocks of %d here, at the primary %d in blocks of %d",
			f.Size, f.BlockSize, m.Size, m.BlockSize), "make a new mirror"}
	case f.UUID != m.VolumeID && f.Size > m.Size:
		return &Refusal{wire.CodeHistory, "the mirror holds another volume, which is larger", "make a new mirror"}
	case f.UUID != m.VolumeID || overwrite:
		return nil
	case m.Generation.Counter < f.Generation.Counter:
		return &Refusal{wire.CodeOlder, fmt.Sprintf("the primary is of generation %d, and the mirror has seen %d",
			m.Generation.Counter, f.Generation.Counter), "find out which of the two primaries is the right one"}
	case m.Generation.Counter == f.Generation.Counter && m.Generation.ID != f.Generation.ID:
		return &Refusal{wire.CodeHistory, fmt.Sprintf("two primaries are of generation %d, each with a history of its own",
			m.Generation.Counter), "find out which of the two primaries is the right one"}
	}
	return nil
}

// Introduce tells a primary that lost its journal which volume is held here, and of which history; nil where
// that is none, or one of another size.
func (c *Core) Introduce(m *wire.Attach) *wire.Attached {
	f := &c.facts
	if f.UUID == [16]byte{} || f.Size != m.Size || f.BlockSize != m.BlockSize {
		return nil
	}
	g := f.Generation // the newest one seen, so that the primary's next one is above it
	return &wire.Attached{VolumeID: f.UUID, Generation: wire.Generation(g), LastCut: f.Mirror.Committed, Applied: f.Mirror.Applied, InPlace: f.Mirror.Under, Size: f.Size}
}

// attach begins a session: takes on what a new mirror takes on, decides what becomes of a staging in part,
// and says what is held. Nothing of a former session is left.
func (c *Core) attach(e *Attach) {
	m := e.Message
	known := c.facts.UUID == m.VolumeID
	g := journal.Generation(m.Generation)
	switch {
	case !known:
		c.do(DropIndex{})
		c.adopt(m)
	case c.facts.Generation != g:
		c.facts.Parents = []journal.Generation{c.content()}
		c.facts.Generation = g
	}
	if !known || c.facts.Mirror.Node != e.Node || len(c.facts.Parents) > 0 {
		c.facts.Mirror.Node = e.Node
		c.journal()
	}
	s := &session{incarnation: m.Incarnation, generation: g}
	if st := c.staged; st != nil {
		if st.Incarnation == m.Incarnation && st.Base == c.facts.Mirror.Committed && len(c.facts.Parents) == 0 {
			c.syncStaging()
			s.seq = st.Seq
		} else {
			c.drop()
		}
	}
	c.session = s
	if e.Fresh && c.virgin() && c.doubts.Count() > 0 { // zeroes that the primary may leave out, and nothing else
		c.doubts = newSet(m.Size)
		c.listDoubts()
		c.journal()
	}
	c.send(c.attached(known, e.Fresh))
	if c.readOnly() {
		c.tellQuarantine()
	}
	if d := c.facts.Mirror.Doubts; len(d) > 0 {
		c.tellDoubts(d)
	}
}

// adopt takes another volume on. Its content is in doubt.
func (c *Core) adopt(m *wire.Attach) {
	old := c.facts
	c.facts = journal.VolumeFacts{
		UUID: m.VolumeID, Size: m.Size, BlockSize: m.BlockSize, Role: journal.RoleMirror,
		Generation: journal.Generation(m.Generation), Parents: []journal.Generation{{}},
		BootID: old.BootID, Device: old.Device,
	}
	c.facts.Mirror.Inconsistent = true
	c.doubts, c.quarantine = newSet(m.Size), newSet(m.Size)
}

// content is the generation of what the device holds; zero: of none.
func (c *Core) content() journal.Generation {
	if len(c.facts.Parents) > 0 {
		return c.facts.Parents[0]
	}
	return c.facts.Generation
}

func (c *Core) attached(known, fresh bool) *wire.Attached {
	m := c.mirror()
	a := &wire.Attached{Generation: wire.Generation(c.content()), LastCut: m.Committed, Applied: m.Applied, InPlace: m.Under, Room: c.room()}
	c.session.room = a.Room
	if known {
		a.VolumeID = c.facts.UUID
	}
	for _, f := range []struct {
		set  bool
		flag wire.AttachedFlags
	}{
		{m.Bulk, wire.AttachedBulk}, {m.Inconsistent, wire.AttachedInconsistent},
		{fresh && c.virgin(), wire.AttachedBlank}, {len(m.Doubts) > 0 || c.comparing, wire.AttachedDoubts},
		{c.readOnly(), wire.AttachedReadOnly},
	} {
		if f.set {
			a.Flags |= f.flag
		}
	}
	if st := c.staged; st != nil {
		p := st.point()
		a.StagedIncarnation, a.StagedBase, a.StagedNumber = st.Incarnation, st.Base, st.Number
		a.StagedSeq, a.StagedRecords, a.StagedChain = p.Seq, p.Records, p.Chain
	}
	return a
}

// virgin tells that nothing was ever replicated into the device.
func (c *Core) virgin() bool {
	m := c.mirror()
	return m.Committed == 0 && !m.InPlace && !m.Bulk && len(m.Epochs) == 0 && c.content() == (journal.Generation{})
}
