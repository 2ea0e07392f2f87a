package journal_test

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
	"github.com/google/go-cmp/cmp"
)

const (
	volumeDir  = "state/volume"
	volumeSize = 1 << 34 // 4096 regions, 4 Mi pages
)

// smallVolume makes everything so small that a few records go through every path.
var smallVolume = journal.VolumeOptions{SegmentSize: 2048, BufferSize: 256, ReserveMin: 1024, ReserveMax: 4096}

// factsOf are the facts with this cut. Every fifth has lists, and they change now and then.
func factsOf(cut uint64) journal.VolumeFacts {
	f := journal.VolumeFacts{
		UUID: [16]byte{1, 2, 3}, Size: volumeSize, BlockSize: 64 << 10, Role: journal.RolePrimary, Cut: cut,
		Generation: journal.Generation{ID: [16]byte{9}, Counter: 4, Parent: [16]byte{8}, ParentCut: 77},
		Parents:    []journal.Generation{{ID: [16]byte{8}, Counter: 3}},
		Mirrors:    []journal.MirrorFacts{{Name: "m", Node: hashOf(1, 1), Committed: cut, Sent: cut + 1, Attached: true}},
		BootID:     "boot",
		Paused:     cut%2 == 1,
	}
	if cut%5 >= 2 {
		f.Mirror.Holes = []blockdev.Extent{{Offset: int64(cut/10) * 4096, Length: 4096}}
		f.Mirror.Doubts = []blockdev.Extent{{Offset: 0, Length: 65536}, {Offset: 1 << 20, Length: int64(cut/10) + 1}}
	}
	return f
}

// setsOf are the sets of the checkpoint with this number; 0: there was none.
func setsOf(n uint64) []journal.NamedSet {
	if n == 0 {
		return nil
	}
	needs, index := blockdev.NewPageSet(volumeSize/4096), blockdev.NewPageSet(volumeSize/65536)
	needs.Add(n*1000, n)
	needs.Add(65536*3-5, 10)
	index.Add(n, 1)
	return []journal.NamedSet{{Name: "needs/m", Pages: needs}, {Name: "needs/index", Pages: index}}
}

func sameSets(a, b []journal.NamedSet) bool {
	return slices.EqualFunc(a, b, func(x, y journal.NamedSet) bool {
		if x.Name != y.Name || x.Pages.Len() != y.Pages.Len() || x.Pages.Count() != y.Pages.Count() {
			return false
		}
		d := x.Pages.Clone()
		d.Subtract(y.Pages)
		return d.Count() == 0
	})
}

// volumeHistory is what a workload asked for and was promised. Every mark is of a region of its own, every
// facts have a cut of their own.
type volumeHistory struct {
	marked uint64          // regions 1 to this were marked, in this order
	synced uint64          // regions up to this durably
	gone   map[uint64]bool // marks that a crash took before they were promised

	cut    uint64 // facts with cuts 1 to this were appended
	facted uint64 // durably up to this

	checkpoints []checkpointed // all that were begun and might count
	finished    int            // index of the last that Finish has promised; -1: none
}

type checkpointed struct {
	number uint64
	from   uint64 // regions above were marked behind T
	hot    []uint64
}

func (h *volumeHistory) work(fs journal.FS, rounds int) error {
	l, state, err := journal.OpenVolume(fs, volumeDir, smallVolume)
	if err != nil {
		return err
	}
	defer l.Close()
	if !state.Found {
		if err := h.facts(l, true); err != nil {
			return err
		}
	}
	for i := range rounds {
		regions := []uint64{h.marked + 1, h.marked + 2}
		h.marked += 2
		lsn, err := l.Mark(regions)
		if err == nil && i%3 == 1 {
			err = l.Sync(lsn)
			if err == nil {
				h.synced, h.facted = h.marked, h.cut
			}
		}
		if err == nil && i%4 == 2 {
			err = h.facts(l, i%8 == 2)
		}
		if err == nil && i%13 == 12 {
			err = h.takeCheckpoint(l)
		}
		if err != nil {
			return err
		}
	}
	if err := l.Close(); err != nil {
		return err
	}
	h.synced, h.facted = h.marked, h.cut
	return nil
}

