package engine

import (
	"bytes"
	"iter"
	"math/rand/v2"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// turns runs coroutines in one thread, in an order of its own. Each request to a device gives the turn away.
type turns struct {
	t       *testing.T
	rng     *rand.Rand
	running *turn
	all     []*turn
}

type turn struct {
	next  func() (struct{}, bool)
	yield func(struct{}) bool
}

func (w *turns) spawn(do func()) {
	t := &turn{}
	t.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		do()
	})
	w.all = append(w.all, t)
}

// round lets every coroutine do something.
func (w *turns) round() {
	all := slices.Clone(w.all)
	w.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, t := range all {
		w.running = t
		if _, more := t.next(); !more {
			w.all = slices.DeleteFunc(w.all, func(o *turn) bool { return o == t })
		}
		w.running = nil
	}
}

func (w *turns) pass() {
	if w.running != nil {
		w.running.yield(struct{}{})
	}
}

func (w *turns) wait(try func() bool) {
	for !try() {
		if w.running == nil {
			w.t.Fatal("something waits outside of all coroutines")
		}
		w.pass()
	}
}

// turnDevice gives the turn away before and behind each request. It can be broken.
type turnDevice struct {
	memDevice
	w    *turns
	dead *bool
}

func (d turnDevice) ReadAt(p []byte, off int64) (int, error) {
	d.w.pass()
	defer d.w.pass()
	return d.memDevice.ReadAt(p, off)
}

func (d turnDevice) WriteAt(p []byte, off int64) (int, error) {
	d.w.pass()
	defer d.w.pass()
	return d.memDevice.WriteAt(p, off)
}

func (d turnDevice) Zero(off, n int64, mayFree bool) error {
	d.w.pass()
	defer d.w.pass()
	return d.memDevice.Zero(off, n, mayFree)
}

func (d turnDevice) Flush() error {
	d.w.pass()
	defer d.w.pass()
	if *d.dead {
		return &blockdev.Error{Op: "flush", Path: "/memory", Err: syscall.EIO}
	}
	return d.memDevice.Flush()
}

func (d turnDevice) NextData(off int64) (blockdev.Extent, error) {
	d.w.pass()
	return d.memDevice.NextData(off)
}

// sink is a connection of which one end is a test.
type sink struct {
	Conn
	sent    []wire.Message
	payload []byte
}

func (c *sink) Send(ms ...wire.Message) error { c.sent = append(c.sent, ms...); return nil }
func (c *sink) ReadPayload(dst []byte) error  { copy(dst, c.payload); return nil }
func (c *sink) Close(error)                   {}
func (c *sink) Established()                  {}
func (c *sink) Sent() int64                   { return 0 }
func (c *sink) Received() int64               { return 0 }
func (c *sink) RTT() time.Duration            { return 0 }

// steppedWorld is a mirror in steps, and a primary by hand.
type steppedWorld struct {
	*mirrorWorld
	turns
	now  time.Time
	x    *SteppedMirror
	s    *SteppedSession
	c    *sink
	p    *fakePrimary
	dead bool // the device
}

func newSteppedWorld(t *testing.T, size int64, seed uint64) *steppedWorld {
	w := &steppedWorld{mirrorWorld: newMirrorWorld(t, size), turns: turns{t: t, rng: rand.New(rand.NewPCG(seed, 3))}, now: time.Unix(1e9, 0)}
	w.p = &fakePrimary{t: t, w: w.mirrorWorld, content: make([]byte, size), incarnation: 11, volume: [16]byte{1},
		generation: wire.Generation{ID: [16]byte{9}, Counter: 1}, pages: map[int64]bool{}}
	w.p.change(0, size, seed)
	return w
}

