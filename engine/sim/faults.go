package sim

import (
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// faultKind is something that goes wrong. arm makes it happen, now or at the next occasion, and tells whether
// it could. What happens at once is counted here, what is armed when it strikes.
type faultKind struct {
	name string
	arm  func(*World) bool
	now  bool
}

// faults are the kinds. A seed leaves some of them out, so that the others meet each other more often.
var faults []faultKind

func init() {
	faults = []faultKind{
		{"kill -9 of the primary", func(w *World) bool { return w.crash(&w.primary.node, false) }, true},
		{"power cut of the primary", func(w *World) bool { return w.crash(&w.primary.node, true) }, true},
		{"kill -9 of the primary within an action", func(w *World) bool { return w.crashWithin(&w.primary.node, false) }, true},
		{"power cut of the primary within an action", func(w *World) bool { return w.crashWithin(&w.primary.node, true) }, true},
		{"kill -9 of a mirror", func(w *World) bool { return w.crash(&w.anyMirror().node, false) }, true},
		{"power cut of a mirror", func(w *World) bool { return w.crash(&w.anyMirror().node, true) }, true},
		{"kill -9 of a mirror within an action", func(w *World) bool { return w.crashWithin(&w.anyMirror().node, false) }, true},
		{"power cut of a mirror within an action", func(w *World) bool { return w.crashWithin(&w.anyMirror().node, true) }, true},
		{"kill -9 of the primary while a mirror applies", (*World).crashAtApply, true},
		{atPunch, (*World).crashAtPunch, false},
		{atCheckpoint, (*World).crashAtCheckpoint, false},
		{"power cut of everything", (*World).blackout, true},
		{"clean stop of the primary", (*World).stopPrimary, true},
		{"clean stop of a mirror", (*World).stopMirror, true},
		{"line cut", func(w *World) bool { return w.onLine(w.snap) }, true},
		{"line half open, the mirror hears nothing", func(w *World) bool {
			return w.onLine(func(c *conn) { w.halfOpen(c, &c.down, &c.p) })
		}, true},
		{"line half open, the primary hears nothing", func(w *World) bool {
			return w.onLine(func(c *conn) { w.halfOpen(c, &c.up, &c.m) })
		}, true},
		{"line stalls", func(w *World) bool {
			return w.onLine(func(c *conn) {
				s := []*stream{&c.down, &c.up}[w.rng.IntN(2)]
				s.stalls = w.step + w.rng.Uint64N(300)
			})
		}, true},
		{"second connection", (*World).redial, true},
		{flipDown, func(w *World) bool { return w.flipNext(func(c *conn) *stream { return &c.down }) }, false},
		{flipUp, func(w *World) bool { return w.flipNext(func(c *conn) *stream { return &c.up }) }, false},
		{"EIO of the primary's disk, reading", func(w *World) bool {
			return w.armDisk(&w.primary.node, "EIO of the primary's disk, reading", devtest.OpRead)
		}, false},
		{"EIO of the primary's disk, writing", func(w *World) bool {
			return w.armDisk(&w.primary.node, "EIO of the primary's disk, writing", devtest.OpWrite)
		}, false},
		{"EIO of the primary's disk, flushing", func(w *World) bool {
			return w.armDisk(&w.primary.node, "EIO of the primary's disk, flushing", devtest.OpFlush)
		}, false},
		{"EIO of a mirror's disk, reading", func(w *World) bool {
			return w.armDisk(&w.anyMirror().node, "EIO of a mirror's disk, reading", devtest.OpRead)
		}, false},
		{"EIO of a mirror's disk, writing", func(w *World) bool {
			return w.armDisk(&w.anyMirror().node, "EIO of a mirror's disk, writing", devtest.OpWrite)
		}, false},
		{"EIO of a mirror's disk, flushing", func(w *World) bool {
			return w.armDisk(&w.anyMirror().node, "EIO of a mirror's disk, flushing", devtest.OpFlush)
		}, false},
		{"disk lost write", func(w *World) bool { return w.armDisk(w.anyNode(), "disk lost write", devtest.OpWrite) }, false},
		{"disk misdirected write", func(w *World) bool { return w.armDisk(w.anyNode(), "disk misdirected write", devtest.OpWrite) }, false},
		{"rot of a page", (*World).rot, true},
		{"state directory: write fails", func(w *World) bool { return w.armFS("state directory: write fails", journaltest.OpWrite, "") }, false},
		{"state directory: fsync fails", func(w *World) bool { return w.armFS("state directory: fsync fails", journaltest.OpSync, "") }, false},
		{"state directory full", func(w *World) bool { return w.armFS("state directory full", journaltest.OpWrite, "") }, false},
		{"spool full", func(w *World) bool {
			if w.setup.spool == 0 {
				return false
			}
			w.primary.armed = append(w.primary.armed, fault{kind: "spool full", fsOp: journaltest.OpWrite, path: "spool"})
			return true
		}, false},
		{"little room for staging", (*World).littleRoom, true},
		{"the primary is put back", (*World).putBackPrimary, true},
		{"a mirror is put back", (*World).putBackMirror, true},
		{"foreign write to the primary", func(w *World) bool { return w.foreign(&w.primary.node) }, true},
		{"foreign write to a mirror", func(w *World) bool { return w.foreign(&w.anyMirror().node) }, true},
		{"clock jumps", (*World).jump, true},
	}
}

// disturb has something go wrong.
func (w *World) disturb() bool {
	if len(w.setup.kinds) == 0 {
		return false
	}
	f := faults[w.setup.kinds[w.rng.IntN(len(w.setup.kinds))]]
	if !f.arm(w) {
		return false
	}
	w.note("fault: %s", f.name)
	if f.now {
		w.struck(nil, f.name)
	}
	return true
}

func (w *World) anyMirror() *mirrorNode { return w.mirrors[w.rng.IntN(len(w.mirrors))] }

func (w *World) anyNode() *node {
	if w.rng.IntN(2) == 0 {
		return &w.primary.node
	}
	return &w.anyMirror().node
}

// alive tells whether a node's process runs.
func (w *World) alive(n *node) bool {
	if n == &w.primary.node {
		return w.primary.volume != nil && !n.dead
	}
	for _, m := range w.mirrors {
		if n == &m.node {
			return m.m != nil && !n.dead
		}
	}
	return false
}

// crash ends a process between two of its calls; after buries it.
func (w *World) crash(n *node, power bool) bool {
	if !w.alive(n) {
		return false
	}
	n.power = power
	n.die()
	return true
}

// crashWithin ends it at one of its next calls to disk or files.
func (w *World) crashWithin(n *node, power bool) bool {
	if !w.alive(n) {
		return false
	}
	n.power = power
	n.crashAt, n.crashOn = 1+w.rng.IntN(30), journaltest.OpAny
	if w.rng.IntN(2) == 0 { // what is rare has its share
		n.crashAt, n.crashOn = 1+w.rng.IntN(3), changing[w.rng.IntN(len(changing))]
	}
	return true
}

// crashAtApply: the next process of the primary meets a mirror that is not yet where it has committed to be.
func (w *World) crashAtApply() bool {
	applies := slices.ContainsFunc(w.mirrors, func(m *mirrorNode) bool { return m.m != nil && len(m.facts.Epochs) > 0 })
	return applies && w.crash(&w.primary.node, false)
}

const atCheckpoint = "power cut of the primary behind a checkpoint"

// crashAtCheckpoint waits for the next one: what it let cool had better be durable.
func (w *World) crashAtCheckpoint() bool {
	w.primary.cutBehind = true
	return true
}

const atPunch = "power cut of a mirror as it gives room back"

// crashAtPunch waits for the next time, which is rare: what a Rebase makes void may be gone then, and the
// Rebase has to be there.
func (w *World) crashAtPunch() bool {
	w.anyMirror().punches = true
	return true
}

// changing are the calls to files that leave something behind.
var changing = []journaltest.Op{journaltest.OpCreate, journaltest.OpRename, journaltest.OpRemove, journaltest.OpSyncDir,
	journaltest.OpWrite, journaltest.OpTruncate, journaltest.OpSync, journaltest.OpPunch}

// blackout cuts the power of all machines at once.
func (w *World) blackout() bool {
	w.crash(&w.primary.node, true)
	for _, m := range w.mirrors {
		w.crash(&m.node, true)
	}
	return true
}

// onLine does something to one of the connections.
func (w *World) onLine(do func(*conn)) bool {
	c := w.pickConn(func(c *conn) bool { return !c.gone.p && !c.gone.m })
	if c == nil {
		return false
	}
	do(c)
	return true
}

const (
	flipDown = "bit flip on the wire to the mirror"
	flipUp   = "bit flip on the wire to the primary"
)

// flipNext damages what is sent next.
func (w *World) flipNext(of func(*conn) *stream) bool {
	c := w.pickConn(func(c *conn) bool { return c.begun && !c.gone.p && !c.gone.m })
	if c != nil {
		of(c).flips, of(c).payload = true, w.rng.IntN(2) == 0
	}
	return c != nil
}

// redial has the primary lose a connection of which the mirror knows nothing, and dial anew at once: two
// connections of one session meet at the mirror.
func (w *World) redial() bool {
	c := w.pickConn(func(c *conn) bool { return c.begun && !c.gone.p && !c.gone.m })
	if c == nil {
		return false
	}
	if len(c.down.buf) > 0 && w.rng.IntN(2) == 0 {
		bit := w.rng.IntN(8 * len(c.down.buf)) // and should the mirror refuse it, nobody is told
		c.down.buf[bit/8] ^= 1 << (bit % 8)
	}
	c.up.end, c.up.buf = errReset, nil // what the mirror says gets lost; what was sent to it still arrives
	c.p.broken = errReset
	return true
}

func (w *World) armDisk(n *node, kind string, op devtest.Op) bool {
	n.armed = append(n.armed, fault{kind: kind, op: op})
	return true
}

func (w *World) armFS(kind string, op journaltest.Op, path string) bool {
	n := w.anyNode()
	n.armed = append(n.armed, fault{kind: kind, fsOp: op, path: path})
	return true
}

// rot turns a bit over on a disk.
func (w *World) rot() bool {
	n := w.anyNode()
	p := w.rng.Uint64N(uint64(w.setup.pages))
	n.disk.Rot(p, w.rng.IntN(8*pageSize))
	n.spoilPage(p)
	return true
}

// littleRoom leaves a mirror's state directory almost full, or gives it its room back.
func (w *World) littleRoom() bool {
	n := &w.anyMirror().node
	if n.room == roomy {
		n.room = w.littleRoomNow()
	} else {
		n.room = roomy
	}
	return true
}

// littleRoomNow is too little for most epochs.
func (w *World) littleRoomNow() int64 { return w.rng.Int64N(12 * pageSize) }

// jump moves the clock by hours, in either direction.
func (w *World) jump() bool {
	w.clock = w.clock.Add(time.Duration(w.rng.Int64N(int64(50*time.Hour))) - 20*time.Hour)
	return true
}

// foreign is a write by somebody else to a disk whose machine is being started anew.
func (w *World) foreign(n *node) bool {
	if !w.lay(n) {
		return false
	}
	for range 1 + w.rng.IntN(3) {
		p := w.rng.Uint64N(uint64(w.setup.pages))
		n.disk.Poke(p, w.fill(pageSize))
		if n.taint[p] == clean {
			n.taint[p] = found
		}
	}
	return true
}

// lay brings a machine down by its power, at once.
func (w *World) lay(n *node) bool {
	if n.dead || !w.crash(n, true) {
		return false
	}
	w.bury()
	return true
}
