package journaltest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev/devtest/pagepool"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// fsModel is a file system of plain slices, with a list of everything that is not durable.
type fsModel struct {
	now, disk map[string]*fileModel // by name
	undone    []nameModel
}

type fileModel struct {
	now, disk []byte
	dirty     []dataModel
}

type nameModel struct {
	seq      int
	from, to string
	file     *fileModel
}

type dataModel struct {
	seq int
	do  func([]byte) []byte
}

func newFSModel() *fsModel {
	return &fsModel{now: map[string]*fileModel{}, disk: map[string]*fileModel{}}
}

func (o nameModel) apply(names map[string]*fileModel) {
	switch {
	case o.from == "":
		names[o.to] = o.file
	case o.to == "":
		delete(names, o.from)
	case names[o.from] != nil:
		names[o.to] = names[o.from]
		delete(names, o.from)
	}
}

func sized(b []byte, size int) []byte {
	b = b[:min(size, len(b)):min(size, len(b))]
	return append(b, make([]byte, size-len(b))...)
}

func (f *fileModel) change(seq int, do func([]byte) []byte) {
	f.now = do(f.now)
	f.dirty = append(f.dirty, dataModel{seq, do})
}

// after is what a power cut leaves that keeps some operations whole.
func (m *fsModel) after(keep func(seq int) bool) map[string][]byte {
	names := map[string]*fileModel{}
	for path, f := range m.disk {
		names[path] = f
	}
	for _, o := range m.undone {
		if keep(o.seq) {
			o.apply(names)
		}
	}
	out := map[string][]byte{}
	for path, f := range names {
		data := append([]byte{}, f.disk...)
		for _, o := range f.dirty {
			if keep(o.seq) {
				data = o.do(data)
			}
		}
		out[path] = data
	}
	return out
}

func (m *fsModel) shown() map[string][]byte {
	out := map[string][]byte{}
	for path, f := range m.now {
		out[path] = f.now
	}
	return out
}

func copied(files map[string][]byte) map[string][]byte {
	out := map[string][]byte{}
	for path, data := range files {
		out[path] = bytes.Clone(data)
	}
	return out
}

func holds(m *journaltest.MemFS, want map[string][]byte) error {
	var used int64
	if n := len(m.Paths()); n != len(want) {
		return fmt.Errorf("%d files %v, want %d", n, m.Paths(), len(want))
	}
	for path, data := range want {
		if got := m.Read(path); got == nil || !bytes.Equal(got, data) {
			return fmt.Errorf("%s has %d bytes, want %d, or others", path, len(got), len(data))
		}
		used += int64(len(data))
	}
	if m.Used() != used {
		return fmt.Errorf("%d bytes used, want %d", m.Used(), used)
	}
	return nil
}

// fsWalk does the same to a file system and to a model.
type fsWalk struct {
	fs  *journaltest.MemFS
	m   *fsModel
	rng *rand.Rand
	seq int
}

func (w *fsWalk) act() error {
	paths := w.fs.Paths()
	path := fmt.Sprintf("f%d", w.rng.IntN(6))
	if len(paths) == 0 || w.rng.IntN(12) == 0 {
		return w.create(path)
	}
	if w.rng.IntN(3) > 0 {
		return w.data(paths[w.rng.IntN(len(paths))])
	}
	from := paths[w.rng.IntN(len(paths))]
	switch w.rng.IntN(8) {
	case 0:
		return w.name(nameModel{from: from}, w.fs.Remove(from))
	case 1:
		if from != path {
			return w.name(nameModel{from: from, to: path}, w.fs.Rename(from, path))
		}
	case 2:
		for _, o := range w.m.undone {
			o.apply(w.m.disk)
		}
		w.m.undone = nil
		return w.fs.SyncDir(".")
	case 3:
		w.fs.Kill()
		w.fs = w.fs.Killed()
	case 4:
		if w.rng.IntN(3) == 0 {
			w.restart()
		}
	}
	return nil
}

