package devtest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Opener opens a fresh device of at least size bytes, all zero; where the device cannot have just that
// size (a disk has whole sectors) the next larger one. It registers its own clean-up.
type Opener func(t *testing.T, size int64) blockdev.Device

// Conformance is what every Device passes.
func Conformance(t *testing.T, open Opener) {
	t.Run("Bounds", func(t *testing.T) { testBounds(t, open) })
	t.Run("Fresh", func(t *testing.T) { testFresh(t, open) })
	t.Run("Edges", func(t *testing.T) { testEdges(t, open) })
	t.Run("OddSizes", func(t *testing.T) { testOddSizes(t, open) })
	t.Run("Zero", func(t *testing.T) { testZero(t, open) })
	t.Run("Discard", func(t *testing.T) { testDiscard(t, open) })
	t.Run("NextData", func(t *testing.T) { testNextData(t, open) })
	t.Run("Large", func(t *testing.T) { testLarge(t, open) })
	t.Run("Flush", func(t *testing.T) { testFlush(t, open) })
	t.Run("OneSector", func(t *testing.T) { testOneSector(t, open) })
	t.Run("OneSectorAligned", func(t *testing.T) { testOneSectorAligned(t, open) })
	t.Run("ZeroBesideWrite", func(t *testing.T) { testZeroBesideWrite(t, open) })
	t.Run("Random", func(t *testing.T) { testRandom(t, open) })
}

func testBounds(t *testing.T, open Opener) {
	dev := open(t, 64<<10)
	size := dev.Info().Size
	p := make([]byte, 4096)
	for _, at := range []struct{ off, n int64 }{
		{-1, 1}, {-4096, 4096}, {size, 1}, {size - 1, 2}, {size - 4095, 4096}, {size + 1, 0}, {1 << 62, 1}, {1<<63 - 1, 4096},
	} {
		_, rerr := dev.ReadAt(p[:at.n], at.off)
		_, werr := dev.WriteAt(p[:at.n], at.off)
		for name, err := range map[string]error{
			"read": rerr, "write": werr,
			"zero": dev.Zero(at.off, at.n, true), "discard": dev.Discard(at.off, at.n),
		} {
			var e *blockdev.Error
			if !errors.Is(err, blockdev.ErrOutOfRange) || !errors.As(err, &e) {
				t.Errorf("%s at %d+%d of %d: %v; want an *Error with ErrOutOfRange", name, at.off, at.n, size, err)
			}
		}
	}
	for name, err := range map[string]error{
		"zero": dev.Zero(0, -1, true), "discard": dev.Discard(4096, -1), "huge zero": dev.Zero(1, 1<<63-1, false),
	} {
		if !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("%s: %v, want ErrOutOfRange", name, err)
		}
	}
	for _, off := range []int64{-1, size + 1} {
		if _, err := dev.NextData(off); !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("NextData(%d): %v, want ErrOutOfRange", off, err)
		}
	}
	for _, off := range []int64{0, 1, 4096, size} {
		n, rerr := dev.ReadAt(nil, off)
		m, werr := dev.WriteAt([]byte{}, off)
		if n != 0 || m != 0 || rerr != nil || werr != nil || dev.Zero(off, 0, true) != nil || dev.Discard(off, 0) != nil {
			t.Errorf("requests of no bytes at %d: %d %v, %d %v", off, n, rerr, m, werr)
		}
	}
	newModel(dev).equal(t)
}

func testFresh(t *testing.T, open Opener) {
	dev := open(t, 1<<20)
	info := dev.Info()
	if info.Size < 1<<20 || !info.Writable || info.Path == "" || info.LogicalSector < 1 || info.PhysicalSector < info.LogicalSector {
		t.Errorf("implausible: %+v", info)
	}
	newModel(dev).equal(t)
}

