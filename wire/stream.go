package wire

// The codec without a connection, for whoever has bytes instead of a net.Conn: the simulator's network.

// Encoder turns messages into the bytes that Conn.Send would write. The zero value is ready.
type Encoder struct{ encoder }

// Append appends the frames of one Send to b. Its errors are those of Send for messages that break a rule.
func (e *Encoder) Append(b []byte, ms ...Message) ([]byte, error) {
	if err := e.encode(ms); err != nil {
		return b, err
	}
	for _, part := range e.vector {
		b = append(b, part...)
	}
	clear(e.vector)
	return b, nil
}

// Parser takes frames off a stream, as Conn.Next does. The zero value is ready for the first byte of a
// connection. After an error it is of no use any more.
type Parser struct{ run run }

// Next parses the frame that b begins with: n bytes of it, of which payload is the end where the message is
// a Data. n is 0 where b does not hold the whole frame yet. Nothing of b is referred to by the message; the
// payload is a part of b.
func (p *Parser) Next(b []byte) (m Message, payload []byte, n int, err error) {
	if len(b) < HeaderSize {
		return nil, nil, 0, nil
	}
	h, err := parseHeader(b[:HeaderSize])
	if err != nil {
		return nil, nil, 0, err
	}
	metaEnd := HeaderSize + int(h.meta)
	if n = metaEnd + int(h.payload); len(b) < n {
		return nil, nil, 0, nil
	}
	if err := checkMeta(h, b[HeaderSize:metaEnd]); err != nil {
		return nil, nil, 0, err
	}
	if m, err = decodeMeta(h, b[HeaderSize:metaEnd]); err != nil {
		return nil, nil, 0, err
	}
	if err := p.run.next(m); err != nil {
		return nil, nil, 0, err
	}
	return m, b[metaEnd:n], n, nil
}
