package engine

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
	"github.com/blkmirror/blkmirror/wire"
)

// pairSizes are small enough for everything to happen in a volume of some dozens of pages.
var pairSizes = Sizes{Region: 64 << 10, Segment: 64 << 10, ReserveMin: 4 << 10, ReserveMax: 64 << 10,
	CaptureMemory: 32 << 10, CaptureSpool: 1 << 20, CheckpointHot: 4, ZeroPiece: 64 << 10, IndexSync: 64 << 10,
	ShipBatch: 16 << 10, ShipMemory: 4 << 20, OfferBytes: 64 << 10, PageOffers: 128 << 10, BulkFlush: 128 << 10, SmallRest: 16 << 10,
	Window: wire.MaxRun, StagingSync: 128 << 10, Chunk: pairBlock}

const (
	pairBlock = 16 << 10
	pairSize  = 20*pairBlock + 3*pageSize
)

// steppedPair is a primary and its mirror in one thread, and what lies on the line between them.
type steppedPair struct {
	turns
	now   time.Time
	p     *SteppedPrimary
	x     *SteppedMirror
	s     *SteppedSession
	pDisk *devtest.Mem
	xDisk *devtest.Mem
	pEnv  Surroundings

	device, pDevice *pairDevice // the one opened last; the primary's

	down  *pairEnd // what the primary sends
	up    *pairEnd
	dials uint64
	trace uint64 // hash of all messages, in their order
	kinds map[string]int
	open  bool // for clients
}

// pairEnd is one side of the connection.
type pairEnd struct {
	sink
	w *steppedPair
}

func (e *pairEnd) Loopback() bool { return e.w.dials%2 == 0 }

func (e *pairEnd) Send(ms ...wire.Message) error {
	for _, m := range ms {
		h := fnv.New64a()
		fmt.Fprint(h, e.w.trace)
		if d, ok := m.(*wire.Data); ok {
			c := *d
			c.Payload = nil
			fmt.Fprintf(h, "%+v", c) // with its hash
			c.Payload, c.PayloadLength = bytes.Clone(d.Payload), len(d.Payload)
			m = &c
		} else {
			fmt.Fprintf(h, "%T %+v", m, m)
		}
		e.w.trace = h.Sum64()
		e.w.kinds[fmt.Sprintf("%T", m)]++
		e.sent = append(e.sent, m)
	}
	return nil
}

// take is the oldest message on the line.
func (e *pairEnd) take() (m wire.Message) {
	if len(e.sent) > 0 {
		m, e.sent = e.sent[0], e.sent[1:]
	}
	return m
}

// pairDevice gives the turn away at each request, until its process is killed.
type pairDevice struct {
	*devtest.Mem
	w      *turns
	killed bool
}

func (d *pairDevice) turn() error {
	d.w.pass()
	if d.killed {
		return devtest.ErrDead
	}
	return nil
}

func (d *pairDevice) Facts() (blockdev.Facts, error) {
	return blockdev.Facts{Block: true, Size: pairSize, BootID: "boot", DiskSeq: 3, Counted: true}, nil
}

func (d *pairDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := d.turn(); err != nil {
		return 0, err
	}
	return d.Mem.ReadAt(p, off)
}

func (d *pairDevice) WriteAt(p []byte, off int64) (int, error) {
	if err := d.turn(); err != nil {
		return 0, err
	}
	return d.Mem.WriteAt(p, off)
}

func (d *pairDevice) Zero(off, n int64, mayFree bool) error {
	if err := d.turn(); err != nil {
		return err
	}
	return d.Mem.Zero(off, n, mayFree)
}

func (d *pairDevice) Flush() error {
	if err := d.turn(); err != nil {
		return err
	}
	return d.Mem.Flush()
}

func newSteppedPair(t *testing.T, seed uint64) *steppedPair {
	w := &steppedPair{turns: turns{t: t, rng: rand.New(rand.NewPCG(seed, 9))}, now: time.Unix(1e9, 0), kinds: map[string]int{}}
	w.pDisk, w.xDisk = devtest.NewMem(pairSize, 512, seed), devtest.NewMem(pairSize, 512, seed+1)
	content := make([]byte, pairSize)
	fill(w.rng, content[:12*pairBlock])
	w.pDisk.WriteAt(content, 0)
	w.pDisk.Flush()
	w.pEnv = w.surroundings(w.pDisk)
	w.openPrimary()
	var err error
	if w.x, err = OpenSteppedMirror("v", VolumeConfig{Path: "/m", StagingLimit: 1 << 30}, "/state/v", w.surroundings(w.xDisk), w.spawn); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *steppedPair) surroundings(disk *devtest.Mem) Surroundings {
	index := newMemIndex()
	return Surroundings{FS: journaltest.New(),
		Device: func() (Device, error) {
			disk.Reopen()
			w.device = &pairDevice{Mem: disk, w: &w.turns}
			return w.device, nil
		},
		Index:  func(string) (BlockIndex, error) { return index, nil },
		Room:   func() (int64, error) { return 1 << 30, nil },
		BootID: func() (string, error) { return "boot", nil },
		Now:    func() time.Time { return w.now },
		Random: func(b []byte) { fill(w.rng, b) },
		Wait:   w.wait, Log: func(string) {}, Sizes: pairSizes}
}

