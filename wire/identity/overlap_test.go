package identity

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// TestUnkept: a folder that cannot be used just now ends no session: nothing is answered, it is told, and what
// the peer repeats is taken as soon as that can be kept.
func TestUnkept(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	s := join(t, a, b)
	next, err := a.Rotate(days)
	must(t, err)
	own, theirs := b.path(ownFile), a.path(trustFile)
	must(t, os.Chmod(own, 0o644))
	ack, err := s.b.TakeNext(s.a.Next())
	if ack != nil || err != nil {
		t.Errorf("it cannot be kept: %v, %v", ack, err)
	}
	if b.Tick(); !b.logged("cannot be kept") || !strings.Contains(strings.Join(b.Warnings(), "\n"), "chmod 0600") {
		t.Errorf("not told: %q", b.Warnings())
	}
	must(t, os.Chmod(own, 0o600))
	if ack, err = s.b.TakeNext(s.a.Next()); err != nil || ack == nil || ID(ack.Key) != next.ID {
		t.Fatalf("again: %v, %v", ack, err)
	}
	if b.Tick(); len(b.Warnings()) > 0 {
		t.Errorf("it is kept, and there is %q", b.Warnings())
	}
	must(t, os.Chmod(theirs, 0o644))
	if err := s.a.TakeAck(ack); err != nil || s.a.Next() != nil {
		t.Errorf("an ack that cannot be kept: %v, %v is next", err, s.a.Next())
	}
	must(t, os.Chmod(theirs, 0o600))
	if a.Tick(); len(a.Warnings()) > 0 || a.view().trust.byName("b").Knows != next.ID {
		t.Errorf("the ack is not kept; %q", a.Warnings())
	}
}

// TestLongPredecessor: a key that was told to be good for very long has one successor all that time, also when that
// has had its own ones; and who was away meanwhile comes back under it.
func TestLongPredecessor(t *testing.T) {
	clock := newClock()
	a, b, away := newNode(t, clock), newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	must(t, away.Trust("a", a.ID().String(), nil))
	must(t, a.Trust("away", away.ID().String(), nil))
	join(t, a, b)
	join(t, a, away)
	a.Tick()
	thief := clone(t, a)
	_, err := a.Rotate(365 * days) // a mistake …
	must(t, err)
	_, err = a.Rotate(0) // … mended
	must(t, err)
	join(t, a, b).tell(t)
	for range 3 {
		clock.pass(40 * days)
		_, err = a.Rotate(0)
		must(t, err)
		join(t, a, b).tell(t)
		a.Tick()
		b.Tick()
	}
	wrong, err := thief.Rotate(0)
	must(t, err)
	if _, err := b.Rollover(Peer{Name: "a"}).TakeNext(announce(thief.view().own[0], thief.view().own[1])); wire.Classify(err) != wire.ClassProtocol {
		t.Errorf("a second successor: %v", err)
	}
	if b.May(Peer{Name: "a", Key: wrong.ID}, "", 0) == nil {
		t.Error("a thief's key is taken")
	}
	join(t, away, a).tell(t)
	if away.Tick(); len(away.Warnings()) > 0 || away.view().trust.byName("a").key(a.ID()) == nil {
		t.Errorf("who was away does not know the current key, or is alarmed: %q", away.Warnings())
	}
}

// TestRetainedSuccessor: the same for what a peer told otherwise: a successor that is good no longer is remembered
// as long as its predecessor is good, and is not taken.
func TestRetainedSuccessor(t *testing.T) {
	clock := newClock()
	at := clock.now()
	b := newNode(t, clock)
	key, next, wrong := testKey(1, at, at, at.Add(90*days)), testKey(2, at, at, at.Add(days)), testKey(3, at, at, time.Time{})
	last := testKey(4, at, at, time.Time{})
	must(t, b.Trust("a", key.id.String(), nil))
	r := b.Rollover(Peer{Name: "a", Key: key.id})
	for _, m := range []*wire.KeyNext{announce(key, next), announce(next, last)} {
		_, err := r.TakeNext(m)
		must(t, err)
	}
	clock.pass(2 * days)
	b.Tick()
	if b.due() {
		t.Error("there is something to be done for ever")
	}
	if b.May(Peer{Name: "a", Key: next.id}, "", 0) == nil {
		t.Error("it is good for longer than was told")
	}
	if _, err := r.TakeNext(announce(key, wrong)); wire.Classify(err) != wire.ClassProtocol || !strings.Contains(err.Error(), "two successors") {
		t.Errorf("a second successor: %v", err)
	}
	clock.pass(90 * days)
	if b.sure(); len(b.Peers()[0].Keys) != 1 {
		t.Errorf("kept: %+v", b.Peers()[0].Keys)
	}
}

// TestGraceOfCommands: a command does not know the grace of the daemon, which gives it to the key all the same.
func TestGraceOfCommands(t *testing.T) {
	clock := newClock()
	daemon := newNode(t, clock, func(o *Options) { o.Grace = 90 * days })
	command, err := openNode(clock, func(o *Options) { o.Dir = daemon.options.Dir })
	must(t, err)
	for _, in := range []time.Duration{7 * days, 0} {
		next, err := command.Rotate(in)
		must(t, err)
		daemon.Tick()
		if own := daemon.Own(); !own[0].Until.Equal(clock.now().Add(in+90*days)) && in > 0 || own[len(own)-1].ID != next.ID {
			t.Errorf("in %v: %+v", in, own)
		}
		clock.pass(in)
	}
	if daemon.due() {
		t.Error("there is something to be done for ever")
	}
}
