package journal_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
	"github.com/google/go-cmp/cmp"
)

// roomy has segments into whose last room a few facts fit.
var roomy = journal.VolumeOptions{SegmentSize: 16384, BufferSize: 256, ReserveMin: 1024, ReserveMax: 4096}

// On a full disk marks go on in the room that was kept; then facts, and a checkpoint, still do.
func TestVolumeOnAFullDisk(t *testing.T) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, roomy)
	must(t, l.SetFacts(factsOf(1)))
	if l.Low() {
		t.Error("low from the start")
	}
	fs.Limit(fs.Used())
	var bytes int64
	var err error
	for region := uint64(0); err == nil; region++ {
		if _, err = l.Mark([]uint64{region % 4000}); err == nil {
			bytes += 40
		}
	}
	if !errors.Is(err, journal.ErrNoRoom) || !errors.Is(err, syscall.ENOSPC) || bytes < 2*(16384-2048-64) {
		t.Errorf("marks of %d bytes, then %v", bytes, err)
	}
	if !l.Low() || l.Refill() {
		t.Error("not low")
	}
	if _, again := l.Mark([]uint64{1}); again != err || l.Err() != err {
		t.Errorf("then %v, %v", again, l.Err())
	}
	must(t, l.SetFacts(factsOf(2)))
	must(t, l.SetFacts(factsOf(4)))
	_, state := openVolume(t, fs.Crash(0), roomy)
	if !cmp.Equal(state.Facts, factsOf(4)) || int64(len(state.Hot)) != bytes/40 {
		t.Errorf("found cut %d, %d of %d hot regions", state.Facts.Cut, len(state.Hot), bytes/40)
	}

	c, err := l.BeginCheckpoint()
	must(t, err)
	must(t, c.Finish(factsOf(9), setsOf(1), []uint64{5}))
	fs.Limit(0)
	if !l.Refill() || l.Low() {
		t.Error("low on a disk that has room")
	}
	if err := l.Err(); !errors.Is(err, journal.ErrNoRoom) {
		t.Errorf("what was refused is forgotten: %v", err)
	}
	must(t, l.Close())
	l, state = openVolume(t, fs, roomy)
	if !cmp.Equal(state.Facts, factsOf(9)) || !sameSets(state.Sets, setsOf(1)) {
		t.Errorf("found cut %d", state.Facts.Cut)
	}
	_, err = l.Mark([]uint64{1})
	must(t, err)
}

// A journal needs no more room than it has kept, for ever, where checkpoints are taken in time.
func TestVolumeGoesOnOnAFullDisk(t *testing.T) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, roomy)
	must(t, l.SetFacts(factsOf(1)))
	fs.Limit(fs.Used() + 4000)
	for n := uint64(1); n < 60; n++ {
		for region := uint64(0); l.SinceCheckpoint() < 13000; region++ {
			_, err := l.Mark([]uint64{region})
			must(t, err)
		}
		if n%10 == 0 {
			must(t, l.Close())
			l, _ = openVolume(t, fs, roomy)
		}
		c, err := l.BeginCheckpoint()
		must(t, err)
		for region := range uint64(n * 2 % 90) {
			_, err := l.Mark([]uint64{region})
			must(t, err)
		}
		must(t, c.Finish(factsOf(n), setsOf(n), nil))
		if l.Low() {
			t.Errorf("low after checkpoint %d", n)
		}
	}
}

// A checkpoint that does not fit fails, and the one before stays in force.
func TestVolumeCheckpointWithoutRoom(t *testing.T) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, roomy)
	c, err := l.BeginCheckpoint()
	must(t, err)
	must(t, c.Finish(factsOf(1), setsOf(1), nil))
	_, err = l.Mark([]uint64{3})
	must(t, err)
	used := fs.Used()
	fs.Limit(used + 130_000) // one piece, and not two
	big := blockdev.NewPageSet(volumeSize / 4096)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 80000 {
		big.Add(rng.Uint64N(big.Len()), 1)
	}
	c, err = l.BeginCheckpoint()
	must(t, err)
	err = c.Finish(factsOf(2), []journal.NamedSet{{Name: "big", Pages: big}}, nil)
	if !errors.Is(err, syscall.ENOSPC) || l.Err() != nil || !l.Low() {
		t.Errorf("got %v, sticky %v, low %t", err, l.Err(), l.Low())
	}
	if fs.Used() > used+roomy.SegmentSize { // T has a segment
		t.Errorf("%d bytes are used, %d before", fs.Used(), used)
	}
	_, err = l.Mark([]uint64{4})
	must(t, err)
	must(t, l.SetFacts(factsOf(3)))
	_, state := openVolume(t, fs.Crash(0), roomy)
	if !sameSets(state.Sets, setsOf(1)) || !slices.Equal(state.Hot, []uint64{3, 4}) || !cmp.Equal(state.Facts, factsOf(3)) {
		t.Errorf("found %+v", state)
	}
	fs.Limit(0)
	c, err = l.BeginCheckpoint()
	must(t, err)
	must(t, c.Finish(factsOf(4), []journal.NamedSet{{Name: "big", Pages: big}}, nil))
	_, state = openVolume(t, fs.Crash(0), roomy)
	if !sameSets(state.Sets, []journal.NamedSet{{Name: "big", Pages: big}}) || len(state.Hot) != 0 {
		t.Errorf("found %+v", state)
	}
}

