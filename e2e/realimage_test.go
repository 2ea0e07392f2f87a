package e2e

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// realSize is how much of a real image are files; realRoom is left beside them.
func realSize() int64 {
	if *long {
		return 1024 * mib
	}
	return 256 * mib
}

const realRoom = 192 * mib

// target is where a real image is copied to, and how.
type target struct {
	name string
	path string // to be compared, and checked with e2fsck
	sync []string
}

// An ext4 image of real files reaches a file, another node (pushed and pulled) and a block device
// with sectors of 4096 bytes. After files were changed through a mount, exactly the blocks that changed are
// shipped, and the copies are clean file systems.
func TestRealImage(t *testing.T) {
	need(t, "mkfs.ext4", "e2fsck")
	dir := folder(t)
	src := filepath.Join(dir, "src.img")
	realImage(t, dir, src)
	targets := realTargets(t, dir, src)
	for _, to := range targets {
		rep := plainSync(t, to.sync...)
		equal(t, src, to.path)
		t.Logf("%s: first: shipped %d, zero %d, wire %d of %d bytes, %.1f s", to.name, rep.Shipped, rep.Zero, rep.Wire, rep.Size, rep.Seconds)
		if rep.Shipped+rep.Zero+rep.Skipped != rep.Size {
			t.Errorf("%s: shipped, skipped and zero are not the whole: %+v", to.name, rep)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("first copies are equal; changing files in the image needs root for a mount")
	}
	changeFiles(t, dir, src)
	data, zero := changes(t, src, targets[0].path)
	t.Logf("changed through the mount: %d bytes of blocks with data, %d that are now zero", data, zero)
	if data == 0 {
		t.Fatal("nothing changed")
	}
	for _, to := range targets {
		rep := plainSync(t, to.sync...)
		equal(t, src, to.path)
		tool(t, "e2fsck", "-fn", to.path)
		t.Logf("%s: again: shipped %d, skipped %d, wire %d bytes, %.1f s", to.name, rep.Shipped, rep.Skipped, rep.Wire, rep.Seconds)
		if rep.Shipped != data {
			t.Errorf("%s: shipped %d bytes, changed were %d", to.name, rep.Shipped, data)
		}
	}
}

// realTargets are the four ways to copy src.
func realTargets(t *testing.T, dir, src string) []target {
	state := filepath.Join(dir, "state")
	path := func(name string) string { return filepath.Join(dir, name+".img") }
	push := serveWith(t, plain, filepath.Join(dir, "push"), "v="+path("pushed"))
	pull := serveWith(t, plain, filepath.Join(dir, "pull"), "v="+src)
	targets := []target{
		{name: "path to path", path: path("file"), sync: []string{"--state", state, src, path("file")}},
		{name: "push", path: path("pushed"), sync: []string{"--insecure", src, push.url("v")}},
		{name: "pull", path: path("pulled"), sync: []string{"--insecure", "--state", state, pull.url("v"), path("pulled")}},
	}
	if os.Geteuid() != 0 {
		t.Log("not root: no block device among the targets")
		return targets
	}
	back := path("back")
	tool(t, "truncate", "-s", fmt.Sprint(realSize()+realRoom), back)
	dev := loop(t, back, "-b", "4096")
	if got := tool(t, "blockdev", "--getss", dev); got != "4096" {
		t.Fatalf("%s has sectors of %s bytes", dev, got)
	}
	return append(targets, target{name: "loop device with 4096-byte sectors", path: dev, sync: []string{"--state", state, src, dev}})
}

func plainSync(t *testing.T, args ...string) report {
	t.Helper()
	return launch(t, nil, append([]string{plain, "sync", "--json"}, args...)...).wait().ok(t).report(t)
}

// realImage makes an ext4 image with files of this system: its programs and libraries, and Go's own tree where these are
// not enough.
func realImage(t *testing.T, dir, image string) {
	t.Helper()
	want := realSize()
	tree := filepath.Join(dir, "tree")
	var total int64
	roots := []string{"/usr/lib", "/usr/share", "/usr/bin", tool(t, "go", "env", "GOROOT"), "/usr/src"}
	for pass := 0; total < want && pass < 4; pass++ { // a small system gives its files more than once
		for i, root := range roots {
			total += copyFiles(t, root, filepath.Join(tree, fmt.Sprint(pass, "-", i)), want-total)
		}
	}
	if total < want {
		t.Skipf("this system has only %d bytes of files to fill an image with", total)
	}
	tool(t, "truncate", "-s", fmt.Sprint(want+realRoom), image)
	tool(t, "mkfs.ext4", "-q", "-m", "0", "-d", tree, image)
	if err := os.RemoveAll(tree); err != nil {
		t.Fatal(err)
	}
}

// copyFiles copies files until about limit bytes are copied.
func copyFiles(t *testing.T, from, to string, limit int64) (copied int64) {
	filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || copied >= limit {
			return fs.SkipAll
		}
		if !e.Type().IsRegular() {
			return nil
		}
		in, err := os.Open(path)
		if err != nil {
			return nil // not everything is for everybody
		}
		defer in.Close()
		out := filepath.Join(to, strings.TrimPrefix(path, from))
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(out)
		if err != nil {
			t.Fatal(err)
		}
		n, err := f.ReadFrom(in)
		copied += n
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		return err
	})
	return copied
}

// changeFiles mounts the image and does to its files what users do.
func changeFiles(t *testing.T, dir, image string) {
	t.Helper()
	at := filepath.Join(dir, "mnt")
	unmount := mount(t, loop(t, image), at)
	rng := rand.New(random(t))
	n := 0
	filepath.WalkDir(at, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || rng.IntN(100) > 0 {
			return nil
		}
		n++
		switch rng.IntN(3) {
		case 0:
			err = os.Remove(path)
		case 1:
			err = os.WriteFile(path, fmt.Appendf(nil, "%s was rewritten\n", path), 0o644)
		default:
			err = exec.Command("sh", "-c", `head -c 100000 /dev/urandom >>"$1"`, "sh", path).Run()
		}
		return err
	})
	if err := os.WriteFile(filepath.Join(at, "new"), make([]byte, 5*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("changed %d files", n)
	unmount()
}
