package wire

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Liveness is progress: a byte that came, or that the peer's kernel took, proves life, however long a
// frame takes. Our own pings prove nothing, also where a kernel still acknowledges them for a program
// that is stopped; the pongs that they bring do. And once a ping is with that kernel and not answered, the
// rest that it takes proves no more than the ping: it may be the kernel of a proxy, with nobody behind it.
// Two goroutines see to it:
//
//	routineWatch    looks at the counters, decides what is due, and ends the connection; never waits but
//	                for a moment in the end, for the peer to hear why
//	routineControl  writes pings and pongs; may wait behind one long write, with no harm to the two
//	                others: the reader leaves it a note (owePong), the watcher too
//
// pingsPerSample is how many intervals a measured round trip may be old on a connection that is busy
// both ways and needs no ping to prove its life.
const pingsPerSample = 5

// How long a path may stand still before the peer counts as dead: paths swell to a hundred times their usual
// round trip (a full queue, a radio link, a route that changes) and come back. A minute is the most that is
// waited for that alone, so that a dead peer is found within tens of seconds on any path.
const (
	spike     = 100
	spikeMost = time.Minute
	// A higher sample lifts the usual round trip by at most this part of itself, a lower one draws it down as
	// fast as it draws the smoothed one.
	usualRise = 64
	rttWeight = 8
	// The first samples are of a beginning, when both sides have much else to do: they come faster, one with each look,
	// and the lowest of them is the usual round trip.
	firstSamples = 8
)

// dead is how long nothing may move: the floor; four round trips, where these take longer by now; a spike. The
// last begins when the last byte has come, and what ends it may be asked for a ping's interval later.
func (c *Conn) dead() time.Duration {
	most := min(spike*time.Duration(c.usual.Load()), spikeMost)
	if most > 0 {
		most += 2 * c.options.PingEvery
	}
	return max(c.options.DeadAfter, 4*c.RTT(), most)
}

// deaf is how many times dead a peer may answer nothing that has reached it, where other bytes of it still come.
// Its own silence is what counts for dead; here it lives, and what it did not get may stand in a long queue.
const deaf = 3

// owePong notes that a Ping is to be answered. Where several are, the last one is enough.
func (c *Conn) owePong(m *Ping) {
	c.live.Lock()
	c.live.pongDue, c.live.pong = true, Pong{Sent: m.Sent}
	c.live.Unlock()
	c.wakeControl()
}

// Ask has the peer asked now whether it lives, whatever else moves.
func (c *Conn) Ask() {
	c.live.pingDue.Store(true)
	c.wakeControl()
}

// AnsweredSince tells whether the peer has answered what it was asked after t. Nothing that waited on the way can: somebody lived
// over there after t.
func (c *Conn) AnsweredSince(t time.Time) bool {
	return c.began.Add(time.Duration(c.live.answered.Load())).After(t)
}

// takePong measures. A value that cannot be ours is no measurement.
func (c *Conn) takePong(m *Pong) {
	now := time.Since(c.began)
	took := now - time.Duration(m.Sent)
	if m.Sent < 0 || took <= 0 {
		return
	}
	c.live.answered.Store(max(m.Sent, c.live.answered.Load()))
	if f := c.flow.Load(); f != nil {
		f.ponged(time.Duration(m.Sent), took)
	}
	c.measured(took)
}

// measured takes a round trip into the two averages. The usual one knows spikes only by their number: a sample
// that is higher lifts it by a small part of what it is, however high the sample.
func (c *Conn) measured(took time.Duration) {
	c.samples.Add(1)
	old, usual := c.RTT(), time.Duration(c.usual.Load())
	if old == 0 {
		c.rtt.Store(int64(took))
		c.usual.Store(int64(took))
		return
	}
	smooth := ((rttWeight-1)*old + took) / rttWeight
	switch {
	case took < usual && c.samples.Load() <= firstSamples:
		smooth, usual = took, took
	case took < usual:
		usual = ((rttWeight-1)*usual + took) / rttWeight
	default:
		usual = min(took, usual+usual/usualRise+1)
	}
	c.rtt.Store(int64(smooth))
	c.usual.Store(int64(usual))
}

