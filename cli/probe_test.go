package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/engine/doctor"
)

// TestPrintProbe: one fact a line, and the verdict last.
func TestPrintProbe(t *testing.T) {
	days, offset, uncertain := 12.5, -1500.0, 2.0
	for want, r := range map[string]engine.ProbeReport{
		`name       1 address tried, 1.00 ms
address    192.0.2.7:7417 connects in 3.00 ms
identity   ABC, trusted as east
keys       12.5 days left
warning    the old key
node       pluto, blkmirror v1, answers in 9.00 ms
round trip 4.00 ms
clock      -1.500 s against ours, to within 2.00 ms
volume     db: mirror, ok, 1.00 GiB
ok: m:7417 is pluto, 1 volume to be seen, round trip 4.00 ms
`: {Target: "m:7417", OK: true, DNSMillis: 1, Addresses: []engine.ProbedAddress{{Address: "192.0.2.7:7417", Connect: 3}}, Node: "pluto", Version: "v1",
			Handshake: 9, RTT: 4, ClockOffset: &offset, ClockError: &uncertain, Volumes: []engine.ProbedVolume{{Name: "db", Role: "mirror", State: "ok", Size: 1 << 30}},
			Identity: &doctor.Identity{ID: "ABC", Name: "east", DaysLeft: &days, Warnings: []string{"the old key"}}},
		`name       2 addresses tried, 1.00 ms
address    [::1]:7417: refused: no
address    127.0.0.1:7417: timeout: nothing
next       start it
refused: no
`: {Target: "m:7417", DNSMillis: 1, Class: "refused", Error: "no", Next: "start it",
			Addresses: []engine.ProbedAddress{{Address: "[::1]:7417", Class: "refused", Error: "no"}, {Address: "127.0.0.1:7417", Class: "timeout", Error: "nothing"}}},
	} {
		var out bytes.Buffer
		(&app{stdout: &output{w: &out}}).printProbe(r)
		if out.String() != want {
			t.Errorf("%s\nwant:\n%s", out.String(), want)
		}
	}
}

func TestProbeAndDoctorOfNobody(t *testing.T) {
	got := call(t, "probe", "--insecure", "no-such-node.invalid:7417")
	if lines := strings.Split(strings.TrimSpace(got.stdout), "\n"); got.code != exitNetwork || got.stderr != "" || !strings.HasPrefix(lines[len(lines)-1], "dns: ") {
		t.Errorf("%+v", got)
	}
	got = call(t, "probe", "--json", "--insecure", "no-such-node.invalid:7417")
	var r engine.ProbeReport
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil || got.code != exitNetwork || r.OK || r.Class != "dns" || r.Next == "" {
		t.Errorf("%v, %+v", err, got)
	}
	got = call(t, "doctor", "--insecure", "--control", t.TempDir()+"/none", "no-such-node.invalid:7417")
	if got.code != exitState || got.stderr != "" || !strings.HasPrefix(got.stdout, "bad   dns ") || !strings.Contains(got.stdout, "1 bad") {
		t.Errorf("%+v", got)
	}
}

// TestStatusTellsOfKeys: what ends soon is an alert while everything still works, and is told once.
func TestStatusTellsOfKeys(t *testing.T) {
	const ends, stale = "the right of peer east as mirror ends in 12 days", "peer east still uses the old key"
	m := engine.MirrorStatus{Name: "east", State: "connected", Warnings: []string{ends, stale}}
	v := engine.VolumeStatus{Name: "db", State: "ok", Role: "primary", Mirrors: []engine.MirrorStatus{m}}
	s := engine.Status{Node: engine.NodeStatus{Name: "west", Warnings: []string{ends}}, Volumes: []engine.VolumeStatus{v}}
	var out bytes.Buffer
	printStatus(&out, s, time.Now())
	if text := out.String(); strings.Count(text, ends) != 1 || !strings.Contains(text, "\nwarning: "+ends) || !strings.Contains(text, "east: warning: "+stale) {
		t.Error(text)
	}
	out.Reset()
	a := &app{stdout: &output{w: &out}}
	if err := a.checkStatus(s, 0); exitCode(err) != exitState || out.String() != "keys: "+ends+"\n" {
		t.Errorf("%v, %q", err, out.String())
	}
	s.Node.Warnings = nil
	out.Reset()
	if err := a.checkStatus(s, 0); err != nil {
		t.Errorf("%v, %q", err, out.String())
	}
}

// TestStatusTellsOfAProbe: a mirror that is connected needs a look all the same where it could not be reached again.
func TestStatusTellsOfAProbe(t *testing.T) {
	m := engine.MirrorStatus{Name: "east", State: "connected", Probe: &engine.ProbeStatus{OK: true}}
	v := engine.VolumeStatus{Name: "db", State: "ok", Role: "primary", Mirrors: []engine.MirrorStatus{m}}
	s := engine.Status{Volumes: []engine.VolumeStatus{v}}
	if got := s.Problems(0); len(got) != 0 {
		t.Errorf("%q", got)
	}
	v.Mirrors[0].Probe = &engine.ProbeStatus{Class: "refused", Error: "connection refused", Next: "start it", At: "2026-01-01T00:00:00Z"}
	const want = "db: mirror east: the next connection would fail: refused: connection refused"
	if got := s.Problems(0); len(got) != 1 || got[0] != want {
		t.Errorf("%q", got)
	}
	var out bytes.Buffer
	printStatus(&out, engine.Status{Volumes: []engine.VolumeStatus{v}}, time.Date(2026, 1, 1, 0, 1, 0, 0, time.UTC))
	if !strings.Contains(out.String(), "east: the next connection would fail, as of 1m0s ago: refused: connection refused\n  next: start") {
		t.Error(out.String())
	}
}
