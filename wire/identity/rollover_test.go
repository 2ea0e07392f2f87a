package identity

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// tell has the keys of `from` announced to `to` until nothing is left, as a Conn does.
func tell(t testing.TB, from, to wire.Keys) (n int) {
	t.Helper()
	for {
		next := from.Next()
		if next == nil {
			return n
		}
		ack, err := to.TakeNext(next)
		must(t, err)
		must(t, from.TakeAck(ack))
		if n++; n > maxOld+2 {
			t.Fatal("there is no end of it")
		}
	}
}

// session is a connection that stands: a dialled b.
type session struct{ a, b wire.Keys }

func join(t testing.TB, a, b *testNode) session {
	t.Helper()
	dialler, acceptor := meet(t, a, b, "db", AsMirror)
	if dialler.err != nil || acceptor.err != nil {
		t.Fatalf("dialler: %v; acceptor: %v", dialler.err, acceptor.err)
	}
	return session{a.Rollover(dialler.peer), b.Rollover(acceptor.peer)}
}

func (s session) tell(t testing.TB) int { return tell(t, s.a, s.b) + tell(t, s.b, s.a) }

// TestRollovers: ten in a row, under a lifetime of seconds, with a session now and then: no refusal.
func TestRollovers(t *testing.T) {
	clock := newClock()
	brief := func(o *Options) { o.Lifetime, o.Grace = 3*time.Second, 8*time.Second }
	a, b := newNode(t, clock, brief), newNode(t, clock, brief)
	trustBoth(t, a, b)
	seen := map[ID]bool{}
	for range 35 {
		clock.pass(time.Second)
		a.Tick()
		b.Tick()
		from, to := a, b
		if len(seen)%2 == 1 {
			from, to = b, a
		}
		join(t, from, to).tell(t)
		seen[a.ID()] = true
	}
	if len(seen) < 10 {
		t.Errorf("a had %d keys", len(seen))
	}
	for _, n := range []*testNode{a, b} {
		if own := n.Own(); len(own) > 12 || own[len(own)-1].State == "old" {
			t.Errorf("own keys: %+v", own)
		}
		if keys := n.Peers()[0].Keys; len(keys) > 12 {
			t.Errorf("the peer has %d keys", len(keys))
		}
		n.mu.Lock()
		if len(n.log) > 0 {
			t.Errorf("logged: %q", n.log)
		}
		n.mu.Unlock()
	}
}

// TestAcknowledged: a key is used towards a peer once that has it, whatever the time says.
func TestAcknowledged(t *testing.T) {
	for _, dialling := range []bool{true, false} {
		clock := newClock()
		a, b := newNode(t, clock), newNode(t, clock)
		trustBoth(t, a, b)
		used := func() (own ID) {
			t.Helper()
			from, to := a, b
			if !dialling {
				from, to = b, a
			}
			dialler, acceptor := meet(t, from, to, "db", AsMirror)
			if dialler.err != nil || acceptor.err != nil {
				t.Fatalf("dialler: %v; acceptor: %v", dialler.err, acceptor.err)
			}
			if dialling {
				return dialler.peer.Own
			}
			return acceptor.peer.Own
		}
		first := a.ID()
		if used() != first {
			t.Error("another key than the first")
		}
		next, err := a.Rotate(7 * days)
		must(t, err)
		if next.State != "next" || a.ID() != first || used() != first {
			t.Error("the next key is used before it was told")
		}
		join(t, a, b).tell(t)
		if a.ID() != first || used() != next.ID {
			t.Error("the next key is not used when it was acknowledged")
		}
		clock.pass(7 * days)
		if a.ID() != next.ID || used() != next.ID {
			t.Error("the next key is not current when its time has come")
		}
		if b.May(Peer{Name: "a", Key: first}, "db", AsPrimary) != nil {
			t.Error("the old key is not good in its grace")
		}
		clock.pass(30 * days)
		if a.sure(); len(a.Own()) != 1 {
			t.Error("the old key is kept")
		}
		if !b.sure() || len(b.Peers()[0].Keys) != 1 || b.May(Peer{Name: "a", Key: first}, "db", AsPrimary) == nil {
			t.Error("the peer keeps the old key, or does not tell")
		}
	}
}

