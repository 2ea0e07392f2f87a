package wire

// The messages of a live session: a primary and one mirror of a volume, over any number of connections.
// Offer, Want, Data, Zero, Ack, Nak, Flush, Flushed, Commit, Committed, Doubt and those that end or
// carry a session are shared with one-shot sync (message.go). docs/LIVE.md tells the conversation.

const (
	RolePrimary Role = 3 // takes the writes
	RoleMirror  Role = 4 // holds a copy
)

// Generation is the history that a volume belongs to.
type Generation struct {
	ID        [16]byte // random; zero: none yet
	Counter   uint64   // one above its parent's
	Parent    [16]byte // zero: none
	ParentCut uint64   // the cut of the parent at which this history begins; 0: at no cut
}

// Attach goes from primary to mirror after the Hellos.
type Attach struct {
	Volume      string
	VolumeID    [16]byte
	Generation  Generation
	Incarnation uint64 // random, of the primary's process; never 0
	Connection  uint64 // rises with every connection of this incarnation: a higher one replaces a lower
	Size        int64
	BlockSize   uint32
	Flags       AttachFlags
	Committed   uint64 // the mirror's last cut as the primary recorded it; 0: none
	LastSent    uint64 // the highest number that was ever sent to this mirror; 0: none
	Devices     []Hash // as in Open
}

// AttachFlags are what the primary asks of the mirror.
type AttachFlags uint32

const (
	// AttachOverwrite: a person said that this mirror's content may be replaced although it is of another
	// history.
	AttachOverwrite AttachFlags = 1 << 0
	// AttachRebuilt: the primary lost its journal and asks who it is. VolumeID and Generation are its own
	// and count for nothing; the mirror answers with what it holds, changes nothing, and the primary comes
	// again with that.
	AttachRebuilt AttachFlags = 1 << 1
)

// Attached is the mirror's consent, and what it holds.
type Attached struct {
	VolumeID   [16]byte // zero: it holds nothing yet and takes the primary's on
	Generation Generation
	LastCut    uint64 // its committed cut, or where AttachedBulk is set the number of its last bulk Flush; 0: none
	Applied    uint64 // the cut that its device alone holds
	InPlace    uint64 // the number of the last Bulk, where it was allowed to write in place since LastCut; 0: it was not
	Flags      AttachedFlags
	MaxOffers  uint32 // as in Opened
	Size       int64  // of its device
	DataEnd    int64  // its device reads as zero at and behind it; only told where AttachedBlank
	Room       int64  // bytes that staging could still take
	Window     uint64 // first grant, see Window

	// An epoch that is staged in part; Number 0: none. Everything up to StagedSeq is durable.
	StagedIncarnation uint64
	StagedBase        uint64
	StagedNumber      uint64
	StagedSeq         uint64 // of its last record
	StagedRecords     uint64
	StagedChain       Hash // over these records
}

// AttachedFlags tell the state of a mirror.
type AttachedFlags uint32

const (
	AttachedBulk         AttachedFlags = 1 << 0 // LastCut is the number of a bulk Flush, and no cut
	AttachedInconsistent AttachedFlags = 1 << 1 // the device is no state that the primary ever had
	AttachedBlank        AttachedFlags = 1 << 2 // nothing was ever replicated into it: see DataEnd
	AttachedPageCache    AttachedFlags = 1 << 3 // as OpenedPageCache
	AttachedDoubts       AttachedFlags = 1 << 4 // Doubt frames follow, or may follow later
	AttachedReadOnly     AttachedFlags = 1 << 5 // nothing new is taken; Quarantine frames follow and tell why
)

// Rebase begins an epoch, carries a staged part over to a later cut, or drops it. It is a record of the
// staging and of the chain (Chain.AddRebase).
//
//	Old = 0, New > 0   a new epoch with nothing staged; what was staged of another one is dropped
//	Old > 0, New > 0   what is staged for Old is now part of New, except Voids, which New will bring anew
//	Old > 0, New = 0   what is staged for Old is dropped
//
// Where the void pages do not fit into one frame, several follow directly, More set in all but the last;
// they take effect together with the last.
type Rebase struct {
	Seq   uint64
	Base  uint64 // the cut on which New stands
	Old   uint64
	New   uint64
	More  bool
	Voids []Extent // whole pages, ascending; at most MaxEntries
}

// Synced says that everything up to a record of an epoch's staging is durable at the mirror.
type Synced struct {
	Epoch   uint64
	Seq     uint64
	Records uint64
	Chain   Hash
}

// Bulk says that from here on Data and Zero, of epoch 0, are to be written in place. It drops what is
// staged. The mirror flags itself inconsistent, and keeps Number, durably, before it writes the first byte: a
// primary that went back in time finds by it that it knows nothing of what is being written. A Flush ends
// it, and the next Bulk begins behind it.
type Bulk struct {
	Base   uint64 // the cut or bulk number that the mirror told in Attached or confirmed since
	Number uint64 // of the Flush that ends it, above Base
}

// Report tells the primary how the mirror stands: at once after a change of Applied, and when room was
// found or lost.
type Report struct {
	Committed  uint64
	Applied    uint64 // the cut that the device alone holds, durably
	Room       int64  // bytes that staging could still take
	Staged     int64  // bytes that staging holds, applied ones not counted
	Comparing  bool   // the mirror is still comparing its own device with its index
	Quarantine uint32 // blocks in quarantine
}

