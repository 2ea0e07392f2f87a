package doctor

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

const ms = time.Millisecond

func times(n int, d time.Duration) []time.Duration {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = d
	}
	return all
}

// healthy is a way between two good machines 10 ms apart, with a gigabit between them.
func healthy() *Measured {
	days := 300.0
	load := func() *Load {
		return &Load{Bytes: 330e6, Took: 3 * time.Second, Within: times(25, 14*ms), Beside: times(25, 13*ms)}
	}
	return &Measured{
		Name:      Name{Host: "mirror.example", Took: 3 * ms},
		Addresses: []Address{{Address: netip.MustParseAddrPort("192.0.2.7:7417"), Connect: 10 * ms, Handshake: 31 * ms}},
		Identity:  &Identity{ID: "ABC", Name: "east", DaysLeft: &days},
		Peer:      &Peer{Node: "pluto", Version: "v1", Sockets: Sockets{32 << 20, 32 << 20, "bbr"}, HashSpeed: 1e9, CPUs: 4, Volumes: 1},
		Clock:     &Clock{Offset: 300 * ms, Error: 5 * ms},
		Idle:      times(20, 10*ms), To: load(), From: load(),
		Path: &wire.Path{MTU: 1500, SegmentSent: 1448, SegmentWant: 1448},
		Here: Sockets{32 << 20, 32 << 20, "bbr"}, Disks: []Disk{{Path: "/dev/sdb", Bytes: 256 << 20, Took: 500 * ms, Direct: true}},
		Hash: 3e9, Pack: 2e9,
	}
}

// TestHealthy: every check is made, in its order, and nothing is found.
func TestHealthy(t *testing.T) {
	v := Judge(healthy())
	var order []string
	for _, f := range v.Findings {
		order = append(order, f.Check)
		if f.Grade != OK || f.Next != "" || f.Evidence == "" {
			t.Errorf("%+v", f)
		}
	}
	const want = "dns address handshake trust keys clock rtt queue throughput throughput mtu resets sockets sockets disk cpu bottleneck"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("order %s, want %s", got, want)
	}
	if !v.OK || v.LimitedBy != "the network" || v.Limit != 110e6 {
		t.Errorf("%v, limited by %q: %v", v.OK, v.LimitedBy, v.Limit)
	}
}

