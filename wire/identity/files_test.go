package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

var update = flag.Bool("update", false, "write the golden files anew; the formats are frozen, so look twice")

// testKey is a key that is the same each time.
func testKey(seed byte, made, from, until time.Time) ownKey {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	return ownKey{private: private, id: ID(private.Public().(ed25519.PublicKey)), made: made, from: from, until: until}
}

func sampleRing() ring {
	at := newClock().now()
	return ring{
		testKey(1, at.Add(-90*days), at.Add(-90*days), at.Add(29*days)),
		testKey(2, at.Add(-20*days), at.Add(-days), at.Add(40*days+time.Millisecond)),
		testKey(3, at, at.Add(10*days), time.Time{}),
	}
}

func sampleTrust() *trust {
	at, r := newClock().now(), sampleRing()
	peerID := func(seed byte) ID { return testKey(seed, at, at, at).id }
	return &trust{
		Version: trustVersion,
		Peers: []*peer{
			{Name: "neptune", Keys: []peerKey{{ID: peerID(11), Added: at, Person: true, Until: at.Add(days)}},
				Grants: []Grant{{As: asBoth}}, Knows: r[0].id,
				Alarms: []alarm{{Key: peerID(11), Nexts: [2]ID{peerID(12), peerID(13)}, At: at}}},
			{Name: "pluto", Keys: []peerKey{
				{ID: peerID(14), Added: at, Person: true, Until: at.Add(30 * days)},
				{ID: peerID(15), Added: at.Add(time.Hour), After: peerID(14), Switch: at.Add(days)},
			}, Grants: []Grant{{Volume: "db", As: AsMirror}, {Volume: "www", As: AsPrimary, Until: at.Add(365 * days)}}, Knows: r[1].id},
			{Name: "saturn", Host: "saturn.example.org", Grants: []Grant{{As: AsPrimary}}, CertificateFrom: at, CertificateUntil: at.Add(90 * days)},
		},
		Revoked: []revoked{{Key: peerID(16), Name: "mars", At: at}},
	}
}

// TestGolden holds both files to their bytes, which FORMATS.md shows.
func TestGolden(t *testing.T) {
	ownText, err := sampleRing().encode()
	must(t, err)
	trustText, err := sampleTrust().encode()
	must(t, err)
	for name, got := range map[string][]byte{ownFile: ownText, trustFile: trustText} {
		path := filepath.Join("testdata", name)
		if *update {
			must(t, os.WriteFile(path, got, 0o644))
		}
		want, err := os.ReadFile(path)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s:\n%swant:\n%s", name, got, want)
		}
	}
	if _, err := decodeFiles(ownText, trustText); err != nil {
		t.Error(err)
	}
	doc, err := os.ReadFile("../../docs/FORMATS.md")
	must(t, err)
	keys := bytes.SplitAfter(ownText, []byte("-----END PRIVATE KEY-----\n"))
	_, sum, _ := bytes.Cut(trustText, []byte("\n"))
	for _, part := range [][]byte{keys[0], keys[2], sum} {
		if !bytes.Contains(doc, part) {
			t.Errorf("not in FORMATS.md:\n%s", part)
		}
	}
}

// TestDamage: no changed byte of either file is taken for what it was, but for one that changes a date in
// own.pem: those have no checksum.
func TestDamage(t *testing.T) {
	f := &files{own: sampleRing(), trust: sampleTrust()}
	f, err := f.again()
	must(t, err)
	for at := range f.trustText {
		wrong := bytes.Clone(f.trustText)
		wrong[at] ^= 1
		if _, err := decodeTrust(wrong); err == nil {
			t.Fatalf("%s with byte %d changed is taken", trustFile, at)
		}
	}
	for at := range f.ownText {
		wrong := bytes.Clone(f.ownText)
		wrong[at] ^= 1
		r, err := decodeRing(wrong)
		if err != nil {
			continue
		}
		for i := range r {
			if r[i].id != f.own[i].id || len(r) != len(f.own) {
				t.Fatalf("%s with byte %d changed has other keys", ownFile, at)
			}
		}
	}
	for cut := range f.ownText {
		if r, err := decodeRing(f.ownText[:cut]); err == nil && len(r) == len(f.own) {
			t.Fatalf("%s cut at %d is taken", ownFile, cut)
		}
	}
	version := []byte(`{"version":2,"peers":[],"revoked":[],"more":1}`)
	if _, err := decodeTrust(summed(version)); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("another version: %v", err)
	}
}

func FuzzOwn(f *testing.F) {
	text, err := sampleRing().encode()
	must(f, err)
	f.Add(text)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := decodeRing(text)
		if err != nil {
			return
		}
		if again, err := r.encode(); err != nil || !bytes.Equal(again, text) {
			t.Errorf("%q comes back as %q, %v", text, again, err)
		}
		now := newClock().now()
		if r.expire(now, func(ID) bool { return true })[0].id == (ID{}) || r.current(now) >= len(r) {
			t.Error("no key is left")
		}
	})
}

