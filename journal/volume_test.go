package journal_test

import (
	"errors"
	"slices"
	"strings"
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

// factsOf are the facts with this cut. Three of five have lists, which change now and then, and one of these is
// of a mirror that is read-only.
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
	if cut%5 == 4 {
		f.Role = journal.RoleMirror
		f.Mirror.Quarantine = []blockdev.Extent{{Offset: 1 << 21, Length: int64(cut/20+1) * 4096}}
		f.Mirror.ReadOnly = journal.ReadOnly{Class: journal.ClassVerify, Epoch: cut / 20, Since: 5, Reason: "differs"}
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
	readOnly := func(change func(*journal.ReplicaFacts)) func(*journal.VolumeFacts) {
		return func(f *journal.VolumeFacts) {
			f.Role, f.Mirror.ReadOnly.Class = journal.RoleMirror, journal.ClassVerify
			change(&f.Mirror)
		}
	}
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
		"quarantine":  func(f *journal.VolumeFacts) { f.Mirror.Quarantine = []blockdev.Extent{{Length: 4096}} },
		"cause":       func(f *journal.VolumeFacts) { f.Mirror.ReadOnly.Epoch = 1 },
		"since":       func(f *journal.VolumeFacts) { f.Mirror.ReadOnly.Since = 1 },
		"reason":      func(f *journal.VolumeFacts) { f.Mirror.ReadOnly.Reason = "none" },
		"bad blocks":  func(f *journal.VolumeFacts) { f.Mirror.ReadOnly.Blocks = make([]journal.BadBlock, 1) },
		"primary":     func(f *journal.VolumeFacts) { f.Mirror.ReadOnly.Class = journal.ClassPayload },
		"class":       readOnly(func(m *journal.ReplicaFacts) { m.ReadOnly.Class = journal.ClassRot + 1 }),
		"long reason": readOnly(func(m *journal.ReplicaFacts) { m.ReadOnly.Reason = strings.Repeat("r", journal.MaxReason+1) }),
		"many blocks": readOnly(func(m *journal.ReplicaFacts) { m.ReadOnly.Blocks = make([]journal.BadBlock, journal.MaxBadBlocks+1) }),
		"block":       readOnly(func(m *journal.ReplicaFacts) { m.ReadOnly.Blocks = []journal.BadBlock{{Offset: -1}} }),
		"much":        readOnly(func(m *journal.ReplicaFacts) { m.Quarantine = make([]blockdev.Extent, journal.MaxListed+1) }),
		"no length":   readOnly(func(m *journal.ReplicaFacts) { m.Quarantine = make([]blockdev.Extent, 1) }),
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

// Every part of the lists counts: where one has changed, they are written anew, and where none has, they are not.
func TestVolumeRemembersWhyItIsReadOnly(t *testing.T) {
	fs := journaltest.New()
	l, _ := openVolume(t, fs, smallVolume)
	f := factsOf(0)
	f.Role, f.Mirrors = journal.RoleMirror, nil
	r := &f.Mirror.ReadOnly
	for i, change := range []func(){
		func() { r.Class = journal.ClassAck },
		func() { f.Mirror.Quarantine = []blockdev.Extent{{Offset: 4096, Length: 4096}} },
		func() { f.Mirror.Quarantine[0].Length = 8192 },
		func() { r.Class = journal.ClassRot },
		func() { r.Epoch++ },
		func() { r.Since-- },
		func() { r.Reason = "index" },
		func() { r.Blocks = []journal.BadBlock{{Offset: 4096, Want: hashOf(1, 1), Got: hashOf(2, 2)}} },
		func() { r.Blocks[0].Got[31]++ },
		func() { f.Mirror.Doubts = []blockdev.Extent{{Offset: 0, Length: 1}} },
		func() { f.Mirror.Quarantine = nil },
		func() { *r = journal.ReadOnly{} },
	} {
		change()
		first, err := l.AppendFacts(f)
		must(t, err)
		f.Cut++
		second, err := l.AppendFacts(f)
		must(t, err)
		must(t, l.Sync(second))
		if second != first+1 {
			t.Errorf("change %d: facts with the same lists are in record %d and %d", i, first, second)
		}
		var state *journal.VolumeState
		fs = fs.Crash(uint64(i))
		l, state = openVolume(t, fs, smallVolume)
		if diff := cmp.Diff(f, state.Facts); diff != "" {
			t.Errorf("change %d: %s", i, diff)
		}
		f = state.Facts // what the caller got is its own
	}
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
