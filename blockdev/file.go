package blockdev

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is a Device that is an image file or a Linux block device.
//
// What it assumes of the system: fdatasync makes durable what was written before it, on any descriptor of
// the inode, and reports a failed write-back once per descriptor; the device writes a logical sector
// wholly or not at all; a direct read that begins after a direct write has returned sees it.
type File struct {
	info           Info
	dev, ino, rdev uint64

	fd       int    // O_DIRECT, where Info.Direct
	buffered int    // page cache; -1 where nothing goes there, fd where everything does
	tail     int64  // offset from which everything goes through buffered; see openTail
	memAlign uint32 // what direct I/O asks of the buffer's address
	unit     int64  // what fallocate and the zeroing and discarding ioctls are given multiples of

	claims claims // sectors being written
	bounce *Pool  // for requests that are not aligned
	closed atomic.Bool

	sync         func(fd int) error // fdatasync; tests put a failing one here
	flushes      atomic.Uint64      // started so far
	flushWaiting atomic.Int64       // callers at the lock below; for tests
	flush        struct {
		sync.Mutex       // held while a flush runs
		failed     error // the first failure; set once
	}
}

var _ Device = (*File)(nil)

// Info implements Device.
func (f *File) Info() Info { return f.info }

// ReadAt implements Device.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.check(off, int64(len(p)), false); err != nil {
		return 0, f.failure("read", off, int64(len(p)), err)
	}
	n, err := f.split(p, off, f.readDirect, preadFull)
	return n, f.failure("read", off, int64(len(p)), err)
}

// WriteAt implements Device.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.check(off, int64(len(p)), true); err != nil {
		return 0, f.failure("write", off, int64(len(p)), err)
	}
	n, err := f.writeAt(p, off)
	return n, f.failure("write", off, int64(len(p)), err)
}

// writeAt is WriteAt for ranges that were checked.
func (f *File) writeAt(p []byte, off int64) (int, error) {
	return f.split(p, off, f.writeDirect, pwriteFull)
}

// split gives the part of a request below the tail to direct and the rest to the page cache.
func (f *File) split(p []byte, off int64, direct func([]byte, int64) (int, error), cached func(int, []byte, int64, int) (int, error)) (int, error) {
	head := int(min(int64(len(p)), max(0, f.tail-off)))
	n := 0
	if head > 0 {
		var err error
		if n, err = direct(p[:head], off); err != nil {
			return n, err
		}
	}
	if head == len(p) {
		return n, nil
	}
	m, err := cached(f.buffered, p[head:], off+int64(head), 1)
	return n + m, err
}

// Flush implements Device.
//
// Flushes of one File run one after the other. It must be so: the kernel reports a failed write-back to
// one fdatasync of a descriptor only, and another one running beside it would be told that all is well.
// Who waited for a flush that began after its own call is served by that one.
func (f *File) Flush() error {
	before := f.flushes.Load()
	f.flushWaiting.Add(1)
	f.flush.Lock()
	f.flushWaiting.Add(-1)
	defer f.flush.Unlock()
	if f.flush.failed != nil || f.flushes.Load() != before {
		return f.flush.failed
	}
	f.flushes.Add(1)
	err := f.check(0, 0, false)
	if err == nil {
		err = ignoringEINTR(func() error { return f.sync(f.fd) })
	}
	f.flush.failed = f.failure("flush", 0, 0, err)
	return f.flush.failed
}

// SetReadOnly sets or clears the kernel's read-only flag of a block device. It is a hint to others and no
// fence: a mounted file system goes on writing. For an image file it does nothing.
func (f *File) SetReadOnly(ro bool) error {
	if !f.info.Block {
		return nil
	}
	if err := f.check(0, 0, false); err != nil {
		return f.failure("set read-only", 0, 0, err)
	}
	return f.failure("set read-only", 0, 0, setReadOnly(f.fd, ro))
}

// SetReadOnly is File.SetReadOnly for a device that is not open: a read-only device cannot be opened for
// writing before the flag is cleared.
func SetReadOnly(path string, ro bool) error {
	f, err := Open(path, Options{})
	if err != nil {
		return err
	}
	defer f.Close()
	return f.SetReadOnly(ro)
}

func setReadOnly(fd int, ro bool) error {
	v := 0
	if ro {
		v = 1
	}
	return unix.IoctlSetPointerInt(fd, unix.BLKROSET, v)
}

// Close implements Device. A second call does nothing.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	var err error
	if f.buffered >= 0 && f.buffered != f.fd {
		err = unix.Close(f.buffered)
	}
	if f.fd >= 0 {
		err = errors.Join(err, unix.Close(f.fd))
	}
	return f.failure("close", 0, 0, err)
}

// check refuses what must not reach the kernel: a request on a closed descriptor, whose number may be
// another file's by now, or outside the device, where a file would grow.
func (f *File) check(off, n int64, write bool) error {
	if f.closed.Load() {
		return os.ErrClosed
	}
	if off < 0 || n < 0 || off > f.info.Size-n {
		return fmt.Errorf("%w of %d bytes", ErrOutOfRange, f.info.Size)
	}
	if !write {
		return nil
	}
	if !f.info.Writable {
		return ErrReadOnly
	}
	return f.checkNotShrunk()
}

// checkNotShrunk refuses to write to a file that somebody has cut: the write would grow it again, with a
// hole where data was. It costs a fraction of a microsecond, and cannot see a cut that comes after it.
func (f *File) checkNotShrunk() error {
	if f.info.Block {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	if st.Size < f.info.Size {
		return fmt.Errorf("%w: the file was cut from %d to %d bytes", ErrShortIO, f.info.Size, st.Size)
	}
	return nil
}

// failure wraps a cause; nil stays nil.
func (f *File) failure(op string, off, n int64, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Path: f.info.Path, Offset: off, Length: n, Err: err}
}
