package replica

import (
	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// rebase begins an epoch, carries a staged part over, or drops it.
func (c *Core) rebase(m *wire.Rebase) bool {
	s := c.session
	committed := c.mirror().Committed
	switch {
	case m.Seq <= s.seq:
		return c.end(wire.CodeProtocol, "Rebase %d behind record %d", m.Seq, s.seq)
	case s.refused && m.New != 0 && m.Base != committed:
		s.seq = m.Seq // it stands on the epoch that was not taken
		return true
	case m.New != 0 && m.Base != committed:
		return c.end(wire.CodeIntegrity, "Rebase to epoch %d on cut %d, and the mirror is at %d", m.New, m.Base, committed)
	case m.Old != 0 && c.staged != nil && c.staged.Number != m.Old, m.New != 0 && m.Old != 0 && c.staged == nil:
		return c.end(wire.CodeProtocol, "Rebase of epoch %d, which is not staged", m.Old)
	case s.writes > 0:
		return false
	}
	s.seq, s.refused, s.bulk = m.Seq, false, false
	switch {
	case m.New == 0:
		c.drop()
	case m.Old == 0:
		c.drop()
		c.staged = &Staged{Incarnation: s.incarnation, Base: m.Base, Number: m.New, Seq: m.Seq}
		c.staged.Chain.AddRebase(m)
		c.do(BeginStaging{s.incarnation, m.Base, m.New})
	default:
		st := c.staged
		st.Number, st.Seq = m.New, m.Seq
		st.Chain.AddRebase(m)
		voids := make([]blockdev.Extent, len(m.Voids))
		for i, v := range m.Voids {
			voids[i] = blockdev.Extent(v)
		}
		c.unsynced = 0
		c.do(RebaseStaging{m.Seq, m.New, voids, st.point()})
		c.synced()
	}
	return true
}

// record stages a Data or Zero, or says why not.
func (c *Core) record(r *Record) bool {
	s, st := c.session, c.staged
	seq, epoch, off, size := r.header()
	switch {
	case seq <= s.seq:
		return c.end(wire.CodeProtocol, "record %d behind record %d", seq, s.seq)
	case s.refused && (st == nil || st.Number != epoch):
		s.seq = seq // it stands on the epoch that was not taken
		c.do(Nak{wire.NakEntry{Seq: seq, Offset: off, Cause: wire.NakRoom}})
		return true
	case st == nil || st.Number != epoch:
		return c.end(wire.CodeProtocol, "record %d at %d of epoch %d, which is not staged", seq, off, epoch)
	case r.Cause != 0:
		s.seq = seq
		c.do(Nak{wire.NakEntry{Seq: seq, Offset: off, Cause: r.Cause, Hash: r.Found}})
		return true
	case c.held+size > c.limit && (len(c.mirror().Epochs) > 0 || c.owes):
		return false // what is applied next, or was just now, makes room
	case c.held+size > c.limit:
		s.seq = seq
		c.do(Nak{wire.NakEntry{Seq: seq, Offset: off, Cause: wire.NakRoom}})
		return true
	}
	s.seq, st.Seq = seq, seq
	if r.Data != nil {
		st.Chain.Add(r.Data)
	} else {
		st.Chain.AddZero(r.Zero)
	}
	c.held += size
	c.unsynced += size
	c.do(Append{}, Ack{wire.AckEntry{Seq: seq, Offset: off, Level: wire.LevelStaged, Hash: r.Found}})
	if c.unsynced >= c.limits.SyncEvery {
		c.syncStaging()
		c.synced()
	}
	return true
}

func (r *Record) header() (seq, epoch uint64, off, size int64) {
	if r.Data != nil {
		return r.Data.Seq, r.Data.Epoch, r.Data.Offset, int64(r.Data.PayloadLength) + recordBytes
	}
	return r.Zero.Seq, r.Zero.Epoch, r.Zero.Offset, recordBytes
}

func (c *Core) syncStaging() {
	c.unsynced = 0
	c.do(SyncStaging{c.staged.point()})
}

// synced tells up to where staging is durable.
func (c *Core) synced() {
	p := c.staged.point()
	c.send(&wire.Synced{Epoch: c.staged.Number, Seq: p.Seq, Records: p.Records, Chain: p.Chain})
}

func (c *Core) drop() {
	if c.staged == nil {
		return
	}
	c.staged, c.unsynced = nil, 0
	c.do(DropStaging{})
}

// commit compares what the primary says was staged with what was. It waits while as many epochs as can be
// told apart are committed and not applied.
func (c *Core) commit(e *Commit) bool {
	m, st := e.Message, c.staged
	switch {
	case st == nil || m.Epoch != st.Number || m.Base != st.Base:
		return c.end(wire.CodeIntegrity, "Commit of epoch %d on %d, which is not staged", m.Epoch, m.Base)
	case m.Base != c.mirror().Committed || c.session.incarnation != st.Incarnation:
		return c.end(wire.CodeIntegrity, "Commit of epoch %d on %d, and the mirror is at %d", m.Epoch, m.Base, c.mirror().Committed)
	case m.Records != st.Chain.Records() || m.Chain != st.Chain.Sum():
		return c.end(wire.CodeIntegrity, "Commit of epoch %d with %d records, but %d are staged, or their chain differs",
			m.Epoch, m.Records, st.Chain.Records())
	case m.Pages != e.Pages.Count():
		return c.end(wire.CodeIntegrity, "Commit of epoch %d with %d pages, but %d are staged", m.Epoch, m.Pages, e.Pages.Count())
	case len(c.mirror().Epochs) == journal.MaxEpochs, len(c.session.checks) > 0 && len(c.mirror().Epochs) > 0:
		return false // a verify waits for a device without anything unapplied
	}
	c.session.committing = e
	c.do(Reserve{m.Epoch})
	return true
}

// reserved goes on with a Commit: where the device has room, the epoch is made safe, in this order, and
// cannot be lost from then on. Otherwise the primary is told by a Nak of sequence 0; what is staged stays.
func (c *Core) reserved(enough bool) {
	e := c.session.committing
	c.session.committing = nil
	if !enough {
		c.session.refused = true
		c.do(Nak{wire.NakEntry{Cause: wire.NakRoom}})
		c.report()
		return
	}
	m, st := e.Message, c.staged
	c.do(SealStaging{st.Base, m.Pages, st.point()})
	c.staged, c.unsynced, c.session.refused = nil, 0, false
	c.doubts.Subtract(e.Pages)
	c.listDoubts()
	f := c.mirror()
	if c.session.repairing {
		c.mending[m.Epoch] = e.Pages.Clone()
	}
	f.Committed, f.Incarnation = m.Epoch, c.session.incarnation
	f.Epochs = append(f.Epochs, m.Epoch)
	f.Bulk, f.Inconsistent, f.InPlace, f.Under = false, false, false, 0
	f.Unproven = m.Flags&wire.CommitUnproven != 0
	f.Holes = nil
	for _, h := range m.Holes {
		f.Holes = append(f.Holes, blockdev.Extent(h))
	}
	c.settleHistory()
	c.journal()
	c.send(&wire.Committed{Epoch: m.Epoch, Records: m.Records, Chain: m.Chain})
}

// settleHistory says that the content is of the session's generation from here on.
func (c *Core) settleHistory() {
	c.facts.Generation, c.facts.Parents, c.facts.Rebuilt = c.session.generation, nil, false
}

// applyNext begins to apply the oldest committed epoch. Offers are answered from a device that stands still.
func (c *Core) applyNext() {
	c.check()
	if c.applying || len(c.mirror().Epochs) == 0 || c.session != nil && c.session.offers > 0 {
		return
	}
	c.applying = true
	c.stirred++
	epoch := c.mirror().Epochs[0]
	c.do(Apply{epoch, c.mending[epoch] != nil})
}

// applied settles an epoch that the device alone holds now.
func (c *Core) applied(e *Applied) {
	f := c.mirror()
	c.applying, c.settled = false, true
	c.stirred++
	f.Applied = e.Epoch
	f.Epochs = append([]uint64(nil), f.Epochs[1:]...)
	if pages := c.mending[e.Epoch]; pages != nil {
		delete(c.mending, e.Epoch)
		c.quarantine.Subtract(pages)
	}
	for _, d := range e.Damaged {
		c.doubts.Add(c.pageRange(d))
		c.quarantine.Add(c.pageRange(d))
	}
	c.mended()
	if len(e.Damaged) == 0 {
		c.journal()
	} else {
		c.listDoubts()
		c.mistrust(e.Cause, e.Damaged)
	}
	c.do(RemoveStaging{e.Epoch})
	c.owes = true
}
