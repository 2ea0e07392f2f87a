package journal

import (
	"fmt"
	"hash/crc32"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Append puts a record behind all others. Seq must be above that of every record, rebase and point before.
// The payload, of PayloadLength bytes, is copied. Nothing of it is durable before the next Sync, Rebase or
// Seal.
func (s *Staging) Append(rec StagingRecord, payload []byte) error {
	if err := s.ready(); err != nil {
		return err
	}
	h := s.Header()
	err := rec.check(&h)
	switch {
	case err != nil:
	case rec.PayloadLength != len(payload):
		err = fmt.Errorf("%w: payload of %d bytes, the record says %d", ErrStaging, len(payload), rec.PayloadLength)
	case rec.Seq <= s.seq:
		err = fmt.Errorf("%w: the last sequence is %d", ErrStaging, s.seq)
	}
	if err != nil {
		return fmt.Errorf("append record %d to %s: %w", rec.Seq, s.path, err)
	}
	if full := len(s.pending) == s.opts.FrameRecords; full ||
		len(s.pending) > 0 && len(s.buf)+len(payload) > s.table()+s.opts.BufferSize {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if s.buf == nil {
		s.buf = make([]byte, s.table(), s.table()+s.opts.BufferSize)
	}
	s.pending = append(s.pending, rec)
	s.buf = append(s.buf, payload...)
	s.seq = rec.Seq
	s.records++
	s.pages.Add(pageRange(rec.Offset, rec.Length))
	s.note()
	return nil
}

// flush writes what is pending as one frame, in one piece.
func (s *Staging) flush() error {
	if len(s.pending) == 0 {
		return nil
	}
	first := &s.pending[0]
	f := stagingHead{
		kind: frameRecords, count: uint32(len(s.pending)), body: uint32(len(s.pending) * stagingEntrySize),
		payload: uint32(len(s.buf) - s.table()), prev: s.last, durable: s.durable,
		low: first.Offset, high: first.Offset + first.Length, seq: s.seq,
	}
	b := s.buf[s.table()-stagingHeadSize-int(f.body):]
	off := s.tail + stagingHeadSize
	at := off + int64(f.body)
	for i := range s.pending {
		r := &s.pending[i]
		f.low, f.high = min(f.low, r.Offset), max(f.high, r.Offset+r.Length)
		where := at
		if r.Kind == StagingZero {
			where = 0
		}
		encodeEntry(b[stagingHeadSize+i*stagingEntrySize:], r, where, &s.id, off+int64(i*stagingEntrySize))
		at += int64(r.PayloadLength)
	}
	f.encode(b, &s.id, s.tail)
	if err := s.write(&f, b); err != nil {
		return err
	}
	s.pending = s.pending[:0]
	s.buf = s.buf[:s.table()]
	if cap(s.buf) > 2*(s.table()+s.opts.BufferSize) {
		s.buf = nil // one payload was longer than the buffer
	}
	return nil
}

// write puts a whole frame at the tail.
func (s *Staging) write(f *stagingHead, b []byte) error {
	s.unsynced = true
	if err := writeAt(s.file, b, s.tail); err != nil {
		return s.fail(fmt.Errorf("write %s at %d: %w", s.path, s.tail, err))
	}
	s.last, s.tail = s.tail, f.next(s.tail)
	return nil
}

// sync makes everything written durable.
func (s *Staging) sync() error {
	if err := s.file.Sync(); err != nil {
		return s.fail(err)
	}
	s.unsynced, s.durable = false, s.tail
	return nil
}

// Sync makes everything appended durable and records a synced point. p.Seq is that of the last record, or
// above it. Where nothing was appended since the last point, and p is that point, there is nothing to do.
func (s *Staging) Sync(p StagingPoint) error {
	if err := s.ready(); err != nil {
		return err
	}
	if s.published && p == s.Point() && len(s.pending) == 0 && !s.unsynced && !s.unsealed {
		return nil
	}
	if err := s.mark(framePoint, p, appendPoint(nil, p)); err != nil {
		return err
	}
	return s.publish()
}

// mark writes a synced point, in this order: (1) the records before it are written and (2) synced, so that
// the point proves them, (3) the point is written and (4) synced.
func (s *Staging) mark(kind frameKind, p StagingPoint, body []byte) error {
	if p.Seq < s.seq {
		return fmt.Errorf("%w: point at %d in %s, the last sequence is %d", ErrStaging, p.Seq, s.path, s.seq)
	}
	if err := s.flush(); err != nil {
		return err
	}
	if s.unsynced {
		if err := s.sync(); err != nil {
			return err
		}
	}
	f := stagingHead{
		kind: kind, body: uint32(len(body)), prev: s.last, durable: s.tail, seq: p.Seq,
		bodySum: crc32.Checksum(body, castagnoli),
	}
	b := make([]byte, stagingHeadSize, stagingHeadSize+len(body))
	f.encode(b, &s.id, s.tail)
	if err := s.write(&f, append(b, body...)); err != nil {
		return err
	}
	if err := s.sync(); err != nil {
		return err
	}
	s.seq, s.unsealed = p.Seq, false
	s.mu.Lock()
	s.now.point = p
	s.mu.Unlock()
	s.note()
	return nil
}

// publish gives the file the name of its epoch, durably, if it has another one.
func (s *Staging) publish() error {
	path := stagingPath(s.dir, s.Header().Epoch)
	if s.path == path && s.published {
		return nil
	}
	if s.path != path {
		err := mustNotExist(s.fs, path) // which Rename would replace
		if err == nil {
			err = s.fs.Rename(s.path, path)
		}
		if err != nil {
			return s.fail(err)
		}
		s.path = path
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return s.fail(err)
	}
	s.published = true
	return nil
}

// Rebase carries what is staged over to a later epoch on the same base. The pages in voids, which are
// ascending extents of whole pages, are void in it until they are staged again. It is a synced point; p.Seq is
// seq. When it returns, the file has the new epoch's name; the room of records that are wholly void is
// given back where the file system can. After a crash or an error, the file is the old epoch's as it was, or
// the new one's.
//
// ErrTooLarge: too many extents; nothing was changed.
func (s *Staging) Rebase(seq, newEpoch uint64, voids []blockdev.Extent, p StagingPoint) error {
	if err := s.ready(); err != nil {
		return err
	}
	h := s.Header()
	r := stagingRebase{point: p, seq: seq, old: h.Epoch, new: newEpoch}
	err := h.checkVoids(voids)
	if err == nil {
		r.voids = joinExtents(voids)
	}
	switch {
	case err != nil:
	case len(r.voids) > MaxStagingVoids:
		err = fmt.Errorf("%w: %d void extents, at most %d", ErrTooLarge, len(r.voids), MaxStagingVoids)
	case newEpoch <= h.Epoch:
		err = fmt.Errorf("%w: the epoch is %d", ErrStaging, h.Epoch)
	case seq <= s.seq || p.Seq < seq:
		err = fmt.Errorf("%w: rebase at %d, point at %d, the last sequence is %d", ErrStaging, seq, p.Seq, s.seq)
	default:
		err = mustNotExist(s.fs, stagingPath(s.dir, newEpoch))
	}
	if err != nil {
		return fmt.Errorf("rebase %s to epoch %d: %w", s.path, newEpoch, err)
	}
	if err := s.mark(frameRebase, p, r.encode()); err != nil {
		return err
	}
	s.takeRebase(&r)
	s.note()
	if err := s.publish(); err != nil {
		return err
	}
	s.punch()
	return nil
}

// takeRebase makes the file the new epoch's. Its record is durable.
func (s *Staging) takeRebase(r *stagingRebase) {
	for _, v := range r.voids {
		s.pages.Remove(pageRange(v.Offset, v.Length))
	}
	s.rebases++
	s.mu.Lock()
	s.now.header.Epoch = r.new
	s.mu.Unlock()
}

// Seal ends the epoch with a footer that carries extra, and makes it durable. base and pages must be what the
// header and Pages say: the peer's numbers are checked here. The footer commits nothing; that is for a record
// elsewhere. What is sealed takes nothing more, until Unseal.
func (s *Staging) Seal(base, pages uint64, p StagingPoint, extra []byte) error {
	if err := s.ready(); err != nil {
		return err
	}
	h := s.Header()
	switch {
	case base != h.Base:
		return fmt.Errorf("seal %s: %w: base %d, it is %d", s.path, ErrStaging, base, h.Base)
	case pages != s.pages.Count():
		return fmt.Errorf("seal %s: %w: %d pages, there are %d", s.path, ErrStaging, pages, s.pages.Count())
	case len(extra) > MaxStagingExtra:
		return fmt.Errorf("seal %s: %w: extra of %d bytes, at most %d", s.path, ErrTooLarge, len(extra), MaxStagingExtra)
	}
	f := stagingFooter{p, base, pages, extra}
	if err := s.mark(frameFooter, p, f.encode()); err != nil {
		return err
	}
	if err := s.publish(); err != nil {
		return err
	}
	s.mu.Lock()
	s.now.sealed, s.now.extra = true, append([]byte(nil), extra...)
	s.mu.Unlock()
	s.buf, s.pending = nil, nil // it may wait long until it is applied
	return nil
}