func (c *Conn) wakeControl() {
	select {
	case c.live.wake <- struct{}{}:
	default: // a token is there
	}
}

// routineControl writes the pings and pongs that are due.
func (c *Conn) routineControl() {
	for {
		select {
		case <-c.done:
			return
		case <-c.live.wake:
		}
		c.live.Lock()
		due, pong := c.live.pongDue, c.live.pong
		c.live.pongDue = false
		c.live.Unlock()
		var err error
		if due {
			err = c.sendControl(&pong)
		}
		if err == nil && c.live.pingDue.Swap(false) {
			ping := Ping{Sent: int64(time.Since(c.began))}
			if err = c.sendControl(&ping); err == nil {
				c.live.asked.Store(ping.Sent)
			}
		}
		if err != nil {
			return // the connection has ended
		}
	}
}

// routineWatch looks at the connection several times in each interval.
func (c *Conn) routineWatch() {
	tick := max(min(c.options.PingEvery, c.options.DeadAfter, c.options.HandshakeTimeout)/4, time.Millisecond)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	w := watch{conn: c, kernel: kernelOf(c.nc), records: c.records, raw: socketOf(c.nc)}
	w.interruptible = !wrapped(c.nc)
	last := time.Now()
	for {
		select {
		case <-c.done:
			return
		case <-ticker.C:
		}
		now := time.Now()
		// Where this process or machine stood still, the peer is not to blame for the time.
		elapsed := min(now.Sub(last), 2*tick)
		last = now
		if err := w.look(elapsed); err != nil {
			err = fmt.Errorf("connection with %s: %w", c.peer, err)
			if c.live.established.Load() && !errors.Is(err, ErrBlackHole) {
				c.part(err) // where it still hears us it would take this for a reset
			}
			c.fail(err)
			return
		}
	}
}

// watch is what routineWatch knows. All durations count from when the thing last happened.
type watch struct {
	conn *Conn
	// kernel tells how many bytes the peer's kernel has acknowledged, and how many of ours it has not; false
	// where that cannot be told.
	kernel func() (acked, queued int64, ok bool)
	// records tells how many bytes of records the peer has answered, and how many it has not.
	records       func() (answered, outstanding int64)
	interruptible bool

	age       time.Duration // of the connection
	sent      int64         // as seen last
	received  int64
	delivered int64         // the most that was seen
	answered  int64         // of records
	sentIdle  time.Duration // nothing sent
	recvIdle  time.Duration // nothing received
	silent    time.Duration // nothing moved, and somebody waits for it
	deaf      time.Duration // nothing that has reached the peer's kernel was answered
	pinged    time.Duration // the last ping

	ping struct { // the first that is not answered
		asked   int64 // as in Ping.Sent; 0: there is none
		end     int64 // where in the stream it ends, as the kernel counts
		arrived bool  // the kernel over there had it at the last look
	}

	raw  syscall.RawConn // nil: no TCP
	hole holeWatch
}

