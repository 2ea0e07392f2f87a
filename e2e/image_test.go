package e2e

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	mib   = 1 << 20
	block = 64 << 10 // the product's default
)

// random returns a source of random bytes and numbers that belongs to this test and the run's seed.
func random(t testing.TB) *rand.ChaCha8 {
	var key [32]byte
	copy(key[:], t.Name())
	for i := range 8 {
		key[24+i] ^= byte(*seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}

// folder makes a short-named folder, since a socket's path must be short.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(work, "t")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// randomImage writes size bytes that do not compress.
func randomImage(t testing.TB, path string, size int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		_, err = io.CopyN(f, random(t), size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// put writes bytes at an offset of a file or device.
func put(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, off)
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// get reads n bytes at an offset.
func get(t testing.TB, path string, off int64, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

// walk reads two files of equal length, or the first n bytes of both, block by block.
func walk(t testing.TB, a, b string, n int64, visit func(off int64, x, y []byte)) {
	t.Helper()
	fa, err := os.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer fb.Close()
	x, y := make([]byte, mib), make([]byte, mib)
	for off := int64(0); off < n; off += mib {
		k := min(mib, n-off)
		for _, side := range []struct {
			f *os.File
			b []byte
		}{{fa, x}, {fb, y}} {
			if _, err := side.f.ReadAt(side.b[:k], off); err != nil {
				t.Fatalf("read %s at %d: %v", side.f.Name(), off, err)
			}
		}
		for lo := int64(0); lo < k; lo += block {
			hi := min(lo+block, k)
			visit(off+lo, x[lo:hi], y[lo:hi])
		}
	}
}

// length is the size of a file or a block device.
func length(t testing.TB, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// equal is cmp: same length, same bytes.
func equal(t testing.TB, a, b string) {
	t.Helper()
	n := length(t, a)
	if m := length(t, b); n != m {
		t.Fatalf("%s has %d bytes, %s has %d", a, n, b, m)
	}
	equalHead(t, a, b, n)
}

// equalHead compares the first n bytes.
func equalHead(t testing.TB, a, b string, n int64) {
	t.Helper()
	bad := 0
	walk(t, a, b, n, func(off int64, x, y []byte) {
		if bytes.Equal(x, y) {
			return
		}
		if bad++; bad < 4 {
			t.Errorf("%s and %s differ in the block at %d", a, b, off)
		}
	})
	if bad > 0 {
		t.Fatalf("%d blocks differ", bad)
	}
}

// changes tells how many bytes, in whole blocks, must be shipped to turn the content of old into that of
// now: those of blocks that differ and are not zero, and those that became zero.
func changes(t testing.TB, now, old string) (data, zero int64) {
	t.Helper()
	walk(t, now, old, length(t, now), func(_ int64, x, y []byte) {
		switch {
		case bytes.Equal(x, y):
		case isZero(x):
			zero += int64(len(x))
		default:
			data += int64(len(x))
		}
	})
	return data, zero
}

var zeroes [block]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeroes[:len(b)]) }

// sparseEqual compares files that are almost all holes: what is data in either.
func sparseEqual(t testing.TB, a, b string) {
	t.Helper()
	n := length(t, a)
	if m := length(t, b); n != m {
		t.Fatalf("%s has %d bytes, %s has %d", a, n, b, m)
	}
	for _, mapped := range []string{a, b} {
		f, err := os.Open(mapped)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for off := int64(0); off < n; {
			data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				break
			}
			hole, err2 := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			for ; data < hole; data += mib {
				k := int(min(mib, hole-data))
				if !bytes.Equal(get(t, a, data, k), get(t, b, data, k)) {
					t.Fatalf("%s and %s differ between %d and %d", a, b, data, data+int64(k))
				}
			}
			off = hole
		}
	}
}

// unchanged returns a check that the content and the size of a file are still the same.
func unchanged(t testing.TB, path string) func() {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s was changed (%v)", filepath.Base(path), err)
		}
	}
}

// absent expects that nothing is at path.
func absent(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s exists (%v)", path, err)
	}
}

// write makes a file.
func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}
