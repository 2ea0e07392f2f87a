package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

func TestSyncLocal(t *testing.T) {
	for _, size := range []int64{512, 4096, 65536, 100 * 1000, 1<<20 + 1, 9*mib + 12345, 64 * mib} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newSyncer(t)
			src := image(t, "src", size, uint64(size))
			dst := filepath.Join(t.TempDir(), "dst")
			rep := s.run(src, dst)
			mustEqual(t, src, dst)
			if rep.Size != size || rep.ScannedBytes != size || rep.ShippedBytes+rep.SkippedBytes+rep.ZeroBytes != size {
				t.Errorf("first run: %+v", rep)
			}
			rep = s.run(src, dst)
			mustEqual(t, src, dst)
			if rep.ShippedBytes != 0 || rep.ScannedBytes != size || rep.SkippedBytes+rep.ZeroBytes != size {
				t.Errorf("second run: %+v", rep)
			}
		})
	}
}

func TestSyncShipsWhatChanged(t *testing.T) {
	for _, bs := range []int{4096, 65536, 1 << 20} {
		t.Run(fmt.Sprint(bs), func(t *testing.T) {
			s := newSyncer(t)
			s.edit = func(o *SyncOptions) { o.BlockSize = bs }
			src := image(t, "src", 32*mib, 7)
			dst := filepath.Join(t.TempDir(), "dst")
			s.run(src, dst)
			scribble(t, src, 20, 1)
			rep := s.run(src, dst)
			mustEqual(t, src, dst)
			if rep.ShippedBytes == 0 || rep.ShippedBytes > 20*int64(bs) {
				t.Errorf("shipped %d bytes for 20 changed pages", rep.ShippedBytes)
			}
		})
	}
}

// A target with any content at all becomes the source, holes and zeroes included.
func TestSyncOntoData(t *testing.T) {
	s := newSyncer(t)
	for seed := range uint64(6) {
		src := image(t, "src", 20*mib+777, seed)
		dst := image(t, "dst", 20*mib+777, seed+100)
		s.run(src, dst, func(o *SyncOptions) { o.Verify = seed%2 == 0; o.NoCompress = seed%3 == 0 })
		mustEqual(t, src, dst)
	}
}

func TestSyncTruncatedTargetFile(t *testing.T) {
	s := newSyncer(t)
	src := image(t, "src", 5*mib, 3)
	dst := filepath.Join(t.TempDir(), "dst")
	if err := os.WriteFile(dst, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(src, dst)
	mustEqual(t, src, dst)
}

func TestDryRunChangesNothing(t *testing.T) {
	s := newSyncer(t)
	src := image(t, "src", 8*mib, 5)
	dst := filepath.Join(t.TempDir(), "dst")
	dry := func(o *SyncOptions) { o.DryRun = true }
	would := s.run(src, dst, dry)
	if _, err := os.Stat(dst); !os.IsNotExist(err) {
		t.Fatalf("a dry run made the target: %v", err)
	}
	did := s.run(src, dst)
	if would.ShippedBytes != did.ShippedBytes {
		t.Errorf("would ship %d, did ship %d", would.ShippedBytes, did.ShippedBytes)
	}
	scribble(t, src, 5, 9)
	before, _ := os.ReadFile(dst)
	would = s.run(src, dst, dry)
	after, _ := os.ReadFile(dst)
	if string(before) != string(after) {
		t.Error("a dry run changed the target")
	}
	did = s.run(src, dst)
	if would.ShippedBytes != did.ShippedBytes || did.ShippedBytes == 0 {
		t.Errorf("would ship %d, did ship %d", would.ShippedBytes, did.ShippedBytes)
	}
}

func TestTrustIndex(t *testing.T) {
	s := newSyncer(t)
	src := image(t, "src", 32*mib, 11)
	dst := filepath.Join(t.TempDir(), "dst")
	trust := func(o *SyncOptions) { o.TrustIndex = true }
	s.run(src, dst, trust)
	scribble(t, src, 10, 4)
	if rep := s.run(src, dst, trust); rep.ShippedBytes == 0 || rep.ShippedBytes > 10*DefaultBlockSize {
		t.Errorf("shipped %d", rep.ShippedBytes)
	}
	mustEqual(t, src, dst)
	// Somebody writes to the target: its facts change, and the index must not be believed.
	scribble(t, dst, 10, 5)
	s.run(src, dst, trust)
	mustEqual(t, src, dst)
	// Somebody makes holes where the index knows data, and the source has that data.
	if err := os.Truncate(dst, 0); err != nil {
		t.Fatal(err)
	}
	s.run(src, dst, trust)
	mustEqual(t, src, dst)
	s.run(src, dst, trust)
	mustEqual(t, src, dst)
}

func TestSyncSizes(t *testing.T) {
	s := newSyncer(t)
	src := image(t, "src", 4*mib, 1)
	small, large := image(t, "small", 3*mib, 2), image(t, "large", 6*mib, 3)
	_, err := s.try(t.Context(), src, small)
	wantKind(t, err, KindState)
	_, err = s.try(t.Context(), src, large)
	wantKind(t, err, KindState)
	before, _ := os.ReadFile(large)
	s.run(src, large, func(o *SyncOptions) { o.GrowOK = true })
	after, _ := os.ReadFile(large)
	want, _ := os.ReadFile(src)
	if string(after[:4*mib]) != string(want) || string(after[4*mib:]) != string(before[4*mib:]) {
		t.Error("the front must be the source, the rest untouched")
	}
}

func TestSyncRefusals(t *testing.T) {
	s := newSyncer(t)
	dir := t.TempDir()
	src := image(t, "src", mib, 1)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(src, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, src, dst string
		kind           Kind
	}{
		{"missing source", filepath.Join(dir, "none"), filepath.Join(dir, "x"), KindDevice},
		{"source is a directory", dir, filepath.Join(dir, "x"), KindDevice},
		{"target is a directory", src, dir, KindDevice},
		{"target's folder is missing", src, filepath.Join(dir, "a", "b"), KindDevice},
		{"same file", src, src, KindState},
		{"same file through a link", src, link, KindState},
		{"both remote", "blk://127.0.0.1:1/a", "blk://127.0.0.1:1/b", KindUsage},
		{"not loopback", src, "blk://192.0.2.1:1/b", KindUsage},
		{"nobody listens", src, "blk://127.0.0.1:1/b", KindNetwork},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.try(t.Context(), c.src, c.dst)
			wantKind(t, err, c.kind)
			if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
				t.Error("a refused sync made its target")
			}
		})
	}
}