func (w *fsWalk) create(path string) error {
	f, err := w.fs.Create(path)
	if w.m.now[path] != nil {
		if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create %s: %v", path, err)
		}
		return nil
	}
	if err == nil {
		f.Close()
	}
	return w.name(nameModel{to: path, file: &fileModel{}}, err)
}

func (w *fsWalk) name(o nameModel, err error) error {
	w.seq++
	o.seq = w.seq
	o.apply(w.m.now)
	w.m.undone = append(w.m.undone, o)
	return err
}

// restart goes on after a power cut, with what that left.
func (w *fsWalk) restart() {
	w.fs, w.m = w.fs.PowerCut(w.rng), newFSModel()
	for _, path := range w.fs.Paths() {
		data := w.fs.Read(path)
		f := &fileModel{now: data, disk: bytes.Clone(data)}
		w.m.now[path], w.m.disk[path] = f, f
	}
	w.seq = 0
}

func (w *fsWalk) data(path string) error {
	h, err := w.fs.Open(path, true)
	if err != nil {
		return err
	}
	f := w.m.now[path]
	off, n := w.rng.IntN(20000), 1+w.rng.IntN(1<<w.rng.IntN(15))
	if w.rng.IntN(2) == 0 {
		off, n = off/4096*4096, 4096
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.rng.Uint32())
	}
	resize := func(size int) {
		w.seq++
		f.change(w.seq, func(b []byte) []byte { return sized(b, size) })
	}
	overwrite := func(p []byte) {
		w.seq++
		f.change(w.seq, func(b []byte) []byte {
			b = sized(b, max(len(b), off+len(p)))
			copy(b[off:], p)
			return b
		})
	}
	switch w.rng.IntN(9) {
	default:
		_, err = h.WriteAt(p, int64(off))
		overwrite(p)
	case 1:
		w.fs.Fail(journaltest.OpWrite, w.fs.Count(journaltest.OpWrite), journaltest.ErrShort)
		_, err = h.WriteAt(p, int64(off))
		if n > 1 {
			overwrite(p[:n/2])
		}
	case 2:
		err = h.Truncate(int64(off))
		resize(off)
	case 3:
		err = h.(journal.Allocator).Allocate(int64(off))
		if off > len(f.now) {
			resize(off)
		}
	case 4:
		err = h.(journal.Puncher).Punch(int64(off), int64(n))
		if n = min(n, len(f.now)-off); n > 0 {
			overwrite(make([]byte, n))
		}
	case 5, 6:
		err = h.Sync()
		for _, o := range f.dirty {
			f.disk = o.do(f.disk)
		}
		f.dirty = nil
	case 7:
		w.fs.Fail(journaltest.OpSync, w.fs.Count(journaltest.OpSync), syscall.EIO)
		if h.Sync() == nil {
			err = errors.New("a sync that must fail does not")
		}
		f.dirty = nil
	}
	return err
}

func (w *fsWalk) check() error {
	if err := holds(w.fs, w.m.shown()); err != nil {
		return err
	}
	if w.rng.IntN(6) > 0 { // what has heirs does not use its memory again
		return nil
	}
	if err := holds(w.fs.Clone().Crash(0), w.m.shown()); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err := holds(w.fs.Crash(0), w.m.after(func(int) bool { return false })); err != nil {
		return fmt.Errorf("durable: %w", err)
	}
	if err := holds(w.fs.Crash(1), w.m.after(func(int) bool { return true })); err != nil {
		return fmt.Errorf("all kept: %w", err)
	}
	kept, last := map[int]bool{}, 0
	var failure error
	after := w.fs.PowerCutKeep(func(c journaltest.Change) bool {
		if c.Seq <= last {
			failure = fmt.Errorf("change %d after %d", c.Seq, last)
		}
		last = c.Seq
		kept[c.Seq] = w.rng.IntN(2) == 0
		return kept[c.Seq]
	})
	if err := holds(after, w.m.after(func(seq int) bool { return kept[seq] })); err != nil {
		return fmt.Errorf("%v kept of %v: %w", kept, w.fs.Unsynced(), err)
	}
	return failure
}

