package track

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

const page = blockdev.PageSize

// heap is Buffers without a limit.
type heap struct{}

func (heap) Get(_ context.Context, n int) ([]byte, error) { return make([]byte, n), nil }
func (heap) Put([]byte)                                   {}

// rig is a Path over a device with one consumer.
type rig struct {
	t     *testing.T
	clock *clock
	mem   *devtest.Mem
	dev   *devtest.Faults
	tr    *Tracker
	path  *Path
	m     *Sets

	mu     sync.Mutex
	failed int
	gaveUp []*Sets
	holes  []Run
}

func newRig(t *testing.T, size int64, capture CaptureConfig) *rig {
	g := &rig{t: t, clock: newClock(), mem: devtest.NewMem(size+3*page, 512, 1)}
	g.dev = devtest.NewFaults(g.mem)
	g.open(size, g.dev, capture)
	return g
}

func (g *rig) open(size int64, dev blockdev.Device, capture CaptureConfig) {
	pages := uint64((size + page - 1) / page)
	capture.Pages, capture.BlockPages = pages, 16
	g.tr = NewTracker(pages, nullMarker{}, g.clock.now)
	g.m = g.tr.AddConsumer("m", NewCapture(capture))
	var err error
	g.path, err = NewPath(Config{Device: dev, Size: size, BlockSize: 64 << 10, Tracker: g.tr, Observer: Observer{
		Failed: func(string, int64, int64, error) { g.mu.Lock(); defer g.mu.Unlock(); g.failed++ },
		GaveUp: func(s *Sets, _ error) { g.mu.Lock(); defer g.mu.Unlock(); g.gaveUp = append(g.gaveUp, s) },
		Hole:   func(_ *Sets, r Run, _ error) { g.mu.Lock(); defer g.mu.Unlock(); g.holes = append(g.holes, r) },
	}})
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) write(first, pages int64, b byte) {
	g.t.Helper()
	if err := g.path.WriteAt(bytes.Repeat([]byte{b}, int(pages*page)), first*page); err != nil {
		g.t.Fatal(err)
	}
}

// fetch reads the pass to its end.
func (g *rig) fetch() (out []Piece) {
	g.t.Helper()
	for {
		p, more, err := g.path.ReadClosed(context.Background(), g.m, 1<<20, heap{})
		if err != nil {
			g.t.Fatal(err)
		}
		out = append(out, p...)
		if !more {
			return out
		}
	}
}

func (g *rig) counts(want Counts) {
	g.t.Helper()
	got := g.tr.Counts(g.m)
	got.Needs = want.Needs
	if got != want {
		g.t.Errorf("%+v, want %+v", got, want)
	}
}

var inMemory = CaptureConfig{Memory: 1 << 20}

func TestPathAgainstModel(t *testing.T) {
	for _, cheap := range []bool{true, false} {
		for seed := range uint64(4) {
			const size = 300*page + 777
			g := newRig(t, size, inMemory)
			if !cheap {
				g.open(size, dearZero{g.dev}, inMemory)
			}
			rng := rand.New(rand.NewPCG(seed, 4))
			want := make([]byte, size)
			for range 300 {
				off := rng.Int64N(size)
				n := rng.Int64N(min(size-off, 1<<rng.IntN(18)) + 1)
				switch rng.IntN(5) {
				case 0, 1:
					b := bytes.Repeat([]byte{byte(rng.Uint32())}, int(n))
					copy(want[off:], b)
					if err := g.path.WriteAt(b, off); err != nil {
						t.Fatal(err)
					}
				case 2:
					clear(want[off : off+n])
					if err := g.path.Zero(off, n, rng.IntN(2) == 0); err != nil {
						t.Fatal(err)
					}
				case 3:
					lo, hi := (off+page-1)/page*page, (off+n)/page*page
					if off+n == size {
						hi = size
					}
					if cheap && lo < hi {
						clear(want[lo:hi])
					}
					before := g.tr.Counts(g.m).Open
					if err := g.path.Trim(off, n); err != nil {
						t.Fatal(err)
					}
					if !cheap && g.tr.Counts(g.m).Open != before {
						t.Fatal("a trim that does nothing made pages dirty")
					}
				case 4:
					got := make([]byte, n)
					if err := g.path.ReadAt(got, off); err != nil || !bytes.Equal(got, want[off:off+n]) {
						t.Fatalf("read %d+%d: %v", off, n, err)
					}
				}
			}
			if got := g.mem.Bytes(); !bytes.Equal(got[:size], want) || !blockdev.IsZero(got[size:]) {
				t.Fatal("the device is not what was written")
			}
			for at := int64(0); at < size; {
				x, err := g.path.NextData(at)
				if err != nil || x.End() > size || !blockdev.IsZero(want[at:x.Offset]) {
					t.Fatalf("NextData(%d): %+v, %v", at, x, err)
				}
				at = max(at+1, x.End())
			}
		}
	}
}

