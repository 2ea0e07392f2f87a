package identity

import (
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// TestWrongClock: a clock that runs far ahead, for hours and also at a start, costs nothing that does not come back when it
// is right again: no key of ours, none of a peer's, and no rollover that is due later.
func TestWrongClock(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock, func(o *Options) { o.Lifetime = 60 * days }), newNode(t, clock)
	trustBoth(t, a, b)
	join(t, a, b)
	join(t, b, a)
	first := a.ID()
	_, err := a.Rotate(0)
	must(t, err)
	join(t, a, b).tell(t)
	a.Tick()
	b.Tick()
	ownText, trustText := a.view().ownText, b.view().trustText
	ahead := 10 * 365 * days
	clock.set(ahead)
	for range 5 {
		a.Tick()
		b.Tick()
		clock.pass(certain / 5)
	}
	a, b = reopened(t, a), reopened(t, b) // begins to wait anew
	a.Tick()
	b.Tick()
	clock.pass(certain - 1)
	a.Tick()
	b.Tick()
	old := Peer{Name: "a", Key: first}
	if b.May(old, "", 0) == nil {
		t.Error("the old key counts as good by a clock that says otherwise")
	}
	clock.set(-ahead)
	a.Tick()
	b.Tick()
	if string(a.view().ownText) != string(ownText) || string(b.view().trustText) != string(trustText) {
		t.Errorf("own keys %+v, those of the peer %+v", a.Own(), b.Peers()[0].Keys)
	}
	if err := b.May(old, "", 0); err != nil {
		t.Error(err)
	}
	// What was noted under the wrong time counts for nothing under the next one.
	clock.set(ahead)
	a.Tick()
	b.Tick()
	if len(a.Own()) != 2 || len(b.Peers()[0].Keys) != 2 {
		t.Errorf("own keys %+v, those of the peer %+v", a.Own(), b.Peers()[0].Keys)
	}
	if dialler, _ := meet(t, a, b, "db", AsMirror); wire.Classify(dialler.err) != "" {
		t.Error(dialler.err)
	}
}

// reopened is the same node after a start.
func reopened(t *testing.T, n *testNode) *testNode {
	t.Helper()
	again, err := openNode(n.clock, func(o *Options) {
		own, log := *o, o.Log
		*o = n.options
		o.Now, o.Elapsed, o.Log = own.Now, own.Elapsed, log
	})
	must(t, err)
	return again
}

// TestOldKeyIsNotShown: from the end of its grace on an old key is used for nothing, also while it is not destroyed yet.
func TestOldKeyIsNotShown(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock, func(o *Options) { o.Grace = time.Hour }), newNode(t, clock)
	trustBoth(t, a, b)
	join(t, a, b)
	a.Tick()
	_, err := a.Rotate(0)
	must(t, err)
	r := a.Rollover(Peer{Name: "b", Own: a.view().own[0].id})
	if r.Next() == nil {
		t.Error("nothing is announced in the grace")
	}
	clock.pass(2 * time.Hour)
	if a.Tick(); len(a.Own()) != 2 {
		t.Fatal("it is destroyed at once")
	}
	if r.Next() != nil {
		t.Error("it vouches for its successor")
	}
	for name, pair := range map[string][2]*testNode{"dialling": {a, b}, "accepting": {b, a}} {
		if dialler, _ := meet(t, pair[0], pair[1], "db", AsMirror); wire.Classify(dialler.err) != wire.ClassAuth {
			t.Errorf("%s: %v", name, dialler.err)
		}
	}
}
