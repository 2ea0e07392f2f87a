package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// block makes a Data frame whose payload tells its sequence.
func block(seq uint64, offset int64, n, follow int) *Data {
	p := bytes.Repeat([]byte{byte(seq), byte(seq >> 8), 7}, n/3+1)[:n]
	return &Data{Seq: seq, Offset: offset, RawLength: uint32(n), Follow: uint32(follow), Codec: CodecRaw, Hash: Sum(p), Payload: p}
}

// TestConversation sends from many goroutines both ways at once. Nothing is lost, mixed or reordered
// within a sender, runs arrive whole, and the counters count it.
func TestConversation(t *testing.T) {
	const senders, calls = 4, 60
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			a, b := pair(t, network, ConnOptions{PingEvery: 5 * time.Millisecond, DeadAfter: time.Minute})
			var all sync.WaitGroup
			for _, c := range []*Conn{a, b} {
				for sender := range senders {
					all.Go(func() { converse(t, c, sender, calls) })
				}
				all.Go(func() { listen(t, c, senders*calls*4) })
			}
			all.Wait()
			// The counters hold at least what was said; pings come on top.
			var said int64
			for i := range calls {
				said += 4*HeaderSize + 3*dataSize + entrySize + 3*int64(sizes[i%len(sizes)])
			}
			said *= senders
			for _, n := range []int64{a.Sent(), b.Received(), b.Sent(), a.Received()} {
				if n < said || n > said*2 {
					t.Errorf("a sent %d, b received %d; b sent %d, a received %d; want a little over %d",
						a.Sent(), b.Received(), b.Sent(), a.Received(), said)
					break
				}
			}
		})
	}
}

// sizes are those of converse's blocks, on both sides of directPayload.
var sizes = []int{1, 300, 5000, 16 << 10, 64 << 10}

// converse sends runs of three blocks, small and large, and an Ack behind each.
func converse(t *testing.T, c *Conn, sender, calls int) {
	for i := range calls {
		seq := uint64(sender)<<32 | uint64(i)
		n := sizes[i%len(sizes)]
		at := int64(sender) << 40
		err := c.Send(block(seq, at, n, 2*n), block(seq, at+int64(n), n, n), block(seq, at+2*int64(n), n, 0),
			&Ack{make([]AckEntry, 1)})
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("an Ack without a level was sent: %v", err)
		}
		err = c.Send(block(seq, at, n, 2*n), block(seq, at+int64(n), n, n), block(seq, at+2*int64(n), n, 0),
			&Ack{[]AckEntry{{Seq: seq, Level: LevelStaged}}})
		if err != nil {
			t.Errorf("sender %d, call %d: %v", sender, i, err)
			return
		}
	}
}

// listen receives n frames of converse; of some payloads it reads nothing.
func listen(t *testing.T, c *Conn, n int) {
	next := map[uint64]uint64{} // by sender: the call that is due
	place := 0                  // in the call
	for i := range n {
		m, err := c.Next()
		if err != nil {
			t.Errorf("after %d frames: %v", i, err)
			return
		}
		switch m := m.(type) {
		case *Data:
			if place == 0 && m.Seq&0xffffffff != next[m.Seq>>32] {
				t.Errorf("sender %d: call %d, want %d", m.Seq>>32, m.Seq&0xffffffff, next[m.Seq>>32])
			}
			place++
			if m.Seq%7 == 3 {
				continue
			}
			got := make([]byte, m.PayloadLength)
			if err := c.ReadPayload(got); err != nil {
				t.Error(err)
				return
			}
			if Sum(got) != m.Hash {
				t.Errorf("frame %d of call %d: other bytes", place, m.Seq)
			}
		case *Ack:
			if place != 3 {
				t.Errorf("Ack after %d frames of a call, want 3", place)
			}
			place = 0
			next[m.Entries[0].Seq>>32]++
		}
	}
}

// TestStrangers: what is no blkmirror of our version is told as what it is, also where it says less than
// a header and waits.
func TestStrangers(t *testing.T) {
	v2 := frame(t, &Ping{})
	v2[4] = 2
	for name, c := range map[string]struct {
		said  string
		want  error
		class Class
		text  string
	}{
		"http": {
			"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n", ErrNotBlkmirror, ClassProtocol,
			`"HTTP/1.1 400 Bad Request\r\n`,
		},
		"ssh":        {"SSH-2.0-OpenSSH_9.2\r\n", ErrNotBlkmirror, ClassProtocol, `"SSH-2.0-OpenSSH_9.2\r\n"`},
		"tls":        {"\x16\x03\x01\x02\x00\x01", ErrNotBlkmirror, ClassProtocol, "speaks TLS"},
		"one byte":   {"\x00", ErrNotBlkmirror, ClassProtocol, `"\x00"`},
		"three":      {"BL!", ErrNotBlkmirror, ClassProtocol, `"BL!"`},
		"version 2":  {string(v2), ErrVersion, ClassVersion, "version 2, this node version 1"},
		"short v2":   {string(v2[:preambleSize]), ErrVersion, ClassVersion, "version 2"},
		"garbage v2": {"BLKM\x02\x00 and whatever version 2 may be", ErrVersion, ClassVersion, "version 2"},
	} {
		t.Run(name, func(t *testing.T) {
			x, y := ends(t, "tcp")
			conn := NewConn(x, ConnOptions{})
			defer conn.Close(nil)
			if _, err := io.WriteString(y, c.said); err != nil { // and stays open
				t.Fatal(err)
			}
			_, err := conn.Next()
			if !errors.Is(err, c.want) || Classify(err) != c.class || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("%v (%s)", err, Classify(err))
			}
			if again, _ := conn.Next(); again != nil || conn.Err() != err {
				t.Errorf("then %v, %v", again, conn.Err())
			}
		})
	}
}

