package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/wire"
)

// What a recheck has found must survive the end of the run that found it: the next run, and the one
// after, must still know that the block is not what it should be.
func TestRecheckKeepsItsEvidence(t *testing.T) {
	s := newSyncer(t)
	src := denseImage(t, 32*mib, 21)
	dst := filepath.Join(t.TempDir(), "dst")
	s.stopWhen(src, dst, 10*time.Millisecond, func(p *Progress) bool { return p.Durable.Load() > 2*mib })
	writeAt(t, dst, make([]byte, DefaultBlockSize), 5*DefaultBlockSize) // zeroes: what "no entry" stands for

	for range 2 {
		// Stopped when the recheck is through, long before the run could ship what it found: the recheck
		// reads a few MiB, and the rate leaves it seconds.
		s.stopAtRead(src, dst, 2*mib-1, 100*time.Millisecond)
	}
	s.run(src, dst)
	mustEqual(t, src, dst)
}

// A recheck that was cut off vouches for nothing.
func TestRecheckCutOffIsNotClean(t *testing.T) {
	s := newSyncer(t)
	src := denseImage(t, 32*mib, 22)
	dst := filepath.Join(t.TempDir(), "dst")
	s.stopWhen(src, dst, 10*time.Millisecond, func(p *Progress) bool { return p.Durable.Load() > 4*mib })
	writeAt(t, dst, []byte("a stranger was here"), 3*mib)

	s.stopAtRead(src, dst, 0, 0) // while the first MiB is compared
	s.run(src, dst)
	mustEqual(t, src, dst)
}

// stopAtRead runs a sync, slowly, and stops it when its target is read at off, or a little after.
func (s *syncer) stopAtRead(src, dst string, off int64, after time.Duration) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	var once sync.Once
	stop := withFaults(devtest.Rule{Op: devtest.OpRead, When: devtest.Touches(off, 1), Effect: devtest.Hook(func(devtest.Call) {
		once.Do(func() {
			if after == 0 {
				cancel()
			} else {
				time.AfterFunc(after, cancel)
			}
		})
	})})
	_, err := s.try(ctx, src, dst, func(o *SyncOptions) { o.openTarget, o.RateLimit, o.NoCompress = stop, 2*mib, true })
	if !errors.Is(err, context.Canceled) {
		s.t.Fatalf("got %v, want it stopped", err)
	}
}

// A target that takes long to flush is not asked again before it has answered.
func TestSlowFlush(t *testing.T) {
	s := newSyncer(t)
	src := denseImage(t, 32*mib, 23)
	dst := filepath.Join(t.TempDir(), "dst")
	var mu sync.Mutex
	flushes, open := 0, make(chan struct{})
	slow := withFaults(devtest.Rule{Op: devtest.OpFlush, Effect: devtest.Hook(func(devtest.Call) {
		mu.Lock()
		flushes++
		first := flushes == 1
		mu.Unlock()
		if first {
			<-open
		}
	})})
	prog := new(Progress)
	var release sync.WaitGroup
	release.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for prog.Shipped.Load() < 24*mib { // far more than ten intervals
			<-tick.C
		}
		close(open)
	})
	s.run(src, dst, func(o *SyncOptions) {
		o.Progress, o.openTarget, o.flushEvery, o.RateLimit, o.NoCompress = prog, slow, 10*time.Millisecond, 32*mib, true
	})
	release.Wait()
	mustEqual(t, src, dst)
}

// uncounted is a disk whose writes nobody counts.
type uncounted struct{ *blockdev.File }

func (u uncounted) Facts() (blockdev.Facts, error) {
	return blockdev.Facts{Block: true, Size: u.Info().Size, BootID: "b", DiskSeq: 7}, nil
}

// A source of which nobody can tell whether it was written to is never gone on with.
func TestUncountedSourceIsNotResumed(t *testing.T) {
	s := newSyncer(t)
	s.edit = func(o *SyncOptions) {
		o.openSource = func(path string, bo blockdev.Options) (device, error) {
			f, err := blockdev.Open(path, bo)
			return uncounted{f}, err
		}
	}
	src := denseImage(t, 32*mib, 24)
	dst := filepath.Join(t.TempDir(), "dst")
	s.stopAfterProgress(src, dst)
	writeAt(t, src, []byte("changed"), 100)
	s.run(src, dst)
	mustEqual(t, src, dst)
}

// A target that says that all is done, and has confirmed nothing, is not believed.
func TestByeIsNotCommitted(t *testing.T) {
	addr := hostileTarget(t, func(c *wire.Conn, o *wire.Open) {
		c.Send(&wire.Opened{Size: o.Size, Window: windowBytes, MaxOffers: 1}, &wire.Bye{Code: wire.CodeDone})
	})
	_, err := newSyncer(t).try(t.Context(), image(t, "src", 4*mib, 1), "blk://"+addr+"/v", func(o *SyncOptions) { o.Retry = 0 })
	wantKind(t, err, KindNetwork)
}

// A target may grant whatever it likes: what is open at the source has a limit of its own.
func TestSourceBoundsWhatIsOpen(t *testing.T) {
	const blockSize, size = 4096, 96 * mib // 24 Ki blocks
	opened := make(chan struct{})
	addr := hostileTarget(t, func(c *wire.Conn, o *wire.Open) {
		c.Send(&wire.Opened{Size: o.Size, Window: 1 << 60, MaxOffers: 24})
		close(opened)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	end, err := openSource(denseImage(t, size, 9), openFile, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer end.dev.Close()
	nc, err := wire.Dial(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	conn := wire.NewConn(nc, wire.ConnOptions{})
	if _, err := greet(conn, &wire.Hello{Role: wire.RoleSource, Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	conn.Established()
	g := geometry{size: size, blockSize: blockSize}
	answer, err := openTargetSide(ctx, conn, &wire.Open{BlockSize: blockSize, Size: size}, g)
	if err != nil {
		t.Fatal(err)
	}
	s := newSource(newLink(ctx, conn, new(Progress)), g, end.dev, answer, sourceOptions{flushEvery: time.Hour, changed: end.changed})
	var run sync.WaitGroup
	run.Go(func() { s.run(s.handle, s.work) })
	open := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.unacked)
	}
	eventually(t, "the budget is used up", func() bool { return open() > maxUnacked-chunkSize/blockSize })
	if n := open(); n > maxUnacked {
		t.Errorf("%d records are open, the limit is %d", n, maxUnacked)
	}
	cancel()
	run.Wait()
}

func TestDryRunOntoEmptyFile(t *testing.T) {
	s := newSyncer(t)
	src := image(t, "src", 4*mib, 1)
	dst := filepath.Join(t.TempDir(), "dst")
	if err := os.WriteFile(dst, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	would := s.run(src, dst, func(o *SyncOptions) { o.DryRun = true })
	if did := s.run(src, dst); would.ShippedBytes != did.ShippedBytes {
		t.Errorf("would ship %d, shipped %d", would.ShippedBytes, did.ShippedBytes)
	}
}

// A disk may share its bytes with more devices than one frame used to hold.
func TestSameDeviceAmongMany(t *testing.T) {
	names := make([]string, wire.MaxDevices)
	for i := range names {
		names[i] = string(rune('a'+i/26)) + string(rune('a'+i%26))
	}
	if got := len(hashNames(names)); got != len(names) {
		t.Fatalf("%d of %d devices are told", got, len(names))
	}
}

func writeAt(t *testing.T, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}