// look takes one look, elapsed after the one before. An error is the end of the connection.
func (w *watch) look(elapsed time.Duration) error {
	c := w.conn
	w.age += elapsed
	w.pinged += elapsed
	writing, reading := c.live.writing.Load(), c.live.reading.Load()
	w.compare(elapsed, reading)
	if !writing && !reading {
		w.silent = 0 // nobody waits for the peer: this side is busy, and does not even read
	}

	every := c.options.PingEvery
	switch {
	case !c.live.established.Load():
		if w.age >= c.options.HandshakeTimeout {
			return fmt.Errorf("%w: more than %v", ErrHandshakeTimeout, c.options.HandshakeTimeout)
		}
	case w.pinged >= every && (w.sentIdle >= every || w.recvIdle >= every || w.pinged >= pingsPerSample*every),
		c.samples.Load() < firstSamples:
		w.pinged = 0
		c.live.pingDue.Store(true)
		c.wakeControl()
	}
	if err := w.lookForHole(); err != nil {
		return err
	}
	switch dead := c.dead(); {
	case w.silent >= dead && w.ping.arrived:
		return fmt.Errorf("%w: nothing came in %v, though a kernel over there takes what is sent", ErrSilent, dead.Round(time.Millisecond))
	case w.silent >= dead:
		return fmt.Errorf("%w: nothing moved in %v", ErrSilent, dead.Round(time.Millisecond))
	case w.deaf >= deaf*dead:
		return fmt.Errorf("%w: bytes come, but in %v no answer to any of ours", ErrSilent, (deaf * dead).Round(time.Millisecond))
	}
	if writing && w.interruptible {
		// The writer adds up what the kernel took so far and goes on. Where it has just finished, the
		// next write begins with this.
		c.nc.SetWriteDeadline(time.Unix(1, 0))
	}
	return nil
}

// compare holds all counters against those of the look before. Only who reads can hear an answer: while this side does
// not, nothing is held against the peer that it takes bytes but does not answer.
func (w *watch) compare(elapsed time.Duration, reading bool) {
	c := w.conn
	w.sentIdle += elapsed
	w.recvIdle += elapsed
	w.silent += elapsed
	if n := c.sent.Load(); n != w.sent {
		w.sent, w.sentIdle = n, 0
	}
	if n := c.received.Load(); n != w.received {
		w.received, w.recvIdle, w.silent = n, 0, 0
	}
	acked, queued, known := w.kernel()
	if !known {
		acked = w.sent
	}
	// Our own pings and pongs are no progress.
	if n := acked - c.control.Load(); n > w.delivered {
		w.delivered = n
		if !w.ping.arrived || !reading {
			w.silent = 0
		}
	}
	w.follow(acked, queued, known)

	answered, outstanding := w.records()
	switch {
	case !w.ping.arrived || outstanding == 0 || answered != w.answered:
		w.deaf = 0
	case reading:
		w.deaf += elapsed
	}
	w.answered = answered
}

// follow sees how far the first ping has come that is not answered. Where it ends in the stream can be told only now, so that
// what was sent since then counts with it: rather too late than too early.
func (w *watch) follow(acked, queued int64, known bool) {
	p, answered := &w.ping, w.conn.live.answered.Load()
	if p.asked <= answered {
		p.asked = 0
		if last := w.conn.live.asked.Load(); last > answered {
			p.asked, p.end = last, acked+queued
		}
	}
	p.arrived = known && p.asked > 0 && acked >= p.end
}

// records is what a sender in bulk knows of the peer's answers; without one there are none.
func (c *Conn) records() (answered, outstanding int64) {
	if f := c.flow.Load(); f != nil {
		return f.window.answered()
	}
	return 0, 0
}

// wrapped tells whether nc is a layer over another connection, as TLS is: such a layer does not survive
// an interrupted write.
func wrapped(nc net.Conn) bool {
	_, ok := nc.(interface{ NetConn() net.Conn })
	return ok
}

// kernelOf is watch.kernel for nc. What is queued is asked second: a byte that is acknowledged in between is left out of the
// sum, and makes it neither longer than the stream nor much shorter.
func kernelOf(nc net.Conn) func() (acked, queued int64, ok bool) {
	raw := socketOf(nc)
	if raw == nil {
		return func() (acked, queued int64, ok bool) { return 0, 0, false }
	}
	return func() (acked, queued int64, ok bool) {
		_ = raw.Control(func(fd uintptr) { // it fails where the connection was closed
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil {
				return
			}
			n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
			acked, queued, ok = int64(info.Bytes_acked), int64(n), err == nil
		})
		return acked, queued, ok
	}
}
