package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/blkmirror/blkmirror/wire"
)

// fakeLive is a live volume that notes what it is asked for.
type fakeLive struct {
	calls chan string // nil: nobody looks
	err   error
	cutFn func(ctx context.Context, wait bool) (uint64, error)

	verifyFn func(context.Context, VerifyOptions, func(CheckProgress)) ([]VerifyResult, error)
	repairFn func(context.Context, RepairOptions, func(CheckProgress)) ([]RepairResult, error)
	scrubFn  func(context.Context, ScrubOptions, func(CheckProgress)) ([]ScrubResult, error)
}

func (f *fakeLive) note(call string) error {
	if f.calls != nil {
		f.calls <- call
	}
	return f.err
}

func (f *fakeLive) fill(st *VolumeStatus) {
	st.Role, st.State, st.Epoch = "primary", "ok", 7
	st.Mirrors = []MirrorStatus{{Node: "east", State: "connected", LastDisconnect: &DisconnectCause{Class: "reset", Error: "x", Next: "n"}}}
}

func (f *fakeLive) cut(ctx context.Context, wait bool) (uint64, error) {
	if f.cutFn != nil {
		return f.cutFn(ctx, wait)
	}
	return 8, f.note("cut")
}
func (f *fakeLive) verify(ctx context.Context, o VerifyOptions, tell func(CheckProgress)) ([]VerifyResult, error) {
	return f.verifyFn(ctx, o, tell)
}
func (f *fakeLive) repair(ctx context.Context, o RepairOptions, tell func(CheckProgress)) ([]RepairResult, error) {
	return f.repairFn(ctx, o, tell)
}
func (f *fakeLive) scrub(ctx context.Context, o ScrubOptions, tell func(CheckProgress)) ([]ScrubResult, error) {
	return f.scrubFn(ctx, o, tell)
}
func (f *fakeLive) pause() error                  { return f.note("pause") }
func (f *fakeLive) resume(overwrite string) error { return f.note("resume " + overwrite) }
func (f *fakeLive) tune(VolumeConfig)             {}
func (f *fakeLive) rebuild() error                { return f.note("rebuild") }
func (f *fakeLive) stop(context.Context) error    { return nil }

// controlOf serves the control socket of a node with the live volume "db" and the plain one "disk".
func controlOf(t *testing.T, live liveVolume) (control string, close func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	d := newDisconnects(func(string) {}, time.Now)
	d.add(Disconnect{Role: "primary", Volume: "db", Peer: "east"}, lived)
	s := &server{id: "id", disconnects: d, listener: l, gate: newGate(nil, "", nil), names: []string{"db", "disk"}, volumes: map[string]*volume{
		"db": {name: "db", path: "/db", live: live}, "disk": {name: "disk", path: "/disk", state: "ok"},
	}}
	s.Control = filepath.Join(t.TempDir(), "c.sock")
	c, err := s.listenControl()
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	close = func() {
		if !closed {
			closed = true
			c.close()
		}
	}
	t.Cleanup(close)
	return s.Control, close
}

func TestControlCommands(t *testing.T) {
	live := &fakeLive{calls: make(chan string, 1)}
	control, _ := controlOf(t, live)
	ctx := t.Context()
	for want, do := range map[string]func() error{
		"pause":       func() error { return Pause(ctx, control, "db") },
		"resume ":     func() error { return Resume(ctx, control, "db", "") },
		"resume a:&b": func() error { return Resume(ctx, control, "db", "a:&b") },
		"rebuild":     func() error { return Rebuild(ctx, control, "db") },
		"cut": func() error {
			r, err := Cut(ctx, control, "db", false, time.Minute)
			if r.Epoch != 8 || r.Volume != "db" || r.Waited {
				t.Errorf("cut: %+v", r)
			}
			return err
		},
	} {
		if err := do(); err != nil {
			t.Errorf("%s: %v", want, err)
		} else if got := <-live.calls; got != want {
			t.Errorf("%q arrived as %q", want, got)
		}
	}
}

func TestControlHistory(t *testing.T) {
	control, _ := controlOf(t, &fakeLive{})
	for volume, want := range map[string]int{"": 1, "db": 1, "disk": 0} {
		h, err := FetchHistory(t.Context(), control, volume)
		if err != nil || len(h.History) != want || h.Node.Disconnects["reset"] != 1 || len(h.Node.Disconnects) != len(wire.Classes) {
			t.Errorf("%q: %+v, %v", volume, h, err)
		}
	}
	_, err := FetchHistory(t.Context(), control, "nothing")
	wantKind(t, err, KindState)
}

func TestControlStatusOfOneVolume(t *testing.T) {
	control, _ := controlOf(t, &fakeLive{})
	all, err := FetchStatus(t.Context(), control)
	if err != nil || len(all.Volumes) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	one, err := FetchVolume(t.Context(), control, "db")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all.Volumes[:1], one.Volumes); diff != "" {
		t.Error(diff)
	}
	if v := one.Volumes[0]; v.Role != "primary" || v.Epoch != 7 || v.Device != "/db" || len(v.Mirrors) != 1 {
		t.Errorf("%+v", v)
	}
	if next := one.Volumes[0].Mirrors[0].LastDisconnect.Next; next != "n" {
		t.Error("a reset has no next step")
	}
	_, err = FetchVolume(t.Context(), control, "nothing")
	wantKind(t, err, KindState)
}

