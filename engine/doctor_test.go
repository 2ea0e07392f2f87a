package engine

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/engine/doctor"
	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// graded finds the first finding of a check whose evidence has the words.
func graded(r DoctorReport, check, words string) doctor.Grade {
	for _, f := range r.Findings {
		if f.Check == check && strings.Contains(f.Evidence, words) {
			return f.Grade
		}
	}
	return ""
}

// TestDoctor: a node on this machine whose clock is an hour ahead and that has a second, dead address. What a
// slow machine may make of the rest is not looked at.
func TestDoctor(t *testing.T) {
	addr := probeServer(t, func(o *ServerOptions) { o.clock = func() time.Time { return time.Now().Add(time.Hour) } })
	_, port, _ := net.SplitHostPort(addr)
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var told []string
	r, err := Doctor(t.Context(), DoctorOptions{Target: "mirror.test:" + port, Time: MinLoadTime,
		Devices: []string{disk, disk + "no", t.TempDir()}, Tell: func(text string) { told = append(told, text) },
		History: func() []doctor.Disconnect { return []doctor.Disconnect{{}, {}, {Class: wire.ClassReset}} },
		lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		check, words string
		grade        doctor.Grade
	}{
		{"dns", "2 IPv4", doctor.OK}, {"address", "127.0.0.1:" + port, doctor.OK}, {"address", "127.0.0.2:" + port, doctor.Warn},
		{"handshake", "v1.2.3", doctor.OK}, {"clock", "ahead of", doctor.Bad}, {"mtu", "large ones pass both ways", doctor.OK},
		{"resets", "3 disconnects", doctor.Warn}, {"disk", disk + "no: no such file", doctor.Warn},
		{"bottleneck", "replication is limited by", doctor.OK},
	} {
		if got := graded(r, want.check, want.words); got != want.grade {
			t.Errorf("%s with %q is graded %q, want %q", want.check, want.words, got, want.grade)
		}
	}
	if r.OK || r.Limit <= 0 || len(told) < 5 {
		t.Errorf("%+v, told %q", r, told)
	}
	for _, f := range r.Findings {
		t.Logf("%-10s %-4s %s; %s", f.Check, f.Grade, f.Evidence, f.Next)
	}
	t.Logf("%.1f s", r.Seconds)
}

// meet makes a contact.
func meet(t *testing.T, r reach) *contact {
	t.Helper()
	nc, err := wire.Dial(t.Context(), r.target)
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.greet(t.Context(), nc)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestOneLoadTest: a node has one at a time; who comes meanwhile is told, and the next one has its turn.
func TestOneLoadTest(t *testing.T) {
	addr := probeServer(t, nil)
	r := reach{target: addr}
	meet := func() *contact { return meet(t, r) }
	first := meet()
	if err := first.conn.Send(&wire.Load{Direction: wire.LoadFrom, Millis: wire.MaxLoadMillis, Bytes: wire.MaxLoadBytes}); err != nil {
		t.Fatal(err)
	}
	if _, err := first.conn.Next(); err != nil { // it has begun
		t.Fatal(err)
	}
	if l := meet().loadTest(t.Context(), wire.LoadTo, 10*time.Millisecond); !busy(l) || !strings.Contains(l.Failure.Text, "under way") {
		t.Errorf("the second: %+v", l.Failure)
	}
	first.leave()
	for _, d := range []wire.Direction{wire.LoadTo, wire.LoadFrom, wire.LoadTo} {
		l := meet().loadTest(t.Context(), d, 50*time.Millisecond)
		for ; busy(l); l = meet().loadTest(t.Context(), d, 50*time.Millisecond) {
			time.Sleep(time.Millisecond) // until the first is over there
		}
		if l.Failure != nil || l.Bytes == 0 {
			t.Errorf("direction %d: %+v", d, l)
		}
	}
}

// TestLoadTestWithoutEnd: who takes nothing of what he asked for, or never says that he is done, keeps the
// node's one load test for seconds only.
func TestLoadTestWithoutEnd(t *testing.T) {
	t.Parallel() // it waits most of the time
	addr := probeServer(t, nil)
	r := reach{target: addr}
	for _, d := range []wire.Direction{wire.LoadFrom, wire.LoadTo} {
		c := meet(t, r)
		defer c.conn.Close(nil)
		if err := c.conn.Send(&wire.Load{Direction: d, Millis: 100, Bytes: wire.MaxLoadBytes}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the next one has its turn", func() bool {
			c := meet(t, r)
			return !busy(c.loadTest(t.Context(), wire.LoadFrom, time.Millisecond))
		})
	}
}

// TestHostileProbes: what a probe may not do ends it, and nothing else; the node goes on.
func TestHostileProbes(t *testing.T) {
	addr := probeServer(t, nil)
	r := reach{target: addr}
	ballast := func(n int) *wire.Ballast { return &wire.Ballast{Payload: make([]byte, n)} }
	load := &wire.Load{Direction: wire.LoadTo, Millis: 1000, Bytes: 5000}
	many := make([]wire.Message, 0, 64*wire.MaxUnsurveyed)
	for range cap(many) {
		many = append(many, &wire.Survey{})
	}
	for name, hostile := range map[string]struct {
		says []wire.Message
		code wire.Code
	}{
		"ballast without a load":  {[]wire.Message{ballast(1)}, wire.CodeProtocol},
		"more than it said":       {[]wire.Message{load, ballast(4096), ballast(905)}, wire.CodeProtocol},
		"done without a load":     {[]wire.Message{&wire.Loaded{Flags: wire.LoadedLast}}, wire.CodeProtocol},
		"loaded, not the last":    {[]wire.Message{load, &wire.Loaded{}}, wire.CodeProtocol},
		"two loads":               {[]wire.Message{load, load}, wire.CodeBusy},
		"questions without end":   {many, wire.CodeProtocol},
		"a session in its middle": {[]wire.Message{&wire.Flush{}}, wire.CodeProtocol},
		"another Hello":           {[]wire.Message{&wire.Hello{Role: wire.RoleProbe}}, wire.CodeProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			c := meet(t, r)
			defer c.conn.Close(nil)
			c.conn.Send(hostile.says...) // it may be cut off meanwhile
			for {
				m, err := c.conn.Next()
				if err != nil {
					t.Fatalf("no last word: %v", err)
				}
				if halt, ok := m.(*wire.Halt); ok {
					if halt.Code != hostile.code {
						t.Errorf("code %d, %s; want %d", halt.Code, halt.Text, hostile.code)
					}
					break
				}
			}
		})
	}
	if _, err := Probe(t.Context(), ProbeOptions{Target: addr, Timeout: time.Minute}); err != nil {
		t.Error(err)
	}
}

