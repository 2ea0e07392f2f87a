package wire

// The messages of the protocol, in the order of a conversation. All integers are little-endian; offsets
// and lengths are bytes. docs/PROTOCOL.md draws them; encode.go and decode.go turn them into bytes.

// HashSize is the length of a SHA-256.
const HashSize = 32

// Hash is the SHA-256 of a raw (uncompressed) payload.
type Hash = [HashSize]byte

// Limits that decoders enforce before anything is allocated.
const (
	MaxName       = 255     // a volume's or node's name, bytes
	MaxText       = 1024    // a text for a person, bytes
	MaxBlock      = 1 << 20 // the largest block, and the largest raw payload of one Data frame
	MaxRun        = 1 << 20 // the largest contiguous run of Data frames (see Data.Follow)
	MaxOffer      = 512     // hashes in one Offer
	MaxEntries    = 1024    // entries in one Ack or Nak, extents in one Doubt, Rebase, Quarantine or Ended
	MaxHoles      = 1024    // extents of holes in one Commit
	MaxDevices    = 512     // device identities in one Open or Attach
	MaxZeroExtent = 1 << 30 // bytes that one Zero may cover
	MaxSuspects   = 512     // entries in one Suspect
	MaxTree       = 1 << 29 // bytes under one hash of an Offer of trees: MaxOffer blocks of MaxBlock
	MaxListed     = 1 << 18 // extents in all frames of one Ended
)

// Message is one of the pointer types below.
type Message interface {
	Type() Type
}

// Role is what a node is to a volume in this session.
type Role uint8

const (
	RoleSource Role = 1 // its content is sent
	RoleTarget Role = 2 // its content becomes the source's
)

// Hello is the first frame in both directions: the dialler's names the volume and its own role in it,
// the acceptor's answers with its own name. Nothing about a volume is told in it.
type Hello struct {
	Node      Hash // fixed random id of the node, zero where it has none (one-shot sync)
	Name      string
	Software  string // "blkmirror 0.1.0"
	Role      Role   // of the sender of this Hello
	Volume    string // dialler only
	BlockSize uint32 // wanted by the dialler, 0: the source decides
}

// OpenFlags are what the source (or the user behind it) asks of the target.
type OpenFlags uint32

const (
	OpenDryRun     OpenFlags = 1 << 0 // offers only: nothing is created, zeroed or written
	OpenVerify     OpenFlags = 1 << 1 // read back after writing
	OpenTrustIndex OpenFlags = 1 << 2 // offers may be answered from the index
	OpenGrowOK     OpenFlags = 1 << 3 // a target larger than the source is no error
)

// Open goes from source to target, whoever dialled.
type Open struct {
	Volume      string
	VolumeID    [16]byte // zero: one-shot sync
	Generation  [16]byte // zero: one-shot sync
	Incarnation uint64   // random, of the source's process
	BlockSize   uint32   // power of two, 4 KiB..1 MiB
	Size        int64    // of the source
	Fingerprint Hash     // changes whenever the source's facts change: progress is bound to it
	Flags       OpenFlags
	Devices     []Hash // what the source's device consists of, so that a target can refuse itself
}

// OpenedFlags tell the state of the target.
type OpenedFlags uint32

const (
	OpenedCreated   OpenedFlags = 1 << 0 // the image did not exist
	OpenedRecheck   OpenedFlags = 1 << 1 // what lies below ResumeFrom is being compared with the index
	OpenedIndexed   OpenedFlags = 1 << 2 // offers are answered from the index
	OpenedPageCache OpenedFlags = 1 << 3 // the target's file system refused O_DIRECT

	// Wishes of a target that dialled, which the source could not know when it sent Open.
	OpenedDryRun     OpenedFlags = 1 << 4 // as OpenDryRun
	OpenedNoCompress OpenedFlags = 1 << 5 // send payloads as they are
)

// Opened is the target's consent.
type Opened struct {
	Size       int64  // of the target's device
	DataEnd    int64  // at and behind it the target reads as zero
	ResumeFrom int64  // below it everything is durably equal; a multiple of the block size or Size; 0: from the start
	ResumeHash Hash   // of the target's block that ends at ResumeFrom
	Window     uint64 // first grant, bytes (see Window)
	MaxOffers  uint32 // offers that may be unanswered at once
	Flags      OpenedFlags
}

// Refused ends a handshake.
type Refused struct {
	Code Code
	Text string // what happened and what to do, for a person
}

// Offer lists the hashes of consecutive units, the first of which begins at Offset.
type Offer struct {
	Seq    uint64
	Offset int64
	Length uint32     // bytes covered; the last unit may be shorter
	Unit   uint32     // bytes that one hash covers: the block size in one-shot sync, a page or a block else, more with OfferTree
	Flags  OfferFlags // of a live session; 0 in one-shot sync
	Hashes []Hash
}

// OfferFlags tell what a comparison is for.
type OfferFlags uint32

const (
	// OfferVerify: a comparison that settles no doubt and takes nothing out of quarantine.
	OfferVerify OfferFlags = 1 << 0
	// OfferTree: each hash is the TreeHash over the blocks of one unit, which is a power of two of at most
	// MaxTree. Only with OfferVerify.
	OfferTree OfferFlags = 1 << 1
)

