package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/blkmirror/blkmirror/wire"
)

// logged gathers what is logged.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (t *logged) log(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, text)
}

func (t *logged) all() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.lines...)
}

var (
	east   = Disconnect{Role: "primary", Volume: "db", Peer: "east", Address: "192.0.2.1:7070"}
	lived  = parting{err: wire.ErrReset, established: true, age: time.Hour, quiet: time.Second, sent: 5, received: 6}
	failed = parting{err: syscall.ECONNREFUSED}
)

func (p parting) aged(age, quiet time.Duration) parting { p.age, p.quiet = age, quiet; return p }

// TestDisconnectEntries: what fails for the same reason in a row is one entry with a count and one line of the log;
// a session that lived is always one of its own.
func TestDisconnectEntries(t *testing.T) {
	var log logged
	now := time.Unix(1_700_000_000, 0)
	d := newDisconnects(log.log, func() time.Time { now = now.Add(time.Second); return now })
	d.add(east, lived)
	for range 50 {
		d.add(east, failed)
	}
	d.add(east, parting{err: wire.ErrHandshakeTimeout})
	for range 50 {
		d.add(east, failed) // the same outage
	}
	d.add(Disconnect{Role: "primary", Volume: "db", Peer: "west"}, failed)
	d.add(east, lived)
	d.add(east, lived.aged(time.Millisecond, 0)) // established, and dropped at once
	d.add(east, failed)
	var got []string
	for _, e := range d.list("db") {
		got = append(got, fmt.Sprintf("%s %s %v %d", e.Peer, e.Class, e.Established, e.Tries))
	}
	want := []string{"east reset true 0", "east refused false 99", "east timeout false 0", "west refused false 0",
		"east reset true 1", "east refused false 0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if lines := log.all(); len(lines) != len(want) {
		t.Errorf("%d lines: %q", len(lines), lines)
	} else {
		for _, word := range []string{"volume db", "mirror east", east.Address, "3600.0 s", "5 bytes sent", "6 received", "reset: ", "next: "} {
			if !strings.Contains(lines[0], word) {
				t.Errorf("%q does not say %q", lines[0], word)
			}
		}
	}
	if c := d.count(); c["reset"] != 2 || c["refused"] != 3 || c["timeout"] != 1 || c["dns"] != 0 || len(c) != len(wire.Classes) {
		t.Errorf("counts %v", c)
	}
	if got := d.list("other"); got == nil || len(got) != 0 {
		t.Errorf("another volume: %v", got)
	}
	if last := d.last("primary", "db", "west"); last == nil || last.Class != "refused" || last.Next == "" {
		t.Errorf("last of west: %+v", last)
	}
}

// TestDisconnectHeld: a path that holds everything back for minutes is one disconnect.
func TestDisconnectHeld(t *testing.T) {
	var log logged
	d := newDisconnects(log.log, time.Now)
	silent := lived
	silent.err = fmt.Errorf("connection: %w", wire.ErrSilent)
	d.add(east, silent)
	for range 12 {
		d.add(east, parting{err: fmt.Errorf("receive: %w", wire.ErrHandshakeTimeout)})
		d.add(east, parting{err: networkError("x", os.ErrDeadlineExceeded)})
	}
	if c := d.count(); c["timeout"] != 1 || len(d.list("")) != 1 || len(log.all()) != 1 {
		t.Errorf("%v, %q", c, log.all())
	}
}

// TestDisconnectStopped: while a peer is awaited that was stopped, nothing that fails is news; later it is.
func TestDisconnectStopped(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	d := newDisconnects(func(string) {}, func() time.Time { return now })
	d.add(east, parting{err: &wire.RemoteError{Code: wire.CodeStopped}, established: true, age: time.Hour})
	for range 130 {
		now = now.Add(time.Second)
		d.add(east, failed)
	}
	if c := d.count(); c["peer-stopped"] != 1 || c["refused"] != 1 {
		t.Errorf("%v", c)
	}
	d.add(east, parting{err: &wire.RemoteError{Code: wire.CodeStopped}, established: true, age: time.Hour})
	d.add(east, parting{err: context.Canceled, established: true, age: time.Second}) // it was back, and now we stop
	d.add(east, parting{err: wire.ErrProtocol})
	now = now.Add(sameFor + time.Minute)
	d.add(east, parting{err: wire.ErrProtocol}) // a long time later
	if c := d.count(); c["peer-stopped"] != 2 || c["local-stop"] != 1 || c["protocol"] != 1 {
		t.Errorf("%v", c)
	}
}