// testEdges writes and reads ranges that begin and end at, before and behind every border that matters,
// from buffers aligned and not.
func testEdges(t *testing.T, open Opener) {
	m := newModel(open(t, 1<<20))
	m.write(t, 0, fill(m.size(), 1))
	var ends []int64
	for _, border := range []int64{0, 512, 4096, 8192, 64 << 10, 256 << 10, m.size()} {
		for _, d := range []int64{-513, -1, 0, 1, 511} {
			if at := border + d; at >= 0 && at <= m.size() {
				ends = append(ends, at)
			}
		}
	}
	seed := byte(2)
	for i, from := range ends {
		for _, to := range ends {
			if to <= from || (to-from > 70<<10 && i%3 != 0) {
				continue
			}
			skew := int64(seed % 9) // 0: as aligned as the allocator makes it
			buf := fill(to-from+skew, seed)[skew:]
			m.write(t, from, buf)
			m.read(t, from, to-from)
			seed = max(1, seed+1)
		}
	}
	m.equal(t)
}

func testOddSizes(t *testing.T, open Opener) {
	for _, size := range []int64{1, 511, 512, 513, 4095, 4097, 1000001, 1<<20 - 512, 65536 + 4608} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			m := newModel(open(t, size))
			if m.size() < size {
				t.Fatalf("size is %d, want at least %d", m.size(), size)
			}
			m.write(t, 0, fill(m.size(), 3))
			m.equal(t)
			m.write(t, m.size()-1, []byte{9})
			m.write(t, m.size()/2, fill(m.size()-m.size()/2, 5))
			m.equal(t)
			m.zero(t, m.size()-min(700, m.size()), min(700, m.size()), true)
			m.equal(t)
			m.zero(t, 0, m.size(), false)
			if err := m.dev.Flush(); err != nil {
				t.Fatal(err)
			}
			if m.dev.Info().Size != m.size() {
				t.Errorf("the size changed to %d", m.dev.Info().Size)
			}
			m.equal(t)
		})
	}
}

func testZero(t *testing.T, open Opener) {
	m := newModel(open(t, 1<<20))
	for _, mayFree := range []bool{false, true} {
		for _, r := range []blockdev.Extent{
			{Offset: 0, Length: 1}, {Offset: 0, Length: 4096}, {Offset: 4096, Length: 65536}, {Offset: 511, Length: 2},
			{Offset: 100, Length: 300}, {Offset: 4095, Length: 4098}, {Offset: 8192 - 512, Length: 1024},
			{Offset: 70000, Length: 300000}, {Offset: m.size() - 5000, Length: 5000}, {Offset: 0, Length: m.size()},
		} {
			m.write(t, 0, fill(m.size(), 7))
			m.zero(t, r.Offset, r.Length, mayFree)
			m.equal(t)
		}
	}
	m.write(t, 4096, fill(5000, 8)) // into what was freed
	m.equal(t)
}

// testDiscard checks that a discard leaves everything else alone, and that what it hit can be used again.
func testDiscard(t *testing.T, open Opener) {
	m := newModel(open(t, 1<<20))
	for _, r := range []blockdev.Extent{
		{Offset: 0, Length: 1}, {Offset: 4095, Length: 2}, {Offset: 5000, Length: 100000}, {Offset: 0, Length: m.size()},
	} {
		m.write(t, 0, fill(m.size(), 11))
		if err := m.dev.Discard(r.Offset, r.Length); err != nil {
			t.Fatalf("discard %d+%d: %v", r.Offset, r.Length, err)
		}
		got := make([]byte, m.size())
		if _, err := m.dev.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		copy(got[r.Offset:r.End()], m.want[r.Offset:r.End()]) // not defined
		compare(t, "beside a discard", got, m.want)
		m.zero(t, r.Offset, r.Length, false)
		m.equal(t)
	}
}

