package blockdev

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How a device is measured: its size, its sectors, and where O_DIRECT ends.

const (
	// unknownSector is assumed where the kernel does not say what direct I/O must be aligned to (before
	// 6.1, and on network and FUSE file systems). It suits every disk of 512 and of 4096 bytes.
	unknownSector = 4096

	// maxUnit bounds the unit below: some network file systems call a megabyte their block.
	maxUnit = 64 << 10
)

// measureBlock asks a block device for its size and sectors.
func (f *File) measureBlock(Options) error {
	size, err := ioctlUint64(f.fd, unix.BLKGETSIZE64)
	if err != nil {
		return fmt.Errorf("ask for its size: %w", err)
	}
	if size == 0 { // an empty drive, a loop device without a file
		return unix.ENOMEDIUM
	}
	logical, err := unix.IoctlGetUint32(f.fd, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("ask for its logical sector: %w", err)
	}
	physical, err := unix.IoctlGetUint32(f.fd, unix.BLKPBSZGET)
	if err != nil || physical < logical {
		physical = logical
	}
	f.info.Size = int64(size)
	f.info.LogicalSector = int(logical)
	f.info.PhysicalSector = int(physical)
	f.info.CheapZero = sysInt(queueDir(f.rdev), "write_zeroes_max_bytes") > 0
	f.memAlign = logical
	if stx, ok := f.dioAlign(); ok && stx.Dio_mem_align > 0 {
		f.memAlign = stx.Dio_mem_align
	}
	f.unit = int64(logical)
	return nil
}

// measureFile asks the file system.
func (f *File) measureFile(o Options) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	f.info.Size = st.Size
	f.info.LogicalSector = unknownSector
	f.info.CheapZero = true
	f.info.KnowsHoles = true
	f.memAlign = unknownSector
	if stx, ok := f.dioAlign(); ok && f.info.Direct {
		if stx.Dio_offset_align == 0 {
			// The open succeeds, but this file cannot do it (data journalling, encryption, compression).
			if err := f.clearDirect(); err != nil {
				return err
			}
		} else {
			f.info.LogicalSector = int(stx.Dio_offset_align)
			f.memAlign = max(stx.Dio_mem_align, 1)
		}
	}
	if !f.info.Direct {
		o.Warn("%s: the file system refuses O_DIRECT, reads and writes go through the page cache", f.info.Path)
	}
	f.info.PhysicalSector = max(f.info.LogicalSector, sysInt(queueDir(st.Dev), "physical_block_size"))
	f.unit = max(Alignment, int64(f.info.LogicalSector))
	if b := int64(st.Blksize); b > f.unit && b <= maxUnit && b&(b-1) == 0 {
		f.unit = b
	}
	return nil
}

// dioAlign returns what statx says of direct I/O; ok is false where the kernel does not know.
func (f *File) dioAlign() (stx unix.Statx_t, ok bool) {
	err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx)
	return stx, err == nil && stx.Mask&unix.STATX_DIOALIGN != 0
}

func (f *File) clearDirect() error {
	flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags&^unix.O_DIRECT); err != nil {
		return fmt.Errorf("clear O_DIRECT: %w", err)
	}
	f.info.Direct = false
	return nil
}

// openTail decides which bytes go through the page cache.
//
// O_DIRECT moves whole sectors and would grow a file whose last sector is not whole, so the last, partial
// sector is written through a second descriptor without O_DIRECT; the same inode's fdatasync covers it.
// Two ways to the same bytes are a classic source of lost writes, so they never share any: everything from
// tail on, a whole unit of the file system, is read and written through the page cache alone, everything
// below by O_DIRECT alone. Readahead is off, for the cached folios to end at the tail too.
//
// Where there is no O_DIRECT the tail is the whole device; where the size is a whole number of sectors
// there is none.
func (f *File) openTail() error {
	if !f.info.Direct {
		f.buffered, f.tail = f.fd, 0
		return nil
	}
	f.tail = f.info.Size
	if f.info.Size%int64(f.info.LogicalSector) == 0 {
		return nil
	}
	flags := unix.O_RDONLY
	if f.info.Writable {
		flags = unix.O_RDWR
	}
	// Through /proc, because the path may name something else by now. Not with O_EXCL: it would
	// collide with our own claim.
	fd, err := openRetry(fmt.Sprintf("/proc/self/fd/%d", f.fd), flags|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open it a second time, for its last %d bytes: %w", f.info.Size%int64(f.info.LogicalSector), err)
	}
	f.buffered = fd
	f.tail = floor(f.info.Size, max(f.unit, Alignment))
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("turn off readahead: %w", err)
	}
	return nil
}

func ioctlUint64(fd int, request uint) (uint64, error) {
	var v uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&v)))
	if errno != 0 {
		return 0, errno
	}
	return v, nil
}

// floor and ceil round to a multiple of unit, a power of two.
func floor(n, unit int64) int64 { return n &^ (unit - 1) }
func ceil(n, unit int64) int64  { return (n + unit - 1) &^ (unit - 1) }
