package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"
)

// Send writes frames, those of one call contiguously. It returns when the kernel has taken all of them,
// or with the error that ended the connection. No message is looked at and no payload referred to after
// it has returned.
//
// One call writes at a time. A call whose messages cost nothing (see Cost) goes before all others that
// still wait, so it is held up by the one that is being written alone: a call should carry no more than a
// run. What has to come behind certain Data or Zero (a Commit, say) is to be sent when their Send has
// returned.
//
// A message that breaks a rule, or a run of Data that is not whole within the call, is the caller's
// fault: nothing of the call is written, the connection stands, and the error wraps ErrProtocol.
func (c *Conn) Send(ms ...Message) error {
	c.out.take(slices.ContainsFunc(ms, costs))
	defer c.out.give()
	if err := c.Err(); err != nil {
		return err
	}
	if err := c.out.encode(ms); err != nil {
		return fmt.Errorf("send to %s: %w", c.peer, err)
	}
	c.out.bufs = c.out.vector
	err := c.writeLocked()
	clear(c.out.vector)
	return err
}

// costs tells bulk from control frames. Ballast is bulk that no window holds back.
func costs(m Message) bool {
	_, ballast := m.(*Ballast)
	return ballast || Cost(m) > 0
}

// sendControl is Send for what Conn says by itself, whose bytes are no sign of life. Such metas have a fixed size.
func (c *Conn) sendControl(m Message) error {
	n := HeaderSize + int64(specs[m.Type()].max)
	if wrapped(c.nc) {
		n += tlsOverhead
	}
	c.control.Add(n)
	return c.Send(m)
}

// tlsOverhead is what a record of TLS 1.3 has around its content: a header of 5 bytes, the type, and a tag of 16.
// The kernel counts it with the rest (see deliveredNow).
const tlsOverhead = 22

func (c *Conn) writeLocked() error {
	c.live.writing.Store(true)
	defer c.live.writing.Store(false)
	for {
		n, err := writeBuffers(c.nc, &c.out.bufs)
		c.sent.Add(n)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return c.writeFailed(err)
		}
		// routineWatch wanted to know how far a long write has come; what is left is in bufs.
		if err := c.nc.SetWriteDeadline(time.Time{}); err != nil {
			return c.writeFailed(err)
		}
	}
}

// buffersWriter is a net.Conn that can do better than to write one buffer after the other: net.Buffers knows
// only the connections of its own package.
type buffersWriter interface {
	// WriteBuffers is net.Buffers.WriteTo: it takes what it wrote from bufs.
	WriteBuffers(bufs *net.Buffers) (int64, error)
}

func writeBuffers(nc net.Conn, bufs *net.Buffers) (int64, error) {
	if w, ok := nc.(buffersWriter); ok {
		return w.WriteBuffers(bufs)
	}
	return bufs.WriteTo(nc)
}

// writeFailed ends the connection. A peer that stops says why and closes; a writer learns of the close
// first, so it gives the reader a moment to come upon the reason.
func (c *Conn) writeFailed(err error) error {
	if Classify(err) == ClassReset {
		wait := time.NewTimer(farewellWait)
		defer wait.Stop()
		select {
		case <-c.end.heard:
		case <-c.done:
		case <-wait.C:
		}
	}
	return c.fail(fmt.Errorf("send to %s: %w", c.peer, err))
}

// encoder turns messages into a vector of buffers: headers and metas lie in one scratch buffer, payloads
// stay where they are. It is used again for every call, so that a call allocates nothing.
type encoder struct {
	scratch []byte
	cuts    []cut
	vector  net.Buffers
}

// cut is a place in the scratch where a payload goes in.
type cut struct {
	at      int
	payload []byte
}

func (e *encoder) encode(ms []Message) error {
	var run run
	var err error
	e.scratch = e.scratch[:0]
	e.vector = e.vector[:0]
	defer func() {
		clear(e.cuts)
		e.cuts = e.cuts[:0]
	}()
	for _, m := range ms {
		if e.scratch, err = appendFrame(e.scratch, m); err != nil {
			return err
		}
		if err := run.next(m); err != nil {
			return err
		}
		if payload, _ := payloadOf(m); len(payload) > 0 {
			e.cuts = append(e.cuts, cut{len(e.scratch), payload})
		}
	}
	if run.follow > 0 {
		return broken("run of Data that lacks its last %d bytes", run.follow)
	}
	// Only now: the scratch moves while it grows.
	from := 0
	for _, c := range e.cuts {
		e.vector = append(e.vector, e.scratch[from:c.at], c.payload)
		from = c.at
	}
	if from < len(e.scratch) {
		e.vector = append(e.vector, e.scratch[from:])
	}
	return nil
}

// run keeps the rule of Data.Follow, on both sides: nothing comes between the frames of a run, and each
// goes on where the one before ends.
type run struct {
	offset int64
	epoch  uint64
	follow uint32
}

func (r *run) next(m Message) error {
	d, ok := m.(*Data)
	if r.follow > 0 {
		if !ok {
			return broken("%v where %d bytes of a run are due", m.Type(), r.follow)
		}
		if d.Offset != r.offset || d.Epoch != r.epoch || d.RawLength+d.Follow != r.follow {
			return broken("Data at %d+%d, %d to follow, where %d bytes of a run are due at %d",
				d.Offset, d.RawLength, d.Follow, r.follow, r.offset)
		}
	}
	if ok {
		*r = run{offset: d.Offset + int64(d.RawLength), epoch: d.Epoch, follow: d.Follow}
	}
	return nil
}
