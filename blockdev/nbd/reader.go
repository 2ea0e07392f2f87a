package nbd

import "io"

// readerSize is what is read from the socket at a time, where it is not a payload's rest that goes
// straight into its buffer. It holds a few requests of 4 KiB; of a large payload it costs one copy of
// this much.
const readerSize = 32 << 10

// reader reads small things from a buffer and large ones past it. It belongs to whoever has the turn.
type reader struct {
	src  io.Reader
	buf  []byte
	r, w int // buf[r:w] was read from src and not yet taken
}

func newReader(src io.Reader) *reader { return &reader{src: src, buf: make([]byte, readerSize)} }

// next returns the next n bytes, n <= readerSize. They stay valid until the next call. io.EOF means that
// there was no byte at all.
func (r *reader) next(n int) ([]byte, error) {
	if r.w-r.r < n {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	for r.w < n {
		m, err := r.src.Read(r.buf[r.w:])
		r.w += m
		if r.w < n && err != nil {
			return nil, r.broken(err)
		}
	}
	b := r.buf[r.r : r.r+n]
	r.r += n
	return b, nil
}

// broken is err, where a thing ended in its middle.
func (r *reader) broken(err error) error {
	if err == io.EOF && r.w > r.r {
		return io.ErrUnexpectedEOF
	}
	return err
}

// full fills p.
func (r *reader) full(p []byte) error {
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	if n == len(p) {
		return nil
	}
	_, err := io.ReadFull(r.src, p[n:])
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// discard skips n bytes.
func (r *reader) discard(n int64) error {
	for n > 0 {
		if r.r == r.w {
			m, err := r.src.Read(r.buf)
			r.r, r.w = 0, m
			if m == 0 && err != nil {
				if err == io.EOF {
					return io.ErrUnexpectedEOF
				}
				return err
			}
		}
		skip := min(n, int64(r.w-r.r))
		r.r += int(skip)
		n -= skip
	}
	return nil
}