type dearZero struct{ blockdev.Device }

func (d dearZero) Info() blockdev.Info {
	i := d.Device.Info()
	i.CheapZero, i.KnowsHoles = false, false
	return i
}

func TestPathBounds(t *testing.T) {
	g := newRig(t, 10*page+5, inMemory)
	for _, x := range [][2]int64{{-1, 1}, {10 * page, 6}, {10*page + 6, 0}, {0, -1}, {1 << 62, 1 << 62}} {
		if x[1] >= 0 && x[1] < 100 {
			b := make([]byte, x[1])
			if err := g.path.WriteAt(b, x[0]); !errors.Is(err, blockdev.ErrOutOfRange) {
				t.Errorf("write %v: %v", x, err)
			}
			if err := g.path.ReadAt(b, x[0]); !errors.Is(err, blockdev.ErrOutOfRange) {
				t.Errorf("read %v: %v", x, err)
			}
		}
		if err := g.path.Zero(x[0], x[1], false); !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("zero %v: %v", x, err)
		}
		if err := g.path.Trim(x[0], x[1]); !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("trim %v: %v", x, err)
		}
	}
	g.counts(Counts{})
	for _, cfg := range []Config{
		{Device: g.mem, Size: 1 << 30, BlockSize: 65536, Tracker: g.tr},
		{Device: g.mem, Size: 12 * page, BlockSize: 65536, Tracker: g.tr},
		{Device: g.mem, Size: 10*page + 5, BlockSize: 5000, Tracker: g.tr},
	} {
		if _, err := NewPath(cfg); err == nil {
			t.Errorf("no error for %+v", cfg)
		}
	}
}

func TestCaptureBeforeWrite(t *testing.T) {
	g := newRig(t, 100*page+100, inMemory)
	g.write(0, 3, 1)
	g.write(90, 10, 2)
	if err := g.path.WriteAt([]byte{7}, 100*page+50); err != nil {
		t.Fatal(err)
	}
	g.tr.CutStep(g.m.Epoch())
	reads := g.dev.Calls(devtest.OpRead)
	g.write(1, 20, 9)
	g.write(1, 20, 10) // captured already
	if n := g.dev.Calls(devtest.OpRead) - reads; n != 1 {
		t.Errorf("%d reads to capture, want 1", n)
	}
	if err := g.path.WriteAt([]byte{8}, 100*page+99); err != nil {
		t.Fatal(err)
	}
	g.counts(Counts{Open: 21, Todo: 11, Staged: 3, Captured: 3})
	got := make([]byte, 101*page)
	for _, p := range g.fetch() {
		if p.Length != int64(len(p.Data)) || p.Err != nil {
			t.Errorf("%+v", p)
		}
		copy(got[p.First*page:], p.Data)
	}
	want := make([]byte, 101*page)
	copy(want, bytes.Repeat([]byte{1}, 3*page))
	copy(want[90*page:], bytes.Repeat([]byte{2}, 10*page))
	want[100*page+50] = 7
	if !bytes.Equal(got, want) {
		t.Error("what was shipped is not what the cut was")
	}
	if err := g.tr.StartCommit(g.m); err != nil {
		t.Error(err)
	}
}

