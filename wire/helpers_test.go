package wire

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// samples are one message of each type, with a payload for Data; each has a golden file in testdata.
func samples() []Message {
	payload := []byte("sixteen raw byte")
	generation := Generation{ID: [16]byte{4, 5, 6}, Counter: 3, Parent: [16]byte{7, 8, 9}, ParentCut: 2}
	return []Message{
		&Hello{Node: Sum([]byte("node")), Name: "pluto", Software: "blkmirror 0.1.0", Role: RoleSource, Volume: "db", BlockSize: 64 << 10},
		&Open{
			Volume: "db", VolumeID: [16]byte{1, 2, 3}, Generation: [16]byte{4, 5, 6}, Incarnation: 7, BlockSize: 64 << 10,
			Size: 1 << 40, Fingerprint: Sum([]byte("facts")), Flags: OpenVerify | OpenGrowOK, Devices: []Hash{Sum([]byte("disk"))},
		},
		&Opened{
			Size: 1 << 40, DataEnd: 1 << 39, ResumeFrom: 1 << 38, ResumeHash: Sum([]byte("block")), Window: 32 << 20,
			MaxOffers: 8, Flags: OpenedIndexed,
		},
		&Refused{CodeBusy, "volume db is in use by another session; end it first"},
		&Offer{
			Seq: 1, Offset: 128 << 10, Length: 64<<10 + 512, Unit: 64 << 10, Flags: OfferVerify,
			Hashes: []Hash{Sum([]byte("a")), Sum([]byte("b"))},
		},
		&Want{Seq: 1, Bits: []byte{0b10}},
		&Data{
			Seq: 2, Epoch: 0, Offset: 192 << 10, RawLength: uint32(len(payload)), Codec: CodecRaw, Hash: Sum(payload),
			Payload: payload, PayloadLength: len(payload),
		},
		&Zero{Seq: 3, Offset: 1 << 30, Length: 1 << 20, Flags: ZeroMayFree},
		&Ack{[]AckEntry{{2, 192 << 10, LevelWritten, Sum(payload)}, {3, 1 << 30, LevelWritten, ZeroHash(1<<30, 1<<20)}}},
		&Nak{[]NakEntry{{2, 192 << 10, NakHash, Sum([]byte("other bytes"))}}},
		&Flush{1, 128 << 10, Sum([]byte("a"))},
		&Flushed{1, 128 << 10},
		&Commit{
			Epoch: 7, Base: 5, Records: 9, Pages: 40, Chain: Sum([]byte("chain")), Flags: CommitUnproven,
			Holes: []Extent{{4096, 8192}, {1 << 20, 100}},
		},
		&Committed{7, 9, Sum([]byte("chain"))},
		&Doubt{true, []Extent{{0, 64 << 10}, {1 << 20, 4096}}},
		&Ping{123456789},
		&Pong{123456789},
		&Window{64 << 20},
		&Halt{CodeIntegrity, "block 3 differs after 3 tries"},
		&Bye{CodeStopped, "the node is being stopped"},
		&Attach{
			Volume: "db", VolumeID: [16]byte{1, 2, 3}, Generation: generation, Incarnation: 7, Connection: 2, Size: 1 << 40,
			BlockSize: 64 << 10, Flags: AttachOverwrite, Committed: 5, LastSent: 7, Devices: []Hash{Sum([]byte("disk"))},
		},
		&Attached{
			VolumeID: [16]byte{1, 2, 3}, Generation: generation, LastCut: 5, Applied: 4, InPlace: 6, Flags: AttachedBlank | AttachedDoubts,
			MaxOffers: 8, Size: 1 << 40, DataEnd: 1 << 39, Room: 1 << 34, Window: 32 << 20, StagedIncarnation: 7,
			StagedBase: 5, StagedNumber: 7, StagedSeq: 41, StagedRecords: 6, StagedChain: Sum([]byte("staged")),
		},
		&Rebase{Seq: 42, Base: 5, Old: 6, New: 7, More: true, Voids: []Extent{{0, 4096}, {1 << 20, 64 << 10}}},
		&Synced{7, 42, 7, Sum([]byte("chain"))},
		&Bulk{5, 6},
		&Report{Committed: 7, Applied: 5, Room: 1 << 34, Staged: 1 << 26, Comparing: true, Quarantine: 3},
		&Suspect{1, 7, []SuspectEntry{
			{128 << 10, 64 << 10, Sum([]byte("sent")), Sum([]byte("arrived"))}, {1 << 30, 4096, Sum([]byte("a")), Sum([]byte("b"))},
		}},
		&Quarantine{
			Class: 5, More: true, Epoch: 7, Since: 1785000000, Reason: "block 2 differs after 3 reads",
			Extents: []Extent{{128 << 10, 64 << 10}, {1 << 30, 4096}},
		},
		&Repair{All: true},
		&Fetch{128 << 10, 64 << 10, Sum([]byte("right"))},
		&Fetched{Offset: 128 << 10, Length: 5, Hash: Sum([]byte("right")), Payload: []byte("right")},
		&Ask{ID: [16]byte{1, 2, 3}, Job: JobRepair, Flags: AskAll | AskDryRun, From: FromPrimary, Mirror: "east"},
		&Told{[16]byte{1, 2, 3}, 1 << 30, 1 << 40, "east"},
		&Ended{
			ID: [16]byte{1, 2, 3}, Flags: EndedMore | EndedResult | EndedError,
			Outcome: Outcome{Mirror: "east", Compared: 1 << 40, Skipped: 4096, ResumedAt: 1 << 30, Blocks: 2, Shipped: 128 << 10, Nanoseconds: 1500000000},
			Failure: Failure{4, "verify", "db", "two blocks differ", "look at the disk"},
			Differ:  []Extent{{128 << 10, 64 << 10}, {1 << 30, 4096}}, Rot: []Extent{{0, 64 << 10}},
		},
		&Door{7070},
		&Knock{[16]byte{1, 2, 3}},
		&KeyNext{
			Key: Sum([]byte("key")), Next: Sum([]byte("next")), Switch: 1785000000000, Until: 1787592000000,
			ByKey: [64]byte{1, 2, 3}, ByNext: [64]byte{4, 5, 6},
		},
		&KeyAck{Sum([]byte("next"))},
		&Survey{From: 3},
		&Surveyed{
			Clock: 1785000000123456789, ReceiveMax: 6 << 20, SendMax: 4 << 20, HashSpeed: 1 << 30, CPUs: 2, Version: "v0.6.0",
			Congestion: "bbr", More: true, Volumes: []SurveyedVolume{{1 << 40, RoleMirror, "db", "ok"}, {0, 0, "new", "missing"}},
		},
		&Load{LoadFrom, 3000, 1 << 30},
		&Loaded{1 << 28, 3 * 1e9, 1460, LoadedLast},
		&Ballast{Seq: 9, Payload: []byte("heavy"), PayloadLength: 5},
	}
}

