package engine

import (
	"bytes"
	"context"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// routineCompare answers offers.
func (t *target) routineCompare(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-t.offers:
			bits, err := t.compare(ctx, m)
			if err != nil {
				return err
			}
			if err := t.conn.Send(&wire.Want{Seq: m.Seq, Bits: bits}); err != nil {
				return err
			}
		}
	}
}

// compare tells which of the offered blocks differ from the device, or from a trusted index where that
// knows them. What is found equal is noted in the index.
func (t *target) compare(ctx context.Context, m *wire.Offer) ([]byte, error) {
	bits := make([]byte, (len(m.Hashes)+7)/8)
	known := make([]wire.Hash, len(m.Hashes))
	indexed := false
	if t.indexed {
		var err error
		if indexed, err = t.store.lookUp(m.Offset, known); err != nil {
			return nil, err
		}
	}
	if !indexed {
		if err := t.hashDevice(ctx, m.Offset, int64(m.Length), known); err != nil {
			return nil, err
		}
	}
	for i, h := range m.Hashes {
		off := m.Offset + int64(i)*t.blockSize
		n := t.blockEnd(off) - off
		zero := h == zeroBlockHash(n)
		switch {
		case h == known[i] && !zero:
			t.prog.Skipped.Add(n)
		case h != known[i]:
			bits[i/8] |= 1 << (i % 8)
			if t.options&wire.OpenDryRun != 0 && !zero {
				t.prog.Shipped.Add(n)
			}
		}
	}
	if indexed {
		return bits, nil
	}
	equal := func(i int) bool { return m.Hashes[i] == known[i] }
	for i, j := range stretches(len(known), func(i, j int) bool { return equal(i) == equal(j) }) {
		if !equal(i) {
			continue
		}
		if err := t.store.learn(m.Offset+int64(i)*t.blockSize, known[i:j]); err != nil {
			return nil, err
		}
	}
	return bits, nil
}

// hashDevice reads blocks from the device and hashes them into hashes. A device that does not exist, in
// a dry run, is zero.
func (t *target) hashDevice(ctx context.Context, off, n int64, hashes []wire.Hash) error {
	if t.store.dev == nil {
		for i := range hashes {
			start := off + int64(i)*t.blockSize
			hashes[i] = zeroBlockHash(t.blockEnd(start) - start)
		}
		return nil
	}
	buf, err := t.pool.Get(ctx, int(n))
	if err != nil {
		return err
	}
	defer t.pool.Put(buf)
	if _, err := t.store.dev.ReadAt(buf, off); err != nil {
		return deviceError("read target", "", err)
	}
	t.hashBlocks(buf, hashes)
	return nil
}

// routineWrite takes runs and writes them.
func (t *target) routineWrite(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-t.writes:
			var err error
			if r.zero != nil {
				err = t.writeZero(ctx, r)
			} else {
				err = t.writeRun(ctx, r)
			}
			t.open.add(-1)
			if err != nil {
				return err
			}
			if t.limit != nil {
				// A target cannot slow the source down but by granting later.
				if err := t.limit.WaitN(ctx, int(min(r.cost, wire.MaxRun))); err != nil {
					return nil
				}
			}
			t.meter.Done(r.cost)
			t.acks.grant()
		}
	}
}

// writeRun unpacks and checks every frame of a run, writes each contiguous stretch of good ones with one
// request, notes their hashes, and answers for all of them. The buffers go back to the pool.
func (t *target) writeRun(ctx context.Context, r *run) error {
	defer t.pool.Put(r.buf)
	bad := make([]wire.NakCause, len(r.parts))
	found := make([]wire.Hash, len(r.parts))
	checkRun(r, t.pool, bad, found)
	for i, j := range stretches(len(r.parts), func(i, j int) bool { return bad[i] == bad[j] }) {
		if bad[i] == 0 {
			if err := t.writeStretch(ctx, r, i, j, bad, found); err != nil {
				return err
			}
		}
	}
	t.answer(r, bad, found)
	return nil
}

// checkRun unpacks the frames of a run and hashes what they hold: found is our own checksum of each, and bad
// says which are not what they should be. Packed payloads go back to pool.
func checkRun(r *run, pool *blockdev.Pool, bad []wire.NakCause, found []wire.Hash) {
	pair := pairHasher{hashes: found}
	for i := range r.parts {
		p := &r.parts[i]
		raw := r.buf[p.lo:p.hi]
		if p.packed != nil {
			err := wire.Unpack(p.codec, raw, p.packed)
			pool.Put(p.packed)
			if err != nil {
				bad[i] = wire.NakCodec
				continue
			}
		}
		pair.add(i, raw)
	}
	pair.flush()
	for i := range r.parts {
		if bad[i] == 0 && found[i] != r.parts[i].hash {
			bad[i] = wire.NakHash
		}
	}
}