// TestAway: a peer that missed the whole overlap, twice, comes back in under the old key and is told; after
// the grace it does not.
func TestAway(t *testing.T) {
	for _, dialling := range []bool{true, false} {
		clock := newClock()
		a, b := newNode(t, clock), newNode(t, clock)
		trustBoth(t, a, b)
		join(t, a, b)
		for range 2 {
			_, err := a.Rotate(days)
			must(t, err)
			clock.pass(2 * days)
			a.Tick()
		}
		if !a.logged("peer b still uses the old key") {
			t.Error("nothing was said of the old key")
		}
		from, to := a, b
		if !dialling {
			from, to = b, a
		}
		if n := join(t, from, to).tell(t); n != 2 {
			t.Errorf("%d keys were told, want 2", n)
		}
		if p := a.Peers()[0]; len(p.Warnings)+len(p.Notes) > 0 {
			t.Errorf("warnings %q, notes %q", p.Warnings, p.Notes)
		}
		_, err := a.Rotate(0)
		must(t, err)
		clock.pass(31 * days)
		for _, look := range []func() bool{a.Tick, a.sure} { // before and after the old key is destroyed
			look()
			if dialler, _ := meet(t, from, to, "db", AsMirror); wire.Classify(dialler.err) != wire.ClassAuth {
				t.Errorf("after the grace: %v", dialler.err)
			}
			if w := a.Peers()[0].Warnings; len(w) != 1 || !strings.Contains(w[0], "no key of this node that is good") || !strings.Contains(w[0], a.ID().String()) {
				t.Errorf("after the grace: %q", w)
			}
		}
	}
}

// TestLostMemory: a peer whose files are older than our keys gets us by the key that it knows, one a try.
func TestLostMemory(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	join(t, a, b)
	old := b.view().trustText
	for range 3 {
		_, err := a.Rotate(0)
		must(t, err)
		join(t, a, b).tell(t)
	}
	must(t, replace(b.folder, trustFile, old))
	b.Tick()
	var refused int
	for {
		dialler, _ := meet(t, a, b, "db", AsMirror)
		if dialler.err == nil {
			break
		}
		if refused++; wire.Classify(dialler.err) != wire.ClassAuth || refused > 5 {
			t.Fatalf("try %d: %v", refused, dialler.err)
		}
	}
	if n := join(t, a, b).tell(t); n != 3 {
		t.Errorf("%d keys were told again, want 3", n)
	}
	if dialler, _ := meet(t, a, b, "db", AsMirror); dialler.peer.Own != a.ID() {
		t.Error("not the current key at last")
	}
	if dialler, _ := meet(t, b, a, "db", AsMirror); dialler.err != nil {
		t.Errorf("the other way: %v", dialler.err)
	}
}

// clone is a second node with the same keys, as a thief has them.
func clone(t testing.TB, n *testNode) *testNode {
	t.Helper()
	c := newNode(t, n.clock)
	must(t, replace(c.folder, ownFile, n.view().ownText))
	must(t, replace(c.folder, trustFile, n.view().trustText))
	c.Tick()
	return c
}

// TestConflict: two successors of one key. Neither is good, until a person says which.
func TestConflict(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	join(t, a, b)
	a.Tick()
	thief := clone(t, a)
	right, err := a.Rotate(0)
	must(t, err)
	wrong, err := thief.Rotate(0)
	must(t, err)
	join(t, a, b).tell(t)
	_, err = a.Rotate(days) // a successor of the successor: goes out with it
	must(t, err)
	join(t, a, b).tell(t)
	if len(b.Peers()[0].Keys) != 3 {
		t.Fatal("three keys are to be there")
	}
	b.Tick()
	s := join(t, thief, b) // by the first key, which both have
	for range 2 {
		if _, err := s.b.TakeNext(s.a.Next()); wire.Classify(err) != wire.ClassProtocol {
			t.Errorf("a second successor: %v", err)
		}
	}
	if !b.Tick() || !b.logged("ALARM") {
		t.Error("no change of trust, or no alarm")
	}
	for _, id := range []ID{right.ID, wrong.ID} {
		if b.May(Peer{Name: "a", Key: id}, "db", AsPrimary) == nil {
			t.Errorf("%v is taken", id)
		}
	}
	next := announce(a.view().own[0], a.view().own[1])
	if _, err := b.Rollover(Peer{Name: "a"}).TakeNext(next); wire.Classify(err) != wire.ClassProtocol {
		t.Errorf("the first successor again: %v", err)
	}
	if err := b.Trust("a", randomID().String(), nil); !errors.Is(err, ErrOtherKey) {
		t.Errorf("trust in any other key: %v", err)
	}
	must(t, b.Trust("a", right.ID.String(), nil))
	if b.Tick(); len(b.Peers()[0].Warnings) > 0 {
		t.Errorf("a person has decided, and there is %q", b.Peers()[0].Warnings)
	}
	if dialler, _ := meet(t, a, b, "db", AsMirror); wire.Classify(dialler.err) != wire.ClassAuth {
		t.Errorf("the successor's successor: %v", dialler.err)
	}
	join(t, a, b).tell(t)
	for name, key := range map[string]ID{"the key that both have": a.view().own[0].id, "the thief's": wrong.ID} {
		if b.May(Peer{Name: "a", Key: key}, "", 0) == nil || len(b.Peers()[0].Keys) != 2 {
			t.Errorf("%s is good after a person has decided; keys %+v", name, b.Peers()[0].Keys)
		}
	}
	if dialler, _ := meet(t, thief, b, "db", AsMirror); wire.Classify(dialler.err) != wire.ClassAuth {
		t.Errorf("the thief gets in: %v", dialler.err)
	}
	// What a person trusted stays, when the thief comes again.
	if _, err := b.Rollover(Peer{Name: "a"}).TakeNext(announce(thief.view().own[0], thief.view().own[1])); err == nil {
		t.Error("the thief's key is taken")
	}
	if b.May(Peer{Name: "a", Key: right.ID}, "db", AsPrimary) != nil {
		t.Error("the key that a person trusted went out")
	}
	must(t, b.Revoke("a"))
	if b.Tick(); len(b.Warnings()) > 0 || b.May(Peer{Name: "a", Key: right.ID}, "", 0) == nil {
		t.Error("the alarm, or the key, outlives the peer")
	}
}

