package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/wire"
)

// The network: connections of two byte streams each, in which frames lie as the codec made them. A stream
// delivers in order or not at all; when, and whether it breaks in the middle of a frame, is the seed's choice.

// conn is one connection of a primary to one of its mirrors.
type conn struct {
	id     int
	mirror int
	down   stream // to the mirror
	up     stream // to the primary
	p, m   end

	session  *engine.SteppedSession // of the mirror, once it has attached
	attaches bool                   // a task of the mirror takes the Attach up
	life     int                    // which process of the mirror has answered
	parts    bool                   // a task of the mirror ends the session
	begun    bool                   // the primary has taken the Attached up
	taken    int64                  // cost of what the mirror was given of it
	placing  int                    // tasks of the mirror's session
	reading  int                    // tasks of the primary's session
	gone     struct{ p, m bool }    // that side has done with it
}

// stream is one direction.
type stream struct {
	parser  wire.Parser
	buf     []byte // sent and not delivered
	frames  int    // delivered
	end     error  // what the reader meets behind buf; nil: it waits
	flips   bool   // what is sent next gets damaged …
	payload bool   // … that has a payload
	stalls  uint64 // step until which nothing arrives
	silent  bool   // half-open: nothing gets there any more, and nobody is told
}

var errReset = fmt.Errorf("%w: the simulated line broke", wire.ErrReset)

// end is one side's view of a connection. It is the engine's Conn.
type end struct {
	w        *World
	c        *conn
	out      *stream
	encoder  wire.Encoder
	payload  []byte // of the Data that is being handled
	broken   error  // what every Send answers
	sent     int64
	received int64
	loopback bool
}

var _ engine.Conn = (*end)(nil)

// Send puts frames on the wire.
func (e *end) Send(ms ...wire.Message) error {
	if e.broken != nil {
		return e.broken
	}
	if e.w.Story != nil {
		fmt.Fprintf(e.w.Story, "%6d  %s sends %d messages, the first %v\n", e.w.step, e.w.sideOf(e), len(ms), ms[0].Type())
	}
	if w := e.w; w.setup.stubborn && !w.quiet && e == &e.c.p {
		ms = w.mirrors[e.c.mirror].hurt(ms)
	}
	before := len(e.out.buf)
	buf, err := e.encoder.Append(e.out.buf, ms...)
	if err != nil {
		e.w.failf("%s sends what no frame can hold: %v", e.w.sideOf(e), err)
	}
	e.sent += int64(len(buf) - before)
	for _, m := range ms {
		if g, ok := m.(*wire.Window); ok && g.Granted > uint64(e.c.taken)+window {
			e.w.failf("I8: %s grants %d, but has taken %d and a window of %d", e.w.sideOf(e), g.Granted, e.c.taken, window)
		}
	}
	for _, m := range ms {
		if f, ok := m.(*wire.Flush); ok {
			e.w.oracle.numbered(f.Number)
		}
	}
	if e.out.silent || e.out.end != nil {
		return nil // the kernel took it
	}
	e.out.buf = buf
	if e.w.setup.noisy && !e.w.quiet && e.w.rng.IntN(20) == 0 {
		e.out.flips, e.out.payload = true, true
	}
	if !e.out.flips {
		return nil
	}
	if sent := buf[before:]; !e.out.payload || e == &e.c.m {
		e.w.flip(e, sent)
	} else if d, ok := ms[len(ms)-1].(*wire.Data); ok && e.w.mayHurt(e.c.mirror, d.Offset) { // its payload is the last of it
		e.w.flip(e, sent[len(sent)-len(d.Payload):])
	}
	return nil
}

// Next is for the daemon's reader; here the world delivers.
func (e *end) Next() (wire.Message, error) {
	return nil, errors.New("the simulator delivers by itself")
}

// ReadPayload gives the payload of the Data that is being handled.
func (e *end) ReadPayload(dst []byte) error {
	if len(dst) != len(e.payload) {
		return fmt.Errorf("a payload of %d bytes is read into %d", len(e.payload), len(dst))
	}
	copy(dst, e.payload)
	return nil
}

// Close ends this side: it sends nothing more, and the peer learns of it behind what is on its way.
func (e *end) Close(cause error) {
	if e.broken == nil {
		e.broken = fmt.Errorf("closed: %w", errReset)
		if e.out.end == nil && !e.out.silent {
			e.out.end = errReset
		}
	}
}

func (e *end) Sent() int64        { return e.sent }
func (e *end) Received() int64    { return e.received }
func (e *end) RTT() time.Duration { return time.Millisecond }
func (e *end) Loopback() bool     { return e.loopback }
func (e *end) Established()       {}

// newConn makes a connection to a mirror, alive in both directions.
func (w *World) newConn(mirror int) *conn {
	w.connections++
	c := &conn{id: w.connections, mirror: mirror}
	loopback := w.seed%2 == 0
	c.p = end{w: w, c: c, out: &c.down, loopback: loopback}
	c.m = end{w: w, c: c, out: &c.up, loopback: loopback}
	return c
}

// take takes the next frame off a stream for its reader. ok is false where none is there yet; err is what the
// reader of a connection meets instead.
func (s *stream) take(reader *end) (m wire.Message, ok bool, err error) {
	m, payload, n, err := s.parser.Next(s.buf)
	if err != nil {
		return nil, false, err
	}
	if n == 0 {
		return nil, false, s.end
	}
	reader.payload = payload
	reader.received += int64(n)
	s.buf = s.buf[n:]
	s.frames++
	return m, true, nil
}

// ready tells whether take would find something.
func (s *stream) ready(step uint64) bool {
	return step >= s.stalls && (!s.silent && len(s.buf) > 0 || s.end != nil)
}

// snap breaks a connection: of what is on its way a part still arrives, perhaps not even a whole frame.
func (w *World) snap(c *conn) {
	for _, s := range []*stream{&c.down, &c.up} {
		if !s.silent {
			s.buf = s.buf[:w.rng.IntN(len(s.buf)+1)]
		}
		s.end = errReset
	}
	c.p.broken, c.m.broken = errReset, errReset
}

// halfOpen has one side lose the connection while the other hears nothing of it.
func (w *World) halfOpen(c *conn, deaf *stream, other *end) {
	deaf.silent, deaf.buf = true, nil
	back := &c.up
	if deaf == back {
		back = &c.down
	}
	back.end = errReset
	other.broken = errReset
}

// mayHurt lets the payload of a place be damaged twice: a line that damages what is sent again and again is one
// that a person has to look at.
func (w *World) mayHurt(mirror int, off int64) bool {
	place := [2]int64{int64(mirror), off}
	w.hurt[place]++
	return w.hurt[place] <= 2
}

// flip turns a bit over of what was just sent.
func (w *World) flip(e *end, sent []byte) {
	if len(sent) == 0 {
		return
	}
	if w.rng.IntN(2) == 0 { // a frame's own words are little beside what it carries
		sent = sent[:min(len(sent), 96)]
	}
	bit := w.rng.IntN(8 * len(sent))
	sent[bit/8] ^= 1 << (bit % 8)
	e.out.flips = false
	kind := flipDown
	if e == &e.c.m {
		kind = flipUp
	}
	w.struck(&w.mirrors[e.c.mirror].node, kind)
}

func (w *World) sideOf(e *end) string {
	if e == &e.c.p {
		return "the primary"
	}
	return w.mirrors[e.c.mirror].name
}
