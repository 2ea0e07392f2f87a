package devtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// Conformance under concurrency.

// together runs n workers and reports the first error of each.
func together(t *testing.T, n int, work func(worker int) error) {
	t.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = work(i) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("worker %d: %v", i, err)
		}
	}
}

// testOneSector has eight workers write disjoint parts of the same sectors, again and again. None may
// undo another's part.
func testOneSector(t *testing.T, open Opener) {
	const workers, part, rounds = 8, 48, 40 // 8*48 bytes: less than the smallest sector
	m := newModel(open(t, 64<<10))
	base := m.size() - 4096 - 100 // across two sectors of 4096, eight of 512, and near the end
	together(t, workers, func(w int) error {
		off := base + int64(w)*part
		got := make([]byte, part)
		for r := range rounds {
			p := bytes.Repeat([]byte{byte(w*rounds + r + 1)}, part)
			if _, err := m.dev.WriteAt(p, off); err != nil {
				return err
			}
			if _, err := m.dev.ReadAt(got, off); err != nil {
				return err
			}
			if !bytes.Equal(got, p) {
				return fmt.Errorf("round %d: wrote %#x, read %#x", r, p[0], got)
			}
		}
		copy(m.want[off:], got)
		return nil
	})
	if !t.Failed() {
		m.equal(t)
	}
}

// testOneSectorAligned has whole-sector writes beside read-modify-writes of the same sectors. After each
// round a sector holds the aligned write's bytes, save those that the small write wrote last: what the
// read-modify-write had read before must not come back.
func testOneSectorAligned(t *testing.T, open Opener) {
	const rounds = 60
	m := newModel(open(t, 64<<10))
	block := make([]byte, 8192)[:4096]
	got := make([]byte, 4096)
	for r := range rounds {
		whole, small := byte(2*r+1), byte(2*r+2)
		for i := range block {
			block[i] = whole
		}
		together(t, 3, func(w int) error {
			var err error
			switch w {
			case 0:
				_, err = m.dev.WriteAt(block, 8192)
			case 1:
				_, err = m.dev.WriteAt(bytes.Repeat([]byte{small}, 10), 8192+100)
			case 2:
				err = m.dev.Zero(8192+3000, 10, false)
			}
			return err
		})
		if _, err := m.dev.ReadAt(got, 8192); err != nil {
			t.Fatal(err)
		}
		for i, b := range got {
			inSmall, inZero := i >= 100 && i < 110, i >= 3000 && i < 3010
			if b != whole && !(inSmall && b == small) && !(inZero && b == 0) {
				t.Fatalf("round %d: byte %d is %#x, which nobody wrote last", r, i, b)
			}
		}
	}
}

// testRandom gives every worker a stripe of its own, not aligned to anything, and has it do everything
// that a Device does there against a model.
func testRandom(t *testing.T, open Opener) {
	const workers, stripe, rounds = 6, 150_001, 120
	m := newModel(open(t, workers*stripe+10))
	together(t, workers, func(w int) error {
		lo := int64(w) * stripe
		return m.wander(lo, lo+stripe, rounds, uint64(w))
	})
	if !t.Failed() {
		m.equal(t)
		m.mapLaws(t)
	}
}

// wander does random requests within [lo, hi), which is this goroutine's alone.
func (m *model) wander(lo, hi int64, rounds int, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 99))
	for r := range rounds {
		off := lo + rng.Int64N(hi-lo)
		n := min(1+rng.Int64N(1<<rng.IntN(17)), hi-off)
		if rng.IntN(3) == 0 && (off+4095)&^4095+4096 <= hi {
			off = (off + 4095) &^ 4095
			n = max(4096, min(n, hi-off)&^4095)
		}
		var err error
		switch rng.IntN(8) {
		case 0, 1, 2:
			p := fill(n, byte(rng.Uint32()))
			copy(m.want[off:], p)
			_, err = m.dev.WriteAt(p, off)
		case 3, 4:
			clear(m.want[off : off+n])
			err = m.dev.Zero(off, n, r%2 == 0)
		case 5:
			if err = m.dev.Discard(off, n); err == nil {
				clear(m.want[off : off+n])
				err = m.dev.Zero(off, n, true)
			}
		case 6:
			err = m.dev.Flush()
		case 7:
			_, err = m.dev.NextData(off)
		}
		if err != nil {
			return err
		}
		got := make([]byte, n)
		if _, err := m.dev.ReadAt(got, off); err != nil {
			return err
		}
		if !bytes.Equal(got, m.want[off:off+n]) {
			return fmt.Errorf("round %d: %d+%d is not what was written", r, off, n)
		}
	}
	return nil
}

// testZeroBesideWrite zeroes a whole page beside a read-modify-write in it: what that had read before must
// not come back.
func testZeroBesideWrite(t *testing.T, open Opener) {
	m := newModel(open(t, 64<<10))
	got := make([]byte, 4096)
	for r := range 200 {
		if _, err := m.dev.WriteAt(bytes.Repeat([]byte{1}, 4096), 8192); err != nil {
			t.Fatal(err)
		}
		together(t, 2, func(w int) error {
			if w == 0 {
				return m.dev.Zero(8192, 4096, r%2 == 0)
			}
			_, err := m.dev.WriteAt(bytes.Repeat([]byte{2}, 10), 8192+100)
			return err
		})
		if _, err := m.dev.ReadAt(got, 8192); err != nil {
			t.Fatal(err)
		}
		for i, b := range got {
			if b != 0 && !(b == 2 && i >= 100 && i < 110) {
				t.Fatalf("round %d: byte %d is %#x after the page was zeroed", r, i, b)
			}
		}
	}
}
