package journaltest

import (
	"cmp"
	"math/rand/v2"
	"path/filepath"
	"slices"
)

// What comes of a MemFS: after a kill, after a power cut, as a snapshot. m is not changed. None takes faults
// or the Hook along.

// Crash returns the file system as a restart might find it if the power went now: all that is durable,
// and of the rest a share that the seed picks, sector by sector and name by name. m goes on as it was.
// The limit is gone.
func (m *MemFS) Crash(seed uint64) *MemFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, 0x626c6b6d))
	// Seeds 0 and 1 are the two extremes: everything unsynced is lost, everything is kept.
	pick := func() bool { return rng.IntN(2) == 0 }
	if seed < 2 {
		pick = func() bool { return seed == 1 }
	}
	after := m.cutLocked(func(nameOp) bool { return pick() }, func(v *view, op dataOp) {
		if !op.resizes() {
			v.applySome(&m.arena, op, pick)
		} else if pick() {
			v.apply(&m.arena, op)
		}
	})
	after.limit = 0
	return after
}

// PowerCut is a Crash by rng. That all is lost, or all kept, of an operation or of everything, or all up to
// some moment, is likelier than chance would have it.
func (m *MemFS) PowerCut(rng *rand.Rand) *MemFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	toss := func() bool { return rng.IntN(2) == 0 }
	const lost, kept, upTo = 0, 1, 2
	way, until := rng.IntN(8), 0
	if way == upTo {
		if all := m.unsyncedLocked(); len(all) > 0 {
			until = all[rng.IntN(len(all))].Seq
		}
	}
	how := func(seq int) int {
		switch {
		case way == lost || way == upTo && seq > until:
			return lost
		case way == kept || way == upTo:
			return kept
		}
		return rng.IntN(4)
	}
	return m.cutLocked(
		func(op nameOp) bool {
			h := how(op.seq)
			return h == kept || h > kept && toss()
		},
		func(v *view, op dataOp) {
			switch h := how(op.seq); {
			case h == lost:
			case h == kept || op.resizes() && toss():
				v.apply(&m.arena, op)
			case !op.resizes():
				v.applySome(&m.arena, op, toss)
			}
		})
}

// Change is an operation that nothing has made durable.
type Change struct {
	Seq            int    // in the order in which they were done
	Op             Op     // OpCreate, OpRename, OpRemove, OpWrite, OpPunch, OpTruncate or OpAllocate
	Path, To       string // of the file as it is called now; of a change of names, as it was said
	Offset, Length int64  // of a change of size: the new size, and 0
}

// Unsynced lists what a power cut may take, in the order in which it was done.
func (m *MemFS) Unsynced() []Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unsyncedLocked()
}

func (m *MemFS) unsyncedLocked() (out []Change) {
	for _, op := range m.undone {
		switch {
		case op.from == "":
			out = append(out, Change{Seq: op.seq, Op: OpCreate, Path: op.to})
		case op.to == "":
			out = append(out, Change{Seq: op.seq, Op: OpRemove, Path: op.from})
		default:
			out = append(out, Change{Seq: op.seq, Op: OpRename, Path: op.from, To: op.to})
		}
	}
	m.eachLocked(func(path string, f *memFile) {
		for _, op := range f.dirty {
			out = append(out, Change{Seq: op.seq, Op: op.kind, Path: path, Offset: op.off, Length: op.n})
		}
	})
	slices.SortFunc(out, func(a, b Change) int { return cmp.Compare(a.Seq, b.Seq) })
	return out
}

// PowerCutKeep is the power cut that keeps of Unsynced what pick says, each whole.
func (m *MemFS) PowerCutKeep(pick func(Change) bool) *MemFS {
	kept := map[int]bool{}
	for _, c := range m.Unsynced() {
		kept[c.Seq] = pick(c)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cutLocked(func(op nameOp) bool { return kept[op.seq] }, func(v *view, op dataOp) {
		if kept[op.seq] {
			v.apply(&m.arena, op)
		}
	})
}

// cutLocked is what is durable, the changes of names that keep picks, and in each file that has a name then
// what keepData does of its dirty operations.
func (m *MemFS) cutLocked(keep func(nameOp) bool, keepData func(*view, dataOp)) *MemFS {
	names := m.kept
	if len(m.undone) > 0 {
		names = clone(m.kept)
	}
	for _, op := range m.undone {
		if keep(op) {
			op.apply(names, nil)
		}
	}
	after := m.freshLocked()
	for _, path := range sortedKeys(names) {
		f := names[path]
		left := f.disk.clone()
		for _, op := range f.dirty {
			keepData(&left, op)
		}
		after.addDurable(path, left)
		for d := filepath.Dir(path); !after.dirs[d]; d = filepath.Dir(d) {
			after.dirs[d] = true // where its folder's rename was lost
		}
	}
	return after
}

// Killed is the file system as the next process finds it: all that was done is there, and what was not
// synced still is not.
func (m *MemFS) Killed() *MemFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := m.freshLocked()
	after.used, after.seq = m.used, m.seq
	after.undone = slices.Clone(m.undone)
	m.eachLocked(func(_ string, f *memFile) {
		f.twin = &memFile{data: f.data.clone(), disk: f.disk.clone(), dirty: slices.Clip(f.dirty), linked: f.linked}
	})
	for path, f := range m.names {
		after.names[path] = f.twin
	}
	for path, f := range m.kept {
		after.kept[path] = f.twin
	}
	for i := range after.undone {
		if f := after.undone[i].file; f != nil {
			after.undone[i].file = f.twin
		}
	}
	m.eachLocked(func(_ string, f *memFile) { f.twin = nil })
	return after
}

// Clone is a snapshot: what programs see now, durable.
func (m *MemFS) Clone() *MemFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := m.freshLocked()
	for path, f := range m.names {
		after.addDurable(path, f.data.clone())
	}
	return after
}

// freshLocked has the folders of m and no files.
func (m *MemFS) freshLocked() *MemFS {
	after := &MemFS{
		names: make(map[string]*memFile, len(m.names)), kept: make(map[string]*memFile, len(m.names)),
		dirs: make(map[string]bool, len(m.dirs)), limit: m.limit, arena: m.arena.Split(),
	}
	for d := range m.dirs {
		after.dirs[d] = true
	}
	return after
}

func (m *MemFS) addDurable(path string, v view) {
	f := &memFile{data: v, disk: v.clone(), linked: true}
	m.names[path], m.kept[path] = f, f
	m.used += v.size
}

// eachLocked calls fn once for every file that has a name or may have one after a crash, in any order. path
// is one of its names.
func (m *MemFS) eachLocked(fn func(path string, f *memFile)) {
	for path, f := range m.names {
		fn(path, f)
	}
	seen := map[*memFile]bool{}
	other := func(path string, f *memFile) {
		if f != nil && !f.linked && !seen[f] {
			seen[f] = true
			fn(path, f)
		}
	}
	for path, f := range m.kept {
		other(path, f)
	}
	for _, op := range m.undone {
		other(op.to, op.file)
	}
}
