package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/engine"
)

// lines are an answer of several JSON objects.
type lines []any

// fakeDaemon answers on a control socket what a test wants.
func fakeDaemon(t *testing.T, answer func(r *http.Request) (code int, body any)) string {
	t.Helper()
	control := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", control)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, body := answer(r)
		w.WriteHeader(code)
		if all, ok := body.(lines); ok {
			for _, line := range all {
				json.NewEncoder(w).Encode(line)
			}
			return
		}
		json.NewEncoder(w).Encode(body)
	})}
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-served })
	return control
}

func TestVolumeCommandsAskTheDaemon(t *testing.T) {
	asked := make(chan string, 1)
	control := fakeDaemon(t, func(r *http.Request) (int, any) {
		asked <- r.Method + " " + r.URL.Path + "?" + r.URL.Query().Encode()
		return http.StatusOK, engine.CutResult{Volume: "db", Epoch: 12, Seconds: 0.25}
	})
	for args, want := range map[string]struct{ request, prints string }{
		"cut db":                           {"POST /cut?timeout=1m0s&volume=db", "cut 12 of db\n"},
		"cut --wait --timeout 5s db":       {"POST /cut?timeout=5s&volume=db&wait=1", "cut 12 of db: every mirror has it, after 0.25 s\n"},
		"cut db --json":                    {"POST /cut?timeout=1m0s&volume=db", "{\n  \"volume\": \"db\",\n  \"epoch\": 12,\n  \"waited\": false,\n  \"seconds\": 0.25\n}\n"},
		"pause db":                         {"POST /pause?volume=db", ""},
		"resume db":                        {"POST /resume?volume=db", ""},
		"resume --overwrite-mirror h:1 db": {"POST /resume?overwrite=h%3A1&volume=db", ""},
		"rebuild db":                       {"POST /rebuild?volume=db", ""},
	} {
		got := call(t, append(strings.Fields(args), "--control", control)...)
		if got.code != 0 || got.stdout != want.prints || got.stderr != "" {
			t.Errorf("%s: %+v", args, got)
		} else if request := <-asked; request != want.request {
			t.Errorf("%s asks %s", args, request)
		}
	}
}

func TestErrorsOfTheDaemonKeepTheirExitCode(t *testing.T) {
	for kind, code := range map[string]int{"other": 1, "usage": 2, "network": 3, "authentication": 4, "integrity": 5, "device": 6, "state": 7, "odd": 3} {
		control := fakeDaemon(t, func(*http.Request) (int, any) {
			return http.StatusConflict, map[string]string{"kind": kind, "op": "wait for", "on": "east", "error": "it is away", "next": "look at it"}
		})
		got := call(t, "cut", "db", "--wait", "--control", control)
		if got.code != code || got.stdout != "" {
			t.Errorf("%s: %+v", kind, got)
		}
		if want := "blkmirror: wait for east: it is away\n  next: look at it\n"; kind != "odd" && got.stderr != want {
			t.Errorf("%s: says %q", kind, got.stderr)
		}
	}
	for _, command := range []string{"cut", "pause", "resume", "rebuild", "verify", "repair", "scrub"} {
		if got := call(t, command, "db", "--control", filepath.Join(t.TempDir(), "no.sock")); got.code != exitNetwork || !strings.Contains(got.stderr, "no.sock") {
			t.Errorf("%s without a daemon: %+v", command, got)
		}
	}
}

func TestInterruptedCommand(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	control := fakeDaemon(t, func(r *http.Request) (int, any) {
		cancel()
		<-r.Context().Done()
		return http.StatusOK, nil
	})
	var stdout, stderr bytes.Buffer
	code := Main(ctx, []string{"cut", "db", "--wait", "--control", control}, strings.NewReader(""), &stdout, &stderr)
	if code != exitOther || !strings.Contains(stderr.String(), "interrupted") || stdout.Len() > 0 {
		t.Errorf("exit %d, %s%s", code, &stdout, &stderr)
	}
}