func TestSyncRemoteBothWays(t *testing.T) {
	src := image(t, "src", 24*mib+100, 21)
	dst := filepath.Join(t.TempDir(), "dst")
	back := filepath.Join(t.TempDir(), "back")
	n := startNode(t, map[string]string{"dst": dst, "src": src})
	s := newSyncer(t)
	rep := s.run(src, "blk://"+n.addr+"/dst")
	mustEqual(t, src, dst)
	if rep.WireBytes == 0 || rep.ShippedBytes == 0 {
		t.Errorf("%+v", rep)
	}
	pulled := s.run("blk://"+n.addr+"/src", back)
	mustEqual(t, src, back)
	if pulled.ShippedBytes != rep.ShippedBytes || pulled.ZeroBytes != rep.ZeroBytes || pulled.ScannedBytes != rep.ScannedBytes {
		t.Errorf("pushed %+v, pulled %+v", rep, pulled)
	}
	scribble(t, src, 12, 1)
	would := s.run("blk://"+n.addr+"/src", back, func(o *SyncOptions) { o.DryRun = true })
	did := s.run("blk://"+n.addr+"/src", back)
	mustEqual(t, src, back)
	if would.ShippedBytes != did.ShippedBytes || did.ShippedBytes == 0 || did.ShippedBytes > 12*DefaultBlockSize {
		t.Errorf("would ship %d, shipped %d", would.ShippedBytes, did.ShippedBytes)
	}
	_, err := s.try(t.Context(), src, "blk://"+n.addr+"/nope")
	wantKind(t, err, KindState)
}

// stopAfterProgress runs a sync, slowly, and stops it when some of it is durable at the target.
func (s *syncer) stopAfterProgress(src, dst string) Report {
	s.t.Helper()
	return s.stopWhen(src, dst, 10*time.Millisecond, func(p *Progress) bool { return p.Durable.Load() > 0 })
}

// stopWhen runs a sync, slowly, and stops it when enough is true.
func (s *syncer) stopWhen(src, dst string, flushEvery time.Duration, enough func(*Progress) bool) Report {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	prog := new(Progress)
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for !enough(prog) && ctx.Err() == nil {
			<-tick.C
		}
		cancel()
	})
	rep, err := s.try(ctx, src, dst, func(o *SyncOptions) {
		o.Progress, o.RateLimit, o.NoCompress, o.flushEvery = prog, 12*mib, true, flushEvery
	})
	cancel()
	watch.Wait()
	if !errors.Is(err, context.Canceled) {
		s.t.Fatalf("got %v, want it stopped after some progress", err)
	}
	return rep
}