// Where somebody has taken the room of the last segment between two runs, the spares are used.
func TestVolumeWhoseLastSegmentLostItsRoom(t *testing.T) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, roomy)
	must(t, l.SetFacts(factsOf(1)))
	must(t, l.Close())
	fs.Fail(journaltest.OpAllocate, fs.Count(journaltest.OpAllocate), syscall.ENOSPC)
	l, _ = openVolume(t, fs, roomy)
	fs.Limit(fs.Used())
	for region := range uint64(300) {
		_, err := l.Mark([]uint64{region})
		must(t, err)
	}
	must(t, l.Close())
	if _, state := openVolume(t, fs, roomy); len(state.Hot) != 300 || !cmp.Equal(state.Facts, factsOf(1)) {
		t.Errorf("found %+v", state)
	}
}

// A failed spare leads to Low, and to nothing else.
func TestVolumeTellsThatNoRoomCouldBeKept(t *testing.T) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, roomy)
	must(t, l.SetFacts(factsOf(1)))
	fs.Fail(journaltest.OpAllocate, fs.Count(journaltest.OpAllocate), syscall.EIO)
	for region := uint64(0); fs.Struck() == 0; region++ {
		_, err := l.Mark([]uint64{region})
		must(t, err)
	}
	if !l.Low() || l.Err() != nil {
		t.Errorf("low %t, %v", l.Low(), l.Err())
	}
	if !l.Refill() || l.Low() {
		t.Error("low after the disk was well again")
	}
}

// On a real file system, with real sizes.
func TestVolumeOnOS(t *testing.T) {
	fs := osIn(t.TempDir())
	l, _ := openVolume(t, fs, journal.VolumeOptions{})
	must(t, l.SetFacts(factsOf(1)))
	lsn, err := l.Mark([]uint64{1, 2})
	must(t, err)
	must(t, l.Sync(lsn))
	c, err := l.BeginCheckpoint()
	must(t, err)
	_, err = l.Mark([]uint64{3})
	must(t, err)
	must(t, c.Finish(factsOf(2), setsOf(3), []uint64{2}))
	must(t, l.Close())
	for range 2 {
		l, state := openVolume(t, fs, journal.VolumeOptions{})
		if !cmp.Equal(state.Facts, factsOf(2)) || !sameSets(state.Sets, setsOf(3)) || !slices.Equal(state.Hot, []uint64{2, 3}) || l.Low() {
			t.Errorf("found %+v, low %t", state, l.Low())
		}
		must(t, l.Close())
	}
}