func (w *steppedWorld) openStepped() {
	w.mirrorWorld.t.Helper()
	x, err := OpenSteppedMirror("v", VolumeConfig{Path: "/memory", StagingLimit: w.limit}, "/state/volumes/v", Surroundings{
		FS: w.fs,
		Device: func() (Device, error) {
			w.disk.Reopen()
			return turnDevice{memDevice{w.disk, w.mirrorWorld}, &w.turns, &w.dead}, nil
		},
		Index:  func(string) (BlockIndex, error) { return w.index, nil },
		Room:   func() (int64, error) { return 1 << 30, nil },
		BootID: func() (string, error) { return w.boot, nil },
		Now:    func() time.Time { return w.now },
		Random: func(b []byte) {
			for i := range b {
				b[i] = byte(w.rng.Uint32())
			}
		},
		Wait: w.wait, Log: func(string) {},
		Sizes: Sizes{Window: wire.MaxRun, Segment: 64 << 10, ReserveMin: 4 << 10, ReserveMax: 64 << 10, StagingSync: 128 << 10, Chunk: testBlock},
	}, w.spawn)
	if err != nil {
		w.mirrorWorld.t.Fatal(err)
	}
	w.x, w.s = x, nil
}

// step lets everything go on that can.
func (w *steppedWorld) step() {
	w.spawn(func() { w.x.Own() })
	if s := w.s; s != nil {
		w.spawn(func() { s.Check() })
		w.spawn(func() { s.Place() })
		w.spawn(func() { s.Place() })
		w.spawn(func() { s.Offer() })
		w.c.sent = append(w.c.sent, s.Out()...)
	}
	w.round()
}

// until steps until something is so.
func (w *steppedWorld) until(what string, so func() bool) {
	w.mirrorWorld.t.Helper()
	for range 10000 {
		if so() {
			return
		}
		w.step()
	}
	w.mirrorWorld.t.Fatalf("it never comes to pass that %s", what)
}

// quiet steps until nothing is under way any more.
func (w *steppedWorld) quiet() {
	w.mirrorWorld.t.Helper()
	w.until("all is quiet", func() bool { return len(w.all) == 0 && !w.x.Busy() && !w.x.Own() })
}

// attach dials in again, as a newer connection.
func (w *steppedWorld) attach() *wire.Attached {
	w.mirrorWorld.t.Helper()
	w.p.connection++
	a := &wire.Attach{Volume: "v", VolumeID: w.p.volume, Generation: w.p.generation, Incarnation: w.p.incarnation, Connection: w.p.connection,
		Size: w.size, BlockSize: testBlock}
	c, done := &sink{}, false
	former := w.s
	w.spawn(func() {
		s, err := w.x.Attach(c, &wire.Hello{Name: "primary", Node: wire.Hash{5}}, a, "test")
		if err != nil {
			w.mirrorWorld.t.Errorf("attach: %v", err)
		}
		w.s, w.c, done = s, c, true
	})
	w.until("the primary has attached", func() bool {
		if former != nil && former.Ended() != nil && !former.Busy() {
			former.Lost()
			former = nil
		}
		return done
	})
	var answer *wire.Attached
	w.until("it is answered", func() bool { answer = found[*wire.Attached](w.c); return answer != nil })
	return answer
}

// found is the last message of a type that was sent.
func found[T wire.Message](c *sink) (last T) {
	for _, m := range c.sent {
		if t, ok := m.(T); ok {
			last = t
		}
	}
	return last
}

func (w *steppedWorld) send(ms ...wire.Message) {
	w.mirrorWorld.t.Helper()
	for _, m := range ms {
		if d, ok := m.(*wire.Data); ok {
			w.c.payload = d.Payload
			d.PayloadLength = len(d.Payload)
		}
		if err := w.s.Handle(m); err != nil {
			w.mirrorWorld.t.Fatalf("%T: %v", m, err)
		}
	}
}

// bulk brings everything there in place.
func (w *steppedWorld) bulk(number uint64) {
	w.mirrorWorld.t.Helper()
	w.send(&wire.Bulk{Number: number})
	for off := int64(0); off < w.size; off += testBlock {
		w.send(w.p.frame(0, off, min(testBlock, w.size-off)))
	}
	w.p.change(0, testBlock, 99) // overtaken while it may still be under way
	w.send(w.p.frame(0, 0, testBlock), &wire.Flush{Number: number})
	w.until("it is flushed", func() bool { return found[*wire.Flushed](w.c) != nil })
}

