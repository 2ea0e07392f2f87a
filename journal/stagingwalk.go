package journal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/blkmirror/blkmirror/blockdev"
)

// stagingFile reads the frames of a staging file.
type stagingFile struct {
	f      File
	path   string
	id     stagingID
	header StagingHeader
	size   int64

	buf     []byte // of the last table
	entries []stagingEntry
}

// stagingEntry is a record and where it was found.
type stagingEntry struct {
	rec StagingRecord
	at  int64 // of the payload; 0: none
	off int64 // of the record itself
}

func (r *stagingFile) damaged(off int64, format string, args ...any) error {
	return &DamagedError{r.path, off, fmt.Sprintf(format, args...)}
}

// read fills b from off. Fewer bytes are no error here: what is missing will not check.
func (r *stagingFile) read(b []byte, off int64) ([]byte, error) {
	n, err := r.f.ReadAt(b, off)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read %s at %d: %w", r.path, off, err)
	}
	return b[:n], nil
}

// head reads the frame head at an offset; ok is false where there is none.
func (r *stagingFile) head(off int64) (f stagingHead, ok bool, err error) {
	var b [stagingHeadSize]byte
	got, err := r.read(b[:], off)
	if err != nil {
		return f, false, err
	}
	f, ok = decodeStagingHead(got, &r.id, off)
	return f, ok && f.end(off) <= r.size, nil
}

// body reads the body of a synced point; ok is false where it does not check.
func (r *stagingFile) body(off int64, f *stagingHead) (body []byte, ok bool, err error) {
	b, err := r.read(make([]byte, f.body), off+stagingHeadSize)
	if err != nil {
		return nil, false, err
	}
	return b, len(b) == int(f.body) && crc32.Checksum(b, castagnoli) == f.bodySum, nil
}

// table reads the records of a frame. They are valid until the next call.
func (r *stagingFile) table(off int64, f *stagingHead) ([]stagingEntry, error) {
	if cap(r.buf) < int(f.body) {
		r.buf = make([]byte, f.body)
	}
	off += stagingHeadSize
	b, err := r.read(r.buf[:f.body], off)
	if err != nil {
		return nil, err
	}
	at, end := off+int64(f.body), off+int64(f.body)+int64(f.payload)
	r.entries = r.entries[:0]
	for i := range int(f.count) {
		e := stagingEntry{off: off + int64(i*stagingEntrySize)}
		var ok bool
		e.rec, e.at, ok = decodeEntry(b[min(len(b), i*stagingEntrySize):], &r.header, &r.id, e.off)
		if !ok || e.at != 0 && e.at != at || e.rec.Offset < f.low || e.rec.Offset+e.rec.Length > f.high {
			return nil, r.damaged(e.off, "no record %d of the %d in this frame", i+1, f.count)
		}
		at += int64(e.rec.PayloadLength)
		r.entries = append(r.entries, e)
	}
	if at != end {
		return nil, r.damaged(off, "payloads of %d bytes, the frame says %d", f.payload-uint32(end-at), f.payload)
	}
	return r.entries, nil
}

// forward calls fn for every frame up to an offset, all of which were checked once.
func (r *stagingFile) forward(tail int64, fn func(off int64, f *stagingHead) error) error {
	for off := int64(stagingAlign); off < tail; {
		f, ok, err := r.head(off)
		if err != nil {
			return err
		}
		if !ok {
			return r.damaged(off, "no frame")
		}
		if err := fn(off, &f); err != nil {
			return err
		}
		off = f.next(off)
	}
	return nil
}

// errStagingDone ends a walk early.
var errStagingDone = errors.New("done")

// backward calls fn for every frame from the last one on.
func (r *stagingFile) backward(last int64, fn func(off int64, f *stagingHead) error) error {
	for off := last; off != 0; {
		f, ok, err := r.head(off)
		if err != nil {
			return err
		}
		if !ok {
			return r.damaged(off, "no frame")
		}
		if err := fn(off, &f); err == errStagingDone {
			return nil
		} else if err != nil {
			return err
		}
		off = f.prev
	}
	return nil
}

// reader reads all that was appended, which is written first.
func (s *Staging) reader() (*stagingFile, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	if err := s.flush(); err != nil {
		return nil, err
	}
	s.note()
	return s.view(), nil
}

// view reads all that is written.
func (s *Staging) view() *stagingFile {
	return &stagingFile{f: s.file, path: s.path, id: s.id, header: s.Header(), size: s.tail}
}

