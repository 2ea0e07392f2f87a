package wire

import (
	"bufio"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Implementation numbers; nothing on the wire depends on them.
const (
	readBuffer = 64 << 10 // holds header and meta of any frame
	// From this size on a payload is read straight into its destination, with one small read for the
	// header before it: a system call costs less than copying this.
	directPayload = 16 << 10
	farewellWait  = time.Second // for the peer's last word, after a write has failed
)

// The read buffer must hold any header and meta: they are decoded where they lie.
var _ [readBuffer - HeaderSize - maxMeta]struct{}

// ConnOptions may be left zero.
type ConnOptions struct {
	// PingEvery is how long the connection may be quiet in one direction before a Ping is sent; 0: 2 s,
	// or a fifth of DeadAfter where that is less.
	PingEvery time.Duration
	// DeadAfter is how long nothing at all may move, at least; 0: 10 s. It grows with the measured round
	// trips (Conn.dead).
	DeadAfter time.Duration
	// HandshakeTimeout is how long it may take until Established; 0: HandshakeTimeout.
	HandshakeTimeout time.Duration
	// Keys is asked for the rollover of keys; nil: a peer that announces one breaks the protocol.
	Keys Keys
}

func (o ConnOptions) withDefaults() ConnOptions {
	if o.DeadAfter <= 0 {
		o.DeadAfter = 10 * time.Second
	}
	if o.PingEvery <= 0 {
		o.PingEvery = min(2*time.Second, o.DeadAfter/5)
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = HandshakeTimeout
	}
	return o
}

// Conn speaks frames over a net.Conn. Send, Close and the small methods are safe for concurrent use;
// Next and ReadPayload belong to one goroutine, the reader, which must not wait for anything that needs
// the peer.
//
// The first error ends the connection and stays: all calls under way and all later ones return it. Two
// goroutines (live.go) begin in NewConn, and a third where keys roll over (rollover.go); another one with Steer
// (flow.go). They have ended when Close returns.
type Conn struct {
	nc      net.Conn
	peer    string // for errors
	options ConnOptions
	began   time.Time

	sent, received atomic.Int64 // bytes
	control        atomic.Int64 // of sent: bytes that Conn says by itself
	rtt            atomic.Int64 // ns, smoothed; 0: none measured yet
	usual          atomic.Int64 // ns, the same without spikes (live.go)
	samples        atomic.Int64 // of it
	heard          atomic.Int64 // ns since began: when the last byte came

	out struct { // send.go
		turn
		encoder
		bufs net.Buffers // what is left to write
	}
	in struct { // receive.go
		sync.Mutex
		source source
		buffer *bufio.Reader
		frames uint64 // read so far
		run    run
		unread int  // bytes of payload still in the stream
		met    bool // the peer's Hello came
	}
	live struct { // live.go
		reading, writing atomic.Bool // a goroutine waits in the kernel
		established      atomic.Bool
		wake             chan struct{} // one token: something is due
		pingDue          atomic.Bool
		// Of pings, as in Ping.Sent: the last that was written, and the last that was answered.
		asked, answered atomic.Int64

		sync.Mutex
		pongDue bool
		pong    Pong
	}

	flow atomic.Pointer[Flow] // nil: nobody steers
	keys struct {             // rollover.go
		wake chan struct{} // one token: something is to be settled

		sync.Mutex
		next *KeyNext
		ack  *KeyAck
	}

	segment int                       // see Segment
	hole    atomic.Pointer[holeSigns] // of a path that swallows large ones, as last seen

	end struct {
		sync.Mutex
		err error
		at  time.Time // when err was set
		own error     // why this side ends it, where the peer is being told
		// said is what the peer gave as its reason before the connection ended; heard is closed then.
		said  *RemoteError
		heard chan struct{}
	}
	done     chan struct{} // closed when end.err is set
	routines sync.WaitGroup
}

// NewConn takes nc over: it is closed with the Conn, on every path, and nobody else may use it. The caller
// must Close the Conn. Until Established the deadline of the handshake runs.
func NewConn(nc net.Conn, o ConnOptions) *Conn {
	c := &Conn{nc: nc, peer: peerName(nc), options: o.withDefaults(), began: time.Now(), done: make(chan struct{}), segment: SegmentOf(nc)}
	c.in.source.conn = c
	c.in.buffer = bufio.NewReaderSize(&c.in.source, readBuffer)
	c.live.wake = make(chan struct{}, 1)
	c.end.heard = make(chan struct{})
	c.routines.Go(c.routineWatch)
	c.routines.Go(c.routineControl)
	if c.options.Keys != nil {
		c.keys.wake = make(chan struct{}, 1)
		c.routines.Go(c.routineKeys)
	}
	return c
}

func peerName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.Network() != "unix" && a.Network() != "pipe" {
		return a.String()
	}
	return "the other half"
}

