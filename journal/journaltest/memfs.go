// Package journaltest holds what tests of durable things need: a file system in memory that can crash,
// and that fails where it is told to.
package journaltest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/blkmirror/blkmirror/blockdev/devtest/pagepool"
	"github.com/blkmirror/blkmirror/journal"
)

// MemFS is a file system in memory. It knows of each file what is durable and what was done since, and
// of each name likewise, so that Crash can say what a power cut would have left.
//
// What it assumes of a disk: a sector is written as a whole or not at all; unsynced writes reach it in
// any order or never; a synced one stays. A failed Sync forgets which pages were dirty: they read as
// written until the crash, and no later Sync brings them to the disk.
type MemFS struct {
	// Hook, where it is set, sees every operation before it takes place and may fail it, as Fail does, or end
	// everything with it: see ErrLast. It may call Kill, and what makes a copy of the file system.
	Hook func(op Op, path string) error

	mu     sync.Mutex
	names  map[string]*memFile // as programs see them
	kept   map[string]*memFile // as the disk has them
	dirs   map[string]bool     // folders are durable at once
	undone []nameOp            // changes of names since, in order, not made durable by SyncDir
	faults faults
	arena  pagepool.Arena
	limit  int64 // bytes of all files together; 0: none
	used   int64 // bytes of the files in names
	seq    int   // of the last change
	dead   atomic.Bool
	last   bool // the operation at hand is the last one
}

// nameOp is a change of names: create (from is empty), remove (to is empty), rename.
type nameOp struct {
	seq      int
	from, to string
	file     *memFile // of a create
}

// New returns an empty file system.
func New() *MemFS { return NewIn(nil) }

// NewIn returns an empty file system that has its memory, and that of all that comes of it, from a pool, if
// there is one. All of them are for one thread then.
func NewIn(pool *pagepool.Pool) *MemFS {
	return &MemFS{
		names: map[string]*memFile{}, kept: map[string]*memFile{}, dirs: map[string]bool{".": true, "/": true},
		arena: pagepool.New(pool),
	}
}

var _ journal.FS = (*MemFS)(nil)

// apply changes a set of names as far as it still makes sense: an operation on a name that an earlier
// lost one should have made has no effect.
//
// lost, where there is one, is told of each file that has lost its name.
func (op nameOp) apply(names map[string]*memFile, lost func(*memFile)) {
	set := func(path string, f *memFile) {
		if old := names[path]; old != nil && lost != nil {
			lost(old)
		}
		names[path] = f
	}
	switch {
	case op.from == "":
		set(op.to, op.file)
	case op.to == "":
		set(op.from, nil)
		delete(names, op.from)
	case op.from != op.to:
		var moved []string
		for path := range names {
			if _, ok := under(path, op.from, op.to); ok {
				moved = append(moved, path)
			}
		}
		slices.Sort(moved)
		for _, path := range moved {
			to, _ := under(path, op.from, op.to)
			set(to, names[path])
			delete(names, path)
		}
	}
}

// under maps a path at or below from to the same place at or below to.
func under(path, from, to string) (string, bool) {
	if path == from {
		return to, true
	}
	if len(path) <= len(from) || path[:len(from)] != from || path[len(from)] != '/' {
		return "", false
	}
	return to + path[len(from):], true
}

// Create is journal.FS.
func (m *MemFS) Create(path string) (_ journal.File, err error) {
	path = filepath.Clean(path)
	err = m.begin(OpCreate, path)
	defer m.end(&err)
	if err != nil {
		return nil, err
	}
	if !m.dirs[filepath.Dir(path)] {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrNotExist}
	}
	if m.names[path] != nil || m.dirs[path] {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	f := &memFile{}
	m.changeLocked(nameOp{to: path, file: f})
	return &handle{m: m, f: f, path: path, write: true}, nil
}

// Open is journal.FS.
func (m *MemFS) Open(path string, write bool) (_ journal.File, err error) {
	path = filepath.Clean(path)
	err = m.begin(OpOpen, path)
	defer m.end(&err)
	if err != nil {
		return nil, err
	}
	f := m.names[path]
	if f == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return &handle{m: m, f: f, path: path, write: write}, nil
}