// TestKeyNext: what is not taken, and that nothing is kept of it.
func TestKeyNext(t *testing.T) {
	clock := newClock()
	at := clock.now()
	b := newNode(t, clock)
	key, next, other := testKey(1, at, at, at.Add(days)), testKey(2, at, at, time.Time{}), testKey(3, at, at, at.Add(days))
	must(t, b.Trust("a", key.id.String(), nil))
	must(t, b.Trust("c", other.id.String(), nil))
	before := b.view().trustText
	sign := func(m wire.KeyNext, by, byNext ownKey) *wire.KeyNext {
		m.ByKey = [64]byte(ed25519.Sign(by.private, keyNextText(&m)))
		m.ByNext = [64]byte(ed25519.Sign(byNext.private, keyNextText(&m)))
		return &m
	}
	right := *announce(key, next)
	far := right
	far.Until = lastTime.UnixMilli() + 1
	negative := right
	negative.Switch = -1
	later := right
	later.Until++
	for name, m := range map[string]*wire.KeyNext{
		"signed by another key":       sign(right, other, next),
		"signed by another successor": sign(right, key, other),
		"signed the other way round":  sign(right, next, key),
		"signed for another time":     &later,
		"of a stranger":               announce(testKey(4, at, at, at.Add(days)), next),
		"of another peer":             announce(other, next),
		"to a key of another peer":    announce(key, other),
		"to a key of this node":       announce(key, b.view().own[0]),
		"to itself":                   sign(wire.KeyNext{Key: key.id, Next: key.id}, key, key),
		"beyond all times":            sign(far, key, next),
		"before all times":            sign(negative, key, next),
		"empty":                       {},
	} {
		_, err := b.Rollover(Peer{Name: "a", Key: key.id}).TakeNext(m)
		if wire.Classify(err) != wire.ClassProtocol {
			t.Errorf("%s: %v", name, err)
		}
		if string(b.view().trustText) != string(before) {
			t.Fatalf("%s: it is kept", name)
		}
	}
	for range 2 {
		ack, err := b.Rollover(Peer{Name: "a", Key: key.id}).TakeNext(&right)
		if err != nil || ack.Key != [32]byte(next.id) {
			t.Errorf("the right one: %v, %v", ack, err)
		}
	}
	must(t, b.Revoke("a"))
	if _, err := b.Rollover(Peer{Name: "a", Key: key.id}).TakeNext(&right); wire.Classify(err) != wire.ClassAuth {
		t.Errorf("of one who was revoked: %v", err)
	}
	// A revoked key does not come back as somebody's successor.
	if _, err := b.Rollover(Peer{Name: "c"}).TakeNext(announce(other, next)); err == nil {
		t.Error("a revoked key comes back as a successor")
	}
}

// TestManyKeys: neither our own keys nor a peer's grow without end.
func TestManyKeys(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	join(t, a, b)
	for range 2 * maxOld {
		_, err := a.Rotate(0)
		must(t, err)
		join(t, a, b).tell(t)
	}
	if len(a.Own()) > maxOld+2 || len(b.Peers()[0].Keys) > maxPeerKeys {
		t.Errorf("%d own keys, %d of the peer", len(a.Own()), len(b.Peers()[0].Keys))
	}
}