func (h *volumeHistory) facts(l *journal.VolumeLog, durable bool) error {
	h.cut++
	if !durable {
		_, err := l.AppendFacts(factsOf(h.cut))
		return err
	}
	err := l.SetFacts(factsOf(h.cut))
	if err == nil {
		h.facted, h.synced = h.cut, h.marked
	}
	return err
}

// takeCheckpoint abandons every third. Marks and facts go on meanwhile.
func (h *volumeHistory) takeCheckpoint(l *journal.VolumeLog) error {
	c, err := l.BeginCheckpoint()
	if err != nil {
		return err
	}
	one := checkpointed{number: uint64(len(h.checkpoints)) + 1, from: h.marked, hot: []uint64{h.marked / 2, 7}}
	h.checkpoints = append(h.checkpoints, one)
	h.marked++
	if _, err := l.Mark([]uint64{h.marked}); err != nil {
		return err
	}
	if err := h.facts(l, false); err != nil {
		return err
	}
	if one.number%3 == 2 {
		c.Abandon()
		return nil
	}
	h.cut++
	err = c.Finish(factsOf(h.cut), setsOf(one.number), one.hot)
	if err == nil {
		h.finished, h.facted, h.synced = int(one.number)-1, h.cut, h.marked
	}
	return err
}

// check opens what is left and compares it with the history.
func (h *volumeHistory) check(fs *journaltest.MemFS) (*journal.VolumeState, error) {
	l, state, err := journal.OpenVolume(fs, volumeDir, smallVolume)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if !state.Found {
		if h.facted > 0 {
			return nil, fmt.Errorf("facts of cut %d were promised, none are there", h.facted)
		}
		return state, nil
	}
	cut := state.Facts.Cut
	if cut < h.facted || cut > h.cut {
		return nil, fmt.Errorf("facts of cut %d were promised, %d appended, %d are there", h.facted, h.cut, cut)
	}
	if !cmp.Equal(state.Facts, factsOf(cut)) {
		return nil, fmt.Errorf("facts of cut %d: %s", cut, cmp.Diff(factsOf(cut), state.Facts))
	}
	return state, h.checkCheckpoint(state)
}

// checkCheckpoint wants the last checkpoint that was promised or the one that was being finished, and with
// it every mark since its T.
func (h *volumeHistory) checkCheckpoint(state *journal.VolumeState) error {
	candidates := []checkpointed{{}} // as if one was taken before everything
	if h.finished >= 0 {
		candidates[0] = h.checkpoints[h.finished]
	}
	if n := len(h.checkpoints); n > h.finished+1 {
		candidates = append(candidates, h.checkpoints[n-1])
	}
	for _, c := range candidates {
		if !sameSets(state.Sets, setsOf(c.number)) {
			continue
		}
		for r := c.from + 1; r <= h.synced; r++ {
			if !slices.Contains(state.Hot, r) && !h.gone[r] {
				return fmt.Errorf("checkpoint %d, mark %d of %d is lost: %d", c.number, r, h.synced, state.Hot)
			}
		}
		for _, r := range state.Hot {
			if (r <= c.from || r > h.marked) && !slices.Contains(c.hot, r) {
				return fmt.Errorf("checkpoint %d, nobody marked %d: %d", c.number, r, state.Hot)
			}
		}
		for _, r := range c.hot {
			if !slices.Contains(state.Hot, r) {
				return fmt.Errorf("checkpoint %d, listed region %d is lost: %d", c.number, r, state.Hot)
			}
		}
		return nil
	}
	return fmt.Errorf("sets are of no checkpoint in %+v", candidates)
}

func volumeWorkload(fs journal.FS) (*volumeHistory, error) {
	h := &volumeHistory{finished: -1}
	if err := h.work(fs, 44); err != nil {
		return h, err
	}
	return h, h.work(fs, 16)
}

