package blockdev

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts are how a device is recognised, and by which it is seen whether somebody wrote to it. They are
// comparable with == and are kept as JSON. Two sets of facts of one device may come from different opens.
//
// Whoever takes them calls Flush first: what is still in the page cache has not been counted yet. What
// escapes them:
//   - image files: a write that falls into the same tick of the kernel's clock as the recorded time (some
//     milliseconds; none since Linux 6.13, where times that were looked at are told apart), a stored
//     mapping that is not written back yet, times set back by hand together with the clock;
//   - block devices: others' writes that are still in the page cache of another node of the same disk (of
//     the whole disk, say, while we hold a partition), and anything that does not pass this kernel's block
//     layer: another host on shared storage, a loop device's backing file.
type Facts struct {
	Block bool  `json:"block"`
	Size  int64 `json:"size"`

	// Image files. Times are nanoseconds since 1970.
	Dev   uint64 `json:"dev,omitempty"`
	Ino   uint64 `json:"ino,omitempty"`
	Btime int64  `json:"btime,omitempty"` // 0 where the file system does not keep it
	Mtime int64  `json:"mtime,omitempty"`
	Ctime int64  `json:"ctime,omitempty"`

	// Block devices.
	BootID    string `json:"boot_id,omitempty"`
	Rdev      uint64 `json:"rdev,omitempty"`
	DiskSeq   uint64 `json:"disk_seq,omitempty"`   // of the whole disk; 0 before Linux 5.15
	Partition bool   `json:"partition,omitempty"`  //
	PartStart uint64 `json:"part_start,omitempty"` // 512-byte sectors

	// Counted says that the kernel counts I/O of this disk and that the counts below stand still relative
	// to each other. SectorsWritten are the 512-byte sectors written, zeroed or discarded through this
	// device. A partition can also be written through its whole disk: SectorsAround are those that went
	// to the whole disk and to none of its partitions.
	Counted        bool   `json:"counted,omitempty"`
	SectorsWritten uint64 `json:"sectors_written,omitempty"`
	SectorsAround  uint64 `json:"sectors_around,omitempty"`
}

// Facts looks at the device as it is now.
func (f *File) Facts() (Facts, error) {
	err := f.check(0, 0, false)
	if err != nil {
		return Facts{}, f.failure("facts", 0, 0, err)
	}
	look := f.fileFacts
	if f.info.Block {
		look = f.blockFacts
	}
	a, err := look()
	return a, f.failure("facts", 0, 0, err)
}

func (f *File) fileFacts() (Facts, error) {
	var st unix.Statx_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	if err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, mask, &st); err != nil {
		return Facts{}, err
	}
	a := Facts{
		Size:  int64(st.Size),
		Dev:   unix.Mkdev(st.Dev_major, st.Dev_minor),
		Ino:   st.Ino,
		Mtime: nanoseconds(st.Mtime),
		Ctime: nanoseconds(st.Ctime),
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		a.Btime = nanoseconds(st.Btime)
	}
	return a, nil
}