func TestHolesAndZeroesArePassedOver(t *testing.T) {
	const pages = 20000 // 78 MiB
	g := newRig(t, pages*page, inMemory)
	g.write(pages/2+5, 1, 1)
	g.write(pages/2+300, 40, 0)
	g.tr.Dirty(g.m, 0, pages)
	g.tr.CutStep(g.m.Bulk())
	reads := g.dev.Calls(devtest.OpRead)
	var zeroes, data uint64
	pieces := g.fetch()
	for _, p := range pieces {
		if p.Zero {
			zeroes += p.Count
		} else {
			data += p.Count
		}
	}
	if data > 16 || zeroes+data != pages || len(pieces) > 10 || g.dev.Calls(devtest.OpRead)-reads > 2 {
		t.Errorf("%d data, %d zeroes, %d pieces, %d reads", data, zeroes, len(pieces), g.dev.Calls(devtest.OpRead)-reads)
	}
	g.counts(Counts{Staged: pages})
}

func TestUnreadablePages(t *testing.T) {
	g := newRig(t, 600*page, inMemory)
	g.write(0, 600, 1)
	bad := devtest.Rule{Op: devtest.OpRead, When: devtest.Touches(100*page+1, 1), Effect: devtest.Fail(syscall.EIO)}
	g.dev.Inject(bad)
	bad.When = devtest.Touches(300*page, page)
	g.dev.Inject(bad)
	g.tr.CutStep(g.m.Epoch())
	g.write(290, 20, 2) // captures, and meets one
	g.counts(Counts{Open: 20, Todo: 580, Staged: 19, Holes: 1, Captured: 19})
	var count uint64
	for _, p := range g.fetch() {
		count += p.Count
		if (p.Err != nil) != (p.First == 100) {
			t.Errorf("%d+%d: %v", p.First, p.Count, p.Err)
		}
	}
	if runs := g.tr.Holes(g.m, 9); count != 599 || len(runs) != 2 || runs[0] != (Run{100, 1}) || runs[1] != (Run{300, 1}) {
		t.Errorf("%d pages, holes %v", count, runs)
	}
	if g.failed != 2 || len(g.holes) != 2 {
		t.Errorf("told of %d failures and %d holes", g.failed, len(g.holes))
	}
	if err := g.tr.StartCommit(g.m); err != nil {
		t.Fatal(err)
	}
	g.tr.Committed(g.m)
	g.counts(Counts{Open: 20, Holes: 2})
	g.dev.Clear()
	g.tr.RetryHoles(g.m)
	g.tr.CutStep(g.m.Epoch())
	if g.fetch(); !g.tr.Shipped(g.m) {
		t.Error("something is left")
	}
	g.counts(Counts{Staged: 21})
}

func TestFailedWriteIsDirty(t *testing.T) {
	g := newRig(t, 100*page, inMemory)
	g.dev.Inject(devtest.Rule{Op: devtest.OpWrite, Times: 1, Effect: devtest.Fail(syscall.EIO)})
	if err := g.path.WriteAt(make([]byte, page), 0); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	g.dev.Inject(devtest.Rule{Op: devtest.OpZero, Times: 1, Effect: devtest.FailLate(syscall.EIO)})
	if err := g.path.Zero(page, page, false); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	g.counts(Counts{Open: 2})
	if g.failed != 2 || g.tr.all[0].inFlight.Load() != 0 || len(g.path.locks.asked) != 0 || g.path.gate.inside.Load() != 0 {
		t.Error("a failed write is not over, or was not told")
	}
}