// healthy is a node on which nothing needs a look.
func healthy() engine.Status {
	return engine.Status{Node: engine.NodeStatus{Name: "alpha", Version: "v1"}, Listen: "127.0.0.1:7417", Volumes: []engine.VolumeStatus{
		{Name: "db", Device: "/dev/db", Size: 1 << 30, Role: "primary", State: "ok", Epoch: 812, Mode: "async", Export: "unix:/run/db.sock", MaxLag: 60,
			ReadBytes: 5 << 20, WrittenBytes: 7 << 20, Mirrors: []engine.MirrorStatus{
				{Node: "east", Address: "127.0.0.1:7418", State: "connected", CommittedEpoch: 811, LagSeconds: 0.42, LagBytes: 3 << 20, NeedsBytes: 4 << 20,
					ShippedBytes: 6 << 30, WireBytes: 2 << 30},
				{Node: "west", Address: "127.0.0.1:7419", State: "catching-up", CommittedEpoch: 790, LagSeconds: 22, LagBytes: 1 << 30,
					LastDisconnect: &engine.DisconnectCause{Class: "reset", Error: "connection reset by peer", At: "2026-01-02T03:04:05Z",
						Next: "see the log of the other side; a firewall or a crash resets connections"}},
			}},
		{Name: "copy", Device: "/dev/copy", Size: 2 << 30, Role: "mirror", State: "ok", Epoch: 5,
			Primary: &engine.MirrorStatus{Node: "beta", State: "connected", CommittedEpoch: 5}},
		{Name: "disk", Device: "/d.img", Size: 3 << 30, Role: "idle", State: "ok"},
	}}
}

func TestStatusView(t *testing.T) {
	s := healthy()
	s.Volumes[1].State, s.Volumes[1].Error, s.Volumes[1].Next = "failed", "the journal is damaged", "run rebuild"
	s.Volumes[0].Mirrors[1].State, s.Volumes[0].Mirrors[1].Reason = "connecting", "it does not answer"
	s.Volumes[0].Mirrors[1].Holes = 2
	s.Volumes[0].Mirrors[1].Mismatches = engine.MismatchCounts{Wire: 3, Mirror: 1}
	cause := engine.ReadOnlyCause{Reason: "a block differs after 3 tries", Class: "payload", Blocks: []int64{5, 9}, Since: "2026-01-02T03:04:05Z"}
	s.Volumes[0].Mirrors[0].State, s.Volumes[0].Mirrors[0].ReadOnly, s.Volumes[0].Mirrors[0].Reason = "read-only", &cause, cause.Reason
	s.Volumes[1].ReadOnly = &engine.ReadOnlyCause{Reason: "other bytes were read back", Class: "mirror-device", Blocks: []int64{5}, Since: "2026-01-02T03:04:06Z"}
	var b bytes.Buffer
	printStatus(&b, s, time.Date(2026, 1, 2, 3, 5, 10, 0, time.UTC))
	want := `node alpha, blkmirror v1, listening on 127.0.0.1:7417

VOLUME  STATE   ROLE     SIZE      EPOCH  DEVICE
db      ok      primary  1.00 GiB  812    /dev/db
copy    failed  mirror   2.00 GiB  5      /dev/copy
disk    ok      idle     3.00 GiB  -      /d.img

db: export unix:/run/db.sock, async, read 5.00 MiB, written 7.00 MiB
  MIRROR  STATE       LAG     BYTES     COMMITTED  NEEDS     STAGED  SHIPPED   ON THE WIRE  ADDRESS
  east    read-only   0.42 s  3.00 MiB  811        4.00 MiB  0 B     6.00 GiB  2.00 GiB     127.0.0.1:7418
  west    connecting  22.0 s  1.00 GiB  790        0 B       0 B     0 B       0 B          127.0.0.1:7419
  east is read-only since 2026-01-02T03:04:05Z: a block differs after 3 tries (class payload, 2 blocks, the first is 5)
  next: run ` + "`blkmirror repair db`" + `
  west is connecting: it does not answer
  west: checksums that did not match: 3 for the connection, 0 for the primary, 1 for the mirror
  west has 2 holes: pages that could not be read here
  west: last disconnect 1m5s ago: reset: connection reset by peer
  next: see the log of the other side; a firewall or a crash resets connections

copy: the journal is damaged
  next: run rebuild

copy: read-only since 2026-01-02T03:04:06Z: other bytes were read back (class mirror-device, block 5)
  next: run ` + "`blkmirror repair copy`" + `

copy: holds cut 5
  PRIMARY  STATE      LAG     BYTES  COMMITTED  NEEDS  STAGED  SHIPPED  ON THE WIRE  ADDRESS
  beta     connected  0.00 s  0 B    5          0 B    0 B     0 B      0 B          
`
	if b.String() != want {
		t.Errorf("printed\n%s\ninstead of\n%s", b.String(), want)
	}
}

