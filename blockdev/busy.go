package blockdev

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// whyBusy finds out who holds a block device that the kernel calls busy.
func whyBusy(rdev uint64) error {
	all := related(rdev)
	for _, d := range all {
		if at, ok := mountPoint(d); ok {
			return fmt.Errorf("%w at %s%s", ErrMounted, at, as(d, rdev))
		}
	}
	for _, d := range all {
		if isSwap(d) {
			return fmt.Errorf("%w: as swap space%s", ErrBusy, as(d, rdev))
		}
	}
	var names []string
	for _, h := range holders(sysDir(rdev)) {
		names = append(names, devPath(h))
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: %s built upon it", ErrBusy, strings.Join(names, ", "))
	}
	return ErrBusy
}

// as says which related device was found, where it is not the one that was asked for.
func as(found, asked uint64) string {
	if found == asked {
		return ""
	}
	return ", as " + devPath(found)
}

// related are the devices whose use makes rdev busy: itself, its partitions or its whole disk, and what
// is built upon these, to any depth. rdev comes first.
func related(rdev uint64) []uint64 {
	out := []uint64{rdev}
	seen := map[uint64]bool{rdev: true}
	add := func(d uint64, ok bool) {
		if ok && !seen[d] {
			seen[d] = true
			out = append(out, d)
		}
	}
	if dir := sysDir(rdev); isPartition(dir) {
		add(dirNumber(diskDir(rdev)))
	}
	for i := 0; i < len(out); i++ {
		dir := sysDir(out[i])
		for _, h := range holders(dir) {
			add(h, true)
		}
		if i > 0 && isPartition(sysDir(rdev)) && out[i] == out[1] {
			continue // the whole disk's other partitions do not concern us
		}
		for _, p := range partitionDirs(dir) {
			add(dirNumber(p))
		}
	}
	return out
}

// mountPoint finds where a block device is mounted, in this process's mount namespace. Some file systems
// (btrfs) show a number that is no device's; their source is looked at.
func mountPoint(rdev uint64) (at string, ok bool) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", false
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
		before, after, found := strings.Cut(sc.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !found || len(left) < 5 || len(right) < 2 {
			continue
		}
		number, numbered := parseNumber(left[2])
		if numbered && number == rdev || isDevice(unescape(right[1]), rdev) {
			return unescape(left[4]), true
		}
	}
	return "", false
}

// isSwap reports whether a block device is swap space.
func isSwap(rdev uint64) bool {
	b, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 0 && isDevice(unescape(fields[0]), rdev) {
			return true
		}
	}
	return false
}

// isDevice reports whether a path names the block device rdev.
func isDevice(path string, rdev uint64) bool {
	var st unix.Stat_t
	return strings.HasPrefix(path, "/") && unix.Stat(path, &st) == nil &&
		st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == rdev
}

// unescape undoes the kernel's octal escapes of blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
