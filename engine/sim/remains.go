package sim

import (
	"hash/maphash"
	"math/bits"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// remains are what a dead node had, of which a crash leaves something.
type remains struct {
	disk  *devtest.Disk
	fs    *journaltest.MemFS
	index *journaltest.MemIndex
	power bool
}

// image is one of the things that a crash may leave.
type image struct {
	disk  *devtest.Disk
	fs    *journaltest.MemFS
	index *journaltest.MemIndex
}

// which says how an image is made of what there was: which of the unflushed writes and of the unsynced changes
// of files stay, each in its order, and how many of the index.
type which struct {
	disk, files uint64
	torn        int // how the last write to the disk is; 0: as disk says
	index       int
}

// make makes it.
func (r *remains) make(x which) *image {
	i := &image{fs: r.filesOf(x.files), index: r.index.Keep(x.index)}
	if i.disk = r.diskOf(x.disk); x.torn > 0 {
		i.disk = r.tornOf(x.torn)
	}
	return i
}

func (r *remains) diskOf(kept uint64) *devtest.Disk {
	if !r.power {
		return r.disk.Killed()
	}
	nth := 0
	return r.disk.PowerCutWrites(func(devtest.Write) bool { nth++; return kept>>(nth-1)&1 == 1 })
}

func (r *remains) filesOf(kept uint64) *journaltest.MemFS {
	if !r.power {
		return r.fs.Killed()
	}
	nth := 0
	return r.fs.PowerCutKeep(func(journaltest.Change) bool { nth++; return kept>>(nth-1)&1 == 1 })
}

// tearings are the ways in which the last write may be torn in the middle: its first or its second half stays,
// and with it all that was before or nothing.
const tearings = 4

func (r *remains) tornOf(how int) *devtest.Disk {
	all := r.disk.Unflushed()
	last := all[len(all)-1]
	from, end := last.Offset/devtest.SectorSize, (last.Offset+last.Length)/devtest.SectorSize
	mid := (from + end) / 2
	if how&1 == 0 {
		from, mid = mid, end
	}
	rest := how > tearings/2
	return r.disk.PowerCutKeep(func(sector int64, versions int) int {
		in := sector*devtest.SectorSize >= last.Offset && sector < end
		switch {
		case sector >= from && sector < mid || !in && rest:
			return versions - 1
		case in && rest:
			return versions - 2
		}
		return 0
	})
}

// subsets calls do with the subsets of some changes in which each has those that it needs, all of them if they
// are at most limit. Otherwise only with those of up to two changes, with what these leave of the whole, with all
// up to some moment, and with some more.
func subsets(needs []uint64, limit int, do func(uint64)) (all bool) {
	legal := make([]uint64, 1, limit)
	for i, n := range needs {
		for _, kept := range legal {
			if kept&n == n {
				legal = append(legal, kept|1<<i)
			}
		}
		if len(legal) > limit {
			legal = some(needs)
			break
		}
		all = i == len(needs)-1
	}
	for _, kept := range legal {
		do(kept)
	}
	return all || len(needs) == 0
}

// some are the subsets of changes that are too many.
func some(needs []uint64) (legal []uint64) {
	n := len(needs)
	whole := uint64(1)<<n - 1
	add := func(kept uint64) {
		for i := range needs {
			if kept&needs[i] != needs[i] {
				kept &^= 1 << i
			}
		}
		legal = append(legal, kept)
	}
	for a := range n {
		for b := range a + 1 {
			few := uint64(1)<<a | uint64(1)<<b
			add(few)
			add(whole &^ few)
		}
		add(whole >> a)
	}
	add(0)
	for i := range 2 * n {
		add(bits.RotateLeft64(0x9e3779b97f4a7c15*uint64(i+1), i) & whole)
	}
	return legal
}

// needs are, of each change of files that is not synced, those without which it cannot be there: a sector
// reaches the disk as it is at some moment, with all that was written to it before.
func (r *remains) needs() []uint64 {
	changes := r.fs.Unsynced()
	needs := make([]uint64, len(changes))
	for i, c := range changes {
		for j, o := range changes[:i] {
			if changesBytes(c) && changesBytes(o) && c.Path == o.Path && sectorsMeet(c, o) {
				needs[i] |= 1 << j
			}
		}
	}
	return needs
}

func changesBytes(c journaltest.Change) bool {
	return c.Op == journaltest.OpWrite || c.Op == journaltest.OpPunch
}

func sectorsMeet(a, b journaltest.Change) bool {
	const size = journaltest.SectorSize
	return a.Offset/size <= (b.Offset+b.Length-1)/size && b.Offset/size <= (a.Offset+a.Length-1)/size
}

func digestDisk(d *devtest.Disk) uint64 {
	var h maphash.Hash
	h.SetSeed(digestSeed)
	for p := range d.Pages() {
		maphash.WriteComparable(&h, d.PageID(p))
		maphash.WriteComparable(&h, d.Settled(p))
	}
	f, _ := d.Facts()
	maphash.WriteComparable(&h, f.SectorsWritten)
	return h.Sum64()
}

func digestFiles(m *journaltest.MemFS) uint64 {
	var h maphash.Hash
	h.SetSeed(digestSeed)
	for _, path := range m.Paths() {
		h.WriteString(path)
		data := m.Read(path)
		maphash.WriteComparable(&h, len(data))
		h.Write(data)
	}
	return h.Sum64()
}

func digestIndex(x *journaltest.MemIndex) uint64 {
	var h maphash.Hash
	h.SetSeed(digestSeed)
	for b := range x.Blocks() {
		hash, ok := x.Known(b)
		maphash.WriteComparable(&h, hash)
		maphash.WriteComparable(&h, ok)
	}
	return h.Sum64()
}
