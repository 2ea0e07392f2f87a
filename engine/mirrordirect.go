package engine

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/wire"
)

// takeDirect adds a frame to the run under way, or begins one. A raw payload is read to its place in the
// run's buffer, a packed one to a buffer of its own. In the reader.
func (s *mirrorSession) takeDirect(d *wire.Data) error {
	n := int64(d.RawLength)
	if !s.pages(d.Offset, n) || s.down(d.Offset) != s.down(d.Offset+n-1) || int64(d.Follow) > s.size-d.Offset-n {
		return protocolError("Data at %d+%d, %d to follow, is no run of pages of a block", d.Offset, n, d.Follow)
	}
	if s.gathering == nil {
		buf, err := s.pool.Get(s.ctx, int(n)+int(d.Follow))
		if err != nil {
			return err
		}
		s.gathering = &run{off: d.Offset, buf: buf}
	}
	r := s.gathering // that d continues it is the connection's rule
	cost := wire.Cost(d)
	if err := s.meter.Take(cost); err != nil {
		return err
	}
	r.cost += cost
	p := part{seq: d.Seq, lo: r.filled, hi: r.filled + n, hash: d.Hash, codec: d.Codec}
	dst := r.buf[p.lo:p.hi]
	if d.Codec != wire.CodecRaw {
		packed, err := s.pool.Get(s.ctx, d.PayloadLength)
		if err != nil {
			return err
		}
		p.packed, dst = packed, packed
	}
	if err := s.conn.ReadPayload(dst); err != nil {
		return err
	}
	r.filled = p.hi
	r.parts = append(r.parts, p)
	if d.Follow > 0 {
		return nil
	}
	s.gathering = nil
	return s.hand(&arrival{event: &replica.Direct{}, run: r})
}

// placed knows which ranges are being written in place: two runs for one page take effect in their order.
type placed struct {
	mu   sync.Mutex
	gone sync.Cond
	now  []blockdev.Extent
}

func (p *placed) init() { p.gone.L = &p.mu }

// enter waits until nothing of a range is being written, or the session ends.
func (p *placed) enter(ctx context.Context, e blockdev.Extent) {
	stop := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.gone.Broadcast()
	})
	defer stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for ctx.Err() == nil && p.metLocked(e) {
		p.gone.Wait()
	}
	p.now = append(p.now, e)
}

// tryEnter is enter for those who will not wait; false where it would.
func (p *placed) tryEnter(e blockdev.Extent) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.metLocked(e) {
		return false
	}
	p.now = append(p.now, e)
	return true
}

func (p *placed) metLocked(e blockdev.Extent) bool {
	return slices.ContainsFunc(p.now, func(o blockdev.Extent) bool { return o.Offset < e.End() && e.Offset < o.End() })
}

func (p *placed) leave(e blockdev.Extent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.now, e)
	p.now = slices.Delete(p.now, i, i+1)
	p.gone.Broadcast()
}

func (r *run) extent() blockdev.Extent {
	if r.zero != nil {
		return blockdev.Extent{Offset: r.zero.Offset, Length: r.zero.Length}
	}
	return blockdev.Extent{Offset: r.off, Length: int64(len(r.buf))}
}

// routinePlace gives runs to the writers, each when nothing that it overlaps with is being written.
func (s *mirrorSession) routinePlace(ctx context.Context, runs chan<- *run) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-s.direct:
			s.placed.enter(ctx, r.extent())
			select {
			case runs <- r:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// routineDirect writes runs in place.
func (s *mirrorSession) routineDirect(ctx context.Context, runs <-chan *run) error {
	found := make([]wire.Hash, 0, chunkSize/MinBlockSize)
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-runs:
			if err := s.place(ctx, r, found); err != nil {
				return err
			}
		}
	}
}

// place writes a run, which has entered s.placed. found has room for the hashes of a run.
func (s *mirrorSession) place(ctx context.Context, r *run, found []wire.Hash) (err error) {
	var written []blockdev.Extent
	if r.zero != nil {
		written, err = s.directZero(ctx, r)
	} else {
		written, err = s.directData(r, found)
	}
	s.placed.leave(r.extent())
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		return err // the session ended while this waited for memory: the device is in order
	case err != nil:
		s.m.post(func() { s.m.fail("write device", err) })
		return err
	}
	s.meter.Done(r.cost)
	s.out.wake()
	s.m.post(func() {
		if s.m.current == s {
			s.m.step(&replica.Written{Extents: written}, nil)
		}
	})
	return nil
}

