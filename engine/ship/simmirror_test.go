package ship_test

import (
	"fmt"
	"maps"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// staging is a staging file: what it brings, as a crash would find it, and as it is.
type staging struct {
	replica.Staged
	pages map[uint64]uint64 // content by page
	bytes int64
	saved *staging // the last synced point; nil: a crash removes it
}

func (s *staging) sync() {
	c := *s
	c.pages, c.saved = maps.Clone(s.pages), nil
	s.saved = &c
}

// dataMsg is a Data or Zero on the wire, with its content.
type dataMsg struct {
	data    *wire.Data
	zero    *wire.Zero
	content []uint64
	damaged bool
}

// simMirror is replica.Core with its disks. What is durable is facts, the synced part of staging, sealed, and
// of the device what was flushed; a crash leaves of the rest what the seed says.
type simMirror struct {
	w    *world
	core *replica.Core

	facts   journal.VolumeFacts
	dev     []uint64
	unsaved map[uint64]uint64 // content of pages as flushed last, where they were written since
	partial *staging
	sealed  []*staging

	limit    int64
	applying bool
	writes   []*dataMsg
	compares []*wire.Offer
	session  *simConn
	held     replica.Event // with held, of what is waiting
	heldMsg  *dataMsg
	crashIn  int // actions until the power goes; 0: it stays
}

type crashed struct{}

func newSimMirror(w *world) *simMirror {
	m := &simMirror{w: w, limit: roomy, dev: make([]uint64, simPages), unsaved: map[uint64]uint64{}}
	m.core = replica.New(m.facts, nil)
	return m
}

// clone is a backup of everything durable.
func (m *simMirror) clone() *simMirror {
	c := *m
	c.dev, c.unsaved, c.sealed = slices.Clone(m.dev), maps.Clone(m.unsaved), slices.Clone(m.sealed)
	if m.partial != nil {
		p := *m.partial
		p.pages = maps.Clone(p.pages)
		c.partial = &p
	}
	return &c
}

// restart is what a crash leaves, opened again.
func (m *simMirror) restart() {
	w := m.w
	for _, p := range slices.Sorted(maps.Keys(m.unsaved)) {
		if w.rng.IntN(2) == 0 {
			m.dev[p] = m.unsaved[p]
		}
	}
	clear(m.unsaved)
	if m.partial != nil {
		m.partial = m.partial.saved
	}
	m.open()
}

// open makes a core of what is there.
func (m *simMirror) open() {
	m.session, m.held, m.heldMsg, m.applying, m.writes, m.compares, m.crashIn = nil, nil, nil, false, nil, nil, 0
	if n := len(m.sealed); n > 0 && !slices.Contains(m.facts.Mirror.Epochs, m.sealed[n-1].Number) {
		m.partial, m.sealed = m.sealed[n-1], m.sealed[:n-1] // a footer without a commit record is none
	}
	if p := m.partial; p != nil && (p.Base != m.facts.Mirror.Committed || p.Number <= m.facts.Mirror.Committed) {
		m.partial = nil
	}
	var st *replica.Staged
	if m.partial != nil {
		m.partial.sync()
		s := m.partial.Staged
		st = &s
	}
	m.sealed = slices.DeleteFunc(m.sealed, func(s *staging) bool { return !slices.Contains(m.facts.Mirror.Epochs, s.Number) })
	m.core = replica.New(m.facts, st)
	m.guard(func() {
		m.measure()
		m.carryOut(m.core.Begin(), nil)
	})
}

// guard runs something that the power may interrupt.
func (m *simMirror) guard(do func()) {
	defer func() {
		switch e := recover(); e.(type) {
		case nil:
		case crashed:
			m.w.log("mirror loses power")
			m.w.cutLine()
			m.restart()
		default:
			panic(e)
		}
	}()
	do()
}

func (m *simMirror) staged() (n int64) {
	for _, s := range m.sealed {
		n += s.bytes
	}
	if m.partial != nil {
		n += m.partial.bytes
	}
	return n
}

func (m *simMirror) measure() { m.step(&replica.Measured{Limit: m.limit, Held: m.staged()}, nil) }

// step mirrors mirrorStore.step of the shell.
func (m *simMirror) step(e replica.Event, d *dataMsg) {
	if d == nil {
		d = m.heldMsg
	}
	actions := m.core.Step(e)
	m.heldMsg = nil
	if m.core.Holding() {
		m.heldMsg = d
	}
	m.carryOut(actions, d)
}

func (m *simMirror) carryOut(actions []replica.Action, d *dataMsg) {
	measure := false
	for _, a := range actions {
		if m.crashIn > 0 {
			if m.crashIn--; m.crashIn == 0 {
				panic(crashed{})
			}
		}
		m.perform(a, d)
		switch a.(type) {
		case replica.DropStaging, replica.BeginStaging, replica.RebaseStaging, replica.SealStaging, replica.RemoveStaging:
			measure = true
		}
	}
	if measure {
		m.measure()
	}
}

func (m *simMirror) perform(a replica.Action, d *dataMsg) {
	w := m.w
	switch a := a.(type) {
	case replica.DropStaging:
		m.partial = nil
	case replica.BeginStaging:
		m.partial = &staging{Staged: replica.Staged{Incarnation: a.Incarnation, Base: a.Base, Number: a.Epoch}, pages: map[uint64]uint64{}}
	case replica.RebaseStaging:
		for _, v := range a.Voids {
			for p := uint64(v.Offset / pageSize); p < uint64(v.End()/pageSize); p++ {
				delete(m.partial.pages, p)
			}
		}
		m.partial.Number = a.Epoch
		m.point(a.Point)
	case replica.Append:
		off, n := d.where()
		for i := range uint64(n / pageSize) {
			m.partial.pages[uint64(off/pageSize)+i] = d.at(i)
		}
		m.partial.bytes += d.size()
	case replica.SyncStaging:
		m.point(a.Point)
	case replica.SealStaging:
		m.point(a.Point)
		m.sealed, m.partial = append(m.sealed, m.partial), nil
	case replica.Reserve:
		enough := w.quiet || w.rng.IntN(12) > 0
		m.step(&replica.Reserved{Enough: enough}, d)
	case replica.Apply:
		m.applying = true
	case replica.RemoveStaging:
		m.sealed = m.sealed[1:]
	case replica.Journal:
		m.facts = a.Facts
	case replica.DropIndex:
	case replica.FlushDevice:
		clear(m.unsaved)
	case replica.Write:
		m.writes = append(m.writes, d)
	case replica.Compare:
		m.compares = append(m.compares, a.Offer)
	case replica.Ack:
		m.send(&wire.Ack{Entries: []wire.AckEntry{a.Entry}})
	case replica.Nak:
		m.send(&wire.Nak{Entries: []wire.NakEntry{a.Entry}})
	case replica.Send:
		m.send(a.Message)
	case replica.End:
		w.t.Fatalf("%sthe mirror ends the session: %s", w.story(), a.Text)
	default:
		panic(fmt.Sprintf("%T", a))
	}
}

// point makes the partial staging durable up to a point.
func (m *simMirror) point(p journal.StagingPoint) {
	m.partial.Seq, m.partial.Chain = p.Seq, wire.ChainAt(p.Chain, p.Records)
	m.partial.sync()
}

func (m *simMirror) send(msg wire.Message) {
	if m.session != nil {
		m.session.up = append(m.session.up, msg)
	}
}

// attach takes a primary up; what it answers is the first message on the line.
func (m *simMirror) attach(c *simConn, a *wire.Attach) (*wire.Attached, error) {
	if m.session != nil {
		m.lost()
	}
	if no := m.core.Admit(a); no != nil {
		return nil, no
	}
	m.session = c
	fresh := !slices.ContainsFunc(m.dev, func(v uint64) bool { return v != 0 })
	m.step(&replica.Attach{Message: a, Fresh: fresh}, nil)
	first := c.up[0].(*wire.Attached)
	c.up = c.up[1:]
	first.Size, first.MaxOffers, first.Window = simPages*pageSize, 3, 1
	return first, nil
}

func (m *simMirror) lost() {
	for len(m.writes) > 0 { // nothing of it is still to be written
		m.write(0)
	}
	m.compares, m.heldMsg = nil, nil
	m.session.down = nil
	m.step(&replica.Lost{}, nil)
	m.session = nil
}

// receive takes one message off the line.
func (m *simMirror) receive() {
	s := m.session
	msg := s.down[0]
	s.down = s.down[1:]
	switch msg := msg.(type) {
	case *dataMsg:
		switch {
		case msg.data != nil && msg.data.Epoch == 0, msg.zero != nil && msg.zero.Epoch == 0:
			m.step(&replica.Direct{}, msg)
		case msg.data != nil:
			r := &replica.Record{Data: msg.data, Found: msg.hash()}
			if msg.damaged {
				r.Cause = wire.NakHash
			}
			m.step(r, msg)
		default:
			m.step(&replica.Record{Zero: msg.zero, Found: wire.ZeroHash(msg.zero.Offset, msg.zero.Length)}, msg)
		}
	case *wire.Rebase:
		m.step(&replica.Rebase{Message: msg}, nil)
	case *wire.Commit:
		pages := blockdev.NewPageSet(simPages)
		if m.partial != nil {
			for p := range m.partial.pages {
				pages.Add(p, 1)
			}
		}
		m.step(&replica.Commit{Message: msg, Pages: pages}, nil)
	case *wire.Bulk:
		m.step(&replica.Bulk{Message: msg}, nil)
	case *wire.Flush:
		m.step(&replica.Flush{Message: msg}, nil)
	case *wire.Offer:
		m.step(&replica.Offer{Message: msg}, nil)
	}
}

func (m *simMirror) put(p, v uint64) {
	if _, ok := m.unsaved[p]; !ok {
		m.unsaved[p] = m.dev[p]
	}
	m.dev[p] = v
}

// write does a write in place and answers it.
func (m *simMirror) write(i int) {
	d := m.writes[i]
	m.writes = slices.Delete(m.writes, i, i+1)
	off, n := d.where()
	switch {
	case d.damaged:
		m.send(&wire.Nak{Entries: []wire.NakEntry{{Seq: d.data.Seq, Offset: off, Cause: wire.NakHash}}})
	default:
		for i := range uint64(n / pageSize) {
			m.put(uint64(off/pageSize)+i, d.at(i))
		}
		e := wire.AckEntry{Offset: off, Level: wire.LevelWritten, Hash: d.hash()}
		if d.data != nil {
			e.Seq = d.data.Seq
		} else {
			e.Seq = d.zero.Seq
		}
		m.send(&wire.Ack{Entries: []wire.AckEntry{e}})
	}
	m.step(&replica.Written{}, nil)
}

// apply ends the apply of the oldest epoch, or a part of it.
func (m *simMirror) apply(part bool) {
	s := m.sealed[0]
	for _, p := range slices.Sorted(maps.Keys(s.pages)) {
		if !part || m.w.rng.IntN(2) == 0 {
			m.put(p, s.pages[p])
		}
	}
	if !part {
		clear(m.unsaved)
		m.applying = false
		m.step(&replica.Applied{Epoch: s.Number}, nil)
	}
}

// compare answers an offer.
func (m *simMirror) compare() {
	o := m.compares[0]
	m.compares = m.compares[1:]
	unit := uint64(o.Unit / pageSize)
	first := uint64(o.Offset / pageSize)
	want := &wire.Want{Seq: o.Seq, Bits: make([]byte, (len(o.Hashes)+7)/8)}
	done := &replica.Compared{}
	for i, h := range o.Hashes {
		at := first + uint64(i)*unit
		if content := m.dev[at:min(at+unit, first+uint64(o.Length/pageSize))]; hashOf(content) != h {
			want.Bits[i/8] |= 1 << (i % 8)
		} else {
			done.Equal = append(done.Equal, blockdev.Extent{Offset: int64(at) * pageSize, Length: int64(len(content)) * pageSize})
		}
	}
	m.send(want)
	m.step(done, nil)
}

// doubt: something happened to a range of the device, and the mirror found out.
func (m *simMirror) doubt(first, count uint64) {
	m.step(&replica.Doubted{Extents: []blockdev.Extent{{Offset: int64(first) * pageSize, Length: int64(count) * pageSize}}}, nil)
	for p := first; p < first+count; p++ {
		m.dev[p] = m.w.version() // nothing that the primary ever had
		delete(m.unsaved, p)
	}
}

// shows is the content that it would have after a recovery: the device, and what is committed above it.
// worst: as if the power went now, in the worst way for one page.
func (m *simMirror) shows(p uint64, worst bool) uint64 {
	for _, s := range slices.Backward(m.sealed) {
		if v, ok := s.pages[p]; ok && slices.Contains(m.facts.Mirror.Epochs, s.Number) {
			return v
		}
	}
	if v, ok := m.unsaved[p]; ok && worst {
		return v
	}
	return m.dev[p]
}

func (d *dataMsg) where() (off, n int64) {
	if d.data != nil {
		return d.data.Offset, int64(d.data.RawLength)
	}
	return d.zero.Offset, d.zero.Length
}

func (d *dataMsg) size() int64 {
	if d.data != nil {
		return int64(d.data.PayloadLength) + 128
	}
	return 128
}

func (d *dataMsg) at(i uint64) uint64 {
	if d.zero != nil {
		return 0
	}
	return d.content[i]
}

func (d *dataMsg) hash() wire.Hash {
	if d.zero != nil {
		return wire.ZeroHash(d.zero.Offset, d.zero.Length)
	}
	return hashOf(d.content)
}
