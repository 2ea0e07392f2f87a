package e2e

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// keys runs `keys` with a state directory.
func keys(t testing.TB, state string, args ...string) result {
	t.Helper()
	return launch(t, nil, append(append([]string{plain, "keys"}, args...), "--state", state)...).wait()
}

// idOf is what a person copies: the first line of `keys show`.
func idOf(t testing.TB, state string) string {
	t.Helper()
	id, _, _ := strings.Cut(keys(t, state, "show").ok(t).stdout, "\n")
	return id
}

// newKeyedPair prepares a pair that talks TLS. Nobody is trusted yet.
func newKeyedPair(t testing.TB, size int64) *livePair {
	t.Helper()
	p := newLivePair(t, checked, size)
	for _, n := range []*node{p.primary, p.mirror} {
		n.line = slices.DeleteFunc(n.line, func(arg string) bool { return arg == "--insecure" })
	}
	return p
}

// trust has each side trust the other for what it is.
func (p *livePair) trust() {
	p.t.Helper()
	keys(p.t, p.mirror.state, "trust", "west", idOf(p.t, p.primary.state), "--volume", "v", "--as", "primary").ok(p.t)
	keys(p.t, p.primary.state, "trust", "east", idOf(p.t, p.mirror.state), "--volume", "v", "--as", "mirror").ok(p.t)
}

func startKeyedPair(t testing.TB, size int64) *livePair {
	t.Helper()
	p := newKeyedPair(t, size)
	p.trust()
	p.mirrorUp()
	p.primary.up()
	p.cut()
	return p
}

// refusedByAuth waits until the primary says that one of the two does not trust the other, and what to do.
func (p *livePair) refusedByAuth(what string) {
	p.t.Helper()
	until(p.t, what, func() bool {
		m := p.primary.peer()
		return m.State == "refused" && m.Disconnect != nil && m.Disconnect.Class == "auth" && strings.Contains(m.Reason, "blkmirror keys trust ")
	})
}

// refusals grows when somebody who dialled is refused for that: the log tells each reason once, the history how often it
// was one for who had the right to a session at all.
func (n *node) refusals(why string) (tries int) {
	tries = strings.Count(n.err.String(), why)
	all, _ := n.history("acceptor")
	for _, d := range all {
		if strings.Contains(d.Error, why) {
			tries += d.Tries
		}
	}
	return tries
}

// Two daemons that trust each other replicate; every way in which they may not ends with auth, at once, and
// is over as soon as the trust is right.
func TestKeysTrust(t *testing.T) {
	t.Parallel()
	p := newKeyedPair(t, 16*mib)
	p.mirrorUp()
	p.primary.up()
	p.refusedByAuth("the refusal of a stranger")
	p.trust()
	p.cut()
	if m := p.primary.peer(); m.Peer != "east" || m.Key != idOf(t, p.mirror.state) {
		t.Errorf("the primary sees %q with the key %q", m.Peer, m.Key)
	}
	west := idOf(t, p.primary.state)
	for name, c := range map[string]struct {
		why   string
		grant []string
	}{
		"another volume":      {"has no right to volume v as primary", []string{"--volume", "w", "--as", "primary"}},
		"another role":        {"has no right to volume v as primary", []string{"--volume", "v", "--as", "mirror"}},
		"a time that is over": {"the right of peer west to any volume ended", []string{"--until", "2020-02-29"}},
	} {
		keys(t, p.mirror.state, "revoke", "west").ok(t)
		p.refusedByAuth("the end of a session that was revoked")
		before := p.mirror.refusals(c.why)
		keys(t, p.mirror.state, append([]string{"trust", "west", west}, c.grant...)...).ok(t)
		p.write(t, mib, "tracked: "+name)
		until(t, "the refusal for "+name, func() bool { // a stranger's is another one
			return p.mirror.refusals(c.why) > before
		})
		p.refusedByAuth("the primary to know of " + name)
		keys(t, p.mirror.state, "revoke", "west").ok(t)
		keys(t, p.mirror.state, "trust", "west", west).ok(t)
		p.cut()
		p.same()
	}
	if d := p.mirror.volume().Primary.Disconnect; d == nil || d.Class != "auth" {
		t.Errorf("the mirror says of the last one %+v", d)
	}
	// A right that ends, ends the session.
	soon := time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339)
	keys(t, p.mirror.state, "trust", "west", west, "--until", soon).ok(t)
	p.refusedByAuth("the end of the right")
}

// Keys roll over under a writer, and nobody is disconnected; who was away meanwhile comes back.
func TestKeysRotate(t *testing.T) {
	t.Parallel()
	p := startKeyedPair(t, 16*mib)
	s := stampedOn(p, 16*mib, stamp.Load{})
	for range 3 {
		for _, n := range []*node{p.primary, p.mirror} {
			next, _, _ := strings.Cut(keys(t, n.state, "rotate", "--in", "2s").ok(t).stdout, "\n")
			until(t, "the switch", func() bool { return idOf(t, n.state) == next })
		}
		s.written(200)
	}
	s.settled()
	if m := p.primary.peer(); m.Reconnects != 0 || m.Disconnect != nil {
		t.Errorf("disconnected: %d times, %+v", m.Reconnects, m.Disconnect)
	}
	p.link.to("")
	p.mirror.kill()
	next := map[*node]string{}
	for _, n := range []*node{p.primary, p.mirror} {
		next[n], _, _ = strings.Cut(keys(t, n.state, "rotate", "--in", "1s").ok(t).stdout, "\n")
	}
	until(t, "both switches", func() bool {
		return idOf(t, p.primary.state) == next[p.primary] && idOf(t, p.mirror.state) == next[p.mirror]
	})
	p.mirrorUp()
	s.settled()
	until(t, "the mirror knows the new key", func() bool {
		return strings.Contains(keys(t, p.mirror.state, "list", "--json").ok(t).stdout, next[p.primary])
	})
	s.finish()
}

