package identity

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// TestLive: what another process does is picked up by the next Tick, and told as a change.
func TestLive(t *testing.T) {
	clock := newClock()
	daemon := newNode(t, clock)
	command, err := openNode(clock, func(o *Options) { o.Dir = daemon.options.Dir })
	must(t, err)
	if command.ID() != daemon.ID() {
		t.Fatal("two nodes in one folder")
	}
	peer := Peer{Name: "b", Key: randomID()}
	steps := []struct {
		name    string
		do      func() error
		changed bool
		may     bool // be primary of db
	}{
		{"nothing", func() error { return nil }, false, false},
		{"trust", func() error {
			return command.Trust("b", peer.Key.String(), []Grant{{Volume: "db", As: AsPrimary, Until: clock.now().Add(days)}})
		}, true, true},
		{"the same again", func() error {
			return command.Trust("b", peer.Key.String(), []Grant{{Volume: "db", As: AsPrimary, Until: clock.now().Add(days)}})
		}, false, true},
		{"the end of the grant", func() error { clock.pass(days); return nil }, true, false},
		{"a grant for another volume", func() error { return command.Trust("b", peer.Key.String(), []Grant{{Volume: "www"}}) }, true, false},
		{"a new end", func() error {
			return command.Trust("b", peer.Key.String(), []Grant{{Volume: "db", As: AsPrimary}})
		}, true, true},
		{"revoke", func() error { return command.Revoke("b") }, true, false},
		{"rotate", func() error { _, err := command.Rotate(days); return err }, false, false},
	}
	for _, s := range steps {
		must(t, s.do())
		if got := daemon.Tick(); got != s.changed {
			t.Errorf("%s: changed %v", s.name, got)
		}
		err := daemon.May(peer, "db", AsPrimary)
		if (err == nil) != s.may || err != nil && wire.Classify(err) != wire.ClassAuth {
			t.Errorf("%s: %v", s.name, err)
		}
	}
	if len(daemon.Own()) != 2 {
		t.Error("the next key is not seen")
	}
	daemon.mu.Lock()
	defer daemon.mu.Unlock()
	for _, text := range daemon.log {
		if !strings.Contains(text, "ends") && !strings.Contains(text, "ended") {
			t.Errorf("logged: %s", text)
		}
	}
}

// TestGarbage: what cannot be used changes nothing in a daemon that runs, which tells it once, and is an error
// at the next start.
func TestGarbage(t *testing.T) {
	for _, name := range []string{ownFile, trustFile} {
		for what, damage := range map[string]func(path string) error{
			"garbage": func(path string) error { return os.WriteFile(path, []byte("garbage"), 0o600) },
			"empty":   func(path string) error { return os.Truncate(path, 0) },
			"missing": os.Remove,
			"exposed": func(path string) error { return os.Chmod(path, 0o640) },
		} {
			clock := newClock()
			n := newNode(t, clock)
			peer := Peer{Name: "b", Key: randomID()}
			must(t, n.Trust("b", peer.Key.String(), nil))
			n.Tick()
			id, path := n.ID(), n.path(name)
			right, err := os.ReadFile(path)
			must(t, err)
			must(t, damage(path))
			for range 3 {
				if n.Tick() || n.ID() != id || n.May(peer, "db", AsMirror) != nil {
					t.Errorf("%s, %s: something changed", name, what)
				}
			}
			if len(n.log) != 1 || !n.logged("go on to count") || len(n.Warnings()) != 1 {
				t.Errorf("%s, %s: logged %q, warnings %q", name, what, n.log, n.Warnings())
			}
			_, err = Open(n.options)
			if err == nil && (name != trustFile || what != "missing") {
				t.Errorf("%s, %s: it starts", name, what)
			} else if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrExposed) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
			must(t, os.WriteFile(path, right, 0o600))
			must(t, os.Chmod(path, 0o600))
			if n.Tick(); len(n.Warnings()) != 0 || n.Trust("c", randomID().String(), nil) != nil {
				t.Errorf("%s, %s: mended, and there is %q", name, what, n.Warnings())
			}
		}
	}
}

// TestTrust is the rules of the command.
func TestTrust(t *testing.T) {
	clock := newClock()
	n := newNode(t, clock)
	one, two := randomID().String(), randomID().String()
	typo := "A" + one[1:]
	if one[0] == 'A' {
		typo = "B" + one[1:]
	}
	must(t, n.Trust("b", one, nil))
	must(t, n.Trust("ca", "dns:C.example.org", nil))
	cases := []struct {
		name, id string
		want     error
	}{
		{"b", one, nil}, {"b", strings.ToLower(one), nil}, {"b", two, ErrOtherKey}, {"c", one, ErrOtherName},
		{"b", "dns:b.example.org", ErrOtherKey}, {"ca", one, ErrOtherName}, {"ca", two, ErrOtherKey},
		{"ca", "dns:c.example.org", nil}, {"ca", "dns:d.example.org", ErrOtherKey}, {"d", "dns:c.example.org", ErrOtherName},
		{"d", n.ID().String(), ErrOtherName}, {"", two, ErrName}, {"-d", two, ErrName}, {"d/e", two, ErrName}, {"ü", two, ErrName},
		{strings.Repeat("d", wire.MaxName+1), two, ErrName}, {"d", "dns:", ErrName}, {"d", "dns:*.example.org", ErrName},
		{"d", "dns:10.0.0.1", ErrName}, {"d", "dns:a..b", ErrName},
	}
	for _, c := range cases {
		before := string(n.view().trustText)
		err := n.Trust(c.name, c.id, nil)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("trust %s %s: %v, want %v", c.name, c.id, err, c.want)
		}
		if c.want != nil && string(n.view().trustText) != before {
			t.Errorf("trust %s %s was refused and kept", c.name, c.id)
		}
	}
	if _, typoErr := errors.AsType[*TypoError](n.Trust("b", typo, nil)); !typoErr {
		t.Error("a typo is not told as one")
	}
	must(t, n.Revoke("b"))
	if err := n.Revoke("b"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("revoked twice: %v", err)
	}
	must(t, n.Trust("b", two, nil))
	if err := n.Trust("b2", one, nil); err != nil { // a person's word is the last
		t.Errorf("trust in a key that was revoked: %v", err)
	}
}