// targetFor names a target that does not exist yet, and how it is reached.
func targetFor(t *testing.T, remote bool) (path, dst string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "dst")
	if !remote {
		return path, path
	}
	return path, "blk://" + startNode(t, map[string]string{"v": path}).addr + "/v"
}

// A sync that is stopped goes on where it was, and ships nothing twice but what was in flight.
func TestSyncResumes(t *testing.T) {
	src := denseImage(t, 48*mib, 31)
	for _, remote := range []bool{false, true} {
		t.Run(fmt.Sprint("remote ", remote), func(t *testing.T) {
			s := newSyncer(t)
			path, dst := targetFor(t, remote)
			var shipped, resumed int64
			for range 3 {
				rep := s.stopAfterProgress(src, dst)
				if rep.ResumedBytes < resumed {
					t.Errorf("resumed at %d after %d", rep.ResumedBytes, resumed)
				}
				resumed = rep.ResumedBytes
				shipped += rep.ShippedBytes
			}
			rep := s.run(src, dst)
			mustEqual(t, src, path)
			if rep.ResumedBytes == 0 || rep.ResumedBytes+rep.ScannedBytes != rep.Size {
				t.Errorf("the last run went on from 0: %+v", rep)
			}
			// What was written and not acknowledged counts as shipped by nobody, and is skipped later.
			if shipped += rep.ShippedBytes; shipped > rep.Size-rep.ZeroBytes {
				t.Errorf("shipped %d in total, one copy is at most %d", shipped, rep.Size)
			}
		})
	}
}

// A pull keeps its rate by granting late: no more than the rate and one small window has come at any time.
func TestRateOfAPull(t *testing.T) {
	src := denseImage(t, 24*mib, 35)
	n := startNode(t, map[string]string{"v": src})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	prog := new(Progress)
	start := time.Now()
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for prog.Shipped.Load() < 4*mib && ctx.Err() == nil {
			<-tick.C
		}
		cancel()
	})
	const rate = 4 * mib
	rep, _ := newSyncer(t).try(ctx, "blk://"+n.addr+"/v", filepath.Join(t.TempDir(), "dst"),
		func(o *SyncOptions) { o.Progress, o.RateLimit, o.NoCompress = prog, rate, true })
	watch.Wait()
	// The limiter's own burst, one window, and what the time allowed.
	if most := int64(time.Since(start).Seconds()*rate) + slowWindow + 2*wire.MaxRun; rep.ShippedBytes > most {
		t.Errorf("shipped %d, the rate allows %d", rep.ShippedBytes, most)
	}
}

// A sync that is told to stop leaves behind what is confirmed by then, not what was when it last asked.
func TestStopNamesWhatIsConfirmed(t *testing.T) {
	src := denseImage(t, 48*mib, 33)
	for _, remote := range []bool{false, true} {
		t.Run(fmt.Sprint("remote ", remote), func(t *testing.T) {
			s := newSyncer(t)
			path, dst := targetFor(t, remote)
			// More than all spans that can be under way, so that the first of them is confirmed.
			s.stopWhen(src, dst, time.Hour, func(p *Progress) bool { return p.Shipped.Load() > (sourceChunks+2)*mib })
			if rep := s.run(src, dst); rep.ResumedBytes == 0 {
				t.Error("the next run went on from 0")
			}
			mustEqual(t, src, path)
		})
	}
}

// The half-made copy is changed between two runs: blindly going on would leave the change in.
func TestResumeSeesForeignWrites(t *testing.T) {
	s := newSyncer(t)
	src := denseImage(t, 48*mib, 41)
	dst := filepath.Join(t.TempDir(), "dst")
	s.stopAfterProgress(src, dst)
	scribble(t, dst, 40, 1)
	rep := s.run(src, dst)
	mustEqual(t, src, dst)
	if rep.ResumedBytes == 0 {
		t.Error("a run behind which somebody wrote must still go on where it was")
	}
}

// The source is changed between two runs: its fingerprint is another, and everything is looked at.
func TestResumeSeesChangedSource(t *testing.T) {
	s := newSyncer(t)
	src := denseImage(t, 48*mib, 51)
	dst := filepath.Join(t.TempDir(), "dst")
	s.stopAfterProgress(src, dst)
	scribble(t, src, 40, 1)
	rep := s.run(src, dst)
	mustEqual(t, src, dst)
	if rep.ResumedBytes != 0 {
		t.Errorf("resumed %d bytes of a source that has changed", rep.ResumedBytes)
	}
}

