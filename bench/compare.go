package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// compare reads both and finds the first byte that differs. It looks only where one of the two has data:
// an image of 1 TiB can be nearly all holes.
func compare(ctx context.Context, source, target string, size int64) error {
	var files [2]*os.File
	for i, path := range []string{source, target} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = f
	}
	buffers := [2][]byte{make([]byte, extent), make([]byte, extent)}
	for at := int64(0); ; {
		at = min(nextData(files[0], at, size), nextData(files[1], at, size)) &^ (extent - 1)
		if at >= size {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(extent, size-at)
		for i, f := range files {
			if _, err := f.ReadAt(buffers[i][:n], at); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
		if !bytes.Equal(buffers[0][:n], buffers[1][:n]) {
			return fmt.Errorf("%s differs from %s in the MiB at byte %d", target, source, at)
		}
		at += n
	}
}

// nextData returns where data begin at or behind an offset; size: nowhere. Devices know no holes.
func nextData(f *os.File, at, size int64) int64 {
	if at >= size {
		return size
	}
	next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size
	case err != nil:
		return at
	}
	return min(next, size)
}
