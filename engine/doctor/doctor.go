// Package doctor says what measurements of the way to another node mean (docs/DOCTOR.md). It is pure: Measured
// goes in, findings come out, and every threshold stands here. The engine measures.
package doctor

import (
	"net/netip"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// Measured is all that was measured. What could not be is zero or nil.
type Measured struct {
	Name        Name
	Addresses   []Address
	Identity    *Identity // nil: plain text, or nobody answered
	Peer        *Peer     // nil: nobody answered
	Clock       *Clock
	Idle        []time.Duration // round trips while nothing else is sent
	To, From    *Load           // towards the other node, and back
	Path        *wire.Path      // the kernel's view of it
	Here        Sockets
	Disks       []Disk
	Hash, Pack  float64 // SHA-256 and lz4 on all processors, bytes a second
	Disconnects []Disconnect
}

// Failure says why something did not work.
type Failure struct {
	Class wire.Class
	Text  string
	Next  string // what a person can do
}

// Name is the way from a name to addresses.
type Name struct {
	Host    string
	Took    time.Duration
	Failure *Failure
}

// Address is one of those that the name has.
type Address struct {
	Address   netip.AddrPort
	Connect   time.Duration // of TCP
	Refusal   *Failure      // of TCP
	Handshake time.Duration // from TCP to the node's answer
	Failure   *Failure      // of the handshake
	Lost      int           // bytes of segments that vanished in it, where small ones passed; 0: none did
	Segment   int           // the largest that was used after that
}

// Identity is who answered, as TLS proved.
type Identity struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"` // under which it is trusted
	OwnID    string   `json:"own_id"`
	CA       string   `json:"ca,omitempty"`        // the DNS name, with a certificate of an authority
	DaysLeft *float64 `json:"days_left,omitempty"` // of the nearest end of trust and certificates; nil: no end
	Warnings []string `json:"warnings,omitempty"`
}

// Peer is what the other node says of itself.
type Peer struct {
	Node, Version string
	Sockets       Sockets
	HashSpeed     float64 // one processor, bytes a second; 0: not known
	CPUs          int
	Volumes       int // that we may see
}

// Sockets are the kernel's limits.
type Sockets struct {
	ReceiveMax, SendMax int64 // bytes; 0: not known
	Congestion          string
}

// Clock is the other node's, less ours.
type Clock struct {
	Offset time.Duration
	Error  time.Duration // what the round trip leaves open, either way
}

// Load is a load test in one direction.
type Load struct {
	Bytes   uint64        // that arrived; where it was reset, that were sent
	Took    time.Duration // until the last of them
	Resent  int64         // bytes that the sender's kernel sent again
	Within  []time.Duration
	Beside  []time.Duration // round trips meanwhile, in another connection
	Failure *Failure        // why it ended before its time
}

// Speed is in bytes a second.
func (l *Load) Speed() float64 {
	if l == nil || l.Took <= 0 {
		return 0
	}
	return float64(l.Bytes) / l.Took.Seconds()
}

// stalled: large segments went in and none came out, while small frames passed beside it; or TCP itself tells that.
func (l *Load) stalled() bool {
	return l != nil && l.Failure != nil && l.Failure.Class == wire.ClassMTU ||
		l != nil && l.Bytes == 0 && len(l.Beside) > 0 && (l.Failure == nil || l.Failure.Class == wire.ClassTimeout)
}

// sound: it ran for its time, and something came.
func (l *Load) sound() bool { return l != nil && l.Failure == nil && l.Bytes > 0 && l.Took > 0 }

// Disk is one that would be read for replication.
type Disk struct {
	Path    string
	Bytes   int64
	Took    time.Duration
	Direct  bool // around the page cache
	Failure string
}

// Disconnect is one of the last day.
type Disconnect struct {
	Class wire.Class
	At    time.Time
	Age   time.Duration // of the connection
	Bytes int64
}

// Grade of a finding.
type Grade string

const (
	OK   Grade = "ok"
	Warn Grade = "warn"
	Bad  Grade = "bad"
)

// Finding is the outcome of one check.
type Finding struct {
	Check    string `json:"check"`
	Grade    Grade  `json:"grade"`
	Evidence string `json:"evidence"`
	Next     string `json:"next,omitempty"`
}

// Verdict is what all of it comes to.
type Verdict struct {
	OK        bool      `json:"ok"` // nothing is bad
	Findings  []Finding `json:"findings"`
	LimitedBy string    `json:"limited_by,omitempty"`
	Limit     float64   `json:"limit_bytes_per_second,omitempty"`
}

// Judge goes through the checks in their fixed order.
func Judge(m *Measured) Verdict {
	v := Verdict{OK: true, Findings: []Finding{}}
	for _, check := range []func(*Measured) []Finding{
		judgeName, judgeAddresses, judgeHandshakes, judgeTrust, judgeKeys, judgeClock, judgeRoundTrip, judgeQueue,
		judgeThroughput, judgeMTU, judgeResets, judgeSockets, judgeDisks, judgeCPU,
	} {
		v.Findings = append(v.Findings, check(m)...)
	}
	if what, limit := bottleneck(m); what != "" {
		v.LimitedBy, v.Limit = what, limit
		v.Findings = append(v.Findings, Finding{Check: "bottleneck", Grade: OK, Evidence: "replication is limited by " + what + ": " + speed(limit)})
	}
	for i := range v.Findings {
		f := &v.Findings[i]
		if f.Grade != OK && f.Next == "" { // a cause that nobody thought of
			f.Next = "see `blkmirror status` and the logs of both nodes"
		}
		v.OK = v.OK && f.Grade != Bad
	}
	return v
}

// one makes the only finding of a check. Without a grade it is ok, and needs no next step.
func one(check string, grade Grade, evidence, next string) []Finding {
	if grade == OK {
		next = ""
	}
	return []Finding{{check, grade, evidence, next}}
}