// TestJudge: one thing is wrong at a time; it is found under its name, and nothing else is.
func TestJudge(t *testing.T) {
	failure := func(class wire.Class) *Failure { return &Failure{class, "it says so", "do this"} }
	days := func(n float64) func(*Measured) { return func(m *Measured) { m.Identity.DaysLeft = &n } }
	nobody := func(m *Measured) { // answers
		*m = Measured{Name: m.Name, Addresses: m.Addresses, Hash: m.Hash, Pack: m.Pack}
	}
	second := Address{Address: netip.MustParseAddrPort("[2001:db8::7]:7417")}
	for name, c := range map[string]struct {
		edit  func(*Measured)
		check string
		grade Grade
		words string
		also  string // checks that may find something too
	}{
		"no such name": {func(m *Measured) { m.Name.Failure = failure(wire.ClassDNS); m.Addresses = nil; nobody(m) }, "dns", Bad, "it says so", ""},
		"slow name":    {func(m *Measured) { m.Name.Took = 1500 * ms }, "dns", Warn, "1.5s", ""},
		"closed port":  {func(m *Measured) { m.Addresses[0].Refusal = failure(wire.ClassRefused); nobody(m) }, "address", Bad, "refused", ""},
		"one of two is dead": {func(m *Measured) {
			second := second
			second.Refusal = failure(wire.ClassTimeout)
			m.Addresses = append(m.Addresses, second)
		}, "address", Warn, "2001:db8::7", ""},
		"web server": {func(m *Measured) { m.Addresses[0].Failure = failure(wire.ClassProtocol); nobody(m) }, "handshake", Bad, "protocol", ""},
		"one is a web server": {func(m *Measured) {
			second := second
			second.Failure = failure(wire.ClassProtocol)
			m.Addresses = append(m.Addresses, second)
		}, "handshake", Warn, "2001:db8::7", ""},
		"slow handshake":   {func(m *Measured) { m.Addresses[0].Handshake = 3 * time.Second }, "handshake", Warn, "3s", ""},
		"untrusted key":    {func(m *Measured) { m.Addresses[0].Failure = failure(wire.ClassAuth); nobody(m) }, "trust", Bad, "auth", ""},
		"no TLS":           {func(m *Measured) { m.Addresses[0].Failure = failure(wire.ClassTLS); nobody(m) }, "trust", Bad, "tls", ""},
		"no right":         {func(m *Measured) { m.Peer.Volumes = 0 }, "trust", Warn, "no volume", ""},
		"key ends soon":    {days(20), "keys", Warn, "20.0 days", ""},
		"key has ended":    {days(-1), "keys", Bad, "ended", ""},
		"old key":          {func(m *Measured) { m.Identity.Warnings = []string{"peer east still uses the old key"} }, "keys", Warn, "old key", ""},
		"clock ahead":      {func(m *Measured) { m.Clock.Offset = 5 * time.Second }, "clock", Warn, "5s ahead", ""},
		"clock far behind": {func(m *Measured) { m.Clock.Offset = -time.Hour }, "clock", Bad, "behind", ""},
		"clock, not sure":  {func(m *Measured) { m.Clock = &Clock{5 * time.Second, 4 * time.Second} }, "", OK, "", ""},
		"distant": {func(m *Measured) {
			m.Idle = times(20, 150*ms)
			m.To.Within = times(9, 160*ms)
			m.To.Beside = m.To.Within
			m.From = m.To
		}, "rtt", Warn, "150ms", "sockets"},
		"held back at rest":  {func(m *Measured) { m.Idle = times(20, 2*time.Second); m.To, m.From = nil, nil }, "rtt", Bad, "2s", ""},
		"bufferbloat within": {func(m *Measured) { m.To.Within = times(3, 1200*ms) }, "queue", Bad, "grade F", ""},
		"bufferbloat beside": {func(m *Measured) { m.From.Beside = times(25, 110*ms) }, "queue", Warn, "grade C", ""},
		"1 Mbit/s":           {func(m *Measured) { m.To.Bytes, m.From.Bytes = 375e3, 375e3 }, "throughput", Bad, "125 kB/s", ""},
		"1 Mbit/s, and small frames wait": {func(m *Measured) {
			m.To = &Load{Bytes: 375e3, Took: 3 * time.Second, Within: times(5, 550*ms)}
			m.From = m.To
		}, "throughput", Bad, "125 kB/s", ""},
		"20 Mbit/s":       {func(m *Measured) { m.To.Bytes, m.From.Bytes = 75e5, 75e5 }, "throughput", Warn, "2.50 MB/s", ""},
		"asymmetric":      {func(m *Measured) { m.To.Bytes = 60e6 }, "throughput", Warn, "asymmetric", ""},
		"busy":            {func(m *Measured) { m.To = &Load{Failure: failure(wire.ClassPeerStopped)} }, "throughput", Warn, "not measured", ""},
		"black hole":      {func(m *Measured) { m.To = &Load{Took: 3 * time.Second, Beside: times(25, 10*ms)} }, "mtu", Bad, "black hole", ""},
		"black hole back": {func(m *Measured) { m.From = &Load{Beside: times(25, 10*ms), Failure: failure(wire.ClassTimeout)} }, "mtu", Bad, "back", ""},
		"black hole, by TCP": {func(m *Measured) {
			m.To = &Load{Bytes: 5e6, Took: time.Second, Failure: failure(wire.ClassMTU)}
		}, "mtu", Bad, "there", ""},
		"black hole at once": {func(m *Measured) { m.Addresses[0].Lost, m.Addresses[0].Segment = 1448, 1200 }, "mtu", Bad, "those of 1200 get through", ""},
		"no segment passes":  {func(m *Measured) { m.Addresses[0].Failure = failure(wire.ClassMTU); nobody(m) }, "mtu", Bad, "", "handshake"},
		"tunnel in tunnel":   {func(m *Measured) { m.Path.MTU = 1200 }, "mtu", Warn, "1200", ""},
		"reset":              {func(m *Measured) { m.To.Failure = failure(wire.ClassReset) }, "resets", Bad, "330 MB", ""},
		"loss":               {func(m *Measured) { m.To.Resent = 8e6 }, "resets", Warn, "2.4 %", ""},
		"much loss":          {func(m *Measured) { m.To.Resent = 80e6 }, "resets", Bad, "sent again", ""},
		"many disconnects":   {func(m *Measured) { m.Disconnects = []Disconnect{{}, {}, {Class: wire.ClassReset, Age: time.Hour}} }, "resets", Warn, "3 disconnects", ""},
		"small tcp_wmem":     {func(m *Measured) { m.Here.SendMax = 2 << 20 }, "sockets", Warn, "there", ""},
		"small tcp_rmem":     {func(m *Measured) { m.Here.ReceiveMax = 2 << 20 }, "sockets", Warn, "back", ""},
		"slow disk":          {func(m *Measured) { m.Disks[0].Took = 10 * time.Second }, "disk", Warn, "26.8 MB/s", ""},
		"forbidden disk":     {func(m *Measured) { m.Disks[0].Failure = "permission denied" }, "disk", Warn, "denied", ""},
		"slow processor":     {func(m *Measured) { m.Hash = 150e6 }, "cpu", Warn, "150 MB/s", ""},
		"slow there":         {func(m *Measured) { m.Peer.HashSpeed = 30e6 }, "cpu", Warn, "120 MB/s", ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := healthy()
			c.edit(m)
			v := Judge(m)
			found := c.check == ""
			for _, f := range v.Findings {
				switch {
				case f.Check == c.check && f.Grade == c.grade && strings.Contains(f.Evidence, c.words) && f.Next != "":
					found = true
				case f.Grade != OK && f.Check != c.check && f.Check != c.also:
					t.Errorf("something else is found: %+v", f)
				}
			}
			if !found || v.OK != (c.grade != Bad) {
				t.Errorf("ok %v, findings %+v, want %s %s with %q", v.OK, v.Findings, c.check, c.grade, c.words)
			}
		})
	}
}

