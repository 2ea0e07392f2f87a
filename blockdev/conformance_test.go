package blockdev_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

func TestConformanceFile(t *testing.T) {
	devtest.Conformance(t, func(t *testing.T, size int64) blockdev.Device {
		f := openNew(t, size)
		if !f.Info().Direct {
			t.Log("without O_DIRECT: the temporary folder's file system refuses it")
		}
		return f
	})
}

func TestConformanceFileBuffered(t *testing.T) {
	devtest.Conformance(t, func(t *testing.T, size int64) blockdev.Device {
		path := newImage(t, size)
		warned := 0
		f, err := blockdev.OpenBuffered(path, blockdev.Options{Write: true, Warn: func(string, ...any) { warned++ }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close(); checkSize(t, path, size) })
		if f.Info().Direct || warned != 1 {
			t.Fatalf("Direct is %v after %d warnings; want one warning", f.Info().Direct, warned)
		}
		return f
	})
}

func TestConformanceTmpfs(t *testing.T) {
	const shm = "/dev/shm"
	if !isTmpfs(shm) {
		t.Skip("no tmpfs at " + shm)
	}
	devtest.Conformance(t, func(t *testing.T, size int64) blockdev.Device {
		dir, err := os.MkdirTemp(shm, "blockdev")
		if err != nil {
			t.Skip("no tmpfs to write to: ", err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		path := filepath.Join(dir, "image")
		if err := blockdev.Create(path, size); err != nil {
			t.Fatal(err)
		}
		return open(t, path, blockdev.Options{Write: true})
	})
}

func TestConformanceLoop512(t *testing.T)  { conformanceLoop(t, 512) }
func TestConformanceLoop4096(t *testing.T) { conformanceLoop(t, 4096) }

func conformanceLoop(t *testing.T, sector int) {
	needLoop(t)
	devtest.Conformance(t, func(t *testing.T, size int64) blockdev.Device {
		s := int64(sector)
		path := attach(t, newImage(t, (size+s-1)/s*s), "-b", map[int]string{512: "512", 4096: "4096"}[sector])
		f := open(t, path, blockdev.Options{Write: true})
		if i := f.Info(); !i.Block || !i.Direct || i.LogicalSector != sector || i.Size < size {
			t.Fatalf("%+v", i)
		}
		return f
	})
}

func TestConformanceMem(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		devtest.Conformance(t, func(t *testing.T, size int64) blockdev.Device { return devtest.NewMem(size, sector, 1) })
	}
}

func TestConformanceFaultsWithoutFaults(t *testing.T) {
	devtest.Conformance(t, func(t *testing.T, size int64) blockdev.Device {
		return devtest.NewFaults(devtest.NewMem(size, 512, 1))
	})
}

// newImage makes a sparse image in a folder that goes with the test.
func newImage(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := blockdev.Create(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// open opens a device and closes it with the test.
func open(t testing.TB, path string, o blockdev.Options) *blockdev.File {
	t.Helper()
	f, err := blockdev.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// openNew opens a new image for writing, and checks in the end that its size is what it was.
func openNew(t testing.TB, size int64) *blockdev.File {
	t.Helper()
	path := newImage(t, size)
	t.Cleanup(func() { checkSize(t, path, size) })
	return open(t, path, blockdev.Options{Write: true})
}

func checkSize(t testing.TB, path string, want int64) {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil || fi.Size() != want {
		t.Errorf("the image's size is %v, %v; want %d", fi, err, want)
	}
}

func needLoop(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	if _, err := exec.LookPath("losetup"); err != nil {
		t.Skip("no losetup")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices here: ", err)
	}
}

// attach makes a loop device of an image, and detaches it with the test.
func attach(t testing.TB, image string, args ...string) string {
	t.Helper()
	out := run(t, "losetup", append(append([]string{"--find", "--show"}, args...), image)...)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", out).CombinedOutput(); err != nil {
			t.Errorf("detach: %v: %s", err, out)
		}
	})
	return out
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func isTmpfs(path string) bool {
	const tmpfsMagic = 0x01021994
	var st syscall.Statfs_t
	return syscall.Statfs(path, &st) == nil && st.Type == tmpfsMagic
}
