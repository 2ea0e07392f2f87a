package engine

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"unsafe"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/wire"
)

const pageSize = blockdev.PageSize

// routineRead is one reader of a session: it takes a batch of closed pages, hashes and packs private copies
// of them, and sends. Several of them keep the disk, the processor and the wire busy at once; in which
// order batches go out does not matter, since no page is in two of them.
func (s *shipper) routineRead(session *shipSession) {
	packer := newPacking(session)
	for session.ctx.Err() == nil {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if s.read(session, packer) {
			continue
		}
		s.poke() // this may have been the last of it
		select {
		case <-changed:
		case <-session.ctx.Done():
		}
	}
}

// read ships a batch, if anything may be shipped. more: there may be more to do at once.
func (s *shipper) read(session *shipSession, packer *packing) (more bool) {
	s.mu.Lock()
	epoch, ok := s.core.MayShip()
	s.mu.Unlock()
	if !ok {
		return false
	}
	more, err := s.shipBatch(session, epoch, packer)
	if err != nil {
		session.end(err)
	}
	return more && err == nil
}

// shipBatch reads and sends one batch. more: there may be more to do at once.
func (s *shipper) shipBatch(session *shipSession, epoch uint64, packer *packing) (more bool, err error) {
	defer s.lendHand()()
	s.inHand.Add(1)
	defer s.inHand.Add(-1)
	ctx := session.shipping()
	s.mu.Lock()
	now, ok := s.core.MayShip()
	items := s.takeAgainLocked(ok && now == epoch)
	s.mu.Unlock()
	if !ok || now != epoch {
		return true, nil // it changed while we waited for hands
	}
	more = len(items) > 0
	if !more {
		items, more, err = s.readBatch(ctx, packer)
		if errors.Is(err, track.ErrGivenUp) || err != nil && ctx.Err() != nil {
			err = nil
		}
	}
	if items = s.withoutBlank(items, epoch); len(items) > 0 {
		if serr := s.sendItems(ctx, session, epoch, items); err == nil {
			err = serr
		}
	}
	return more, err
}

// batch is how much a reader gathers before it sends.
func (s *shipper) batch() int64 { return cmp.Or(s.p.sizes.ShipBatch, shipBatch) }

// takeAgainLocked takes what has to be sent again, at most a batch.
func (s *shipper) takeAgainLocked(ok bool) (items []item) {
	for n := int64(0); ok && len(s.again) > 0 && n < s.batch(); s.again = s.again[1:] {
		items = append(items, s.again[0])
		n += s.again[0].length
	}
	return items
}

// readBatch reads closed pages until a batch is full or nothing is left, and makes items of them.
func (s *shipper) readBatch(ctx context.Context, packer *packing) (items []item, more bool, err error) {
	buf := &shared{pool: s.pool, wait: s.p.wait}
	buf.refs.Store(1)
	defer buf.release()
	var read int64
	more = true
	for batch := s.batch(); more && read < batch && err == nil; {
		var pieces []track.Piece
		pieces, more, err = s.p.path.ReadClosed(ctx, s.sets, int(batch), buf)
		if len(pieces) == 0 && err == nil && !more {
			break
		}
		for i := range pieces {
			items = s.addItems(items, &pieces[i], buf)
			read += min(pieces[i].Length, batch)
		}
	}
	s.hashItems(items)
	for i := range items {
		it := &items[i]
		if !it.zero {
			codec, packed := packer.pack(it.payload)
			if codec != wire.CodecRaw {
				// The compressed bytes fit into the place of the raw ones, which are not needed any more.
				it.payload = it.payload[:copy(it.payload, packed)]
			}
			it.codec = codec
		}
		buf.refs.Add(1)
		it.buf = buf
	}
	return items, more, err
}

// packing decides what is worth packing. Between two ends of one machine nothing is: there is no wire to
// spare. Elsewhere content that does not shrink costs time in vain, and mostly comes in long runs: after
// each that did not, twice as many are sent as they are before the next is tried.
type packing struct {
	packer *wire.Packer // nil: never
	skip   int          // to be sent as they are
	last   int          // how many were skipped before
}