// Many markers, facts and checkpoints at once. Every mark that was called for after the T of the last
// checkpoint, and synced, is hot in what a power cut leaves.
func TestVolumeConcurrently(t *testing.T) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, journal.VolumeOptions{SegmentSize: 16 << 10, BufferSize: 512, ReserveMin: 1024})
	must(t, l.SetFacts(factsOf(1)))
	const markers, each = 16, 250
	var turn atomic.Uint64              // rises behind every T
	var behind [markers * each]uint64   // turn in which a mark was called for
	var finished, facted atomic.Uint64  // turn of the last finished checkpoint; cut of the last durable facts
	var working, helping sync.WaitGroup // markers; all others
	stop := make(chan struct{})
	for m := range markers {
		working.Go(func() {
			for i := range each {
				region := uint64(m*each + i)
				behind[region] = turn.Load() + 1 // 0: never
				lsn, err := l.Mark([]uint64{region})
				if err == nil {
					err = l.Sync(lsn)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	repeat := func(do func(n uint64) error) {
		helping.Go(func() {
			for n := uint64(2); ; n++ {
				if err := do(n); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	var cut sync.Mutex // makes facts of a checkpoint and others one order, as the caller has to
	next := uint64(1)
	facts := func() journal.VolumeFacts { next++; return factsOf(next) }
	repeat(func(uint64) error {
		cut.Lock()
		defer cut.Unlock()
		f := facts()
		err := l.SetFacts(f)
		facted.Store(f.Cut)
		return err
	})
	repeat(func(n uint64) error {
		c, err := l.BeginCheckpoint()
		if err != nil {
			return err
		}
		at := turn.Add(1)
		if n%4 == 3 {
			c.Abandon()
			return nil
		}
		cut.Lock() // no others until Finish has made these the facts
		defer cut.Unlock()
		f := facts()
		if err := c.Finish(f, setsOf(at%50), nil); err != nil {
			return err
		}
		finished.Store(at)
		facted.Store(f.Cut)
		return nil
	})
	repeat(func(uint64) error { l.Low(); l.SinceCheckpoint(); l.Refill(); return l.Err() })
	working.Wait()
	close(stop)
	helping.Wait()
	_, state := openVolume(t, fs.Crash(0), smallVolume)
	for region, at := range behind {
		if at > finished.Load() && !slices.Contains(state.Hot, uint64(region)) {
			t.Errorf("mark %d of turn %d is lost, checkpoint is %d", region, at-1, finished.Load())
		}
	}
	if state.Facts.Cut < facted.Load() || !cmp.Equal(state.Facts, factsOf(state.Facts.Cut)) {
		t.Errorf("facts of cut %d, promised %d", state.Facts.Cut, facted.Load())
	}
	if !sameSets(state.Sets, setsOf(finished.Load()%50)) {
		t.Errorf("sets are not those of %d", finished.Load())
	}
}

// damagedVolume is a journal with a checkpoint, an older segment that one that is under way has left, and a
// last record that says nothing new.
func damagedVolume(t *testing.T) (*journaltest.MemFS, *journal.VolumeState) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, smallVolume)
	must(t, l.SetFacts(factsOf(1)))
	c, err := l.BeginCheckpoint()
	must(t, err)
	for range 70 { // over the end of a segment
		_, err := l.Mark([]uint64{1})
		must(t, err)
	}
	must(t, c.Finish(factsOf(2), setsOf(4), []uint64{9, 10, 700}))
	mark := func(region uint64) {
		lsn, err := l.Mark([]uint64{region})
		must(t, err)
		must(t, l.Sync(lsn))
	}
	mark(1)
	_, err = l.BeginCheckpoint()
	must(t, err)
	mark(2)
	must(t, l.SetFacts(factsOf(3)))
	mark(3)
	mark(3)
	fs = fs.Crash(0)
	_, state := openVolume(t, fs.Crash(0), smallVolume)
	if !slices.Equal(state.Hot, []uint64{1, 2, 3, 9, 10, 700}) || !cmp.Equal(state.Facts, factsOf(3)) {
		t.Fatalf("found %+v", state)
	}
	return fs, state
}

// Whatever byte changes: it is told, or what is found is the same.
func TestVolumeDamage(t *testing.T) {
	t.Parallel()
	fs, want := damagedVolume(t)
	check := func(what string, harm func(fs *journaltest.MemFS)) (damaged bool) {
		bad := fs.Crash(0)
		harm(bad)
		before := contents(bad)
		l, state, err := journal.OpenVolume(bad, volumeDir, smallVolume)
		if err != nil {
			if !errors.Is(err, journal.ErrDamaged) {
				t.Errorf("%s: %v", what, err)
			}
			if after := contents(bad); !mapsEqual(before, after) {
				t.Errorf("%s: something was changed", what)
			}
			return true
		}
		defer l.Close()
		if !cmp.Equal(state.Facts, want.Facts) || !slices.Equal(state.Hot, want.Hot) || !sameSets(state.Sets, want.Sets) {
			t.Errorf("%s: silently %+v", what, state)
		}
		return false
	}
	told := map[string]int{}
	paths := fs.Paths()
	last := paths[slices.Index(paths, volumeDir+"/journal/reserve")-1]
	for _, path := range paths {
		for at := range fs.Read(path) {
			for _, flip := range []byte{1, 0xff} {
				if check(fmt.Sprintf("%s at %d ^ %x", path, at, flip), func(fs *journaltest.MemFS) {
					data := fs.Read(path)
					data[at] ^= flip
					fs.Write(path, data)
				}) {
					told[path]++
				}
			}
		}
		if path == last {
			continue // that a whole segment has gone at the end cannot be seen
		}
		removed := check(path+" removed", func(fs *journaltest.MemFS) { must(t, fs.Remove(path)) })
		if holds := strings.HasSuffix(path, ".seg") || strings.HasSuffix(path, ".ckpt"); removed != holds {
			t.Errorf("%s was removed: told %t", path, removed)
		}
	}
	if told[volumeDir+"/journal/0000000001.ckpt"] != 2*len(fs.Read(volumeDir+"/journal/0000000001.ckpt")) {
		t.Errorf("not every byte of a checkpoint counts: %v", told)
	}
	check("all segments removed", func(fs *journaltest.MemFS) {
		for _, path := range paths {
			if strings.HasSuffix(path, ".seg") {
				must(t, fs.Remove(path))
			}
		}
	})
}

func contents(fs *journaltest.MemFS) map[string]string {
	all := map[string]string{}
	for _, path := range fs.Paths() {
		all[path] = string(fs.Read(path))
	}
	return all
}
