package blockdev

import (
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Identities names what the path's bytes are, so that two paths share bytes when, and only when, their
// sets have a member in common (Overlap). Symbolic links are followed. The set is sorted.
//
// The set holds the device itself and everything that is made of its bytes and of nothing less: its
// partitions, the loop devices over it, what device mapper or RAID build upon any of these. So a disk
// meets its partitions, and an image file meets the partitions of a loop device over it, while two
// partitions of one disk, or two logical volumes of one group, have nothing in common:
//
//	image F             F  disk L  F@p1  F@p2        (L: a loop device over F, with two partitions)
//	partition 1 of L          F@p1
//	partition 2 of L                F@p2
//	another loop over F  F  disk L  F@p1  F@p2  disk K
//
// Members are told apart by boot id, which is one machine's and, unlike a machine id, the same in all its
// containers: they can be hashed and compared with another host's. What is not seen: a file and the disk
// on which its file system lies; a file that two hosts reach over a network file system; two loop devices
// with different offsets or limits over one file, where their ranges overlap without being equal.
func Identities(path string) ([]string, error) {
	ids, err := identities(path)
	if err != nil {
		return nil, &Error{Op: "identify", Path: path, Err: err}
	}
	return ids, nil
}

// Overlap reports whether two sets of Identities have a member in common.
func Overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(id string) bool { return slices.Contains(b, id) })
}

func identities(path string) ([]string, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, err
	}
	if err := checkKind(st.Mode); err != nil {
		return nil, err
	}
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	s := identitySet{boot: boot, loops: loops(), seen: map[string]bool{}}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		s.addBlock(st.Rdev)
	} else {
		s.addFile(backing{dev: st.Dev, ino: st.Ino})
	}
	slices.Sort(s.ids)
	return s.ids, nil
}

// identitySet collects members; each is followed once.
type identitySet struct {
	boot  string
	loops []loop
	seen  map[string]bool
	ids   []string
}

// add enters a member and reports whether it is new.
func (s *identitySet) add(id string) bool {
	if s.seen[id] {
		return false
	}
	s.seen[id] = true
	s.ids = append(s.ids, id)
	return true
}

func (s *identitySet) file(b backing) string {
	return fmt.Sprintf("file:%s:%s:%d", s.boot, devNumber(b.dev), b.ino)
}

func (s *identitySet) disk(rdev uint64) string {
	return fmt.Sprintf("disk:%s:%s", s.boot, devNumber(rdev))
}

func (s *identitySet) addFile(b backing) {
	if s.add(s.file(b)) {
		s.addLoops(b)
	}
}

// addLoops enters the loop devices over b, whole or in part.
func (s *identitySet) addLoops(b backing) {
	for _, l := range s.loops {
		if l.on == b {
			s.addBlock(l.rdev)
		}
	}
}

// addBlock enters a block device, what it is a whole view of, and what is built upon it.
func (s *identitySet) addBlock(rdev uint64) {
	if !s.add(s.disk(rdev)) {
		return
	}
	s.addRange(rdev)
	dir := sysDir(rdev)
	for _, p := range partitionDirs(dir) {
		if d, ok := dirNumber(p); ok {
			s.addBlock(d)
		}
	}
	for _, h := range holders(dir) {
		s.addBlock(h)
	}
	s.addLoops(backing{rdev: rdev})
	if isPartition(dir) {
		s.addOverlapping(rdev)
	}
}

// addRange names a device by the bytes that it shows of what lies lowest, so that two views of the same
// bytes meet: two loop devices over one file, or the same partition of both. A whole view is entered as
// what it shows.
func (s *identitySet) addRange(rdev uint64) {
	v := s.resolve(view{on: backing{rdev: rdev}})
	if v.on == (backing{rdev: rdev}) {
		return
	}
	if v.offset == 0 && v.length == 0 {
		if v.on.rdev != 0 {
			s.addBlock(v.on.rdev)
		} else {
			s.addFile(v.on)
		}
		return
	}
	base := s.file(v.on)
	if v.on.rdev != 0 {
		base = s.disk(v.on.rdev)
	}
	s.add(fmt.Sprintf("%s@%d+%d", base, v.offset, v.length))
}

// addOverlapping enters a partition's neighbours that share bytes with it: an extended partition and the
// logical ones in it.
func (s *identitySet) addOverlapping(rdev uint64) {
	start, length := partitionRange(sysDir(rdev))
	for _, p := range partitionDirs(diskDir(rdev)) {
		at, n := partitionRange(p)
		if d, ok := dirNumber(p); ok && at < start+length && start < at+n {
			s.add(s.disk(d))
		}
	}
}

// view is a range of something; length 0 means all of it.
type view struct {
	on             backing
	offset, length uint64
}

// resolve goes down through partitions and loop devices as far as they go. The depth is bounded: the
// kernel refuses loops that stand on themselves.
func (s *identitySet) resolve(v view) view {
	for v.on.rdev != 0 {
		dir := sysDir(v.on.rdev)
		if isPartition(dir) {
			start, length := partitionRange(dir)
			v = v.within(view{offset: start, length: length})
			v.on = backing{rdev: numberOf(diskDir(v.on.rdev))}
			continue
		}
		i := slices.IndexFunc(s.loops, func(l loop) bool { return l.rdev == v.on.rdev })
		if i < 0 {
			return v
		}
		l := s.loops[i]
		v = v.within(view{offset: l.offset, length: l.limit})
		v.on = l.on
	}
	return v
}

// within places v, a view of outer's bytes, in what outer is a view of.
func (v view) within(outer view) view {
	v.offset += outer.offset
	if v.length == 0 {
		v.length = outer.length
	}
	return v
}

func numberOf(dir string) uint64 {
	d, _ := dirNumber(dir)
	return d
}

// partitionRange is where a partition lies in its disk, in bytes.
func partitionRange(dir string) (start, length uint64) {
	start, _ = strconv.ParseUint(sysString(dir, "start"), 10, 64)
	length, _ = strconv.ParseUint(sysString(dir, "size"), 10, 64)
	return start << 9, length << 9
}
