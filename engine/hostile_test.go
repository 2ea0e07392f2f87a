package engine

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// hostileSource speaks the source's part by hand with a node, up to Opened.
func hostileSource(t *testing.T, addr string, size int64) (*wire.Conn, *wire.Opened) {
	t.Helper()
	nc, err := wire.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	c := wire.NewConn(nc, wire.ConnOptions{})
	t.Cleanup(func() { c.Close(errDone) })
	if _, err := greet(c, &wire.Hello{Role: wire.RoleSource, Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	c.Established()
	opened, err := openTargetSide(t.Context(), c, &wire.Open{BlockSize: DefaultBlockSize, Size: size}, geometry{size, DefaultBlockSize})
	if err != nil {
		t.Fatal(err)
	}
	return c, opened
}

func rawBlock(seq uint64, off int64, n int) *wire.Data {
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(i) | 1
	}
	return &wire.Data{Seq: seq, Offset: off, RawLength: uint32(n), Codec: wire.CodecRaw, Hash: wire.Sum(payload), Payload: payload}
}

// lastWord reads until the node ends the session, and returns its reason.
func lastWord(t *testing.T, c *wire.Conn) wire.Code {
	t.Helper()
	for {
		m, err := c.Next()
		if err != nil {
			var remote *wire.RemoteError
			if errors.As(err, &remote) {
				return remote.Code
			}
			t.Fatalf("the node hung up without a word: %v", err)
		}
		if h, ok := m.(*wire.Halt); ok {
			return h.Code
		}
	}
}

// Whatever a source sends that is no block of the volume, or not what it says, is not written.
func TestTargetRefusesNonsense(t *testing.T) {
	const size = 4*mib + 1000
	wrongHash := rawBlock(1, 0, DefaultBlockSize)
	wrongHash.Hash[0] ^= 1
	following := rawBlock(1, 0, DefaultBlockSize)
	following.Follow = DefaultBlockSize
	for _, c := range []struct {
		name string
		send []wire.Message
		want wire.Code
	}{
		{"behind the end", []wire.Message{rawBlock(1, 8*mib, DefaultBlockSize)}, wire.CodeProtocol},
		{"across the end", []wire.Message{rawBlock(1, 4*mib, DefaultBlockSize)}, wire.CodeProtocol},
		{"inside a block", []wire.Message{rawBlock(1, 4096, DefaultBlockSize)}, wire.CodeProtocol},
		{"part of a block", []wire.Message{rawBlock(1, 0, 4096)}, wire.CodeProtocol},
		{"zero behind the end", []wire.Message{&wire.Zero{Seq: 1, Offset: 0, Length: 8 * mib}}, wire.CodeProtocol},
		{"zero of half a block", []wire.Message{&wire.Zero{Seq: 1, Offset: 0, Length: 100}}, wire.CodeProtocol},
		{"offer behind the end", []wire.Message{&wire.Offer{Offset: 8 * mib, Length: DefaultBlockSize, Unit: DefaultBlockSize, Hashes: make([]wire.Hash, 1)}}, wire.CodeProtocol},
		{"offer of blocks of another size", []wire.Message{&wire.Offer{Offset: 0, Length: mib, Unit: 4096, Hashes: make([]wire.Hash, 256)}}, wire.CodeProtocol},
		{"commit of an epoch", []wire.Message{&wire.Commit{Epoch: 2, Base: 1}}, wire.CodeProtocol},
		{"commit of what was not sent", []wire.Message{&wire.Commit{Records: 3}}, wire.CodeIntegrity},
		{"commit with another chain", []wire.Message{rawBlock(1, 0, DefaultBlockSize), &wire.Commit{Records: 1}}, wire.CodeIntegrity},
		{"flush beyond the end", []wire.Message{&wire.Flush{Number: 1, Position: 8 * mib}}, wire.CodeProtocol},
		{"flush inside a block", []wire.Message{&wire.Flush{Number: 1, Position: 10}}, wire.CodeProtocol},
		{"a target's message", []wire.Message{&wire.Ack{Entries: []wire.AckEntry{{Seq: 1, Level: wire.LevelWritten}}}}, wire.CodeProtocol},
		{"a second hello", []wire.Message{&wire.Hello{Role: wire.RoleSource}}, wire.CodeProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			dst := filepath.Join(t.TempDir(), "dst")
			n := startNode(t, map[string]string{"v": dst})
			conn, _ := hostileSource(t, n.addr, size)
			if err := conn.Send(c.send...); err != nil {
				t.Fatal(err)
			}
			if got := lastWord(t, conn); got != c.want {
				t.Errorf("the node ended with %v, want %v", got, c.want)
			}
			conn.Close(errDone)
			// The node serves the next one.
			src := image(t, "src", size, 1)
			newSyncer(t).run(src, "blk://"+n.addr+"/v")
			mustEqual(t, src, dst)
		})
	}
	t.Run("a payload that is not what its hash says", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "dst")
		n := startNode(t, map[string]string{"v": dst})
		conn, _ := hostileSource(t, n.addr, size)
		if err := conn.Send(wrongHash); err != nil {
			t.Fatal(err)
		}
		m, err := conn.Next()
		if err != nil {
			t.Fatal(err)
		}
		nak, ok := m.(*wire.Nak)
		if !ok || nak.Entries[0].Cause != wire.NakHash || nak.Entries[0].Hash != wire.Sum(wrongHash.Payload) {
			t.Errorf("got %#v, want a Nak with the hash of what arrived", m)
		}
		conn.Close(errDone)
		n.stop()
		got, _ := os.ReadFile(dst)
		if string(got) != string(make([]byte, size)) {
			t.Error("it was written")
		}
	})
}

