package journal

import (
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
)

// The roles of a node for a volume.
const (
	RolePrimary uint8 = 1
	RoleMirror  uint8 = 2
)

// Generation is the history that a volume belongs to.
type Generation struct {
	ID        [16]byte // random; zero: none
	Counter   uint64
	Parent    [16]byte
	ParentCut uint64
}

// VolumeFacts is every live fact of a volume but its page sets and hot regions.
type VolumeFacts struct {
	UUID       [16]byte
	Size       int64  // bytes; it never shrinks
	BlockSize  uint32 // bytes, a power of two from 4 KiB to 1 MiB; 0 only where Size is 0
	Role       uint8  // RolePrimary or RoleMirror
	Generation Generation
	Parents    []Generation // older ones, the newest first

	Cut     uint64        // on a primary: the highest number ever used, for a cut or a bulk flush
	Mirrors []MirrorFacts // on a primary
	Mirror  ReplicaFacts  // on a mirror

	BootID  string
	Device  []byte // facts of the device at a clean stop, opaque; they mean something only with Clean
	Clean   bool   // stopped cleanly: the sets in the checkpoint are exact. Recovery takes it back where a mark follows
	Paused  bool
	Rebuilt bool // begun by `rebuild`, and nothing was confirmed since
}

// MirrorFacts is what a primary remembers of one mirror.
type MirrorFacts struct {
	Name      string
	Node      [32]byte
	Committed uint64 // the last cut, or with Bulk the last number of a bulk flush, that the mirror has confirmed
	Sent      uint64 // the last that was sent
	Bulk      bool
	Attached  bool // it was here at least once
	ReadOnly  bool // it said that it is read-only, or has to be
}

// ReplicaFacts is what a mirror remembers of its own state.
type ReplicaFacts struct {
	Node        [32]byte // of the primary
	Incarnation uint64   // of the primary whose epoch was committed last
	Committed   uint64
	Applied     uint64
	Epochs      []uint64 // committed and not applied, ascending

	Bulk         bool // Committed is a number of a bulk flush
	Inconsistent bool
	InPlace      bool
	Under        uint64 // with InPlace: the number of the Flush that is to end what is written in place since Committed; 0: nothing is
	Unproven     bool

	Holes  []blockdev.Extent // of the last cut, as the primary told them
	Doubts []blockdev.Extent // what the mirror can no longer vouch for

	ReadOnly   ReadOnly          // why nothing new is taken; the zero value: it is taken
	Quarantine []blockdev.Extent // what a repair has still to bring or to find equal; only with ReadOnly
}

// Class says where two hashes that must be equal were not. 0: nowhere.
type Class uint8

// The classes of a mismatch, which are frozen; the wire has the same numbers.
const (
	ClassPayload Class = 1 // a payload and its hash, on arrival, as often as it was sent again
	ClassAck     Class = 2 // an acknowledgement and the primary's own hash, as often as it was sent again
	ClassStaging Class = 3 // a staged payload, when it was applied
	ClassDevice  Class = 4 // what was written, read back; or what the device cannot read
	ClassVerify  Class = 5 // both sides, in a verify
	ClassRot     Class = 6 // a device and its own index
)

