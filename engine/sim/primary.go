package sim

import (
	"fmt"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/wire"
)

// primaryNode is the machine that takes writes.
type primaryNode struct {
	node
	volume    *engine.SteppedPrimary // nil: the process is down
	clients   int                    // requests under way
	lines     []*line                // to each mirror
	busy      map[string]bool        // checkpoint, index, comparison: one of each
	stops     bool                   // cleanly: nothing new begins
	cutBehind bool                   // the power fails when the next checkpoint is made
}

// line is what the primary does for one mirror.
type line struct {
	shipper *engine.SteppedShipper
	session *conn // nil: not connected
	drives  bool
	reads   int
	offers  int
	number  uint64 // of the epoch under way

	quarantine []wire.Extent // that the mirror has told
	everything bool          // a repair compares it
}

const primaryDir = "state/volume"

// openPrimary starts the process.
func (w *World) openPrimary() bool {
	p := w.primary
	p.failed = false
	volume, err := engine.OpenSteppedPrimary("volume", w.config(), primaryDir, [32]byte{1}, p.surroundings(w.setup.primarySizes()))
	p.opens++
	if err != nil {
		w.note("the primary does not start: %v", err)
		if w.quiet {
			w.failf("the primary does not start, although nothing is broken: %v", err)
		}
		p.died()
		return true
	}
	p.volume, p.clients, p.stops, p.busy = volume, 0, false, map[string]bool{}
	w.oracle.because(-1, 0, uint64(w.setup.pages))
	p.lines = nil
	for i := range w.mirrors {
		p.lines = append(p.lines, &line{shipper: volume.Mirror(i)})
	}
	w.note("the primary is up: cut %d", volume.Facts().Cut)
	return true
}

// died brings a process that is dead, or that could not start, under the ground.
func (p *primaryNode) died() {
	p.volume = nil
	if !p.dead {
		p.die()
	}
	for _, l := range p.lines {
		if l.session != nil {
			p.w.primaryGone(l.session)
		}
	}
	p.w.oracle.died()
	p.bury()
	p.lines = nil
	if p.w.rng.IntN(3) == 0 {
		p.keep()
	}
}

// actDrive has the primary do the next thing for one of its mirrors.
func (w *World) actDrive() bool {
	p := w.primary
	if p.volume == nil {
		return false
	}
	l := p.lines[w.rng.IntN(len(p.lines))]
	if l.drives || p.stops && l.session == nil {
		return false
	}
	l.drives = true
	volume := p.volume
	did := false
	t := w.spawn(&p.node, "drive", func() {
		kind := l.shipper.Drive()
		l.drives = false
		if did = kind != ship.Wait; !did || p.volume != volume || p.dead {
			return
		}
		w.cover(coverAction, "drive "+kindNames[kind])
		if w.Story != nil {
			fmt.Fprintf(w.Story, "%6d  drive %s: %s, then %+v\n", w.step, l.shipper.Name(), kindNames[kind], l.shipper.Counts())
		}
		if n := l.shipper.State().Epoch; n > l.number {
			l.number = n
			w.note("cut %d is taken for %s", n, w.mirrorOf(l).name)
			w.oracle.taken(n)
		}
	})
	w.resume(t)
	return did || !t.ended
}

func (w *World) mirrorOf(l *line) *mirrorNode {
	for i, o := range w.primary.lines {
		if o == l {
			return w.mirrors[i]
		}
	}
	return nil
}

// actRead has a reader of a session read, hash, pack and send a batch; actOffer answers for doubts.
func (w *World) actRead() bool {
	return w.sessionTask("read", func(l *line) *int { return &l.reads }, w.setup.readers, (*engine.SteppedShipper).Read)
}

func (w *World) actOffer() bool {
	return w.sessionTask("offer", func(l *line) *int { return &l.offers }, 2, (*engine.SteppedShipper).Offer)
}

func (w *World) sessionTask(name string, count func(*line) *int, limit int, turn func(*engine.SteppedShipper) bool) bool {
	p := w.primary
	if p.volume == nil {
		return false
	}
	l := p.lines[w.rng.IntN(len(p.lines))]
	c := l.session
	if c == nil || !c.begun || *count(l) >= limit || l.shipper.Unanswered() > maxUnanswered || l.shipper.Ended() != nil {
		return false
	}
	*count(l)++
	c.reading++
	did := false
	t := w.spawn(&p.node, name, func() {
		did = turn(l.shipper)
		*count(l)--
		c.reading--
	})
	w.resume(t)
	if did || !t.ended {
		w.cover(coverAction, name)
		return true
	}
	return false
}

const maxUnanswered = 40

// actPrimary has the primary do one of the things that it does for itself.
func (w *World) actPrimary() bool {
	p := w.primary
	if p.volume == nil || p.stops {
		return false
	}
	v := p.volume
	switch r := w.rng.IntN(100); {
	case v.CheckpointDue() && r < 30 || r < 4:
		return w.primaryTask("checkpoint", func() bool { return p.checkpoint(v) })
	case r < 10:
		return w.primaryTask("index pass", func() bool { return v.IndexPass() == nil })
	case !v.Comparing():
		return false
	}
	return w.primaryTask("comparison", func() bool {
		_, err := v.CompareBlock()
		return err == nil
	})
}

