// Package journaltest holds what tests of durable things need: a file system in memory that can crash,
// and that fails where it is told to.
package journaltest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/blkmirror/blkmirror/journal"
)

// SectorSize is the unit that a crash keeps or loses as a whole.
const SectorSize = 512

// MemFS is a file system in memory. It knows of each file what is durable and what was done since, and
// of each name likewise, so that Crash can say what a power cut would have left.
//
// What it assumes of a disk: a sector is written as a whole or not at all; unsynced writes reach it in
// any order or never; a synced one stays. A failed Sync forgets which pages were dirty: they read as
// written until the crash, and no later Sync brings them to the disk.
type MemFS struct {
	mu     sync.Mutex
	names  map[string]*memFile // as programs see them
	kept   map[string]*memFile // as the disk has them
	dirs   map[string]bool     // folders are durable at once
	undone []nameOp            // changes of names since, in order, not made durable by SyncDir
	faults faults
	limit  int64 // bytes of all files together; 0: none
}

// memFile is a file's content; both views of the names share it.
type memFile struct {
	data  []byte   // as programs see it
	disk  []byte   // as it is durable
	dirty []dataOp // since, in order
}

// dataOp is a write, or with nil data a truncation to off.
type dataOp struct {
	off  int64
	data []byte
}

// nameOp is a change of names: create (from is empty), remove (to is empty), rename.
type nameOp struct {
	from, to string
	file     *memFile // of a create
}

// New returns an empty file system.
func New() *MemFS {
	return &MemFS{names: map[string]*memFile{}, kept: map[string]*memFile{}, dirs: map[string]bool{".": true, "/": true}}
}

var _ journal.FS = (*MemFS)(nil)

// Crash returns the file system as a restart might find it if the power went now: all that is durable,
// and of the rest a share that the seed picks, sector by sector and name by name. m goes on as it was.
func (m *MemFS) Crash(seed uint64) *MemFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, 0x626c6b6d))
	// Seeds 0 and 1 are the two extremes: everything unsynced is lost, everything is kept.
	pick := func() bool { return rng.IntN(2) == 0 }
	if seed < 2 {
		pick = func() bool { return seed == 1 }
	}
	names := clone(m.kept)
	for _, op := range m.undone {
		if pick() {
			op.apply(names)
		}
	}
	after := New()
	for d := range m.dirs {
		after.dirs[d] = true
	}
	for _, path := range sortedKeys(names) {
		data := names[path].survive(pick)
		after.names[path] = &memFile{data: data, disk: slices.Clone(data)}
		for d := filepath.Dir(path); !after.dirs[d]; d = filepath.Dir(d) {
			after.dirs[d] = true // where its folder's rename was lost
		}
	}
	after.kept = clone(after.names)
	return after
}

// survive is the durable content with a picked share of the sectors of each later operation.
func (f *memFile) survive(pick func() bool) []byte {
	data := slices.Clone(f.disk)
	for _, op := range f.dirty {
		if op.data == nil {
			if pick() {
				data = resize(data, op.off)
			}
			continue
		}
		for _, part := range sectors(op) {
			if pick() {
				data = part.apply(data)
			}
		}
	}
	return data
}

// sectors cuts a write at sector boundaries.
func sectors(op dataOp) []dataOp {
	var parts []dataOp
	for off, rest := op.off, op.data; len(rest) > 0; {
		n := min(int64(len(rest)), SectorSize-off%SectorSize)
		parts = append(parts, dataOp{off, rest[:n]})
		off, rest = off+n, rest[n:]
	}
	return parts
}

func (op dataOp) apply(data []byte) []byte {
	if op.data == nil {
		return resize(data, op.off)
	}
	if end := op.off + int64(len(op.data)); end > int64(len(data)) {
		data = resize(data, end)
	}
	copy(data[op.off:], op.data)
	return data
}

func resize(data []byte, size int64) []byte {
	if size <= int64(len(data)) {
		return data[:size:size] // cut for good: growing again must show zeroes
	}
	return append(data, make([]byte, size-int64(len(data)))...)
}

// apply changes a set of names as far as it still makes sense: an operation on a name that an earlier
// lost one should have made has no effect.
func (op nameOp) apply(names map[string]*memFile) {
	switch {
	case op.from == "":
		names[op.to] = op.file
	case op.to == "":
		delete(names, op.from)
	default:
		for _, path := range sortedKeys(names) {
			if to, ok := under(path, op.from, op.to); ok {
				names[to] = names[path]
				delete(names, path)
			}
		}
	}
}

// under maps a path at or below from to the same place at or below to.
func under(path, from, to string) (string, bool) {
	if path == from {
		return to, true
	}
	rest, ok := strings.CutPrefix(path, from+"/")
	return to + "/" + rest, ok
}

