package sim

import (
	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// What makes a mirror read-only (docs/FAILSAFE.md), in every sixteenth history: a place whose payload is damaged
// as often as it is sent, and a staged payload that rots before it is applied; in another sixteenth a page of its disk
// that cannot be read. Somebody repairs the mirror, now and then at once and at the end in any case.

const (
	stubbornShare = 16
	atOnce        = 4 // payloads in a row that make a mirror read-only
)

// hurt damages what is sent of a place.
func (m *mirrorNode) hurt(ms []wire.Message) []wire.Message {
	w := m.w
	out := ms
	for i, msg := range ms {
		d, ok := msg.(*wire.Data)
		if !ok || len(d.Payload) == 0 {
			continue
		}
		if m.cursed == 0 && w.spite.IntN(80) == 0 {
			m.cursed, m.curse = atOnce, d.Offset
		}
		if m.cursed == 0 || m.curse < d.Offset || d.Offset+int64(d.RawLength) <= m.curse {
			continue
		}
		m.cursed--
		bad := *d
		bad.Payload = append([]byte(nil), d.Payload...)
		bit := w.spite.IntN(8 * len(bad.Payload))
		bad.Payload[bit/8] ^= 1 << (bit % 8)
		if &out[0] == &ms[0] {
			out = append([]wire.Message(nil), ms...)
		}
		out[i] = &bad
		w.cover(coverFault, "a place is damaged again and again")
	}
	return out
}

// actStubborn lets staging rot and disks wear out, and has somebody repair what is read-only.
func (w *World) actStubborn() {
	for _, m := range w.mirrors {
		switch {
		case w.quiet || m.m == nil || m.dead:
		case w.setup.stubborn && w.spite.IntN(20) == 0:
			m.rotStaging()
		case w.setup.worn && !m.worn && w.spite.IntN(10) == 0:
			m.worn, m.wornAt = true, w.spite.Int64N(w.setup.pages)
			w.note("page %d of %s cannot be read", m.wornAt, m.name)
		}
	}
	w.repairs(w.spite)
}

// rotStaging turns a bit over of a payload that is committed and not applied.
func (m *mirrorNode) rotStaging() {
	path, at, n := m.m.StagedPayload(m.w.spite.IntN(8))
	if n == 0 {
		return
	}
	m.fs.Rot(path, 8*at+m.w.spite.Int64N(int64(8*n)))
	m.rotten = true
	m.w.note("staged payload of %s rots", m.name)
	m.w.cover(coverFault, "a staged payload rots")
}

// wear is what a worn page does to a request: it cannot be read until it is written.
func (n *node) wear(c devtest.Call) (fails bool) {
	if n.flagged && (c.Op == devtest.OpWrite || c.Op == devtest.OpZero || c.Op == devtest.OpDiscard) {
		n.w.failf("%s writes to a disk that it has set read-only", n.name)
	}
	at := n.wornAt * pageSize
	if !n.worn || c.Offset >= at+pageSize || at >= c.Offset+c.Length {
		return false
	}
	switch c.Op {
	case devtest.OpRead:
		if n.w.quiet {
			return false
		}
		n.w.cover(coverFault, "a page cannot be read")
		return true
	case devtest.OpWrite, devtest.OpZero:
		n.worn = false
	}
	return false
}

// flagging is a disk with the kernel's read-only flag.
type flagging struct {
	*devtest.Disk
	n *node
}

func (f flagging) SetReadOnly(ro bool) error {
	f.n.flagged = ro
	return nil
}

// checkReadOnly is I5: a mirror that is read-only takes nothing new, and leaves that state only by a repair, which
// is an epoch and never written in place.
func (m *mirrorNode) checkReadOnly(f *journal.ReplicaFacts) {
	was := m.facts.ReadOnly.Class != 0
	switch is := f.ReadOnly.Class != 0; {
	case is && !was:
		m.mended = m.repairs > 0
		m.w.oracle.blamed(m, &f.ReadOnly)
		m.w.cover(coverAction, "read-only")
	case was && !m.mended && m.trusted && (!is || f.Committed != m.facts.Committed):
		m.w.failf("I5: %s was read-only (%s) and nobody repaired it, and is at cut %d where it was at %d, read-only %v",
			m.name, m.facts.ReadOnly.Reason, f.Committed, m.facts.Committed, is)
	case was && f.Inconsistent && !m.facts.Inconsistent:
		m.w.failf("I3: %s is repaired in place", m.name)
	}
}
