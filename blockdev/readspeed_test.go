package blockdev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReadSample(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, make([]byte, 5<<20+100), 0o600); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]int64{3 << 20: 3 << 20, 1 << 30: 5 << 20} {
		r, err := ReadSample(t.Context(), image, limit, time.Hour)
		if err != nil || r.Bytes != want || r.Took <= 0 {
			t.Errorf("%+v, %v, want %d bytes", r, err, want)
		}
	}
	pipe, small := filepath.Join(dir, "pipe"), filepath.Join(dir, "small")
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.WriteFile(small, []byte("small"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{dir: ErrNotDisk, pipe: ErrNotDisk, "/dev/zero": ErrNotDisk, dir + "/none": fs.ErrNotExist, small: nil} {
		if r, err := ReadSample(t.Context(), path, 1<<20, time.Hour); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %+v, %v", path, r, err)
		}
	}
}