// Loopback tells whether both ends are on this machine.
func (c *Conn) Loopback() bool {
	a, ok := c.nc.RemoteAddr().(*net.TCPAddr)
	return !ok || a.IP.IsLoopback()
}

// Established ends the deadline of the handshake, and measures the first round trip.
func (c *Conn) Established() {
	c.live.established.Store(true)
	c.live.pingDue.Store(true)
	c.wakeControl()
	c.wakeKeys()
}

// Sent counts the bytes that went to the peer, as the kernel took them.
func (c *Conn) Sent() int64 { return c.sent.Load() }

// Received counts the bytes that came from the peer.
func (c *Conn) Received() int64 { return c.received.Load() }

// Segment is SegmentOf the connection when it began.
func (c *Conn) Segment() int { return c.segment }

// Remote is RemoteOf the connection.
func (c *Conn) Remote() netip.Addr { return RemoteOf(c.nc) }

// RTT is the smoothed round trip, from frame to frame and so with what waits in buffers; 0: not yet
// measured.
func (c *Conn) RTT() time.Duration { return time.Duration(c.rtt.Load()) }

// Lifetime is how old the connection is, or has become, and how long nothing had come from the peer by then.
func (c *Conn) Lifetime() (age, quiet time.Duration) {
	c.end.Lock()
	at := c.end.at
	c.end.Unlock()
	if at.IsZero() {
		at = time.Now()
	}
	age = at.Sub(c.began)
	return age, max(0, age-time.Duration(c.heard.Load()))
}

// Done is closed when the connection has ended; Err says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns what ended the connection, nil while it stands.
func (c *Conn) Err() error {
	c.end.Lock()
	defer c.end.Unlock()
	return c.end.err
}

// Close ends the connection with a cause, ErrClosed where that is nil, unless it has ended already. Calls
// under way are released. It returns when the connection's goroutines have ended.
func (c *Conn) Close(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	c.fail(cause)
	c.routines.Wait()
}

// fail ends the connection, if it still stands, and returns what ended it. Where the peer has told its
// reason, that is why the connection is gone.
func (c *Conn) fail(err error) error {
	c.end.Lock()
	defer c.end.Unlock()
	if c.end.err == nil {
		if c.end.said != nil && Classify(err) == ClassReset {
			err = c.end.said
		}
		if c.end.own != nil {
			err = c.end.own
		}
		if saw := c.hole.Load(); saw != nil && !errors.Is(err, ErrBlackHole) {
			err = saw.of(err)
		}
		c.end.err, c.end.at = err, time.Now()
		close(c.done)
		c.nc.Close()
	}
	return c.end.err
}

// part ends the connection with an error that the reader did not find, and tells the peer why, as far as that can be
// done in a moment, of which the turn to send is a part where bulk has it. The peer closes when it has read that; closing
// first could destroy it on the way.
func (c *Conn) part(err error) {
	c.end.Lock()
	c.end.own = err
	c.end.Unlock()
	limit := time.AfterFunc(farewellWait, func() { c.fail(err) }) // also where a write hangs
	defer limit.Stop()
	if c.Send(&Halt{Code: CodeOf(err), Text: CleanText(err.Error())}) == nil {
		<-c.done
	}
	c.fail(err)
}

// hear keeps the peer's last word.
func (c *Conn) hear(code Code, text string) {
	c.end.Lock()
	defer c.end.Unlock()
	if c.end.said == nil {
		c.end.said = &RemoteError{Code: code, Text: text}
		close(c.end.heard)
	}
}
