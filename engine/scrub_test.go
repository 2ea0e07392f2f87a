package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/e2e/stamp"
	"github.com/blkmirror/blkmirror/journal"
)

const scrubBlock = DefaultBlockSize

func (p *livePair) scrub(n *liveNode) ScrubResult {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	r, err := Scrub(ctx, n.control(), "v", ScrubOptions{Rate: 1 << 40}, nil)
	if err != nil || len(r) != 1 {
		p.t.Fatalf("scrub %+v: %v", r, err)
	}
	if sum := r[0].CheckedBytes + r[0].UnknownBytes + r[0].SkippedBytes; sum != liveSize {
		p.t.Errorf("scrub of %d bytes: %+v", sum, r[0])
	}
	return r[0]
}

func blocksAt(blocks ...int64) []CheckedExtent {
	list := []CheckedExtent{}
	for _, b := range blocks {
		list = append(list, CheckedExtent{b * scrubBlock, scrubBlock})
	}
	return list
}

// What rots on a mirror that cannot ask its primary is found exactly, makes it read-only, and is brought by a repair;
// also where it happened while the mirror was stopped and nobody suspects that.
func TestScrubMirror(t *testing.T) {
	p := newLivePair(t, 1, func(_ int, c *VolumeConfig) { c.OnReboot = "trust" })
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	m := p.mirrors[0]
	if r := p.scrub(m); len(r.Extents) != 0 || r.Role != "mirror" || r.CheckedBytes+r.UnknownBytes != liveSize || r.CheckedBytes < 3*mib {
		t.Fatalf("scrub of what is in order: %+v", r)
	}
	for _, stopped := range []bool{false, true} {
		if stopped {
			m.stop()
		}
		p.spoil(m.volume.Path, 3*scrubBlock+7)
		p.spoil(m.volume.Path, 40*scrubBlock+9)
		if stopped {
			noSuspicion(t, filepath.Join(m.state, "volumes", "v"), m.volume.Path)
			m.start()
		}
		p.primary.stop()
		for range 2 {
			if r := p.scrub(m); !slices.Equal(r.Extents, blocksAt(3, 40)) {
				t.Fatalf("stopped %v: %+v", stopped, r)
			}
			st := m.status()
			if st.State != "read-only" || st.ReadOnly.Class != "rot" || !slices.Equal(st.ReadOnly.Blocks, []int64{3, 40}) || st.Primary.Mismatches.Mirror != 2 {
				t.Fatalf("status %+v %+v %+v", st, st.ReadOnly, st.Primary.Mismatches)
			}
		}
		p.primary.start()
		eventually(t, "the primary knows", func() bool { return p.mirrorStatus(0).ReadOnly != nil })
		if r := p.repair(RepairOptions{}); r.Blocks != 2 || r.ShippedBytes == 0 || r.ShippedBytes > 2*scrubBlock {
			t.Errorf("repair %+v", r)
		}
		p.settle()
		p.equal(0)
		if r := p.scrub(m); len(r.Extents) != 0 || r.SkippedBytes != 0 {
			t.Errorf("scrub after the repair: %+v", r)
		}
	}
}

