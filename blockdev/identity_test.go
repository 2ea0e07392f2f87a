package blockdev_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/blockdev"
)

func ids(t *testing.T, path string) []string {
	t.Helper()
	s, err := blockdev.Identities(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(s) == 0 || !blockdev.Overlap(s, s) {
		t.Fatalf("%s is nothing: %q", path, s)
	}
	return s
}

// expectOverlap compares two paths in both directions.
func expectOverlap(t *testing.T, what, a, b string, want bool) {
	t.Helper()
	x, y := ids(t, a), ids(t, b)
	if blockdev.Overlap(x, y) != want || blockdev.Overlap(y, x) != want {
		t.Errorf("%s: Overlap is not %v\n%q\n%q", what, want, x, y)
	}
}

func TestIdentitiesOfFiles(t *testing.T) {
	a, b := newImage(t, 4096), newImage(t, 4096)
	link, hard := filepath.Join(t.TempDir(), "link"), filepath.Join(filepath.Dir(a), "hard")
	if err := errors.Join(os.Symlink(a, link), os.Link(a, hard)); err != nil {
		t.Fatal(err)
	}
	expectOverlap(t, "itself", a, a, true)
	expectOverlap(t, "a symbolic link", a, link, true)
	expectOverlap(t, "a hard link", a, hard, true)
	expectOverlap(t, "another file", a, b, false)
	if _, err := blockdev.Identities(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	if _, err := blockdev.Identities(t.TempDir()); !errors.Is(err, blockdev.ErrDirectory) {
		t.Errorf("of a folder: %v", err)
	}
}

func TestIdentitiesOfLoops(t *testing.T) {
	needLoop(t)
	image, other := newImage(t, 4<<20), newImage(t, 4<<20)
	a, b, c := attach(t, image), attach(t, image), attach(t, other)
	expectOverlap(t, "a loop and its file", a, image, true)
	expectOverlap(t, "two loops over one file", a, b, true)
	expectOverlap(t, "loops over two files", a, c, false)
	expectOverlap(t, "a loop and another file", a, other, false)

	low := attach(t, image, "--sizelimit", "1048576")
	high := attach(t, image, "--offset", "1048576", "--sizelimit", "1048576")
	high2 := attach(t, image, "--offset", "1048576", "--sizelimit", "1048576")
	expectOverlap(t, "a part and its file", high, image, true)
	expectOverlap(t, "a part and a loop over all", low, b, true)
	expectOverlap(t, "two parts", low, high, false)
	expectOverlap(t, "one part twice", high, high2, true)

	onLoop := attach(t, a)
	expectOverlap(t, "a loop over a loop and the file", onLoop, image, true)
	expectOverlap(t, "a loop over a loop and the other loop", onLoop, b, true)
	expectOverlap(t, "a loop over a loop and a stranger", onLoop, c, false)
}

// The backing file's name is gone; the bytes are not.
func TestIdentitiesOfDeletedBackingFile(t *testing.T) {
	needLoop(t)
	image := newImage(t, 1<<20)
	hard := image + ".hard"
	if err := os.Link(image, hard); err != nil {
		t.Fatal(err)
	}
	dev := attach(t, image)
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	expectOverlap(t, "through the other name", dev, hard, true)
}

func TestIdentitiesOfPartitions(t *testing.T) {
	p1, p2, disk := partitioned(t)
	expectOverlap(t, "a partition and its disk", p1, disk, true)
	expectOverlap(t, "two partitions", p1, p2, false)
	expectOverlap(t, "a partition and itself", p1, p1, true)
	image := run(t, "losetup", "--noheadings", "--output", "BACK-FILE", disk)
	expectOverlap(t, "a partition and the image", p2, image, true)
	again := attach(t, image, "--partscan")
	addPartitions(t, again)
	expectOverlap(t, "the same partition over another loop", p2, again+"p2", true)
	expectOverlap(t, "another partition over another loop", p1, again+"p2", false)
	at := mount(t, p1)
	for _, path := range []string{p1, disk, image} {
		if _, err := blockdev.Open(path, write); !errors.Is(err, blockdev.ErrMounted) {
			t.Errorf("open %s with %s mounted at %s: %v, want ErrMounted", path, p1, at, err)
		}
	}
	if f, err := blockdev.Open(p2, write); err != nil {
		t.Errorf("the other partition: %v", err)
	} else {
		f.Close()
	}
}

// partitioned makes a disk with two partitions of 4 MiB.
func partitioned(t *testing.T) (p1, p2, disk string) {
	t.Helper()
	needLoop(t)
	disk = attach(t, newImage(t, 10<<20), "--partscan")
	addPartitions(t, disk)
	return disk + "p1", disk + "p2", disk
}

// addPartitions tells the kernel of two partitions, as a partition table would. Not every kernel can read
// a table.
func addPartitions(t *testing.T, disk string) {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 2 {
		part := unix.BlkpgPartition{Start: 1<<20 + int64(i)*4<<20, Length: 4 << 20, Pno: int32(i + 1)}
		arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_ADD_PARTITION, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
			t.Skip("no partitions of loop devices here: ", errno)
		}
		if _, err := os.Stat(fmt.Sprintf("%sp%d", disk, i+1)); err != nil {
			t.Skip("nobody makes nodes for partitions here: ", err)
		}
	}
}