// Each calls fn for every record in order of Seq, those left out that are wholly void. at is for ReadPayload.
// Of a record that is void in part the rest is to be taken: Pages tells; Plan does it.
//
// Where there was a Rebase, a set of pages and one bit for each record are kept in memory meanwhile.
func (s *Staging) Each(fn func(rec StagingRecord, at int64) error) error {
	r, err := s.reader()
	if err != nil {
		return err
	}
	var dead bitmap
	if s.rebases > 0 {
		dead = make(bitmap, (s.records+63)/64)
		err := s.eachDead(r, func(index uint64, _ *stagingEntry) { dead.set(index) })
		if err != nil {
			return err
		}
	}
	index := uint64(0)
	return r.forward(s.tail, func(off int64, f *stagingHead) error {
		if f.kind != frameRecords {
			return nil
		}
		entries, err := r.table(off, f)
		if err != nil {
			return err
		}
		for i := range entries {
			if dead == nil || !dead.has(index) {
				if err := fn(entries[i].rec, entries[i].at); err != nil {
					return err
				}
			}
			index++
		}
		return nil
	})
}

type bitmap []uint64

func (b bitmap) set(i uint64)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) has(i uint64) bool { return b[i/64]&(1<<(i%64)) != 0 }

// eachDead calls fn for every record that is wholly void, from the last one on. It walks backwards because
// what makes a record void stands behind it.
func (s *Staging) eachDead(r *stagingFile, fn func(index uint64, e *stagingEntry)) error {
	voids := blockdev.NewPageSet(r.header.pages())
	index := s.records
	return r.backward(s.last, func(off int64, f *stagingHead) error {
		switch f.kind {
		case frameRebase:
			rb, err := r.rebase(off, f)
			if err != nil {
				return err
			}
			for _, v := range rb.voids {
				voids.Add(pageRange(v.Offset, v.Length))
			}
		case frameRecords:
			index -= uint64(f.count)
			if first, count := pageRange(f.low, f.high-f.low); !meets(voids, first, count) {
				return nil
			}
			entries, err := r.table(off, f)
			if err != nil {
				return err
			}
			for i := len(entries) - 1; i >= 0; i-- {
				first, count := pageRange(entries[i].rec.Offset, entries[i].rec.Length)
				if !voids.Contains(first) {
					continue
				}
				if _, n, _ := voids.NextRun(first, count); n == count {
					fn(index+uint64(i), &entries[i])
				}
			}
		}
		return nil
	})
}

// meets reports whether a set has a page in a range.
func meets(set *blockdev.PageSet, first, count uint64) bool {
	at, _, ok := set.NextRun(first, 1)
	return ok && at < first+count
}

// rebase reads a rebase that was checked once.
func (r *stagingFile) rebase(off int64, f *stagingHead) (stagingRebase, error) {
	body, ok, err := r.body(off, f)
	if err != nil {
		return stagingRebase{}, err
	}
	if !ok {
		return stagingRebase{}, r.damaged(off, "the rebase does not check")
	}
	rb, err := decodeRebase(body, &r.header)
	if err != nil {
		return rb, r.damaged(off, "%v", err)
	}
	return rb, nil
}

// punch gives back the room of all payloads that are wholly void, as far as they make whole blocks of the
// file system. The rebases that made them void are durable. Done again it changes nothing, so that Open
// repeats what a crash may have undone. What cannot be given back still counts in Bytes.
func (s *Staging) punch() {
	hole, ok := s.file.(Puncher)
	if !ok || s.rebases == 0 {
		return
	}
	var punched int64
	var failed bool
	run := blockdev.Extent{} // neighbours, which come in descending order
	flush := func() {
		from, to := alignStaging(run.Offset), run.End()/stagingAlign*stagingAlign
		if from < to && !failed {
			if failed = hole.Punch(from, to-from) != nil; !failed {
				punched += to - from
			}
		}
		run = blockdev.Extent{}
	}
	err := s.eachDead(s.view(), func(_ uint64, e *stagingEntry) {
		n := int64(e.rec.PayloadLength)
		if n == 0 {
			return
		}
		if run.Length > 0 && e.at+n == run.Offset {
			run = blockdev.Extent{Offset: e.at, Length: n + run.Length}
			return
		}
		flush()
		run = blockdev.Extent{Offset: e.at, Length: n}
	})
	if err == nil {
		flush()
	}
	s.mu.Lock()
	s.now.punched = punched
	s.mu.Unlock()
}

// ReadPayload fills dst, of PayloadLength bytes, with the payload of a record from Each or Plan. Whether its
// raw bytes have the record's hash is for the caller to see.
func (s *Staging) ReadPayload(rec StagingRecord, at int64, dst []byte) error {
	if len(dst) != rec.PayloadLength || at < stagingAlign {
		return fmt.Errorf("%w: payload of %d bytes at %d, read into %d", ErrStaging, rec.PayloadLength, at, len(dst))
	}
	n, err := s.file.ReadAt(dst, at)
	if n == len(dst) {
		return nil
	}
	path := stagingPath(s.dir, s.Header().Epoch)
	if err == io.EOF {
		return &DamagedError{path, at + int64(n), fmt.Sprintf("it ends within the payload of record %d", rec.Seq)}
	}
	return fmt.Errorf("read payload of record %d from %s at %d: %w", rec.Seq, path, at, err)
}