// TestRotate: a key has one successor; saying it again moves the time.
func TestRotate(t *testing.T) {
	clock := newClock()
	a := newNode(t, clock)
	first, err := a.Rotate(7 * days)
	must(t, err)
	second, err := a.Rotate(days)
	must(t, err)
	if first.ID != second.ID || !second.Switch.Equal(clock.now().Add(days)) {
		t.Errorf("first %+v, second %+v", first, second)
	}
	if until := a.Own()[0].Until; !until.Equal(clock.now().Add(37 * days)) {
		t.Errorf("the old key is good until %v: shorter than a peer may have been told", until)
	}
	states := func() (s []string) {
		for _, k := range a.Own() {
			s = append(s, k.State)
		}
		return s
	}
	if got := states(); !slices.Equal(got, []string{"current", "next"}) {
		t.Errorf("states %q", got)
	}
	clock.pass(days)
	if got := states(); !slices.Equal(got, []string{"old", "current"}) {
		t.Errorf("states %q", got)
	}
	clock.pass(-2 * days) // a clock that goes back loses nothing
	if a.Tick(); len(a.Own()) != 2 || a.ID() == first.ID {
		t.Errorf("own %+v", a.Own())
	}
	if err := a.Rollover(Peer{Name: "b"}).TakeAck(&wire.KeyAck{Key: randomID()}); wire.Classify(err) != wire.ClassProtocol {
		t.Errorf("KeyAck of a key that is none of ours: %v", err)
	}
}

// TestLifetime: the next key at two thirds, the switch at the end; for a node that was off for long, the
// overlap all the same.
func TestLifetime(t *testing.T) {
	clock := newClock()
	a := newNode(t, clock, func(o *Options) { o.Lifetime = 60 * days })
	first := a.ID()
	clock.pass(40*days - certain)
	a.Tick()
	clock.pass(certain - time.Second)
	if a.Tick(); len(a.Own()) != 1 {
		t.Error("the next key comes early")
	}
	clock.pass(time.Second)
	if a.Tick(); len(a.Own()) != 2 || !a.Own()[1].Switch.Equal(clock.now().Add(20*days)) {
		t.Errorf("own %+v", a.Own())
	}
	if !a.Own()[0].Until.Equal(clock.now().Add(80 * days)) {
		t.Error("the grace is not one lifetime")
	}
	clock.pass(20 * days)
	if a.ID() == first {
		t.Error("no switch")
	}
	clock.pass(400 * days)
	if a.sure(); len(a.Own()) != 2 || !a.Own()[1].Switch.Equal(clock.now().Add(20*days)) {
		t.Errorf("after a long time off: %+v", a.Own())
	}
}

// FuzzKeyNext: only what both keys signed is taken, whatever else is in it, and what is taken can be read
// again.
func FuzzKeyNext(f *testing.F) {
	at := newClock().now()
	key, next := testKey(1, at, at, at.Add(days)), testKey(2, at, at, time.Time{})
	right := announce(key, next)
	f.Add(append(append(keyNextText(right)[24:], right.ByKey[:]...), right.ByNext[:]...), true)
	f.Add(make([]byte, 80+128), false)
	f.Fuzz(func(t *testing.T, b []byte, signed bool) {
		if len(b) < 80+128 {
			return
		}
		m := &wire.KeyNext{
			Key: [32]byte(b), Next: [32]byte(b[32:]), Switch: int64(binary.LittleEndian.Uint64(b[64:])),
			Until: int64(binary.LittleEndian.Uint64(b[72:])), ByKey: [64]byte(b[80:]), ByNext: [64]byte(b[144:]),
		}
		if signed { // what a peer that is trusted can come up with
			m.Key, m.Next = key.id, next.id
			m.ByKey = [64]byte(ed25519.Sign(key.private, keyNextText(m)))
			m.ByNext = [64]byte(ed25519.Sign(next.private, keyNextText(m)))
		}
		if verify(m) != nil {
			return
		}
		tr := newTrust()
		must(t, tr.add(at, "a", key.id, "", nil))
		if refused, err := tr.take(at, "a", m); refused != nil || err != nil {
			if signed {
				t.Errorf("%v, %v", refused, err)
			}
			return
		}
		text, err := tr.encode()
		must(t, err)
		if _, err := decodeTrust(text); err != nil {
			t.Errorf("what was taken cannot be read: %v", err)
		}
		if !strings.Contains(string(text), ID(m.Next).String()) {
			t.Error("it is not kept")
		}
	})
}
