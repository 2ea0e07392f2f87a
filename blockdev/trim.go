package blockdev

import (
	"errors"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Zeroing, discarding, and finding holes.

// zeroStep bounds what one call asks the kernel to zero: without an offload it writes that much before
// the process can be stopped.
const zeroStep = 256 << 20

// zeroes is what is written where nothing better zeroes. Nobody writes to it.
var zeroes = sync.OnceValue(func() []byte { return alignedBytes(bounceSize) })

// Zero implements Device.
//
// Only whole units are given to fallocate or the ioctl. The edges are written: for a partial block the
// file system would zero through the page cache, beside our direct writes to the rest of that block.
func (f *File) Zero(off, n int64, mayFree bool) error {
	return f.failure("zero", off, n, f.zero(off, n, mayFree))
}

func (f *File) zero(off, n int64, mayFree bool) error {
	if err := f.check(off, n, true); err != nil {
		return err
	}
	end := off + n
	lo, hi := f.inner(off, end)
	if err := f.writeZeroes(off, lo); err != nil {
		return err
	}
	for lo < hi {
		to := min(hi, lo+zeroStep)
		err := f.zeroUnits(lo, to, mayFree)
		if unsupported(err) {
			err = f.writeZeroes(lo, to)
		}
		if err != nil {
			return err
		}
		lo = to
	}
	return f.writeZeroes(hi, end)
}

// inner is the range of whole units in [off, end). Without one it is empty and stands at end. It never
// reaches into the tail's partial unit.
func (f *File) inner(off, end int64) (lo, hi int64) {
	lo, hi = ceil(off, f.unit), floor(end, f.unit)
	if lo >= hi {
		return end, end
	}
	return lo, hi
}

// zeroUnits has the kernel zero whole units. The claim is a write's: it keeps read-modify-writes away.
func (f *File) zeroUnits(lo, hi int64, mayFree bool) error {
	c := f.claims.take(lo, hi, false)
	defer f.claims.release(c)
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if mayFree {
		mode = unix.FALLOC_FL_PUNCH_HOLE // on a block device: zeroes by unmapping, or not supported
	}
	if !f.info.Block {
		return f.fallocate(mode, lo, hi)
	}
	if mayFree {
		if err := f.fallocate(mode, lo, hi); !unsupported(err) {
			return err
		}
	}
	return f.ioctlRange(unix.BLKZEROOUT, lo, hi)
}

// writeZeroes zeroes [lo, hi) the slow way.
func (f *File) writeZeroes(lo, hi int64) error {
	for lo < hi {
		n, err := f.writeAt(zeroes()[:min(hi-lo, bounceSize)], lo)
		if err != nil {
			return err
		}
		lo += int64(n)
	}
	return nil
}

// Discard implements Device. What is no whole unit is left alone.
func (f *File) Discard(off, n int64) error {
	err := f.check(off, n, true)
	if err == nil {
		err = f.discard(f.inner(off, off+n))
	}
	if unsupported(err) {
		return nil
	}
	return f.failure("discard", off, n, err)
}

func (f *File) discard(lo, hi int64) error {
	if lo == hi {
		return nil
	}
	c := f.claims.take(lo, hi, false)
	defer f.claims.release(c)
	if f.info.Block {
		return f.ioctlRange(unix.BLKDISCARD, lo, hi)
	}
	return f.fallocate(unix.FALLOC_FL_PUNCH_HOLE, lo, hi)
}

func (f *File) fallocate(mode uint32, lo, hi int64) error {
	return ignoringEINTR(func() error {
		return unix.Fallocate(f.fd, mode|unix.FALLOC_FL_KEEP_SIZE, lo, hi-lo)
	})
}

func (f *File) ioctlRange(request uint, lo, hi int64) error {
	arg := [2]uint64{uint64(lo), uint64(hi - lo)}
	return ignoringEINTR(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), uintptr(request), uintptr(unsafe.Pointer(&arg)))
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// unsupported tells "cannot do this" from "could not do this".
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) ||
		errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENODEV)
}

// NextData implements Device. A block device cannot tell.
//
// SEEK_DATA and SEEK_HOLE move the descriptor's position, which all share, but they neither read it nor
// does anything else here: calls beside each other do not disturb each other.
func (f *File) NextData(off int64) (Extent, error) {
	x, err := f.nextData(off)
	return x, f.failure("map", off, f.info.Size-off, err)
}

func (f *File) nextData(off int64) (Extent, error) {
	if err := f.check(off, 0, false); err != nil {
		return Extent{}, err
	}
	size := f.info.Size
	rest := Extent{Offset: off, Length: size - off}
	none := Extent{Offset: size}
	if f.info.Block || off == size {
		return rest, nil
	}
	data, err := f.seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data from here on; also where the file was cut below off
		return none, f.checkNotShrunk()
	case errors.Is(err, unix.EINVAL): // this file system does not know
		return rest, nil
	case err != nil:
		return Extent{}, err
	case data >= size: // the file was made longer behind our back
		return none, nil
	}
	hole, err := f.seek(data, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) { // punched or cut meanwhile; more than there is may be told
		hole, err = size, f.checkNotShrunk()
	}
	if err != nil {
		return Extent{}, err
	}
	hole = min(hole, size)
	if hole <= data { // punched between the two calls: still progress, and still true
		hole = min(data+f.unit, size)
	}
	return Extent{Offset: data, Length: hole - data}, nil
}

func (f *File) seek(off int64, whence int) (int64, error) {
	at := int64(0)
	err := ignoringEINTR(func() (err error) {
		at, err = unix.Seek(f.fd, off, whence)
		return err
	})
	return at, err
}