// Every operation fails in turn, with every kind of failure. What was promised must be there afterwards:
// for a process that starts anew on the same kernel, and after a power cut, whatever share of the
// unsynced bytes it keeps. Then the journal must be good for more work, and for another power cut.
func TestVolumeSurvivesEveryFault(t *testing.T) {
	clean := journaltest.New()
	if _, err := volumeWorkload(clean); err != nil {
		t.Fatal(err)
	}
	ops := clean.Count(journaltest.OpAny)
	const restart = 99 // no power cut: the process starts anew
	silent := 0
	for n, cause := range []error{syscall.EIO, syscall.ENOSPC, journaltest.ErrShort} {
		seeds := []uint64{0, 1, 2, restart}
		if n > 0 {
			seeds = []uint64{3, restart} // what the others leave is much the same
		}
		for i := range ops {
			fs := journaltest.New()
			fs.Fail(journaltest.OpAny, i, cause)
			h, err := volumeWorkload(fs)
			if fs.Struck() != 1 {
				t.Fatalf("fault %d did not strike", i)
			}
			if err == nil {
				silent++
			}
			fs.Heal()
			for _, seed := range seeds {
				after := fs.Crash(seed)
				if seed == restart {
					after = fs
				}
				if err := volumeAfterwards(h, after); err != nil {
					t.Fatalf("fault %v at operation %d of %d, seed %d: %v", cause, i, ops, seed, err)
				}
			}
		}
	}
	// Only to make room ahead may fail without a word: see TestVolumeTellsThatNoRoomCouldBeKept.
	if spares := clean.Count(journaltest.OpAllocate); silent > 3*4*spares {
		t.Errorf("%d faults were not told, and room was made %d times", silent, spares)
	}
}

// A power cut without a fault before it, at every operation.
func TestVolumeSurvivesEveryCrash(t *testing.T) {
	clean := journaltest.New()
	if _, err := volumeWorkload(clean); err != nil {
		t.Fatal(err)
	}
	for i := range clean.Count(journaltest.OpAny) {
		// Everything fails from i on: the process has stopped there.
		fs := journaltest.New()
		for at := i; at < i+200; at++ {
			fs.Fail(journaltest.OpAny, at, syscall.EIO)
		}
		h, err := volumeWorkload(fs)
		if err == nil {
			t.Fatalf("everything failed from %d on, and nobody was told", i)
		}
		fs.Heal()
		for seed := range uint64(6) {
			if err := volumeAfterwards(h, fs.Crash(seed)); err != nil {
				t.Fatalf("stopped at operation %d, seed %d: %v", i, seed, err)
			}
		}
	}
}

// volumeAfterwards checks a journal, works on it, and cuts the power once more.
func volumeAfterwards(h *volumeHistory, fs *journaltest.MemFS) error {
	state, err := h.check(fs)
	if err != nil {
		return err
	}
	again, err := h.check(fs.Crash(0))
	if err != nil {
		return fmt.Errorf("second recovery: %w", err)
	}
	if !cmp.Equal(state.Facts, again.Facts) || !slices.Equal(state.Hot, again.Hot) || !sameSets(state.Sets, again.Sets) {
		return fmt.Errorf("second recovery: %+v, first %+v", again, state)
	}
	next := *h
	next.checkpoints = slices.Clone(h.checkpoints)
	next.cut, next.facted = max(h.cut, state.Facts.Cut), state.Facts.Cut
	next.gone = map[uint64]bool{}
	for r := next.synced + 1; r <= next.marked; r++ {
		next.gone[r] = !slices.Contains(state.Hot, r)
	}
	for i, c := range next.checkpoints {
		if sameSets(state.Sets, setsOf(c.number)) {
			next.finished = i
		}
	}
	if err := next.work(fs, 16); err != nil {
		return fmt.Errorf("work afterwards: %w", err)
	}
	if _, err := next.check(fs.Crash(3)); err != nil {
		return fmt.Errorf("work afterwards and a crash: %w", err)
	}
	return nil
}

func openVolume(t testing.TB, fs journal.FS, o journal.VolumeOptions) (*journal.VolumeLog, *journal.VolumeState) {
	t.Helper()
	l, state, err := journal.OpenVolume(fs, volumeDir, o)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l, state
}

func TestVolumeIsEmptyAtFirst(t *testing.T) {
	fs := journaltest.New()
	l, state := openVolume(t, fs, journal.VolumeOptions{SegmentSize: 4096})
	if state.Found || state.Hot != nil || state.Sets != nil {
		t.Errorf("new: %+v", state)
	}
	if _, err := l.Mark([]uint64{0}); !errors.Is(err, journal.ErrFacts) {
		t.Errorf("mark without a volume: %v", err)
	}
	must(t, l.Sync(0))
	must(t, l.Close())
	_, state = openVolume(t, fs, smallVolume)
	if state.Found {
		t.Errorf("nothing was set: %+v", state)
	}
}