// begin begins an epoch, or carries one over.
func (w *steppedWorld) begin(base, old, number uint64) {
	w.mirrorWorld.t.Helper()
	p := w.p
	if old == 0 {
		p.chain, p.pages = wire.Chain{}, map[int64]bool{}
	}
	p.seq++
	r := &wire.Rebase{Seq: p.seq, Base: base, Old: old, New: number}
	p.chain.AddRebase(r)
	w.send(r)
}

// stage ships some pages and a zero.
func (w *steppedWorld) stage(number uint64) {
	w.mirrorWorld.t.Helper()
	p := w.p
	for range 12 {
		off := w.rng.Int64N(w.size/blockdev.PageSize) * blockdev.PageSize
		n := min(blockdev.PageSize*(1+w.rng.Int64N(4)), testBlock-off%testBlock, w.size-off)
		p.change(off, n, w.rng.Uint64())
		d := p.frame(number, off, n)
		w.send(d)
		p.chain.Add(d)
		w.touched(off, n)
	}
	p.seq++
	z := &wire.Zero{Seq: p.seq, Epoch: number, Offset: testBlock, Length: 2 * testBlock, Flags: wire.ZeroMayFree}
	clear(p.content[z.Offset:][:z.Length])
	w.send(z)
	p.chain.AddZero(z)
	w.touched(z.Offset, z.Length)
}

func (w *steppedWorld) commit(base, number uint64) {
	w.mirrorWorld.t.Helper()
	w.send(&wire.Commit{Epoch: number, Base: base, Records: w.p.chain.Records(), Pages: uint64(len(w.p.pages)), Chain: w.p.chain.Sum()})
	w.until("it is committed", func() bool { c := found[*wire.Committed](w.c); return c != nil && c.Epoch == number })
}

// offer has the mirror compare everything, and tells whether all is equal there.
func (w *steppedWorld) offer() (equal bool) {
	w.mirrorWorld.t.Helper()
	w.p.seq++
	o := &wire.Offer{Seq: w.p.seq, Length: uint32(w.size), Unit: testBlock}
	for off := int64(0); off < w.size; off += testBlock {
		o.Hashes = append(o.Hashes, wire.Sum(w.p.content[off:min(off+testBlock, w.size)]))
	}
	w.send(o)
	w.until("the offer is answered", func() bool { return found[*wire.Want](w.c) != nil })
	return !slices.ContainsFunc(found[*wire.Want](w.c).Bits, func(b byte) bool { return b != 0 })
}

// crash is a power cut.
func (w *steppedWorld) crash(seed uint64) {
	w.x.Crash()
	for range 1000 {
		w.round()
	}
	if len(w.all) > 0 {
		w.mirrorWorld.t.Fatalf("%d coroutines do not end", len(w.all))
	}
	w.mirrorWorld = w.mirrorWorld.crash(seed)
}

func (w *steppedWorld) touched(off, n int64) {
	for at := off; at < off+n; at += blockdev.PageSize {
		w.p.pages[at] = true
	}
}

// stopped ends it cleanly.
func (w *steppedWorld) stopped() {
	w.mirrorWorld.t.Helper()
	s := w.s
	w.until("the mirror has stopped", func() bool {
		if s != nil && s.Ended() != nil && !s.Busy() {
			s.Lost()
			s = nil
		}
		return w.x.Stop()
	})
	w.until("all have returned", func() bool { return len(w.all) == 0 })
	if err := w.x.Failed(); err != nil {
		w.mirrorWorld.t.Fatal(err)
	}
}

// A whole life without a goroutine: a first pass in place, epochs, a connection that is replaced, a crash
// between commit and apply, offers, a clean stop.
func TestSteppedMirror(t *testing.T) {
	for seed := range uint64(20) {
		testSteppedMirror(t, seed)
	}
}

