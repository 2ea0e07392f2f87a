package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// copyHole makes the target's part of a hole zero. What lies behind dataEnd is zero there already.
func (s *source) copyHole(ctx context.Context, hole blockdev.Extent, p *piece, dataEnd int64) error {
	if !s.options.dryRun {
		end := min(hole.End(), s.up(dataEnd))
		for off := hole.Offset; off < end; {
			n := min(end-off, wire.MaxZeroExtent)
			if err := s.sendZero(ctx, p, off, n); err != nil {
				return err
			}
			off += n
		}
	}
	lastBlock := s.down(hole.End() - 1)
	p.setLast(zeroBlockHash(hole.End() - lastBlock))
	s.prog.Zero.Add(hole.Length)
	s.prog.Scanned.Add(hole.Length)
	return nil
}

// copySpan reads data of at most chunkSize, and ships the blocks that the target lacks.
func (s *source) copySpan(ctx context.Context, sp blockdev.Extent, p *piece, dataEnd int64, packer *wire.Packer) error {
	buf, err := s.pool.Get(ctx, int(sp.Length))
	if err != nil {
		return err
	}
	defer s.pool.Put(buf)
	if err := s.read(ctx, buf, sp.Offset); err != nil {
		return err
	}
	blocks := s.hash(buf)
	if sp.Offset < dataEnd {
		if err := s.offer(ctx, sp, blocks); err != nil {
			return err
		}
	}
	s.count(buf, blocks)
	p.setLast(blocks[len(blocks)-1].hash) // before it is shipped: a retry may find another one
	if !s.options.dryRun {
		if err := s.ship(ctx, sp.Offset, buf, blocks, p, packer); err != nil {
			return err
		}
	}
	s.prog.Scanned.Add(sp.Length)
	return nil
}

// block is what is known of one block of a span.
type block struct {
	hash   wire.Hash
	zero   bool
	wanted bool
}

