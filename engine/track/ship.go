package track

import (
	"context"
	"errors"
	"fmt"

	"github.com/blkmirror/blkmirror/blockdev"
)

// The shipper's side: reading what a cut closed.

// Piece is content of a cut, or what is known instead of it.
type Piece struct {
	Run
	Length int64  // bytes, at the true length of the last page
	Data   []byte // a private copy in a buffer of the caller's; nil for zeroes and holes
	Zero   bool   // it reads as zeroes
	Err    error  // a hole: the pages cannot be read, and why
}

// Buffers is where the data of pieces goes; *blockdev.Pool is one. Get may wait.
type Buffers interface {
	Get(ctx context.Context, n int) ([]byte, error)
	Put(b []byte)
}

// ReadClosed reads the next of what is in the consumer's pass: captured contents first, for they take
// room, else one run of todo. It returns at most maxBytes of data, but a captured run of up to a block is
// not divided for that; zeroes may be more. Any number of goroutines may call it at once; together they get every page of
// the pass once.
//
// The pages returned count as read. more tells whether another call would find something now: pages that
// somebody else is reading are not counted, and these are that one's to the end, captured or not.
//
// ErrGivenUp: the pass is over. With any other error the pages are still in todo, and can be read again.
func (p *Path) ReadClosed(ctx context.Context, s *Sets, maxBytes int, bufs Buffers) (out []Piece, more bool, err error) {
	for {
		round, ok := p.t.reading(s)
		if !ok {
			return nil, false, ErrGivenUp
		}
		out, err = p.fetchCaptured(ctx, s, maxBytes, bufs)
		if err != nil || len(out) > 0 {
			return out, p.t.readable(s), err
		}
		c, ok := p.t.ClaimTodo(s, uint64(max(maxBytes/blockdev.PageSize, 1)))
		if now, readable := p.t.reading(s); now != round || !readable {
			p.t.Release(s, c)
			return nil, false, ErrGivenUp
		}
		if !ok {
			return nil, p.t.readable(s), nil
		}
		r := reader{p: p, s: s, bufs: bufs, claim: c}
		out, err = r.read(ctx)
		p.t.Release(s, r.claim)
		if err != nil || len(out) > 0 {
			return out, p.t.readable(s), err
		}
		// All of the claim was captured by writers meanwhile. It is there to be fetched.
	}
}

// reading is the round of the pass that can be read; false where there is none. A pass that is complete
// can be read, to no effect.
func (t *Tracker) reading(s *Sets) (round uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.round, s.phase != givenUp
}

func (t *Tracker) readable(s *Sets) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.readableLocked()
}

// fetchCaptured takes captured contents out. The buffer comes first: a content that was taken out and has
// nowhere to go could not always be put back.
func (p *Path) fetchCaptured(ctx context.Context, s *Sets, maxBytes int, bufs Buffers) (out []Piece, err error) {
	for left := maxBytes; ; {
		n, ok := s.capture.peek()
		if !ok || len(out) > 0 && max(n, blockdev.PageSize) > left {
			return out, nil
		}
		x, err := p.fetchOne(ctx, s, n, bufs)
		switch {
		case err != nil && len(out) == 0:
			return nil, err
		case err != nil:
			return out, nil // the next call fails, or is told
		case x.Count > 0:
			out = append(out, x)
			left -= max(len(x.Data), blockdev.PageSize)
		}
	}
}

// fetchOne takes one run of at most n bytes out; none where another reader was faster.
func (p *Path) fetchOne(ctx context.Context, s *Sets, n int, bufs Buffers) (x Piece, err error) {
	var buf []byte
	if n > 0 {
		if buf, err = bufs.Get(ctx, n); err != nil {
			return Piece{}, err
		}
		defer func() {
			if x.Data == nil {
				bufs.Put(buf)
			}
		}()
	}
	f, round, ok := p.t.pop(s, n)
	if !ok {
		return Piece{}, nil
	}
	if err := s.capture.load(f, buf); err != nil {
		p.lost(s, round, f.Run, err)
		return Piece{}, fmt.Errorf("%w: %w", ErrGivenUp, err)
	}
	x = Piece{Run: f.Run, Zero: f.zero}
	_, x.Length = p.bytesOf(f.Run)
	if !f.zero {
		x.Data = buf[:f.bytes]
	}
	return x, nil
}

// pop takes a content out in one step with looking at the round that it is of.
func (t *Tracker) pop(s *Sets, limit int) (f fetched, round uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, ok = s.capture.pop(limit)
	return f, s.round, ok
}

// lost is for content that cannot be read back from the spool, the only place where it was: the cut is
// given up and its pages are to be sent again.
func (p *Path) lost(s *Sets, round uint64, r Run, err error) {
	gaveUp := p.t.giveUpRound(s, round)
	p.t.mu.Lock()
	s.todo.take(&s.staged, r.First, r.Count)
	p.t.mu.Unlock()
	if gaveUp {
		p.cfg.Observer.GaveUp(s, err)
	}
}

// reader reads the first run that is left of one claim.
type reader struct {
	p     *Path
	s     *Sets
	bufs  Buffers
	claim Claim
}

// errChanged: what was a hole when nobody held the range is none any more.
var errChanged = errors.New("no hole any more")

func (r *reader) read(ctx context.Context) ([]Piece, error) {
	if r.claim.Count >= holeWorth && r.claimHole() {
		out, err := r.readHole()
		if !errors.Is(err, errChanged) {
			return out, err
		}
	}
	_, n := r.p.bytesOf(Run{r.claim.First, min(r.claim.Count, claimPages)})
	buf, err := r.bufs.Get(ctx, int(n))
	if err != nil {
		return nil, err
	}
	out, err := r.readData(buf)
	for _, x := range out {
		if x.Data != nil {
			return out, err
		}
	}
	r.bufs.Put(buf)
	return out, err
}