func testSteppedMirror(t *testing.T, seed uint64) {
	const size = 8*testBlock + 5*blockdev.PageSize
	w := newSteppedWorld(t, size, seed)
	before := runtime.NumGoroutine()
	w.made.Store(true)
	w.openStepped()
	if a := w.attach(); a.Flags&wire.AttachedInconsistent == 0 || a.Size != size {
		t.Errorf("a blank mirror says %+v", a)
	}
	w.bulk(1)
	w.begin(1, 0, 2)
	w.stage(2)
	w.commit(1, 2)
	w.quiet()
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, there were %d", n, before)
	}
	w.mustHold(w.p.content)

	w.begin(2, 0, 3)
	w.stage(3)
	w.quiet()
	if a := w.attach(); a.StagedNumber != 3 || a.LastCut != 2 || a.StagedChain != w.p.chain.Sum() {
		t.Errorf("after a lost connection: %+v", a)
	}
	w.begin(2, 3, 4)
	w.stage(4)
	w.commit(2, 4)
	overlay := w.disk.Bytes()
	if err := w.x.Overlay(overlay); err != nil || len(w.x.Facts().Mirror.Epochs) > 0 && !bytes.Equal(overlay, w.p.content) {
		t.Errorf("staging over the device is not cut 4: %v", err)
	}
	for range w.rng.IntN(20) {
		w.step()
	}

	w.crash(seed)
	w.openStepped()
	if a := w.attach(); a.LastCut != 4 || a.Applied != 4 {
		t.Errorf("after a crash: %+v", a)
	}
	w.mustHold(w.p.content)
	if !w.offer() {
		t.Errorf("the mirror says that it differs")
	}
	w.stopped()
	w.mustIndex()
	w.openStepped()
	if f := w.x.Facts(); f.Mirror.Applied != 4 || f.Clean || w.x.DoubtPages() != 0 {
		t.Errorf("after a clean stop: %+v", f)
	}
	w.stopped()
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines at the end, there were %d", n, before)
	}
}

// A device that fails ends the session; the mirror goes on when it is tried again.
func TestSteppedMirrorFails(t *testing.T) {
	const size = 8 * testBlock
	w := newSteppedWorld(t, size, 1)
	w.made.Store(true)
	w.openStepped()
	w.attach()
	w.bulk(1)
	w.begin(1, 0, 2)
	w.stage(2)
	w.dead = true
	w.commit(1, 2)
	w.until("the session ends", func() bool { return w.s.Ended() != nil })
	w.until("nothing of it runs", func() bool { return !w.s.Busy() })
	w.s.Lost()
	if h, ok := w.c.sent[len(w.c.sent)-1].(*wire.Halt); !ok || h.Code != wire.CodeDevice {
		t.Errorf("the last word was %T", w.c.sent[len(w.c.sent)-1])
	}
	w.s = nil
	w.until("the mirror has failed", func() bool { return w.x.Failed() != nil })
	w.dead = false
	w.x.Retry()
	w.x.Measure()
	w.until("it is applied", func() bool { return w.x.Facts().Mirror.Applied == 2 })
	w.quiet()
	if err := w.x.Failed(); err != nil {
		t.Error(err)
	}
	w.mustHold(w.p.content)
	w.attach()

	// Somebody else waits for a while, and not for ever.
	var err error
	w.p.incarnation++
	w.spawn(func() {
		_, err = w.x.Attach(&sink{}, &wire.Hello{Node: wire.Hash{5}}, &wire.Attach{VolumeID: w.p.volume, Incarnation: w.p.incarnation,
			Generation: w.p.generation, Size: size, BlockSize: testBlock}, "another")
	})
	w.until("it gives up", func() bool {
		w.now = w.now.Add(time.Second)
		return err != nil
	})
	if codeOf(err) != wire.CodeBusy {
		t.Error(err)
	}
	w.s.End(wire.ErrReset)
	w.stopped()
}