// Rename is journal.FS. Of a folder: everything below it moves.
func (m *MemFS) Rename(from, to string) (err error) {
	from, to = filepath.Clean(from), filepath.Clean(to)
	err = m.begin(OpRename, from)
	defer m.end(&err)
	if err != nil {
		return err
	}
	if m.names[from] == nil && !m.dirs[from] {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	m.changeLocked(nameOp{from: from, to: to})
	for _, d := range sortedKeys(m.dirs) {
		if next, ok := under(d, from, to); ok {
			delete(m.dirs, d)
			m.dirs[next] = true
		}
	}
	return nil
}

// Remove is journal.FS.
func (m *MemFS) Remove(path string) (err error) {
	path = filepath.Clean(path)
	err = m.begin(OpRemove, path)
	defer m.end(&err)
	if err != nil {
		return err
	}
	if m.names[path] == nil {
		return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
	}
	m.changeLocked(nameOp{from: path})
	return nil
}

func (m *MemFS) changeLocked(op nameOp) {
	m.seq++
	op.seq = m.seq
	if op.file != nil {
		op.file.linked = true
	}
	op.apply(m.names, func(f *memFile) {
		f.linked = false
		m.used -= f.data.size
	})
	m.undone = append(m.undone, op)
}

// Mkdir is journal.FS.
func (m *MemFS) Mkdir(path string) (err error) {
	err = m.begin(OpMkdir, path)
	defer m.end(&err)
	if err != nil {
		return err
	}
	for d := filepath.Clean(path); !m.dirs[d]; d = filepath.Dir(d) {
		m.dirs[d] = true
	}
	return nil
}

// ReadDir is journal.FS.
func (m *MemFS) ReadDir(path string) (_ []string, err error) {
	path = filepath.Clean(path)
	err = m.begin(OpReadDir, path)
	defer m.end(&err)
	if err != nil {
		return nil, err
	}
	if !m.dirs[path] {
		return nil, &fs.PathError{Op: "readdir", Path: path, Err: fs.ErrNotExist}
	}
	var names []string
	for p := range m.names {
		if filepath.Dir(p) == path {
			names = append(names, filepath.Base(p))
		}
	}
	for d := range m.dirs {
		if filepath.Dir(d) == path && d != path {
			names = append(names, filepath.Base(d))
		}
	}
	slices.Sort(names)
	return names, nil
}

// SyncDir is journal.FS. A rename between two folders is durable when either is synced.
func (m *MemFS) SyncDir(path string) (err error) {
	path = filepath.Clean(path)
	err = m.begin(OpSyncDir, path)
	defer m.end(&err)
	if err != nil {
		return err
	}
	var rest []nameOp
	for _, op := range m.undone {
		if inDir(op.from, path) || inDir(op.to, path) {
			op.apply(m.kept, nil)
		} else {
			rest = append(rest, op)
		}
	}
	m.undone = rest
	return nil
}

// Limit sets how many bytes all files together may have; 0: any number. What would grow a file beyond it
// fails with syscall.ENOSPC and changes nothing.
func (m *MemFS) Limit(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = bytes
}

// Used is how many bytes all files together have.
func (m *MemFS) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// growLocked says whether a file may get this size.
func (m *MemFS) growLocked(h *handle, size int64) error {
	grow := size - h.f.data.size
	if m.limit > 0 && grow > 0 && m.used+grow > m.limit {
		return &fs.PathError{Op: "grow", Path: h.path, Err: syscall.ENOSPC}
	}
	return nil
}

func inDir(path, dir string) bool { return path != "" && filepath.Dir(path) == dir }

// Read returns the content of a file as programs see it.
func (m *MemFS) Read(path string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.names[filepath.Clean(path)]; f != nil {
		data := make([]byte, f.data.size)
		f.data.read(data, 0)
		return data
	}
	return nil
}

// Write replaces the content of a file, durably and without a fault: what rot, or a person, does.
func (m *MemFS) Write(path string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path = filepath.Clean(path)
	if old := m.names[path]; old != nil {
		old.linked = false
		m.used -= old.data.size
	}
	v := view{}
	v.write(&m.arena, data, 0)
	m.addDurable(path, v)
}

// Rot turns a bit of a file over, where programs see it and on the disk.
func (m *MemFS) Rot(path string, bit int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.names[filepath.Clean(path)]
	if f == nil || bit/8 >= f.data.size {
		return
	}
	b := make([]byte, 1)
	for _, v := range []*view{&f.data, &f.disk} {
		if v.read(b, bit/8) == 1 {
			b[0] ^= 1 << (bit % 8)
			v.write(&m.arena, b, bit/8)
		}
	}
}

// Paths lists all files.
func (m *MemFS) Paths() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return sortedKeys(m.names)
}