// TestMay: the volume's name is all that decides, and the text is the same for one that exists.
func TestMay(t *testing.T) {
	clock := newClock()
	n := newNode(t, clock)
	p := Peer{Name: "b", Key: randomID()}
	must(t, n.Trust("b", p.Key.String(), []Grant{
		{Volume: "db", As: AsPrimary}, {Volume: "www", As: asBoth}, {As: AsMirror, Until: clock.now().Add(days)},
	}))
	cases := []struct {
		volume string
		as     As
		late   bool
		want   bool
	}{
		{"db", AsPrimary, false, true}, {"db", AsMirror, false, true}, {"www", AsPrimary, false, true}, {"x", AsMirror, false, true},
		{"x", AsPrimary, false, false}, {"", AsPrimary, false, true}, {"", 0, true, true}, {"db", AsPrimary, true, true},
		{"db", AsMirror, true, false}, {"www", AsMirror, true, true}, {"x", AsMirror, true, false},
	}
	for _, c := range cases {
		at := clock.now()
		if c.late {
			clock.pass(days)
		}
		if err := n.May(p, c.volume, c.as); (err == nil) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
		clock.pass(at.Sub(clock.now()))
	}
	for _, wrong := range []Peer{{Name: "b"}, {Name: "c", Key: p.Key}, {Name: "b", CA: "b.example.org"}, {Name: "b", Key: randomID()}, {}} {
		if err := n.May(wrong, "", 0); wire.Classify(err) != wire.ClassAuth {
			t.Errorf("%+v may: %v", wrong, err)
		}
	}
}

// TestAhead: ends are told three weeks before, once a day.
func TestAhead(t *testing.T) {
	clock := newClock()
	n := newNode(t, clock)
	end := clock.now().Add(30 * days)
	must(t, n.Trust("b", randomID().String(), []Grant{{As: asBoth}, {Volume: "db", As: AsMirror, Until: end}}))
	if p := n.Peers()[0]; !p.Expires.Equal(end) || len(p.Warnings) != 0 {
		t.Errorf("%+v", p)
	}
	for range 35 {
		for range 3 {
			n.Tick()
			clock.pass(8 * time.Hour)
		}
	}
	if len(n.log) < 22 || len(n.log) > 27 || !n.logged("ends in 20 days") || !n.logged("ends within a day") || !n.logged("ended on") {
		t.Errorf("%d texts: %q", len(n.log), n.log)
	}
}

// overtaken is a folder in which something happens while it is read.
type overtaken struct {
	folder
	during func() // once, behind the reading of trusted.json; nil: nothing
}

func (o *overtaken) read(name string) ([]byte, fs.FileMode, error) {
	text, mode, err := o.folder.read(name)
	if during := o.during; during != nil && name == trustFile {
		o.during = nil
		during()
	}
	return text, mode, err
}

// TestReloadOvertaken: what a Tick has read does not replace what was changed meanwhile: a revoked peer does not
// come back for a second, and no key of our own goes.
func TestReloadOvertaken(t *testing.T) {
	clock := newClock()
	other := newNode(t, clock) // another process
	must(t, other.Trust("b", randomID().String(), nil))
	d, err := openDir(other.options.Dir)
	must(t, err)
	disk := &overtaken{folder: d}
	n, err := open(Options{Dir: other.options.Dir, Now: clock.now}, disk)
	must(t, err)
	must(t, other.Trust("c", randomID().String(), nil)) // there is something to be read
	disk.during = func() {
		disk.during = func() { // the second reading
			must(t, n.Revoke("b"))
			_, err := n.Rotate(days)
			must(t, err)
		}
	}
	n.Tick()
	if disk.during != nil || n.view().trust.byName("b") != nil || len(n.Own()) != 2 {
		t.Errorf("%d keys, and b is %+v", len(n.Own()), n.view().trust.byName("b"))
	}
	if n.Tick(); n.view().trust.byName("c") == nil || n.view().trust.byName("b") != nil {
		t.Error("the next Tick does not know what is on disk")
	}
}

// TestTickWaitsForNobody: a process that sits on the lock holds up who wants to write, not the look at the time.
func TestTickWaitsForNobody(t *testing.T) {
	clock := newClock()
	n := newNode(t, clock)
	must(t, n.Trust("b", randomID().String(), []Grant{{As: AsMirror, Until: clock.now().Add(days)}}))
	n.Tick()
	n.writing.Lock() // as update has it, while it waits for the folder
	defer n.writing.Unlock()
	n.mu.Lock()
	n.knows["b"] = n.files.own[0].id // something to be written
	n.mu.Unlock()
	clock.pass(2 * days)
	if !n.Tick() { // that it returns is half of the test
		t.Error("the end of a right is not seen")
	}
}