// sample is that of one type.
func sample(kind Type) Message {
	ms := samples()
	return ms[slices.IndexFunc(ms, func(m Message) bool { return m.Type() == kind })]
}

// frame encodes one message with its payload.
func frame(t testing.TB, m Message) []byte {
	t.Helper()
	b, err := appendFrame(nil, m)
	if err != nil {
		t.Fatalf("encode %v: %v", m.Type(), err)
	}
	payload, _ := payloadOf(m)
	return append(b, payload...)
}

// received is m as a receiver finds it: a payload is still to be read.
func received(m Message) Message {
	switch m := m.(type) {
	case *Data:
		got := *m
		got.Payload, got.PayloadLength = nil, len(m.Payload)
		return &got
	case *Fetched:
		got := *m
		got.Payload, got.PayloadLength = nil, len(m.Payload)
		return &got
	case *Ballast:
		got := *m
		got.Payload, got.PayloadLength = nil, len(m.Payload)
		return &got
	}
	return m
}

// withPayload is a message as its sender has it.
func withPayload(m Message) Message {
	switch m := m.(type) {
	case *Data:
		sent := *m
		sent.Payload = make([]byte, m.PayloadLength)
		return &sent
	case *Fetched:
		sent := *m
		sent.Payload = make([]byte, m.PayloadLength)
		return &sent
	case *Ballast:
		sent := *m
		sent.Payload = make([]byte, m.PayloadLength)
		return &sent
	}
	return m
}