func TestMemFSAgainstModel(t *testing.T) {
	pool := new(pagepool.Pool)
	for seed := range uint64(150) {
		w := &fsWalk{fs: journaltest.New(), m: newFSModel(), rng: rand.New(rand.NewPCG(seed, 3))}
		if seed%2 == 0 {
			pool.Reset()
			w.fs = journaltest.NewIn(pool)
		}
		type state struct{ now, durable map[string][]byte }
		kept := map[*journaltest.MemFS]state{} // what others have must stay as it is
		for step := range 150 {
			err := w.act()
			if err == nil {
				err = w.check()
			}
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			if w.rng.IntN(15) == 0 {
				now, durable := w.m.after(func(int) bool { return true }), w.m.after(func(int) bool { return false })
				kept[w.fs.Crash(1)] = state{now, now}
				other := w.fs.Killed()
				kept[other] = state{copied(w.m.shown()), durable}
			}
		}
		for other, want := range kept {
			if err := errors.Join(holds(other, want.now), holds(other.Crash(0), want.durable)); err != nil {
				t.Fatalf("seed %d: another file system was changed: %v", seed, err)
			}
		}
	}
}

// TestMemFSPowerCutReach meets every state that there may be after a few operations, and no other.
func TestMemFSPowerCutReach(t *testing.T) {
	m := journaltest.New()
	m.Write("a", bytes.Repeat([]byte{1}, 2*journaltest.SectorSize))
	h, err := m.Open("a", true)
	if err != nil {
		t.Fatal(err)
	}
	h.WriteAt(bytes.Repeat([]byte{2}, 2*journaltest.SectorSize), 0)
	h.Truncate(journaltest.SectorSize)
	m.Rename("a", "b")
	m.Create("c")
	state := func(m *journaltest.MemFS) string {
		s := fmt.Sprint(m.Paths())
		for _, path := range []string{"a", "b"} {
			for b := m.Read(path); len(b) > 0; b = b[journaltest.SectorSize:] {
				s += fmt.Sprint(" ", b[0])
			}
		}
		return s
	}
	want := map[string]bool{}
	for set := range 32 { // a rename, a create, a truncation, two sectors
		paths := []string{"a"}
		if set&1 != 0 {
			paths = []string{"b"}
		}
		if set&2 != 0 {
			paths = append(paths, "c")
		}
		s := fmt.Sprint(paths, " ", 1+set>>3&1)
		if set&4 == 0 {
			s += fmt.Sprint(" ", 1+set>>4&1)
		}
		want[s] = true
	}
	seen, crashed := map[string]bool{}, map[string]bool{}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		seen[state(m.PowerCut(rng))] = true
		crashed[state(m.Crash(uint64(i)))] = true
	}
	for what, got := range map[string]map[string]bool{"PowerCut": seen, "Crash": crashed} {
		for s := range got {
			if !want[s] {
				t.Errorf("%s leaves %s", what, s)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s leaves %d states, want %d", what, len(got), len(want))
		}
	}
	var ops []journaltest.Op
	for _, c := range m.Unsynced() {
		ops = append(ops, c.Op)
	}
	if !slices.Equal(ops, []journaltest.Op{journaltest.OpWrite, journaltest.OpTruncate, journaltest.OpRename, journaltest.OpCreate}) {
		t.Errorf("unsynced: %v", m.Unsynced())
	}
}