// FuzzTrust has the first line made up; the second is right, or nothing would get past it.
func FuzzTrust(f *testing.F) {
	text, err := sampleTrust().encode()
	must(f, err)
	line, _, _ := bytes.Cut(text, []byte("\n"))
	f.Add(line)
	f.Add([]byte(`{"version":1,"peers":[],"revoked":[]}`))
	f.Add([]byte(`{"version":1,"peers":[null],"revoked":null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if bytes.ContainsRune(line, '\n') {
			return
		}
		tr, err := decodeTrust(summed(line))
		if err != nil {
			return
		}
		now := newClock().now()
		for _, p := range tr.Peers {
			p.may(now, "db", AsMirror)
			p.infos(now)
		}
		tr.expire(now, func(ID) bool { return true })
		must(t, tr.check())
	})
}

func summed(line []byte) []byte {
	sum := sha256.Sum256(line)
	return fmt.Appendf(nil, "%s\n%s\n", line, hex.EncodeToString(sum[:]))
}

// TestExposed: files that others can read are refused, with what mends it.
func TestExposed(t *testing.T) {
	for _, name := range []string{ownFile, trustFile} {
		clock := newClock()
		n := newNode(t, clock)
		path := n.path(name)
		must(t, os.Chmod(path, 0o644))
		_, err := Open(Options{Dir: n.options.Dir})
		if !errors.Is(err, ErrExposed) || !strings.Contains(err.Error(), "chmod 0600 "+path) {
			t.Errorf("%s: %v", name, err)
		}
		if err := n.Trust("b", randomID().String(), nil); !errors.Is(err, ErrExposed) {
			t.Errorf("trust beside %s: %v", name, err)
		}
	}
	open := t.TempDir()
	must(t, os.Chmod(open, 0o777))
	if _, err := Open(Options{Dir: open}); !errors.Is(err, ErrExposed) {
		t.Errorf("a folder of everybody: %v", err)
	}
}

// memory is a folder that loses, at a cut of the power, what was not made durable, or not.
type memory struct {
	files  map[string]memoryFile // by name, as seen now
	kept   map[string]memoryFile // names that are durable
	steps  int                   // taken so far
	failAt int                   // that step fails, and all behind it
}

type memoryFile struct{ content, durable []byte }

var errPower = errors.New("the power is gone")

func newMemory() *memory {
	return &memory{files: map[string]memoryFile{}, kept: map[string]memoryFile{}, failAt: -1}
}

// cut is what is there after the power comes back. With lazy, nothing reached the disk unasked; without, all
// did.
func (m *memory) cut(lazy bool) *memory {
	after := newMemory()
	names := m.files
	if lazy {
		names = m.kept
	}
	for name, f := range names {
		if now, ok := m.files[name]; ok && !lazy {
			f = now
		}
		content := f.content
		if lazy {
			content = f.durable
		}
		after.files[name] = memoryFile{content, content}
	}
	after.kept = maps.Clone(after.files)
	return after
}

func (m *memory) step() error {
	if m.failAt >= 0 && m.steps >= m.failAt {
		return errPower
	}
	m.steps++
	return nil
}

func (m *memory) read(name string) ([]byte, fs.FileMode, error) {
	f, ok := m.files[name]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return f.content, 0o600, nil
}

func (m *memory) create(name string, content []byte) error {
	m.files[name] = memoryFile{content: content[:len(content)/2]}
	if err := m.step(); err != nil {
		return err
	}
	m.files[name] = memoryFile{content: content}
	return nil
}

func (m *memory) sync(name string) error {
	if err := m.step(); err != nil {
		return err
	}
	f := m.files[name]
	f.durable = f.content
	m.files[name] = f
	return nil
}

func (m *memory) rename(from, to string) error {
	if err := m.step(); err != nil {
		return err
	}
	m.files[to] = m.files[from]
	delete(m.files, from)
	return nil
}

func (m *memory) syncDir() error {
	if err := m.step(); err != nil {
		return err
	}
	m.kept = maps.Clone(m.files)
	return nil
}

func (m *memory) lock(time.Duration) (func(), error) { return func() {}, nil }

// TestPower cuts the power at each step of each change: the next start finds what was before or what was to
// be, and what was confirmed is there.
func TestPower(t *testing.T) {
	clock := newClock()
	peerID := randomID().String()
	changes := map[string]func(*Node) error{
		"trust":  func(n *Node) error { return n.Trust("b", peerID, nil) },
		"rotate": func(n *Node) error { _, err := n.Rotate(7 * days); return err },
	}
	for name, change := range changes {
		for failAt := 0; ; failAt++ {
			disk := newMemory()
			n, err := open(Options{Now: clock.now}, disk)
			must(t, err)
			before := n.view()
			disk.failAt = disk.steps + failAt
			err = change(n)
			for _, lazy := range []bool{true, false} {
				again, errOpen := open(Options{Now: clock.now}, disk.cut(lazy))
				if errOpen != nil {
					t.Fatalf("%s, cut at step %d, lazy %v: %v", name, failAt, lazy, errOpen)
				}
				if again.ID() != n.ID() {
					t.Errorf("%s, cut at step %d: another node", name, failAt)
				}
				done := len(again.Peers())+len(again.Own()) == 2
				undone := bytes.Equal(again.view().ownText, before.ownText) && bytes.Equal(again.view().trustText, before.trustText)
				if done == undone || err == nil && !done {
					t.Errorf("%s, cut at step %d, lazy %v: done %v, undone %v, the command said %v", name, failAt, lazy, done, undone, err)
				}
			}
			if err == nil {
				break
			}
			if !errors.Is(err, errPower) {
				t.Fatal(err)
			}
			// Without a cut: the process goes on, and the next change succeeds.
			disk.failAt = -1
			must(t, change(n))
		}
	}
}

// TestFirstPower cuts the power at each step of the first start.
func TestFirstPower(t *testing.T) {
	for failAt := 0; ; failAt++ {
		disk := newMemory()
		disk.failAt = failAt
		_, err := open(Options{}, disk)
		for _, lazy := range []bool{true, false} {
			if _, err := open(Options{}, disk.cut(lazy)); err != nil {
				t.Fatalf("cut at step %d, lazy %v: %v", failAt, lazy, err)
			}
		}
		if err == nil {
			return
		}
	}
}

// TestProcesses has several processes change one folder at a time: nothing that was confirmed is lost.
func TestProcesses(t *testing.T) {
	const processes, each = 3, 8
	if at := os.Getenv("IDENTITY_TEST_DIR"); at != "" {
		n, err := Open(Options{Dir: at})
		must(t, err)
		for i := range each {
			must(t, n.Trust(fmt.Sprintf("%s-%d", os.Getenv("IDENTITY_TEST_NAME"), i), randomID().String(), nil))
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "keys")
	var cmds []*exec.Cmd
	for i := range processes { // the first key is made by one of them as well
		cmd := exec.Command(os.Args[0], "-test.run=^TestProcesses$")
		cmd.Env = append(os.Environ(), "IDENTITY_TEST_DIR="+dir, fmt.Sprintf("IDENTITY_TEST_NAME=p%d", i))
		must(t, cmd.Start())
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	n, err := Open(Options{Dir: dir})
	must(t, err)
	if got := len(n.Peers()); got != processes*each {
		t.Errorf("%d peers, want %d", got, processes*each)
	}
}

// TestLocked: a lock that others keep is told, not waited for without end.
func TestLocked(t *testing.T) {
	d, err := openDir(filepath.Join(t.TempDir(), "keys"))
	must(t, err)
	unlock, err := d.lock(0)
	must(t, err)
	if _, err := d.lock(10 * time.Millisecond); !errors.Is(err, ErrLocked) {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	unlock, err = d.lock(0)
	must(t, err)
	unlock()
}

// TestSudo: what root changes stays the owner's of the folder.
func TestSudo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const somebody = 12345
	for name, mkdir := range map[string]func(path string) error{
		"the folder is there":         func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, somebody, somebody)) },
		"only the state directory is": func(path string) error { return os.Chown(filepath.Dir(path), somebody, somebody) },
	} {
		path := filepath.Join(t.TempDir(), "keys")
		must(t, mkdir(path))
		n, err := Open(Options{Dir: path})
		must(t, err)
		must(t, n.Trust("b", randomID().String(), nil))
		for file, mode := range map[string]os.FileMode{".": 0o700, ownFile: 0o600, trustFile: 0o600, lockFile: 0o600} {
			info, err := os.Stat(n.path(file))
			must(t, err)
			if s := info.Sys().(*syscall.Stat_t); s.Uid != somebody || s.Gid != somebody || info.Mode().Perm() != mode {
				t.Errorf("%s: %s is %d:%d's, mode %#o", name, file, s.Uid, s.Gid, info.Mode().Perm())
			}
		}
	}
}

// TestTooMuch: what could not be read again is not written, and what makes it less is.
func TestTooMuch(t *testing.T) {
	n := newNode(t, newClock())
	must(t, n.Trust("b", randomID().String(), nil))
	many := make([]Grant, 0, maxFile/wire.MaxName)
	for i := range cap(many) {
		many = append(many, Grant{Volume: fmt.Sprintf("%0*d", wire.MaxName, i), As: AsMirror})
	}
	grow := func(grants []Grant) error {
		return n.update(lockWait, func(f *files) error { f.trust.byName("b").Grants = grants; return nil })
	}
	before := n.view().trustText
	if err := grow(many); !errors.Is(err, ErrTooMuch) {
		t.Errorf("written all the same: %v", err)
	}
	if _, err := openNode(n.clock, func(o *Options) { o.Dir = n.options.Dir }); err != nil || !bytes.Equal(n.view().trustText, before) {
		t.Errorf("the next start, %d bytes: %v", len(n.view().trustText), err)
	}
	must(t, grow(many[:len(many)/8]))
	must(t, n.Revoke("b"))
}