func TestFullCaptureGivesUp(t *testing.T) {
	g := newRig(t, 1000*page, CaptureConfig{Memory: 20 * page})
	g.write(0, 1000, 1)
	g.tr.CutStep(g.m.Epoch())
	g.write(0, 20, 2)
	g.counts(Counts{Open: 20, Todo: 980, Staged: 20, Captured: 20})
	reads := g.dev.Calls(devtest.OpRead)
	g.write(30, 1, 2)
	g.counts(Counts{Open: 21, Todo: 1000})
	if len(g.gaveUp) != 1 || g.dev.Calls(devtest.OpRead) != reads {
		t.Errorf("gave up %d times, read %d times", len(g.gaveUp), g.dev.Calls(devtest.OpRead)-reads)
	}
	if _, _, err := g.path.ReadClosed(context.Background(), g.m, 1<<20, heap{}); !errors.Is(err, ErrGivenUp) {
		t.Error(err)
	}
	if err := g.tr.StartCommit(g.m); !errors.Is(err, ErrGivenUp) {
		t.Error(err)
	}
	if memory, _ := g.m.capture.Used(); memory != 0 {
		t.Errorf("%d bytes are taken by nothing", memory)
	}
	g.tr.CutStep(g.m.Epoch())
	if err := g.path.Trim(0, 1000*page); err != nil {
		t.Fatal(err)
	}
	if len(g.gaveUp) != 2 || g.dev.Calls(devtest.OpRead) != reads {
		t.Error("a trim over more than fits read, or did not give up")
	}
}

// TestLargeZeroGivesUpFirst: the sum counts, not the pieces, each of which would fit.
func TestLargeZeroGivesUpFirst(t *testing.T) {
	const pages = 3 << 14 // 192 MiB
	g := newRig(t, pages*page, CaptureConfig{Memory: 100 << 20})
	g.open(pages*page, zeroed{g.dev}, CaptureConfig{Memory: 100 << 20})
	g.tr.Dirty(g.m, 0, pages)
	g.tr.CutStep(g.m.Epoch())
	if err := g.path.Zero(page, (pages-1)*page, true); err != nil {
		t.Fatal(err)
	}
	if len(g.gaveUp) != 1 || g.dev.Calls(devtest.OpRead) != 0 || g.dev.Calls(devtest.OpZero) != 0 {
		t.Errorf("gave up %d times, %d reads", len(g.gaveUp), g.dev.Calls(devtest.OpRead))
	}
	g.counts(Counts{Open: pages - 1, Todo: pages})
}

// zeroed is a device on which Zero does nothing, at once.
type zeroed struct{ blockdev.Device }

func (zeroed) Zero(int64, int64, bool) error { return nil }

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 10*page, inMemory)
		held := make(chan bool)
		g.dev.Inject(devtest.Rule{Op: devtest.OpWrite, Times: 1, Effect: devtest.Hook(func(devtest.Call) { <-held })})
		wrote := make(chan error, 1)
		go func() { wrote <- g.path.WriteAt(make([]byte, page), 0) }()
		synctest.Wait()
		why := errors.New("demoted")
		g.path.Refuse(why)
		for _, err := range []error{
			g.path.WriteAt(make([]byte, 1), 0), g.path.Zero(0, 1, false), g.path.Trim(0, page), g.path.Refused(),
		} {
			if !errors.Is(err, why) {
				t.Error(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.path.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error("drained with a write under way:", err)
		}
		drained := make(chan error, 1)
		go func() { drained <- g.path.Drain(t.Context()) }()
		synctest.Wait()
		close(held)
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		if err := g.path.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		g.path.Admit()
		g.write(0, 1, 1)
		if len(g.path.gate.idle) != 0 || g.path.gate.drains.Load() != 0 {
			t.Error("a drain is left")
		}
	})
}

func TestReread(t *testing.T) {
	g := newRig(t, 10*page, inMemory)
	g.write(0, 4, 1)
	g.tr.CutStep(g.m.Epoch())
	g.fetch()
	g.write(2, 1, 2)
	buf := make([]byte, 10*page)
	if ok, err := g.path.Reread(g.m, 0, 2, buf); !ok || err != nil || buf[0] != 1 {
		t.Error(ok, err)
	}
	if ok, err := g.path.Reread(g.m, 1, 2, buf); ok || err != nil {
		t.Error("a rewritten page was reread:", ok, err)
	}
	if g.tr.WantAgain(g.m, []Run{{0, 3}}) {
		t.Error("a rewritten page is wanted again")
	}
	g.counts(Counts{Open: 1, Todo: 2, Staged: 2})
	if err := g.path.ReadRange(2, 2, buf); err != nil || buf[0] != 2 || buf[page] != 1 {
		t.Error("ReadRange:", err)
	}
}