// writeStretch writes parts [i, j) of a run, which are contiguous and good.
func (t *target) writeStretch(ctx context.Context, r *run, i, j int, bad []wire.NakCause, found []wire.Hash) error {
	lo, hi := r.parts[i].lo, r.parts[j-1].hi
	if _, err := t.store.dev.WriteAt(r.buf[lo:hi], r.off+lo); err != nil {
		return deviceError("write target", "", err)
	}
	if t.options&wire.OpenVerify != 0 {
		if err := t.readBack(ctx, r, i, j, bad, found); err != nil {
			return err
		}
	}
	// Reading back may have found some of them bad after all.
	for a, b := range stretches(j-i, func(a, b int) bool { return bad[i+a] == bad[i+b] }) {
		if bad[i+a] != 0 {
			continue
		}
		if err := t.store.learn(r.off+r.parts[i+a].lo, found[i+a:i+b]); err != nil {
			return err
		}
	}
	return nil
}

// readBack compares the device with what was just written to it.
func (t *target) readBack(ctx context.Context, r *run, i, j int, bad []wire.NakCause, found []wire.Hash) error {
	lo, hi := r.parts[i].lo, r.parts[j-1].hi
	back, err := t.scratch.Get(ctx, int(hi-lo))
	if err != nil {
		return err
	}
	defer t.scratch.Put(back)
	if _, err := t.store.dev.ReadAt(back, r.off+lo); err != nil {
		return deviceError("read back target", "", err)
	}
	for k := i; k < j; k++ {
		p := &r.parts[k]
		got := back[p.lo-lo : p.hi-lo]
		if !bytes.Equal(got, r.buf[p.lo:p.hi]) {
			bad[k], found[k] = wire.NakReadBack, wire.Sum(got)
		}
	}
	return nil
}

// answer queues an acknowledgement or refusal for every part of a run.
func (t *target) answer(r *run, bad []wire.NakCause, found []wire.Hash) {
	var acks []wire.AckEntry
	var naks []wire.NakEntry
	for i := range r.parts {
		p := &r.parts[i]
		off := r.off + p.lo
		if bad[i] != 0 {
			naks = append(naks, wire.NakEntry{Seq: p.seq, Offset: off, Cause: bad[i], Hash: found[i]})
			t.prog.RetriedBlocks.Add(1)
			continue
		}
		acks = append(acks, wire.AckEntry{Seq: p.seq, Offset: off, Level: wire.LevelWritten, Hash: found[i]})
		t.prog.Shipped.Add(p.hi - p.lo)
	}
	t.acks.add(acks, naks)
}

// writeZero makes a range read as zeroes, without touching what is zero already.
func (t *target) writeZero(ctx context.Context, r *run) error {
	off, n := r.zero.Offset, r.zero.Length
	if err := t.store.forget(off, n); err != nil {
		return err
	}
	bad, err := t.zeroData(ctx, blockdev.Extent{Offset: off, Length: n}, r.zero.Flags&wire.ZeroMayFree != 0)
	if err != nil {
		return err
	}
	if bad {
		t.acks.add(nil, []wire.NakEntry{{Seq: r.zero.Seq, Offset: off, Cause: wire.NakReadBack}})
		t.prog.RetriedBlocks.Add(1)
		return nil
	}
	t.acks.add([]wire.AckEntry{{Seq: r.zero.Seq, Offset: off, Level: wire.LevelWritten, Hash: wire.ZeroHash(off, n)}}, nil)
	return nil
}

// zeroData zeroes the allocated parts of a range. Where zeroing costs a transfer, it reads first: a
// device that is mostly zero already is spared the writes. bad tells that what was zeroed and read back,
// where that is wanted, is not zero.
func (t *target) zeroData(ctx context.Context, r blockdev.Extent, mayFree bool) (bad bool, err error) {
	dev := t.store.dev
	cheap := dev.Info().CheapZero
	verify := t.options&wire.OpenVerify != 0
	for pos := r.Offset; pos < r.End(); {
		data, err := dev.NextData(pos)
		if err != nil {
			return false, deviceError("map target", "", err)
		}
		if data.Length == 0 || data.Offset >= r.End() {
			return bad, nil
		}
		pos = max(data.Offset, pos)
		n := min(data.End(), r.End()) - pos
		if !cheap || verify {
			n = min(n, chunkSize)
		}
		zero := false
		if !cheap {
			if zero, err = t.isZero(ctx, pos, n); err != nil {
				return false, err
			}
		}
		if !zero {
			if err := dev.Zero(pos, n, mayFree); err != nil {
				return false, deviceError("zero target", "", err)
			}
			if verify {
				if zero, err = t.isZero(ctx, pos, n); err != nil {
					return false, err
				}
				bad = bad || !zero
			}
		}
		pos += n
	}
	return bad, nil
}

// isZero reads at most chunkSize of the device.
func (t *target) isZero(ctx context.Context, off, n int64) (bool, error) {
	buf, err := t.scratch.Get(ctx, int(n))
	if err != nil {
		return false, err
	}
	defer t.scratch.Put(buf)
	if _, err := t.store.dev.ReadAt(buf, off); err != nil {
		return false, deviceError("read target", "", err)
	}
	return blockdev.IsZero(buf), nil
}
