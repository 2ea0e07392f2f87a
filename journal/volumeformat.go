package journal

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/blkmirror/blkmirror/blockdev"
)

// The frozen numbers of the volume records. All integers are little-endian. Types 1 to 4 are the record
// types of a log of kind KindVolume.
const (
	typeMark       Type = 1
	typeFacts      Type = 2
	typeLists      Type = 3
	typeCheckpoint Type = 4

	factsVersion      = 1
	listsVersion      = 1
	checkpointVersion = 1 // of the record

	factsHead      = 176
	generationSize = 48
	mirrorHead     = 56
	listsHead      = 16
	extentSize     = 16
	readOnlyHead   = 24
	badBlockSize   = 72
	checkpointHead = 48

	// RegionSize is the unit of marks, in bytes.
	RegionSize = 4 << 20

	// What facts may hold at most.
	MaxVolumeSize  = 1 << 50 // bytes
	MaxParents     = 32
	MaxMirrors     = 64
	MaxMirrorName  = 255 // bytes
	MaxEpochs      = 8
	MaxDeviceFacts = 4 << 10 // bytes
	MaxBootID      = 255     // bytes
	MaxListed      = 65536   // extents of holes, of doubts, and of quarantine
	MaxReason      = 512     // bytes
	MaxBadBlocks   = 128

	// maxMarked is how many regions go into one mark record.
	maxMarked = 4096
	maxRegion = MaxVolumeSize / RegionSize
	// markRegionBytes is the longest difference of two regions: zigzag, 32 bits, 7 to a byte.
	markRegionBytes = 5
)

// The flags of a facts record.
const (
	flagClean = 1 << iota
	flagPaused
	flagRebuilt
	flagBulk // of the replica, this and what follows
	flagInconsistent
	flagInPlace
	flagUnproven

	flagsKnown = 1<<iota - 1
)

// The flags of a mirror in a facts record.
const (
	mirrorBulk     = 1
	mirrorAttached = 2
	mirrorReadOnly = 4
	mirrorKnown    = mirrorBulk | mirrorAttached | mirrorReadOnly
)

// Mark: these regions are hot. Each is the difference to the one before it, the first to 0, as a varint in
// zigzag (0, -1, 1, -2, … are 0, 1, 2, 3, …; 7 bits to a byte, the lowest first, bit 7: more follow).
//
//	+---------------------------------------------------------------+
//	| 1 to 4096 varints, each of 1 to 5 bytes                       |   0
//	+---------------------------------------------------------------+
func appendMark(dst []byte, regions []uint64) []byte {
	var last uint64
	for _, r := range regions {
		dst = binary.AppendVarint(dst, int64(r-last))
		last = r
	}
	return dst
}

// decodeMark calls do for each region.
func decodeMark(b []byte, do func(region uint64)) error {
	var last int64
	count := 0
	for ; len(b) > 0; count++ {
		delta, n := binary.Varint(b)
		if n <= 0 || n > markRegionBytes {
			return fmt.Errorf("mark record with no number at its %d: %w", count, ErrDamaged)
		}
		last += delta
		if last < 0 || last >= maxRegion || count == maxMarked {
			return fmt.Errorf("mark record with region %d at its %d: %w", last, count, ErrDamaged)
		}
		do(uint64(last))
		b = b[n:]
	}
	if count == 0 {
		return fmt.Errorf("mark record without a region: %w", ErrDamaged)
	}
	return nil
}