func TestVolumeRefusesMisuse(t *testing.T) {
	l, _ := openVolume(t, journaltest.New(), smallVolume)
	good := factsOf(3)
	bad := map[string]func(*journal.VolumeFacts){
		"role":        func(f *journal.VolumeFacts) { f.Role = 3 },
		"size":        func(f *journal.VolumeFacts) { f.Size = -1 },
		"huge":        func(f *journal.VolumeFacts) { f.Size = journal.MaxVolumeSize + 1 },
		"block size":  func(f *journal.VolumeFacts) { f.BlockSize = 3 << 12 },
		"small block": func(f *journal.VolumeFacts) { f.BlockSize = 2 << 10 },
		"parents":     func(f *journal.VolumeFacts) { f.Parents = make([]journal.Generation, journal.MaxParents+1) },
		"mirrors":     func(f *journal.VolumeFacts) { f.Mirrors = make([]journal.MirrorFacts, journal.MaxMirrors+1) },
		"no name":     func(f *journal.VolumeFacts) { f.Mirrors = []journal.MirrorFacts{{}} },
		"same name":   func(f *journal.VolumeFacts) { f.Mirrors = []journal.MirrorFacts{{Name: "a"}, {Name: "a"}} },
		"device":      func(f *journal.VolumeFacts) { f.Device = make([]byte, journal.MaxDeviceFacts+1) },
		"boot":        func(f *journal.VolumeFacts) { f.BootID = string(make([]byte, journal.MaxBootID+1)) },
		"many epochs": func(f *journal.VolumeFacts) { f.Mirror.Epochs = make([]uint64, journal.MaxEpochs+1) },
		"epochs":      func(f *journal.VolumeFacts) { f.Mirror.Epochs = []uint64{4, 4} },
		"many holes":  func(f *journal.VolumeFacts) { f.Mirror.Holes = make([]blockdev.Extent, journal.MaxListed+1) },
		"empty hole":  func(f *journal.VolumeFacts) { f.Mirror.Holes = []blockdev.Extent{{Offset: 4096}} },
		"long hole":   func(f *journal.VolumeFacts) { f.Mirror.Doubts = []blockdev.Extent{{Offset: 1, Length: 1<<63 - 1}} },
	}
	for name, change := range bad {
		f := good
		change(&f)
		if err := l.SetFacts(f); !errors.Is(err, journal.ErrFacts) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, l.SetFacts(good))
	smaller := good
	smaller.Size -= 4096
	if err := l.SetFacts(smaller); !errors.Is(err, journal.ErrFacts) {
		t.Errorf("smaller: %v", err)
	}
	if _, err := l.Mark([]uint64{volumeSize / journal.RegionSize}); !errors.Is(err, journal.ErrFacts) {
		t.Errorf("mark behind the end: %v", err)
	}
	if err := l.Sync(100); !errors.Is(err, journal.ErrNoRecord) {
		t.Errorf("sync: %v", err)
	}
	must(t, l.Err()) // a refusal is no failure

	c, err := l.BeginCheckpoint()
	must(t, err)
	if _, err := l.BeginCheckpoint(); !errors.Is(err, journal.ErrCheckpoint) {
		t.Errorf("second checkpoint: %v", err)
	}
	long := blockdev.NewPageSet(volumeSize/4096 + 1)
	if err := c.Finish(good, []journal.NamedSet{{Name: "a", Pages: long}}, nil); !errors.Is(err, journal.ErrFacts) {
		t.Errorf("set that is too long: %v", err)
	}
	if err := c.Finish(good, nil, nil); !errors.Is(err, journal.ErrCheckpoint) {
		t.Errorf("checkpoint used twice: %v", err)
	}
	c, err = l.BeginCheckpoint()
	must(t, err)
	if err := c.Finish(good, nil, []uint64{volumeSize / journal.RegionSize}); !errors.Is(err, journal.ErrFacts) {
		t.Errorf("hot region behind the end: %v", err)
	}
	must(t, l.Err())
}

