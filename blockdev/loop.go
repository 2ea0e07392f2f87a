package blockdev

import (
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Loop devices: a block device whose bytes are a file's, or another block device's.

// backing names what bytes are kept in: a file by dev and ino, or a block device by rdev alone.
type backing struct {
	dev, ino uint64
	rdev     uint64 // not 0: a block device
}

// loop is an attached loop device.
type loop struct {
	rdev   uint64
	on     backing
	offset uint64 // where it begins in what it stands on, bytes
	limit  uint64 // its length, bytes; 0: to the end
}

// loops are all attached loop devices that can be asked.
func loops() []loop {
	var out []loop
	dirs, _ := filepath.Glob("/sys/block/loop*/loop")
	for _, d := range dirs {
		if l, ok := loopIn(filepath.Dir(d)); ok {
			out = append(out, l)
		}
	}
	return out
}

// loopsOn are the loop devices that stand on b.
func loopsOn(b backing) []loop {
	var out []loop
	for _, l := range loops() {
		if l.on == b {
			out = append(out, l)
		}
	}
	return out
}

// loopIn describes the loop device in a folder of sysfs; ok is false for any other device.
//
// The kernel is asked by ioctl, because the path in sysfs may be another mount namespace's or a deleted
// file's. The path is the second choice, for those who may not open the device.
func loopIn(dir string) (l loop, ok bool) {
	file := sysString(dir, "loop/backing_file")
	if file == "" {
		return loop{}, false
	}
	if l.rdev, ok = dirNumber(dir); !ok {
		return loop{}, false
	}
	if fd, err := openRetry(devPath(l.rdev), unix.O_RDONLY|unix.O_CLOEXEC); err == nil {
		defer unix.Close(fd)
		st, err := unix.IoctlLoopGetStatus64(fd)
		if err == nil {
			l.offset, l.limit = st.Offset, st.Sizelimit
			l.on = backing{dev: kernelDev(st.Device), ino: st.Inode}
			if st.Rdevice != 0 {
				l.on = backing{rdev: kernelDev(st.Rdevice)}
			}
			return l, true
		}
	}
	var st unix.Stat_t
	if strings.HasSuffix(file, " (deleted)") || unix.Stat(file, &st) != nil {
		return loop{}, false
	}
	l.offset = uint64(sysInt(dir, "loop/offset"))
	l.limit = uint64(sysInt(dir, "loop/sizelimit"))
	l.on = backing{dev: st.Dev, ino: st.Ino}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		l.on = backing{rdev: st.Rdev}
	}
	return l, true
}

// kernelDev turns a device number as the kernel packs it into one as Stat_t has it. They are equal up to
// major 4095.
func kernelDev(d uint64) uint64 {
	return unix.Mkdev(uint32(d>>8&0xfff), uint32(d&0xff|d>>12&0xfff00))
}