// A source that sends more than it was granted is stopped. No writer runs here, so nothing is granted.
func TestTargetEnforcesWindow(t *testing.T) {
	store := &targetStore{geometry: geometry{size: 1 << 30, blockSize: DefaultBlockSize}}
	half := newTarget(&link{ctx: t.Context(), prog: new(Progress)}, store, 0, &wire.Opened{Window: windowBytes})
	zero := &wire.Zero{Seq: 1, Offset: 0, Length: 1 << 30}
	for i := range windowBytes / wire.Cost(zero) {
		if err := half.handle(zero); err != nil {
			t.Fatalf("record %d, inside the window: %v", i, err)
		}
	}
	if err := half.handle(zero); !errors.Is(err, wire.ErrProtocol) {
		t.Fatalf("got %v for the first record beyond the window", err)
	}
	for range maxOffers {
		if err := half.handle(&wire.Offer{Length: DefaultBlockSize, Unit: DefaultBlockSize, Hashes: make([]wire.Hash, 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := half.handle(&wire.Offer{Length: DefaultBlockSize, Unit: DefaultBlockSize, Hashes: make([]wire.Hash, 1)}); !errors.Is(err, wire.ErrProtocol) {
		t.Fatalf("got %v for one offer too many", err)
	}
}

// hostileTarget answers one source by hand.
func hostileTarget(t *testing.T, script func(c *wire.Conn, open *wire.Open)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var routine sync.WaitGroup
	t.Cleanup(func() { l.Close(); routine.Wait() })
	routine.Go(func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		c := wire.NewConn(nc, wire.ConnOptions{})
		defer c.Close(errDone)
		if _, err := c.Next(); err != nil {
			return
		}
		c.Send(&wire.Hello{Role: wire.RoleTarget})
		c.Established()
		m, err := c.Next()
		if err != nil {
			return
		}
		script(c, m.(*wire.Open))
		for err == nil {
			if m, err = c.Next(); err == nil && m.Type() == wire.TypeHalt {
				return
			}
		}
	})
	return l.Addr().String()
}

// hastyTarget takes everything, commits after a while, and leaves at once. It tells of each record and each Flush.
func hastyTarget(t *testing.T, while time.Duration, data func(*wire.Data), flush func(committing bool)) (addr string) {
	return hostileTarget(t, func(c *wire.Conn, o *wire.Open) {
		c.Send(&wire.Opened{Size: o.Size, Window: windowBytes, MaxOffers: 1})
		for committing := false; ; {
			m, err := c.Next()
			if err != nil {
				return
			}
			switch m := m.(type) {
			case *wire.Data:
				data(m)
				c.Send(&wire.Ack{Entries: []wire.AckEntry{{Seq: m.Seq, Offset: m.Offset, Level: wire.LevelWritten, Hash: m.Hash}}})
			case *wire.Flush:
				flush(committing)
				c.Send(&wire.Flushed{Number: m.Number, Position: m.Position})
			case *wire.Commit:
				committing = true
				time.AfterFunc(while, func() {
					c.Send(&wire.Committed{Records: m.Records, Chain: m.Chain}, &wire.Bye{Code: wire.CodeDone})
				})
			case *wire.Bye:
				return
			}
		}
	})
}

// A target that leaves as soon as it has committed leaves a sync that is done. Between Commit and its answer nothing comes: what
// arrived behind the answer would be a breach.
func TestSourceOfAHastyTarget(t *testing.T) {
	for range 20 {
		addr := hastyTarget(t, 20*time.Millisecond, func(*wire.Data) {}, func(committing bool) { // in which twenty would be due
			if committing {
				t.Error("a Flush behind the Commit")
			}
		})
		src := image(t, "src", 1*mib, 1)
		if _, err := newSyncer(t).try(t.Context(), src, "blk://"+addr+"/v", func(o *SyncOptions) { o.Retry, o.flushEvery = 0, time.Millisecond }); err != nil {
			t.Fatal(err)
		}
	}
}

// What is read together is sent together, however small the sends are: so there is a confirmed prefix to go on from.
func TestSourceSendsRunAfterRun(t *testing.T) {
	var next int64
	addr := hastyTarget(t, 0, func(d *wire.Data) {
		if d.Offset != next && next%chunkSize != 0 {
			t.Errorf("%d follows, %d was next", d.Offset, next)
		}
		next = d.Offset + int64(d.RawLength)
	}, func(bool) {})
	src := denseImage(t, 8*mib, 1)
	if _, err := newSyncer(t).try(t.Context(), src, "blk://"+addr+"/v", func(o *SyncOptions) { o.Retry, o.NoCompress, o.RateLimit = 0, true, 6*mib }); err != nil {
		t.Fatal(err)
	}
}

// A target that lies about what it has or has written does not get a sync that says it is done.
func TestSourceRefusesLies(t *testing.T) {
	agree := func(o *wire.Open) *wire.Opened {
		return &wire.Opened{Size: o.Size, DataEnd: 0, Window: windowBytes, MaxOffers: 1}
	}
	// acks answers the first Data with what edit makes of an honest Ack.
	acks := func(edit func(*wire.AckEntry)) func(*wire.Conn, *wire.Open) {
		return func(c *wire.Conn, o *wire.Open) {
			c.Send(agree(o))
			for {
				m, err := c.Next()
				if err != nil {
					return
				}
				if _, ok := m.(*wire.Halt); ok {
					c.Close(errDone)
					return
				}
				if d, ok := m.(*wire.Data); ok {
					e := wire.AckEntry{Seq: d.Seq, Offset: d.Offset, Level: wire.LevelWritten, Hash: d.Hash}
					edit(&e)
					c.Send(&wire.Ack{Entries: []wire.AckEntry{e}})
				}
			}
		}
	}
	for _, c := range []struct {
		name   string
		kind   Kind
		script func(*wire.Conn, *wire.Open)
	}{
		{"smaller than it should be", KindNetwork, func(c *wire.Conn, o *wire.Open) {
			a := agree(o)
			a.Size--
			c.Send(a)
		}},
		{"resume point inside a block", KindNetwork, func(c *wire.Conn, o *wire.Open) {
			a := agree(o)
			a.ResumeFrom = 100
			c.Send(a)
		}},
		{"committed out of the blue", KindNetwork, func(c *wire.Conn, o *wire.Open) {
			c.Send(agree(o), &wire.Committed{Records: 1})
			acks(func(*wire.AckEntry) {})(c, o)
		}},
		{"want without an offer", KindNetwork, func(c *wire.Conn, o *wire.Open) {
			c.Send(agree(o), &wire.Want{Seq: 77, Bits: []byte{1}})
		}},
		{"window that shrinks", KindNetwork, func(c *wire.Conn, o *wire.Open) {
			c.Send(agree(o), &wire.Window{Granted: 1})
		}},
		{"ack of another record", KindNetwork, acks(func(e *wire.AckEntry) { e.Seq += 1 << 40 })},
		{"ack of another place", KindNetwork, acks(func(e *wire.AckEntry) { e.Offset += DefaultBlockSize })},
		{"ack with another checksum", KindIntegrity, acks(func(e *wire.AckEntry) { e.Hash[3] ^= 1 })},
		{"ack that promises too little", KindIntegrity, acks(func(e *wire.AckEntry) { e.Level = wire.LevelReceived })},
		{"halt for a full disk", KindDevice, func(c *wire.Conn, o *wire.Open) {
			c.Send(agree(o), &wire.Halt{Code: wire.CodeNoSpace, Text: "full"})
		}},
		{"refusal", KindState, func(c *wire.Conn, o *wire.Open) {
			c.Send(&wire.Refused{Code: wire.CodeMounted, Text: "mounted"})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := hostileTarget(t, c.script)
			src := image(t, "src", 4*mib, 1)
			_, err := newSyncer(t).try(t.Context(), src, "blk://"+addr+"/v", func(o *SyncOptions) { o.Retry = 0 })
			wantKind(t, err, c.kind)
		})
	}
}

// The tracker's mark is the end of the longest prefix of done pieces, whatever the order.
func TestTrackerPrefix(t *testing.T) {
	tr := newTracker()
	begin := func(end int64) *piece {
		p, err := tr.begin(t.Context(), end)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b, c := begin(10), begin(20), begin(30)
	b.setLast(wire.Hash{2})
	c.setLast(wire.Hash{3})
	a.hold(2)
	b.release()
	if mark, _ := tr.confirmed(); mark != 0 {
		t.Fatalf("mark %d before the first piece is done", mark)
	}
	a.release()
	a.release()
	if mark, _ := tr.confirmed(); mark != 0 {
		t.Fatalf("mark %d while a record of the first piece is open", mark)
	}
	a.release()
	if mark, last := tr.confirmed(); mark != 20 || last != (wire.Hash{2}) {
		t.Fatalf("mark %d with %x", mark, last[:1])
	}
	c.release()
	if mark, last := tr.confirmed(); mark != 30 || last != (wire.Hash{3}) {
		t.Fatalf("mark %d with %x", mark, last[:1])
	}
}

func TestPendingWaits(t *testing.T) {
	var p pending
	if err := p.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.add(2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v while two are open", err)
	}
	done := make(chan error, 1)
	go func() { done <- p.wait(t.Context()) }()
	p.add(1) // while somebody may wait
	p.add(-2)
	p.add(-1)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