// TestRunRule: a run is whole within a Send, and nothing comes between its frames on the wire.
func TestRunRule(t *testing.T) {
	a, b := pair(t, "tcp", ConnOptions{})
	for name, ms := range map[string][]Message{
		"unfinished": {block(1, 0, 100, 100)},
		"gap":        {block(1, 0, 100, 100), block(2, 101, 100, 0)},
		"too long":   {block(1, 0, 100, 100), block(2, 100, 101, 0)},
		"between":    {block(1, 0, 100, 100), &Window{1}, block(2, 100, 100, 0)},
	} {
		if err := a.Send(ms...); !errors.Is(err, ErrProtocol) || a.Err() != nil {
			t.Errorf("%s: %v, connection %v", name, err, a.Err())
		}
		var raw []byte
		for _, m := range ms {
			raw = append(raw, frame(t, m)...)
		}
		if _, _, err := receiveAll(cannedConn(raw)); name != "unfinished" && !errors.Is(err, ErrProtocol) {
			t.Errorf("%s received: %v", name, err)
		}
	}
	if err := a.Send(&Window{5}); err != nil {
		t.Fatal(err)
	}
	if m, err := b.Next(); err != nil || m.(*Window).Granted != 5 {
		t.Errorf("after refused sends: %v, %v", m, err)
	}
}

// TestTurns: a control frame waits for the one call with Data that is being written, not for those that wait
// as well; all others keep the order in which they came.
func TestTurns(t *testing.T) {
	x, y := ends(t, "pipe")
	conn := NewConn(x, ConnOptions{PingEvery: time.Minute, DeadAfter: 5 * time.Minute})
	defer conn.Close(nil)
	var all sync.WaitGroup
	send := func(ready func() bool, ms ...Message) {
		all.Go(func() {
			if err := conn.Send(ms...); err != nil {
				t.Errorf("%T: %v", ms[0], err)
			}
		})
		for !ready() {
			yield()
		}
	}
	waiting := func(urgent, bulk int) func() bool {
		return func() bool {
			conn.out.mu.Lock()
			defer conn.out.mu.Unlock()
			return len(conn.out.urgent) == urgent && len(conn.out.bulk) == bulk
		}
	}
	send(conn.live.writing.Load, block(1, 0, 100, 100), block(2, 100, 100, 0))
	send(waiting(0, 1), block(3, 0, 100, 0))
	send(waiting(0, 2), &Zero{Seq: 4, Length: 4096}, &Window{Granted: 5})
	send(waiting(1, 2), &Window{Granted: 6}, &Window{Granted: 7})
	send(waiting(2, 2), &Window{Granted: 8})
	var got []uint64
	peer := NewConn(y, ConnOptions{})
	defer peer.Close(nil)
	for range 8 {
		m, err := peer.Next()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *Data:
			got = append(got, m.Seq)
		case *Zero:
			got = append(got, m.Seq)
		case *Window:
			got = append(got, m.Granted)
		}
	}
	all.Wait()
	if want := []uint64{1, 2, 6, 7, 8, 3, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("sent in the order %v, want %v", got, want)
	}
	if !conn.out.tryTake() {
		t.Error("the last turn was not given back")
	} else if conn.out.give(); conn.out.taken {
		t.Error("a turn that nobody waits for is taken")
	}
}

// TestFarewell: a peer that says why it goes is the reason, for the reader and for writers whose writes
// fail; one that says nothing is a reset.
func TestFarewell(t *testing.T) {
	for _, network := range networks {
		for _, said := range []Message{&Halt{CodeNoSpace, "disk full"}, &Bye{CodeDone, ""}, &Refused{CodeBusy, "busy"}, nil} {
			a, b := pair(t, network, ConnOptions{})
			go func() {
				if said != nil {
					if err := b.Send(said); err != nil {
						t.Errorf("%s, %T: %v", network, said, err)
					}
				}
				// A Ping that nobody has read makes this a reset: what was said must be heard even so.
				b.Close(nil)
			}()
			writer := make(chan error, 1)
			go func() {
				for {
					if err := a.Send(block(1, 0, 64<<10, 0)); err != nil {
						writer <- err
						return
					}
				}
			}()
			m, err := a.Next()
			if said != nil {
				if err != nil || m.Type() != said.Type() {
					t.Errorf("%s, %T: received %v, %v", network, said, m, err)
				}
				_, err = a.Next()
			}
			for who, err := range map[string]error{"reader": err, "writer": <-writer} {
				var remote *RemoteError
				if said != nil && !errors.As(err, &remote) || said == nil && Classify(err) != ClassReset {
					t.Errorf("%s, %T: the %s got %v", network, said, who, err)
				}
			}
		}
	}
}