// checkpoint makes one, behind which the power may fail.
func (p *primaryNode) checkpoint(v *engine.SteppedPrimary) bool {
	ok := v.Checkpoint() == nil
	if ok && p.cutBehind && p.volume == v && !p.dead && !p.w.quiet {
		p.cutBehind = false
		p.w.struck(&p.node, atCheckpoint)
		p.w.crash(&p.node, true)
	}
	return ok
}

// primaryTask runs one of each kind at a time.
func (w *World) primaryTask(name string, run func() bool) bool {
	p := w.primary
	busy := p.busy
	if busy[name] {
		return false
	}
	busy[name] = true
	w.cover(coverAction, name)
	w.resume(w.spawn(&p.node, name, func() {
		run()
		delete(busy, name)
	}))
	return true
}

// actConnect dials a mirror.
func (w *World) actConnect() bool {
	p := w.primary
	if p.volume == nil || p.stops {
		return false
	}
	i := w.rng.IntN(len(p.lines))
	l := p.lines[i]
	if l.session != nil || w.mirrors[i].m == nil {
		return false
	}
	a := l.shipper.Attach()
	if a == nil {
		w.failf("I5: %s is stopped for a person, and no block of it stayed wrong: %s", w.mirrors[i].name, l.shipper.Status().Reason)
	}
	c := w.newConn(i)
	w.conns = append(w.conns, c)
	l.session = c
	if err := c.p.Send(a); err != nil {
		w.failf("an Attach does not go out: %v", err)
	}
	w.note("connection %d to %s", c.id, w.mirrors[i].name)
	w.cover(coverAction, "connect")
	return true
}

// actUp delivers a frame to the primary.
func (w *World) actUp() bool {
	c := w.pickConn(func(c *conn) bool { return !c.gone.p && c.up.ready(w.step) })
	if c == nil {
		return false
	}
	l := w.primary.lines[c.mirror]
	m, ok, err := c.up.take(&c.p)
	switch {
	case err != nil:
		if c.up.end == nil {
			c.p.Send(&wire.Halt{Code: wire.CodeOf(err), Text: "cannot be read"})
		}
		w.endPrimary(l, c, err)
	case !ok:
		return false
	default:
		w.cover(coverAction, "up "+m.Type().String())
		w.tell("up", c, m)
		w.primaryTakes(l, c, m)
	}
	return true
}

// primaryTakes handles a message of a mirror.
func (w *World) primaryTakes(l *line, c *conn, m wire.Message) {
	if c.begun {
		if d, ok := m.(*wire.Doubt); ok {
			for _, e := range d.Extents {
				w.oracle.because(c.mirror, uint64(e.Offset)/pageSize, uint64(e.Offset+e.Length-1)/pageSize+1)
			}
		}
		if q, ok := m.(*wire.Quarantine); ok {
			l.quarantine = append(l.quarantine, q.Extents...)
		}
		l.shipper.Handle(m)
		return
	}
	w.oracle.because(c.mirror, 0, uint64(w.setup.pages))
	mirror := w.mirrors[c.mirror]
	if err := l.shipper.Begin(&c.p, &wire.Hello{Name: mirror.name}, m); err != nil {
		w.note("connection %d: no session: %v", c.id, err)
		w.primaryGone(c)
		return
	}
	c.begun = true
	// With a journal that failed it knows, and its next process does not.
	if l.shipper.State().Phase != ship.Refused && c.life == mirror.opens && w.primary.volume.Failure() == nil {
		mirror.met()
	}
}

// endPrimary ends a session, or the attempt at one, on the primary's side.
func (w *World) endPrimary(l *line, c *conn, cause error) {
	if c.begun {
		l.shipper.End(cause)
		return // lost follows when nothing of it runs any more
	}
	l.shipper.Lost(cause)
	w.primaryGone(c)
}

// primaryGone closes the primary's side of a connection for good.
func (w *World) primaryGone(c *conn) {
	c.p.Close(nil)
	c.gone.p = true
	if l := w.primary.lines[c.mirror]; l.session == c {
		l.session = nil
	}
}

// actPart ends sessions that have to end, on either side, once nothing of them runs.
func (w *World) actPart() bool {
	for _, c := range w.conns {
		if l := w.lineOf(c); l != nil && c.begun && !c.gone.p && c.reading == 0 && !l.drives {
			if cause := l.shipper.Ended(); cause != nil {
				l.shipper.Lost(cause)
				w.note("connection %d: the primary has lost it: %v", c.id, cause)
				w.primaryGone(c)
				return true
			}
		}
		if w.partMirror(c) {
			return true
		}
	}
	return false
}

func (w *World) lineOf(c *conn) *line {
	if w.primary.volume == nil || c.gone.p {
		return nil
	}
	return w.primary.lines[c.mirror]
}
