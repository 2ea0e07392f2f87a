package sim

import (
	"hash/maphash"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// fate says when a node of a script dies, and what that leaves.
type fate struct {
	script  *script
	calls   int     // to disk and files
	record  bool    // keep the points
	points  []point // of every call since, in order
	doom    *doom   // nil: it dies of operations only
	struck  bool
	changed int // calls that changed something
}

// point is a call, and how things stand before it.
type point struct {
	what    string
	files   bool
	changes bool   // what the node has, or how much of it is durable
	sync    bool   // only the latter
	flying  int    // requests that change the disk and are under way, this one too
	outside uint64 // see script.outside
	state   uint64 // of the node: two points one behind the other with the same one have the same content
}

// doom is an enumerated crash.
type doom struct {
	call    int  // in which it takes place
	behind  bool // it took effect
	power   bool
	landed  uint64 // which of the requests under way reach the disk; before a power cut all writes do: it may take any of them
	outside uint64 // when it took place

	// choose makes what it leaves of what there was; nil: nothing that was not tried already.
	choose func(*doom, *remains) *image
}

// disk is asked before every request to the disk.
func (f *fate) disk(n *node, c devtest.Call) {
	changes := changesDisk(c)
	f.call(n, point{what: c.Op.String(), changes: changes, sync: c.Op == devtest.OpFlush})
	if !n.dead && changes {
		f.changed++
	}
}

// files is asked before every call to the state directory.
func (f *fate) files(n *node, op journaltest.Op) error {
	p := point{what: op.String(), files: true, changes: changesFiles(op), sync: op == journaltest.OpSync || op == journaltest.OpSyncDir}
	f.call(n, p)
	switch {
	case !n.dead:
		if p.changes {
			f.changed++
		}
		return nil
	case f.doom.behind:
		return journaltest.ErrLast
	}
	return journaltest.ErrDead
}

func changesDisk(c devtest.Call) bool {
	return c.Op == devtest.OpWrite || c.Op == devtest.OpZero || c.Op == devtest.OpFlush
}

// changesFiles leaves folders out: they are there at once, and made again by everybody who needs them.
func changesFiles(op journaltest.Op) bool {
	switch op {
	case journaltest.OpOpen, journaltest.OpMkdir, journaltest.OpReadDir, journaltest.OpRead:
		return false
	}
	return true
}

func (f *fate) call(n *node, p point) {
	f.calls++
	if f.record {
		f.points = append(f.points, f.look(n, p))
	}
	if d := f.doom; d != nil && !f.struck && d.call == f.calls {
		f.strike(n)
	}
}

// look adds how things stand.
func (f *fate) look(n *node, p point) point {
	for _, c := range n.disk.InFlight() {
		if changesDisk(c) {
			p.flying++
		}
	}
	p.outside = f.script.outside(n)
	p.state = digestOf([...]uint64{uint64(f.changed), uint64(p.flying), uint64(n.index.Unsynced()), digestIndex(n.index), digestIndex(n.index.Keep(0))})
	return p
}

var digestSeed = maphash.MakeSeed()

func digestOf[T comparable](all T) uint64 { return maphash.Comparable(digestSeed, all) }

// strike ends the process. Nothing of what it still says is heard.
func (f *fate) strike(n *node) {
	f.struck = true
	d := f.doom
	d.outside = f.script.outside(n)
	n.w.note("%s dies at call %d", n.name, f.calls)
	n.dead, n.power = true, d.power
	n.disk.Kill()
	n.index.Kill()
	if !d.behind {
		n.fs.Kill()
	}
	for _, c := range n.w.conns {
		if n == &n.w.primary.node {
			c.p.Close(nil)
		} else {
			c.m.Close(nil)
		}
	}
}

// bury gives a dead node what is left of it.
func (f *fate) bury(n *node) {
	if !f.struck || f.script.gone {
		f.fall(n)
		return
	}
	d, nth := f.doom, 0
	n.disk.LandOnly(func(c devtest.Call) bool {
		if !changesDisk(c) {
			return false
		}
		nth++
		if d.power {
			return c.Op != devtest.OpFlush
		}
		return d.landed>>(nth-1)&1 == 1
	})
	f.script.gone, n.w.quiet = true, true
	left := d.choose(d, &remains{disk: n.disk, fs: n.fs, index: n.index, power: d.power})
	if left == nil {
		f.script.ends = true
		f.fall(n)
		return
	}
	n.disk, n.fs, n.index = left.disk, left.fs, left.index
}

// fall is a crash between two steps: with power all is lost that is not durable, else nothing. What was not
// synced of the index is lost.
func (f *fate) fall(n *node) {
	r := remains{disk: n.disk, fs: n.fs, index: n.index, power: n.power}
	n.disk.LandOnly(func(devtest.Call) bool { return false })
	n.disk, n.fs, n.index = r.diskOf(0), r.filesOf(0), n.index.Keep(0)
}

// outside is a digest of what a node's crash now does not change: what the other node did and was told, and what
// the oracle knows. Two crashes of a history with the same one that leave the same go on in the same way.
func (s *script) outside(n *node) uint64 {
	w := s.w
	m := w.mirrors[0]
	other, sent := s.turns[sideMirror], int64(w.connections)<<40
	if n == &m.node {
		other = s.turns[sidePrimary]
	}
	for _, c := range w.conns {
		if n == &m.node {
			sent += c.m.sent
		} else {
			sent += c.p.sent
		}
	}
	o := w.oracle
	return digestOf([...]int64{int64(s.asked), int64(other), sent, w.clock.UnixNano(), int64(o.highest), int64(m.highest),
		int64(len(o.inFlight)), int64(len(o.cuts)), int64(len(o.flushes)), int64(len(m.seen)), bit(m.trusted), bit(m.known), bit(m.torn)})
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
