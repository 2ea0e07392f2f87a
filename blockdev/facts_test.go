package blockdev_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// factsOf opens, looks and closes.
func factsOf(t *testing.T, path string) blockdev.Facts {
	t.Helper()
	f, err := blockdev.Open(path, blockdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, err := f.Facts()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// expect compares two sets of facts in both directions.
func expect(t *testing.T, what string, a, b blockdev.Facts, same, unchanged bool) {
	t.Helper()
	if a.SameDevice(b) != same || b.SameDevice(a) != same {
		t.Errorf("%s: SameDevice is not %v\n%+v\n%+v", what, same, a, b)
	}
	if a.Unchanged(b) != unchanged || b.Unchanged(a) != unchanged {
		t.Errorf("%s: Unchanged is not %v\n%+v\n%+v", what, unchanged, a, b)
	}
}

func TestFactsOfImage(t *testing.T) {
	path := newImage(t, 1<<20)
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	a := factsOf(t, path)
	b := factsOf(t, path)
	if a != b {
		t.Errorf("two looks at one device: %+v and %+v", a, b)
	}
	expect(t, "a fresh open", a, b, true, true)

	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var back blockdev.Facts
	if err := json.Unmarshal(text, &back); err != nil || back != a {
		t.Errorf("through JSON: %+v, %v; want %+v", back, err, a)
	}

	f := open(t, path, blockdev.Options{Write: true})
	if _, err := f.WriteAt([]byte{1}, 5); err != nil {
		t.Fatal(err)
	}
	f.Close()
	c := factsOf(t, path)
	expect(t, "after a write", a, c, true, false)
	if a.FolderName() != c.FolderName() || !regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(a.FolderName()) {
		t.Errorf("folders %q and %q", a.FolderName(), c.FolderName())
	}

	moved := filepath.Join(filepath.Dir(path), "moved")
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	expect(t, "under a new name", c, factsOf(t, moved), true, c.Ctime == factsOf(t, moved).Ctime)
	if err := blockdev.Create(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	expect(t, "another file", c, factsOf(t, path), false, false)
	if c.FolderName() == factsOf(t, path).FolderName() {
		t.Error("two files have one folder")
	}
}

func TestFactsOfZeroValue(t *testing.T) {
	var none blockdev.Facts
	expect(t, "nothing is known", none, none, false, false)
	expect(t, "nothing is known of a disk", blockdev.Facts{Block: true}, blockdev.Facts{Block: true}, false, false)
}

func TestFactsOfBlockDevice(t *testing.T) {
	needLoop(t)
	image := newImage(t, 1<<20)
	dev := attach(t, image)
	a := factsOf(t, dev)
	if !a.Block || a.Size != 1<<20 || a.BootID == "" {
		t.Fatalf("%+v", a)
	}
	expect(t, "a fresh open", a, factsOf(t, dev), true, a.Counted)
	f := open(t, dev, blockdev.Options{Write: true})
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	expect(t, "after a write", a, factsOf(t, dev), true, false)
	other := attach(t, image)
	b := factsOf(t, other)
	expect(t, "another loop device", a, b, false, false)
	if a.FolderName() == b.FolderName() {
		t.Errorf("two devices have one folder, %s", a.FolderName())
	}
}

func TestFactsOfPartition(t *testing.T) {
	p1, p2, disk := partitioned(t)
	a, b := factsOf(t, p1), factsOf(t, p2)
	if !a.Partition || a.PartStart != 2048 {
		t.Errorf("%+v", a)
	}
	expect(t, "two partitions", a, b, false, false)
	expect(t, "partition and disk", a, factsOf(t, disk), false, false)
	if !a.Counted {
		t.Skip("this kernel does not count")
	}
	writeTo := func(path string, off int64) {
		t.Helper()
		f, err := blockdev.Open(path, blockdev.Options{Write: true})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(make([]byte, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	writeTo(p2, 0)
	expect(t, "a write to the neighbour", a, factsOf(t, p1), true, true)
	expect(t, "a write to itself", b, factsOf(t, p2), true, false)
	writeTo(disk, 2048*512)
	expect(t, "a write through the whole disk", a, factsOf(t, p1), true, false)
}
