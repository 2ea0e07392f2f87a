package nbd

import (
	"fmt"
	"strings"

	"github.com/blkmirror/blkmirror/blockdev"
)

const (
	maxDescriptors = 2048 // extents in one answer to a block status; the client asks on
	maxErrorText   = 512  // bytes of an error's text that go to the client
)

// handle does what a request asks for and answers it. The buffer of a write has gone back when it
// returns; that of a read goes back when the reply was sent.
func (c *conn) handle(t *task) {
	var r reply
	err := error(nil)
	if t.refusal.code == codeOK {
		err = c.perform(t, &r)
		if t.payload != nil {
			c.s.pool.Put(t.payload)
		}
		if err != nil {
			t.refusal = refusal{code: c.codeOf(t, err), text: err.Error()}
		}
	}
	if t.refusal.code != codeOK {
		c.stats.errors.Add(1)
		if t.refusal.code != codeNotSup { // which is an answer, not a failure
			c.s.logf("export %q: %s of %d bytes at %d answered with error %d: %s",
				c.export.Name, t.name(), t.length, t.offset, t.refusal.code, t.refusal.text)
		}
		c.failure(t, &r)
	}
	c.out.send(&r)
}

// codeOf is CodeOf, but for what the protocol reserves for the refusal of a fast zero.
func (c *conn) codeOf(t *task, err error) Code {
	code := CodeOf(err)
	if code == codeNotSup && t.flags&cmdFlagFastZero == 0 {
		return codeIO
	}
	return code
}

// perform calls the backend and prepares the reply to a request that was found right.
func (c *conn) perform(t *task, r *reply) (err error) {
	off, n := int64(t.offset), int64(t.length)
	switch t.command {
	case cmdRead:
		return c.read(t, r)
	case cmdBlockStatus:
		return c.blockStatus(t, r)
	case cmdFlush:
		err = c.backend.Flush()
	case cmdWrite:
		if n > 0 {
			err = c.backend.WriteAt(t.payload, off)
		}
		if err == nil {
			c.stats.written.Add(n)
		}
	case cmdTrim:
		if n > 0 {
			err = c.backend.Trim(off, n)
		}
	case cmdWriteZeroes:
		if n > 0 {
			err = c.backend.Zero(off, n, t.flags&cmdFlagNoHole == 0)
		}
	}
	if err == nil && t.changes() && t.flags&cmdFlagFUA != 0 {
		err = c.backend.Flush()
	}
	if err != nil {
		return err
	}
	putReply(r.head[:], codeOK, t.cookie)
	r.n = replySize
	return nil
}

// read answers with data, or where all of it is zero, and the client can take it, with a hole: nothing
// then has to be copied, and looking costs a few bytes where there is data.
func (c *conn) read(t *task, r *reply) error {
	off, n := int64(t.offset), int(t.length)
	if n > 0 {
		buf, err := c.buffer(n)
		if err != nil {
			return fmt.Errorf("a buffer: %w", err)
		}
		if err := c.backend.ReadAt(buf, off); err != nil {
			c.s.pool.Put(buf)
			return err
		}
		c.stats.read.Add(int64(n))
		r.body, r.buf = buf, buf
	}
	switch {
	case !c.terms.structured:
		putReply(r.head[:], codeOK, t.cookie)
		r.n = replySize
	case n == 0:
		putChunk(r.head[:], chunkNone, t.cookie, 0)
		r.n = chunkSize
	case t.flags&cmdFlagDF == 0 && blockdev.IsZero(r.body):
		putChunk(r.head[:], chunkHole, t.cookie, chunkHoleSize-chunkSize)
		be.PutUint64(r.head[chunkSize:], t.offset)
		be.PutUint32(r.head[chunkDataSize:], t.length)
		r.n, r.body = chunkHoleSize, nil
	default:
		putChunk(r.head[:], chunkData, t.cookie, chunkDataSize-chunkSize+n)
		be.PutUint64(r.head[chunkSize:], t.offset)
		r.n = chunkDataSize
	}
	return nil
}

// blockStatus answers with the extents of the range, as many as fit.
func (c *conn) blockStatus(t *task, r *reply) error {
	limit := maxDescriptors
	if t.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	buf, err := c.buffer(maxDescriptors * descriptorSize)
	if err != nil {
		return fmt.Errorf("a buffer: %w", err)
	}
	body, err := describe(buf[:0], c.backend.NextData, int64(t.offset), int64(t.length), limit)
	if err != nil {
		c.s.pool.Put(buf)
		return err
	}
	putChunk(r.head[:], chunkBlockStatus, t.cookie, chunkStatusSize-chunkSize+len(body))
	be.PutUint32(r.head[chunkSize:], metaAllocationID)
	r.n, r.body, r.buf = chunkStatusSize, body, buf
	return nil
}

// describe appends at least one and at most limit descriptors for [off, off+n) to b. It asks next as often
// as there could be descriptors. An error behind the first is left to the request that goes on from there.
func describe(b []byte, next func(int64) (blockdev.Extent, error), off, n int64, limit int) ([]byte, error) {
	end := off + n
	for calls := 0; off < end && calls < limit; calls++ {
		x, err := next(off)
		if err != nil && len(b) == 0 {
			return nil, err
		}
		if err != nil {
			break
		}
		data := min(max(x.Offset, off), end)
		b = addExtent(b, data-off, stateHole|stateZero)
		off = data
		if off == end || len(b) == limit*descriptorSize {
			break
		}
		to := min(x.End(), end)
		if to <= off { // an extent that is none: nothing is known
			to = end
		}
		b = addExtent(b, to-off, 0)
		off = to
	}
	return b[:min(len(b), limit*descriptorSize)], nil
}

// addExtent appends an extent, or makes the last one longer where its state is the same.
func addExtent(b []byte, n int64, state uint32) []byte {
	if n == 0 {
		return b
	}
	if last := len(b) - descriptorSize; last >= 0 && be.Uint32(b[last+4:]) == state {
		be.PutUint32(b[last:], be.Uint32(b[last:])+uint32(n))
		return b
	}
	return appendDescriptor(b, n, state)
}

// failure prepares the reply to a request that failed, with a text where the client can take it.
func (c *conn) failure(t *task, r *reply) {
	code := t.refusal.code
	if !c.terms.structured {
		putReply(r.head[:], code, t.cookie)
		*r = reply{head: r.head, n: replySize}
		return
	}
	text := strings.ToValidUTF8(t.refusal.text[:min(len(t.refusal.text), maxErrorText)], "")
	putChunk(r.head[:], chunkError, t.cookie, chunkErrorSize-chunkSize+len(text))
	be.PutUint32(r.head[chunkSize:], uint32(code))
	be.PutUint16(r.head[chunkSize+4:], uint16(len(text)))
	*r = reply{head: r.head, n: chunkErrorSize, body: []byte(text)}
}
