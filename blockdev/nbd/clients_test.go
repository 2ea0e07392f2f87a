package nbd

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
)

// The clients that people use, against an image on disk.

const imageSize = 10<<20 + 512 // no multiple of anything but the sector

// image serves an image with some random data in it, and returns its path and the server's URI.
func image(t *testing.T) (s *server, path, uri string) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "nbd") // not on tmpfs, which holds no direct I/O
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "image")
	if err := blockdev.Create(path, imageSize); err != nil {
		t.Fatal(err)
	}
	f, err := blockdev.Open(path, blockdev.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for _, off := range []int64{0, 5 << 20, 8<<20 + 4096, imageSize - 1000} {
		if _, err := f.WriteAt(noise(uint64(off), int(min(1<<20, imageSize-off))), off); err != nil {
			t.Fatal(err)
		}
	}
	s = serve(t, Options{}, Export{Name: "vol", Description: "a volume", Backend: &disk{Device: f}})
	return s, path, "nbd+unix:///vol?socket=" + s.path
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}

// tool runs a program that must be there and succeed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH")) // the system's Python has nbdsh's module
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func mustContain(t *testing.T, out string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(out, p) {
			t.Errorf("%q is not in\n%s", p, out)
		}
	}
}

func TestNbdinfo(t *testing.T) {
	_, _, uri := image(t)
	mustContain(t, tool(t, "nbdinfo", uri), "structured packets", fmt.Sprintf("export-size: %d", imageSize), "a volume", "base:allocation",
		"can_fua: true", "can_flush: true", "can_trim: true", "can_zero: true", "can_fast_zero: true", "can_multi_conn: true", "can_df: true",
		"is_read_only: false", "block_size_minimum: 1", "block_size_preferred: 4096", "block_size_maximum: 33554432")
	mustContain(t, tool(t, "nbdinfo", "--list", strings.Replace(uri, "vol", "", 1)), `export="vol"`)
	mustContain(t, tool(t, "nbdinfo", "--map", uri), "hole,zero", "data")
}

// A copy out and a copy back in, with several connections, are the same bytes.
func TestNbdcopy(t *testing.T) {
	_, path, uri := image(t)
	out := filepath.Join(filepath.Dir(path), "copy")
	tool(t, "nbdcopy", "--connections=4", uri, out)
	sameFiles(t, path, out)
	fresh := noise(7, imageSize)
	clear(fresh[4<<20 : 6<<20])
	if err := os.WriteFile(out, fresh, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "nbdcopy", "--connections=4", "--flush", "--destination-is-zero", out, uri)
	tool(t, "nbdcopy", "--connections=4", "--flush", "--requests=16", "--request-size=1048576", out, uri)
	sameFiles(t, path, out)
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	have, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Errorf("%s and %s differ", a, b)
	}
}

func TestNbdsh(t *testing.T) {
	if err := exec.Command("/usr/bin/python3", "-c", "import nbd").Run(); err != nil {
		t.Skip("python3-libnbd is not installed")
	}
	_, _, uri := image(t)
	tool(t, "nbdsh", "--base-allocation", "-u", uri, "-c", `
size = h.get_size()
assert h.get_structured_replies_negotiated()
h.pwrite(b'x' * 1001, 333, nbd.CMD_FLAG_FUA)
assert h.pread(1003, 332)[1:1002] == b'x' * 1001
h.zero(500, 400)
assert h.pread(502, 399) == b'x' + bytes(500) + b'x'
h.zero(4096 * 10, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(4096 * 10, 8192, nbd.CMD_FLAG_FAST_ZERO)
h.trim(1 << 20, 1 << 20)
h.flush()
def fails(errno, f, *a):
    try:
        f(*a)
    except nbd.Error as e:
        assert e.errno == errno, e
    else:
        raise AssertionError("no error")
h.set_strict_mode(0)
fails("EINVAL", h.pread, 10, size - 5)
fails("ENOSPC", h.pwrite, b'abc', size - 1)
fails("ENOSPC", h.zero, 10, size - 5)
fails("EINVAL", h.trim, 10, size - 5)
fails("EINVAL", h.cache, 10, 0)
fails("EINVAL", h.pwrite, bytes((32 << 20) + 1), 0)
got = []
h.block_status(size, 0, lambda ctx, off, ext, err: got.extend(ext))
assert sum(got[::2]) == size, got
one = []
h.block_status(size, 0, lambda ctx, off, ext, err: one.extend(ext), nbd.CMD_FLAG_REQ_ONE)
assert len(one) == 2, one
cookies = [h.aio_pread(nbd.Buffer(1 << 20), i << 20) for i in range(10)]
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
h.shutdown()
`)
	tool(t, "nbdsh", "-c", fmt.Sprintf(`
h.set_request_structured_replies(False)
h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
h.set_opt_mode(True)
h.connect_uri(%q)
names = []
h.opt_list(lambda name, text: names.append((name, text)))
assert names == [("vol", "a volume")], names
h.opt_info()
h.opt_go()
assert h.pread(4, 333) is not None
h.shutdown()
`, uri))
}

