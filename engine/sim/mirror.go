package sim

import (
	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// mirrorNode is a machine that holds a copy.
type mirrorNode struct {
	node
	nth   int
	m     *engine.SteppedMirror // nil: the process is down
	stops bool
	owns  bool       // a task has the owner's turn
	phase ship.Phase // of its primary's core, when a fault last looked

	// What the oracle knows of it.
	facts   journal.ReplicaFacts
	known   bool                         // it holds a volume
	seen    map[uint64]*cut              // cuts that it committed
	shows   *cut                         // the last that it committed; nil: in bulk, or nothing yet
	base    *cut                         // that its device shows, where nothing is to be applied
	coming  []*cut                       // committed and not applied
	holes   map[uint64][]blockdev.Extent // that its primary told with each of these
	torn    bool                         // what is being applied may lie there in part, until it was applied anew
	highest uint64                       // cut that it ever committed
	trusted bool                         // nothing happened to it that its primary cannot know yet

	cursed  int   // payloads at a place that are still to be damaged
	curse   int64 // the place
	mended  bool  // its repair was asked for
	repairs int   // under way
	rotten  bool  // a payload that it had staged changed on its disk
	verify  struct {
		since *sight // before the first of those that were cut off
		life  int    // of the primary
	}
}

const mirrorDir = "state/volume"

// openMirror starts the process.
func (w *World) openMirror(m *mirrorNode) bool {
	s := m.surroundings(w.setup.mirrorSizes())
	volume, err := engine.OpenSteppedMirror("volume", engine.VolumeConfig{Path: "memory", OnReboot: "compare"}, mirrorDir, s,
		func(run func()) { w.spawn(&m.node, "beside the owner", run) })
	m.opens++
	if err != nil {
		w.note("%s does not start: %v", m.name, err)
		if w.quiet {
			w.failf("%s does not start, although nothing is broken: %v", m.name, err)
		}
		m.died()
		return true
	}
	m.m, m.stops, m.owns = volume, false, false
	w.note("%s is up: %+v", m.name, volume.Facts().Mirror)
	w.oracle.checkStaging(m, m.fs)
	return true
}

// died buries a dead process.
func (m *mirrorNode) died() {
	if !m.dead {
		m.die()
	}
	if m.m != nil {
		m.m.Crash()
	}
	m.m, m.owns = nil, false
	for _, c := range m.w.conns {
		if c.mirror == m.nth {
			m.w.mirrorGone(c)
		}
	}
	m.bury()
	if m.w.rng.IntN(3) == 0 {
		m.keep()
	}
}

// met: its primary has taken up what it holds, so that from now on it knows what the mirror lacks.
func (m *mirrorNode) met() { m.trusted = true }

// actDown delivers a frame to a mirror.
func (w *World) actDown() bool {
	c := w.pickConn(func(c *conn) bool { return !c.gone.m && !c.attaches && c.down.ready(w.step) })
	if c == nil {
		return false
	}
	m := w.mirrors[c.mirror]
	msg, ok, err := c.down.take(&c.m)
	switch {
	case err != nil && c.session != nil && c.down.end == nil: // what cannot be read is told, as Conn does
		c.m.Send(&wire.Halt{Code: wire.CodeOf(err), Text: "cannot be read"})
		c.session.End(err)
	case err != nil && c.session == nil:
		w.mirrorGone(c)
	case err != nil:
		if c.session.Ended() != nil && c.down.end != nil {
			return false // it knows
		}
		c.session.End(err)
	case !ok:
		return false
	case c.session == nil:
		a, is := msg.(*wire.Attach)
		if !is {
			w.failf("a primary begins with %v", msg.Type())
		}
		w.admit(m, c, a)
	default:
		w.cover(coverAction, "down "+msg.Type().String())
		c.taken += wire.Cost(msg)
		w.tell("down", c, msg)
		c.session.Handle(msg)
	}
	return true
}

// admit has a mirror take a connection up, which may have to wait until a former one is over.
func (w *World) admit(m *mirrorNode, c *conn, a *wire.Attach) {
	c.attaches = true
	volume := m.m
	w.spawn(&m.node, "attach", func() {
		s, err := volume.Attach(&c.m, &wire.Hello{Name: "primary", Node: [32]byte{1}}, a, "primary")
		c.attaches = false
		if err != nil || s == nil {
			w.note("%s takes nobody up: %v", m.name, err)
			if !c.gone.m {
				w.mirrorGone(c)
			}
			return
		}
		c.session, c.life = s, m.opens
	})
}

// mirrorGone closes a mirror's side of a connection for good.
func (w *World) mirrorGone(c *conn) {
	c.m.Close(nil)
	c.gone.m = true
}

// partMirror ends a session that has to end, once nothing of it runs.
func (w *World) partMirror(c *conn) bool {
	if c.session == nil || c.gone.m || c.parts || c.placing > 0 {
		return false
	}
	cause := c.session.Ended()
	if cause == nil {
		return false
	}
	c.parts = true
	m := w.mirrors[c.mirror]
	w.resume(w.spawn(&m.node, "part", func() {
		c.session.Lost()
		w.note("connection %d: %s has lost it: %v", c.id, m.name, cause)
		w.mirrorGone(c)
	}))
	return true
}

// actOwn gives the owner of a mirror its turn.
func (w *World) actOwn() bool {
	m := w.anyMirror()
	if m.m == nil || m.owns {
		return false
	}
	m.owns = true
	did := false
	volume := m.m
	t := w.spawn(&m.node, "own", func() {
		did = volume.Own()
		m.owns = false
	})
	w.resume(t)
	if did || !t.ended {
		w.cover(coverAction, "own")
		return true
	}
	return false
}

// actTicks is what a mirror does from time to time.
func (w *World) actTicks() bool {
	m := w.mirrors[w.rng.IntN(len(w.mirrors))]
	if m.m == nil {
		return false
	}
	if m.m.Failed() != nil {
		m.m.Retry()
		w.cover(coverAction, "retry")
		return true
	}
	m.m.Measure()
	w.cover(coverAction, "measure")
	return true
}

// actSession has a mirror's session do one of its things.
func (w *World) actSession() bool {
	c := w.pickConn(func(c *conn) bool { return c.session != nil && !c.gone.m })
	if c == nil {
		return false
	}
	switch w.rng.IntN(8) {
	case 0, 1, 2:
		if c.session.Check() {
			w.cover(coverAction, "check")
			return true
		}
	case 3:
		return w.mirrorTask(c, "place", c.session.Place)
	case 4:
		return w.mirrorTask(c, "compare offer", c.session.Offer)
	default:
		return w.sendOut(c)
	}
	return false
}

// mirrorTask runs a part of a session that works on the device.
func (w *World) mirrorTask(c *conn, name string, turn func() bool) bool {
	if c.placing >= 3 || c.session.Ended() != nil {
		return false
	}
	c.placing++
	did := false
	t := w.spawn(&w.mirrors[c.mirror].node, name, func() {
		did = turn()
		c.placing--
	})
	w.resume(t)
	if did || !t.ended {
		w.cover(coverAction, name)
		return true
	}
	return false
}

func (w *World) sendOut(c *conn) bool {
	batch := c.session.Out()
	if len(batch) == 0 {
		return false
	}
	if err := c.m.Send(batch...); err != nil {
		c.session.End(err)
	}
	w.cover(coverAction, "answer")
	return true
}

// follow brings what the oracle knows of a mirror up to date with what its journal says.
func (m *mirrorNode) follow() {
	if m.m == nil || m.dead {
		return
	}
	all := m.m.Facts()
	f := all.Mirror
	m.known = all.UUID != [16]byte{}
	if !m.known {
		return
	}
	if f.Committed != m.facts.Committed && !f.Bulk && !f.Inconsistent {
		m.commits(f.Committed)
		m.holes[f.Committed] = f.Holes
	}
	m.checkReadOnly(&f)
	if f.Inconsistent && !m.facts.Inconsistent {
		m.highest = 0 // whatever comes next may be older
	}
	m.facts = f
	if len(f.Epochs) == 0 {
		m.torn = false
	}
	m.base, m.shows, m.coming = nil, nil, m.coming[:0]
	if !f.Inconsistent && !f.InPlace && !f.Bulk && f.Committed != 0 {
		m.shows = m.lookup(f.Committed)
	}
	if f.Inconsistent || f.Bulk && len(f.Epochs) == 0 {
		return
	}
	if !f.Bulk || len(f.Epochs) > 0 {
		m.base = m.seen[f.Applied]
	}
	for _, n := range f.Epochs {
		m.coming = append(m.coming, m.lookup(n))
	}
}

// commits checks a cut that a mirror has committed: one that was taken, and none that is older.
func (m *mirrorNode) commits(number uint64) {
	if number < m.highest {
		m.w.failf("I3: %s goes back from cut %d to %d", m.name, m.highest, number)
	}
	m.highest = number
	m.lookup(number)
	m.w.note("%s has committed cut %d", m.name, number)
	m.w.cover(coverAction, "commit")
}

func (m *mirrorNode) lookup(number uint64) *cut {
	if c := m.seen[number]; c != nil {
		return c
	}
	c := m.w.oracle.cuts[number]
	if c == nil {
		m.w.failf("%s has committed %d, which is no cut", m.name, number)
	}
	m.seen[number] = c
	return c
}

// durable is what a mirror would hold of a page after the worst crash.
func (m *mirrorNode) durable(page uint64) content {
	switch {
	case m.shows != nil && !in(page, m.facts.Holes): // of a hole it has what its disk has
		return m.shows.pages[page]
	case m.disk.Settled(page):
		return m.disk.PageID(page)
	}
	return nobody
}

// exempt are pages that a mirror knows not to be of its cut: told holes, and what it doubts itself.
func (m *mirrorNode) exempt(page uint64) bool {
	return in(page, m.facts.Doubts) || in(page, m.facts.Quarantine) || in(page, m.facts.Holes) || m.base != nil && in(page, m.holes[m.base.number])
}

func in(page uint64, list []blockdev.Extent) bool {
	for _, e := range list {
		if e.Offset < int64(page+1)*pageSize && int64(page)*pageSize < e.End() {
			return true
		}
	}
	return false
}
