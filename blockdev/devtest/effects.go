package devtest

import (
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Effect is what happens to a request that meets a Rule.
type Effect struct {
	name string
	run  func(*request) (int, error)
}

// Fail answers with err, an errno for example, and does nothing.
func Fail(err error) Effect {
	return Effect{"fail", func(r *request) (int, error) { return 0, r.failure(err) }}
}

// FailLate carries the request out and answers with err all the same: after an error anything may be on
// the device.
func FailLate(err error) Effect {
	return Effect{"fail late", func(r *request) (int, error) {
		if _, err := r.pass(); err != nil {
			return 0, err
		}
		return 0, r.failure(err)
	}}
}

// Short carries out the first n bytes of a read, write, zero or discard and answers with ErrShortIO.
func Short(n int) Effect {
	return Effect{"short", func(r *request) (int, error) {
		part := *r
		part.Length = min(r.Length, int64(n))
		part.p = r.p[:min(len(r.p), n)]
		if _, err := part.pass(); err != nil {
			return 0, err
		}
		return len(part.p), r.failure(blockdev.ErrShortIO)
	}}
}

// Flip turns over one bit of what is read or written, counted from the start of the request (modulo its
// length), and answers that all is well.
func Flip(bit int) Effect {
	return Effect{"flip", func(r *request) (int, error) {
		if len(r.p) == 0 {
			return r.pass()
		}
		if r.Op == OpWrite {
			r.p = slices.Clone(r.p) // the caller's bytes are the caller's
		}
		if r.Op == OpRead {
			defer func() { flip(r.p, bit) }()
		} else {
			flip(r.p, bit)
		}
		return r.pass()
	}}
}

func flip(p []byte, bit int) { p[bit/8%len(p)] ^= 1 << (bit % 8) }

// Misdirect carries the request out delta bytes away from where it was meant to go.
func Misdirect(delta int64) Effect {
	return Effect{"misdirect", func(r *request) (int, error) {
		r.Offset += delta
		return r.pass()
	}}
}

// Lose answers that all is well and does nothing. A read leaves the buffer as it was.
func Lose() Effect {
	return Effect{"lose", func(r *request) (int, error) { return len(r.p), nil }}
}

// Hook calls fn, which may wait for whatever the test waits for, and then carries the request out.
func Hook(fn func(Call)) Effect {
	return Effect{"hook", func(r *request) (int, error) {
		fn(r.Call)
		return r.pass()
	}}
}

// request is a Call with what it carries.
type request struct {
	Call
	dev     blockdev.Device
	p       []byte
	mayFree bool
	found   blockdev.Extent // the answer of OpMap
}

// pass carries the request out on the wrapped device.
func (r *request) pass() (n int, err error) {
	switch r.Op {
	case OpRead:
		return r.dev.ReadAt(r.p, r.Offset)
	case OpWrite:
		return r.dev.WriteAt(r.p, r.Offset)
	case OpFlush:
		return 0, r.dev.Flush()
	case OpZero:
		return 0, r.dev.Zero(r.Offset, r.Length, r.mayFree)
	case OpDiscard:
		return 0, r.dev.Discard(r.Offset, r.Length)
	case OpMap:
		r.found, err = r.dev.NextData(r.Offset)
	}
	return 0, err
}

func (r *request) failure(err error) error {
	return &blockdev.Error{Op: r.Op.String(), Path: r.dev.Info().Path, Offset: r.Offset, Length: r.Length, Err: err}
}
