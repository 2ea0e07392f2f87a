package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/blkmirror/blkmirror/engine/doctor"
	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// ProbeOptions say which node is probed.
type ProbeOptions struct {
	Target   string         // HOST:PORT
	Volume   string         // that the node is to be trusted with, as a mirror; "": with any
	Timeout  time.Duration  // of the whole; 0: DefaultProbeTimeout
	Identity *identity.Node // nil: plain TCP, on loopback only

	segment int // the largest to dial with; 0: any
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
}

// DefaultProbeTimeout is what a probe may take.
const DefaultProbeTimeout = 10 * time.Second

// ProbeReport is what a probe found. `probe --json` prints it: only ever added to.
type ProbeReport struct {
	Target      string           `json:"target"`
	OK          bool             `json:"ok"`
	Class       string           `json:"class,omitempty"` // of what went wrong
	Error       string           `json:"error,omitempty"`
	Next        string           `json:"next,omitempty"`
	DNSMillis   float64          `json:"dns_ms"`
	Addresses   []ProbedAddress  `json:"addresses"` // in the order in which they were tried
	Address     string           `json:"address,omitempty"`
	Connect     float64          `json:"connect_ms,omitempty"`
	Handshake   float64          `json:"handshake_ms,omitempty"`
	RTT         float64          `json:"rtt_ms,omitempty"`
	ClockOffset *float64         `json:"clock_offset_ms,omitempty"` // theirs less ours …
	ClockError  *float64         `json:"clock_error_ms,omitempty"`  // … give or take that
	Node        string           `json:"node,omitempty"`
	Version     string           `json:"version,omitempty"`
	Identity    *doctor.Identity `json:"identity"` // null: plain text, or not reached
	Volumes     []ProbedVolume   `json:"volumes"`
	Seconds     float64          `json:"seconds"`
}

// ProbedAddress is an address that was tried.
type ProbedAddress struct {
	Address string  `json:"address"`
	Connect float64 `json:"connect_ms,omitempty"`
	Class   string  `json:"class,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// ProbedVolume is a volume of the other node that we may see.
type ProbedVolume struct {
	Name  string `json:"name"`
	Role  string `json:"role"`
	State string `json:"state"`
	Size  int64  `json:"size"`
}

// Round trips of one probe.
const (
	probeTrips      = 5
	probeTripsEvery = 20 * time.Millisecond
)

// Probe goes through the handshake with a node, and looks at what it shows. The report is valid also with an
// error, which is an *Error whose Kind tells the class apart as docs/DOCTOR.md says.
func Probe(ctx context.Context, o ProbeOptions) (ProbeReport, error) {
	began := time.Now()
	if o.Timeout == 0 {
		o.Timeout = DefaultProbeTimeout
	}
	p := &probe{reach: reach{target: o.Target, volume: o.Volume, identity: o.Identity, segment: o.segment, lookup: o.lookup},
		report: ProbeReport{Target: o.Target, Addresses: []ProbedAddress{}, Volumes: []ProbedVolume{}}}
	err := p.check("probe")
	if err == nil {
		within, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("%w: no answer in %v", wire.ErrHandshakeTimeout, o.Timeout))
		err = p.run(within)
		cancel()
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	r := &p.report
	r.Seconds = time.Since(began).Seconds()
	if err == nil {
		r.OK = true
		return *r, nil
	}
	told := probeError(o.Target, err)
	r.Error, r.Next = told.Err.Error(), told.Next
	if told.Kind != KindUsage {
		r.Class = string(wire.Classify(err))
	}
	return *r, told
}

type probe struct {
	reach
	report ProbeReport
}

// run is one probe. Its error is what went wrong first.
func (p *probe) run(ctx context.Context) error {
	r := &p.report
	began := time.Now()
	addresses, err := p.addresses(ctx)
	r.DNSMillis = millis(time.Since(began))
	if err != nil {
		return err
	}
	c, err := p.first(ctx, addresses)
	if err != nil {
		return err
	}
	defer c.leave()
	r.Handshake, r.Node, r.Identity = millis(c.handshake), c.hello.Name, c.identity
	volumes, m, err := c.volumes(ctx)
	if err != nil {
		return err
	}
	r.Version = m.Version
	for _, v := range volumes {
		r.Volumes = append(r.Volumes, ProbedVolume{v.Name, roleWords[v.Role], v.State, v.Size})
	}
	trips, clock, err := c.trips(ctx, probeTrips, probeTripsEvery)
	if err != nil {
		return err
	}
	r.RTT = millis(2 * clock.Error) // the shortest
	if len(trips) > 0 {
		offset, uncertain := millis(clock.Offset), millis(clock.Error)
		r.ClockOffset, r.ClockError = &offset, &uncertain
	}
	return nil
}

// first makes contact at the first address that connects, as a session would. Where none does, the first one's
// refusal counts.
func (p *probe) first(ctx context.Context, addresses []netip.AddrPort) (*contact, error) {
	var refusal error
	for i, a := range addresses {
		tried := ProbedAddress{Address: a.String()}
		began := time.Now()
		nc, err := p.dialShare(ctx, a.String(), len(addresses)-i)
		if err != nil {
			tried.Class, tried.Error = string(wire.Classify(err)), err.Error()
			p.report.Addresses = append(p.report.Addresses, tried)
			if refusal == nil {
				refusal = err
			}
			continue
		}
		tried.Connect = millis(time.Since(began))
		p.report.Addresses = append(p.report.Addresses, tried)
		p.report.Address, p.report.Connect = tried.Address, tried.Connect
		return p.greet(ctx, nc)
	}
	return nil, refusal
}

// dialShare leaves the addresses behind this one their share of the time: one that drops packets must not use
// it up.
func (p *probe) dialShare(ctx context.Context, address string, left int) (net.Conn, error) {
	if limit, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(limit)/time.Duration(left))
		defer cancel()
	}
	return wire.DialSegment(ctx, address, p.segment)
}

// roleWords are as in the status.
var roleWords = map[wire.Role]string{0: "idle", wire.RolePrimary: "primary", wire.RoleMirror: "mirror"}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// probeError is what a person and the exit code are told of a probe that failed. It is stricter than that of a
// session: another version, or a node that refuses, was reached and needs no look at the network.
func probeError(target string, err error) *Error {
	if own, ok := errors.AsType[*Error](err); ok {
		return own
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Kind: KindOther, Op: "probe", On: target, Err: fmt.Errorf("interrupted: %w", context.Canceled)}
	}
	class := wire.Classify(err)
	e := &Error{Kind: KindNetwork, Op: "probe", On: target, Err: err, Next: nextByClass[class]}
	remote, said := errors.AsType[*wire.RemoteError](err)
	if said {
		e.Next = nextByCode[remote.Code]
	}
	switch {
	case class == wire.ClassAuth, class == wire.ClassTLS:
		e.Kind = KindAuth
	case class == wire.ClassVersion, class == wire.ClassPeerStopped, class == wire.ClassRefused && said:
		e.Kind = KindState
	}
	return e
}