// handle is an open file.
type handle struct {
	m     *MemFS
	f     *memFile
	path  string
	write bool
}

var errNotWritable = errors.New("file is not open for writing")

func (h *handle) ReadAt(p []byte, off int64) (_ int, err error) {
	err = h.m.begin(OpRead, h.path)
	defer h.m.end(&err)
	if err != nil {
		return 0, err
	}
	if off >= h.f.data.size {
		return 0, io.EOF
	}
	n := h.f.data.read(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes p, or where a fault strikes the first half of it.
func (h *handle) WriteAt(p []byte, off int64) (_ int, err error) {
	if !h.write {
		return 0, fmt.Errorf("write %s: %w", h.path, errNotWritable)
	}
	failed := h.m.begin(OpWrite, h.path)
	defer h.m.end(&err)
	if errors.Is(failed, ErrDead) {
		return 0, failed
	}
	if failed != nil {
		p = p[:len(p)/2]
	}
	if err := h.m.growLocked(h, off+int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) > 0 {
		h.change(func(v *view) dataOp { return v.write(&h.m.arena, p, off) })
	}
	if errors.Is(failed, ErrShort) {
		failed = nil // what io.Writer forbids and some do
	}
	return len(p), failed
}

func (h *handle) Truncate(size int64) (err error) {
	err = h.m.begin(OpTruncate, h.path)
	defer h.m.end(&err)
	if err != nil {
		return err
	}
	if err := h.m.growLocked(h, size); err != nil {
		return err
	}
	h.change(func(v *view) dataOp { return v.setSize(&h.m.arena, OpTruncate, size) })
	return nil
}

// Allocate is journal.Allocator.
func (h *handle) Allocate(size int64) (err error) {
	err = h.m.begin(OpAllocate, h.path)
	defer h.m.end(&err)
	if err != nil {
		return err
	}
	if size <= h.f.data.size {
		return nil
	}
	if err := h.m.growLocked(h, size); err != nil {
		return err
	}
	h.change(func(v *view) dataOp { return v.setSize(&h.m.arena, OpAllocate, size) })
	return nil
}

// Punch is journal.Puncher. Limit counts the room as still taken.
func (h *handle) Punch(off, n int64) (err error) {
	err = h.m.begin(OpPunch, h.path)
	defer h.m.end(&err)
	if err != nil {
		return err
	}
	n = min(n, h.f.data.size-off)
	if n > 0 {
		h.change(func(v *view) dataOp { return v.zero(&h.m.arena, off, n) })
	}
	return nil
}

// change does something to the content, under the lock.
func (h *handle) change(do func(*view) dataOp) {
	before := h.f.data.size
	op := do(&h.f.data)
	h.m.seq++
	op.seq = h.m.seq
	h.f.dirty = append(h.f.dirty, op)
	if h.f.linked {
		h.m.used += h.f.data.size - before
	}
}

func (h *handle) Sync() (err error) {
	failed := h.m.begin(OpSync, h.path)
	defer h.m.end(&err)
	if errors.Is(failed, ErrDead) {
		return failed
	}
	if failed == nil {
		h.f.settle(&h.m.arena)
	}
	h.f.dirty = nil // also after a failure: see MemFS
	return failed
}

func (h *handle) Size() (int64, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.m.dead.Load() {
		return 0, fmt.Errorf("size of %s: %w", h.path, ErrDead)
	}
	return h.f.data.size, nil
}

func (h *handle) Close() error {
	if h.m.dead.Load() {
		return fmt.Errorf("close %s: %w", h.path, ErrDead)
	}
	return nil
}

func clone(names map[string]*memFile) map[string]*memFile {
	c := make(map[string]*memFile, len(names))
	for path, f := range names {
		c[path] = f
	}
	return c
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