// noSuspicion has the journal of a mirror that was stopped cleanly know the image as it is now: the facts of a disk do
// not tell of rot, as those of an image do.
func noSuspicion(t *testing.T, dir, image string) {
	t.Helper()
	dev, err := blockdev.Open(image, blockdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	now, err := dev.Facts()
	if err = errors.Join(err, dev.Close()); err != nil {
		t.Fatal(err)
	}
	log, state, err := journal.OpenVolume(journal.OS, dir, journal.VolumeOptions{SegmentSize: mirrorSegment})
	if err != nil {
		t.Fatal(err)
	}
	f := state.Facts
	if f.Device, err = json.Marshal(deviceMark{now}); err == nil {
		err = log.SetFacts(f)
	}
	if err = errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
}

// Without an index there is nothing that could be wrong. The next scrub has what the first one noted.
func TestScrubWithoutIndex(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	p.mirrors[0].stop()
	if err := os.RemoveAll(filepath.Join(p.mirrors[0].state, "volumes", "v", "index")); err != nil {
		t.Fatal(err)
	}
	p.mirrors[0].start()
	m := p.mirrors[0]
	if r := p.scrub(m); len(r.Extents) != 0 || r.UnknownBytes != liveSize {
		t.Errorf("first %+v", r)
	}
	if r := p.scrub(m); len(r.Extents) != 0 || r.CheckedBytes < 4*mib {
		t.Errorf("second %+v", r)
	}
	p.primary.stop() // what it could heal
	p.spoil(m.volume.Path, 12345)
	if r := p.scrub(m); !slices.Equal(r.Extents, blocksAt(0)) {
		t.Errorf("third %+v", r)
	}
}

// Under a writer that never stops nothing is ever told that is not so, and what is noted is right.
func TestScrubMirrorUnderLoad(t *testing.T) {
	p := newLivePair(t, 1, func(_ int, c *VolumeConfig) { c.Interval = 10 * time.Millisecond })
	h := stamp.NewHistory(liveSize/stamp.PageSize, 12)
	w := stamp.NewWriter(h, stamp.Load{Network: "unix", Address: filepath.Join(p.dir, "s"), Export: "v", Seed: 12, Pause: 200 * time.Microsecond})
	w.Start()
	defer w.Stop()
	eventually(t, "the first copy", func() bool { return p.mirrors[0].status().State == "ok" })
	var checked, unknown int64
	least, end := time.Now().Add(2*time.Second), time.Now().Add(time.Minute)
	for time.Now().Before(least) || (checked == 0 || unknown == 0) && time.Now().Before(end) {
		for _, n := range []*liveNode{p.mirrors[0], p.primary} {
			r := p.scrub(n)
			if len(r.Extents) != 0 {
				t.Fatalf("scrub under load: %+v", r)
			}
			if n == p.mirrors[0] {
				checked, unknown = checked+r.CheckedBytes, unknown+r.UnknownBytes
			}
		}
	}
	t.Logf("%d bytes checked, %d noted", checked, unknown)
	if checked == 0 || unknown == 0 {
		t.Error("nothing was compared, or nothing noted")
	}
	if err := w.Quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.settle()
	for range 2 {
		if r := p.scrub(p.mirrors[0]); len(r.Extents) != 0 || r.SkippedBytes != 0 {
			t.Errorf("scrub at rest: %+v", r)
		}
	}
	p.equal(0)
}

// A scrub ends with its client and with its volume, and begins anew. One that a person wants goes before one that
// was due.
func TestScrubInterrupted(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	m := p.mirrors[0]
	began := make(chan CheckProgress, 1000)
	slow := func(ctx context.Context) error {
		_, err := Scrub(ctx, m.control(), "v", ScrubOptions{Rate: 256 << 10}, func(p CheckProgress) { began <- p })
		return err
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- slow(ctx) }()
	<-began
	_, err := Scrub(t.Context(), m.control(), "v", ScrubOptions{}, nil)
	wantKind(t, err, KindState)
	cancel()
	if err := <-ended; err == nil {
		t.Error("it was not interrupted")
	}
	eventually(t, "it has ended", func() bool {
		r, err := Scrub(t.Context(), m.control(), "v", ScrubOptions{Rate: 1 << 40}, nil)
		return err == nil && len(r[0].Extents) == 0
	})
	go func() { ended <- slow(t.Context()) }()
	for len(began) > 0 {
		<-began
	}
	<-began
	m.stop()
	if err := <-ended; err == nil {
		t.Error("it was not ended")
	}
	m.start()
	if r := p.scrub(m); len(r.Extents) != 0 {
		t.Errorf("after it %+v", r)
	}
}

// scrubbedPrimary is a primary of which nothing runs by itself.
type scrubbedPrimary struct {
	*primary
	t    *testing.T
	deps primaryDeps
}

func newScrubbedPrimary(t *testing.T, size int64) *scrubbedPrimary {
	dir := t.TempDir()
	path := filepath.Join(dir, "p.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil { // all a hole
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "v"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := &scrubbedPrimary{t: t, deps: primaryDeps{name: "v", config: VolumeConfig{Path: path}, dir: filepath.Join(dir, "v"), fs: journal.OS, open: openFile,
		lock: journal.LockDir, log: func(text string) { t.Log(text) }, now: time.Now}}
	s.open()
	t.Cleanup(func() { s.primary.stop(context.Background()) })
	return s
}

func (s *scrubbedPrimary) open() {
	s.t.Helper()
	p, err := openPrimary(s.deps)
	if err != nil {
		s.t.Fatal(err)
	}
	s.primary = p
	if err := p.scrubs.load(filepath.Join(p.dir, scrubFile)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scrubbedPrimary) reopen() {
	s.t.Helper()
	if err := s.stop(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.open()
}

func (s *scrubbedPrimary) write(off int64, n int) {
	s.t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	if err := s.path.WriteAt(b, off); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scrubbedPrimary) learn() {
	s.t.Helper()
	s.index.limit.SetLimit(1 << 40)
	if err := s.index.duePass(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scrubbedPrimary) look() ScrubResult {
	s.t.Helper()
	r, err := s.scrub(s.t.Context(), ScrubOptions{Rate: 1 << 40}, nil)
	if err != nil || len(r) != 1 {
		s.t.Fatalf("scrub %+v: %v", r, err)
	}
	if sum := r[0].CheckedBytes + r[0].UnknownBytes + r[0].SkippedBytes; sum != s.size {
		s.t.Errorf("scrub of %d bytes: %+v", sum, r[0])
	}
	return r[0]
}

func (s *scrubbedPrimary) status() (st VolumeStatus) {
	s.fill(&st)
	return st
}

// What rots on a primary is found exactly and told, over a restart, until it is written as a whole; its index keeps
// what was right.
func TestScrubPrimary(t *testing.T) {
	const size = 8*mib + 3*4096
	s := newScrubbedPrimary(t, size)
	s.write(0, 4*mib)
	s.write(size-4096, 4096)
	if r := s.look(); r.SkippedBytes != size || len(r.Extents) != 0 {
		t.Fatalf("before anything is indexed: %+v", r)
	}
	s.learn()
	if r := s.look(); r.CheckedBytes != 4*mib+3*4096 || r.UnknownBytes != 4*mib || len(r.Extents) != 0 {
		t.Fatalf("what is in order: %+v", r)
	}
	pair := livePairOf(t)
	for _, off := range []int64{5*scrubBlock + 7, 17 * scrubBlock, size - 1} {
		pair.spoil(s.deps.config.Path, off)
	}
	s.write(20*scrubBlock, 100)
	want := append(blocksAt(5, 17), CheckedExtent{8 * mib, 3 * 4096})
	for round := range 3 {
		if r := s.look(); !slices.Equal(r.Extents, want) || r.SkippedBytes != scrubBlock {
			t.Fatalf("round %d: %+v", round, r)
		}
		st := s.status()
		if !slices.Equal(st.Rot, []int64{5, 17, 128}) || st.State != "ok" || !strings.Contains(st.Error, "rot: 3 blocks") || st.Next == "" {
			t.Fatalf("status %+v", st)
		}
		switch round {
		case 0:
			if st.Mismatches == nil || st.Mismatches.Source != 3 {
				t.Errorf("mismatches %+v", st.Mismatches)
			}
			s.reopen()
		case 1:
			s.remember()
		}
	}
	s.learn()
	s.write(5*scrubBlock+4096, 4096) // in part: the rest of it is what it is
	s.write(17*scrubBlock, scrubBlock)
	s.learn()
	if st := s.status(); !slices.Equal(st.Rot, []int64{5, 128}) {
		t.Errorf("status %v", st.Rot)
	}
	if r := s.look(); !slices.Equal(r.Extents, want[2:]) || r.UnknownBytes != 4*mib+scrubBlock {
		t.Errorf("after writes: %+v", r)
	}
	pair.spoil(s.deps.config.Path, size-1) // that is: put right
	s.write(5*scrubBlock, scrubBlock)
	s.learn()
	if r := s.look(); len(r.Extents) != 0 {
		t.Errorf("in the end %+v", r)
	}
	if st := s.status(); len(st.Rot) != 0 || st.Error != "" {
		t.Errorf("in the end %+v", st)
	}
	s.reopen()
	if st := s.status(); len(st.Rot) != 0 {
		t.Errorf("after a restart %v", st.Rot)
	}
}

// remember has what was noted forgotten in memory, and read again.
func (s *scrubbedPrimary) remember() {
	s.scrubs.mu.Lock()
	s.scrubs.rot, s.scrubs.path = nil, ""
	s.scrubs.mu.Unlock()
	if err := s.scrubs.load(filepath.Join(s.dir, scrubFile)); err != nil {
		s.t.Fatal(err)
	}
}

// Writers, the indexer and scrubs at the same time: nothing is told but the one block that is rotten.
func TestScrubPrimaryUnderLoad(t *testing.T) {
	const size, blocks = 4 * mib, 4 * mib / scrubBlock
	s := newScrubbedPrimary(t, size)
	s.write(0, size)
	s.learn()
	s.index.limit.SetLimit(1 << 40)
	livePairOf(t).spoil(s.deps.config.Path, 9*scrubBlock)
	ctx, cancel := context.WithCancel(t.Context())
	var routines sync.WaitGroup
	defer routines.Wait()
	defer cancel()
	for i := range uint64(2) {
		routines.Go(func() {
			r := mrand.New(mrand.NewPCG(i, 5))
			b := make([]byte, 4096)
			for ctx.Err() == nil {
				fill(r, b)
				block := r.Int64N(blocks)
				if block == 9 {
					continue
				}
				if err := s.path.WriteAt(b, block*scrubBlock+r.Int64N(16)*4096); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
			}
		})
	}
	routines.Go(func() {
		for ctx.Err() == nil {
			if err := s.index.duePass(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	found, checked := 0, int64(0)
	least, end := time.Now().Add(2*time.Second), time.Now().Add(time.Minute)
	for time.Now().Before(least) || (found == 0 || checked < size) && time.Now().Before(end) {
		r := s.look()
		for _, e := range r.Extents {
			if e != blocksAt(9)[0] {
				t.Fatalf("false rot: %+v", r)
			}
			found++
		}
		checked += r.CheckedBytes
	}
	t.Logf("found %d times, %d bytes checked", found, checked)
	if found == 0 || checked < size {
		t.Error("too little was compared")
	}
}

func livePairOf(t *testing.T) *livePair { return &livePair{t: t} }

// While the device is compared with its index, and of what that finds, nothing is rot.
func TestScrubComparing(t *testing.T) {
	s := newScrubbedPrimary(t, mib)
	s.write(0, mib)
	s.learn()
	if err := s.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	livePairOf(t).spoil(s.deps.config.Path, 0)
	s.open() // suspects a foreign write
	_, err := s.scrub(t.Context(), ScrubOptions{}, nil)
	wantKind(t, err, KindState)
	for more := true; more; {
		if more, err = s.compare.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if r := s.look(); len(r.Extents) != 0 || r.SkippedBytes != scrubBlock || r.CheckedBytes != mib-scrubBlock {
		t.Errorf("what the comparison has found is no rot: %+v", r)
	}
}

// The schedule: the first one an interval after the volume was first opened, also over restarts.
func TestScrubSchedule(t *testing.T) {
	path := filepath.Join(t.TempDir(), scrubFile)
	var x scrubs
	if err := x.load(path); err != nil {
		t.Fatal(err)
	}
	first := x.next(time.Hour)
	if d := time.Until(first); d < 59*time.Minute || d > time.Hour {
		t.Errorf("the first one in %v", d)
	}
	var y scrubs
	if err := y.load(path); err != nil || !y.next(time.Hour).Equal(first) {
		t.Errorf("after a restart %v, %v", y.next(time.Hour), err)
	}
	done, ran := make(chan struct{}), make(chan bool)
	var routine sync.WaitGroup
	routine.Go(func() {
		y.routineSchedule(done, func() time.Duration { return 20 * time.Millisecond }, func() bool { return true }, func() error {
			_, end, err := y.begin(t.Context(), "v", true)
			if err != nil {
				return err
			}
			ran <- true
			end(true)
			return y.save()
		})
	})
	for range 3 {
		<-ran
	}
	close(done)
	routine.Wait()
	blob, err := os.ReadFile(path)
	if err != nil || bytes.Contains(blob, []byte("rot")) || !y.next(0).After(x.next(0)) {
		t.Errorf("%s %v", blob, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var z scrubs
	if err := z.load(path); err != nil || time.Since(z.next(0)) > time.Minute {
		t.Errorf("damaged: %v, %v", z.next(0), err)
	}
	for text, want := range map[string]time.Duration{"weekly": 7 * 24 * time.Hour, "daily": 24 * time.Hour, "off": -1, "90m": 90 * time.Minute, "59s": 0, "": 0, "monthly": 0} {
		if d, err := ParseScrub(text); d != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %v, %v", text, d, err)
		}
	}
}

func TestScrubGivesWay(t *testing.T) {
	var x scrubs
	due, end, err := x.begin(t.Context(), "v", true)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-due.Done()
		end(false)
	}()
	_, endWanted, err := x.begin(t.Context(), "v", false)
	if err != nil || !errors.Is(context.Cause(due), errScrubGivesWay) {
		t.Fatal(err, context.Cause(due))
	}
	for _, scheduled := range []bool{true, false} {
		_, _, err = x.begin(t.Context(), "v", scheduled)
		wantKind(t, err, KindState)
	}
	go x.stop()
	endWanted(true)
	eventually(t, "no other begins", func() bool {
		_, end, err := x.begin(t.Context(), "v", false)
		if err == nil {
			end(false)
		}
		return err != nil
	})
}
