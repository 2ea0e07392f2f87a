package engine

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// newIdentity makes the keys of a node.
func newIdentity(t *testing.T, state string) *identity.Node {
	t.Helper()
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := identity.Open(identity.Options{Dir: filepath.Join(state, "keys"), Log: func(text string) { t.Log("keys:", text) }})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func trusts(t *testing.T, a *identity.Node, name string, b *identity.Node, grants ...identity.Grant) {
	t.Helper()
	if len(grants) == 0 {
		grants = []identity.Grant{{As: identity.AsPrimary | identity.AsMirror}}
	}
	if err := a.Trust(name, b.ID().String(), grants); err != nil {
		t.Fatal(err)
	}
}

// newSecurePair is a primary and its mirror that trust each other for what they are.
func newSecurePair(t *testing.T) *livePair {
	t.Helper()
	p := &livePair{t: t, dir: t.TempDir()}
	c := VolumeConfig{Path: filepath.Join(p.dir, "primary.img"), Export: "unix:" + filepath.Join(p.dir, "s"), Interval: 50 * time.Millisecond}
	if err := os.WriteFile(c.Path, make([]byte, liveSize), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &liveNode{t: t, state: filepath.Join(p.dir, "mirror"), listen: "127.0.0.1:0", volume: VolumeConfig{Path: filepath.Join(p.dir, "mirror.img")}}
	p.primary = &liveNode{t: t, state: filepath.Join(p.dir, "primary"), listen: "127.0.0.1:0", volume: c}
	m.id, p.primary.id = newIdentity(t, m.state), newIdentity(t, p.primary.state)
	trusts(t, m.id, "west", p.primary.id, identity.Grant{Volume: "v", As: identity.AsPrimary})
	trusts(t, p.primary.id, "east", m.id, identity.Grant{Volume: "v", As: identity.AsMirror})
	m.start()
	p.mirrors = []*liveNode{m}
	p.primary.volume.Mirrors = []MirrorConfig{{Name: "east", Address: m.listen}}
	p.primary.start()
	return p
}

// A mirror follows over TLS; a revoked peer is out at once, on whichever side he was revoked, and back as soon
// as he is trusted again.
func TestKeysTrustIsLookedAtAllTheTime(t *testing.T) {
	p := newSecurePair(t)
	w := p.client()
	p.write(w, mib, 1<<20)
	p.settle()
	p.equal(0)
	m, own := p.mirrorStatus(0), p.mirrors[0].status().Primary
	if m.Peer != "east" || m.Key != p.mirrors[0].id.ID().String() || own.Peer != "west" || own.Key != p.primary.id.ID().String() {
		t.Errorf("the primary sees %q %q, the mirror %q %q", m.Peer, m.Key, own.Peer, own.Key)
	}
	for name, side := range map[string]struct {
		own, other *identity.Node
		peer       string
		as         identity.As
	}{
		"at the mirror":  {p.mirrors[0].id, p.primary.id, "west", identity.AsPrimary},
		"at the primary": {p.primary.id, p.mirrors[0].id, "east", identity.AsMirror},
	} {
		if err := side.own.Revoke(side.peer); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+": the session ends", func() bool {
			m, own := p.mirrorStatus(0), p.mirrors[0].status().Primary
			lost := func(d *DisconnectCause) bool { return d != nil && d.Class == "auth" }
			return m.State == "refused" && lost(m.LastDisconnect) && own.State == "connecting" && lost(own.LastDisconnect)
		})
		eventually(t, name+": the reason says what a person can do", func() bool {
			r := p.mirrorStatus(0).Reason
			return strings.Contains(r, "blkmirror keys trust ") && strings.Contains(r, p.primary.id.ID().String())
		})
		trusts(t, side.own, side.peer, side.other, identity.Grant{Volume: "v", As: side.as})
		p.write(w, 2*mib, 8192)
		p.settle()
		p.equal(0)
	}
}

// Keys roll over under a writer, and no session notices; also one whose first key is long gone.
func TestKeysRollOverUnderWrites(t *testing.T) {
	p := newSecurePair(t)
	w := p.client()
	for i := range 5 {
		next, err := p.primary.id.Rotate(300 * time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.mirrors[0].id.Rotate(0); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the mirror knows the next key, and the time has come", func() bool {
			p.write(w, int64(i)*mib, 4096)
			peers := p.mirrors[0].id.Peers()
			keys := peers[0].Keys
			return keys[len(keys)-1].ID == next.ID && p.primary.id.ID() == next.ID
		})
	}
	p.settle()
	p.equal(0)
	if m := p.mirrorStatus(0); m.Reconnects != 0 || m.LastDisconnect != nil || m.Key != p.mirrors[0].id.ID().String() {
		eventually(t, "the last key of the mirror is known", func() bool { return p.mirrorStatus(0).Key == p.mirrors[0].id.ID().String() })
		if m = p.mirrorStatus(0); m.Reconnects != 0 || m.LastDisconnect != nil {
			t.Errorf("reconnects %d, last disconnect %+v", m.Reconnects, m.LastDisconnect)
		}
	}
	// A session that begins now uses the new keys.
	p.mirrors[0].stop()
	p.mirrors[0].start()
	p.write(w, 9*mib, 4096)
	p.settle()
	p.equal(0)
}

