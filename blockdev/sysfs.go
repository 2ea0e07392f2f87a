package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What sysfs tells of block devices. A device is named by its number, as in Stat_t.Rdev. Whatever cannot
// be read is taken as absent: sysfs is incomplete in containers.

// sysDir is the device's folder, with symbolic links resolved, or "".
func sysDir(rdev uint64) string {
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + devNumber(rdev))
	if err != nil {
		return ""
	}
	return dir
}

// isPartition reports whether a folder of sysfs is a partition's. Its parent is then the whole disk's.
func isPartition(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "partition"))
	return dir != "" && err == nil
}

// diskDir is the folder of the whole disk.
func diskDir(rdev uint64) string {
	dir := sysDir(rdev)
	if isPartition(dir) {
		return filepath.Dir(dir)
	}
	return dir
}

// queueDir is where the disk's request queue is described. For a file, rdev is its Stat_t.Dev.
func queueDir(rdev uint64) string { return filepath.Join(diskDir(rdev), "queue") }

// partitionDirs are the folders of a whole disk's partitions.
func partitionDirs(disk string) []string {
	if disk == "" {
		return nil
	}
	found, _ := filepath.Glob(filepath.Join(disk, "*", "partition"))
	for i := range found {
		found[i] = filepath.Dir(found[i])
	}
	return found
}

// holders are the devices built upon the one in dir: device mapper, RAID, bcache.
func holders(dir string) []uint64 {
	if dir == "" {
		return nil
	}
	var out []uint64
	found, _ := filepath.Glob(filepath.Join(dir, "holders", "*", "dev"))
	for _, f := range found {
		if rdev, ok := dirNumber(filepath.Dir(f)); ok {
			out = append(out, rdev)
		}
	}
	return out
}

// dirNumber reads the number of the device that a folder describes.
func dirNumber(dir string) (rdev uint64, ok bool) {
	return parseNumber(sysString(dir, "dev"))
}

// devNumber writes a device number as sysfs and mountinfo do.
func devNumber(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

func parseNumber(s string) (rdev uint64, ok bool) {
	major, minor, ok := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, false
	}
	return unix.Mkdev(uint32(a), uint32(b)), true
}

// devPath is how a user names the device.
func devPath(rdev uint64) string {
	dir := sysDir(rdev)
	if dir == "" {
		return "block device " + devNumber(rdev)
	}
	return "/dev/" + strings.ReplaceAll(filepath.Base(dir), "!", "/")
}

// sysString is a file's one line, "" where there is none.
func sysString(dir, name string) string {
	if dir == "" {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// sysInt is a file's number, 0 where there is none.
func sysInt(dir, name string) int {
	n, err := strconv.Atoi(sysString(dir, name))
	if err != nil {
		return 0
	}
	return n
}