// TestBottleneck: the least is named, whatever it is.
func TestBottleneck(t *testing.T) {
	for name, c := range map[string]struct {
		edit  func(*Measured)
		what  string
		limit float64
	}{
		"network": {func(*Measured) {}, "the network", 110e6},
		"disk":    {func(m *Measured) { m.Disks[0] = Disk{Path: "/dev/sdb", Bytes: 80e6, Took: time.Second} }, "the disk /dev/sdb", 80e6},
		"hash":    {func(m *Measured) { m.Hash = 90e6 }, "hashing here", 90e6},
		"there":   {func(m *Measured) { m.Peer.HashSpeed = 20e6 }, "hashing there", 80e6},
		"sockets": {func(m *Measured) { m.Here.SendMax = 2 << 20 }, "the kernels' socket limits", 110e6},
		"window":  {func(m *Measured) { m.Idle = times(9, 400*ms) }, "its window of 32 MiB a round trip", (32 << 20) / 0.4},
		"unknown": {func(m *Measured) { m.To.Failure = &Failure{} }, "", 0},
		"nothing": {func(m *Measured) { *m = Measured{} }, "", 0},
	} {
		m := healthy()
		c.edit(m)
		if v := Judge(m); v.LimitedBy != c.what || v.Limit < 0.999*c.limit || v.Limit > 1.001*c.limit {
			t.Errorf("%s: limited by %q, %v; want %q, %v", name, v.LimitedBy, v.Limit, c.what, c.limit)
		}
	}
}

func TestQuantile(t *testing.T) {
	samples := []time.Duration{5, 1, 4, 2, 3}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.9: 5, 1: 5} {
		if got := quantile(samples, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
}
