package e2e

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
)

// probeReport is what `probe --json` prints.
type probeReport struct {
	OK      bool   `json:"ok"`
	Class   string `json:"class"`
	Error   string `json:"error"`
	Next    string `json:"next"`
	Version string `json:"version"`
	Volumes []struct {
		Name  string `json:"name"`
		State string `json:"state"`
		Size  int64  `json:"size"`
	} `json:"volumes"`
	RTT   float64 `json:"rtt_ms"`
	Clock float64 `json:"clock_offset_ms"`
}

// refusal is a Refused with a code.
func refusal(code uint16) []byte {
	const text = "for a reason"
	meta := binary.LittleEndian.AppendUint16(nil, code)
	meta = binary.LittleEndian.AppendUint16(meta, uint16(len(text)))
	return newFrame(typeRefused, append(meta, text...)).bytes()
}

// damaged is a Hello with a bit turned.
func damaged() []byte {
	b := helloOf(5).bytes()
	b[headerSize] ^= 1
	return b
}

// closedPort is an address where nobody listens.
func closedPort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", ownAddress()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Every cause has its class and its exit code, the last line says so, and standard error is empty.
func TestProbeNamesTheCause(t *testing.T) {
	t.Parallel()
	p := newPair(t, mib)
	s := serve(t, p.state, "v="+p.dst, "w="+p.src)
	for name, c := range map[string]struct {
		addr  string
		class string
		code  int
	}{
		"a node":              {s.addr, "ok", 0},
		"no such name":        {"no-such-node.invalid:7417", "dns", 3},
		"closed port":         {closedPort(t), "refused", 3},
		"web server":          {pretender(t, strangers["web server"]), "protocol", 3},
		"garbage":             {pretender(t, strangers["garbage"]), "protocol", 3},
		"hangs":               {pretender(t, strangers["hangs"]), "timeout", 3},
		"hangs after Hello":   {pretender(t, says(helloOf(5).bytes())), "timeout", 3},
		"closes at once":      {pretender(t, strangers["closes at once"]), "reset", 3},
		"resets in a header":  {pretender(t, strangers["resets within a header"]), "reset", 3},
		"flips a bit":         {pretender(t, says(damaged())), "integrity", 3},
		"newer version":       {pretender(t, strangers["newer version"]), "version", 7},
		"knows no probes":     {pretender(t, says(refusal(4))), "version", 7},
		"is being stopped":    {pretender(t, says(refusal(2))), "peer-stopped", 7},
		"does not trust us":   {pretender(t, says(refusal(15))), "auth", 4},
		"answers as a mirror": {pretender(t, says(helloOf(4).bytes())), "protocol", 3},
	} {
		t.Run(name, func(t *testing.T) {
			timeout := "1m"
			if c.class == "timeout" {
				timeout = "500ms"
			}
			r := blkmirror(t, "probe", "--insecure", "--timeout", timeout, c.addr)
			lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
			if r.code != c.code || !strings.HasPrefix(lines[len(lines)-1], c.class+": ") || r.stderr != "" {
				t.Errorf("exit code %d, want %d and %s\n%s\n%s", r.code, c.code, c.class, r.stdout, r.stderr)
			}
			if c.code != 0 && !strings.Contains(r.stdout, "\nnext ") && !strings.HasPrefix(r.stdout, "next ") {
				t.Errorf("no next step:\n%s", r.stdout)
			}
			var rep probeReport
			r = blkmirror(t, "probe", "--json", "--insecure", "--timeout", timeout, c.addr)
			if err := json.Unmarshal([]byte(r.stdout), &rep); err != nil || r.code != c.code {
				t.Fatalf("exit code %d, %v\n%s", r.code, err, r.stdout)
			}
			if rep.OK != (c.code == 0) || !rep.OK && (rep.Class != c.class || rep.Error == "" || rep.Next == "") {
				t.Errorf("%+v", rep)
			}
			if rep.OK && (len(rep.Volumes) != 2 || rep.Volumes[1].Name != "w" || rep.Volumes[1].Size != mib || rep.RTT <= 0 || rep.Version == "") {
				t.Errorf("%+v", rep)
			}
		})
	}
	if s.ended() {
		t.Error("the node ended")
	}
}

