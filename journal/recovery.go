package journal

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// Replay is given each record of a log in order. The body is the callee's only during the call. What was
// replayed counts only when Open succeeds.
type Replay func(lsn LSN, t Type, body []byte) error

// Open opens the log in a folder, or makes one, and replays it. See docs/FORMATS.md for the steps. When
// it returns, every record that was replayed is durable.
//
// ErrDamaged: records that were durable are not there any more. ErrVersion, ErrKind: another program's,
// or purpose's. In these cases nothing was changed. One process at a time (LockDir).
func Open(fs FS, dir string, o Options, replay Replay) (*Log, error) {
	l, err := open(fs, dir, o.withDefaults(), replay)
	if err == nil && l.opts.Spares > 0 {
		err = l.prepareRoom()
	}
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", dir, err)
	}
	return l, nil
}

func open(fs FS, dir string, o Options, replay Replay) (*Log, error) {
	if err := fs.Mkdir(dir); err != nil {
		return nil, err
	}
	segs, err := listSegments(fs, dir, o.Kind)
	if err != nil {
		return nil, err
	}
	if err := removeTemporary(fs, dir); err != nil {
		return nil, err
	}
	// A former process may have failed between a name and its sync: what counts from here on must stay.
	if err := fs.SyncDir(dir); err != nil {
		return nil, err
	}
	var oldest segmentHeader
	if len(segs) > 0 {
		oldest = segs[0].header
	}
	verify := func() error {
		if o.verify == nil {
			return nil
		}
		return o.verify(oldest)
	}
	if len(segs) == 0 {
		if err := verify(); err != nil {
			return nil, err
		}
		return createLog(fs, dir, o)
	}
	for i, s := range segs[:len(segs)-1] {
		if err := replaySealed(fs, s, segs[i+1].header.first, replay); err != nil {
			return nil, err
		}
	}
	last := segs[len(segs)-1]
	f, err := fs.Open(last.path, true)
	if err != nil {
		return nil, err
	}
	next, tail, err := recoverLast(f, last, replay, verify)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return newLog(fs, dir, o, f, segs, next, tail), nil
}

// segment is a segment as it was found.
type segment struct {
	path   string
	header segmentHeader
	size   int64
}

func (s *segment) damaged(off int64, format string, args ...any) error {
	return &DamagedError{s.path, off, fmt.Sprintf(format, args...)}
}

func (s *segment) place(off int64) place { return place{s.header.id, s.header.number, off} }

