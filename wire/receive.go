package wire

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// source is the stream below the read buffer. It counts bytes as they come.
type source struct {
	conn  *Conn
	limit int // of one read; 0: none
}

func (s *source) Read(p []byte) (int, error) {
	if s.limit > 0 && len(p) > s.limit {
		p = p[:s.limit]
	}
	s.conn.live.reading.Store(true)
	n, err := s.conn.nc.Read(p)
	s.conn.live.reading.Store(false)
	if n > 0 {
		s.conn.received.Add(int64(n))
		s.conn.heard.Store(int64(time.Since(s.conn.began)))
	}
	return n, err
}

// Next waits for the next message; what it returns is the caller's to keep. Ping and Pong, and KeyNext and
// KeyAck, are settled here and never returned. The payload of a Data,
// Fetched or Ballast stays in the stream: ReadPayload takes it, the next Next throws it away.
//
// Its error is the one that ended the connection: of class protocol or integrity where the peer's bytes
// are no frames, the peer's own *RemoteError where it went after Refused, Halt or Bye, ErrReset where
// it went without.
func (c *Conn) Next() (Message, error) {
	c.in.Lock()
	defer c.in.Unlock()
	for {
		if err := c.Err(); err != nil {
			return nil, err
		}
		m, err := c.nextLocked()
		switch m.(type) {
		case *KeyNext, *KeyAck:
			if err = c.owe(m); err == nil {
				continue
			}
		}
		if err != nil {
			err = fmt.Errorf("receive from %s: %w", c.peer, err)
			c.protest(err)
			return nil, c.fail(err)
		}
		switch m := m.(type) {
		case *Hello:
			c.in.met = true
		case *Ping:
			c.owePong(m)
			continue
		case *Pong:
			c.takePong(m)
			continue
		case *Refused:
			c.hear(m.Code, m.Text)
		case *Halt:
			c.hear(m.Code, m.Text)
		case *Bye:
			c.hear(m.Code, m.Text)
		}
		return m, nil
	}
}

// ReadPayload reads the payload of the Data or Fetched that Next returned last into dst, of PayloadLength bytes, and
// once. Only the engine can check it, by its SHA-256 after unpacking.
func (c *Conn) ReadPayload(dst []byte) error {
	c.in.Lock()
	defer c.in.Unlock()
	if err := c.Err(); err != nil {
		return err
	}
	if len(dst) != c.in.unread {
		return fmt.Errorf("read a payload of %d bytes into %d", c.in.unread, len(dst))
	}
	// What the buffer holds comes from there, the rest directly from below it.
	n := min(c.in.buffer.Buffered(), len(dst))
	n, err := io.ReadFull(c.in.buffer, dst[:n])
	if err == nil {
		c.in.source.limit = 0
		_, err = io.ReadFull(&c.in.source, dst[n:])
	}
	if err != nil {
		return c.fail(fmt.Errorf("receive from %s: %w", c.peer, lost(err, "in a payload")))
	}
	c.in.unread = 0
	if len(dst) >= directPayload {
		// Probably another one follows: what is read ahead of it would only have to be copied.
		c.in.source.limit = HeaderSize + dataSize
	}
	return nil
}

// protest tells a peer whose bytes cannot be understood why the connection ends, as far as that can be done
// in a moment. What is still on its way is read and thrown away meanwhile: closing with unread data
// would reset the connection, and destroy the protest before it is read.
func (c *Conn) protest(err error) {
	heard := errors.Is(err, ErrVersion) || errors.Is(err, ErrProtocol) || errors.Is(err, ErrCorrupt) || errors.Is(err, errSpeaksTLS)
	if !heard || !c.out.tryTake() {
		return // no blkmirror, or nobody there, or a Send is under way and may be for long
	}
	defer c.out.give()
	var last Message = &Refused{Code: CodeOf(err), Text: CleanText(err.Error())}
	if c.live.established.Load() {
		last = &Halt{Code: CodeOf(err), Text: CleanText(err.Error())}
	}
	limit := time.Now().Add(farewellWait)
	if c.out.encode([]Message{last}) != nil || c.nc.SetDeadline(limit) != nil {
		return
	}
	bufs := c.out.vector
	if n, err := bufs.WriteTo(c.nc); err == nil {
		c.sent.Add(n)
		io.Copy(io.Discard, c.nc) // until the peer closes, or the limit
	}
}

func (c *Conn) nextLocked() (Message, error) {
	in := &c.in
	if in.unread > 0 {
		if _, err := in.buffer.Discard(in.unread); err != nil {
			return nil, lost(err, "in a payload")
		}
		in.unread = 0
	}
	h, err := c.headerLocked()
	if err != nil {
		return nil, err
	}
	in.source.limit = 0
	meta, err := in.buffer.Peek(int(h.meta))
	if err != nil {
		return nil, lost(err, "in a frame")
	}
	if err := checkMeta(h, meta); err != nil {
		return nil, err
	}
	m, err := decodeMeta(h, meta)
	if err != nil {
		return nil, err
	}
	in.buffer.Discard(len(meta)) // what was peeked at
	if err := in.run.next(m); err != nil {
		return nil, err
	}
	in.frames++
	in.unread = int(h.payload)
	return m, nil
}

// headerLocked reads a frame's header. Of a stranger it reads no more than shows that it is one: it may
// have less to say than a header, and then wait for us.
func (c *Conn) headerLocked() (header, error) {
	in := &c.in
	if in.frames == 0 {
		for _, n := range []int{1, preambleSize} {
			b, err := in.buffer.Peek(n)
			if err == nil {
				b, _ = in.buffer.Peek(in.buffer.Buffered()) // all that came, to be shown
			}
			if strange := checkPreamble(b); strange != nil {
				return header{}, strange
			}
			if err != nil {
				return header{}, lost(err, "before the first frame")
			}
		}
	}
	b, err := in.buffer.Peek(HeaderSize)
	if err != nil {
		if len(b) > 0 {
			return header{}, lost(err, "in a frame")
		}
		return header{}, lost(err, "between frames")
	}
	h, err := parseHeader(b)
	if err != nil {
		if in.frames > 0 && (errors.Is(err, ErrNotBlkmirror) || errors.Is(err, ErrVersion)) {
			// It was a blkmirror of our version until now.
			return header{}, fmt.Errorf("%w: no frame begins where one must, after %d: %q", ErrCorrupt, in.frames, b)
		}
		return header{}, err
	}
	in.buffer.Discard(HeaderSize) // what was peeked at
	return h, nil
}

// lost says where in the stream it ended. Other errors than an end tell enough themselves.
func lost(err error, where string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the stream ended %s", ErrReset, where)
	}
	return err
}
