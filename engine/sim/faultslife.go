package sim

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
)

// Faults in the life of a node: clean stops, and machines that are put back to an older state.

// stopPrimary begins a clean stop: no client is let in any more, and all sessions end.
func (w *World) stopPrimary() bool {
	p := w.primary
	if p.volume == nil || p.stops {
		return false
	}
	p.stops = true
	p.interrupt()
	for _, l := range p.lines {
		if l.session != nil {
			w.endPrimary(l, l.session, context.Canceled)
		}
	}
	return true
}

// actStop goes on with clean stops.
func (w *World) actStop() bool {
	p := w.primary
	if p.volume != nil && p.stops && p.idle() {
		err := p.volume.Stop()
		w.note("the primary has stopped: %v", err)
		if p.dead {
			return true
		}
		p.closed()
		return true
	}
	for _, m := range w.mirrors {
		if m.m != nil && m.stops && len(m.tasks) == 0 && !m.connected() {
			if m.m.Stop() && !m.dead {
				w.note("%s has stopped", m.name)
				m.closed()
			}
			return true
		}
	}
	return false
}

// idle tells whether nothing of the process is under way.
func (p *primaryNode) idle() bool {
	for _, l := range p.lines {
		if l.session != nil {
			return false
		}
	}
	return len(p.tasks) == 0 && !p.dead
}

// closed leaves the machine as a process does that ended by itself.
func (p *primaryNode) closed() {
	p.volume, p.lines = nil, nil
	p.oracleEnds()
	p.disk, p.fs, p.index = p.disk.Killed(), p.fs.Killed(), p.index.Killed()
	p.reset()
}

func (p *primaryNode) oracleEnds() { p.w.oracle.died() }

func (w *World) stopMirror() bool {
	m := w.anyMirror()
	if m.m == nil || m.stops {
		return false
	}
	m.stops = true
	m.interrupt()
	m.m.Stop()
	return true
}

func (m *mirrorNode) connected() bool {
	for _, c := range m.w.conns {
		if c.mirror == m.nth && !c.gone.m {
			return true
		}
	}
	return false
}

func (m *mirrorNode) closed() {
	m.follow()
	m.m = nil
	m.disk, m.fs, m.index = m.disk.Killed(), m.fs.Killed(), m.index.Killed()
	m.reset()
}

// keep keeps the state of a mirror that is down, for it to be put back to.
func (m *mirrorNode) keep() {
	m.save()
	m.backup.extra = mirrorMemory{maps.Clone(m.seen), maps.Clone(m.holes), m.facts, m.known, m.highest}
}

// keep does the same for the primary.
func (p *primaryNode) keep() {
	p.save()
	p.backup.extra = p.w.oracle.highest
}

// putBackMirror puts a mirror back to a state that was kept. Its machine goes down for it.
func (w *World) putBackMirror() bool {
	m := w.anyMirror()
	kept := m.backup
	if kept == nil || !w.lay(&m.node) {
		return false
	}
	m.backup = kept
	m.restore()
	was := m.backup.extra.(mirrorMemory)
	m.seen, m.holes, m.facts, m.known, m.highest = maps.Clone(was.seen), maps.Clone(was.holes), was.facts, was.known, was.highest
	m.shows, m.base, m.coming, m.torn = nil, nil, nil, true // until its journal was read
	m.trusted = false
	return true
}

// putBackPrimary does the same with the primary. What it did since never happened for it, so its cuts get
// their numbers again.
func (w *World) putBackPrimary() bool {
	p := w.primary
	kept := p.backup
	if kept == nil || !w.lay(&p.node) {
		return false
	}
	p.backup = kept
	p.restore()
	w.oracle.highest = p.backup.extra.(uint64)
	maps.DeleteFunc(w.oracle.used, func(n uint64, _ bool) bool { return n > w.oracle.highest })
	for _, m := range w.mirrors {
		m.trusted = false
	}
	return true
}

// repair ends everything that is broken, as a person would who has come to look.
func (w *World) repair() {
	for _, n := range w.nodes() {
		n.armed, n.crashAt, n.room = nil, 0, roomy
	}
	for _, c := range w.conns { // what hangs is given up
		w.snap(c)
	}
	if p := w.primary; p.volume != nil && !p.stops && p.volume.Facts().Paused {
		p.volume.Resume("")
	}
}

func (w *World) nodes() []*node {
	all := []*node{&w.primary.node}
	for _, m := range w.mirrors {
		all = append(all, &m.node)
	}
	return all
}

// settled tells whether every mirror has what the primary has, and knows it.
func (w *World) settled() bool {
	p := w.primary
	if p.volume == nil || p.stops || p.clients > 0 || p.volume.Comparing() || w.working() > 0 {
		return false
	}
	for i, m := range w.mirrors {
		if m.m == nil || !m.trusted || p.volume.Needs(i).Count() > 0 {
			return false
		}
		if m.follow(); m.facts.Inconsistent || len(m.facts.Epochs) > 0 || m.facts.Bulk || len(m.facts.Doubts) > 0 || m.facts.ReadOnly.Class != 0 || w.oracle.equal(m) != nil {
			return false
		}
	}
	return true
}

// lacking tells what is not settled.
func (w *World) lacking() string {
	p := w.primary
	if p.volume == nil {
		return "the primary is down"
	}
	var list []string
	if p.stops || p.clients > 0 || p.volume.Comparing() || p.volume.Failure() != nil {
		list = append(list, fmt.Sprintf("the primary: stops %v, clients %d, comparing %v, failure %v", p.stops, p.clients, p.volume.Comparing(), p.volume.Failure()))
	}
	for i, m := range w.mirrors {
		if m.m == nil {
			list = append(list, m.name+" is down")
			continue
		}
		l := p.lines[i]
		list = append(list, fmt.Sprintf("%s: needs %d pages, failed %v, equal %v, trusted %v, session %v, status %q, counts %+v, line %+v, facts %+v",
			m.name, p.volume.Needs(i).Count(), m.m.Failed(), w.oracle.equal(m), m.trusted, l.session != nil, l.shipper.Status().Reason, l.shipper.Counts(), l.shipper.State(), m.facts))
	}
	return strings.Join(list, "\n")
}

// mirrorMemory is what the oracle knew of a mirror when its state was kept.
type mirrorMemory struct {
	seen    map[uint64]*cut
	holes   map[uint64][]blockdev.Extent
	facts   journal.ReplicaFacts
	known   bool
	highest uint64
}
