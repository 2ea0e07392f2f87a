// Package devtest is what tests of everything above blockdev need: a device in memory that can crash, a
// wrapper that injects faults, and the suite that every Device passes.
package devtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Mem is a block device in memory with a volatile write cache.
//
// What is written is read back at once, and is durable after Flush. Crash shows what a power cut would
// leave; the original goes on, so that a test can ask for many crashes of one moment:
//
//	dev := devtest.NewMem(1<<20, 512, 1)
//	... write, flush, write ...
//	after := dev.Crash(7) // reopen everything on it and check
//
// It is as unkind as a disk may be: what reads after Discard is old data, zeroes or garbage, drawn from
// the seed, and sectors that were not flushed survive a crash in any order.
type Mem struct {
	info blockdev.Info

	mu     sync.Mutex
	now    []byte             // what reads give
	cache  map[int64][][]byte // by sector: the durable content, then every version since, the newest last
	rng    *rand.Rand
	closed bool
}

var _ blockdev.Device = (*Mem)(nil)

// NewMem makes a device of size bytes, all zero, with the given logical sector. The last sector may be
// short. The seed decides what Discard leaves.
func NewMem(size int64, sector int, seed uint64) *Mem {
	return &Mem{
		info: blockdev.Info{
			Path: "memory", Size: size, LogicalSector: sector, PhysicalSector: sector,
			Block: true, Writable: true, Direct: true, CheapZero: true, KnowsHoles: true,
		},
		now:   make([]byte, size),
		cache: map[int64][][]byte{},
		rng:   newRand(seed),
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x626c6b)) }

// Crash returns a device as a power cut at this moment might leave this one: every sector that was
// written since the last Flush holds, independently and by the seed, its durable content or any of the
// versions since. The same seed on the same history gives the same device. This one is not changed.
func (m *Mem) Crash(seed uint64) *Mem {
	rng := newRand(seed)
	return m.crash(rng.Uint64(), func(n int) int { return rng.IntN(n) })
}

// CrashKeepNone is the Crash in which nothing survives that was not flushed.
func (m *Mem) CrashKeepNone() *Mem { return m.crash(0, func(int) int { return 0 }) }

// CrashKeepAll is the Crash in which everything survives: a killed process, not a power cut.
func (m *Mem) CrashKeepAll() *Mem { return m.crash(0, func(n int) int { return n - 1 }) }

func (m *Mem) crash(seed uint64, pick func(n int) int) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Mem{info: m.info, now: slices.Clone(m.now), cache: map[int64][][]byte{}, rng: newRand(seed)}
	for _, s := range m.unflushed() {
		versions := m.cache[s]
		copy(c.now[s*int64(m.info.LogicalSector):], versions[pick(len(versions))])
	}
	return c
}

// Unflushed is the number of sectors that were written since the last Flush.
func (m *Mem) Unflushed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.cache)
}

// Bytes is a copy of what a read of everything would give.
func (m *Mem) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.now)
}

// unflushed are the sectors in the cache, in order. Under mu.
func (m *Mem) unflushed() []int64 {
	out := make([]int64, 0, len(m.cache))
	for s := range m.cache {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// Info implements Device.
func (m *Mem) Info() blockdev.Info { return m.info }

// ReadAt implements Device.
func (m *Mem) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	return copy(p, m.now[off:]), nil
}

// WriteAt implements Device.
func (m *Mem) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.put(off, int64(len(p)), func(dst []byte, at int64) { copy(dst, p[at-off:]) })
	return len(p), nil
}

// Zero implements Device.
func (m *Mem) Zero(off, n int64, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("zero", off, n); err != nil {
		return err
	}
	m.put(off, n, func(dst []byte, _ int64) { clear(dst) })
	return nil
}

// Discard implements Device: each whole sector keeps its content, or becomes zeroes or garbage.
func (m *Mem) Discard(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("discard", off, n); err != nil {
		return err
	}
	sector := int64(m.info.LogicalSector)
	lo, hi := (off+sector-1)/sector*sector, (off+n)/sector*sector
	m.put(lo, max(0, hi-lo), func(dst []byte, _ int64) {
		switch m.rng.IntN(3) {
		case 0:
			clear(dst)
		case 1:
			for i := range dst {
				dst[i] = byte(m.rng.Uint32())
			}
		}
	})
	return nil
}

// put changes [off, off+n), sector by sector, and keeps the version of each. Under mu.
func (m *Mem) put(off, n int64, change func(dst []byte, at int64)) {
	sector := int64(m.info.LogicalSector)
	for at := off; at < off+n; {
		s := at / sector
		whole := m.now[s*sector : min((s+1)*sector, m.info.Size)]
		if m.cache[s] == nil {
			m.cache[s] = [][]byte{slices.Clone(whole)}
		}
		end := min((s+1)*sector, off+n)
		change(m.now[at:end], at)
		m.cache[s] = append(m.cache[s], slices.Clone(whole))
		at = end
	}
}

// Flush implements Device.
func (m *Mem) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("flush", 0, 0); err != nil {
		return err
	}
	clear(m.cache)
	return nil
}

// NextData implements Device. It knows of holes in whole pages.
func (m *Mem) NextData(off int64) (blockdev.Extent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("map", off, 0); err != nil {
		return blockdev.Extent{}, err
	}
	size := m.info.Size
	pageEnd := func(at int64) int64 { return min(size, (at/blockdev.PageSize+1)*blockdev.PageSize) }
	for off < size && blockdev.IsZero(m.now[off:pageEnd(off)]) {
		off = pageEnd(off)
	}
	end := off
	for end < size && !blockdev.IsZero(m.now[end:pageEnd(end)]) {
		end = pageEnd(end)
	}
	return blockdev.Extent{Offset: off, Length: end - off}, nil
}

// Close implements Device. What was not flushed is not lost by it.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// Reopen makes a closed device usable again, as a second open of the same disk.
func (m *Mem) Reopen() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = false
}

// check refuses what is closed or out of range. Under mu.
func (m *Mem) check(op string, off, n int64) error {
	var err error
	switch {
	case m.closed:
		err = os.ErrClosed
	case off < 0 || n < 0 || off > m.info.Size-n:
		err = fmt.Errorf("%w of %d bytes", blockdev.ErrOutOfRange, m.info.Size)
	default:
		return nil
	}
	return &blockdev.Error{Op: op, Path: m.info.Path, Offset: off, Length: n, Err: err}
}