// dialAs says Hello by hand, over TLS as this node.
func dialAs(t *testing.T, id *identity.Node, addr string, h *wire.Hello) (*wire.Conn, error) {
	t.Helper()
	nc, err := wire.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	secure, peer, err := id.Dial(ctx, nc, h.Volume, asOf(opposite[h.Role]))
	if err != nil {
		return nil, err
	}
	conn := wire.NewConn(secure, wire.ConnOptions{Keys: id.Rollover(peer)})
	t.Cleanup(func() { conn.Close(nil) })
	_, err = greet(conn, h)
	return conn, err
}

// Whoever has no right to a volume in a role learns nothing of it, not even whether it is there.
func TestKeysTellNothingOfAVolume(t *testing.T) {
	p := newSecurePair(t)
	m := p.mirrors[0]
	stranger := newIdentity(t, filepath.Join(p.dir, "stranger"))
	trusts(t, stranger, "m", m.id)
	for _, role := range []wire.Role{wire.RolePrimary, wire.RoleSource, wire.RoleTarget} {
		if _, err := dialAs(t, stranger, m.listen, &wire.Hello{Role: role, Volume: "v"}); wire.Classify(err) != wire.ClassAuth {
			t.Errorf("a stranger as %d: %v", role, err)
		}
	}
	trusts(t, m.id, "stranger", stranger, identity.Grant{Volume: "other", As: identity.AsPrimary})
	told := map[string]string{}
	for _, volume := range []string{"v", "none"} {
		for _, role := range []wire.Role{wire.RolePrimary, wire.RoleSource, wire.RoleTarget} {
			_, err := dialAs(t, stranger, m.listen, &wire.Hello{Role: role, Volume: volume})
			remote, ok := errors.AsType[*wire.RemoteError](err)
			if !ok || remote.Code != wire.CodeAuth {
				t.Fatalf("volume %s as %d: %v", volume, role, err)
			}
			told[volume] += strings.ReplaceAll(remote.Text, "volume "+volume+":", "volume:")
		}
	}
	if told["v"] != told["none"] {
		t.Errorf("told of one that is there %q, of one that is not %q", told["v"], told["none"])
	}
	// What is allowed is told.
	_, err := dialAs(t, stranger, m.listen, &wire.Hello{Role: wire.RoleSource, Volume: "other"})
	if remote, ok := errors.AsType[*wire.RemoteError](err); !ok || remote.Code != wire.CodeUnknown {
		t.Errorf("a volume that he may know, and that is not there: %v", err)
	}
}