// Facts: all that holds but page sets and the mirror's lists. The last one wins.
//
//	 0       1       2       3       4       5       6       7
//	+-------------------------------+-------+-----------------------+
//	| version = 1                   | role  | zero                  |   0
//	+-------------------------------+-------+-----------------------+
//	| flags                         | block size                    |   8
//	+-------------------------------+-------------------------------+
//	| UUID of the volume, 16 bytes                                  |  16
//	|                                                               |  24
//	+---------------------------------------------------------------+
//	| size of the volume, in bytes                                  |  32
//	+---------------------------------------------------------------+
//	| cut: the highest number that was ever used                    |  40
//	+---------------------------------------------------------------+
//	| LSN of the lists record that holds; 0: all of it is empty     |  48
//	+---------------------------------------------------------------+
//	| generation, 48 bytes                                          |  56
//	+---------------------------------------------------------------+
//	| replica: key of the primary, 32 bytes                         | 104
//	+---------------------------------------------------------------+
//	| replica: incarnation of the primary                           | 136
//	+---------------------------------------------------------------+
//	| replica: committed                                            | 144
//	+---------------------------------------------------------------+
//	| replica: applied                                              | 152
//	+-------+-------+-------+-------+-------------------------------+
//	|parents|mirrors|epochs |boot id| length of the device's facts  | 160
//	+-------+-------+-------+-------+-------------------------------+
//	| under                                                         | 168
//	+---------------------------------------------------------------+
//	| parents: generations, 48 bytes each                           | 176
//	| epochs, 8 bytes each                                          |
//	| mirrors, 56 bytes and a name each                             |
//	| boot id                                                       |
//	| facts of the device                                           |
//	+---------------------------------------------------------------+
//
// lists is what its own record holds: here is only where to find it.
func encodeFacts(f *VolumeFacts, lists LSN) []byte {
	b := make([]byte, factsHead, factsHead+256+len(f.Device))
	le := binary.LittleEndian
	le.PutUint32(b[0:], factsVersion)
	b[4] = f.Role
	le.PutUint32(b[8:], f.flags())
	le.PutUint32(b[12:], f.BlockSize)
	copy(b[16:32], f.UUID[:])
	le.PutUint64(b[32:], uint64(f.Size))
	le.PutUint64(b[40:], f.Cut)
	le.PutUint64(b[48:], uint64(lists))
	copy(b[56:104], appendGeneration(nil, f.Generation))
	m := &f.Mirror
	copy(b[104:136], m.Node[:])
	le.PutUint64(b[136:], m.Incarnation)
	le.PutUint64(b[144:], m.Committed)
	le.PutUint64(b[152:], m.Applied)
	b[160], b[161], b[162], b[163] = byte(len(f.Parents)), byte(len(f.Mirrors)), byte(len(m.Epochs)), byte(len(f.BootID))
	le.PutUint32(b[164:], uint32(len(f.Device)))
	le.PutUint64(b[168:], m.Under)
	for _, g := range f.Parents {
		b = appendGeneration(b, g)
	}
	for _, e := range m.Epochs {
		b = le.AppendUint64(b, e)
	}
	for i := range f.Mirrors {
		b = appendMirror(b, &f.Mirrors[i])
	}
	b = append(b, f.BootID...)
	return append(b, f.Device...)
}