// Want answers an Offer: bit i of Bits (LSB first) is set where unit i differs.
type Want struct {
	Seq  uint64
	Bits []byte
}

// Codec tells how a payload is packed.
type Codec uint8

const (
	CodecRaw Codec = 1
	CodecLZ4 Codec = 2 // LZ4 block format
)

// Data carries one block, or a run of pages inside one.
//
// Follow is the number of raw bytes that come contiguously behind this payload in the Data frames that
// follow directly: the receiver can take one buffer for the whole run, and write it with one request.
// A frame with Follow > 0 must be followed by exactly such a frame. RawLength+Follow is at most MaxRun.
type Data struct {
	Seq       uint64
	Epoch     uint64 // 0: one-shot sync
	Offset    int64
	RawLength uint32
	Follow    uint32
	Codec     Codec
	Hash      Hash

	// Payload is what follows the frame's meta on the wire. Set by a sender; a receiver finds it nil
	// and reads PayloadLength bytes with Conn.ReadPayload.
	Payload       []byte
	PayloadLength int
}

// Zero makes a range read as zeroes. Flags bit 0: the space may be freed.
type Zero struct {
	Seq    uint64
	Epoch  uint64
	Offset int64
	Length int64
	Flags  uint32
}

// ZeroMayFree in Zero.Flags allows the target to give the space back.
const ZeroMayFree = 1 << 0

// Level says what an Ack promises.
type Level uint8

const (
	LevelReceived Level = 1
	LevelStaged   Level = 2
	LevelWritten  Level = 3
	LevelDurable  Level = 4
)

// Ack confirms Data and Zero frames, many at once.
type Ack struct {
	Entries []AckEntry
}

// AckEntry holds the checksum that the receiver computed itself: of a Data's raw bytes after unpacking,
// of a Zero its ZeroHash.
type AckEntry struct {
	Seq    uint64
	Offset int64
	Level  Level
	Hash   Hash
}

// NakCause tells why a frame was not taken.
type NakCause uint8

const (
	NakHash     NakCause = 1 // the raw bytes have another SHA-256 than the frame says
	NakCodec    NakCause = 2 // the payload could not be unpacked to RawLength bytes
	NakReadBack NakCause = 3 // the device returned other bytes than were written
	NakRoom     NakCause = 4 // staging has no room for it, and nothing left to apply that would make room
)

// Nak says that frames were not taken: nothing of them counts as written.
type Nak struct {
	Entries []NakEntry
}

// NakEntry names one frame that was not taken. Hash is the checksum that the receiver found.
type NakEntry struct {
	Seq    uint64
	Offset int64
	Cause  NakCause
	Hash   Hash
}

// Flush asks the target to make everything below Position durable and to remember it as progress.
type Flush struct {
	Number   uint64 // rises with every Flush
	Position int64  // every byte below is confirmed equal by source and target
	LastHash Hash   // of the block that ends at Position
}

// Flushed answers when it is durable.
type Flushed struct {
	Number   uint64
	Position int64
}

// Commit says that all was sent: how many records, and the Chain over them. In one-shot sync Epoch, Base
// and Pages are 0 and there are no holes.
type Commit struct {
	Epoch   uint64
	Base    uint64 // the cut on which it stands
	Records uint64 // in staging and chain, Rebases included
	Pages   uint64 // distinct pages that the epoch brings
	Chain   Hash
	Flags   CommitFlags
	Holes   []Extent // pages that the primary could not read, which keep the mirror's content; at most MaxHoles
}

// CommitFlags are what the source knows of the content that it sent.
type CommitFlags uint32

// CommitSourceChanged: the source was written to since the session opened, so what was sent may be a
// mixture of states.
const CommitSourceChanged CommitFlags = 1 << 0

// CommitUnproven: the primary's device may have been written to behind its back, and the comparison that
// tells is not done yet.
const CommitUnproven CommitFlags = 1 << 1

// Committed answers when all records are durable and the target's own count and chain were the same.
type Committed struct {
	Epoch   uint64
	Records uint64
	Chain   Hash
}

// Doubt answers a Commit in place of Committed: ranges that the target can no longer vouch for. The
// source ships them and sends Commit again. More is set when another Doubt follows directly.
type Doubt struct {
	More    bool
	Extents []Extent
}

// Extent is a range of bytes of the volume.
type Extent struct {
	Offset, Length int64
}

// Ping and Pong prove life and measure the round trip. Conn handles both itself.
type Ping struct{ Sent int64 } // the sender's own clock, ns; comes back unread

// Pong answers a Ping with its value.
type Pong struct{ Sent int64 }

// Window grants: since the session began the peer may have sent Granted bytes of Cost (see Cost).
type Window struct{ Granted uint64 }

// Halt ends a session because something is wrong at the sender's side or in what it received.
type Halt struct {
	Code Code
	Text string
}

// Bye ends a session that is to go on later, or that is done.
type Bye struct {
	Code Code // CodeDone or CodeStopped
	Text string
}