// Whatever else comes to the port, and however much of it, does not disturb the session that stands.
func TestKeysStrangers(t *testing.T) {
	t.Parallel()
	p := startKeyedPair(t, 16*mib)
	say := func(text string) string {
		nc, err := net.Dial("tcp", p.mirror.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		io.WriteString(nc, text)
		nc.SetReadDeadline(time.Now().Add(patience))
		answer, _ := io.ReadAll(nc)
		return string(answer)
	}
	if a := say("BLKM\x01\x00\x01\x00"); !strings.HasPrefix(a, "BLKM") || !strings.HasSuffix(a, "this port speaks TLS: leave --insecure away") {
		t.Errorf("plain text was answered with %q", a)
	}
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "\x16\x03\x01\x00\x05hello"} {
		if a := say(text); strings.Contains(a, "BLKM") {
			t.Errorf("%q was answered with %q", text, a)
		}
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c, err := tls.Dial("tcp", p.mirror.addr, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version, NextProtos: []string{"blkmirror/1"}})
		if err == nil { // a client of 1.3 is done before it has been looked at
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("TLS %#x without a key got in: %v", version, err)
		}
	}
	src := randomImage(t, filepath.Join(p.dir, "other"), mib)
	blkmirror(t, "sync", "--insecure", "--state", p.dir+"/s", src, "blk://"+p.mirror.addr+"/v").fails(t, 3, p.mirror.addr, "leave --insecure away")

	n := 2000
	if *long {
		n = 10000
	}
	var all sync.WaitGroup
	hands := make(chan struct{}, 300)
	for i := range n {
		hands <- struct{}{}
		all.Go(func() {
			defer func() { <-hands }()
			nc, err := net.Dial("tcp", p.mirror.addr)
			if err != nil {
				return
			}
			defer nc.Close()
			if i%50 == 0 {
				nc.SetReadDeadline(time.Now().Add(patience))
				nc.Read(make([]byte, 1)) // says nothing until it is thrown out
			}
		})
		if i%500 == 0 {
			p.write(t, mib, "under a flood")
			p.cut()
		}
	}
	all.Wait()
	p.cut()
	p.same()
	if m := p.primary.peer(); m.Reconnects != 0 || m.Disconnect != nil {
		t.Errorf("the session was disturbed: %d times, %+v", m.Reconnects, m.Disconnect)
	}
}

// What the commands refuse, and how.
func TestKeysCommands(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	id, other := idOf(t, a), idOf(t, b)
	keys(t, a, "trust", "pluto", id[:3]+"0"+id[4:]).fails(t, 2, "group")
	keys(t, a, "trust", "pluto", "hello").fails(t, 2, "no ID")
	keys(t, a, "trust", "plu to", other).fails(t, 2, "plu to")
	keys(t, a, "trust", "pluto", other, "--until", "soon").fails(t, 2, "2027-01-31")
	keys(t, a, "trust", "pluto", other, "--volume", "a/b").fails(t, 2, "a/b")
	keys(t, a, "trust", "pluto", strings.ToLower(strings.ReplaceAll(other, "-", " "))).ok(t)
	keys(t, a, "trust", "mars", other).fails(t, 7, "pluto")
	keys(t, a, "trust", "pluto", id).fails(t, 7)
	keys(t, a, "revoke", "mars").fails(t, 7, "mars")
	keys(t, a, "rotate", "--in", "never").fails(t, 2, "--in")
	keys(t, a, "revoke", "pluto").ok(t)
	img := randomImage(t, filepath.Join(dir, "img"), mib)
	r := blkmirror(t, "sync", "--state", a, img, "blk://127.0.0.1:1/v")
	r.fails(t, 3, "127.0.0.1:1")
	n := newNode(t, plain, b, "--volume", "v="+filepath.Join(dir, "dst"))
	n.line = slices.DeleteFunc(n.line, func(arg string) bool { return arg == "--insecure" })
	n.up()
	blkmirror(t, "sync", "--state", a, img, "blk://"+n.addr+"/v").fails(t, 4, "keys trust", id, "nobody is trusted here yet")
	keys(t, a, "trust", "b", other).ok(t)
	blkmirror(t, "sync", "--state", a, img, "blk://"+n.addr+"/v").fails(t, 4, "keys trust", id)
	keys(t, b, "trust", "a", id, "--as", "primary").ok(t)
	until(t, "the daemon takes it up", func() bool {
		return blkmirror(t, "sync", "--state", a, img, "blk://"+n.addr+"/v").code == 0
	})
	equal(t, img, filepath.Join(dir, "dst"))
	if err := os.Chmod(filepath.Join(a, "keys", "own.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	keys(t, a, "show").fails(t, 6, "chmod")
	blkmirror(t, "sync", "--state", a, img, "blk://"+n.addr+"/v").fails(t, 6, "chmod")
}