// Probes and load tests beside a sync disturb nothing, and a node that is killed in the middle of a load test is no hang.
func TestProbeBesideSync(t *testing.T) {
	p := newPair(t, 64*mib)
	s := serve(t, p.state, "v="+p.dst)
	beside := start(t, "sync", "--insecure", "--rate", "20M", p.src, s.url("v"))
	until(t, "the sync", func() bool { return s.sessions() > 0 })
	for range 5 {
		mustRun(t, "probe", "--insecure", s.addr)
	}
	examine(t, "--time", "1s", s.addr)
	beside.wait().ok(t)
	equal(t, p.src, p.dst)
	line := newShaper(t, s.addr, way{rate: 4e6}, way{})
	doctor := start(t, "doctor", "--insecure", "--time", "10s", "--control", p.state+"/none", line.addr)
	until(t, "a load test", func() bool { return line.passed.Load() > mib })
	s.kill()
	if r := doctor.wait(); r.code != 7 || r.stderr != "" {
		t.Errorf("doctor of a node that was killed: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// doctorReport is what `doctor --json` prints.
type doctorReport struct {
	OK       bool `json:"ok"`
	Findings []struct {
		Check, Grade, Evidence, Next string
	} `json:"findings"`
	LimitedBy string  `json:"limited_by"`
	Limit     float64 `json:"limit_bytes_per_second"`
	Seconds   float64 `json:"seconds"`
}

func examine(t testing.TB, args ...string) doctorReport {
	t.Helper()
	r := blkmirror(t, append([]string{"doctor", "--json", "--insecure"}, args...)...)
	var rep doctorReport
	if err := json.Unmarshal([]byte(r.stdout), &rep); err != nil {
		t.Fatalf("exit code %d, %v\n%s%s", r.code, err, r.stdout, r.stderr)
	}
	if rep.OK != (r.code == 0) || !rep.OK && r.code != 7 {
		t.Errorf("exit code %d where ok is %v", r.code, rep.OK)
	}
	for _, f := range rep.Findings {
		t.Logf("%-4s %-10s %s; %s", f.Grade, f.Check, f.Evidence, f.Next)
		if f.Evidence == "" || (f.Next == "") != (f.Grade == "ok") {
			t.Errorf("%+v", f)
		}
	}
	return rep
}

// One thing is wrong at a time: it is found under its name, and nothing else is called bad.
func TestDoctorNamesTheCause(t *testing.T) {
	p := newPair(t, 8*mib)
	s := serve(t, p.state, "v="+p.dst)
	through := func(to, from way) string { return newShaper(t, s.addr, to, from).addr }
	for name, c := range map[string]struct {
		addr  string
		check string
		grade string
		words string
		also  string // checks that may be bad with it
	}{
		"no such name": {"no-such-node.invalid:7417", "dns", "bad", "no such host", ""},
		"closed port":  {closedPort(t), "address", "bad", "refused", ""},
		"web server":   {pretender(t, strangers["web server"]), "handshake", "bad", "HTTP/1.1", ""},
		"old version":  {pretender(t, says(refusal(4))), "handshake", "bad", "no probe", ""},
		"hangs":        {pretender(t, func(nc net.Conn) { io.Copy(io.Discard, nc) }), "handshake", "bad", "timeout", ""},
		"bufferbloat":  {through(way{rate: 3e6, queue: 8 * mib}, way{}), "queue", "bad", "grade F", "queue throughput"},
		// Where a queue stands, small frames are seconds late: what the rate alone does to the round trip counts too.
		"1 Mbit/s":          {through(way{rate: 125e3}, way{rate: 125e3}), "throughput", "bad", "there: ", "queue"},
		"one slow way":      {through(way{rate: 200e3}, way{}), "throughput", "warn", "asymmetric", "queue throughput"},
		"reset":             {through(way{resetAt: 300e3}, way{resetAt: 300e3}), "resets", "bad", "there: the load test was cut off (reset)", ""},
		"black hole there":  {through(way{hole: 1400}, way{}), "mtu", "bad", "there: nothing of the load came through", "queue throughput"},
		"black hole back":   {through(way{}, way{hole: 1400}), "mtu", "bad", "back: nothing of the load came through", "queue throughput"},
		"closes after that": {through(way{resetAt: 20}, way{}), "handshake", "bad", "reset", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := examine(t, "--time", "2s", "--device", p.src, c.addr)
			found := false
			for _, f := range r.Findings {
				if f.Check == c.check && f.Grade == c.grade && strings.Contains(f.Evidence, c.words) {
					found = true
				} else if f.Grade == "bad" && f.Check != c.check && !strings.Contains(c.also, f.Check) {
					t.Errorf("called bad as well: %+v", f)
				}
			}
			if !found {
				t.Errorf("no finding of %s that is %s and says %q", c.check, c.grade, c.words)
			}
		})
	}
	if s.ended() {
		t.Error("the node ended")
	}
}

// A line without faults: what does not hang on the speed of the machine is well, the disks are those of the daemon, and
// something is what replication is limited by.
func TestDoctorOfAGoodLine(t *testing.T) {
	p := newPair(t, 8*mib)
	s := serve(t, p.state, "v="+p.dst, "w="+p.src)
	r := examine(t, "--time", "1s", "--control", s.control, s.addr)
	well := map[string]bool{}
	for _, f := range r.Findings {
		well[f.Check] = f.Grade == "ok"
		if f.Check == "disk" && !strings.HasPrefix(f.Evidence, p.src) {
			t.Errorf("%+v", f)
		}
	}
	for _, check := range []string{"dns", "address", "handshake", "trust", "clock", "mtu", "resets", "bottleneck"} {
		if !well[check] {
			t.Errorf("%s is not well", check)
		}
	}
	if _, ok := well["disk"]; !ok || r.LimitedBy == "" || r.Limit <= 0 {
		t.Errorf("limited by %q, %v; disk %v", r.LimitedBy, r.Limit, ok)
	}
	t.Logf("%.1f s, limited by %s: %.1f MB/s", r.Seconds, r.LimitedBy, r.Limit/1e6)
}