func TestControlErrorsKeepTheirKind(t *testing.T) {
	live := &fakeLive{}
	control, _ := controlOf(t, live)
	for kind := range kindNames {
		want := &Error{Kind: Kind(kind), Op: "try", On: "it", Err: errors.New("<no> & \"no\""), Next: "next"}
		live.err = want
		err := Pause(t.Context(), control, "db")
		got, ok := errors.AsType[*Error](err)
		if !ok || got.Kind != want.Kind || got.Error() != want.Error() || got.Next != want.Next {
			t.Errorf("%v became %v", want, err)
		}
	}
	live.err = errors.New("plain")
	if got, ok := errors.AsType[*Error](Pause(t.Context(), control, "db")); !ok || got.Kind != KindOther || !strings.Contains(got.Error(), "plain") {
		t.Errorf("a plain error became %v", got)
	}
}

func TestControlRefuses(t *testing.T) {
	control, _ := controlOf(t, &fakeLive{})
	ctx := t.Context()
	wantKind(t, Pause(ctx, control, "nothing"), KindState)
	wantKind(t, Pause(ctx, control, ""), KindUsage)
	wantKind(t, Rebuild(ctx, control, "disk"), KindState)
	_, err := Cut(ctx, control, "disk", true, time.Second)
	wantKind(t, err, KindState)
	for _, timeout := range []time.Duration{-1, 0, 25 * time.Hour} {
		_, err := Cut(ctx, control, "db", true, timeout)
		wantKind(t, err, KindUsage)
	}
	wantKind(t, Pause(ctx, control+"x", "db"), KindNetwork)
}

func TestControlCutThatIsNotInTime(t *testing.T) {
	live := &fakeLive{cutFn: func(ctx context.Context, wait bool) (uint64, error) {
		<-ctx.Done()
		return 9, &Error{Kind: KindNetwork, Op: "wait for", On: "east, west", Err: context.Cause(ctx), Next: "look there"}
	}}
	control, _ := controlOf(t, live)
	_, err := Cut(t.Context(), control, "db", true, 10*time.Millisecond)
	wantKind(t, err, KindNetwork)
	if !strings.Contains(err.Error(), "east, west") || !strings.Contains(err.Error(), errNotInTime.Error()) {
		t.Error(err)
	}
	live.cutFn = func(ctx context.Context, wait bool) (uint64, error) { <-ctx.Done(); return 0, ctx.Err() }
	_, err = Cut(t.Context(), control, "db", true, 10*time.Millisecond)
	wantKind(t, err, KindNetwork)
}

// A wait outlives the server's own time-outs, which are for slow senders and readers.
func TestControlCutMayTakeLongerThanARequest(t *testing.T) {
	t.Parallel() // it waits most of the time
	if testing.Short() {
		t.Skip("waits for longer than a request may take")
	}
	live := &fakeLive{cutFn: func(ctx context.Context, wait bool) (uint64, error) {
		select {
		case <-time.After(controlTimeout + time.Second):
			return 5, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}}
	control, _ := controlOf(t, live)
	if r, err := Cut(t.Context(), control, "db", true, time.Minute); err != nil || r.Epoch != 5 || !r.Waited {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestControlWaitEndsWithItsClient(t *testing.T) {
	began, ended := make(chan bool, 1), make(chan error, 1)
	live := &fakeLive{cutFn: func(ctx context.Context, wait bool) (uint64, error) {
		began <- wait
		<-ctx.Done()
		ended <- ctx.Err()
		return 0, ctx.Err()
	}}
	control, closeControl := controlOf(t, live)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := Cut(ctx, control, "db", true, time.Hour)
		failed <- err
	}()
	if wait := <-began; !wait {
		t.Error("wait did not arrive")
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	go func() {
		_, err := Cut(t.Context(), control, "db", true, time.Hour)
		failed <- err
	}()
	<-began
	closeControl()
	<-ended
	err := <-failed
	wantKind(t, err, KindNetwork)
	if !strings.Contains(err.Error(), errDaemonStops.Error()) {
		t.Error(err)
	}
}

// What curl sees.
func TestControlAnswersJSON(t *testing.T) {
	control, _ := controlOf(t, &fakeLive{err: &Error{Kind: KindState, Op: "a", On: "b", Err: errors.New("c"), Next: "d"}})
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", control)
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Post("http://control/pause?volume=db", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"kind": "state", "op": "a", "on": "b", "error": "c", "next": "d"}
	if diff := cmp.Diff(want, got); diff != "" || resp.StatusCode != http.StatusConflict || resp.Header.Get("Content-Type") != "application/json" {
		t.Error(resp.Status, diff)
	}
	if resp, err := client.Get("http://control/pause?volume=db"); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Error(resp, err)
	} else {
		resp.Body.Close()
	}
}

func TestCheckAddresses(t *testing.T) {
	long := "unix:/" + strings.Repeat("x", maxSocketPath)
	for spec, ok := range map[string]bool{
		"unix:/run/x.sock": true, "unix:x": true, "tcp:127.0.0.1:0": true, "tcp:[::1]:10809": true,
		"": false, "unix:": false, "tcp:": false, "/run/x": false, "udp:127.0.0.1:1": false, "tcp:127.0.0.1": false, "tcp::1": false,
		"tcp:192.0.2.1:1": false, "tcp:0.0.0.0:1": false, "tcp:127.0.0.1:x": false, "tcp:127.0.0.1:70000": false, long: false,
	} {
		if err := CheckExport(spec); (err == nil) != ok {
			t.Errorf("export %q: %v", spec, err)
		}
	}
	for addr, ok := range map[string]bool{
		"127.0.0.1:7417": true, "[::1]:1": true, "name.invalid:1": true, "192.0.2.1:1": true,
		"": false, "127.0.0.1": false, ":1": false, "127.0.0.1:0": false, "127.0.0.1:http": false,
	} {
		if err := CheckPeer(addr); (err == nil) != ok {
			t.Errorf("mirror %q: %v", addr, err)
		}
	}
}