// mostSkipped is how many records in a row are sent as they are without a try.
const mostSkipped = 63

func newPacking(session *shipSession) *packing {
	if session.conn.Loopback() {
		return &packing{}
	}
	return &packing{packer: wire.NewPacker()}
}

func (p *packing) pack(raw []byte) (wire.Codec, []byte) {
	switch {
	case p.packer == nil:
		return wire.CodecRaw, raw
	case p.skip > 0:
		p.skip--
		return wire.CodecRaw, raw
	}
	codec, packed := p.packer.Compress(nil, raw)
	if codec == wire.CodecRaw {
		p.last = min(2*p.last+1, mostSkipped)
		p.skip = p.last
	} else {
		p.last = 0
	}
	return codec, packed
}

// Get and Put make a batch the place where what is read for it goes.
func (b *shared) Get(ctx context.Context, n int) ([]byte, error) {
	buf, err := takeBuffer(ctx, b.pool, b.wait, n)
	if err == nil {
		b.bufs = append(b.bufs, buf)
	}
	return buf, err
}

// Put gives one buffer back before the others.
func (b *shared) Put(buf []byte) {
	same := func(o []byte) bool { return unsafe.SliceData(o) == unsafe.SliceData(buf) }
	b.bufs = slices.DeleteFunc(b.bufs, same)
	b.pool.Put(buf)
}

// addItems cuts a piece into items: zeroes into extents, everything else into runs inside blocks.
func (s *shipper) addItems(items []item, p *track.Piece, buf *shared) []item {
	off := int64(p.First) * pageSize
	switch {
	case p.Err != nil:
		return items // the path has told it
	case p.Zero || blockdev.IsZero(p.Data):
		for end := off + p.Length; off < end; {
			n := min(end-off, wire.MaxZeroExtent)
			items = append(items, item{off: off, length: n, zero: true, mayFree: p.Zero, hash: wire.ZeroHash(off, n)})
			off += n
		}
		return items
	}
	block := s.p.blockSize
	for data := p.Data; len(data) > 0; {
		n := min(int64(len(data)), block-off%block)
		part := data[:n:n]
		data = data[n:]
		if blockdev.IsZero(part) {
			items = append(items, item{off: off, length: n, zero: true, hash: wire.ZeroHash(off, n)})
		} else {
			items = append(items, item{off: off, length: n, payload: part})
		}
		off += n
	}
	return items
}

// hashItems hashes what is not zero, two at a time.
func (s *shipper) hashItems(items []item) {
	hashes := make([]wire.Hash, len(items))
	pair := pairHasher{hashes: hashes}
	for i := range items {
		if !items[i].zero {
			pair.add(i, items[i].payload)
		}
	}
	pair.flush()
	for i := range items {
		if !items[i].zero {
			items[i].hash = hashes[i]
		}
	}
}

// sendItems sends a batch, as far as the window allows at a time. What could not be sent goes back to
// again: for the next connection, or to be given up.
func (s *shipper) sendItems(ctx context.Context, session *shipSession, epoch uint64, items []item) error {
	for len(items) > 0 {
		n, cost, bytes := 0, int64(0), int64(0)
		for most := runBytes(session.flow); n < len(items) && cost+items[n].cost() <= wire.MaxRun && (n == 0 || bytes+items[n].bytes() <= most); n++ {
			cost += items[n].cost()
			bytes += items[n].bytes()
		}
		err := s.acquire(ctx, session, cost, bytes)
		if err == nil {
			err = s.sendSome(session, epoch, items[:n])
			items = items[n:] // whether or not they got there: they have their numbers
		}
		if err != nil {
			s.mu.Lock()
			s.again = append(s.again, items...)
			s.mu.Unlock()
			if ctx.Err() != nil {
				return nil // the session's end says why, or the cut was given up
			}
			return err
		}
	}
	return nil
}