// TestClose releases whoever is under way, with the cause, and leaves nothing behind.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	cause := errors.New("cause")
	for _, network := range networks {
		a, _ := pair(t, network, ConnOptions{})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() { // nobody reads: they block
				for {
					if err := a.Send(block(1, 0, MaxBlock, 0)); err != nil {
						if !errors.Is(err, cause) {
							t.Errorf("%s: Send returned %v", network, err)
						}
						return
					}
				}
			})
		}
		all.Go(func() {
			if _, err := a.Next(); !errors.Is(err, cause) {
				t.Errorf("%s: Next returned %v", network, err)
			}
		})
		waitBlocked(a)
		a.Close(cause)
		a.Close(nil)
		all.Wait()
		if err := a.Send(&Window{}); !errors.Is(err, cause) || !errors.Is(a.Err(), cause) {
			t.Errorf("%s: after Close: %v, %v", network, err, a.Err())
		}
		if err := a.ReadPayload(nil); !errors.Is(err, cause) {
			t.Errorf("%s: ReadPayload after Close: %v", network, err)
		}
		<-a.Done()
	}
	// The other ends are closed by pair's clean-up; ours must be gone: two each, and their callers.
	for runtime.NumGoroutine() > before+2*len(networks) {
		yield()
	}
}

// waitBlocked waits until a writer has stopped in the kernel: writing, and nothing moves.
func waitBlocked(c *Conn) {
	for still, last := 0, int64(-1); still < 20; yield() {
		if n := c.Sent(); c.live.writing.Load() && n == last {
			still++
		} else {
			still, last = 0, n
		}
	}
}

// TestReadPayloadLength: a buffer of another length is the caller's fault, and harms nothing.
func TestReadPayloadLength(t *testing.T) {
	a, b := pair(t, "tcp", ConnOptions{})
	if err := a.Send(block(1, 0, 4096, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Next(); err != nil {
		t.Fatal(err)
	}
	if err := b.ReadPayload(make([]byte, 4095)); err == nil {
		t.Error("read into a short buffer")
	}
	if err := b.ReadPayload(make([]byte, 4096)); err != nil {
		t.Error(err)
	}
	if err := b.ReadPayload(make([]byte, 4096)); err == nil {
		t.Error("read a payload twice")
	}
}

// TestSendAllocations: Send allocates nothing, however many frames it takes.
func TestSendAllocations(t *testing.T) {
	conn := bareConn(nil)
	ms := []Message{
		block(1, 0, 64<<10, 64<<10), block(2, 64<<10, 64<<10, 0), &Zero{Length: 4096}, &Window{1},
		&Ack{[]AckEntry{{Level: LevelWritten}}},
	}
	n := testing.AllocsPerRun(100, func() {
		if err := conn.Send(ms...); err != nil {
			t.Error(err)
		}
	})
	if n > 0 {
		t.Errorf("%v allocations in a Send of %d frames", n, len(ms))
	}
	for _, b := range conn.out.vector[:cap(conn.out.vector)] {
		if b != nil {
			t.Errorf("Send kept a buffer of %d bytes", len(b))
		}
	}
}

// TestHugeLengths: a header, with its checksum right, that says the largest numbers is refused before
// anything is allocated for them.
func TestHugeLengths(t *testing.T) {
	for kind := range 256 {
		for _, h := range []header{
			{kind: Type(kind), meta: 1<<32 - 1}, {kind: Type(kind), payload: 1<<32 - 1, meta: 72},
			{kind: Type(kind), meta: maxMeta + 1}, {kind: Type(kind), payload: MaxBlock + 1, meta: 72},
		} {
			b := make([]byte, HeaderSize)
			putHeader(b, h)
			if _, err := parseHeader(b); !errors.Is(err, ErrProtocol) {
				t.Fatalf("header %+v: %v", h, err)
			}
		}
	}
	b := make([]byte, HeaderSize, HeaderSize+96)
	putHeader(b, header{kind: TypeOffer, meta: 1<<32 - 1})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const rounds = 100
	for range rounds {
		if _, _, err := receiveAll(bareConn(b)); err == nil {
			t.Fatal("accepted")
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / rounds; each > 16<<10 {
		t.Errorf("a header that is refused costs %d bytes", each)
	}
}

var _ net.Conn = (*canned)(nil)
