package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/doctor"
	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// DoctorOptions say what is looked at.
type DoctorOptions struct {
	Target   string         // HOST:PORT
	Time     time.Duration  // of a load test in one direction; 0: DefaultLoadTime
	Identity *identity.Node // nil: plain TCP, on loopback only
	Devices  []string       // disks of this machine that replication would read
	Tell     func(string)   // what is measured now, for a person who waits; may be nil

	// History is what the state directory knows of disconnects of the last day, oldest first; nil: nothing.
	History func() []doctor.Disconnect

	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// The bounds of a load test.
const (
	DefaultLoadTime = 3 * time.Second
	MinLoadTime     = time.Second
	MaxLoadTime     = wire.MaxLoadMillis * time.Millisecond
)

// DoctorReport is what was found. `doctor --json` prints it: only ever added to.
type DoctorReport struct {
	Target string `json:"target"`
	doctor.Verdict
	Seconds float64 `json:"seconds"`
}

const (
	addressTimeout = 5 * time.Second       // for one address, from TCP to the answer
	nameTimeout    = 5 * time.Second       // for the name
	idleTrips      = 40                    // round trips at rest …
	idleEvery      = 50 * time.Millisecond // … and what is between two
	diskTime       = 2 * time.Second       // for one disk …
	diskBytes      = 256 << 20             // … or that many bytes
	maxDevices     = 4                     // disks that are read
	cpuTime        = 100 * time.Millisecond
)

// Doctor measures the way to a node, and both machines, and says what is wrong with it. Its error is one of
// misuse, or that of ctx: whatever else fails is a finding.
func Doctor(ctx context.Context, o DoctorOptions) (DoctorReport, error) {
	began := time.Now()
	if o.Time == 0 {
		o.Time = DefaultLoadTime
	}
	d := &doctorRun{DoctorOptions: o, reach: reach{target: o.Target, identity: o.Identity, lookup: o.lookup}}
	if err := d.check("examine"); err != nil {
		return DoctorReport{}, err
	}
	if o.Time < MinLoadTime || o.Time > MaxLoadTime {
		return DoctorReport{}, &Error{Kind: KindUsage, Op: "examine", On: o.Target, Err: fmt.Errorf("a load test of %v", o.Time),
			Next: fmt.Sprintf("give a time from %v to %v", MinLoadTime, MaxLoadTime)}
	}
	if err := d.path(ctx); err != nil {
		return DoctorReport{}, err
	}
	d.machine(ctx)
	if ctx.Err() != nil {
		return DoctorReport{}, probeError(o.Target, context.Cause(ctx))
	}
	return DoctorReport{Target: o.Target, Verdict: doctor.Judge(&d.measured), Seconds: time.Since(began).Seconds()}, nil
}

// doctorRun is one examination.
type doctorRun struct {
	DoctorOptions
	reach
	measured doctor.Measured
}

func (d *doctorRun) tell(format string, args ...any) {
	if d.Tell != nil {
		d.Tell(fmt.Sprintf(format, args...))
	}
}

// path measures all that is between the two nodes, as far as it comes.
func (d *doctorRun) path(ctx context.Context) error {
	d.tell("looking up %s", d.target)
	addresses, err := d.name(ctx)
	if err != nil {
		return err
	}
	d.tell("connecting to %d addresses", len(addresses))
	d.addressesOf(ctx, addresses)
	for i, a := range d.measured.Addresses {
		if a.Refusal == nil && a.Failure == nil {
			d.segment = a.Segment
			return d.through(ctx, addresses[i].String())
		}
	}
	return nil
}

// name resolves. Only misuse is an error.
func (d *doctorRun) name(ctx context.Context) ([]netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	n := &d.measured.Name
	n.Host, _, _ = net.SplitHostPort(d.target) // it was checked
	began := time.Now()
	addresses, err := d.addresses(ctx)
	n.Took = time.Since(began)
	if own, ok := errors.AsType[*Error](err); ok {
		return nil, own
	}
	if err != nil {
		n.Failure = failureOf(err)
	}
	return addresses, nil
}

// addressesOf goes through the handshake at every address, all at once: a dead one takes its whole time.
func (d *doctorRun) addressesOf(ctx context.Context, addresses []netip.AddrPort) {
	d.measured.Addresses = make([]doctor.Address, len(addresses))
	var all sync.WaitGroup
	for i, a := range addresses {
		all.Go(func() { d.measured.Addresses[i] = d.addressOf(ctx, a) })
	}
	all.Wait()
}

// addressOf goes on with smaller segments where large ones vanish: all else can be measured with them.
func (d *doctorRun) addressOf(ctx context.Context, address netip.AddrPort) doctor.Address {
	lost, segment := 0, 0
	for {
		a, largest := d.handshakeOf(ctx, address, segment)
		a.Lost, a.Segment = lost, segment
		smaller := wire.SmallerSegment(largest)
		if a.Failure == nil || a.Failure.Class != wire.ClassMTU || smaller == 0 || ctx.Err() != nil {
			return a
		}
		lost, segment = cmp.Or(lost, largest), smaller
	}
}

// handshakeOf also says how large segments were.
func (d *doctorRun) handshakeOf(ctx context.Context, address netip.AddrPort, limit int) (a doctor.Address, segment int) {
	ctx, cancel := context.WithTimeoutCause(ctx, addressTimeout, fmt.Errorf("%w: no answer in %v", wire.ErrHandshakeTimeout, addressTimeout))
	defer cancel()
	a.Address = address
	began := time.Now()
	nc, err := wire.DialSegment(ctx, address.String(), limit)
	a.Connect = time.Since(began)
	if err != nil {
		a.Refusal = failureOf(err)
		return a, 0
	}
	segment = wire.SegmentOf(nc)
	c, err := d.greet(ctx, nc)
	if err != nil {
		a.Failure = failureOf(err)
		return a, segment
	}
	a.Handshake = c.handshake
	c.leave()
	return a, segment
}

// through measures at an address that answers. What fails on the way ends it, and stands where it belongs: in
// the handshake, or in a load test.
func (d *doctorRun) through(ctx context.Context, address string) error {
	m := &d.measured
	fail := func(err error) error {
		if ctx.Err() != nil {
			return probeError(d.target, context.Cause(ctx))
		}
		for i := range m.Addresses {
			if m.Addresses[i].Address.String() == address {
				m.Addresses[i].Failure = failureOf(err)
			}
		}
		return nil
	}
	nc, err := wire.DialSegment(ctx, address, d.segment)
	if err != nil {
		return fail(err)
	}
	c, err := d.greet(ctx, nc)
	if err != nil {
		return fail(err)
	}
	defer c.leave()
	d.tell("measuring round trips")
	volumes, s, err := c.volumes(ctx)
	if err != nil {
		return fail(err)
	}
	m.Identity = c.identity
	m.Peer = &doctor.Peer{Node: c.hello.Name, Version: s.Version, HashSpeed: float64(s.HashSpeed), CPUs: int(s.CPUs), Volumes: len(volumes),
		Sockets: doctor.Sockets{ReceiveMax: s.ReceiveMax, SendMax: s.SendMax, Congestion: s.Congestion}}
	if m.Idle, m.Clock, err = c.trips(ctx, idleTrips, idleEvery); err != nil {
		return fail(err)
	}
	for _, l := range []struct {
		what      string
		direction wire.Direction
		result    **doctor.Load
	}{{"there", wire.LoadTo, &m.To}, {"back", wire.LoadFrom, &m.From}} {
		d.tell("load test %s, %v", l.what, d.Time)
		load, err := d.loadWith(ctx, c, address, l.direction)
		if *l.result = load; load == nil {
			*l.result = &doctor.Load{Failure: failureOf(err)}
		}
		if err != nil {
			if ctx.Err() != nil {
				return fail(err)
			}
			break // the way is gone: what came before tells why
		}
	}
	if p, ok := c.conn.Path(); ok {
		m.Path = &p
	}
	return nil
}

// machine measures this end.
func (d *doctorRun) machine(ctx context.Context) {
	m := &d.measured
	m.Here = kernelSockets()
	for _, path := range d.Devices[:min(len(d.Devices), maxDevices)] {
		d.tell("reading %s", path)
		disk := doctor.Disk{Path: path}
		r, err := blockdev.ReadSample(ctx, path, diskBytes, diskTime)
		if err != nil {
			var why *os.PathError
			if disk.Failure = err.Error(); errors.As(err, &why) {
				disk.Failure = why.Err.Error() // the path is told
			}
		}
		disk.Bytes, disk.Took, disk.Direct = r.Bytes, r.Took, r.Direct
		m.Disks = append(m.Disks, disk)
	}
	d.tell("hashing")
	m.Hash = onAll(hashFor)
	m.Pack = onAll(packFor)
	if d.History != nil {
		m.Disconnects = d.History()
	}
}

// onAll adds up what a function does in a second on every processor at once.
func onAll(f func(time.Duration) float64) float64 {
	speeds := make([]float64, runtime.GOMAXPROCS(0))
	var all sync.WaitGroup
	for i := range speeds {
		all.Go(func() { speeds[i] = f(cpuTime) })
	}
	all.Wait()
	sum := 0.0
	for _, s := range speeds {
		sum += s
	}
	return sum
}

// packFor compresses a block of words in no order, which is like text.
func packFor(d time.Duration) float64 {
	const word, words = 8, 64
	b := make([]byte, 0, DefaultBlockSize)
	for _, r := range ballast()[:DefaultBlockSize/word] {
		at := int(r) % words * word
		b = append(b, ballast()[at:at+word]...)
	}
	p := wire.NewPacker()
	began, n := time.Now(), 0
	for n == 0 || time.Since(began) < d {
		p.Compress(nil, b)
		n += len(b)
	}
	return float64(n) / time.Since(began).Seconds()
}