// claimHole reports whether the claim begins in a hole of the device, and lengthens it over the hole. No
// range is held, so this is only likely.
func (r *reader) claimHole() bool {
	pages := r.holeFrom(r.claim.First)
	if pages == 0 {
		return false
	}
	end := r.claim.First + min(pages, holePages)
	r.claim = r.p.t.extend(r.s, r.claim, end)
	return true
}

// holeFrom is the number of whole pages from first on that the device knows to be zero.
func (r *reader) holeFrom(first uint64) uint64 {
	if !r.p.info.KnowsHoles {
		return 0
	}
	off, _ := r.p.bytesOf(Run{first, 1})
	x, err := r.p.NextData(off)
	switch {
	case err != nil:
		return 0
	case x.Offset == r.p.cfg.Size:
		return r.p.t.pages - first
	}
	return uint64(x.Offset/blockdev.PageSize) - first
}

// readHole enters the part of the claim that is a hole as read, without reading it.
func (r *reader) readHole() ([]Piece, error) {
	c := r.claim
	r.p.locks.RLock(c.First, c.Count)
	defer r.p.locks.RUnlock(c.First, c.Count)
	run, ok, err := r.p.t.Unread(r.s, c)
	if !ok || err != nil {
		return nil, err
	}
	run.Count = min(run.Count, r.holeFrom(run.First))
	if run.Count == 0 {
		return nil, errChanged
	}
	if _, ok := r.p.t.Read(r.s, c, run); !ok {
		return nil, ErrGivenUp
	}
	_, n := r.p.bytesOf(run)
	return []Piece{{Run: run, Length: n, Zero: true}}, nil
}

// readData reads the first run that is left of the claim into buf. Where that fails it reads the first half,
// and so on, until there is something or one page is a hole. The rest stays in todo.
func (r *reader) readData(buf []byte) ([]Piece, error) {
	p, c := r.p, r.claim
	c.Count = min(c.Count, claimPages)
	p.locks.RLock(c.First, c.Count)
	defer p.locks.RUnlock(c.First, c.Count)
	run, ok, err := p.t.Unread(r.s, c)
	if !ok || err != nil {
		return nil, err
	}
	for {
		at, n := p.bytesOf(run)
		_, err := p.dev.ReadAt(buf[:n], at)
		if err == nil {
			break
		}
		if run.Count == 1 {
			p.cfg.Observer.Failed("read", at, n, err)
			if !p.t.Unreadable(r.s, c, run) {
				return nil, ErrGivenUp
			}
			p.cfg.Observer.Hole(r.s, run, err)
			return []Piece{{Run: run, Length: n, Err: err}}, nil
		}
		run.Count /= 2
	}
	// The range is still held: no write that entered after the cut has touched the pages since they were
	// found in todo, and none that entered before is under way. If the pass is still the same one, this
	// is their content of the cut.
	if _, ok := p.t.Read(r.s, c, run); !ok {
		return nil, ErrGivenUp
	}
	return p.pieces(run, buf), nil
}

// pieces makes pieces of what was read: zero blocks at both ends travel as zeroes, what is between them as
// data, at the front of the buffer.
func (p *Path) pieces(r Run, buf []byte) (out []Piece) {
	_, n := p.bytesOf(r)
	data := buf[:n]
	block := uint64(p.cfg.BlockSize / blockdev.PageSize)
	zero := func(x Run) bool {
		at, n := p.bytesOf(Run{x.First, x.Count})
		at -= int64(r.First) * blockdev.PageSize
		return blockdev.IsZero(data[at:][:n])
	}
	first, end := r.First, r.End()
	for first < end {
		to := min(end, (first/block+1)*block)
		if !zero(Run{first, to - first}) {
			break
		}
		first = to
	}
	for first < end {
		from := max(first, (end-1)/block*block)
		if !zero(Run{from, end - from}) {
			break
		}
		end = from
	}
	add := func(x Run, isZero bool) {
		if x.Count == 0 {
			return
		}
		_, n := p.bytesOf(x)
		piece := Piece{Run: x, Length: n, Zero: isZero}
		if !isZero {
			piece.Data = buf[:copy(buf, data[(x.First-r.First)*blockdev.PageSize:][:n])]
		}
		out = append(out, piece)
	}
	add(Run{r.First, first - r.First}, true)
	add(Run{first, end - first}, false)
	add(Run{end, r.End() - end}, true)
	return out
}

// Map is NextData while no write to [off, end) is under way: what lies before the data reads as zero then.
func (p *Path) Map(off, end int64) (blockdev.Extent, error) {
	r := p.pagesOf(off, end-off)
	p.locks.RLock(r.First, r.Count)
	defer p.locks.RUnlock(r.First, r.Count)
	return p.NextData(off)
}

// ReadRange reads pages while no write to them is under way, into buf, which has room for them at their
// true length.
func (p *Path) ReadRange(first, count uint64, buf []byte) error {
	p.locks.RLock(first, count)
	defer p.locks.RUnlock(first, count)
	off, n := p.bytesOf(Run{first, count})
	return p.readDevice(buf[:n], off)
}

// Reread reads staged pages of the epoch that s is reading once more. false: they were rewritten since its
// cut, and their content is gone. No write can enter for them between the question and the read, because
// it had to take the range first.
func (p *Path) Reread(s *Sets, first, count uint64, buf []byte) (ok bool, err error) {
	p.locks.RLock(first, count)
	defer p.locks.RUnlock(first, count)
	if p.t.rewritten(s, first, count) {
		return false, nil
	}
	off, n := p.bytesOf(Run{first, count})
	if err := p.readDevice(buf[:n], off); err != nil {
		return false, err
	}
	return true, nil
}
