package wire

// The messages of a probe, which is no session: it asks how one would fare (docs/PROTOCOL.md, "A probe").

// RoleProbe looks, and has no volume. Both sides of a probe have it.
const RoleProbe Role = 5

// Survey asks for what Surveyed tells.
type Survey struct {
	From uint32 // the first volume that is wanted, in the order of their names
}

// Surveyed is what a node tells to a peer that probes it.
type Surveyed struct {
	Clock      int64 // Unix time, ns, when it was written
	ReceiveMax int64 // bytes, of tcp_rmem; 0: not known
	SendMax    int64 // bytes, of tcp_wmem
	HashSpeed  int64 // bytes a second, one processor; 0: not known
	CPUs       uint16
	Version    string // of the software
	Congestion string // control, as the kernel calls it
	More       bool   // there are volumes behind these
	Volumes    []SurveyedVolume
}

// SurveyedVolume is a volume that the peer was given.
type SurveyedVolume struct {
	Size  int64
	Role  Role // RolePrimary, RoleMirror; 0: none yet
	Name  string
	State string
}

// Direction of a load test, as its dialler sees it.
type Direction uint8

const (
	LoadTo   Direction = 1 // the dialler sends
	LoadFrom Direction = 2 // the acceptor sends
)

// Load asks for a load test, which ends with whatever of the two is over first.
type Load struct {
	Direction Direction
	Millis    uint32
	Bytes     uint64
}

// Loaded tells what has come so far, or, from the side that sends, that this was all.
type Loaded struct {
	Bytes  uint64 // of payload
	Nanos  uint64 // since the Load was said or read
	Resent uint64 // bytes that the kernel of the side that sends sent again; 0 from the other
	Flags  LoadedFlags
}

// LoadedFlags tell where in a load test a Loaded stands.
type LoadedFlags uint32

// LoadedLast: nothing comes behind it.
const LoadedLast LoadedFlags = 1 << 0

// Ballast is what a load test sends. Its payload stays in the stream, as that of Data.
type Ballast struct {
	Seq           uint64
	Payload       []byte
	PayloadLength int
}

// Limits of probes.
const (
	MaxState      = 32       // a word for the state of a volume, bytes
	MaxVolumes    = 128      // in one Surveyed
	MaxBallast    = 16 << 10 // payload of one Ballast
	MaxLoadMillis = 10_000   // of a load test
	MaxLoadBytes  = 64 << 30
	MaxUnsurveyed = 16 // Surveys without an answer
)

// Type returns the number under which the message travels.
func (*Survey) Type() Type   { return TypeSurvey }
func (*Surveyed) Type() Type { return TypeSurveyed }
func (*Load) Type() Type     { return TypeLoad }
func (*Loaded) Type() Type   { return TypeLoaded }
func (*Ballast) Type() Type  { return TypeBallast }
