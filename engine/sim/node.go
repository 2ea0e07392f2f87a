package sim

import (
	"fmt"
	"maps"
	"strings"
	"syscall"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// taint says that a page of a disk was changed behind the engine's back.
type taint uint8

const (
	clean  taint = iota
	found        // by somebody else while the node was down: the engine has to find out
	hidden       // by the disk itself, silently: only verify and scrub could
)

// node is one machine: a disk, a state directory with its index, and a process, as long as it lives.
type node struct {
	w     *World
	name  string
	disk  *devtest.Disk
	fs    *journaltest.MemFS
	index *journaltest.MemIndex
	taint map[uint64]taint // by page

	stains  [hidden + 1]map[uint64]uint64 // step at which a page was last so
	changed []uint64                      // step at which a page was last written or spoilt
	renewed uint64                        // step at which a crash may have changed any of them

	washed map[uint64]taint // was so until the page was written, which no flush has made durable yet

	tasks   []*task
	jobs    []*job         // of these, that may be cut off
	crashAt int            // I/O calls until the process dies; 0: it does not
	crashOn journaltest.Op // only these count; OpAny: all
	dead    bool           // its disk and files answer with errors; its objects are still there
	power   bool           // it dies with the whole machine
	failed  bool           // its journal or a flush has, since the process began
	armed   []fault
	punches bool  // it dies with its machine when it next gives room back
	room    int64 // free bytes of the state directory, as it sees them
	backup  *backup
	checked indexCheck
	opens   int
	worn    bool // a page of the disk cannot be read: wornAt
	wornAt  int64
	flagged bool  // the kernel's read-only flag of the disk
	fate    *fate // when it dies and what that leaves; nil: chance says so
}

// fault is armed for a later call.
type fault struct {
	kind string
	op   devtest.Op     // of the disk; 0: of the state directory
	fsOp journaltest.Op // of the state directory
	path string         // a part of the file's name; "": any
}

// backup is an older state of a node, disk and state directory, to which it may be put back.
type backup struct {
	disk  *devtest.Disk
	fs    *journaltest.MemFS
	index *journaltest.MemIndex
	taint map[uint64]taint
	extra any
}

func (w *World) newNode(name string) node {
	n := node{w: w, name: name, disk: devtest.NewDiskIn(w.pool, w.setup.size()), fs: journaltest.NewIn(w.pool), index: journaltest.NewMemIndex(), room: roomy}
	n.unstained()
	return n
}

// unstained says that nothing was changed behind the engine's back.
func (n *node) unstained() {
	n.taint, n.washed = map[uint64]taint{}, map[uint64]taint{}
	n.stains, n.changed = [hidden + 1]map[uint64]uint64{found: {}, hidden: {}}, make([]uint64, n.w.setup.pages)
}

const roomy = 1 << 40

// attach hooks the world into the disk and the files of a node. It is called whenever these are new.
func (n *node) attach() {
	n.disk.Hook = n.diskCall
	n.fs.Hook = n.fsCall
}

// A disk is slow now and then, so that a lot may happen between a request and its answer.
const (
	slowShare = 16  // of so many requests one
	slowSteps = 400 // is answered only after up to so many steps
)

// diskCall stands before every request to the disk: others may have their turn, the process may die, and a
// fault may strike.
func (n *node) diskCall(c devtest.Call) devtest.Effect {
	w := n.w
	if t := w.running; t != nil && t.node == n {
		if t.op != nil && t.op.changes() && !t.op.entered {
			w.oracle.enter(t.op)
		}
		if w.rng.IntN(slowShare) == 0 || c.Op == devtest.OpFlush && w.rng.IntN(4) == 0 {
			t.until = w.step + w.rng.Uint64N(slowSteps)
		}
		w.turn()
	}
	if n.fate != nil {
		n.fate.disk(n, c)
	}
	if n.countdown(journaltest.OpAny) {
		n.die()
	}
	if n.dead {
		return devtest.Effect{}
	}
	if w.Story != nil {
		fmt.Fprintf(w.Story, "%6d  %s: disk %v %d+%d %s\n", w.step, n.name, c.Op, c.Offset, c.Length, w.running.what())
	}
	if n.wear(c) {
		return devtest.Fail(syscall.EIO)
	}
	f := n.strikes(func(f *fault) bool { return f.op == c.Op })
	if f == nil {
		n.touched(c)
		return devtest.Effect{}
	}
	if t := w.running; t != nil && t.op != nil {
		t.op.broken = true
	}
	return n.effect(f, c)
}

// effect is what an armed fault does to a request.
func (n *node) effect(f *fault, c devtest.Call) devtest.Effect {
	switch f.kind {
	case "disk lost write":
		n.spoil(c.Offset, c.Length)
		return devtest.Lose()
	case "disk misdirected write":
		delta := (n.w.rng.Int64N(n.w.setup.pages) - c.Offset/pageSize) * pageSize
		if c.Offset+delta+c.Length > n.w.setup.size() || c.Offset+delta < 0 {
			delta = 0
		}
		n.spoil(c.Offset, c.Length)
		n.spoil(c.Offset+delta, c.Length)
		return devtest.Misdirect(delta)
	}
	if c.Op == devtest.OpFlush && n == &n.w.primary.node {
		n.failed = true
		n.w.oracle.flushFailed()
	}
	if c.Op == devtest.OpWrite || c.Op == devtest.OpZero {
		n.tear()
	}
	if n.w.rng.IntN(2) == 0 && c.Op != devtest.OpFlush {
		return devtest.Partial(n.w.rng, syscall.EIO)
	}
	return devtest.Fail(syscall.EIO)
}

// tear notes that what a mirror was about to write may be there in part.
func (n *node) tear() {
	for _, m := range n.w.mirrors {
		if n == &m.node {
			m.torn = true
		}
	}
}

// spoil notes pages whose content the disk changed silently.
func (n *node) spoil(off, length int64) {
	for p := off / pageSize; p*pageSize < off+length; p++ {
		n.spoilPage(uint64(p))
	}
}

func (n *node) spoilPage(p uint64) {
	n.taint[p], n.changed[p] = hidden, n.w.step
	if n == &n.w.primary.node {
		n.w.oracle.spoiled(p)
	}
}

// touched: what the engine writes is known again. A part of a page leaves the rest as it is; on a primary the
// whole page is dirty all the same.
func (n *node) touched(c devtest.Call) {
	if c.Op == devtest.OpFlush {
		clear(n.washed)
	}
	if c.Op != devtest.OpWrite && c.Op != devtest.OpZero {
		return
	}
	for p := c.Offset / pageSize; p*pageSize < c.Offset+c.Length; p++ {
		n.changed[p] = n.w.step
		if t := n.taint[uint64(p)]; t != clean {
			n.washed[uint64(p)] = t
			n.stains[t][uint64(p)] = n.w.step
			delete(n.taint, uint64(p))
		}
		if n == &n.w.primary.node && p*pageSize >= c.Offset && (p+1)*pageSize <= c.Offset+c.Length {
			delete(n.w.oracle.doubtful, uint64(p))
		}
	}
}

// fsCall stands before every call to the state directory.
func (n *node) fsCall(op journaltest.Op, path string) error {
	if n.dead {
		return journaltest.ErrDead
	}
	if op == journaltest.OpPunch && n.punches && !n.w.quiet {
		n.punches, n.power = false, true
		n.w.struck(n, atPunch)
		return n.dieBehind()
	}
	if n.fate != nil {
		if err := n.fate.files(n, op); err != nil {
			return err
		}
	}
	if n.countdown(op) {
		if n.w.rng.IntN(2) == 0 {
			return n.dieBehind()
		}
		n.die()
		return journaltest.ErrDead
	}
	f := n.strikes(func(f *fault) bool { return f.op == 0 && f.fsOp == op && strings.Contains(path, f.path) })
	if f == nil {
		return nil
	}
	n.failed = n.failed || !strings.Contains(path, "spool")
	if f.kind == "state directory full" {
		return fmt.Errorf("%s: %w", path, syscall.ENOSPC)
	}
	return fmt.Errorf("%s: %w", path, syscall.EIO)
}

// countdown tells whether it is time to die.
func (n *node) countdown(op journaltest.Op) bool {
	if n.crashAt == 0 || n.crashOn != journaltest.OpAny && n.crashOn != op {
		return false
	}
	if n.crashAt--; n.crashAt > 0 {
		return false
	}
	n.w.note("%s dies in the middle of something", n.name)
	return true
}

// strikes takes the first armed fault that fits.
func (n *node) strikes(fits func(*fault) bool) *fault {
	if n.w.quiet {
		n.armed = nil
	}
	for i := range n.armed {
		if fits(&n.armed[i]) {
			f := n.armed[i]
			n.armed = append(n.armed[:i:i], n.armed[i+1:]...)
			n.w.note("%s: %s strikes", n.name, f.kind)
			n.w.struck(n, f.kind)
			return &f
		}
	}
	return nil
}

// die makes everything that the process still does fail. bury follows, from outside of its tasks.
func (n *node) die() {
	n.dead, n.crashAt = true, 0
	n.disk.Kill()
	n.fs.Kill()
	n.index.Kill()
}

// dieBehind is die behind the call to the state directory that is under way: its answer has that one take effect,
// and ends the files.
func (n *node) dieBehind() error {
	n.dead, n.crashAt = true, 0
	n.disk.Kill()
	n.index.Kill()
	return journaltest.ErrLast
}

// bury ends what is left of a dead process, and gives its machine what a kill -9 or a power cut leaves.
func (n *node) bury() {
	n.interrupt()
	n.w.drain(n)
	n.tear()
	if n.fate != nil {
		n.fate.bury(n)
		n.reset()
		return
	}
	n.disk.Land(n.w.rng)
	n.index = n.index.PowerCut(n.w.rng) // also at a kill: what was not synced is in the memory of the process
	if n.power {
		maps.Copy(n.taint, n.washed)
		clear(n.washed)
		n.disk, n.fs = n.disk.PowerCut(n.w.rng), n.fs.PowerCut(n.w.rng)
	} else {
		n.disk, n.fs = n.disk.Killed(), n.fs.Killed()
	}
	n.reset()
}

// reset makes a machine ready for its next process.
func (n *node) reset() {
	n.dead, n.power, n.armed, n.crashAt, n.renewed = false, false, nil, 0, n.w.step
	n.attach()
}

// save keeps the present state of a machine that is down; restore puts it back.
func (n *node) save() {
	n.backup = &backup{disk: n.disk.Clone(), fs: n.fs.Clone(), index: n.index.Clone(), taint: maps.Clone(n.taint)}
}

func (n *node) restore() {
	b := n.backup
	for p, t := range n.taint {
		n.stains[t][p] = n.w.step
	}
	n.disk, n.fs, n.index, n.taint = b.disk.Clone(), b.fs.Clone(), b.index.Clone(), maps.Clone(b.taint)
	n.reset()
}

// surroundings are what the engine gets instead of this machine.
func (n *node) surroundings(sizes engine.Sizes) engine.Surroundings {
	w := n.w
	fs := n.fs
	return engine.Surroundings{
		FS: fs,
		Device: func() (engine.Device, error) {
			if n.dead {
				return nil, devtest.ErrDead
			}
			n.disk = n.disk.Killed() // a new handle on the same disk
			n.disk.RetryFlush()
			n.disk.Hook, n.flagged = n.diskCall, false
			return flagging{n.disk, n}, nil
		},
		Index: func(string) (engine.BlockIndex, error) {
			n.index = n.index.Killed() // a new handle on the same content
			return n.index, nil
		},
		Room:   func() (int64, error) { return n.room, nil },
		BootID: func() (string, error) { return bootOf(n.disk) },
		Now:    w.now,
		Random: func(b []byte) {
			for i := range b {
				b[i] = byte(w.rng.Uint32())
			}
		},
		Wait:  w.wait,
		Log:   func(text string) { w.note("%s: %s", n.name, text) },
		Sizes: sizes,
	}
}

// bootOf is the boot id of the machine that a disk is in.
func bootOf(d *devtest.Disk) (string, error) {
	f, err := d.Facts()
	return f.BootID, err
}
