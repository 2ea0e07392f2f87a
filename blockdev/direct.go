package blockdev

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How a request of any alignment becomes one that O_DIRECT takes.

const (
	bounceSize  = 256 << 10 // one step of a request that is bounced
	bounceLimit = 8 << 20   // all such steps of one File at a time
)

// readDirect reads below the tail. It takes no claim: a read beside a write of the same sector may see it
// or not, and the device moves whole sectors.
func (f *File) readDirect(p []byte, off int64) (int, error) {
	sector := int64(f.info.LogicalSector)
	end := off + int64(len(p))
	if off%sector == 0 && end%sector == 0 && f.inPlace(p) {
		return preadFull(f.fd, p, off, int(sector))
	}
	buf, err := f.bounce.Get(context.Background(), f.bounceFor(off, end))
	if err != nil {
		return 0, err
	}
	defer f.bounce.Put(buf)
	for at := off; at < end; {
		lo := floor(at, sector)
		hi := min(ceil(end, sector), lo+int64(len(buf)))
		n, err := preadFull(f.fd, buf[:hi-lo], lo, int(sector))
		got := max(0, min(lo+int64(n), end)-at)
		copy(p[at-off:], buf[at-lo:at-lo+got])
		at += got
		if err != nil {
			return int(at - off), err
		}
	}
	return len(p), nil
}

// writeDirect writes below the tail. Its claim on the sectors is exclusive where some of them are only
// partly written, because these are read first, and what was read must not undo another write.
func (f *File) writeDirect(p []byte, off int64) (int, error) {
	sector := int64(f.info.LogicalSector)
	end := off + int64(len(p))
	lo, hi := floor(off, sector), ceil(end, sector)
	whole := lo == off && hi == end
	c := f.claims.take(lo, hi, !whole)
	defer f.claims.release(c)
	if whole && f.inPlace(p) {
		return pwriteFull(f.fd, p, off, int(sector))
	}
	// Always claim first, buffer second: who holds a buffer waits for nobody.
	buf, err := f.bounce.Get(context.Background(), f.bounceFor(off, end))
	if err != nil {
		return 0, err
	}
	defer f.bounce.Put(buf)
	for at := off; at < end; {
		n, err := f.writeStep(buf, p[at-off:], at)
		at += int64(n)
		if err != nil {
			return int(at - off), err
		}
	}
	return len(p), nil
}

// writeStep writes the beginning of p, as much as fits into buf, at any offset. The caller has claimed the
// sectors.
func (f *File) writeStep(buf, p []byte, off int64) (int, error) {
	sector := int64(f.info.LogicalSector)
	lo := floor(off, sector)
	hi := min(ceil(off+int64(len(p)), sector), lo+int64(len(buf)))
	end := min(off+int64(len(p)), hi)
	buf = buf[:hi-lo]
	if off > lo {
		if _, err := preadFull(f.fd, buf[:sector], lo, int(sector)); err != nil {
			return 0, fmt.Errorf("read the rest of the first sector: %w", err)
		}
	}
	if last := hi - sector; end < hi && (last > lo || off == lo) {
		if _, err := preadFull(f.fd, buf[last-lo:], last, int(sector)); err != nil {
			return 0, fmt.Errorf("read the rest of the last sector: %w", err)
		}
	}
	copy(buf[off-lo:], p[:end-off])
	n, err := pwriteFull(f.fd, buf, lo, int(sector))
	return int(max(0, min(lo+int64(n), end)-off)), err
}

// inPlace reports whether direct I/O takes the buffer's address as it is.
func (f *File) inPlace(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%uintptr(f.memAlign) == 0
}

// bounceFor is the length of the buffer that a request over [off, end) goes through.
func (f *File) bounceFor(off, end int64) int {
	sector := int64(f.info.LogicalSector)
	return int(min(ceil(end, sector)-floor(off, sector), max(bounceSize, sector)))
}

// preadFull reads all of p or says why not. The kernel may give less: it moves at most 2 GiB at a time,
// and a signal may cut a request. After a short read it goes on at a whole multiple of sector.
func preadFull(fd int, p []byte, off int64, sector int) (int, error) {
	return full(p, off, sector, func(p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) })
}

// pwriteFull writes all of p or says why not.
func pwriteFull(fd int, p []byte, off int64, sector int) (int, error) {
	return full(p, off, sector, func(p []byte, off int64) (int, error) { return unix.Pwrite(fd, p, off) })
}

func full(p []byte, off int64, sector int, move func([]byte, int64) (int, error)) (int, error) {
	done := 0
	for done < len(p) {
		n, err := move(p[done:], off+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		n -= (done + n) % sector // a part of a sector is done again
		if n <= 0 {
			return done, ErrShortIO
		}
		done += n
	}
	return done, nil
}