// directData unpacks and checks every frame of a run, writes each contiguous stretch of good ones with one
// request, and answers for all of them. Entries of the index go before the write, and come behind it for
// whole blocks.
func (s *mirrorSession) directData(r *run, found []wire.Hash) (written []blockdev.Extent, err error) {
	defer s.pool.Put(r.buf)
	bad := make([]wire.NakCause, len(r.parts))
	found = found[:len(r.parts)]
	checkRun(r, s.pool, bad, found)
	for i, j := range stretches(len(r.parts), func(i, j int) bool { return (bad[i] == 0) == (bad[j] == 0) }) {
		if bad[i] != 0 {
			continue
		}
		lo, hi := r.parts[i].lo, r.parts[j-1].hi
		if err := s.store.index.forget(r.off+lo, hi-lo); err != nil {
			return nil, err
		}
		if ok, err := s.writeDirect(r.buf[lo:hi], r.off+lo, r.readBack); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		if err := s.learn(r, i, j, found); err != nil {
			return nil, err
		}
		written = append(written, blockdev.Extent{Offset: r.off + lo, Length: hi - lo})
	}
	for i := range r.parts {
		p := &r.parts[i]
		if bad[i] != 0 {
			s.out.nak(wire.NakEntry{Seq: p.seq, Offset: r.off + p.lo, Cause: bad[i], Hash: found[i]})
			s.prog.RetriedBlocks.Add(1)
			continue
		}
		s.out.ack(wire.AckEntry{Seq: p.seq, Offset: r.off + p.lo, Level: wire.LevelWritten, Hash: found[i]})
		s.prog.Shipped.Add(p.hi - p.lo)
	}
	return written, nil
}

// writeDirect writes in place. What reads back as something else, where that is asked for, makes the mirror
// read-only, which ends the session.
func (s *mirrorSession) writeDirect(b []byte, off int64, readBack bool) (ok bool, err error) {
	var back []byte
	if readBack {
		back = make([]byte, len(b)) // of a mode that is not in a hurry; the device takes any buffer
	}
	found, err := s.store.writeBack(b, off, back)
	return s.placedWell(found), err
}

// placedWell tells the owner of what does not read back as it was written in place; true: there is nothing.
func (s *mirrorSession) placedWell(found []damage) bool {
	if len(found) == 0 {
		return true
	}
	cause, extents := causeOf(found, 0, s.m.now())
	s.m.mismatches.Add(int64(len(found)))
	s.m.post(func() {
		s.m.log("read-only: " + cause.Reason)
		s.m.step(&replica.Mismatched{Cause: cause, Extents: extents}, nil)
		s.m.publish()
	})
	return false
}

