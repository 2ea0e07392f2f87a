package journal_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
)

// dumped returns what Dump prints, without the folder's name.
func dumped(t *testing.T, path, root string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := journal.Dump(&out, path)
	return strings.ReplaceAll(out.String(), root, "DIR"), err
}

// tree reads all files, to see that nothing was changed.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	must(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	}))
	return files
}

// wantLines checks that each pattern matches a line, in this order.
func wantLines(t *testing.T, out string, patterns ...string) {
	t.Helper()
	lines := strings.Split(out, "\n")
	for _, p := range patterns {
		re := regexp.MustCompile("^" + p + "$")
		for len(lines) > 0 && !re.MatchString(lines[0]) {
			lines = lines[1:]
		}
		if len(lines) == 0 {
			t.Fatalf("no line %q in order in:\n%s", p, out)
		}
	}
}

func TestDumpSync(t *testing.T) {
	root := t.TempDir()
	if _, _, err := runSteps(osIn(root)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, syncDir)
	before := tree(t, root)
	out, err := dumped(t, dir, dir)
	must(t, err)
	wantLines(t, out, `sync folder DIR`,
		`segment DIR/log/0000000003.seg: number 3, kind sync, log [0-9a-f]{32}, first LSN 8, \d+ bytes`,
		`  8 at 64: begin source [0-9a-f]{64} size 1073741824 block 65536 position 0 last [0-9a-f]{64}`,
		`  9 at 184: settle complete false facts ""`,
		`state: size 1073741824, block size 65536, position 0, complete false`,
		`state: facts unknown, the target may have changed`)

	segment := filepath.Join(dir, "log", "0000000003.seg")
	out, err = dumped(t, segment, dir)
	must(t, err)
	wantLines(t, out, `  9 at 184: settle complete false facts ""`)
	if after := tree(t, root); !mapsEqual(before, after) {
		t.Error("Dump changed something")
	}

	// A torn tail is shown and left.
	data := []byte(before[segment])
	must(t, os.WriteFile(segment, data[:len(data)-4], 0o600))
	out, err = dumped(t, dir, dir)
	must(t, err)
	wantLines(t, out, `  8 at 64: begin .*`, `  torn tail at 184: 36 bytes that were never promised; .*`, `state: size .*`)

	// Damage is shown and returned.
	data[100] ^= 1
	must(t, os.WriteFile(segment, data, 0o600))
	out, err = dumped(t, dir, dir)
	if !errors.Is(err, journal.ErrDamaged) {
		t.Errorf("got %v", err)
	}
	wantLines(t, out, `DAMAGED: DIR/log/0000000003.seg is damaged at offset 64: .*`, `state: the log is damaged; .*`)
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if a[k] != b[k] {
			return false
		}
	}
	return true
}

func TestDumpIndex(t *testing.T) {
	dir := t.TempDir() + "/index"
	x := openIndex(t, dir)
	must(t, x.Put(3, hashOf(3, 3)))
	must(t, x.Put(1000, hashOf(4, 4)))
	must(t, x.SetMeta("facts", []byte("f")))
	if _, err := dumped(t, dir, dir); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("in use: %v", err)
	}
	must(t, x.Close())
	before := tree(t, dir)
	out, err := dumped(t, dir, dir)
	must(t, err)
	wantLines(t, out, `index DIR`, `  meta "facts": "f"`, `  page 0: 1 blocks`, `    block 3 [0-9a-f]{64}`,
		`  page 1: 1 blocks`, `    block 1000 [0-9a-f]{64}`, `index: 2 pages, 2 blocks, 0 bad pages`)
	if after := tree(t, dir); !mapsEqual(before, after) {
		t.Error("Dump changed something")
	}
}

func TestDumpOfSomethingElse(t *testing.T) {
	root := t.TempDir()
	file := root + "/notes.txt"
	must(t, os.WriteFile(file, []byte("not a segment"), 0o600))
	for _, path := range []string{root, file} {
		if _, err := dumped(t, path, root); !errors.Is(err, journal.ErrUnknownPath) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := dumped(t, root+"/none", root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}