func (c Class) String() string {
	switch c {
	case 0:
		return "none"
	case ClassPayload:
		return "payload"
	case ClassAck:
		return "ack"
	case ClassStaging:
		return "staging"
	case ClassDevice:
		return "mirror-device"
	case ClassVerify:
		return "verify"
	case ClassRot:
		return "rot"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// ReadOnly is why a mirror takes nothing new. Where Class is 0 it does, and all else is zero.
type ReadOnly struct {
	Class  Class
	Epoch  uint64     // that was under way or compared
	Since  int64      // Unix seconds
	Reason string     // for people, at most MaxReason bytes
	Blocks []BadBlock // the first MaxBadBlocks, for people; Quarantine is what counts
}

// BadBlock is a block with another hash than it must have.
type BadBlock struct {
	Offset int64
	Want   [32]byte // what the primary sent, or the index said
	Got    [32]byte
}

// regions is how many regions of a size a volume has.
func (f *VolumeFacts) regions(size int64) uint64 { return uint64(f.Size+size-1) / uint64(size) }

// check says whether the facts can be those of a volume.
func (f *VolumeFacts) check() error {
	if f.Size < 0 || f.Size > MaxVolumeSize {
		return fmt.Errorf("%w: size %d", ErrFacts, f.Size)
	}
	if b := f.BlockSize; (b != 0 || f.Size != 0) && (b < 4<<10 || b > 1<<20 || b&(b-1) != 0) {
		return fmt.Errorf("%w: block size %d", ErrFacts, b)
	}
	if f.Role != RolePrimary && f.Role != RoleMirror {
		return fmt.Errorf("%w: role %d", ErrFacts, f.Role)
	}
	for _, limit := range []struct {
		what     string
		got, max int
	}{
		{"parents", len(f.Parents), MaxParents},
		{"mirrors", len(f.Mirrors), MaxMirrors},
		{"epochs", len(f.Mirror.Epochs), MaxEpochs},
		{"bytes of device facts", len(f.Device), MaxDeviceFacts},
		{"bytes of boot id", len(f.BootID), MaxBootID},
		{"holes", len(f.Mirror.Holes), MaxListed},
		{"doubts", len(f.Mirror.Doubts), MaxListed},
		{"extents of quarantine", len(f.Mirror.Quarantine), MaxListed},
		{"bytes of reason", len(f.Mirror.ReadOnly.Reason), MaxReason},
		{"bad blocks", len(f.Mirror.ReadOnly.Blocks), MaxBadBlocks},
	} {
		if limit.got > limit.max {
			return fmt.Errorf("%w: %d %s, at most %d", ErrFacts, limit.got, limit.what, limit.max)
		}
	}
	for i, m := range f.Mirrors {
		named := func(o MirrorFacts) bool { return o.Name == m.Name }
		if len(m.Name) == 0 || len(m.Name) > MaxMirrorName || slices.IndexFunc(f.Mirrors, named) != i {
			return fmt.Errorf("%w: name %q of a mirror", ErrFacts, m.Name)
		}
	}
	for i, e := range f.Mirror.Epochs {
		if i > 0 && e <= f.Mirror.Epochs[i-1] {
			return fmt.Errorf("%w: epochs %d", ErrFacts, f.Mirror.Epochs)
		}
	}
	lists := f.Mirror.lists()
	for _, list := range lists.extents() {
		if i := slices.IndexFunc(list, func(e blockdev.Extent) bool { return !sane(e) }); i >= 0 {
			return fmt.Errorf("%w: extent %+v", ErrFacts, list[i])
		}
	}
	return f.checkReadOnly()
}

// checkReadOnly lets a mirror alone be read-only. Where it is not, nothing of a cause is left, which the
// record would not keep.
func (f *VolumeFacts) checkReadOnly() error {
	r := &f.Mirror.ReadOnly
	switch {
	case r.Class > ClassRot:
		return fmt.Errorf("%w: read-only for %v", ErrFacts, r.Class)
	case r.Class != 0 && f.Role != RoleMirror:
		return fmt.Errorf("%w: role %d and read-only", ErrFacts, f.Role)
	case r.Class == 0 && (r.Epoch != 0 || r.Since != 0 || r.Reason != "" || len(r.Blocks) > 0):
		return fmt.Errorf("%w: cause %q of read-only without its class", ErrFacts, r.Reason)
	case r.Class == 0 && len(f.Mirror.Quarantine) > 0:
		return fmt.Errorf("%w: quarantine and not read-only", ErrFacts)
	}
	if i := slices.IndexFunc(r.Blocks, func(b BadBlock) bool { return b.Offset < 0 }); i >= 0 {
		return fmt.Errorf("%w: bad block at %d", ErrFacts, r.Blocks[i].Offset)
	}
	return nil
}

// flagBits pairs each flag of a facts record with its field.
func (f *VolumeFacts) flagBits() [7]struct {
	bit   uint32
	field *bool
} {
	return [7]struct {
		bit   uint32
		field *bool
	}{
		{flagClean, &f.Clean}, {flagPaused, &f.Paused}, {flagRebuilt, &f.Rebuilt},
		{flagBulk, &f.Mirror.Bulk}, {flagInconsistent, &f.Mirror.Inconsistent},
		{flagInPlace, &f.Mirror.InPlace}, {flagUnproven, &f.Mirror.Unproven},
	}
}

func (f *VolumeFacts) flags() (flags uint32) {
	for _, b := range f.flagBits() {
		if *b.field {
			flags |= b.bit
		}
	}
	return flags
}

func (f *VolumeFacts) setFlags(flags uint32) {
	for _, b := range f.flagBits() {
		*b.field = flags&b.bit != 0
	}
}