func TestVolumeIsCompacted(t *testing.T) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, smallVolume)
	must(t, l.SetFacts(factsOf(1)))
	for n := range uint64(6) {
		for r := range uint64(100) {
			_, err := l.Mark([]uint64{r})
			must(t, err)
		}
		if l.SinceCheckpoint() < 100*40 {
			t.Errorf("100 marks are %d bytes", l.SinceCheckpoint())
		}
		c, err := l.BeginCheckpoint()
		must(t, err)
		if l.SinceCheckpoint() != 0 {
			t.Errorf("%d bytes since T", l.SinceCheckpoint())
		}
		if n%2 == 0 {
			c.Abandon()
			if l.SinceCheckpoint() < 100*40 {
				t.Errorf("%d bytes after one that was abandoned", l.SinceCheckpoint())
			}
			continue
		}
		must(t, c.Finish(factsOf(n), setsOf(n), nil))
	}
	want := []string{"0000000003.ckpt", "", "reserve", "spare.1", "spare.2"}
	got := fs.Paths()
	if len(got) != len(want) {
		t.Fatalf("left: %v", got)
	}
	for i, name := range want {
		if name != "" && got[i] != volumeDir+"/journal/"+name {
			t.Errorf("left: %v", got)
		}
	}
}

// A mark behind facts that say clean: they were true before it.
func TestVolumeIsNotCleanBehindAMark(t *testing.T) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, smallVolume)
	clean := factsOf(1)
	clean.Clean, clean.Device = true, []byte("{}")
	must(t, l.SetFacts(factsOf(1)))
	_, err := l.Mark([]uint64{4})
	must(t, err)
	c, err := l.BeginCheckpoint()
	must(t, err)
	_, err = l.Mark([]uint64{5})
	must(t, err)
	must(t, c.Finish(clean, setsOf(1), []uint64{6}))
	must(t, l.Close())
	l, state := openVolume(t, fs, smallVolume)
	if !cmp.Equal(state.Facts, clean) || !slices.Equal(state.Hot, []uint64{5, 6}) {
		t.Errorf("clean stop: %+v", state)
	}
	_, err = l.Mark([]uint64{9, 3})
	must(t, err)
	must(t, l.Close())
	_, state = openVolume(t, fs, smallVolume)
	if state.Facts.Clean || !slices.Equal(state.Hot, []uint64{3, 5, 6, 9}) {
		t.Errorf("after a mark: clean %t, hot %d", state.Facts.Clean, state.Hot)
	}
}

// Facts that were appended while a checkpoint was being finished hold, and not those it was given.
func TestVolumeKeepsNewerFactsThanItsCheckpoint(t *testing.T) {
	fs := journaltest.New()
	var l *journal.VolumeLog
	hooked := onSync{fs, func(path string) {
		if path == volumeDir+"/journal/reserve" {
			must(t, l.SetFacts(factsOf(9)))
		}
	}}
	l, _ = openVolume(t, hooked, smallVolume)
	must(t, l.SetFacts(factsOf(7)))
	c, err := l.BeginCheckpoint()
	must(t, err)
	must(t, c.Finish(factsOf(8), setsOf(1), nil))
	_, state := openVolume(t, fs.Crash(0), smallVolume)
	if !cmp.Equal(state.Facts, factsOf(9)) || !sameSets(state.Sets, setsOf(1)) {
		t.Errorf("found %+v", state.Facts)
	}
}

// onSync calls something before each file is synced.
type onSync struct {
	journal.FS
	before func(path string)
}

type onSyncFile struct {
	journal.File
	before func()
}

func (o onSync) Create(path string) (journal.File, error) {
	f, err := o.FS.Create(path)
	return onSyncFile{f, func() { o.before(path) }}, err
}

func (o onSync) Open(path string, write bool) (journal.File, error) {
	f, err := o.FS.Open(path, write)
	return onSyncFile{f, func() { o.before(path) }}, err
}

func (f onSyncFile) Sync() error {
	f.before()
	return f.File.Sync()
}

func TestSetAsideVolume(t *testing.T) {
	fs := journaltest.New()
	if to, err := journal.SetAsideVolume(fs, volumeDir); to != "" || err != nil {
		t.Errorf("nothing there: %q, %v", to, err)
	}
	for _, want := range []string{"journal.damaged", "journal.damaged.2"} {
		l, state := openVolume(t, fs, smallVolume)
		if state.Found {
			t.Errorf("found %+v", state)
		}
		must(t, l.SetFacts(factsOf(1)))
		must(t, l.Close())
		to, err := journal.SetAsideVolume(fs, volumeDir)
		if to != volumeDir+"/"+want || err != nil {
			t.Errorf("set aside: %q, %v", to, err)
		}
		fs = fs.Crash(0)
	}
}
