package blockdev

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Options say how a device is opened.
type Options struct {
	// Write opens for reading and writing, and exclusively: a block device with O_EXCL, an image file
	// under an exclusive lock. Without it an image file is opened under a shared lock, so that nobody who
	// asks can write to it meanwhile; a block device is opened without any claim and may be mounted.
	Write bool

	// Warn is told what is not as it should be and does not prevent the opening. It may be nil.
	Warn func(format string, args ...any)

	noDirect bool // tests: as if the file system refused O_DIRECT
}

// Open opens the image file or block device at path. Symbolic links are followed.
//
// The error wraps ErrMounted or ErrBusy where somebody else uses the device, ErrReadOnly, ErrDirectory or
// ErrNotDisk, and the errno where the kernel gave one.
func Open(path string, o Options) (*File, error) {
	f, err := open(path, o)
	if err != nil {
		return nil, &Error{Op: "open", Path: path, Err: err}
	}
	return f, nil
}

func open(path string, o Options) (*File, error) {
	if o.Warn == nil {
		o.Warn = func(string, ...any) {}
	}
	// Looked at before it is opened, because opening a fifo blocks and opening a tape rewinds it.
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, err
	}
	if err := checkKind(st.Mode); err != nil {
		return nil, err
	}
	f := &File{
		fd: -1, buffered: -1,
		info: Info{Path: path, Writable: o.Write, Block: st.Mode&unix.S_IFMT == unix.S_IFBLK},
		sync: unix.Fdatasync,
	}
	if err := f.openFd(o, &st); err != nil {
		f.Close()
		return nil, err
	}
	if err := f.prepare(o); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// prepare locks and measures what was opened.
func (f *File) prepare(o Options) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	if isBlock := st.Mode&unix.S_IFMT == unix.S_IFBLK; checkKind(st.Mode) != nil || isBlock != f.info.Block {
		return fmt.Errorf("%w: it was replaced while it was opened", ErrNotDisk)
	}
	f.dev, f.ino, f.rdev = st.Dev, st.Ino, st.Rdev
	if err := f.claim(o); err != nil {
		return err
	}
	measure := f.measureFile
	if f.info.Block {
		measure = f.measureBlock
	}
	if err := measure(o); err != nil {
		return err
	}
	f.bounce = NewPool(bounceLimit)
	return f.openTail()
}

func checkKind(mode uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFBLK:
		return nil
	case unix.S_IFDIR:
		return ErrDirectory
	}
	return ErrNotDisk
}

// openFd opens the descriptor that all aligned I/O goes through.
func (f *File) openFd(o Options, st *unix.Stat_t) error {
	flags := unix.O_CLOEXEC | unix.O_RDONLY
	if o.Write {
		flags = unix.O_CLOEXEC | unix.O_RDWR
	}
	if !f.info.Block {
		flags |= unix.O_NONBLOCK // means nothing for a regular file; a fifo put in its place must not block us
	} else if o.Write {
		flags |= unix.O_EXCL // on a block device: fail if mounted, part of a RAID, swap, or open in this way elsewhere
	}
	var err error
	if !o.noDirect {
		f.fd, err = openRetry(f.info.Path, flags|unix.O_DIRECT)
		f.info.Direct = err == nil
	}
	if o.noDirect || errors.Is(err, unix.EINVAL) {
		f.fd, err = openRetry(f.info.Path, flags)
	}
	if err == nil {
		return nil
	}
	f.fd = -1
	switch {
	case errors.Is(err, unix.EBUSY) && f.info.Block:
		return whyBusy(st.Rdev)
	case errors.Is(err, unix.ETXTBSY): // an active swap file or a running program
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	case f.info.Block && o.Write && sysInt(sysDir(st.Rdev), "ro") == 1:
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return err
}

// claim keeps others out, as far as they ask, and refuses what somebody else already uses.
func (f *File) claim(o Options) error {
	if f.info.Block {
		if !o.Write {
			return nil
		}
		ro, err := unix.IoctlGetUint32(f.fd, unix.BLKROGET)
		if err != nil {
			return fmt.Errorf("ask whether it is read-only: %w", err)
		}
		if ro != 0 {
			return ErrReadOnly
		}
		return f.refuseUsedLoops(o)
	}
	how := unix.LOCK_SH
	if o.Write {
		how = unix.LOCK_EX
	}
	err := ignoringEINTR(func() error { return unix.Flock(f.fd, how|unix.LOCK_NB) })
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("%w: it is locked", ErrBusy)
	case err != nil: // a network file system without a lock server
		o.Warn("%s cannot be locked, nothing keeps other programs from writing to it: %v", f.info.Path, err)
	}
	if !o.Write {
		return nil
	}
	return f.refuseUsedLoops(o)
}

// refuseUsedLoops looks for other ways to the bytes that are to be written: loop devices over them, and,
// where the target is a loop device itself, what it stands on and the other loop devices over that. A
// loop device takes no lock and no claim on what it stands on, so a file system mounted through one would
// be written to behind its back.
func (f *File) refuseUsedLoops(o Options) error {
	under := f.backing()
	own := uint64(0) // the loop device by which we came to under
	for {
		if own != 0 && under.rdev != 0 {
			if err := refuseUsed(under.rdev, o, f.info.Path+" lies on"); err != nil {
				return err
			}
		}
		for _, l := range loopsOn(under) {
			if l.rdev == own {
				continue
			}
			if err := refuseUsed(l.rdev, o, f.info.Path+" has the same bytes as"); err != nil {
				return err
			}
		}
		if under.rdev == 0 {
			return nil
		}
		l, ok := loopIn(diskDir(under.rdev))
		if !ok {
			return nil
		}
		own, under = l.rdev, l.on
	}
}

// refuseUsed refuses when the kernel says that somebody uses the block device rdev, and warns when nobody
// does yet. how says what it has to do with the target.
func refuseUsed(rdev uint64, o Options, how string) error {
	path := devPath(rdev)
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_EXCL)
	switch {
	case err == nil:
		unix.Close(fd)
		o.Warn("%s %s; writes through both destroy each other", how, path)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("it has the same bytes as %s, which %w", path, whyBusy(rdev))
	default:
		o.Warn("%s %s, and whether that is in use is not known: %v", how, path, err)
	}
	return nil
}

func (f *File) backing() backing {
	if f.info.Block {
		return backing{rdev: f.rdev}
	}
	return backing{dev: f.dev, ino: f.ino}
}

// openRetry is open(2) without EINTR.
func openRetry(path string, flags int) (int, error) {
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Open(path, flags, 0)
		return err
	})
	return fd, err
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
