package journaltest_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// index is what engine wants of one.
type index interface {
	Get(first uint64, dst []journal.Entry) error
	PutRun(first uint64, hashes [][32]byte) error
	Delete(first, count uint64) error
	Sync() error
	Reset() error
	Close() error
}

const indexBlocks = 40

func known(t *testing.T, x index) string {
	t.Helper()
	dst := make([]journal.Entry, indexBlocks)
	for i := range dst {
		dst[i].Known = true // what is there before the call means nothing
	}
	if err := x.Get(0, dst); err != nil {
		t.Fatal(err)
	}
	s := ""
	for i, e := range dst {
		if e.Known {
			s += fmt.Sprintf(" %d:%d", i, e.Hash[0])
		}
	}
	return s
}

// change does the same random thing to some indexes.
func change(rng *rand.Rand, to ...index) {
	first, n, v, what := rng.Uint64N(indexBlocks-8), rng.Uint64N(8), byte(rng.Uint32()), rng.IntN(3)
	for _, x := range to {
		if what > 0 {
			x.PutRun(first, slices.Repeat([][32]byte{{v}}, int(n)))
		} else if n == 7 {
			x.Delete(first, 1<<62)
		} else {
			x.Delete(first, n)
		}
	}
}

// TestMemIndexIsAnIndex does the same to it and to the real one.
func TestMemIndexIsAnIndex(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x, err := journal.OpenIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { x.Close() }()
	m := journaltest.NewMemIndex()
	rng := rand.New(rand.NewPCG(4, 5))
	for step := range 400 {
		change(rng, x, m)
		switch rng.IntN(40) {
		case 0:
			x.Reset()
			m.Reset()
		case 1, 2:
			x.Sync()
			m.Sync()
		case 3:
			if err := errors.Join(x.Close(), m.Close(), x.Close(), m.Close()); err != nil {
				t.Fatal(err)
			}
			if err := m.Sync(); !errors.Is(err, journal.ErrClosed) {
				t.Fatalf("closed: %v", err)
			}
			if x, err = journal.OpenIndex(dir); err != nil {
				t.Fatal(err)
			}
			m = m.PowerCut(rng) // nothing may be lost
		}
		if got, want := known(t, m), known(t, x); got != want {
			t.Fatalf("step %d: it knows%s, the real one%s", step, got, want)
		}
		for b := range uint64(indexBlocks) {
			var e [1]journal.Entry
			x.Get(b, e[:])
			if hash, ok := m.Known(b); ok != e[0].Known || hash != e[0].Hash {
				t.Fatalf("step %d: block %d: %v", step, b, ok)
			}
		}
	}
	if m.Blocks() > indexBlocks {
		t.Errorf("%d blocks", m.Blocks())
	}
}

// TestMemIndexPowerCut meets every prefix and nothing else.
func TestMemIndexPowerCut(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 6))
		m := journaltest.NewMemIndex()
		for range 5 {
			change(rng, m)
		}
		m.Sync()
		prefixes := []string{known(t, m)}
		snapshot := m.Clone()
		for range rng.IntN(10) {
			before := m.Unsynced()
			if change(rng, m); m.Unsynced() > before {
				prefixes = append(prefixes, known(t, m))
			}
		}
		if n := m.Unsynced(); n != len(prefixes)-1 {
			t.Fatalf("%d changes, want %d", n, len(prefixes)-1)
		}
		for n, want := range prefixes {
			if got := known(t, m.Keep(n)); got != want {
				t.Errorf("%d kept:%s, want%s", n, got, want)
			}
		}
		seen := map[string]bool{}
		for range 400 {
			c := m.PowerCut(rng)
			seen[known(t, c)] = true
			if c.Unsynced() != 0 {
				t.Fatal("something is not durable after a power cut")
			}
		}
		for s := range seen {
			if !slices.Contains(prefixes, s) {
				t.Errorf("left:%s, none of %q", s, prefixes)
			}
		}
		for _, s := range prefixes {
			if !seen[s] {
				t.Errorf("never left:%s", s)
			}
		}
		k := m.Killed()
		change(rng, m)
		if known(t, k) != prefixes[len(prefixes)-1] || known(t, k.Keep(0)) != prefixes[0] || known(t, snapshot) != prefixes[0] {
			t.Error("what came of it is not what was")
		}
	}
}

func TestMemIndexFaults(t *testing.T) {
	m := journaltest.NewMemIndex()
	m.PutRun(3, make([][32]byte, 1))
	fail := true
	var op string
	m.Hook = func(o string) error {
		if op = o; fail {
			return syscall.ENOSPC
		}
		return nil
	}
	if err := m.Delete(3, 1); !errors.Is(err, syscall.ENOSPC) || op != "delete" {
		t.Errorf("%s: %v", op, err)
	}
	fail = false
	if err := m.Get(0, nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("after a failure: %v", err)
	}
	if _, ok := m.Known(3); !ok {
		t.Error("what failed has changed something")
	}
	if err := m.Reset(); err != nil || m.Sync() != nil || m.Blocks() != 0 {
		t.Errorf("after a reset: %v", err)
	}
	m.PutRun(1, make([][32]byte, 2))
	m.Kill()
	for _, err := range []error{m.Get(0, nil), m.PutRun(0, nil), m.Delete(0, 1), m.Sync(), m.Reset(), m.Close()} {
		if !errors.Is(err, journaltest.ErrDead) {
			t.Error(err)
		}
	}
	if m.Unsynced() != 1 || m.Blocks() != 3 {
		t.Error("the dead have changed something")
	}
}

func BenchmarkMemIndex(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	m := journaltest.NewMemIndex()
	h := make([][32]byte, 2)
	m.PutRun(0, make([][32]byte, 32))
	for i := 0; b.Loop(); i++ {
		m.Delete(uint64(i%30), 2)
		m.PutRun(uint64(i%30), h)
		if i%4 == 3 {
			m.Sync()
		}
		if i%100 == 0 {
			m.PowerCut(rng)
		}
	}
}