func testNextData(t *testing.T, open Opener) {
	m := newModel(open(t, 4<<20))
	m.mapLaws(t)
	for _, r := range []blockdev.Extent{
		{Offset: 1 << 20, Length: 1}, {Offset: 100_000, Length: 5000}, {Offset: 3<<20 + 7, Length: 65536},
		{Offset: m.size() - 1, Length: 1}, {Offset: 0, Length: 512},
	} {
		m.write(t, r.Offset, fill(r.Length, 13))
		m.mapLaws(t)
	}
	m.zero(t, 1<<20-4096, 1<<20, true)
	m.mapLaws(t)
	m.zero(t, 0, m.size(), true)
	m.mapLaws(t)
	if x, err := m.dev.NextData(m.size()); err != nil || x.Length != 0 || x.Offset != m.size() {
		t.Errorf("NextData at the end: %+v, %v", x, err)
	}
}

func testLarge(t *testing.T, open Opener) {
	const large = 32 << 20
	m := newModel(open(t, large+8192))
	m.write(t, 4096, fill(large, 17))
	m.equal(t)
	m.write(t, 1, fill(large+4097, 19))
	m.read(t, 3, large+1)
	m.equal(t)
}

func testFlush(t *testing.T, open Opener) {
	m := newModel(open(t, 1<<20))
	for i := range 4 {
		m.write(t, int64(i)*77777, fill(5000, byte(i+1)))
		if err := m.dev.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	m.equal(t)
}

// model is a device and what it should hold.
type model struct {
	dev  blockdev.Device
	want []byte
}

func newModel(dev blockdev.Device) *model {
	return &model{dev: dev, want: make([]byte, dev.Info().Size)}
}

func (m *model) size() int64 { return int64(len(m.want)) }

func (m *model) write(t *testing.T, off int64, p []byte) {
	t.Helper()
	kept := bytes.Clone(p)
	if n, err := m.dev.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("write %d+%d: %d, %v", off, len(p), n, err)
	}
	compare(t, "the writer's own buffer", p, kept)
	copy(m.want[off:], p)
}

func (m *model) zero(t *testing.T, off, n int64, mayFree bool) {
	t.Helper()
	if err := m.dev.Zero(off, n, mayFree); err != nil {
		t.Fatalf("zero %d+%d: %v", off, n, err)
	}
	clear(m.want[off : off+n])
}

func (m *model) read(t *testing.T, off, n int64) {
	t.Helper()
	got := bytes.Repeat([]byte{0xee}, int(n))
	if k, err := m.dev.ReadAt(got, off); k != int(n) || err != nil {
		t.Fatalf("read %d+%d: %d, %v", off, n, k, err)
	}
	compare(t, fmt.Sprintf("read %d+%d", off, n), got, m.want[off:off+n])
}

func (m *model) equal(t *testing.T) {
	t.Helper()
	m.read(t, 0, m.size())
}

// mapLaws walks NextData from several starts: it makes progress, ends, stays inside, and everything
// between what it tells reads as zero.
func (m *model) mapLaws(t *testing.T) {
	t.Helper()
	size := m.size()
	for _, from := range []int64{0, 1, 4096, size / 2, size - 1, size} {
		for at := from; ; {
			x, err := m.dev.NextData(at)
			if err != nil {
				t.Fatalf("NextData(%d): %v", at, err)
			}
			if x.Offset < at || x.End() > size || x.Length == 0 && x.Offset != size {
				t.Fatalf("NextData(%d) of %d: %+v", at, size, x)
			}
			if !blockdev.IsZero(m.want[at:x.Offset]) {
				t.Fatalf("NextData(%d): %+v passes over data", at, x)
			}
			if x.Length == 0 {
				break
			}
			at = x.End()
		}
	}
}

// compare fails with the first difference.
func compare(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d is %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

// fill makes n bytes that differ with the seed and with their place, none of them zero.
func fill(n int64, seed byte) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(uint64(seed), uint64(n)))
	for i := 0; i < len(p); i += 8 {
		v := rng.Uint64() | 0x0101010101010101
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(v)
			v >>= 8
		}
	}
	return p
}
