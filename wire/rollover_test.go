package wire

import (
	"errors"
	"io"
	"sync"
	"testing"
)

// ring is one side's Keys: it announces a row of keys, each when the one before was acknowledged.
type ring struct {
	mu    sync.Mutex
	row   []*KeyNext
	taken []*KeyNext
	hold  chan struct{} // where it is not nil, TakeNext waits for it, as for a disk
	err   error         // of TakeNext
}

func newRing(n int) *ring {
	r := &ring{}
	for i := range n {
		r.row = append(r.row, &KeyNext{Key: Hash{byte(i + 1)}, Next: Hash{byte(i + 2)}, Switch: 1, Until: 2})
	}
	return r
}

func (r *ring) Next() *KeyNext {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.row) == 0 {
		return nil
	}
	return r.row[0]
}

func (r *ring) TakeNext(m *KeyNext) (*KeyAck, error) {
	if r.hold != nil {
		<-r.hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	r.taken = append(r.taken, m)
	return &KeyAck{m.Next}, nil
}

func (r *ring) TakeAck(m *KeyAck) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.row) > 0 && r.row[0].Next == m.Key {
		r.row = r.row[1:]
	}
	return nil
}

func (r *ring) left() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.row)
}

// keyed is a pair of connections whose keys roll over, behind their Hellos. What else arrives goes to got.
func keyed(t *testing.T, a, b *ring) (x, y *Conn, got chan Message) {
	t.Helper()
	nx, ny := ends(t, "tcp")
	x, y = NewConn(nx, ConnOptions{Keys: a}), NewConn(ny, ConnOptions{Keys: b})
	t.Cleanup(func() { x.Close(nil); y.Close(nil) })
	got = make(chan Message, 100)
	for _, c := range []*Conn{x, y} {
		if err := c.Send(sample(TypeHello)); err != nil {
			t.Fatal(err)
		}
		go func() { // ends with the connection
			for {
				m, err := c.Next()
				if err != nil {
					return
				}
				got <- m
			}
		}()
	}
	<-got
	<-got
	return x, y, got
}

// TestRollover: both sides announce their keys one after the other, and no reader sees any of it.
func TestRollover(t *testing.T) {
	a, b := newRing(3), newRing(1)
	x, y, got := keyed(t, a, b)
	y.Established() // the acceptor's handshake ends first: what it announces waits for the dialler's
	x.Established()
	for a.left()+b.left() > 0 {
		if x.Err() != nil || y.Err() != nil {
			t.Fatal(x.Err(), y.Err())
		}
		yield()
	}
	if err := x.Send(&Window{7}); err != nil {
		t.Fatal(err)
	}
	if m, ok := (<-got).(*Window); !ok || m.Granted != 7 {
		t.Errorf("received %v", m)
	}
	if len(b.taken) != 3 || b.taken[2].Next != (Hash{4}) {
		t.Errorf("taken: %v", b.taken)
	}
}

// TestRolloverWaitsForNobody: while a key waits for its disk, the reader goes on, and the end of the
// connection waits for the disk alone.
func TestRolloverWaitsForNobody(t *testing.T) {
	a, b := newRing(1), newRing(0)
	b.hold = make(chan struct{})
	x, y, got := keyed(t, a, b)
	x.Established()
	y.Established()
	if err := x.Send(&Window{7}, &Window{8}); err != nil {
		t.Fatal(err)
	}
	<-got
	<-got
	if a.left() != 1 {
		t.Error("acknowledged before it was taken")
	}
	x.Close(nil)
	close(b.hold)
	y.Close(nil)
}

// TestRolloverRefused: a successor that does not hold ends the connection, and the peer learns why.
func TestRolloverRefused(t *testing.T) {
	a, b := newRing(1), newRing(0)
	b.err = broken("KeyNext that the old key did not sign")
	x, y, _ := keyed(t, a, b)
	x.Established()
	y.Established()
	<-x.Done()
	var told *RemoteError
	if !errors.As(x.Err(), &told) && Classify(x.Err()) != ClassReset || told != nil && told.Code != CodeProtocol {
		t.Errorf("the sender ended with %v", x.Err())
	}
	x.Close(nil)
	<-y.Done()
	if !errors.Is(y.Err(), b.err) || Classify(y.Err()) != ClassProtocol {
		t.Errorf("the receiver ended with %v", y.Err())
	}
}

// TestRolloverRefusedBehindBulk: that is so also where a peer that does not read keeps the turn to send taken: what ends the
// connection is what it did, and it takes no longer than a farewell may.
func TestRolloverRefusedBehindBulk(t *testing.T) {
	r := newRing(0)
	r.err = broken("KeyNext that the old key did not sign")
	nx, ny := ends(t, "tcp")
	conn := NewConn(nx, ConnOptions{Keys: r})
	defer conn.Close(nil)
	conn.Established()
	bulk := make(chan error)
	go func() { // ends with the connection
		for {
			if err := conn.Send(block(1, 0, MaxBlock, 0)); err != nil {
				bulk <- err
				return
			}
		}
	}()
	go func() {
		for {
			if _, err := conn.Next(); err != nil {
				return
			}
		}
	}()
	for last, still := int64(-1), 0; still < 100; yield() { // until it is stuck
		if sent := conn.Sent(); sent != last || !conn.live.writing.Load() {
			last, still = sent, 0
		} else {
			still++
		}
	}
	if _, err := ny.Write(append(frame(t, sample(TypeHello)), frame(t, sample(TypeKeyNext))...)); err != nil {
		t.Fatal(err)
	}
	if err := <-bulk; !errors.Is(err, r.err) {
		t.Errorf("the sender ends with %v", err)
	}
	if age, _ := conn.Lifetime(); age > 5*farewellWait {
		t.Errorf("after %v", age)
	}
}

// TestRolloverOutOfPlace: key frames where there are no identities, before the Hello, and an answer to
// nothing, are no part of the protocol.
func TestRolloverOutOfPlace(t *testing.T) {
	hello := frame(t, sample(TypeHello))
	next, ack := frame(t, sample(TypeKeyNext)), frame(t, sample(TypeKeyAck))
	for name, c := range map[string]struct {
		keys   Keys
		stream []byte
	}{
		"no identities":      {nil, append(hello, next...)},
		"before the Hello":   {newRing(0), next},
		"an ack of nothing":  {newRing(0), append(hello, ack...)},
		"inside a run":       {newRing(0), append(append(hello, frame(t, block(1, 0, 100, 200))...), next...)},
		"an ack, no rolling": {nil, append(hello, ack...)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits a second for a peer that does not close
			x, y := ends(t, "tcp")
			conn := NewConn(x, ConnOptions{Keys: c.keys})
			defer conn.Close(nil)
			if _, err := y.Write(c.stream); err != nil {
				t.Fatal(err)
			}
			go io.Copy(io.Discard, y) // ends with the connection
			var err error
			for err == nil {
				_, err = conn.Next()
			}
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}