// learn notes the hashes of those parts [i, j) that are whole blocks.
func (s *mirrorSession) learn(r *run, i, j int, found []wire.Hash) error {
	whole := func(k int) bool { return s.covers(r.off+r.parts[k].lo, r.parts[k].hi-r.parts[k].lo) }
	for a, b := range stretches(j-i, func(a, b int) bool { return whole(i+a) == whole(i+b) }) {
		if whole(i + a) {
			if err := s.store.index.learn(r.off+r.parts[i+a].lo, found[i+a:i+b]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *mirrorSession) directZero(ctx context.Context, r *run) (written []blockdev.Extent, err error) {
	z := r.zero
	if err := s.store.index.forget(z.Offset, z.Length); err != nil {
		return nil, err
	}
	var back []byte
	if r.readBack {
		back = make([]byte, min(z.Length, s.m.chunk))
	}
	found, err := s.store.zeroBack(ctx, r.extent(), z.Flags&wire.ZeroMayFree != 0, s.scratch, back)
	if err != nil {
		return nil, err
	}
	if s.placedWell(found) {
		written = append(written, r.extent())
	}
	s.out.ack(wire.AckEntry{Seq: z.Seq, Offset: z.Offset, Level: wire.LevelWritten, Hash: wire.ZeroHash(z.Offset, z.Length)})
	return written, nil
}

// zero makes a range read as zeroes without touching what is zero already: where zeroing costs a transfer,
// it reads first.
func (s *mirrorStore) zero(ctx context.Context, r blockdev.Extent, mayFree bool, pool *blockdev.Pool) error {
	cheap := s.dev.Info().CheapZero
	for pos := r.Offset; pos < r.End(); {
		data, err := s.dev.NextData(pos)
		if err != nil {
			return deviceError("map mirror", "", err)
		}
		if data.Length == 0 || data.Offset >= r.End() {
			return nil
		}
		pos = max(data.Offset, pos)
		n := min(data.End(), r.End()) - pos
		zero := false
		if !cheap {
			n = min(n, s.m.chunk)
			if zero, err = s.isZero(ctx, pos, n, pool); err != nil {
				return err
			}
		}
		if !zero {
			if err := s.dev.Zero(pos, n, mayFree); err != nil {
				return deviceError("zero mirror", "", err)
			}
		}
		pos += n
	}
	return nil
}

func (s *mirrorStore) isZero(ctx context.Context, off, n int64, pool *blockdev.Pool) (bool, error) {
	buf, err := pool.Get(ctx, int(n))
	if err != nil {
		return false, err
	}
	defer pool.Put(buf)
	bad, err := s.readAround(buf, off, n)
	if len(bad) > 0 {
		s.m.mismatches.Add(1)
		s.m.log(bad[0].String() + "; it is zeroed now")
		return false, nil // the zeroes may heal it
	}
	return err == nil && blockdev.IsZero(buf), err
}

// routineOffers compares what is offered with the device.
func (s *mirrorSession) routineOffers(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-s.offers:
			if err := s.answerOffer(ctx, o); err != nil {
				return err
			}
		}
	}
}

func (s *mirrorSession) answerOffer(ctx context.Context, o *wire.Offer) error {
	bits, equal, bad, err := s.compare(ctx, o)
	if err != nil {
		if ctx.Err() == nil {
			s.m.post(func() { s.m.fail("read device", err) })
		}
		return err
	}
	s.offered.Add(int64(o.Length))
	s.out.add(&wire.Want{Seq: o.Seq, Bits: bits})
	s.m.post(func() {
		if s.m.current == s {
			s.m.unreadable(bad, o.Flags&wire.OfferVerify == 0)
			s.m.step(&replica.Compared{Equal: equal}, nil)
			s.m.publish()
		}
	})
	return nil
}

// hashes are those of the units of a range of the device; zero where a unit cannot be read.
func (s *mirrorSession) hashes(ctx context.Context, r blockdev.Extent, unit int64) (found []wire.Hash, bad []damage, err error) {
	units := geometry{size: s.size, blockSize: unit}
	buf, err := s.scratch.Get(ctx, int(s.m.chunk))
	if err != nil {
		return nil, nil, err
	}
	defer s.scratch.Put(buf)
	found, err = units.hashRange(r, buf, s.store.dev.NextData, func(b []byte, off int64) error {
		more, err := s.store.readAround(b, off, unit)
		bad = append(bad, more...)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	for _, d := range bad {
		found[(d.Offset-r.Offset)/unit] = wire.Hash{}
	}
	return found, bad, nil
}

// compare tells which of the offered units differ; what cannot be read does. Whole blocks that are equal are noted in
// the index.
func (s *mirrorSession) compare(ctx context.Context, o *wire.Offer) (bits []byte, equal []blockdev.Extent, bad []damage, err error) {
	units := geometry{size: s.size, blockSize: int64(o.Unit)}
	tree := o.Flags&wire.OfferTree != 0
	if tree {
		units.blockSize = s.blockSize
	}
	found, bad, err := s.hashes(ctx, blockdev.Extent{Offset: o.Offset, Length: int64(o.Length)}, units.blockSize)
	if err != nil {
		return nil, nil, nil, err
	}
	if tree {
		found = trees(found, int(int64(o.Unit)/s.blockSize))
	}
	bits = make([]byte, (len(o.Hashes)+7)/8)
	same := func(i int) bool { return found[i] == o.Hashes[i] && found[i] != (wire.Hash{}) }
	for i, j := range stretches(len(found), func(i, j int) bool { return same(i) == same(j) }) {
		off := o.Offset + int64(i)*int64(o.Unit)
		end := min(o.Offset+int64(j)*int64(o.Unit), o.Offset+int64(o.Length))
		if !same(i) {
			for k := i; k < j; k++ {
				bits[k/8] |= 1 << (k % 8)
			}
			continue
		}
		if o.Flags&wire.OfferVerify != 0 {
			continue
		}
		equal = append(equal, blockdev.Extent{Offset: off, Length: end - off})
		if units.blockSize == s.blockSize && s.covers(off, end-off) {
			if err := s.store.index.learn(off, found[i:j]); err != nil {
				return nil, nil, nil, err
			}
		}
	}
	return bits, equal, bad, nil
}

// trees are the hashes of the hashes of so many blocks each.
func trees(blocks []wire.Hash, each int) (found []wire.Hash) {
	for part := range slices.Chunk(blocks, each) {
		found = append(found, wire.TreeHash(part))
	}
	return found
}
