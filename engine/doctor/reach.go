package doctor

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// The checks up to the node's answer.

const (
	slowName      = time.Second
	slowHandshake = 2 * time.Second
	slowTrip      = 100 * time.Millisecond
	deadSlowTrip  = time.Second
	clockWarn     = 2 * time.Second
	clockBad      = 60 * time.Second
	daysWarn      = 21
)

func judgeName(m *Measured) []Finding {
	n := m.Name
	if n.Failure != nil {
		return one("dns", Bad, n.Failure.Text, n.Failure.Next)
	}
	if _, err := netip.ParseAddr(n.Host); err == nil {
		return one("dns", OK, n.Host+" is an address: nothing is to be resolved", "")
	}
	var list []string
	v4, v6 := 0, 0
	for _, a := range m.Addresses {
		list = append(list, a.Address.Addr().String())
		if a.Address.Addr().Unmap().Is4() {
			v4++
		} else {
			v6++
		}
	}
	evidence := fmt.Sprintf("%s has %d IPv4 and %d IPv6 addresses, after %s: %s", n.Host, v4, v6, short(n.Took), strings.Join(list, ", "))
	if n.Took > slowName {
		return one("dns", Warn, evidence, "each reconnect waits for that: check the resolver, or name the node in /etc/hosts")
	}
	return one("dns", OK, evidence, "")
}

// judgeAddresses: an address that does not answer is bad where it leaves none, else a delay at each connect.
func judgeAddresses(m *Measured) []Finding {
	works := false
	for _, a := range m.Addresses {
		works = works || a.Refusal == nil
	}
	var all []Finding
	for _, a := range m.Addresses {
		switch {
		case a.Refusal == nil:
			all = append(all, Finding{"address", OK, fmt.Sprintf("%s connects in %s", a.Address, short(a.Connect)), ""})
		case works:
			all = append(all, Finding{"address", Warn, a.Refusal.explain(a.Address),
				"another address works: take this one out of the name, or listen on it too; " + a.Refusal.Next})
		default:
			all = append(all, Finding{"address", Bad, a.Refusal.explain(a.Address), a.Refusal.Next})
		}
	}
	return all
}

func (f *Failure) explain(a netip.AddrPort) string {
	return fmt.Sprintf("%s fails (%s): %s", a, f.Class, f.Text)
}

// notTrusted: the failure is one of keys, told by another check.
func (f *Failure) notTrusted() bool {
	return f != nil && (f.Class == wire.ClassAuth || f.Class == wire.ClassTLS)
}

func judgeHandshakes(m *Measured) []Finding {
	works := false
	for _, a := range m.Addresses {
		works = works || a.Refusal == nil && a.Failure == nil
	}
	var all []Finding
	for _, a := range m.Addresses {
		switch {
		case a.Refusal != nil || a.Failure.notTrusted():
		case a.Failure == nil && a.Handshake > slowHandshake:
			all = append(all, Finding{"handshake", Warn, fmt.Sprintf("%s answers only after %s", a.Address, short(a.Handshake)),
				"see the load of the other node, and the round trip below"})
		case a.Failure == nil:
			all = append(all, Finding{"handshake", OK, fmt.Sprintf("%s answers as %s %s after %s", a.Address, m.Peer.name(), m.Peer.version(), short(a.Handshake)), ""})
		case works:
			all = append(all, Finding{"handshake", Warn, a.Failure.explain(a.Address), "another address works: take this one out of the name; " + a.Failure.Next})
		default:
			all = append(all, Finding{"handshake", Bad, a.Failure.explain(a.Address), a.Failure.Next})
		}
	}
	return all
}

func (p *Peer) name() string {
	if p == nil || p.Node == "" {
		return "a node"
	}
	return p.Node
}

func (p *Peer) version() string {
	if p == nil {
		return ""
	}
	return p.Version
}

func judgeTrust(m *Measured) []Finding {
	for _, a := range m.Addresses {
		if f := a.Failure; f.notTrusted() {
			return one("trust", Bad, f.explain(a.Address), f.Next)
		}
	}
	switch {
	case m.Peer == nil:
		return nil
	case m.Identity == nil:
		return one("trust", OK, "plain text: nobody proves who he is, which is why it stays on this machine", "")
	case m.Peer.Volumes == 0:
		return one("trust", Warn, fmt.Sprintf("%s is trusted as %s, and lets us see no volume", m.Identity.ID, m.Identity.Name),
			"give this node a right to a volume there: `blkmirror keys trust`")
	}
	return one("trust", OK, fmt.Sprintf("%s is trusted as %s, and lets us see %d volumes", m.Identity.ID, m.Identity.Name, m.Peer.Volumes), "")
}

func judgeKeys(m *Measured) []Finding {
	i := m.Identity
	if i == nil {
		return nil
	}
	evidence, grade := "no end of trust or certificate is near", OK
	if i.DaysLeft != nil {
		evidence = fmt.Sprintf("trust or a certificate ends in %.1f days", *i.DaysLeft)
		switch {
		case *i.DaysLeft <= 0:
			evidence, grade = "trust or a certificate has ended", Bad
		case *i.DaysLeft < daysWarn:
			grade = Warn
		}
	}
	if len(i.Warnings) > 0 {
		evidence += "; " + strings.Join(i.Warnings, "; ")
		grade = worse(grade, Warn)
	}
	return one("keys", grade, evidence, "see `blkmirror keys list` on both nodes; `blkmirror keys trust NAME ID --until DATE` moves an end")
}

func worse(a, b Grade) Grade {
	if a == Bad || b == Bad {
		return Bad
	}
	if a == Warn || b == Warn {
		return Warn
	}
	return OK
}

// judgeClock counts only what the round trip does not explain.
func judgeClock(m *Measured) []Finding {
	c := m.Clock
	if c == nil {
		return nil
	}
	evidence := fmt.Sprintf("its clock is %s %s ours, to within %s", short(c.Offset.Abs()), ahead(c.Offset), short(c.Error))
	next := "set both clocks by NTP: ends of trust, rotation of keys and times in logs are by them"
	switch sure := c.Offset.Abs() - c.Error; {
	case sure > clockBad:
		return one("clock", Bad, evidence, next)
	case sure > clockWarn:
		return one("clock", Warn, evidence, next)
	}
	return one("clock", OK, evidence, "")
}

func ahead(d time.Duration) string {
	if d < 0 {
		return "behind"
	}
	return "ahead of"
}

func judgeRoundTrip(m *Measured) []Finding {
	if len(m.Idle) == 0 {
		return nil
	}
	mid, high := quantile(m.Idle, 0.5), quantile(m.Idle, 0.9)
	evidence := fmt.Sprintf("%s at rest (half of %d), a tenth takes more than %s", short(mid), len(m.Idle), short(high))
	switch {
	case mid > deadSlowTrip:
		return one("rtt", Bad, evidence, "something on the way holds packets back even at rest: look for a tunnel, a proxy or a full line")
	case mid > slowTrip:
		return one("rtt", Warn, evidence, "a distant mirror: throughput needs large windows (see sockets), and writes should not wait for it")
	}
	return one("rtt", OK, evidence, "")
}
