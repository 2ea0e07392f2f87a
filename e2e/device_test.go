package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sized makes an image of zeroes for a loop device.
func sized(t testing.TB, dir, name string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	write(t, path, nil)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// A target that is mounted is refused, as a device, as the image under it, and as another device over it.
func TestMountedTarget(t *testing.T) {
	t.Parallel()
	needRoot(t)
	need(t, "mkfs.ext4")
	p := newPair(t, 24*mib)
	back := sized(t, p.dir, "back", 24*mib)
	tool(t, "mkfs.ext4", "-q", back)
	dev := loop(t, back)
	at := filepath.Join(p.dir, "mnt")
	unmount := mount(t, dev, at)
	write(t, filepath.Join(at, "precious"), []byte("data"))
	tool(t, "sync", "--file-system", at)
	s := serve(t, p.state+"2", "v="+dev)

	p.sync(t, p.src, dev).fails(t, 7, dev, "mounted")
	p.sync(t, p.src, back).fails(t, 7, back, "mounted")
	p.sync(t, p.src, loop(t, back)).fails(t, 7, "mounted")
	blkmirror(t, "sync", "--insecure", p.src, s.url("v")).fails(t, 7, "mounted")
	if got, err := os.ReadFile(filepath.Join(at, "precious")); err != nil || string(got) != "data" {
		t.Errorf("the mounted file system was damaged: %q, %v", got, err)
	}
	unmount()
	tool(t, "e2fsck", "-fn", back)
	p.dst = dev
	p.completes(t)
}

// The source under a loop device, and two loop devices over one file, are one device.
func TestSameDeviceThroughLoops(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := newPair(t, 4*mib)
	check := unchanged(t, p.src)
	one, two := loop(t, p.src), loop(t, p.src)
	link := filepath.Join(p.dir, "link")
	if err := os.Symlink(one, link); err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(p.dir, "node") // another device node of the same device
	numbers := strings.Fields(tool(t, "stat", "-c", "%Hr %Lr", one))
	tool(t, "mknod", node, "b", numbers[0], numbers[1])
	for name, ends := range map[string][2]string{
		"file and its loop": {p.src, one}, "loop and its file": {one, p.src}, "two loops": {one, two},
		"loop and itself": {one, one}, "loop through a symlink": {one, link}, "loop through another node": {one, node},
	} {
		t.Run(name, func(t *testing.T) {
			p.sync(t, ends[0], ends[1]).fails(t, 7, "same")
			check()
		})
	}
	p.completes(t)
}

func TestReadOnlyDevice(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := newPair(t, 4*mib)
	back := sized(t, p.dir, "back", 4*mib)
	check := unchanged(t, back)
	t.Run("blockdev --setro", func(t *testing.T) {
		dev := loop(t, back)
		tool(t, "blockdev", "--setro", dev)
		p.sync(t, p.src, dev).fails(t, 6, dev, "read-only")
		check()
		tool(t, "blockdev", "--setrw", dev)
		p.sync(t, p.src, dev).ok(t)
		equal(t, p.src, dev)
	})
	t.Run("losetup --read-only", func(t *testing.T) {
		dev := loop(t, back, "--read-only")
		p.sync(t, p.src, dev).fails(t, 6, dev, "read-only")
		p.sync(t, dev, p.dst).ok(t) // as a source it will do
		equal(t, p.src, p.dst)
	})
}

func TestReadOnlyFileSystem(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := newPair(t, 4*mib)
	at, _ := smallDisk(t, p.dir, "24M")
	write(t, filepath.Join(at, "there"), make([]byte, 4*mib))
	tool(t, "mount", "-o", "remount,ro", at)
	for _, name := range []string{"new", "there"} {
		p.dst = filepath.Join(at, name)
		p.sync(t, p.src, p.dst).fails(t, 6, p.dst, "read-only")
	}
	blkmirror(t, "sync", "--state", filepath.Join(at, "state"), p.src, filepath.Join(p.dir, "x")).fails(t, 6, at, "read-only")
	tool(t, "mount", "-o", "remount,rw", at)
	p.completes(t)
}

// A target's file system that runs full in the middle: said as such, and when there is room the next sync
// goes on.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ext4", "tmpfs"} {
		for _, remote := range []bool{false, true} {
			name := kind
			if remote {
				name += " at the other node"
			}
			t.Run(name, func(t *testing.T) { diskFull(t, kind, remote) })
		}
	}
}

func diskFull(t *testing.T, kind string, remote bool) {
	needRoot(t)
	p := newPair(t, 48*mib)
	at := filepath.Join(p.dir, "small")
	var makeRoom func()
	if kind == "ext4" {
		at, _ = smallDisk(t, p.dir, "80M")
		filler := filepath.Join(at, "filler")
		write(t, filler, make([]byte, 40*mib))
		makeRoom = func() { os.Remove(filler) }
	} else {
		mount(t, "tmpfs", at, "-t", "tmpfs", "-o", "size=24M")
		makeRoom = func() { tool(t, "mount", "-o", "remount,size=64M", at) }
	}
	p.dst = filepath.Join(at, "dst")
	args := []string{p.src, p.dst}
	if remote {
		args = []string{"--insecure", p.src, serve(t, p.state+"2", "v="+p.dst).url("v")}
	}
	p.sync(t, args...).fails(t, 6, "space")
	p.sync(t, args...).fails(t, 6, "space") // and again
	makeRoom()
	rep := p.sync(t, args...).ok(t).report(t)
	equal(t, p.src, p.dst)
	t.Logf("after room was made: resumed %d, skipped %d, shipped %d", rep.Resumed, rep.Skipped, rep.Shipped)
	if rep.Resumed+rep.Skipped == 0 {
		t.Error("what was there already was shipped again")
	}
}

// A state directory without room is an error, not a crash, and does no harm to the target.
func TestStateDirectoryFull(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ext4", "tmpfs"} {
		for _, room := range []string{"0", "16", "3000"} { // KiB left
			t.Run(kind+" with "+room+" KiB", func(t *testing.T) { stateFull(t, kind, room) })
		}
	}
}

func stateFull(t *testing.T, kind, room string) {
	needRoot(t)
	p := newPair(t, 16*mib)
	at := filepath.Join(p.dir, "small")
	if kind == "ext4" {
		at, _ = smallDisk(t, p.dir, "400M")
	} else {
		mount(t, "tmpfs", at, "-t", "tmpfs", "-o", "size=400M")
	}
	p.state = filepath.Join(at, "state")
	filler := filepath.Join(at, "filler")
	fill := func() {
		exec.Command("dd", "if=/dev/zero", "of="+filler, "bs=64k").Run() // ends with: no space left
		tool(t, "truncate", "-s", "-"+room+"K", filler)
	}
	fill()
	p.sync(t, p.src, p.dst).fails(t, 6, "space")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	p.completes(t)
	// The same with a state that is there already.
	fill()
	put(t, p.src, 5*mib, []byte("changed"))
	if r := p.sync(t, p.src, p.dst); r.code != 0 {
		r.fails(t, 6, "space")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	p.completes(t)
}