// TestDisconnectLimit: the last hundred are kept, whatever strangers say.
func TestDisconnectLimit(t *testing.T) {
	d := newDisconnects(func(string) {}, time.Now)
	d.add(east, lived)
	for i := range 10_000 { // strangers: each class once
		errs := []error{wire.ErrHandshakeTimeout, wire.ErrNotBlkmirror, wire.ErrReset, wire.ErrVersion}
		d.add(Disconnect{Role: roleAcceptor, Address: fmt.Sprint("192.0.2.", i)}, parting{err: errs[i%len(errs)]})
	}
	if all := d.list(""); len(all) != 5 || all[0].Peer != "east" {
		t.Errorf("%d entries are left of a flood", len(all))
	}
	for range 3 * maxHistory {
		d.add(Disconnect{Role: "mirror", Volume: "db", Peer: strings.Repeat("n€", 1000)}, lived)
	}
	all := d.list("")
	if len(all) != maxHistory || len(all[0].Peer) > maxCause {
		t.Errorf("%d entries", len(all))
	}
}

// TestDisconnectPattern: resets that come at about the same age, or after about the same silence, are told as what
// they look like.
func TestDisconnectPattern(t *testing.T) {
	type life struct{ age, quiet time.Duration }
	for name, c := range map[string]struct {
		lives []life
		word  string
	}{
		"idle":    {[]life{{2000 * time.Second, 301 * time.Second}, {700 * time.Second, 300 * time.Second}, {5000 * time.Second, 299 * time.Second}}, "idle time-out"},
		"age":     {[]life{{598 * time.Second, time.Second}, {600 * time.Second, 0}, {605 * time.Second, 2 * time.Second}}, "time limit"},
		"two":     {[]life{{600 * time.Second, 0}, {600 * time.Second, 0}}, ""},
		"various": {[]life{{600 * time.Second, 0}, {60 * time.Second, 0}, {6000 * time.Second, 0}}, ""},
		"young":   {[]life{{3 * time.Second, 0}, {3 * time.Second, 0}, {3 * time.Second, 0}}, ""},
	} {
		d := newDisconnects(func(string) {}, time.Now)
		d.add(Disconnect{Role: "primary", Volume: "db", Peer: "west"}, lived)
		for _, l := range c.lives {
			d.add(east, failed) // between them
			d.add(east, lived.aged(l.age, l.quiet))
		}
		all := d.list("")
		next := all[len(all)-1].Next
		if got := strings.Contains(next, "this looks like"); got != (c.word != "") || !strings.Contains(next, c.word) || !strings.HasSuffix(next, nextByClass[wire.ClassReset]) {
			t.Errorf("%s: %q", name, next)
		}
		before := len(all)
		d.add(east, lived.aged(time.Millisecond, 0)) // the same class, dropped at once
		if got := len(d.list("")); got != before {
			t.Errorf("%s: a short one is an entry of its own", name)
		}
	}
}

// TestDisconnectFile: the history outlives the process; a file that cannot be read is begun anew and told.
func TestDisconnectFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), disconnectsFile)
	var log logged
	d := openDisconnects(path, log.log)
	d.add(east, lived)
	d.add(east, failed)
	d.close()
	before := d.list("")
	d = openDisconnects(path, log.log)
	if diff := cmp.Diff(before, d.list("")); diff != "" {
		t.Error(diff)
	}
	if c := d.count(); c["reset"] != 0 {
		t.Errorf("counts begin with the process: %v", c)
	}
	d.close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(log.all()); n != 2 {
		t.Errorf("%d lines: %q", n, log.all())
	}
	long := disconnectsRecord{Version: disconnectsVersion, History: make([]Disconnect, maxHistory+1)}
	blob, _ := json.Marshal(long)
	for name, bad := range map[string][]byte{"empty": nil, "cut": whole[:len(whole)/2], "garbage": []byte("\x00\xff\x00"), "version": []byte(`{"version":2}`),
		"long": blob, "huge": append(whole, make([]byte, maxDisconnectsFile)...)} {
		var log logged
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		d := openDisconnects(path, log.log)
		if lines := log.all(); len(lines) != 1 || !strings.Contains(lines[0], "begins anew") || len(d.list("")) != 0 {
			t.Errorf("%s: %q", name, lines)
		}
		d.add(east, lived)
		d.close()
		if again, err := readDisconnects(path); err != nil || len(again) != 1 {
			t.Errorf("%s: %v, %v", name, again, err)
		}
	}
}

