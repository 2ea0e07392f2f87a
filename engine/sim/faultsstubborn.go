package sim

import (
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// What makes a mirror read-only (docs/FAILSAFE.md), in every sixteenth history: a place whose payload is damaged
// as often as it is sent, and a staged payload that rots before it is applied. Somebody repairs the mirror, now and
// then at once and at the end in any case.

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

// actStubborn lets staging rot, and has somebody repair what is read-only.
func (w *World) actStubborn() {
	for _, m := range w.mirrors {
		if !w.quiet && m.m != nil && !m.dead && w.spite.IntN(20) == 0 {
			m.rotStaging()
		}
	}
	for i, l := range w.primary.lines {
		if w.primary.volume != nil && !w.primary.stops && l.shipper.ReadOnly() && (w.quiet || w.spite.IntN(6) == 0) {
			w.note("%s is repaired", w.mirrors[i].name)
			w.cover(coverAction, "repair")
			w.mirrors[i].mended = true
			l.shipper.Repair()
		}
	}
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

// checkReadOnly is I5: a mirror that is read-only takes nothing new, and leaves that state only by a repair, which
// is an epoch and never written in place.
func (m *mirrorNode) checkReadOnly(f *journal.ReplicaFacts) {
	was := m.facts.ReadOnly.Class != 0
	switch is := f.ReadOnly.Class != 0; {
	case is && !was:
		m.mended = false
		m.w.cover(coverAction, "read-only")
	case was && !m.mended && m.trusted && (!is || f.Committed != m.facts.Committed):
		m.w.failf("I5: %s was read-only (%s) and nobody repaired it, and is at cut %d where it was at %d, read-only %v",
			m.name, m.facts.ReadOnly.Reason, f.Committed, m.facts.Committed, is)
	case was && f.Inconsistent && !m.facts.Inconsistent:
		m.w.failf("I3: %s is repaired in place", m.name)
	}
}
