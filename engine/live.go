package engine

import (
	"cmp"
	"context"
	"time"
)

// VolumeConfig is what a user says of one volume.
type VolumeConfig struct {
	Path      string
	Role      string         // "primary", "mirror"; "": primary where Export or Mirrors are given. A durable role rules
	Export    string         // unix:PATH or tcp:HOST:PORT; "": none
	Mirrors   []MirrorConfig // of a primary
	Interval  time.Duration  // between cuts; 0: the next as soon as the last is committed; at least minInterval else
	BlockSize int            // of a new volume; 0: DefaultBlockSize
	MaxLag    time.Duration  // beyond it a mirror is `lagging`; 0: defaultMaxLag

	OnStagingFull string // "hold" (also ""), "bulk": asked of a primary
	OnReboot      string // "compare" (also ""), "trust"
	VerifyWrites  string // "off" (also ""), "readback": of a mirror, which reads back what it wrote
	OnMismatch    string // "continue" (also ""), "freeze": of a primary, whose export refuses writes while a mirror is read-only
	StagingLimit  int64  // bytes, of a mirror; 0: 80 % of what is free

	Rate       Rates  // of a primary: what each of its connections may carry, where the mirror has none of its own; none: no limit
	Congestion string // of its connections; "" and "auto": BBR where it can be had, "default": the kernel's

	Scrub time.Duration // between scrubs; 0: DefaultScrub; negative: none
}

// MirrorConfig is one mirror of a primary. Its name keys what the journal knows of it.
type MirrorConfig struct {
	Name    string
	Address string // HOST:PORT
	Rate    Rates  // what the connection to it may carry; none: VolumeConfig.Rate
}

// is tells whether both are one mirror, however fast.
func (m MirrorConfig) is(o MirrorConfig) bool { return m.Name == o.Name && m.Address == o.Address }

// The bounds and defaults of a volume's settings (DESIGN §11).
const (
	DefaultInterval = time.Second
	MinInterval     = 10 * time.Millisecond
	MaxInterval     = 24 * time.Hour
	DefaultMaxLag   = 60 * time.Second
)

// liveVolume is a volume with a role: a primary or a mirror. Methods are safe for concurrent use.
type liveVolume interface {
	// fill tells its state; Name and Device are set already.
	fill(*VolumeStatus)
	// cut takes a cut now and, where wait is set, returns when every mirror has committed and applied it or a
	// later one. ctx bounds the wait; the error then names the mirrors that are missing (KindNetwork).
	cut(ctx context.Context, wait bool) (uint64, error)
	pause() error
	// resume ends a pause and asks a mirror that holds for another try. overwrite names a mirror whose
	// content may be replaced although its history is another; "": none.
	resume(overwrite string) error
	rebuild() error
	// verify compares mirrors with the primary, each at its committed cut, and ships nothing. One result for each
	// mirror that was compared; a difference is no error. It ends early with ctx, or when the volume is stopped.
	// The function is told how far it is; any goroutine may call it, and none waits in it.
	verify(context.Context, VerifyOptions, func(CheckProgress)) ([]VerifyResult, error)
	// repair brings what a mirror has in quarantine and returns when the mirror is not read-only any more. For the
	// rest as verify.
	repair(context.Context, RepairOptions, func(CheckProgress)) ([]RepairResult, error)
	// scrub compares the node's own device with its own index. One result, also beside an error; for the rest as verify.
	scrub(context.Context, ScrubOptions, func(CheckProgress)) ([]ScrubResult, error)
	// tune takes changed settings up. What is fixed while the volume is open (path, export, role, block
	// size) is not looked at.
	tune(VolumeConfig)
	// stop ends it cleanly, within seconds: ctx bounds what may be waited for.
	stop(ctx context.Context) error
}

