package identity

import (
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// TestMeet: who gets in, and what both sides hear where one does not.
func TestMeet(t *testing.T) {
	db := func(as As) []Grant { return []Grant{{Volume: "db", As: as}} }
	cases := []struct {
		name string
		as   As // that the dialler wants the acceptor to be
		prep func(t *testing.T, a, b *testNode)
		want [2]wire.Class
	}{
		{"trusted", AsMirror, func(t *testing.T, a, b *testNode) { trustBoth(t, a, b) }, [2]wire.Class{"", ""}},
		{"acceptor unknown", AsMirror, func(t *testing.T, a, b *testNode) { must(t, b.Trust("a", a.ID().String(), nil)) },
			[2]wire.Class{wire.ClassAuth, wire.ClassAuth}},
		{"dialler unknown", AsMirror, func(t *testing.T, a, b *testNode) { must(t, a.Trust("b", b.ID().String(), nil)) },
			[2]wire.Class{wire.ClassAuth, wire.ClassAuth}},
		{"acceptor revoked", AsMirror, func(t *testing.T, a, b *testNode) { trustBoth(t, a, b); must(t, a.Revoke("b")) },
			[2]wire.Class{wire.ClassAuth, wire.ClassAuth}},
		{"dialler revoked", AsMirror, func(t *testing.T, a, b *testNode) { trustBoth(t, a, b); must(t, b.Revoke("a")) },
			[2]wire.Class{wire.ClassAuth, wire.ClassAuth}},
		{"dialler expired", AsMirror, func(t *testing.T, a, b *testNode) {
			must(t, a.Trust("b", b.ID().String(), nil))
			must(t, b.Trust("a", a.ID().String(), []Grant{{As: AsPrimary, Until: b.clock.now().Add(time.Hour)}}))
			b.clock.pass(time.Hour)
		}, [2]wire.Class{wire.ClassAuth, wire.ClassAuth}},
		{"wrong volume", AsMirror, func(t *testing.T, a, b *testNode) {
			must(t, a.Trust("b", b.ID().String(), []Grant{{Volume: "other", As: AsMirror}}))
			must(t, b.Trust("a", a.ID().String(), nil))
		}, [2]wire.Class{wire.ClassAuth, wire.ClassAuth}},
		{"wrong role", AsPrimary, func(t *testing.T, a, b *testNode) {
			must(t, a.Trust("b", b.ID().String(), db(AsMirror)))
			must(t, b.Trust("a", a.ID().String(), nil))
		}, [2]wire.Class{wire.ClassAuth, wire.ClassAuth}},
		{"right volume and role", AsMirror, func(t *testing.T, a, b *testNode) {
			must(t, a.Trust("b", b.ID().String(), db(AsMirror)))
			must(t, b.Trust("a", a.ID().String(), db(AsPrimary)))
		}, [2]wire.Class{"", ""}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			clock := newClock()
			a, b := newNode(t, clock), newNode(t, clock)
			c.prep(t, a, b)
			dialler, acceptor := meet(t, a, b, "db", c.as)
			if got := classes(dialler, acceptor); got != c.want {
				t.Fatalf("classes %q, want %q: dialler %v, acceptor %v", got, c.want, dialler.err, acceptor.err)
			}
			if c.want[0] != "" {
				return
			}
			if want := (Peer{Name: "b", Key: b.ID(), Own: a.ID()}); dialler.peer != want {
				t.Errorf("the dialler met %+v, want %+v", dialler.peer, want)
			}
			if want := (Peer{Name: "a", Key: a.ID(), Own: b.ID()}); acceptor.peer != want {
				t.Errorf("the acceptor met %+v, want %+v", acceptor.peer, want)
			}
		})
	}
}
