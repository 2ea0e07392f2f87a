package engine

import (
	"time"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// A node in steps: the daemon's own code, without a goroutine, a clock or the machine. What the daemon's
// routines do in a loop, somebody else calls here, one thing at a time: the simulator (engine/sim), which runs
// whole clusters in one thread, each activity in a coroutine of its own.
//
//	steppedprimary.go   a primary: its clients' requests, checkpoints, index, comparison
//	steppedshipper.go   what it does for one mirror
//	steppedmirror.go    a mirror, and a session of its primary
//
// A device may hand the thread to another coroutine in the middle of a request; nothing else does. So no mutex
// is held across a request to a device, and who waits for somebody else's step waits by Surroundings.Wait.

// Device is what a volume lies on.
type Device = device

// BlockIndex is what a volume wants of journal.Index.
type BlockIndex = blockIndex

// Conn is what a session needs of a connection; *wire.Conn is one.
type Conn interface {
	Send(ms ...wire.Message) error
	Next() (wire.Message, error)  // not called in steps
	ReadPayload(dst []byte) error // of the Data that is being handled
	Close(cause error)
	Established()
	Loopback() bool // both ends are on one machine: there is no wire to spare
	RTT() time.Duration
	Sent() int64
	Received() int64
}

// Surroundings are what a node in steps gets instead of a machine. What may be nil says so.
type Surroundings struct {
	FS     journal.FS
	Device func() (Device, error)               // opens the node's one device
	Index  func(dir string) (BlockIndex, error) // opens the index, as it was left
	Room   func() (int64, error)                // free bytes of the state directory; of a mirror
	BootID func() (string, error)
	Now    func() time.Time
	Random func([]byte)

	// Wait returns when try has returned true. try changes nothing where it returns false. The daemon has
	// none: there the ordinary locks and channels block.
	Wait func(try func() bool)

	Log   func(string)
	Sizes Sizes

	RemoveIndex func(dir string) error // removes a closed index, and all it holds; may be nil where that is never needed
}

// Sizes are what has to be small where volumes are. Zero stands for what the daemon has. Bytes, save where it
// says otherwise.
type Sizes struct {
	// Of every journal.
	Region                 int64 // unit of durable marks; a power of two, and always the same for a journal
	Segment                int64
	ReserveMin, ReserveMax int64 // room kept for the next checkpoint

	// Of a primary.
	CaptureMemory, CaptureSpool int64
	CheckpointBytes             int64  // of marks and facts since the last checkpoint, that make one due
	CheckpointHot               int    // hot regions that make one due
	ZeroPiece                   int64  // a longer zeroing is several writes
	IndexSync                   int64  // indexed between two syncs of the index
	ShipBatch                   int64  // that a reader gathers before it sends
	ShipMemory                  int64  // unacknowledged, and being read; at least a claim of 1 MiB, or the volume
	OfferBytes                  int64  // that one offer covers, and that a scrub reads in one go; at least a block
	PageOffers                  int64  // in doubt, up to which pages are offered and not blocks
	BulkFlush                   int64  // sent between two flushes of a bulk pass
	SmallRest                   int64  // left after a bulk pass that an ordinary epoch is to end
	VerifyTree                  uint64 // blocks that a verify compares by one hash first

	// Of a mirror.
	Window      int64 // unanswered payload that the primary is granted; at least wire.MaxRun
	StagingSync int64 // staged between two syncs
	Chunk       int64 // unit of reading, writing and buffers; a power of two, not below the block size
}

// journal are the options of the journal of a node in steps.
func (s *Surroundings) journal() journal.VolumeOptions {
	o := s.Sizes.journal()
	o.Random = s.Random
	return o
}

// journal are the options of a volume's journal.
func (z *Sizes) journal() journal.VolumeOptions {
	return journal.VolumeOptions{SegmentSize: z.Segment, RegionSize: z.Region, ReserveMin: z.ReserveMin, ReserveMax: z.ReserveMax}
}