// MirrorStatus is one mirror as its primary sees it, or the primary as its mirror sees it.
type MirrorStatus struct {
	Name           string           `json:"name,omitempty"`          // as configured: what `resume --overwrite-mirror` wants
	Node           string           `json:"node"`                    // what it calls itself
	Peer           string           `json:"peer,omitempty"`          // its name among those that are trusted (keys)
	Key            string           `json:"key,omitempty"`           // by which it proved itself: its ID, or the name in its certificate
	Warnings       []string         `json:"warnings,omitempty"`      // of its key and what it may do
	KeyDaysLeft    *float64         `json:"key_days_left,omitempty"` // up to the nearest end of its rights and of certificates; none: no end
	Address        string           `json:"address"`
	State          string           `json:"state"`
	Reason         string           `json:"reason,omitempty"` // why it is in that state, and what to do
	CommittedEpoch uint64           `json:"committed_epoch"`
	AppliedEpoch   uint64           `json:"applied_epoch"`
	LagSeconds     float64          `json:"lag_seconds"`
	LagBytes       int64            `json:"lag_bytes"`
	NeedsBytes     int64            `json:"needs_bytes"`
	StagedBytes    int64            `json:"staged_bytes"`
	RoomMissing    int64            `json:"room_missing_bytes,omitempty"` // holding: what staging lacks
	Holes          int64            `json:"holes"`
	RTTMillis      float64          `json:"rtt_ms"`
	ShippedBytes   int64            `json:"shipped_bytes"`  // raw bytes of Data sent
	OfferedBytes   int64            `json:"offered_bytes"`  // reconciled by hash
	CapturedBytes  int64            `json:"captured_bytes"` // waiting in memory and spool
	GivenUp        int64            `json:"given_up"`       // cuts given up
	WireBytes      int64            `json:"wire_bytes"`
	RetriedBlocks  int64            `json:"retried_blocks"`
	Reconnects     int64            `json:"reconnects"`
	ReadOnly       *ReadOnlyCause   `json:"read_only,omitempty"`
	Mismatches     MismatchCounts   `json:"mismatches"`
	LastDisconnect *DisconnectCause `json:"last_disconnect"`
	Flow           *FlowStatus      `json:"flow,omitempty"`  // of a mirror, while it is connected
	Probe          *ProbeStatus     `json:"probe,omitempty"` // of a mirror: whether the next connection would come about
}

// Called is what people know it by: as the configuration says, or as it is trusted; what it calls itself only where nobody
// has to prove who he is.
func (m *MirrorStatus) Called() string { return cmp.Or(m.Name, m.Peer, m.Node) }

// MismatchCounts are the mismatches by what was found to be their cause (docs/FAILSAFE.md), since the start.
type MismatchCounts struct {
	Wire   int64 `json:"wire"`   // sending it again cleared it
	Source int64 `json:"source"` // what the primary read or kept was not the same twice, or cannot be read
	Mirror int64 `json:"mirror"` // what the mirror wrote or staged is not what it got, or cannot be read
}

// DisconnectCause says why a session was last lost.
type DisconnectCause struct {
	Class string `json:"class"`
	Error string `json:"error"`
	At    string `json:"at"`             // RFC 3339
	Next  string `json:"next,omitempty"` // what a person can do
}

// ReadOnlyCause says why a volume is read-only.
type ReadOnlyCause struct {
	Reason string  `json:"reason"`
	Class  string  `json:"class"`
	Blocks []int64 `json:"blocks"` // their numbers; the first ones, where there are many
	Since  string  `json:"since"`  // RFC 3339

	Quarantined int64 `json:"quarantined_blocks"` // how many there are
}

// VerifyOptions say what is compared.
type VerifyOptions struct {
	Mirror string // its name; "": every one
	Rate   int64  // bytes a second that are read; 0: no limit
}

// RepairOptions say what is repaired.
type RepairOptions struct {
	Mirror string // its name; "": every one
	All    bool   // not only what is in quarantine, and in any state of the mirror
	DryRun bool   // only compare
	From   string // "": what is not rotten at the primary is brought; "primary": also what is; "mirror": that is taken from a mirror
}

// CheckProgress tells how far a verify or a repair is with one mirror. Total may grow.
type CheckProgress struct {
	Mirror string `json:"mirror"`
	Done   int64  `json:"done_bytes"`
	Total  int64  `json:"total_bytes"`
}

// VerifyResult is what a verify came to with one mirror. `verify --json` prints it: only ever added to.
type VerifyResult struct {
	Volume       string          `json:"volume"`
	Mirror       string          `json:"mirror"`
	CheckedBytes int64           `json:"checked_bytes"`
	SkippedBytes int64           `json:"skipped_bytes"` // written all the time, or not shipped yet: nothing is known of them
	Extents      []CheckedExtent `json:"extents"`       // what is wrong at the mirror
	Rot          []CheckedExtent `json:"rot,omitempty"` // what is wrong at the primary, as its own index tells
	Seconds      float64         `json:"seconds"`
	ResumedAt    int64           `json:"resumed_at,omitempty"` // where an interrupted one was taken up
}

// CheckedExtent is a range of the volume.
type CheckedExtent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// RepairResult is what a repair came to with one mirror. `repair --json` prints it: only ever added to.
type RepairResult struct {
	Volume        string          `json:"volume"`
	Mirror        string          `json:"mirror"`
	Nothing       bool            `json:"nothing"` // there was nothing to repair
	Blocks        int64           `json:"blocks"`  // in question: those in quarantine, with All every one
	ComparedBytes int64           `json:"compared_bytes"`
	ShippedBytes  int64           `json:"shipped_bytes"`
	Extents       []CheckedExtent `json:"extents"` // what differed
	Seconds       float64         `json:"seconds"`
}
