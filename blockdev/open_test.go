package blockdev_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
)

var write = blockdev.Options{Write: true}

func TestOpenRefusesWhatIsNoDisk(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(fifo, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		dir: blockdev.ErrDirectory, fifo: blockdev.ErrNotDisk, link: blockdev.ErrNotDisk,
		"/dev/null": blockdev.ErrNotDisk, filepath.Join(dir, "absent"): fs.ErrNotExist,
	} {
		for _, o := range []blockdev.Options{{}, write} {
			_, err := blockdev.Open(path, o)
			var e *blockdev.Error
			if !errors.Is(err, want) || !errors.As(err, &e) || e.Path != path || e.Op != "open" {
				t.Errorf("open %s, write %v: %v; want an *Error with %v", path, o.Write, err, want)
			}
		}
	}
}

func TestOpenLocksImages(t *testing.T) {
	path := newImage(t, 4096)
	w := open(t, path, write)
	for _, o := range []blockdev.Options{{}, write} {
		if _, err := blockdev.Open(path, o); !errors.Is(err, blockdev.ErrBusy) {
			t.Errorf("a second open beside a writer, write %v: %v, want ErrBusy", o.Write, err)
		}
	}
	w.Close()
	open(t, path, blockdev.Options{})
	open(t, path, blockdev.Options{}) // readers share
	if _, err := blockdev.Open(path, write); !errors.Is(err, blockdev.ErrBusy) {
		t.Errorf("a writer beside readers: %v, want ErrBusy", err)
	}
}

func TestReadOnlyOpenDoesNotWrite(t *testing.T) {
	f := open(t, newImage(t, 8192), blockdev.Options{})
	_, err := f.WriteAt(make([]byte, 512), 0)
	for op, err := range map[string]error{"write": err, "zero": f.Zero(0, 4096, true), "discard": f.Discard(0, 4096)} {
		if !errors.Is(err, blockdev.ErrReadOnly) {
			t.Errorf("%s: %v, want ErrReadOnly", op, err)
		}
	}
	if err := f.Flush(); err != nil {
		t.Errorf("flush with nothing to do: %v", err)
	}
}

func TestClosedDevice(t *testing.T) {
	f := open(t, newImage(t, 8192), write)
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	_, rerr := f.ReadAt(make([]byte, 512), 0)
	_, werr := f.WriteAt(make([]byte, 512), 0)
	_, ferr := f.Facts()
	_, merr := f.NextData(0)
	for op, err := range map[string]error{
		"read": rerr, "write": werr, "flush": f.Flush(), "zero": f.Zero(0, 1, true), "discard": f.Discard(0, 1), "facts": ferr, "map": merr,
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", op, err)
		}
	}
}

// A file that somebody cuts gives errors, and is not made longer again.
func TestCutFile(t *testing.T) {
	path := newImage(t, 1<<20)
	f := open(t, path, write)
	if _, err := f.WriteAt(fill(1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 300_100); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	if n, err := f.ReadAt(p, 0); !errors.Is(err, blockdev.ErrShortIO) || n > 300_100 {
		t.Errorf("read over the cut: %d, %v; want ErrShortIO", n, err)
	}
	if n, err := f.ReadAt(p[:4096], 512<<10); n != 0 || !errors.Is(err, blockdev.ErrShortIO) {
		t.Errorf("read behind the cut: %d, %v; want ErrShortIO", n, err)
	}
	if n, err := f.ReadAt(p[:100], 512<<10+1); n != 0 || !errors.Is(err, blockdev.ErrShortIO) {
		t.Errorf("unaligned read behind the cut: %d, %v; want ErrShortIO", n, err)
	}
	_, werr := f.WriteAt(p, 0)
	_, uerr := f.WriteAt(p[:100], 512<<10+1)
	_, merr := f.NextData(512 << 10)
	for op, err := range map[string]error{"write": werr, "unaligned write": uerr, "zero": f.Zero(0, 1<<20, false), "map": merr} {
		if !errors.Is(err, blockdev.ErrShortIO) {
			t.Errorf("%s: %v, want ErrShortIO", op, err)
		}
	}
	checkSize(t, path, 300_100)
}

func TestCreateAndExtend(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	if err := blockdev.Create(path, 1000001); err != nil {
		t.Fatal(err)
	}
	checkSize(t, path, 1000001)
	if err := blockdev.Create(path, 5); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create over a file: %v", err)
	}
	if err := blockdev.Extend(path, 2000000); err == nil {
		t.Error("a file with something in it was extended")
	}
	checkSize(t, path, 1000001)

	bad := filepath.Join(dir, "bad")
	if err := blockdev.Create(bad, -1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("negative size: %v", err)
	}
	if _, err := os.Stat(bad); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a failed Create left a file")
	}
	if err := blockdev.Create(filepath.Join(dir, "no", "image"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("create without a folder: %v", err)
	}

	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f := open(t, empty, blockdev.Options{}); f.Info().Size != 0 {
		t.Errorf("size %d", f.Info().Size)
	} else if err := blockdev.Extend(empty, 4097); !errors.Is(err, blockdev.ErrBusy) {
		t.Errorf("extend while somebody holds it: %v", err)
	} else {
		f.Close()
	}
	if err := blockdev.Extend(empty, 4097); err != nil {
		t.Fatal(err)
	}
	checkSize(t, empty, 4097)
}