// Suspect tells the mirror what it has to put into quarantine: blocks that stay different at it. It is the
// first message of a session, and is said with every connection until Attached tells that the mirror is
// read-only. The mirror makes that durable and ends the session (CodeIntegrity).
type Suspect struct {
	// Class of the mismatch, here and in Quarantine: 1 payload, 2 acknowledgement, 3 staging, 4 the mirror's
	// device, 5 verify, 6 rot.
	Class   uint8
	Epoch   uint64         // that was shipped or compared
	Entries []SuspectEntry // ascending and disjoint; 1 to MaxSuspects
}

// SuspectEntry is a block, a part of one, or the range of a Zero.
type SuspectEntry struct {
	Offset int64
	Length uint32
	Want   Hash // the primary's
	Got    Hash // what the mirror told
}

// Quarantine follows an Attached with AttachedReadOnly: why nothing new is taken, and what is in quarantine.
// Where the extents do not fit into one frame, several follow directly, More set in all but the last; each
// repeats the head.
type Quarantine struct {
	Class   uint8 // as in Suspect
	More    bool
	Epoch   uint64
	Since   int64  // by the mirror's clock, Unix seconds
	Reason  string // for a person
	Extents []Extent
}

// Repair lets a read-only mirror take part in this session: it answers offers and stages, so that what is in
// quarantine leaves it. It ends with the connection.
type Repair struct {
	All bool // every page is to be compared, of a mirror in any state
}

// Fetch asks the peer, whichever it is, for a block that must have a hash: the sender's own is rotten. One at a time in
// each direction.
type Fetch struct {
	Offset int64
	Length uint32 // at most MaxBlock
	Hash   Hash
}

// Fetched answers a Fetch: with the block where what the peer holds has the hash, without a payload where it has
// another one. Payloads are as in Data, and never packed. They cost nothing of a window: somebody waits for each.
type Fetched struct {
	Offset        int64
	Length        uint32
	Hash          Hash // that was asked for
	Payload       []byte
	PayloadLength int
}

// Ask has the primary do a job for this mirror, because a person at the mirror's node wants it. It is said with every
// connection until Ended has come, always with the same fields.
type Ask struct {
	ID     [16]byte // random, of this request
	Job    Job
	Flags  AskFlags // of a repair
	From   AskFrom  // of a repair
	Rate   int64    // of a verify: bytes a second; 0: no limit
	Mirror string   // the name that the person gave to this mirror; "": none
}

// Job is what is asked for.
type Job uint8

const (
	JobVerify Job = 1
	JobRepair Job = 2
	JobEnd    Job = 3 // nobody wants the job of this id any more
)

// AskFlags are how a repair is wanted.
type AskFlags uint8

const (
	AskAll    AskFlags = 1 << 0
	AskDryRun AskFlags = 1 << 1
)

// AskFrom is who is right in a repair.
type AskFrom uint16

const (
	FromNobody  AskFrom = 0 // the person did not say
	FromPrimary AskFrom = 1
	FromMirror  AskFrom = 2
)

// Told tells how far a job is; the first one tells that the Ask is taken.
type Told struct {
	ID          [16]byte
	Done, Total int64  // bytes
	Mirror      string // the primary's name for this mirror
}

// Ended tells what a job came to. Where the extents do not fit into one frame there are several, EndedMore set in all but
// the last; each repeats the head.
type Ended struct {
	ID      [16]byte
	Flags   EndedFlags
	Outcome Outcome  // where EndedResult
	Failure Failure  // where EndedError
	Differ  []Extent // at the mirror; with Rot at most MaxEntries
	Rot     []Extent // of the primary's own
}

// EndedFlags say what there is.
type EndedFlags uint8

const (
	EndedMore    EndedFlags = 1 << 0 // another frame follows
	EndedResult  EndedFlags = 1 << 1
	EndedNothing EndedFlags = 1 << 2 // there was nothing to repair
	EndedError   EndedFlags = 1 << 3
)

// Outcome is the result of a job, but for the extents. What the job does not count is 0.
type Outcome struct {
	Mirror      string // the primary's name for this mirror
	Compared    int64  // bytes
	Skipped     int64  // of a verify, bytes
	ResumedAt   int64  // of a verify, where one that was cut off was taken up
	Blocks      int64  // of a repair, in question
	Shipped     int64  // of a repair, bytes
	Nanoseconds int64
}

// Failure is an error for a person.
type Failure struct {
	Kind               uint8 // what has to be done about it: 0 to lastKind
	Op, On, Text, Next string
}

// Door tells the mirror where its primary can be knocked at: at the address that the connection comes from, and
// this port. Once in a session, at any time behind Attached.
type Door struct {
	Port uint16 // never 0
}

// Knock is what a mirror that was started has to say to its last primary, behind the Hellos of a connection of
// its own: come back. It is answered with Bye (done), or Refused, and gives no right: the primary dials the
// address that it was told by a person, if it knows the volume and the mirror's node at all.
type Knock struct {
	VolumeID [16]byte // never zero
}