func TestHistoryView(t *testing.T) {
	h := engine.History{History: []engine.Disconnect{
		{Class: "timeout", Error: "nothing moved in 10s", Next: "look", At: "2026-01-02T03:04:05Z", Last: "2026-01-02T03:06:05Z", Tries: 11,
			Role: "primary", Volume: "db", Peer: "east", Address: "east:7070", Established: true, Seconds: 95, Quiet: 10, Sent: 5 << 20, Received: 1 << 20},
		{Class: "protocol", Error: "the peer is not blkmirror", At: "2026-01-02T04:04:05Z", Last: "2026-01-02T04:04:05Z", Role: "acceptor", Address: "192.0.2.9:4711"},
	}}
	var b bytes.Buffer
	printHistory(&b, h)
	want := `   LAST                  VOLUME  AS        PEER            CLASS     CONNECTION  TRIES  SENT      RECEIVED
1  2026-01-02T03:06:05Z  db      primary   east            timeout   1m35s       11     5.00 MiB  1.00 MiB
2  2026-01-02T04:04:05Z  -       acceptor  192.0.2.9:4711  protocol  none        0      0 B       0 B

1  east:7070: nothing moved in 10s
  next: look
2  192.0.2.9:4711: the peer is not blkmirror
`
	if b.String() != want {
		t.Errorf("printed\n%s\ninstead of\n%s", b.String(), want)
	}
	b.Reset()
	printHistory(&b, engine.History{})
	if b.String() != "no disconnects\n" {
		t.Error(b.String())
	}
}

func TestStatusCheck(t *testing.T) {
	tests := []struct {
		name  string
		edit  func(s *engine.Status)
		flags string
		code  int
		says  string
	}{
		{"all is well", func(*engine.Status) {}, "", 0, "ok: 3 volumes, 2 mirrors, lag at most 22.0 s"},
		{"beyond the flag", func(*engine.Status) {}, "--max-lag 10s", 7, "db: mirror west lags by 22.0 s"},
		{"beyond the volume's own", func(s *engine.Status) { s.Volumes[0].MaxLag = 20 }, "", 7, "db: mirror west lags by 22.0 s"},
		{"the flag counts", func(s *engine.Status) { s.Volumes[0].MaxLag = 20 }, "--max-lag 1m", 0, "ok"},
		{"failed", func(s *engine.Status) { s.Volumes[2].State, s.Volumes[2].Error = "failed", "gone" }, "", 7, "disk: failed: gone"},
		{"missing", func(s *engine.Status) { s.Volumes[2].State = "missing" }, "", 7, "disk: missing"},
		{"paused", func(s *engine.Status) { s.Volumes[0].State = "paused" }, "", 7, "db: paused"},
		{"inconsistent", func(s *engine.Status) { s.Volumes[1].State = "inconsistent" }, "", 7, "copy: inconsistent"},
		{"unproven", func(s *engine.Status) { s.Volumes[0].Unproven = true }, "", 7, "db: unproven"},
		{"read-only", func(s *engine.Status) {
			s.Volumes[1].State, s.Volumes[1].ReadOnly = "read-only", &engine.ReadOnlyCause{Reason: "block 5 differs"}
		}, "", 7, "copy: read-only: block 5 differs"},
		{"mirror read-only and away", func(s *engine.Status) {
			s.Volumes[0].Mirrors[0].State, s.Volumes[0].Mirrors[0].ReadOnly = "connecting", &engine.ReadOnlyCause{Reason: "block 5 differs"}
		}, "", 7, "db: mirror east is read-only: block 5 differs"},
		{"holes", func(s *engine.Status) { s.Volumes[0].Mirrors[0].Holes = 3 }, "", 7, "db: mirror east has 3 holes"},
		{"two things", func(s *engine.Status) { s.Volumes[0].Unproven, s.Volumes[2].State = true, "failed" }, "", 7, "; disk: failed"},
		{"no primary yet", func(s *engine.Status) { s.Volumes[1].Primary = nil }, "", 7, "copy: no primary has come yet"},
		{"primary away", func(s *engine.Status) { s.Volumes[1].Primary.State = "connecting" }, "", 7, "copy: its primary beta is connecting"},
	}
	for _, state := range []string{"connecting", "bulk", "reconciling", "degraded", "lagging", "holding", "paused", "refused", "read-only"} {
		tests = append(tests, struct {
			name  string
			edit  func(s *engine.Status)
			flags string
			code  int
			says  string
		}{"mirror " + state, func(s *engine.Status) { m := &s.Volumes[0].Mirrors[0]; m.State, m.Reason = state, "why" }, "", 7,
			"db: mirror east is " + state + ": why"})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := healthy()
			test.edit(&s)
			control := fakeDaemon(t, func(*http.Request) (int, any) { return http.StatusOK, s })
			got := call(t, append(strings.Fields("status --check --control "+control), strings.Fields(test.flags)...)...)
			if got.code != test.code || !strings.Contains(got.stdout, test.says) || strings.Count(got.stdout, "\n") != 1 || got.stderr != "" {
				t.Errorf("%+v", got)
			}
		})
	}
	if got := call(t, "status", "--check", "--control", filepath.Join(t.TempDir(), "none")); got.code != exitNetwork || got.stdout != "" {
		t.Errorf("without a daemon: %+v", got)
	}
}

func TestStatusWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	control := fakeDaemon(t, func(*http.Request) (int, any) {
		if asked++; asked == 3 {
			cancel()
		}
		return http.StatusOK, healthy()
	})
	var stdout, stderr bytes.Buffer
	if code := Main(ctx, []string{"status", "--watch", "--control", control}, strings.NewReader(""), &stdout, &stderr); code != 0 {
		t.Errorf("exit %d: %s", code, &stderr)
	}
	if strings.Count(stdout.String(), "node alpha") < 2 || strings.Contains(stdout.String(), "\x1b") {
		t.Error(stdout.String())
	}
	// A daemon that is away is told, and waited for.
	ctx, cancel = context.WithCancel(t.Context())
	a := &app{stdout: &output{w: writerFunc(func(b []byte) {
		if !strings.Contains(string(b), "no.sock") {
			t.Errorf("%s", b)
		}
		cancel()
	})}}
	if err := a.watchStatus(ctx, filepath.Join(t.TempDir(), "no.sock"), ""); err != nil {
		t.Error(err)
	}
	gone := fakeDaemon(t, func(*http.Request) (int, any) {
		return http.StatusConflict, map[string]string{"kind": "state", "op": "show", "on": "x", "error": "no", "next": "n"}
	})
	if err := a.watchStatus(t.Context(), gone, "x"); exitCode(err) != exitState {
		t.Error(err)
	}
	a.stdout = &output{w: writerFunc(func([]byte) {}), err: errors.New("no reader")}
	if err := a.watchStatus(t.Context(), control, ""); err != nil { // Main tells the write error
		t.Error(err)
	}
}

// The other side is shown under the name that a person gave it, and not under what it calls itself.
func TestStatusViewNames(t *testing.T) {
	for want, m := range map[string]engine.MirrorStatus{
		"east": {Name: "east", Peer: "pluto", Node: "claimed"}, "pluto": {Peer: "pluto", Node: "claimed"}, "claimed": {Node: "claimed"},
	} {
		m.State = "connecting"
		v := engine.VolumeStatus{Name: "v", Role: "mirror", State: "ok", Primary: &m}
		var b strings.Builder
		printStatus(&b, engine.Status{Volumes: []engine.VolumeStatus{v}}, time.Now())
		if !strings.Contains(b.String(), "\n  "+want+" ") {
			t.Errorf("want %s in %q", want, b.String())
		}
	}
}

// A mirror that is read-only tells its reason once.
func TestStatusViewOfAReadOnlyMirror(t *testing.T) {
	s := healthy()
	v := &s.Volumes[1]
	v.State, v.Error, v.Next = "read-only", "block 5 differs", "repair it"
	v.ReadOnly = &engine.ReadOnlyCause{Reason: "block 5 differs", Class: "payload", Since: "2026-01-02T03:04:05Z"}
	var b bytes.Buffer
	printStatus(&b, s, time.Now())
	want := "\ncopy: read-only since 2026-01-02T03:04:05Z: block 5 differs (class payload)\n  next: run `blkmirror repair copy`\n"
	if !strings.Contains(b.String(), want) || strings.Count(b.String(), "block 5 differs") != 1 {
		t.Error(b.String())
	}
}
