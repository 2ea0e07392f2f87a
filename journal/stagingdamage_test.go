package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
)

// flipped is a file with records, points, a rebase and a footer, and what it may be taken for, the last
// state last.
func flipped(t *testing.T) (image []byte, states []string, w *stagingWork) {
	mem := stagingFS()
	w = newStagingWork(mem, 11)
	must(t, w.run(1))
	states = append(states, w.maySay[0])
	steps := []func() error{w.append, w.sync, w.append, w.append, w.rebase, w.append, w.append, w.sync, w.append, w.seal}
	for i, step := range steps {
		must(t, step())
		if len(w.maySay) == 1 && i > 0 && w.maySay[0] != states[len(states)-1] {
			states = append(states, w.maySay[0])
		}
	}
	must(t, w.s.Close())
	return mem.Read(mem.Paths()[0]), states, w
}

// Every byte that means something is changed in turn. It is found to be damage, or looks as if what stands
// behind had never been promised, which only the very last point can; a payload is compared with its record's
// hash, and not here.
func TestStagingDamage(t *testing.T) {
	t.Parallel()
	image, states, w := flipped(t)
	last := states[len(states)-1]
	path := filepath.Join(testDir, fmt.Sprintf("%010d.staging", w.m.epoch))
	rng := rand.New(rand.NewPCG(1, 2))
	found := map[string]int{}
	// One byte in eight will do of payloads, and of padding; nothing else stands between them and a page.
	skip := func(at int) int { return min(at+7, at/page*page+page-1) }
	for at := 0; at < len(image); at++ {
		mem := stagingFS()
		data := slices.Clone(image)
		data[at] ^= byte(1 + rng.IntN(255))
		mem.Write(path, data)
		tell := func(o journal.StagingOptions) (string, error) {
			o.PlanPieces, o.BufferSize = little.PlanPieces, little.BufferSize
			s, err := journal.OpenStaging(mem, testDir, w.m.epoch, o)
			if err != nil {
				return "", err
			}
			return told(s)
		}
		got, err := tell(journal.StagingOptions{Vouched: w.m.point.Seq})
		switch {
		case errors.Is(err, journal.ErrDamaged):
			if !bytes.Equal(mem.Read(path), data) {
				t.Fatalf("byte %d: damage was repaired", at)
			}
		case err != nil:
			t.Fatalf("byte %d: %v", at, err)
		case got == last:
			found["padding"]++
			at = skip(at)
			continue
		case strings.ReplaceAll(got, " BAD PAYLOAD", "") == last:
			found["payload"]++
			at = skip(at)
			continue
		default:
			t.Fatalf("byte %d: found\n%swant\n%s", at, got, last)
		}
		// Without what the journal knows the tail may be cut.
		got, err = tell(journal.StagingOptions{})
		switch {
		case errors.Is(err, journal.ErrDamaged):
			found["damage"]++
		case err == nil && got == states[len(states)-2]:
			found["cut"]++
		default:
			t.Fatalf("byte %d: %v, found\n%s", at, err, got)
		}
	}
	t.Logf("%d bytes: %v", len(image), found)
	for _, what := range []string{"padding", "payload", "damage", "cut"} {
		if found[what] == 0 {
			t.Errorf("no byte of the kind %s", what)
		}
	}
	if max := 64 + 64 + len(w.m.sealed); found["cut"] > max {
		t.Errorf("%d bytes are not missed, a footer has %d", found["cut"], max)
	}
}

// A file that ends early was never so after a crash, save within its last frames.
func TestStagingCutShort(t *testing.T) {
	image, states, w := flipped(t)
	path := filepath.Join(testDir, fmt.Sprintf("%010d.staging", w.m.epoch))
	for size := 0; size < len(image); size += 37 {
		mem := stagingFS()
		mem.Write(path, image[:size])
		_, err := journal.OpenStaging(mem, testDir, w.m.epoch, journal.StagingOptions{Vouched: w.m.point.Seq})
		if !errors.Is(err, journal.ErrDamaged) {
			t.Fatalf("%d of %d bytes: %v", size, len(image), err)
		}
		got, s, err := recovered(mem)
		if err != nil && !errors.Is(err, journal.ErrDamaged) || err == nil && !slices.Contains(states, got) {
			t.Fatalf("%d of %d bytes: %v, found\n%s", size, len(image), err, got)
		}
		if s != nil {
			must(t, s.Close())
		}
	}
}

func FuzzStagingFile(f *testing.F) {
	t := &testing.T{}
	image, states, w := flipped(t)
	path := filepath.Join(testDir, fmt.Sprintf("%010d.staging", w.m.epoch))
	f.Add(uint(100), []byte("abc"), uint(0))
	f.Add(uint(4096), image[8192:8300], uint(20000))
	f.Fuzz(func(t *testing.T, at uint, with []byte, size uint) {
		data := slices.Clone(image)
		if size > 0 && size < 1<<20 {
			data = append(data, make([]byte, size)...)[:size]
		}
		copy(data[min(at, uint(len(data))):], with)
		mem := stagingFS()
		mem.Write(path, data)
		got, _, err := recovered(mem)
		if errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrVersion) {
			return
		}
		if got = strings.ReplaceAll(got, " BAD PAYLOAD", ""); err != nil || !slices.Contains(states, got) {
			t.Errorf("%v, found\n%s", err, got)
		}
	})
}