// canned is a net.Conn whose peer says one thing and listens to nothing.
type canned struct{ io.Reader }

func (c *canned) Write(p []byte) (int, error)      { return len(p), nil }
func (c *canned) Close() error                     { return nil }
func (c *canned) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (c *canned) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (c *canned) SetDeadline(time.Time) error      { return nil }
func (c *canned) SetReadDeadline(time.Time) error  { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }

// cannedConn is a Conn that receives b and then the end of the stream.
func cannedConn(b []byte) *Conn {
	return NewConn(&canned{Reader: bytes.NewReader(b)}, ConnOptions{})
}

// bareConn receives b as cannedConn does, without goroutines and in a read buffer that is used again: for
// tests that receive ten thousands of streams, one at a time.
func bareConn(b []byte) *Conn {
	c := &Conn{nc: &canned{Reader: bytes.NewReader(b)}, peer: "test", done: make(chan struct{})}
	c.in.source.conn = c
	c.in.buffer = bareBuffer
	c.in.buffer.Reset(&c.in.source)
	c.live.wake = make(chan struct{}, 1)
	c.end.heard = make(chan struct{})
	return c
}

var bareBuffer = bufio.NewReaderSize(nil, readBuffer)

// receiveAll reads messages and payloads until the connection ends. Payloads that do not have the hash
// that their frame says are counted as an engine counts them.
func receiveAll(c *Conn) (ms []Message, mismatches int, err error) {
	defer c.Close(nil)
	for {
		m, err := c.Next()
		if err != nil {
			return ms, mismatches, err
		}
		ms = append(ms, m)
		_, n := payloadOf(m)
		if n == 0 {
			continue
		}
		packed := make([]byte, n)
		if err := c.ReadPayload(packed); err != nil {
			return ms, mismatches, err
		}
		switch m := m.(type) {
		case *Data:
			raw := make([]byte, m.RawLength)
			if Unpack(m.Codec, raw, packed) != nil || Sum(raw) != m.Hash {
				mismatches++
			}
		case *Fetched:
			if Sum(packed) != m.Hash {
				mismatches++
			}
		}
	}
}

// ends are the two sides of a connection that a test runs over.
func ends(t testing.TB, network string) (a, b net.Conn) {
	t.Helper()
	switch network {
	case "pipe":
		a, b = Pipe()
	case "unix":
		a, b = socketPair(t)
	case "tls":
		a, b = secured(t)
	default:
		a, b = dialled(t)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// dialled is a TCP connection over loopback.
func dialled(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// secured is a TLS connection over loopback, as nodes make it but for who trusts whom.
func secured(t testing.TB) (a, b net.Conn) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, InsecureSkipVerify: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: private}}}
	x, y := dialled(t)
	client, server := tls.Client(x, config), tls.Server(y, config)
	var theirs error
	var other sync.WaitGroup
	other.Go(func() { theirs = server.Handshake() })
	err = client.Handshake()
	other.Wait()
	if err = errors.Join(err, theirs); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// socketPair is what Pipe could be instead: see BenchmarkConn.
func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close() // conns[i] has a duplicate
	}
	return conns[0], conns[1]
}

// pair is two Conns that are established and end with the test.
func pair(t testing.TB, network string, o ConnOptions) (a, b *Conn) {
	t.Helper()
	x, y := ends(t, network)
	a, b = NewConn(x, o), NewConn(y, o)
	a.Established()
	b.Established()
	t.Cleanup(func() { a.Close(nil); b.Close(nil) })
	return a, b
}

var networks = []string{"tcp", "unix", "pipe", "tls"}

// yield lets others run, within a loop that waits for a condition.
func yield() { time.Sleep(50 * time.Microsecond) }