func (w *steppedPair) openPrimary() {
	w.t.Helper()
	c := VolumeConfig{Path: "/p", Mirrors: []MirrorConfig{{Name: "m"}}, Interval: 20 * time.Millisecond, BlockSize: pairBlock}
	p, err := OpenSteppedPrimary("v", c, "/state/v", [32]byte{7}, w.pEnv)
	if err != nil {
		w.t.Fatal(err)
	}
	w.p, w.pDevice, w.open = p, w.device, true
}

// connect dials, and has the session begin.
func (w *steppedPair) connect() {
	w.t.Helper()
	w.dials++
	w.down, w.up = &pairEnd{w: w}, &pairEnd{w: w}
	s := w.p.Mirror(0)
	a := s.Attach()
	var x *SteppedSession
	w.spawn(func() {
		var err error
		if x, err = w.x.Attach(w.up, &wire.Hello{Name: "p", Node: wire.Hash{7}}, a, "test"); err != nil {
			w.t.Errorf("attach: %v", err)
		}
	})
	w.until("the mirror answers", func() bool {
		if x != nil {
			w.up.Send(x.Out()...)
		}
		return len(w.up.sent) > 0
	})
	if err := s.Begin(w.down, &wire.Hello{Name: "m", Node: wire.Hash{8}}, w.up.take()); err != nil {
		w.t.Fatal(err)
	}
	w.s = x
}

// disconnect loses the connection and what is on it.
func (w *steppedPair) disconnect() {
	w.t.Helper()
	s := w.p.Mirror(0)
	s.End(wire.ErrReset)
	w.s.End(wire.ErrReset)
	gone := w.s
	w.s = nil
	w.until("all has returned", func() bool { return len(w.all) == 0 && !gone.Busy() })
	s.Lost(nil)
	w.spawn(gone.Lost)
	w.until("the mirror has let go", func() bool { return len(w.all) == 0 })
}

// step lets everything go on that can.
func (w *steppedPair) step() {
	w.now = w.now.Add(time.Millisecond)
	s := w.p.Mirror(0)
	if len(w.all) < 40 {
		w.spawn(func() { w.x.Own() })
		if w.open {
			w.spawn(func() { s.Drive() })
		}
		if w.s != nil {
			w.session(s, w.s)
		}
		if w.open && w.p.CheckpointDue() {
			if err := w.p.Checkpoint(); err != nil {
				w.t.Error(err)
			}
		}
	}
	w.round()
}

// session lets a session go on.
func (w *steppedPair) session(s *SteppedShipper, x *SteppedSession) {
	w.spawn(func() { s.Read() })
	w.spawn(func() { s.Read() })
	w.spawn(func() { s.Offer() })
	w.spawn(func() { x.Check() })
	w.spawn(func() { x.Place() })
	w.spawn(func() { x.Offer() })
	if ms := x.Out(); ms != nil {
		w.up.Send(ms...)
	}
	if m := w.down.take(); m != nil {
		if d, ok := m.(*wire.Data); ok {
			w.up.payload = d.Payload
		}
		if err := x.Handle(m); err != nil {
			w.t.Fatalf("the mirror does not take %T: %v", m, err)
		}
	}
	if m := w.up.take(); m != nil {
		if err := s.Handle(m); err != nil {
			w.t.Fatalf("the primary does not take %T: %v", m, err)
		}
	}
}

func (w *steppedPair) until(what string, so func() bool) {
	w.t.Helper()
	for range 50000 {
		if so() {
			return
		}
		w.step()
	}
	w.t.Fatalf("it never comes to pass that %s: %+v", what, w.p.Mirror(0).State())
}

// client asks for something.
func (w *steppedPair) client() {
	off := w.rng.Int64N(pairSize/512) * 512
	n := min(512*(1+w.rng.Int64N(64)), pairSize-off)
	b := make([]byte, n)
	fill(w.rng, b)
	kind := w.rng.IntN(8)
	w.spawn(func() {
		var err error
		switch kind {
		case 0:
			err = w.p.Zero(off, n, true)
		case 1:
			err = w.p.Flush()
		default:
			err = w.p.WriteAt(b, off)
		}
		if err != nil && !errors.Is(err, devtest.ErrDead) {
			w.t.Error(err)
		}
	})
}

// settle waits until the mirror has applied everything, and compares.
func (w *steppedPair) settle() {
	w.t.Helper()
	s := w.p.Mirror(0)
	w.until("the mirror has everything", func() bool {
		st := s.State()
		return len(w.all) < 20 && w.p.Needs(0).Count() == 0 && !st.BulkBase && st.Applied == st.Committed && st.Committed > 0
	})
	if !bytes.Equal(w.pDisk.Bytes(), w.xDisk.Bytes()) {
		w.t.Fatal("the mirror differs")
	}
}