// listSegments reads the headers in a folder and checks that they make one log without a gap.
func listSegments(fs FS, dir string, kind Kind) ([]*segment, error) {
	names, err := fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var segs []*segment
	for _, name := range names {
		number, ok := segmentNumber(name)
		if !ok {
			continue
		}
		s, err := readSegmentHeader(fs, filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if s.header.kind != kind {
			return nil, fmt.Errorf("%s %w: %d, not %d", s.path, ErrKind, s.header.kind, kind)
		}
		if s.header.number != number {
			return nil, s.damaged(0, "it is segment %d by its header", s.header.number)
		}
		if len(segs) > 0 {
			if err := follows(segs[len(segs)-1], s); err != nil {
				return nil, err
			}
		}
		segs = append(segs, s)
	}
	return segs, nil
}

// follows checks that b is the segment behind a.
func follows(a, b *segment) error {
	switch {
	case b.header.number != a.header.number+1:
		return b.damaged(0, "segment %d is missing before it", b.header.number-1)
	case b.header.id != a.header.id:
		return b.damaged(0, "it belongs to another log than segment %d", a.header.number)
	case b.header.first < a.header.first:
		return b.damaged(0, "it begins with LSN %d, segment %d with %d", b.header.first, a.header.number, a.header.first)
	}
	return nil
}

func readSegmentHeader(fs FS, path string) (*segment, error) {
	f, err := fs.Open(path, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := &segment{path: path}
	if s.size, err = f.Size(); err != nil {
		return nil, err
	}
	b := make([]byte, min(segmentHeaderSize, s.size))
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	}
	if s.header, err = decodeSegmentHeader(b); err != nil {
		if errors.Is(err, ErrDamaged) {
			return nil, s.damaged(0, "%v", err)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// removeTemporary removes what a crash left of segments that were being made. They hold no record.
func removeTemporary(fs FS, dir string) error {
	names, err := fs.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, segmentSuffix+tempSuffix) {
			if err := fs.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// replaySealed replays a segment that has a successor, which proves that all of it was durable: its
// records must reach up to the successor's first.
func replaySealed(fs FS, s *segment, until LSN, replay Replay) error {
	f, err := fs.Open(s.path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	end, err := replaySegment(f, s, until, replay)
	if err != nil {
		return err
	}
	if end.next != until {
		return s.damaged(end.off, "no record %d, though segment %d begins with %d", end.next, s.header.number+1, until)
	}
	return nil
}

// recoverLast replays the last segment, decides what its end is, and makes durable what is kept.
func recoverLast(f File, s *segment, replay Replay, verify func() error) (next LSN, tail int64, err error) {
	end, err := replaySegment(f, s, 0, replay)
	if err != nil {
		return 0, 0, err
	}
	if end.off < s.size {
		if err := checkTorn(f, s, end); err != nil {
			return 0, 0, err
		}
	}
	if err := verify(); err != nil {
		return 0, 0, err
	}
	if err := settleTail(f, s, end); err != nil {
		return 0, 0, fmt.Errorf("settle the tail of %s: %w", s.path, err)
	}
	s.size = end.off
	return end.next, end.off, nil
}

// segmentEnd is where the unbroken run of records from a segment's beginning ends.
type segmentEnd struct {
	off     int64 // of the first byte that is no record
	next    LSN   // that a record at off would have
	durable LSN   // highest LSN that header or records prove to have been durable
}

// replaySegment walks the unbroken run of records; with until it stops before that LSN.
func replaySegment(f File, s *segment, until LSN, replay Replay) (segmentEnd, error) {
	end := segmentEnd{off: segmentHeaderSize, next: s.header.first, durable: s.header.first - 1}
	w := window{f: f, size: s.size}
	for end.next != until {
		fr, body, err := readRecord(&w, s, end.off)
		if err != nil {
			return end, err
		}
		if fr.typ == 0 || fr.lsn != end.next {
			return end, nil
		}
		if replay != nil {
			if err := replay(fr.lsn, fr.typ, body); err != nil {
				return end, fmt.Errorf("replay record %d at offset %d of %s: %w", fr.lsn, end.off, s.path, err)
			}
		}
		end.off += frameSize(len(body))
		end.next++
		end.durable = max(end.durable, fr.durable)
	}
	return end, nil
}

// readRecord reads the record at off. A frame of type 0 says that there is none. The body lies in the
// window.
func readRecord(w *window, s *segment, off int64) (frame, []byte, error) {
	head, err := w.at(off, frameHeaderSize)
	if err != nil {
		return frame{}, nil, err
	}
	fr, ok := decodeFrame(head, s.place(off))
	if !ok || off+frameSize(int(fr.length)) > s.size { // it was never written as a whole, be it for its padding
		return frame{}, nil, nil
	}
	whole, err := w.at(off, frameHeaderSize+int(fr.length))
	if err != nil {
		return frame{}, nil, err
	}
	if len(whole) < frameHeaderSize || !fr.bodyIs(whole, whole[frameHeaderSize:]) {
		return frame{}, nil, nil
	}
	return fr, whole[frameHeaderSize:], nil
}

// checkTorn decides about a last segment whose run of records ends before the file does. The bytes
// behind the hole were written after it, but unless a sync came in between they may have reached the
// disk without it: then nothing in or behind the hole was ever promised to anybody, and all of it is cut.
//
// A record behind the hole that says "durable up to" the hole or beyond proves that a sync did come in
// between. Then a promise was broken by the disk, and that is damage. A frame header suffices as proof:
// it has a checksum of its own, and its body may be torn.
func checkTorn(f File, s *segment, end segmentEnd) error {
	w := window{f: f, size: s.size}
	for off := end.off; off+frameHeaderSize <= s.size; off += frameAlign {
		head, err := w.at(off, frameHeaderSize)
		if err != nil {
			return err
		}
		fr, ok := decodeFrame(head, s.place(off))
		if ok && fr.durable >= end.next {
			return s.damaged(end.off, "no record %d, but record %d at offset %d says that it was durable",
				end.next, fr.lsn, off)
		}
	}
	return nil
}

// settleTail makes the end of the log what Open says it is: cut, and durable.
//
// Records that nothing proves durable are written once more before the sync. They were read, but perhaps
// out of a page cache whose write-back had failed and been forgotten; a sync alone would then succeed
// and mean nothing.
func settleTail(f File, s *segment, end segmentEnd) error {
	if end.off < s.size {
		// Durable before anything is appended: a rest of the torn batch must never stand behind a new
		// record and look like its successor.
		if err := f.Truncate(end.off); err != nil {
			return err
		}
	}
	off, err := offsetOf(f, s, end)
	if err != nil {
		return err
	}
	buf := make([]byte, min(windowSize, end.off-off))
	for off < end.off {
		part := buf[:min(int64(len(buf)), end.off-off)]
		if _, err := f.ReadAt(part, off); err != nil {
			return err
		}
		if err := writeAt(f, part, off); err != nil {
			return err
		}
		off += int64(len(part))
	}
	return f.Sync()
}

// offsetOf finds the first record of the run that is not proven durable.
func offsetOf(f File, s *segment, end segmentEnd) (int64, error) {
	w := window{f: f, size: end.off}
	off := int64(segmentHeaderSize)
	for lsn := s.header.first; lsn <= end.durable; lsn++ {
		head, err := w.at(off, frameHeaderSize)
		if err != nil {
			return 0, err
		}
		fr, ok := decodeFrame(head, s.place(off))
		if !ok {
			return 0, fmt.Errorf("record %d changed while it was read", lsn)
		}
		off += frameSize(int(fr.length))
	}
	return off, nil
}

const windowSize = 256 << 10

// window reads a file through one buffer, forwards.
type window struct {
	f    File
	size int64 // of the file
	off  int64 // of buf in the file
	buf  []byte
}

// at returns n bytes at off, or fewer where the file ends. They are valid until the next call.
func (w *window) at(off int64, n int) ([]byte, error) {
	n = int(max(0, min(int64(n), w.size-off)))
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		want := int(min(int64(max(n, windowSize)), w.size-off))
		if cap(w.buf) < want {
			w.buf = make([]byte, want)
		}
		w.buf, w.off = w.buf[:max(want, 0)], off
		if _, err := w.f.ReadAt(w.buf, off); err != nil && err != io.EOF {
			return nil, err
		}
	}
	return w.buf[off-w.off:][:n], nil
}