func nanoseconds(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

func (f *File) blockFacts() (Facts, error) {
	size, err := ioctlUint64(f.fd, unix.BLKGETSIZE64)
	if err != nil {
		return Facts{}, fmt.Errorf("ask for its size: %w", err)
	}
	boot, err := BootID()
	if err != nil {
		return Facts{}, err
	}
	dir, disk := sysDir(f.rdev), diskDir(f.rdev)
	a := Facts{Block: true, Size: int64(size), BootID: boot, Rdev: f.rdev, Partition: isPartition(dir)}
	if a.DiskSeq, err = ioctlUint64(f.fd, unix.BLKGETDISKSEQ); err != nil {
		a.DiskSeq = uint64(sysInt(disk, "diskseq"))
	}
	if a.Partition {
		start, err := strconv.ParseUint(sysString(dir, "start"), 10, 64)
		if err != nil {
			return Facts{}, fmt.Errorf("start of the partition: %w", err)
		}
		a.PartStart = start
	}
	a.SectorsWritten, a.SectorsAround, a.Counted = counts(dir, disk)
	return a, nil
}

// countTries bounds the search for a moment at which nothing was counted between two looks.
const countTries = 8

// counts reads how many sectors were written through the device in dir, and, where that is a partition,
// through its disk beside all partitions. The files cannot be read at one instant, so they are read until
// two readings agree.
func counts(dir, disk string) (written, around uint64, ok bool) {
	if sysString(disk, "queue/iostats") == "0" {
		return 0, 0, false // switched off: standing still means nothing
	}
	if dir == disk {
		written, ok = written512(dir)
		return written, 0, ok
	}
	last, ok := diskCounts(disk)
	for range countTries {
		now, ok2 := diskCounts(disk)
		if !ok || !ok2 {
			return 0, 0, false
		}
		if now == last {
			written, ok = written512(dir)
			return written, now.whole - now.parts, ok
		}
		last = now
	}
	return 0, 0, false
}

type diskCount struct{ whole, parts uint64 }

func diskCounts(disk string) (n diskCount, ok bool) {
	if n.whole, ok = written512(disk); !ok {
		return n, false
	}
	for _, p := range partitionDirs(disk) {
		w, ok := written512(p)
		if !ok {
			return n, false
		}
		n.parts += w
	}
	return n, true
}

// written512 is the number of 512-byte sectors written and discarded, fields 7 and 14 of the stat file.
func written512(dir string) (uint64, bool) {
	fields := strings.Fields(sysString(dir, "stat"))
	if len(fields) < 7 {
		return 0, false
	}
	n, err := strconv.ParseUint(fields[6], 10, 64)
	if len(fields) >= 14 && err == nil {
		var d uint64
		d, err = strconv.ParseUint(fields[13], 10, 64)
		n += d
	}
	return n, err == nil
}

// SameDevice reports whether both are facts of one and the same device. For a block device that can be
// known only within one boot.
func (a Facts) SameDevice(b Facts) bool {
	if a.Block != b.Block {
		return false
	}
	if !a.Block {
		return a.Ino != 0 && a.Dev == b.Dev && a.Ino == b.Ino && a.Btime == b.Btime
	}
	if a.BootID == "" || a.BootID != b.BootID || a.DiskSeq != b.DiskSeq {
		return false
	}
	if a.DiskSeq == 0 && a.Rdev != b.Rdev { // a kernel without: its number is all there is
		return false
	}
	return a.Partition == b.Partition && a.PartStart == b.PartStart
}

// Unchanged reports whether b is the same device as a and, as far as Facts can tell, was not written to,
// nor resized, between the two.
func (a Facts) Unchanged(b Facts) bool {
	if !a.SameDevice(b) || a.Size != b.Size {
		return false
	}
	if !a.Block {
		return a.Mtime == b.Mtime && a.Ctime == b.Ctime
	}
	return a.Counted && b.Counted && a.SectorsWritten == b.SectorsWritten && a.SectorsAround == b.SectorsAround
}

// FolderName names a folder for what is kept about the device. It is stable as long as SameDevice holds,
// and may be met again by another device later (a reused inode, the next boot): who finds such a folder
// compares the Facts kept in it.
func (a Facts) FolderName() string {
	if !a.Block {
		return fmt.Sprintf("file-%x-%x", a.Dev, a.Ino)
	}
	name := fmt.Sprintf("disk-%d", a.DiskSeq)
	if a.DiskSeq == 0 {
		name = fmt.Sprintf("dev-%d-%d", unix.Major(a.Rdev), unix.Minor(a.Rdev))
	}
	if a.Partition {
		name += fmt.Sprintf("-p%d", a.PartStart)
	}
	return name
}

// BootID names this run of this machine's kernel.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