// TestTrust: what TLS says of the peer, and against it, comes out of probe and doctor alike; a volume that was not given is not seen.
func TestTrust(t *testing.T) {
	here, there := newIdentity(t, t.TempDir()), newIdentity(t, t.TempDir())
	addr := probeServer(t, func(o *ServerOptions) { o.Insecure, o.Identity = false, there })
	refused := func(class wire.Class, addr string) {
		t.Helper()
		r, err := Probe(t.Context(), ProbeOptions{Target: addr, Timeout: time.Minute, Identity: here})
		if r.Class != string(class) || kindOf(err) != KindAuth {
			t.Errorf("%s: %+v, %v", class, r, err)
		}
		rep, err := Doctor(t.Context(), DoctorOptions{Target: addr, Identity: here})
		if err != nil || graded(rep, "trust", "fails ("+string(class)+")") != doctor.Bad || graded(rep, "handshake", "") != "" {
			t.Errorf("%s: %+v, %v", class, rep.Findings, err)
		}
	}
	refused(wire.ClassAuth, addr) // not trusted by us
	trusts(t, here, "east", there, identity.Grant{As: identity.AsMirror, Until: time.Now().Add(74 * time.Hour)})
	refused(wire.ClassAuth, addr) // not trusted there
	trusts(t, there, "west", here, identity.Grant{Volume: "two", As: identity.AsPrimary})
	r, err := Probe(t.Context(), ProbeOptions{Target: addr, Timeout: time.Minute, Identity: here})
	if err != nil || r.Identity == nil || r.Identity.Name != "east" || r.Identity.ID != there.ID().String() || len(r.Volumes) != 1 || r.Volumes[0].Name != "two" {
		t.Errorf("%+v, %v", r, err)
	}
	rep, err := Doctor(t.Context(), DoctorOptions{Target: addr, Time: MinLoadTime, Identity: here})
	if err != nil || graded(rep, "trust", "is trusted as east, and lets us see 1 volume") != doctor.OK || graded(rep, "keys", "3.") != doctor.Warn {
		t.Errorf("%+v, %v", rep.Findings, err)
	}
	refused(wire.ClassTLS, probeServer(t, nil)) // it speaks no TLS
}