// One-shot syncs both ways, each with the right that it needs and no other.
func TestKeysOneShot(t *testing.T) {
	dir := t.TempDir()
	m := &liveNode{t: t, state: filepath.Join(dir, "m"), listen: "127.0.0.1:0", volume: VolumeConfig{Path: filepath.Join(dir, "dst")}}
	m.id = newIdentity(t, m.state)
	m.start()
	s := newSyncer(t)
	id := newIdentity(t, s.state)
	s.edit = func(o *SyncOptions) { o.Insecure, o.Identity = false, id }
	src := image(t, "src", 6*mib, 1)
	remote, back := "blk://"+m.listen+"/v", filepath.Join(dir, "back")
	_, err := s.try(t.Context(), src, remote)
	wantKind(t, err, KindAuth)
	if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Next, "nobody is trusted here yet") || !strings.Contains(e.Next, id.ID().String()) {
		t.Errorf("next: %s", e.Next)
	}
	trusts(t, id, "m", m.id)
	_, err = s.try(t.Context(), src, remote)
	wantKind(t, err, KindAuth)
	trusts(t, m.id, "s", id, identity.Grant{Volume: "v", As: identity.AsPrimary})
	eventually(t, "the trust is taken up", func() bool { _, err = s.try(t.Context(), src, remote); return err == nil })
	mustEqual(t, src, m.volume.Path)
	_, err = s.try(t.Context(), remote, back)
	wantKind(t, err, KindAuth)
	trusts(t, m.id, "s", id, identity.Grant{Volume: "v", As: identity.AsMirror})
	s.run(remote, back)
	mustEqual(t, src, back)
	// Plain text does not get in.
	_, err = newSyncer(t).try(t.Context(), src, remote)
	wantKind(t, err, KindNetwork)
	if e, ok := errors.AsType[*Error](err); !ok || wire.Classify(err) != wire.ClassTLS || !strings.Contains(e.Next, "leave --insecure away") {
		t.Errorf("plain text to a port with TLS: %v (%s)", err, wire.Classify(err))
	}
	// And TLS is told that it came to a port without.
	plain := startNode(t, map[string]string{"v": filepath.Join(dir, "plain")})
	_, err = s.try(t.Context(), src, "blk://"+plain.addr+"/v")
	wantKind(t, err, KindNetwork)
	if wire.Classify(err) != wire.ClassTLS || !strings.Contains(err.Error(), "--insecure") {
		t.Errorf("TLS to a port without: %v (%s)", err, wire.Classify(err))
	}
}

// flooders open that many connections and say what they like; the first of each 40 stays silent until it is
// closed. It returns how long the slowest of those was let be.
func flood(t *testing.T, addr string, n int) (longest time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	hands := make(chan struct{}, 200)
	for i := range n {
		hands <- struct{}{}
		all.Go(func() {
			defer func() { <-hands }()
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				return // the queue of the kernel is full
			}
			defer nc.Close()
			switch i % 40 {
			case 0:
				began := time.Now()
				nc.SetReadDeadline(began.Add(time.Minute))
				_, err := nc.Read(make([]byte, 1))
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("a peer that says nothing was let be for a minute")
				}
				mu.Lock()
				longest = max(longest, time.Since(began))
				mu.Unlock()
			case 1:
				io.WriteString(nc, "GET / HTTP/1.1\r\n\r\n")
			case 2:
				nc.Write([]byte{22, 3, 1, 2, 0})
			}
		})
	}
	all.Wait()
	return longest
}

// A flood of strangers takes nothing from a session that stands.
func TestKeysFlood(t *testing.T) {
	p := newSecurePair(t)
	w := p.client()
	p.settle()
	ended := make(chan time.Duration)
	go func() { ended <- flood(t, p.mirrors[0].listen, 2000) }()
	for i, done := 0, false; !done; i++ {
		select {
		case longest := <-ended:
			done = true
			t.Logf("the slowest silent peer was closed after %v", longest)
		default:
			p.write(w, int64(i%20)*mib, 4096)
			p.settle()
		}
	}
	p.equal(0)
	if m := p.mirrorStatus(0); m.Reconnects != 0 || m.LastDisconnect != nil {
		t.Errorf("the session was disturbed: reconnects %d, %+v", m.Reconnects, m.LastDisconnect)
	}
}

// What a trusted peer may not do and does all the same fills neither log nor history, and stands there under its name.
func TestKeysInsistence(t *testing.T) {
	dir := t.TempDir()
	own, peer, second := newIdentity(t, filepath.Join(dir, "own")), newIdentity(t, filepath.Join(dir, "peer")), newIdentity(t, filepath.Join(dir, "second"))
	var lines sync.Mutex
	var log []string
	addr := probeServer(t, func(o *ServerOptions) {
		o.Insecure, o.Identity = false, own
		o.Log = func(text string) {
			lines.Lock()
			defer lines.Unlock()
			log = append(log, text)
		}
	})
	for name, n := range map[string]*identity.Node{"peer": peer, "second": second} {
		trusts(t, own, name, n, identity.Grant{Volume: "two", As: identity.AsMirror})
		trusts(t, n, "m", own)
	}
	for i := range 60 {
		n := peer
		if i%2 == 1 {
			n = second
		}
		conn, err := dialAs(t, n, addr, &wire.Hello{Role: wire.RolePrimary, Volume: "one", Node: wire.Hash{1}})
		if wire.Classify(err) != wire.ClassAuth {
			t.Fatal(err)
		}
		conn.Close(nil)
	}
	told := func() (lines1, of int) {
		lines.Lock()
		defer lines.Unlock()
		for _, text := range log {
			if strings.Contains(text, "auth") || strings.Contains(text, "no right") {
				lines1++
			}
			for _, name := range []string{"peer", "second"} {
				if strings.HasPrefix(text, name+" (") && strings.Contains(text, "no session: auth: open volume one: not trusted: peer "+name+" has no right to volume one as primary") {
					of++
				}
			}
		}
		return lines1, of
	}
	eventually(t, "both are in the log", func() bool { _, of := told(); return of == 2 })
	if all, of := told(); all != 2 || of != 2 {
		t.Errorf("%d lines of refusals, %d as they are to be: %q", all, of, log)
	}
}