func TestQemuImg(t *testing.T) {
	_, path, uri := image(t)
	mustContain(t, tool(t, "qemu-img", "info", uri), fmt.Sprint(imageSize))
	mustContain(t, tool(t, "qemu-img", "map", "--output=json", uri), `"zero": true`, `"zero": false`)
	raw, qcow := filepath.Join(filepath.Dir(path), "raw"), filepath.Join(filepath.Dir(path), "qcow2")
	tool(t, "qemu-img", "convert", "-O", "raw", uri, raw)
	sameFiles(t, path, raw)
	tool(t, "qemu-img", "compare", uri, raw)
	tool(t, "qemu-img", "convert", "-O", "qcow2", uri, qcow)
	tool(t, "qemu-img", "check", qcow)
	if err := os.WriteFile(raw, noise(9, imageSize), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", raw, uri)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, uri)
	tool(t, "qemu-img", "convert", "-n", "-O", "raw", qcow, uri) // with zeroes where the data was
	tool(t, "qemu-img", "compare", qcow, uri)
}

func TestQemuIO(t *testing.T) {
	_, path, uri := image(t)
	run := func(commands ...string) string {
		args := []string{"-f", "raw", "-t", "none"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		out := tool(t, "qemu-io", append(args, uri)...)
		for _, bad := range []string{"failed", "rror"} {
			if strings.Contains(out, bad) {
				t.Errorf("qemu-io: %s", out)
			}
		}
		return out
	}
	run("write -P 0xaa 0 1M", "read -P 0xaa 0 1M",
		"write -P 0xbb -f 1234 5678", "read -P 0xaa 0 1234", "read -P 0xbb 1234 5678", "read -P 0xaa 6912 1000",
		"write -z 2000 3000", "read -P 0 2000 3000", "read -P 0xbb 5000 1912",
		"write -z -u 64k 64k", "read -P 0 64k 64k", "write -z -u -f 100000 200001", "read -P 0 100000 200001",
		"write -z -n 512k 64k", "read -P 0 512k 64k",
		"discard 2M 1M", "discard 3000001 12345", "flush",
		fmt.Sprintf("write -P 0xcc %d 512", imageSize-512), fmt.Sprintf("read -P 0xcc %d 512", imageSize-512),
		"aio_write -P 1 8M 512k", "aio_write -P 2 9M 1M", "aio_read 0 8M", "aio_flush", "read -P 2 9M 1M")
	if b, err := os.ReadFile(path); err != nil || b[8<<20] != 1 || b[imageSize-1] != 0xcc {
		t.Errorf("the image does not hold what was written: %v", err)
	}
}

func TestFio(t *testing.T) {
	_, _, uri := image(t)
	dir := socketDir(t)
	for _, job := range [][]string{
		{"--rw=randrw", "--bs=4k", "--iodepth=32", "--verify=crc32c"},
		{"--rw=write", "--bs=1M", "--iodepth=8", "--verify=crc32c"},
		{"--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned", "--iodepth=4", "--fsync=8"},
	} {
		tool(t, "fio", append(job, "--name=test", "--ioengine=nbd", "--uri="+uri, "--size=8M", "--io_size=4M", "--aux-path="+dir, "--verify_state_save=0")...)
	}
}