func (s *source) read(ctx context.Context, buf []byte, off int64) error {
	select {
	case s.reads <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	_, err := s.dev.ReadAt(buf, off)
	<-s.reads
	if err != nil {
		return sourceError(err)
	}
	return nil
}

// hash hashes the blocks of a span. buf is private to the caller, so the hash is of the very bytes that
// will be sent, whoever writes to the device meanwhile. A target behind its last data wants all but the
// zeroes.
func (s *source) hash(buf []byte) []block {
	hashes := make([]wire.Hash, (int64(len(buf))+s.blockSize-1)/s.blockSize)
	s.hashBlocks(buf, hashes)
	blocks := make([]block, len(hashes))
	for i, h := range hashes {
		n := min(s.blockSize, int64(len(buf))-int64(i)*s.blockSize)
		zero := h == zeroBlockHash(n)
		blocks[i] = block{hash: h, zero: zero, wanted: !zero}
	}
	return blocks
}

// offer asks the target which blocks of a span it lacks.
func (s *source) offer(ctx context.Context, sp blockdev.Extent, blocks []block) error {
	m := &wire.Offer{Offset: sp.Offset, Length: uint32(sp.Length), Unit: uint32(s.blockSize), Hashes: make([]wire.Hash, len(blocks))}
	for i := range blocks {
		m.Hashes[i] = blocks[i].hash
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	answer := make(chan []byte, 1)
	s.mu.Lock()
	s.offerID++
	m.Seq = s.offerID
	s.offers[m.Seq] = answer
	s.mu.Unlock()
	if err := s.conn.Send(m); err != nil {
		return err
	}
	select {
	case bits := <-answer:
		if len(bits) != (len(blocks)+7)/8 {
			return protocolError("Want answers %d blocks with %d bytes", len(blocks), len(bits))
		}
		for i := range blocks {
			blocks[i].wanted = bits[i/8]>>(i%8)&1 == 1
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// count adds a span's blocks to the counters. What is shipped counts when it is acknowledged, in a dry
// run at once.
func (s *source) count(buf []byte, blocks []block) {
	for i := range blocks {
		n := min(s.blockSize, int64(len(buf))-int64(i)*s.blockSize)
		switch b := &blocks[i]; {
		case b.zero:
			s.prog.Zero.Add(n)
		case !b.wanted:
			s.prog.Skipped.Add(n)
		case s.options.dryRun:
			s.prog.Shipped.Add(n)
		}
	}
}

// ship sends the wanted blocks of a span, each contiguous run of data with one send and each run of
// zeroes as one extent.
func (s *source) ship(ctx context.Context, off int64, buf []byte, blocks []block, p *piece, packer *wire.Packer) error {
	var packed []byte
	if !s.options.noCompress {
		var err error
		if packed, err = s.pool.Get(ctx, len(buf)); err != nil {
			return err
		}
		defer s.pool.Put(packed)
	}
	alike := func(i, j int) bool {
		return blocks[i].wanted == blocks[j].wanted && blocks[i].zero == blocks[j].zero
	}
	for i, j := range stretches(len(blocks), alike) {
		lo, hi := int64(i)*s.blockSize, min(int64(j)*s.blockSize, int64(len(buf)))
		var err error
		switch {
		case blocks[i].wanted && blocks[i].zero:
			err = s.sendZero(ctx, p, off+lo, hi-lo)
		case blocks[i].wanted:
			run := s.pack(off+lo, buf[lo:hi], blocks[i:j], packed, packer)
			err = s.sendRun(ctx, p, run)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pack makes the Data frames of a run, but for what follows each (sendSome). Payloads lie in raw or, where lz4 made them smaller, in packed,
// which has room for all of raw.
func (s *source) pack(off int64, raw []byte, blocks []block, packed []byte, packer *wire.Packer) []*wire.Data {
	frames := make([]wire.Data, len(blocks))
	run := make([]*wire.Data, len(blocks))
	for i := range frames {
		lo := int64(i) * s.blockSize
		hi := min(lo+s.blockSize, int64(len(raw)))
		d := &frames[i]
		*d = wire.Data{Offset: off + lo, RawLength: uint32(hi - lo), Codec: wire.CodecRaw, Hash: blocks[i].hash, Payload: raw[lo:hi]}
		if packed != nil {
			d.Codec, d.Payload = packer.Compress(packed[lo:hi], raw[lo:hi])
		}
		run[i] = d
	}
	return run
}

// admit waits until records of this cost may be open, which take so many bytes on the wire: by what the target grants,
// by what the path carries, and by our own limit.
func (s *source) admit(ctx context.Context, cost, bytes int64) error {
	if err := s.budget.Acquire(ctx, cost); err != nil {
		return context.Cause(ctx)
	}
	return s.window.Admit(ctx, cost, bytes)
}

// sendRun sends a contiguous run of blocks, as much at a time as the path carries in a moment, when the rate and the
// window allow it. One run goes after the other: did they share a slow path, all would be done at its end, and nothing
// confirmed before.
func (s *source) sendRun(ctx context.Context, p *piece, run []*wire.Data) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	for len(run) > 0 {
		n, cost, payload := 0, int64(0), 0
		for most := runBytes(s.flow); n < len(run) && (n == 0 || int64(payload+len(run[n].Payload)) <= most); n++ {
			cost += wire.Cost(run[n])
			payload += len(run[n].Payload)
		}
		// The rate first: what waits for it is not under way.
		if s.limit != nil {
			if err := s.limit.WaitN(ctx, payload); err != nil {
				return err
			}
		}
		if err := s.admit(ctx, cost, int64(n*wire.RecordOverhead+payload)); err != nil {
			return err
		}
		if err := s.sendSome(p, run[:n]); err != nil {
			return err
		}
		run = run[n:]
	}
	return nil
}

// sendSome sends contiguous blocks with one send.
func (s *source) sendSome(p *piece, run []*wire.Data) error {
	var follow uint32
	for _, d := range slices.Backward(run) {
		d.Follow = follow
		follow += d.RawLength
	}
	p.hold(len(run))
	s.records.add(len(run))
	messages := make([]wire.Message, len(run))
	records := make([]record, len(run))
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	for i, d := range run {
		s.seq++
		d.Seq = s.seq
		s.chain.Add(d)
		records[i] = record{piece: p, offset: d.Offset, length: int64(d.RawLength), hash: d.Hash, cost: wire.Cost(d),
			bytes: int64(wire.RecordOverhead + len(d.Payload))}
		s.unacked[d.Seq] = &records[i]
		messages[i] = d
	}
	s.mu.Unlock()
	return s.conn.Send(messages...)
}

// sendZero sends one extent of zeroes.
func (s *source) sendZero(ctx context.Context, p *piece, off, n int64) error {
	m := &wire.Zero{Offset: off, Length: n, Flags: wire.ZeroMayFree}
	if err := s.admit(ctx, wire.Cost(m), wire.RecordOverhead); err != nil {
		return err
	}
	p.hold(1)
	s.records.add(1)
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	s.seq++
	m.Seq = s.seq
	s.chain.AddZero(m)
	s.unacked[m.Seq] = &record{piece: p, offset: off, length: n, hash: wire.ZeroHash(off, n), zero: true, cost: wire.Cost(m), bytes: wire.RecordOverhead}
	s.mu.Unlock()
	return s.conn.Send(m)
}

// handle takes what the target sends. It runs in the link's reader and never waits.
func (s *source) handle(m wire.Message) error {
	switch m := m.(type) {
	case *wire.Want:
		s.mu.Lock()
		answer := s.offers[m.Seq]
		delete(s.offers, m.Seq)
		s.mu.Unlock()
		if answer == nil {
			return protocolError("Want for offer %d, which is not open", m.Seq)
		}
		answer <- m.Bits
	case *wire.Ack:
		return s.takeAck(m)
	case *wire.Nak:
		return s.takeNak(m)
	case *wire.Window:
		return s.window.Grant(m.Granted)
	case *wire.Flushed:
		s.flushed.Store(m.Number)
		s.prog.Durable.Store(m.Position)
	case *wire.Committed, *wire.Doubt:
		select {
		case s.answers <- m:
		default:
			return protocolError("more answers to Commit than there can be")
		}
	default:
		return protocolError("a target does not send type %d", m.Type())
	}
	return nil
}

func (s *source) takeAck(m *wire.Ack) (err error) {
	var delivered int64
	for i := 0; i < len(m.Entries) && err == nil; i++ {
		e := &m.Entries[i]
		var bytes int64
		bytes, err = s.settle(e.Seq, e.Offset, &e.Hash, e.Level >= wire.LevelWritten)
		delivered += bytes
	}
	s.window.Delivered(delivered)
	return err
}

func (s *source) takeNak(m *wire.Nak) (err error) {
	var delivered int64
	for i := 0; i < len(m.Entries) && err == nil; i++ {
		e := &m.Entries[i]
		if e.Cause == wire.NakRoom {
			return protocolError("Nak of record %d for want of room in staging, in a sync", e.Seq)
		}
		var bytes int64
		bytes, err = s.settle(e.Seq, e.Offset, &e.Hash, false)
		delivered += bytes
	}
	s.window.Delivered(delivered)
	return err
}

// settle ends the wait for one record, of so many bytes: it is written, with the checksum that the target computed equal
// to ours, or it is shipped anew.
func (s *source) settle(seq uint64, off int64, hash *wire.Hash, written bool) (bytes int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.unacked[seq]
	if r == nil || r.offset != off {
		return 0, protocolError("answer to record %d at %d, which is not open", seq, off)
	}
	delete(s.unacked, seq)
	s.budget.Release(r.cost)
	if written && *hash == r.hash {
		delete(s.reships, off)
		if !r.zero {
			s.prog.Shipped.Add(r.length)
		}
		r.piece.release()
		s.records.add(-1)
		return r.bytes, nil
	}
	s.reships[off]++
	s.prog.RetriedBlocks.Add(1)
	if s.reships[off] > maxReships {
		return r.bytes, mismatchError(off, r.length, r.hash, *hash)
	}
	select {
	case s.again <- r:
		return r.bytes, nil
	default:
		return r.bytes, fmt.Errorf("%w: more than %d blocks wait to be shipped again", errMismatch, cap(s.again))
	}
}

// routineReship reads and sends anew the records that were not taken, until ended.
func (s *source) routineReship(ctx context.Context, ended <-chan struct{}) error {
	packer := wire.NewPacker()
	for {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case r := <-s.again:
			if err := s.reship(ctx, r, packer); err != nil {
				return err
			}
		}
	}
}

func (s *source) reship(ctx context.Context, r *record, packer *wire.Packer) error {
	// The new record counts, and holds the piece, before the old one is let go.
	defer func() {
		r.piece.release()
		s.records.add(-1)
	}()
	if r.zero {
		return s.sendZero(ctx, r.piece, r.offset, r.length)
	}
	buf, err := s.pool.Get(ctx, int(r.length))
	if err != nil {
		return err
	}
	defer s.pool.Put(buf)
	if err := s.read(ctx, buf, r.offset); err != nil {
		return err
	}
	b := []block{{hash: wire.Sum(buf), wanted: true}}
	if r.offset+r.length == r.piece.end {
		r.piece.setLast(b[0].hash)
	}
	return s.ship(ctx, r.offset, buf, b, r.piece, packer)
}