// Create is journal.FS.
func (m *MemFS) Create(path string) (journal.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path = filepath.Clean(path)
	if err := m.faults.next(OpCreate, path); err != nil {
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
func (m *MemFS) Open(path string, write bool) (journal.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path = filepath.Clean(path)
	if err := m.faults.next(OpOpen, path); err != nil {
		return nil, err
	}
	f := m.names[path]
	if f == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return &handle{m: m, f: f, path: path, write: write}, nil
}

// Rename is journal.FS. Of a folder: everything below it moves.
func (m *MemFS) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, to = filepath.Clean(from), filepath.Clean(to)
	if err := m.faults.next(OpRename, from); err != nil {
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
func (m *MemFS) Remove(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	path = filepath.Clean(path)
	if err := m.faults.next(OpRemove, path); err != nil {
		return err
	}
	if m.names[path] == nil {
		return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
	}
	m.changeLocked(nameOp{from: path})
	return nil
}

func (m *MemFS) changeLocked(op nameOp) {
	op.apply(m.names)
	m.undone = append(m.undone, op)
}

// Mkdir is journal.FS.
func (m *MemFS) Mkdir(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.faults.next(OpMkdir, path); err != nil {
		return err
	}
	for d := filepath.Clean(path); !m.dirs[d]; d = filepath.Dir(d) {
		m.dirs[d] = true
	}
	return nil
}

// ReadDir is journal.FS.
func (m *MemFS) ReadDir(path string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path = filepath.Clean(path)
	if err := m.faults.next(OpReadDir, path); err != nil {
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
func (m *MemFS) SyncDir(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	path = filepath.Clean(path)
	if err := m.faults.next(OpSyncDir, path); err != nil {
		return err
	}
	var rest []nameOp
	for _, op := range m.undone {
		if inDir(op.from, path) || inDir(op.to, path) {
			op.apply(m.kept)
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
	return m.usedLocked()
}

func (m *MemFS) usedLocked() (sum int64) {
	for _, f := range m.names {
		sum += int64(len(f.data))
	}
	return sum
}

// growLocked says whether a file may get this size.
func (m *MemFS) growLocked(h *handle, size int64) error {
	grow := size - int64(len(h.f.data))
	if m.limit > 0 && grow > 0 && m.usedLocked()+grow > m.limit {
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
		return slices.Clone(f.data)
	}
	return nil
}

// Write replaces the content of a file, durably and without a fault: what rot, or a person, does.
func (m *MemFS) Write(path string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path = filepath.Clean(path)
	f := &memFile{data: slices.Clone(data), disk: slices.Clone(data)}
	m.names[path], m.kept[path] = f, f
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

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.m.faults.next(OpRead, h.path); err != nil {
		return 0, err
	}
	if off >= int64(len(h.f.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes p, or where a fault strikes the first half of it.
func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if !h.write {
		return 0, fmt.Errorf("write %s: %w", h.path, errNotWritable)
	}
	err := h.m.faults.next(OpWrite, h.path)
	if err != nil {
		p = p[:len(p)/2]
	}
	if err := h.m.growLocked(h, off+int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) > 0 {
		h.changeLocked(dataOp{off, slices.Clone(p)})
	}
	if errors.Is(err, ErrShort) {
		err = nil // what io.Writer forbids and some do
	}
	return len(p), err
}

func (h *handle) Truncate(size int64) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.m.faults.next(OpTruncate, h.path); err != nil {
		return err
	}
	if err := h.m.growLocked(h, size); err != nil {
		return err
	}
	h.changeLocked(dataOp{off: size})
	return nil
}

// Allocate is journal.Allocator.
func (h *handle) Allocate(size int64) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.m.faults.next(OpAllocate, h.path); err != nil {
		return err
	}
	if size <= int64(len(h.f.data)) {
		return nil
	}
	if err := h.m.growLocked(h, size); err != nil {
		return err
	}
	h.changeLocked(dataOp{off: size})
	return nil
}

// Punch is journal.Puncher. Limit counts the room as still taken.
func (h *handle) Punch(off, n int64) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.m.faults.next(OpPunch, h.path); err != nil {
		return err
	}
	n = min(n, int64(len(h.f.data))-off)
	if n > 0 {
		h.changeLocked(dataOp{off, make([]byte, n)})
	}
	return nil
}

func (h *handle) changeLocked(op dataOp) {
	h.f.data = op.apply(h.f.data)
	h.f.dirty = append(h.f.dirty, op)
}

func (h *handle) Sync() error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	err := h.m.faults.next(OpSync, h.path)
	if err == nil {
		for _, op := range h.f.dirty {
			h.f.disk = op.apply(h.f.disk)
		}
	}
	h.f.dirty = nil // also after a failure: see MemFS
	return err
}

func (h *handle) Size() (int64, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return int64(len(h.f.data)), nil
}

func (h *handle) Close() error { return nil }

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