// decodeFacts copies all that it returns. Lists are left empty.
func decodeFacts(b []byte) (f VolumeFacts, lists LSN, err error) {
	if err := checkVersion("facts", b, factsHead, factsVersion); err != nil {
		return f, 0, err
	}
	le := binary.LittleEndian
	flags := le.Uint32(b[8:])
	if b[5]|b[6]|b[7] != 0 || flags&^flagsKnown != 0 {
		return f, 0, fmt.Errorf("facts record with unknown flags: %w", ErrDamaged)
	}
	f.Role, f.BlockSize = b[4], le.Uint32(b[12:])
	f.setFlags(flags)
	copy(f.UUID[:], b[16:32])
	f.Size, f.Cut, lists = int64(le.Uint64(b[32:])), le.Uint64(b[40:]), LSN(le.Uint64(b[48:]))
	f.Generation = decodeGeneration(b[56:104])
	m := &f.Mirror
	copy(m.Node[:], b[104:136])
	m.Incarnation, m.Committed, m.Applied, m.Under = le.Uint64(b[136:]), le.Uint64(b[144:]), le.Uint64(b[152:]), le.Uint64(b[168:])
	parents, mirrors, epochs := int(b[160]), int(b[161]), int(b[162])
	bootID, device := int(b[163]), le.Uint32(b[164:])
	rest := b[factsHead:]
	if parents > MaxParents || mirrors > MaxMirrors || epochs > MaxEpochs || device > MaxDeviceFacts ||
		len(rest) < parents*generationSize+epochs*8+mirrors*mirrorHead+bootID+int(device) {
		return f, 0, fmt.Errorf("facts record of %d bytes with too many of something: %w", len(b), ErrDamaged)
	}
	for ; parents > 0; parents-- {
		f.Parents = append(f.Parents, decodeGeneration(rest))
		rest = rest[generationSize:]
	}
	for ; epochs > 0; epochs-- {
		m.Epochs = append(m.Epochs, le.Uint64(rest))
		rest = rest[8:]
	}
	for ; mirrors > 0; mirrors-- {
		var one MirrorFacts
		if one, rest, err = decodeMirror(rest); err != nil {
			return f, 0, err
		}
		f.Mirrors = append(f.Mirrors, one)
	}
	if len(rest) != bootID+int(device) {
		return f, 0, fmt.Errorf("facts record with %d bytes at its end, not %d: %w", len(rest), bootID+int(device), ErrDamaged)
	}
	f.BootID = string(rest[:bootID])
	if device > 0 {
		f.Device = append(f.Device, rest[bootID:]...)
	}
	if err := f.check(); err != nil {
		return f, 0, fmt.Errorf("facts record: %w: %w", err, ErrDamaged)
	}
	return f, lists, nil
}

