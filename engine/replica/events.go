package replica

import (
	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// Event is one of the pointer types below.
type Event interface{ event() }

// What a primary sends, in the order in which it was sent. While Core.Holding is true none of them may be
// given to the Core: the one before waits.
type (
	// Attach begins a session. Admit has let it pass, the device is open and not smaller than the volume.
	Attach struct {
		Message *wire.Attach
		Node    [32]byte // of the primary
		Fresh   bool     // the device reads as zero throughout
	}
	// Rebase is whole: what Join made of its frames.
	Rebase struct{ Message *wire.Rebase }
	// Record is a Data or Zero of an epoch, and how it was found.
	Record struct {
		Data  *wire.Data
		Zero  *wire.Zero
		Found wire.Hash     // the checksum that was computed here
		Cause wire.NakCause // 0: the record is what it says
	}
	// Commit comes with the pages that are staged, which are only read.
	Commit struct {
		Message *wire.Commit
		Pages   *blockdev.PageSet
	}
	// Direct is a run of Data, or a Zero, to be written in place.
	Direct struct{}
	Offer  struct{ Message *wire.Offer }
	Bulk   struct{ Message *wire.Bulk }
	Flush  struct{ Message *wire.Flush }
	// Suspect comes with the present time, in Unix seconds.
	Suspect struct {
		Message *wire.Suspect
		Now     int64
	}
	Repair struct{ Message *wire.Repair }
)

// What happens at the mirror.
type (
	// Reserved answers Reserve.
	Reserved struct{ Enough bool }
	// Written says that a Direct was written and answered, and where: what of it was damaged is left out.
	Written struct{ Extents []blockdev.Extent }
	// Compared says that an Offer was answered. Equal are the ranges whose content was the primary's.
	Compared struct{ Equal []blockdev.Extent }
	// Applied says that an epoch is on the device, which was flushed, and the index synced. Damaged are
	// ranges that do not hold what was committed, since its staged payload is another one, or since the device
	// gives back something else; Cause says more of them.
	Applied struct {
		Epoch   uint64
		Damaged []blockdev.Extent
		Cause   journal.ReadOnly
	}
	// Mismatched says that ranges of the device are not what they must be.
	Mismatched struct {
		Cause   journal.ReadOnly
		Extents []blockdev.Extent
	}
	// Unreadable says that the device gives an error where these ranges are read. Wanted: they were offered, and
	// answered as different, so that they will be brought.
	Unreadable struct {
		Cause   journal.ReadOnly
		Extents []blockdev.Extent
		Wanted  bool
	}
	// Lost says that the session is over, and that nothing of it is still to be written.
	Lost struct{}
	// Measured says how much staging may hold, and holds. It follows whatever changed that, save Append.
	Measured struct{ Limit, Held int64 }
	// Doubted names what the mirror can no longer vouch for.
	Doubted struct{ Extents []blockdev.Extent }
	// Comparing says that the mirror's own comparison of device and index has begun or ended; with the
	// present boot where it has come to its end.
	Comparing struct {
		Running bool
		BootID  string
	}
	// Pause is a person's.
	Pause struct{ Paused bool }
)

func (*Attach) event()     {}
func (*Rebase) event()     {}
func (*Record) event()     {}
func (*Commit) event()     {}
func (*Direct) event()     {}
func (*Offer) event()      {}
func (*Bulk) event()       {}
func (*Flush) event()      {}
func (*Suspect) event()    {}
func (*Repair) event()     {}
func (*Mismatched) event() {}
func (*Unreadable) event() {}
func (*Reserved) event()   {}
func (*Written) event()    {}
func (*Compared) event()   {}
func (*Applied) event()    {}
func (*Lost) event()       {}
func (*Measured) event()   {}
func (*Doubted) event()    {}
func (*Comparing) event()  {}
func (*Pause) event()      {}

// Action is one of the types below. Actions are carried out in their order, each before the next; those
// that say "begins" only begin something that ends with an event.
type Action interface{ action() }

type (
	// DropStaging removes the staging that is not committed.
	DropStaging struct{}
	// BeginStaging makes a new one.
	BeginStaging struct{ Incarnation, Base, Epoch uint64 }
	// RebaseStaging carries it over, durably.
	RebaseStaging struct {
		Seq, Epoch uint64
		Voids      []blockdev.Extent
		Point      journal.StagingPoint
	}
	// Append puts the record of the event into staging.
	Append struct{}
	// SyncStaging makes it durable.
	SyncStaging struct{ Point journal.StagingPoint }
	// SealStaging ends it, durably. It waits for its place among those to be applied.
	SealStaging struct {
		Base, Pages uint64
		Point       journal.StagingPoint
	}
	// Reserve makes sure that the device has room for all that is staged. Reserved answers, before anything
	// else happens.
	Reserve struct{ Epoch uint64 }
	// Apply begins to bring a committed epoch to the device; Applied ends it. Only the oldest is applied.
	// ReadBack: what was written is read back and compared, whatever the settings say.
	Apply struct {
		Epoch    uint64
		ReadBack bool
	}
	// RemoveStaging removes the staging of an epoch that was applied.
	RemoveStaging struct{ Epoch uint64 }

	// Journal makes facts durable.
	Journal struct{ Facts journal.VolumeFacts }
	// DropIndex forgets all hashes, durably.
	DropIndex struct{}
	// FlushDevice makes what was written to the device durable, and then the index.
	FlushDevice struct{}
	// FlagDevice sets or clears the kernel's read-only flag of the device, with which nobody can write, nor can the
	// mirror. It may fail.
	FlagDevice struct{ ReadOnly bool }

	// Write begins to write the run of the event in place, and to answer it; Written ends it. What
	// overlaps with one that is under way comes after it. ReadBack as with Apply.
	Write struct{ ReadBack bool }
	// Compare begins to answer an Offer; Compared ends it.
	Compare struct{ Offer *wire.Offer }

	// Ack and Nak answer a record. They may be gathered, but go out before any later Send.
	Ack struct{ Entry wire.AckEntry }
	Nak struct{ Entry wire.NakEntry }
	// Send answers with a message. The shell completes an Attached by what it knows of the device.
	Send struct{ Message wire.Message }
	// End ends the session with Halt.
	End struct {
		Code wire.Code
		Text string
	}
)

func (DropStaging) action()   {}
func (BeginStaging) action()  {}
func (RebaseStaging) action() {}
func (Append) action()        {}
func (SyncStaging) action()   {}
func (SealStaging) action()   {}
func (Reserve) action()       {}
func (Apply) action()         {}
func (RemoveStaging) action() {}
func (Journal) action()       {}
func (DropIndex) action()     {}
func (FlushDevice) action()   {}
func (FlagDevice) action()    {}
func (Write) action()         {}
func (Compare) action()       {}
func (Ack) action()           {}
func (Nak) action()           {}
func (Send) action()          {}
func (End) action()           {}