// One peer, whatever he is trusted with, does not take the places of the others, and is told so.
func TestKeysPlaces(t *testing.T) {
	p := newSecurePair(t)
	m := p.mirrors[0]
	p.settle()
	greedy := newIdentity(t, filepath.Join(p.dir, "greedy"))
	trusts(t, m.id, "greedy", greedy)
	trusts(t, greedy, "m", m.id)
	probe := &wire.Hello{Role: wire.RoleProbe}
	for i := range maxConnectionsOne {
		if _, err := dialAs(t, greedy, m.listen, probe); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	_, err := dialAs(t, greedy, m.listen, probe)
	if remote, ok := errors.AsType[*wire.RemoteError](err); !ok || remote.Code != wire.CodeBusy || !strings.Contains(remote.Text, "64 connections of peer greedy") {
		t.Errorf("one connection more: %v", err)
	}
	if _, err := dialAs(t, p.primary.id, m.listen, probe); err != nil {
		t.Errorf("another peer: %v", err)
	}
	if s := p.mirrorStatus(0); s.Reconnects != 0 || s.LastDisconnect != nil {
		t.Errorf("the session was disturbed: %+v", s.LastDisconnect)
	}
}

func TestPlaces(t *testing.T) {
	var p places
	var leave []func()
	for i := range maxConnections {
		l, err := p.take([]string{"a", "b"}[i%2])
		if err != nil {
			t.Fatal(i, err)
		}
		leave = append(leave, l)
	}
	if _, err := p.take("c"); err == nil {
		t.Error("more than there are")
	}
	leave[0]()
	if _, err := p.take("b"); err == nil {
		t.Error("more than half")
	}
	for range 2 { // a place that was left can be taken again
		l, err := p.take("c")
		if err != nil {
			t.Fatal(err)
		}
		l()
	}
	for _, l := range leave[1:] {
		l()
	}
	if p.count != 0 || len(p.of) != 0 {
		t.Errorf("%d are left, %v", p.count, p.of)
	}
}

// A connection that has carried as much as its keys may is replaced, and nobody calls that a disconnect.
func TestKeysRenew(t *testing.T) {
	p := newSecurePair(t)
	p.settle()
	p.primary.stop()
	p.primary.renew = 1 << 20
	p.primary.start()
	p.settle()
	lost := func(n *liveNode) int {
		h, err := FetchHistory(t.Context(), n.control(), "")
		if err != nil {
			t.Fatal(err)
		}
		return len(h.History)
	}
	before := p.mirrors[0].status().Primary.Reconnects
	histories := [2]int{lost(p.primary), lost(p.mirrors[0])}
	w := p.client()
	for i := range 64 { // four megabytes
		p.write(w, int64(i)*64<<10, 64<<10)
		if i%8 == 7 {
			p.settle()
		}
	}
	p.settle()
	p.equal(0)
	if n := p.mirrors[0].logged("is done"); n < 2 {
		t.Errorf("%d connections were replaced", n)
	}
	if m, own := p.mirrorStatus(0), p.mirrors[0].status().Primary; m.Reconnects != 0 || own.Reconnects != before {
		t.Errorf("reconnects: %d here, %d there (%d before)", m.Reconnects, own.Reconnects, before)
	}
	if now := [2]int{lost(p.primary), lost(p.mirrors[0])}; now != histories {
		t.Errorf("disconnects: %v, %v before", now, histories)
	}
}