// TestDisconnectClasses: every class has a next step, and the page says the same.
func TestDisconnectClasses(t *testing.T) {
	text, err := os.ReadFile("../docs/DISCONNECTS.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, class := range wire.Classes {
		next := nextByClass[class]
		_, section, found := strings.Cut(page, "\n### `"+string(class)+"`\n")
		section, _, _ = strings.Cut(section, "\n### ")
		if next == "" || !found || !strings.Contains(strings.Join(strings.Fields(section), " "), "**Next step:** "+next) {
			t.Errorf("class %s: next %q, section found %v", class, next, found)
		}
	}
	for err, want := range map[error]wire.Class{
		errNoVolume("x"): wire.ClassRefused,
		&Error{Kind: KindState, code: wire.CodeReplaced, Err: wire.ErrReplaced}: wire.ClassLocalStop,
		deviceError("write", "x", syscall.EIO):                                  wire.ClassLocalStop,
		context.Canceled:                                                        wire.ClassLocalStop,
		fmt.Errorf("x: %w", errMismatch):                                        wire.ClassIntegrity,
		networkError("x", syscall.EHOSTUNREACH):                                 wire.ClassUnreachable,
	} {
		if got := classOf(err); got != want {
			t.Errorf("%v has class %s, want %s", err, got, want)
		}
	}
}

// FuzzDisconnects: whatever is in the file, a node comes up with it, goes on, and keeps it within its limits.
func FuzzDisconnects(f *testing.F) {
	blob, err := json.Marshal(disconnectsRecord{disconnectsVersion, []Disconnect{east, {Class: "reset", Established: true, Seconds: 1e9, At: "x"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob)
	f.Add([]byte(`{"version":1,"history":[{"role":"primary","volume":"db","peer":"east","class":"reset","established":true,"seconds":-1e308}]}`))
	f.Fuzz(func(t *testing.T, blob []byte) {
		history, err := parseDisconnects(blob)
		if err != nil {
			return
		}
		d := newDisconnects(func(string) {}, time.Now)
		d.history = history
		d.add(east, lived)
		d.add(east, failed)
		d.last("primary", "db", "east")
		if all := d.list(""); len(all) > maxHistory || len(all) < 2 && len(history) == 0 {
			t.Errorf("%d entries", len(all))
		}
		if again, err := json.Marshal(disconnectsRecord{disconnectsVersion, d.list("")}); err != nil {
			t.Error(err)
		} else if _, err := parseDisconnects(again); err != nil {
			t.Error(err)
		}
	})
}

// TestDisconnectUnheard: a peer that heard nothing of us says so, which is no reset, and a copy goes on after it.
func TestDisconnectUnheard(t *testing.T) {
	err := fmt.Errorf("receive: %w", &wire.RemoteError{Code: wire.CodeSilent, Text: "nothing came"})
	if class, next := classOf(err), nextStep(err); class != wire.ClassTimeout || !strings.Contains(next, "what this side sends") {
		t.Errorf("%s, next: %s", class, next)
	}
	if !worthRetrying(err) {
		t.Error("a sync gives up")
	}
	var r retry
	if now := time.Now(); r.next(parting{err: err, established: true, age: time.Minute}, now.Add(-time.Minute), now).After(now) {
		t.Error("it is not dialled at once")
	}
}

// endedBy is a connection that ended by an error.
type endedBy struct {
	Conn
	err error
}

func (endedBy) Sent() int64        { return 0 }
func (endedBy) Received() int64    { return 0 }
func (c endedBy) Err() error       { return c.err }
func (endedBy) RTT() time.Duration { return 0 }

// TestPartingOfTheDead: a connection that was found dead ended by that, and not by the newer one for which the peer, that
// was told, did not wait.
func TestPartingOfTheDead(t *testing.T) {
	replaced := &Error{Kind: KindState, Err: wire.ErrReplaced, code: wire.CodeReplaced}
	for err, want := range map[error]wire.Class{fmt.Errorf("dead: %w", wire.ErrSilent): wire.ClassTimeout, wire.ErrClosed: wire.ClassLocalStop} {
		p := partingOf(endedBy{err: err}, true, replaced)
		if class := classOf(p.err); class != want {
			t.Errorf("%v, and a newer one: %s", err, class)
		}
	}
}
