package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// A primary whose machine was cloned, with all that it says of itself: the second one is refused and nothing of its is taken, the
// first one goes on, and a person is told.
func TestKeysTwins(t *testing.T) {
	p := newSecurePair(t)
	w := p.client()
	p.write(w, 0, 4096)
	p.settle()
	p.primary.stop()
	clone := &liveNode{t: t, state: filepath.Join(p.dir, "clone"), listen: "127.0.0.1:0", volume: p.primary.volume}
	clone.volume.Path, clone.volume.Export = filepath.Join(p.dir, "clone.img"), "unix:"+filepath.Join(p.dir, "c")
	for from, to := range map[string]string{p.primary.state: clone.state, p.primary.volume.Path: clone.volume.Path} {
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	p.primary.start()
	w = p.client()
	p.write(w, mib, 4096)
	p.settle()
	before := [2]any{p.mirrors[0].status().Primary.Reconnects, *p.mirrorStatus(0).LastDisconnect}
	clone.id = newIdentity(t, clone.state)
	clone.start()
	eventually(t, "the twin is refused", func() bool {
		m := clone.status().Mirrors[0]
		return m.State == "refused" && m.LastDisconnect != nil && m.LastDisconnect.Class == "auth" && strings.Contains(m.Reason, "another node with this identity")
	})
	for i := range 3 {
		p.write(w, int64(i)*mib, 8192)
		p.settle()
	}
	p.equal(0)
	if m := p.mirrorStatus(0); m.Reconnects != 0 || before != [2]any{p.mirrors[0].status().Primary.Reconnects, *m.LastDisconnect} {
		t.Errorf("the first one was disturbed: %+v, before %+v", m.LastDisconnect, before)
	}
	alarmed := func() bool {
		st, err := FetchStatus(t.Context(), p.mirrors[0].control())
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(st.Node.Warnings, func(text string) bool { return strings.HasPrefix(text, "ALARM: two nodes claim one identity: west ") })
	}
	if n := p.mirrors[0].logged("ALARM"); n != 1 || !alarmed() {
		t.Errorf("logged %d times, in the status: %v", n, alarmed())
	}
	clone.stop()
	if err := p.mirrors[0].id.Revoke("west"); err != nil {
		t.Fatal(err)
	}
	if alarmed() {
		t.Error("the alarm outlives the trust")
	}
}

// A node that was started anew is no twin of the connection that its former process left behind, whatever that was called: only
// who answers lives. Nor are two connections of one process, or a command beside the daemon.
func TestTwinsLive(t *testing.T) {
	dir := t.TempDir()
	own := newIdentity(t, filepath.Join(dir, "own"))
	peer := newIdentity(t, filepath.Join(dir, "peer"))
	trusts(t, own, "west", peer)
	var log []string
	g := newGate(own, dir, func(text string) { log = append(log, text) })
	who := identity.Peer{Name: "west", Key: peer.ID()}
	enter := func(volume string, node byte, incarnation uint64) (p *pass, out func() bool, there *wire.Conn) {
		x, y := wire.Pipe()
		there = wire.NewConn(y, wire.ConnOptions{})
		conn := wire.NewConn(x, wire.ConnOptions{})
		t.Cleanup(func() { conn.Close(nil); there.Close(nil) })
		for _, c := range []*wire.Conn{conn, there} { // pings come behind a Hello
			go c.Send(&wire.Hello{Role: wire.RoleProbe, Name: "n", Software: "s"})
			c.Established()
		}
		go reads(conn)
		ctx, p := g.pass(t.Context(), conn, who, "192.0.2.1:1")
		t.Cleanup(p.leave)
		if err := p.enter(volume, identity.AsPrimary, wire.Hash{node}); err != nil {
			t.Fatal(err)
		}
		if incarnation != 0 {
			p.attached(incarnation)
		}
		return p, func() bool { return ctx.Err() != nil }, there
	}
	first, firstOut, there := enter("v", 1, 1)
	others := map[string]func() bool{}
	for name, c := range map[string]struct {
		volume      string
		node        byte
		incarnation uint64
	}{"the same process": {"v", 1, 1}, "another volume of it": {"w", 1, 7}, "not attached yet": {"v", 1, 0}, "a command": {"v", 0, 0}} {
		_, others[name], _ = enter(c.volume, c.node, c.incarnation)
	}
	_, cloneOut, _ := enter("v", 1, 2)
	_, copyOut, _ := enter("w", 2, 0)
	for range 3 {
		g.sweep() // first is asked, and nobody reads over there
	}
	if cloneOut() || copyOut() || len(log) > 0 || first.conn.AnsweredSince(time.Now()) {
		t.Errorf("a process that answers nothing counts as one that lives: %q", log)
	}
	go reads(there)
	eventually(t, "both are out", func() bool { g.sweep(); return cloneOut() && copyOut() })
	for name, out := range others {
		if out() {
			t.Errorf("%s is out", name)
		}
	}
	if firstOut() || len(log) != 1 || len(g.warnings()) != 1 {
		t.Errorf("the first one is out: %v; %q; %q", firstOut(), log, g.warnings())
	}
}

// reads takes what comes, until the connection ends.
func reads(c *wire.Conn) {
	for {
		if _, err := c.Next(); err != nil {
			return
		}
	}
}

// A primary that the mirror does not take is not shown as its primary, and stands in the history under the name that it is trusted by,
// whatever it calls itself.
func TestKeysNames(t *testing.T) {
	p := newSecurePair(t)
	p.settle()
	m := p.mirrors[0]
	other := newIdentity(t, filepath.Join(p.dir, "other"))
	trusts(t, m.id, "other", other)
	trusts(t, other, "east", m.id)
	conn, err := dialAs(t, other, m.listen, &wire.Hello{Role: wire.RolePrimary, Volume: "v", Node: wire.Hash{2}, Name: "west"})
	if err != nil {
		t.Fatal(err)
	}
	if own := m.status().Primary; own.Peer != "west" || own.Key != p.primary.id.ID().String() {
		t.Errorf("who only said Hello is shown as the primary: %q %q", own.Peer, own.Key)
	}
	if err := conn.Send(&wire.Attach{Volume: "v", VolumeID: [16]byte{1}, Generation: wire.Generation{ID: [16]byte{1}, Counter: 1}, Size: liveSize, BlockSize: DefaultBlockSize, Incarnation: 9, Connection: 1}); err != nil {
		t.Fatal(err)
	}
	if answer, err := conn.Next(); err != nil || answer.Type() != wire.TypeRefused {
		t.Errorf("%+v, %v", answer, err)
	}
	conn.Close(nil)
	p.primary.stop()
	names := func() (names []string) {
		h, err := FetchHistory(t.Context(), m.control(), "v")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range h.History {
			names = append(names, e.Role+" "+e.Peer)
		}
		return names
	}
	eventually(t, "both are in the history", func() bool {
		return slices.Contains(names(), "acceptor other") && slices.Contains(names(), "mirror west")
	})
	if host, err := os.Hostname(); err == nil && m.logged("the primary "+host+" is here") > 0 || m.logged("the primary west is here") != 1 {
		t.Error("the log has another name")
	}
}