// checkVersion checks the length and the version that every versioned record begins with. The log has held the
// body against its checksum, so another version is one, and not damage.
func checkVersion(what string, b []byte, size int, version uint32) error {
	if len(b) < size {
		return fmt.Errorf("%s record has %d bytes, at least %d: %w", what, len(b), size, ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(b); v != version {
		return fmt.Errorf("%s record %w: %d, known is %d", what, ErrVersion, v, version)
	}
	return nil
}

// A generation:
//
//	+---------------------------------------------------------------+
//	| id, 16 random bytes                                           |   0
//	|                                                               |   8
//	+---------------------------------------------------------------+
//	| counter                                                       |  16
//	+---------------------------------------------------------------+
//	| id of the parent, 16 bytes                                    |  24
//	|                                                               |  32
//	+---------------------------------------------------------------+
//	| cut of the parent                                             |  40
//	+---------------------------------------------------------------+
func appendGeneration(dst []byte, g Generation) []byte {
	dst = append(dst, g.ID[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, g.Counter)
	dst = append(dst, g.Parent[:]...)
	return binary.LittleEndian.AppendUint64(dst, g.ParentCut)
}

func decodeGeneration(b []byte) Generation {
	return Generation{
		ID:        [16]byte(b[0:16]),
		Counter:   binary.LittleEndian.Uint64(b[16:]),
		Parent:    [16]byte(b[24:40]),
		ParentCut: binary.LittleEndian.Uint64(b[40:]),
	}
}

// A mirror, as its primary knows it:
//
//	+---------------------------------------------------------------+
//	| key of the node, 32 bytes                                     |   0
//	+---------------------------------------------------------------+
//	| committed                                                     |  32
//	+---------------------------------------------------------------+
//	| sent                                                          |  40
//	+-------+-------+-----------------------------------------------+
//	| flags |length | zero                                          |  48
//	+-------+-------+-----------------------------------------------+
//	| name, 1 to 255 bytes                                          |  56
//	+---------------------------------------------------------------+
func appendMirror(dst []byte, m *MirrorFacts) []byte {
	dst = append(dst, m.Node[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, m.Committed)
	dst = binary.LittleEndian.AppendUint64(dst, m.Sent)
	var flags byte
	if m.Bulk {
		flags |= mirrorBulk
	}
	if m.Attached {
		flags |= mirrorAttached
	}
	if m.ReadOnly {
		flags |= mirrorReadOnly
	}
	dst = append(dst, flags, byte(len(m.Name)), 0, 0, 0, 0, 0, 0)
	return append(dst, m.Name...)
}

func decodeMirror(b []byte) (m MirrorFacts, rest []byte, err error) {
	if len(b) < mirrorHead || len(b) < mirrorHead+int(b[49]) {
		return m, nil, fmt.Errorf("facts record ends within a mirror: %w", ErrDamaged)
	}
	le := binary.LittleEndian
	if b[48]&^mirrorKnown != 0 || le.Uint64(b[48:])>>16 != 0 {
		return m, nil, fmt.Errorf("facts record with unknown flags of a mirror: %w", ErrDamaged)
	}
	copy(m.Node[:], b[0:32])
	m.Committed, m.Sent = le.Uint64(b[32:]), le.Uint64(b[40:])
	m.Bulk, m.Attached, m.ReadOnly = b[48]&mirrorBulk != 0, b[48]&mirrorAttached != 0, b[48]&mirrorReadOnly != 0
	end := mirrorHead + int(b[49])
	m.Name = string(b[mirrorHead:end])
	return m, b[end:], nil
}

func sane(e blockdev.Extent) bool {
	return e.Offset >= 0 && e.Length > 0 && e.Length <= math.MaxInt64-e.Offset
}

func nilIfEmpty[S ~[]E, E any](s S) S {
	if len(s) == 0 {
		return nil
	}
	return s
}

// checkpointRecord makes a checkpoint file count, and everything before its T superfluous. Its facts are
// those that hold with it.
//
//	 0       1       2       3       4       5       6       7
//	+-------------------------------+-------------------------------+
//	| version = 1                   | CRC32C of the file            |   0
//	+-------------------------------+-------------------------------+
//	| number of the checkpoint                                      |   8
//	+---------------------------------------------------------------+
//	| size of the file, in bytes                                    |  16
//	+---------------------------------------------------------------+
//	| T: number of its segment                                      |  24
//	+---------------------------------------------------------------+
//	| T: first LSN of that segment                                  |  32
//	+---------------------------------------------------------------+
//	| zero                                                          |  40
//	+---------------------------------------------------------------+
//	| facts, as in a facts record                                   |  48
//	+---------------------------------------------------------------+
type checkpointRecord struct {
	number  uint64
	size    int64
	sum     uint32
	segment uint64
	first   LSN
}

func (r checkpointRecord) encode(facts []byte) []byte {
	b := make([]byte, checkpointHead, checkpointHead+len(facts))
	le := binary.LittleEndian
	le.PutUint32(b[0:], checkpointVersion)
	le.PutUint32(b[4:], r.sum)
	le.PutUint64(b[8:], r.number)
	le.PutUint64(b[16:], uint64(r.size))
	le.PutUint64(b[24:], r.segment)
	le.PutUint64(b[32:], uint64(r.first))
	return append(b, facts...)
}

// decodeCheckpointRecord returns the facts still encoded; they lie in b.
func decodeCheckpointRecord(b []byte) (r checkpointRecord, facts []byte, err error) {
	if err := checkVersion("checkpoint", b, checkpointHead, checkpointVersion); err != nil {
		return r, nil, err
	}
	le := binary.LittleEndian
	r.sum = le.Uint32(b[4:])
	r.number, r.size = le.Uint64(b[8:]), int64(le.Uint64(b[16:]))
	r.segment, r.first = le.Uint64(b[24:]), LSN(le.Uint64(b[32:]))
	if r.number == 0 || r.size < 0 || r.segment == 0 || r.first == 0 || le.Uint64(b[40:]) != 0 {
		return r, nil, fmt.Errorf("checkpoint record %+v: %w", r, ErrDamaged)
	}
	return r, b[checkpointHead:], nil
}