func TestSourceChangesMeanwhile(t *testing.T) {
	s := newSyncer(t)
	src := image(t, "src", 32*mib, 61)
	dst := filepath.Join(t.TempDir(), "dst")
	prog := new(Progress)
	var once sync.Once
	s.edit = func(o *SyncOptions) {
		o.Progress, o.RateLimit, o.NoCompress = prog, 16*mib, true
	}
	var writer sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	writer.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			if prog.Shipped.Load() > 0 {
				once.Do(func() { scribble(t, src, 1, 3) })
				return
			}
		}
	})
	rep := s.run(src, dst)
	cancel()
	writer.Wait()
	if !rep.SourceChanged {
		t.Error("the source was written to, and nobody was told")
	}
	s.run(src, dst)
	mustEqual(t, src, dst)
}

// A bit that flips on the way is never written, and told.
func TestFlippedPayloadIsShippedAgain(t *testing.T) {
	src := image(t, "src", 24*mib, 71)
	dst := filepath.Join(t.TempDir(), "dst")
	n := startNode(t, map[string]string{"v": dst})
	var flips atomic.Int64
	proxy := frameProxy(t, n.addr, func(d *wire.Data) bool {
		if i := flips.Add(1); i%20 == 0 {
			d.Payload[len(d.Payload)/2] ^= 4
		}
		return true
	})
	s := newSyncer(t)
	rep := s.run(src, "blk://"+proxy+"/v")
	mustEqual(t, src, dst)
	if want := flips.Load() / 20; rep.RetriedBlocks != want || want == 0 {
		t.Errorf("retried %d blocks, %d were damaged", rep.RetriedBlocks, want)
	}
}

// A block that is damaged every time ends the sync with an integrity error, and is not written.
func TestFlippedAlwaysIsIntegrity(t *testing.T) {
	src := image(t, "src", 8*mib, 72)
	want, _ := os.ReadFile(src)
	dst := filepath.Join(t.TempDir(), "dst")
	n := startNode(t, map[string]string{"v": dst})
	var bad atomic.Int64
	bad.Store(-1)
	proxy := frameProxy(t, n.addr, func(d *wire.Data) bool {
		if bad.CompareAndSwap(-1, d.Offset) || bad.Load() == d.Offset {
			d.Payload[0] ^= 1
		}
		return true
	})
	s := newSyncer(t)
	rep, err := s.try(t.Context(), src, "blk://"+proxy+"/v")
	wantKind(t, err, KindIntegrity)
	if rep.RetriedBlocks < maxReships {
		t.Errorf("gave up after %d tries", rep.RetriedBlocks)
	}
	n.stop()
	got, _ := os.ReadFile(dst)
	for off := range got {
		if got[off] != 0 && got[off] != want[off] {
			t.Fatalf("the target holds a byte at %d that the source never had", off)
		}
	}
	if off := bad.Load(); string(got[off:off+4096]) != string(make([]byte, 4096)) {
		t.Error("the damaged block was written")
	}
}

// Connections that break mid-frame cost a reconnect each, and nothing is copied twice.
func TestReconnects(t *testing.T) {
	src := image(t, "src", 48*mib, 81)
	dst := filepath.Join(t.TempDir(), "dst")
	n := startNode(t, map[string]string{"v": dst})
	var frames atomic.Int64
	proxy := frameProxy(t, n.addr, func(*wire.Data) bool { return frames.Add(1)%150 != 0 })
	s := newSyncer(t)
	rep := s.run(src, "blk://"+proxy+"/v")
	mustEqual(t, src, dst)
	if rep.Reconnects == 0 {
		t.Error("the connection was cut and nobody noticed")
	}
}

// Two syncs into one target at once: the second is refused, the first is not disturbed.
func TestBusyTarget(t *testing.T) {
	src := image(t, "src", 32*mib, 91)
	dst := filepath.Join(t.TempDir(), "dst")
	n := startNode(t, map[string]string{"v": dst})
	s := newSyncer(t)
	prog := new(Progress)
	var first sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	first.Go(func() {
		s.try(ctx, src, "blk://"+n.addr+"/v", func(o *SyncOptions) { o.Progress, o.RateLimit, o.NoCompress = prog, mib, true })
	})
	eventually(t, "the first sync ships", func() bool { return prog.Shipped.Load() > 0 })
	_, err := newSyncer(t).try(t.Context(), image(t, "other", 32*mib, 92), dst)
	wantKind(t, err, KindState)
	cancel()
	first.Wait()
	s.run(src, "blk://"+n.addr+"/v")
	mustEqual(t, src, dst)
}