// acquire takes room of the mirror's window, for what is so long on the wire. Where nothing may block it is tried
// until it is there.
func (s *shipper) acquire(ctx context.Context, session *shipSession, n, bytes int64) (err error) {
	if s.p.wait == nil {
		return session.window.Admit(ctx, n, bytes)
	}
	s.p.wait(func() bool {
		if err = context.Cause(ctx); err == nil {
			err = session.window.Admit(triedOnce, n, bytes)
		}
		return !errors.Is(err, errTriedOnce)
	})
	return err
}

// triedOnce is for what is to fail where it would wait.
var triedOnce, errTriedOnce = func() (context.Context, error) {
	err := errors.New("it would have to wait")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(err)
	return ctx, err
}()

// takeBuffer is Pool.Get, likewise.
func takeBuffer(ctx context.Context, pool *blockdev.Pool, wait func(try func() bool), n int) (b []byte, err error) {
	if wait == nil || int64(n) > pool.Limit() {
		return pool.Get(ctx, n)
	}
	wait(func() bool {
		if err = ctx.Err(); err != nil {
			return true
		}
		var ok bool
		b, ok = pool.TryGet(n)
		return ok
	})
	return b, err
}

func (it *item) cost() int64 {
	if it.zero {
		return pageSize
	}
	return (it.length + pageSize - 1) / pageSize * pageSize
}

// bytes is what it takes on the wire.
func (it *item) bytes() int64 { return wire.RecordOverhead + int64(len(it.payload)) }

// sendSome gives items their sequence numbers and sends them. Numbers are given out in the order in which
// frames leave, so both happen under one lock.
func (s *shipper) sendSome(session *shipSession, epoch uint64, items []item) error {
	frames := make([]wire.Message, 0, len(items))
	follow(items)
	s.sending.Lock()
	defer s.sending.Unlock()
	var raw int64
	s.mu.Lock()
	for i := range items {
		it := &items[i]
		rec := ship.Record{Seq: s.core.NextSeq(), Offset: it.off, Length: it.length, Zero: it.zero, Hash: it.hash, Tries: it.tries, Bytes: it.bytes()}
		s.core.Sent(rec, epoch == 0)
		s.kept[rec.Seq] = *it
		if it.zero {
			m := &wire.Zero{Seq: rec.Seq, Epoch: epoch, Offset: it.off, Length: it.length}
			if it.mayFree {
				m.Flags = wire.ZeroMayFree
			}
			frames = append(frames, m)
			continue
		}
		raw += it.length
		frames = append(frames, &wire.Data{Seq: rec.Seq, Epoch: epoch, Offset: it.off, RawLength: uint32(it.length), Follow: it.follow,
			Codec: it.codec, Hash: it.hash, Payload: it.payload})
	}
	if epoch == 0 {
		s.core.Shipped(raw + pageSize)
	}
	s.mu.Unlock()
	s.stats.shipped.Add(raw)
	if len(frames) == 0 {
		return nil
	}
	return session.conn.Send(frames...)
}

// withoutBlank leaves zeroes out where the mirror is known to be zero and was sent nothing yet. They must not
// take room of the window, for which nothing would ever come back.
func (s *shipper) withoutBlank(items []item, epoch uint64) []item {
	s.mu.Lock()
	blank := s.blank
	s.mu.Unlock()
	if epoch != 0 || blank < 0 {
		return items
	}
	return slices.DeleteFunc(items, func(it item) bool {
		if it.zero && it.off >= blank {
			it.buf.release()
			return true
		}
		return false
	})
}

// follow announces contiguous runs: each Data says how many raw bytes come behind it without a gap.
func follow(items []item) {
	for i := range slices.Backward(items) {
		it := &items[i]
		it.follow = 0
		if it.zero || i+1 == len(items) {
			continue
		}
		next := &items[i+1]
		if !next.zero && next.off == it.off+it.length && it.length+next.length+int64(next.follow) <= wire.MaxRun {
			it.follow = uint32(next.length) + next.follow
		}
	}
}
