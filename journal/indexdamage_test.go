package journal_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
)

// Whatever of an index's files is cut, emptied, removed or flipped: it opens with ErrIndexDamaged, or it
// opens and holds nothing wrong. (Where badger panics in a goroutine of its own the whole run ends, and the
// last case that was begun is the one.)
func TestIndexDamage(t *testing.T) {
	good := t.TempDir() + "/index"
	x := openIndex(t, good)
	for b := range uint64(4000) {
		must(t, x.Put(b, hashOf(b, b/3000))) // from 3000 on an older version
	}
	must(t, x.Close()) // into a table
	x = openIndex(t, good)
	for b := uint64(3000); b < 6000; b++ {
		must(t, x.Put(b, hashOf(b, 2)))
	}
	must(t, x.Sync()) // in the log of a memtable only
	killed := t.TempDir() + "/killed"
	must(t, os.CopyFS(killed, os.DirFS(good)))
	must(t, x.Close())

	changes := map[string]func(path string, data []byte) error{
		"removed": func(path string, _ []byte) error { return os.Remove(path) },
		"emptied": func(path string, _ []byte) error { return os.Truncate(path, 0) },
		"cut":     func(path string, data []byte) error { return os.Truncate(path, int64(len(data)/2)) },
		"end cut": func(path string, data []byte) error { return os.Truncate(path, int64(len(data)-3)) },
		"zeroed":  func(path string, data []byte) error { clear(data); return os.WriteFile(path, data, 0o600) },
		"flipped": func(path string, data []byte) error {
			for i := range data {
				if i%97 == 11 {
					data[i] ^= 0x40
				}
			}
			return os.WriteFile(path, data, 0o600)
		},
	}
	entries, err := os.ReadDir(killed)
	must(t, err)
	for _, e := range entries {
		for how, change := range changes {
			info, err := e.Info()
			must(t, err)
			if info.Size() < 4 {
				continue
			}
			t.Run(how+" "+e.Name(), func(t *testing.T) {
				dir := t.TempDir() + "/index"
				must(t, os.CopyFS(dir, os.DirFS(killed)))
				path := filepath.Join(dir, e.Name())
				data, err := os.ReadFile(path)
				must(t, err)
				must(t, change(path, data))
				readDamaged(t, dir)
			})
		}
	}
}

func readDamaged(t *testing.T, dir string) {
	x, err := journal.OpenIndex(dir)
	if err != nil {
		t.Logf("open: %v", err)
		if !errors.Is(err, journal.ErrIndexDamaged) {
			t.Errorf("not marked as damage")
		}
		must(t, journal.RemoveIndex(dir))
		x = openIndex(t, dir)
	}
	got := make([]journal.Entry, 7000)
	err = x.Get(0, got)
	known := 0
	for b, e := range got {
		if e.Known {
			known++
		}
		version := uint64(0)
		if b >= 3000 {
			version = 2
		}
		if err == nil && e.Known && e.Hash != hashOf(uint64(b), version) {
			t.Errorf("block %d is wrong", b)
		}
	}
	t.Logf("%d known, %v, %+v", known, err, x.Stats())
	must(t, x.Close())
}