func TestMemFSKill(t *testing.T) {
	m := journaltest.New()
	m.Limit(10000)
	h, err := m.Create("a")
	if err != nil {
		t.Fatal(err)
	}
	h.WriteAt([]byte("old"), 0)
	h.Sync()
	m.SyncDir(".")
	h.WriteAt([]byte("new"), 0)
	m.Kill()
	hooked := 0
	m.Hook = func(journaltest.Op, string) error { hooked++; return nil }
	_, rerr := h.ReadAt(make([]byte, 1), 0)
	n, werr := h.WriteAt([]byte("dead"), 0)
	_, serr := h.Size()
	_, cerr := m.Create("b")
	_, oerr := m.Open("a", false)
	_, derr := m.ReadDir(".")
	for _, err := range []error{rerr, werr, serr, cerr, oerr, derr, h.Truncate(0), h.Sync(), h.(journal.Allocator).Allocate(99),
		h.(journal.Puncher).Punch(0, 1), h.Close(), m.Rename("a", "c"), m.Remove("a"), m.Mkdir("d"), m.SyncDir(".")} {
		if !errors.Is(err, journaltest.ErrDead) {
			t.Error(err)
		}
	}
	if n != 0 || hooked != 0 || string(m.Read("a")) != "new" || string(m.Crash(0).Read("a")) != "old" {
		t.Errorf("the dead write: %d, %d hooks, %q, durable %q", n, hooked, m.Read("a"), m.Crash(0).Read("a"))
	}
	k := m.Killed()
	if string(k.Read("a")) != "new" || string(k.Crash(0).Read("a")) != "old" {
		t.Error("a kill is not a power cut")
	}
	again, err := k.Open("a", true)
	if err != nil || again.Sync() != nil || string(k.Crash(0).Read("a")) != "new" {
		t.Error("the next process cannot go on")
	}
	for _, next := range []*journaltest.MemFS{k, m.Clone(), m.PowerCut(rand.New(rand.NewPCG(1, 1)))} {
		if h, err := next.Open("a", true); err != nil || !errors.Is(h.Truncate(10001), syscall.ENOSPC) {
			t.Errorf("the disk has grown (%v)", err)
		}
	}
}

// TestMemFSHeirsGoOn writes to a file system and to one that came of it, in turns.
func TestMemFSHeirsGoOn(t *testing.T) {
	m := journaltest.New()
	h, _ := m.Create("a")
	for i := range 5 {
		k := m.Killed()
		g, err := k.Open("a", true)
		if err != nil {
			t.Fatal(err)
		}
		h.WriteAt([]byte{1}, int64(i))
		g.WriteAt([]byte{2}, int64(i))
		if a, b := m.Crash(1).Read("a"), k.Crash(1).Read("a"); a[i] != 1 || b[i] != 2 {
			t.Errorf("round %d: %v and %v", i, a, b)
		}
	}
}

func TestMemFSHook(t *testing.T) {
	m := journaltest.New()
	h, err := m.Create("a")
	if err != nil {
		t.Fatal(err)
	}
	var answer error
	var op journaltest.Op
	m.Hook = func(o journaltest.Op, path string) error {
		if op = o; path != "a" {
			t.Errorf("%v of %s", o, path)
		}
		if answer == journaltest.ErrDead {
			m.Kill()
			return nil
		}
		return answer
	}
	answer = syscall.EIO
	if n, err := h.WriteAt([]byte("half"), 0); n != 2 || !errors.Is(err, syscall.EIO) || op != journaltest.OpWrite || string(m.Read("a")) != "ha" {
		t.Errorf("a write that fails: %d, %v, %v, %q", n, err, op, m.Read("a"))
	}
	if err := h.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("a sync that fails: %v", err)
	}
	answer = nil
	if err := h.Sync(); err != nil || string(m.PowerCutKeep(func(journaltest.Change) bool { return true }).Read("a")) != "" {
		t.Errorf("what a failed sync dropped came to the disk (%v)", err)
	}
	h.WriteAt([]byte("whole"), 0)
	k := m.Killed()
	h2, _ := k.Open("a", true)
	answer = journaltest.ErrDead
	if err := h.Truncate(1); !errors.Is(err, journaltest.ErrDead) || string(m.Read("a")) != "whole" {
		t.Errorf("killed in the hook: %v, %q", err, m.Read("a"))
	}
	k.Hook = func(journaltest.Op, string) error { return journaltest.ErrLast }
	if err := h2.Truncate(1); !errors.Is(err, journaltest.ErrDead) || string(k.Read("a")) != "w" {
		t.Errorf("the last operation: %v, %q", err, k.Read("a"))
	}
	if err := h2.Truncate(0); !errors.Is(err, journaltest.ErrDead) || string(k.Read("a")) != "w" {
		t.Errorf("after the last operation: %v, %q", err, k.Read("a"))
	}
}