func TestOpenRefusesMounted(t *testing.T) {
	needLoop(t)
	image := newImage(t, 8<<20)
	dev := attach(t, image)
	at := mount(t, dev)
	if _, err := blockdev.Open(dev, write); !errors.Is(err, blockdev.ErrMounted) || !strings.Contains(err.Error(), at) {
		t.Errorf("open of a mounted device: %v; want ErrMounted naming %s", err, at)
	}
	if _, err := blockdev.Open(image, write); !errors.Is(err, blockdev.ErrMounted) || !strings.Contains(err.Error(), dev) {
		t.Errorf("open of a mounted loop's backing file: %v; want ErrMounted naming %s", err, dev)
	}
	for _, path := range []string{dev, image} {
		f, err := blockdev.Open(path, blockdev.Options{})
		if err != nil {
			t.Errorf("open %s for reading: %v", path, err)
			continue
		}
		f.Close()
	}
}

func TestOpenBlockDeviceIsExclusive(t *testing.T) {
	needLoop(t)
	image := newImage(t, 1<<20)
	dev := attach(t, image)
	var warnings []string
	o := blockdev.Options{Write: true, Warn: func(f string, a ...any) { warnings = append(warnings, fmt.Sprintf(f, a...)) }}
	img := open(t, image, o)
	if len(warnings) != 1 || !strings.Contains(warnings[0], dev) {
		t.Errorf("an image attached to a loop device: warnings %q; want one naming %s", warnings, dev)
	}
	img.Close()
	f := open(t, dev, write)
	if _, err := blockdev.Open(dev, write); !errors.Is(err, blockdev.ErrBusy) {
		t.Errorf("a second writer: %v, want ErrBusy", err)
	}
	if _, err := blockdev.Open(image, write); !errors.Is(err, blockdev.ErrBusy) || !strings.Contains(err.Error(), dev) {
		t.Errorf("the backing file of a loop in use: %v; want ErrBusy naming %s", err, dev)
	}
	f.Close()
	if f, err := blockdev.Open(dev, write); err != nil {
		t.Errorf("after it was closed: %v", err)
	} else {
		f.Close()
	}
}

func TestSetReadOnly(t *testing.T) {
	needLoop(t)
	dev := attach(t, newImage(t, 1<<20))
	f := open(t, dev, write)
	if err := f.SetReadOnly(true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err == nil {
		t.Error("a write to a read-only device: no error")
	}
	f.Close()
	if _, err := blockdev.Open(dev, write); !errors.Is(err, blockdev.ErrReadOnly) {
		t.Errorf("open for writing: %v, want ErrReadOnly", err)
	}
	if err := blockdev.SetReadOnly(dev, false); err != nil {
		t.Fatal(err)
	}
	open(t, dev, write)
	if err := blockdev.SetReadOnly(newImage(t, 4096), true); err != nil {
		t.Errorf("of an image: %v", err)
	}
}

// A loop device whose backing file is cut gives errors where nothing is behind it any more.
func TestShrunkenBlockDevice(t *testing.T) {
	needLoop(t)
	image := newImage(t, 1<<20)
	dev := attach(t, image)
	f := open(t, dev, write)
	if err := os.Truncate(image, 64<<10); err != nil {
		t.Fatal(err)
	}
	run(t, "losetup", "--set-capacity", dev)
	if _, err := f.ReadAt(make([]byte, 8192), 512<<10); !errors.Is(err, blockdev.ErrShortIO) {
		t.Errorf("read behind the new end: %v, want ErrShortIO", err)
	}
	if _, err := f.WriteAt(make([]byte, 8192), 512<<10); err == nil {
		t.Error("write behind the new end: no error")
	}
	if _, err := f.WriteAt(make([]byte, 100), 512<<10+7); err == nil {
		t.Error("unaligned write behind the new end: no error")
	}
	if err := f.Zero(512<<10, 8192, false); err == nil {
		t.Error("zero behind the new end: no error")
	}
}

// mount makes a file system on dev and mounts it until the test ends.
func mount(t *testing.T, dev string) string {
	t.Helper()
	run(t, "mkfs.ext4", "-q", "-F", dev)
	at := filepath.Join(t.TempDir(), "mount point") // the kernel escapes the blank
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(dev, at, "ext4", 0, ""); err != nil {
		t.Skip("mounting is not allowed here: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return at
}

// fill makes n bytes, none of them zero.
func fill(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i%251) + 1
	}
	return p
}