func (w *steppedPair) quiet() {
	w.t.Helper()
	for range 20 {
		w.round()
	}
	w.until("all has returned", func() bool { return len(w.all) == 0 })
}

// life is a first pass, epochs under load over several connections, a comparison by offers, and clean stops.
func (w *steppedPair) life() {
	w.t.Helper()
	w.connect()
	for round := range 4 {
		for range 150 {
			if w.rng.IntN(3) == 0 {
				w.client()
			}
			w.step()
		}
		if round%2 == 0 {
			w.disconnect()
			w.connect()
		}
	}
	w.settle()
	w.spawn(func() {
		if err := w.p.IndexPass(); err != nil {
			w.t.Error(err)
		}
	})
	w.until("everything is indexed", func() bool { return w.p.NeedsIndex().Count() == 0 })
	for range 50 {
		w.client()
		w.step()
	}
	w.kill()
	w.connect()
	w.settle()
}

// kill ends the primary in the middle of whatever it does, and opens it again.
func (w *steppedPair) kill() {
	w.t.Helper()
	w.pDevice.killed = true
	w.open = false
	w.disconnect()
	w.openPrimary()
	if n := w.p.Needs(0).Count(); n == 0 {
		w.t.Error("after a kill nothing is in doubt")
	}
}

// A primary and a mirror without a goroutine come to be equal, and the same seed sends the same messages.
func TestSteppedPair(t *testing.T) {
	for seed := range uint64(10) {
		before := runtime.NumGoroutine()
		var traces []uint64
		for range 2 {
			w := newSteppedPair(t, seed)
			w.life()
			traces = append(traces, w.trace)
			w.stop()
			for _, kind := range []string{"*wire.Data", "*wire.Zero", "*wire.Rebase", "*wire.Commit", "*wire.Bulk", "*wire.Flush", "*wire.Offer", "*wire.Want"} {
				if w.kinds[kind] == 0 {
					t.Errorf("seed %d: no %s in %v", seed, kind, w.kinds)
				}
			}
		}
		if traces[0] != traces[1] {
			t.Errorf("seed %d: two runs differ", seed)
		}
		if n := runtime.NumGoroutine(); n > before {
			t.Errorf("seed %d: %d goroutines, there were %d", seed, n, before)
		}
	}
}

// A Commit that was decided while a page went back to be read again is not sent, and nothing is given up for it.
func TestCommitOfUnfinishedEpoch(t *testing.T) {
	w := newSteppedPair(t, 1)
	w.connect()
	w.settle()
	s := w.p.Mirror(0).s
	w.client()
	w.until("there is something to ship", func() bool {
		_, ok := s.core.MayShip()
		return ok && s.p.tracker.Counts(s.sets).Todo > 0
	})
	s.mu.Lock()
	m, tooMany := s.commitLocked(ship.Action{Kind: ship.SendCommit}, s.session)
	if m != nil || tooMany || s.full {
		t.Errorf("commit %+v, too many holes %t, no room %t", m, tooMany, s.full)
	}
	s.mu.Unlock()
	w.settle()
	if n := s.stats.givenUp.Load(); n != 0 {
		t.Errorf("%d cuts were given up", n)
	}
	w.stop()
}

// What a mirror cannot vouch for is compared and not shipped, also where the bulk into a blank mirror is under way:
// what was zeroed meanwhile is zeroed there, too.
func TestDoubtInBulk(t *testing.T) {
	w := newSteppedPair(t, 2)
	w.connect()
	s := w.p.Mirror(0).s
	w.until("the pass comes to its end", func() bool { return s.core.Flushing() != 0 && s.p.tracker.Counts(s.sets).Todo == 0 })
	w.spawn(func() {
		if err := w.p.Zero(0, 4*pairBlock, false); err != nil {
			t.Error(err)
		}
	})
	w.until("it is zeroed", func() bool { return len(w.all) < 20 && w.pDisk.Bytes()[0] == 0 })
	if err := w.p.Mirror(0).Handle(&wire.Doubt{Extents: []wire.Extent{{Offset: 8 * pairBlock, Length: pairBlock}}}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if w.kinds["*wire.Offer"] == 0 {
		t.Errorf("nothing was compared: %v", w.kinds)
	}
	w.stop()
}

// stop ends both cleanly, and looks whether the primary finds that again.
func (w *steppedPair) stop() {
	w.t.Helper()
	w.disconnect()
	w.open = false
	w.quiet()
	if err := w.p.Stop(); err != nil {
		w.t.Error(err)
	}
	w.openPrimary()
	if n := w.p.Needs(0).Count(); n != 0 {
		w.t.Errorf("%d pages are needed after a clean stop", n)
	}
	if w.p.Unproven() || slices.ContainsFunc(w.p.Facts().Mirrors, func(m journal.MirrorFacts) bool { return !m.Attached }) {
		w.t.Errorf("after a clean stop: %+v", w.p.Facts())
	}
	if err := w.p.Stop(); err != nil {
		w.t.Error(err)
	}
	w.open = false
	w.until("the mirror has stopped", w.x.Stop)
	w.quiet()
}
