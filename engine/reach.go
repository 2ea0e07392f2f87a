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

// reach is the way of a probe to a node, in steps that can be told and timed apart: addresses, connect, greet.
// A session takes the same steps (wire.Dial, secure, greet).
type reach struct {
	target   string         // HOST:PORT
	volume   string         // that the peer is to be trusted with, as a mirror; "": with any, in any role
	identity *identity.Node // nil: plain text, on loopback only
	segment  int            // the largest to dial with; 0: any

	// Tests: what a name resolves to.
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// check refuses what can be refused before anything is asked.
func (r *reach) check(op string) error {
	if _, err := portOf(r.target); err != nil {
		return &Error{Kind: KindUsage, Op: op, On: r.target, Err: err, Next: "give HOST:PORT"}
	}
	return nil
}

// addresses resolves the name anew. Plain text is refused where one of them is not of this machine.
func (r *reach) addresses(ctx context.Context) ([]netip.AddrPort, error) {
	host, _, err := net.SplitHostPort(r.target)
	if err != nil {
		return nil, err
	}
	port, err := portOf(r.target)
	if err != nil {
		return nil, err
	}
	lookup := r.lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	ips, err := lookup(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	var all []netip.AddrPort
	for _, ip := range ips {
		ip = ip.Unmap()
		if r.identity == nil && !ip.IsLoopback() {
			return nil, &Error{Kind: KindUsage, Op: "connect to", On: r.target, Err: fmt.Errorf("%w: %s", wire.ErrNotLoopback, ip),
				Next: "plain text is for this machine only; leave --insecure away"}
		}
		all = append(all, netip.AddrPortFrom(ip, uint16(port)))
	}
	return all[:min(len(all), maxAddresses)], nil
}

// maxAddresses of a name are looked at.
const maxAddresses = 16

// contact is a node that answered a probe.
type contact struct {
	conn      *wire.Conn
	hello     *wire.Hello
	identity  *doctor.Identity // nil: plain text
	handshake time.Duration    // from TCP to its Hello
}

// greet makes a contact of a connection, which it takes over, within ctx.
func (r *reach) greet(ctx context.Context, nc net.Conn) (*contact, error) {
	began := time.Now()
	as := identity.AsMirror
	if r.volume == "" {
		as = 0
	}
	nc, peer, err := secure(ctx, r.identity, nc, r.volume, as)
	if err != nil {
		return nil, err
	}
	var who *doctor.Identity
	if r.identity != nil {
		who = identified(peer, r.identity.Peers())
	}
	conn := wire.NewConn(nc, connOptions(r.identity, peer))
	release := context.AfterFunc(ctx, func() { conn.Close(context.Cause(ctx)) })
	hello, err := greet(conn, &wire.Hello{Name: hostName(), Software: software, Role: wire.RoleProbe})
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close(err)
		return nil, noProbe(err)
	}
	conn.Established()
	return &contact{conn: conn, hello: hello, identity: who, handshake: time.Since(began)}, nil
}

// errNoProbe: a node of an older version, which takes the role of a probe for a breach.
var errNoProbe = fmt.Errorf("%w: the peer's version has no probe", wire.ErrVersion)

func noProbe(err error) error {
	if remote, ok := errors.AsType[*wire.RemoteError](err); ok && remote.Code == wire.CodeProtocol {
		return fmt.Errorf("%w (%s)", errNoProbe, remote.Text)
	}
	return err
}

// survey asks once, and tells how long the answer took. Nothing else may be under way on the connection.
func (c *contact) survey(ctx context.Context, from uint32) (m *wire.Surveyed, sent time.Time, took time.Duration, err error) {
	release := context.AfterFunc(ctx, func() { c.conn.Close(context.Cause(ctx)) })
	defer release()
	sent = time.Now()
	if err := c.conn.Send(&wire.Survey{From: from}); err != nil {
		return nil, sent, 0, err
	}
	answer, err := c.conn.Next()
	took = time.Since(sent)
	if err != nil {
		return nil, sent, took, err
	}
	m, ok := answer.(*wire.Surveyed)
	if !ok {
		return nil, sent, took, unexpected(answer, "Surveyed")
	}
	return m, sent, took, nil
}

// noVolumes as the number of the first volume wants none: the clock and the round trip alone.
const noVolumes = 1<<32 - 1

// volumes are all that this node may see there, and the last answer.
func (c *contact) volumes(ctx context.Context) (all []wire.SurveyedVolume, m *wire.Surveyed, err error) {
	for more := true; more && len(all) < maxSeen; more = m.More {
		if m, _, _, err = c.survey(ctx, uint32(len(all))); err != nil {
			return all, nil, err
		}
		all = append(all, m.Volumes...)
	}
	return all, m, nil
}

// maxSeen bounds what a node can make us list.
const maxSeen = 4096

// trips measures n round trips, every so often, and the clock by the shortest of them.
func (c *contact) trips(ctx context.Context, n int, every time.Duration) (trips []time.Duration, clock *doctor.Clock, err error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for range n {
		m, sent, took, err := c.survey(ctx, noVolumes)
		if err != nil {
			return trips, clock, err
		}
		trips = append(trips, took)
		if clock == nil || took/2 < clock.Error {
			// Its clock was read somewhere between the two of ours: in the middle, give or take a half.
			clock = &doctor.Clock{Offset: time.Duration(m.Clock - sent.UnixNano() - int64(took/2)), Error: took / 2}
		}
		select {
		case <-ctx.Done():
			return trips, clock, context.Cause(ctx)
		case <-tick.C:
		}
	}
	return trips, clock, nil
}

// leave says farewell, and waits a little until the node has heard it.
func (c *contact) leave() {
	limit := time.AfterFunc(leaveTimeout, func() { c.conn.Close(nil) })
	defer limit.Stop()
	if c.conn.Send(&wire.Bye{Code: wire.CodeDone}) == nil {
		for {
			if _, err := c.conn.Next(); err != nil {
				break
			}
		}
	}
	c.conn.Close(nil)
}

const leaveTimeout = time.Second
