package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// OpenStaging opens the staging of an epoch and recovers it; docs/FORMATS.md numbers the steps. What it
// shows is that of the last synced point, which is durable when it returns; what stands behind is cut. A
// Rebase that a crash interrupted is finished. Payloads are not read.
//
// fs.ErrNotExist: no file is that epoch's. ErrDamaged: what a synced point proves is not there, or
// o.Vouched is not reached. ErrVersion: another program's. In these cases nothing was changed.
func OpenStaging(fs FS, dir string, epoch uint64, o StagingOptions) (*Staging, error) {
	s, err := openStaging(fs, dir, epoch, o.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("open staging of epoch %d in %s: %w", epoch, dir, err)
	}
	return s, nil
}

func openStaging(fsys FS, dir string, epoch uint64, o StagingOptions) (*Staging, error) {
	path, err := findStaging(fsys, dir, epoch)
	if err != nil {
		return nil, err
	}
	f, err := fsys.Open(path, true)
	if err != nil {
		return nil, err
	}
	s, err := recoverStaging(fsys, dir, o, f, path, epoch)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func recoverStaging(fsys FS, dir string, o StagingOptions, f File, path string, epoch uint64) (*Staging, error) {
	r, end, err := scanStaging(f, path)
	if err != nil {
		return nil, err
	}
	if err := checkStagingEnd(r, end, o.Vouched); err != nil {
		return nil, err
	}
	if end.epoch != epoch {
		return nil, r.damaged(end.stop, "it is of epoch %d by its records, which its name may not be ahead of", end.epoch)
	}
	s := newStaging(fsys, dir, o, r.header)
	s.id, s.file, s.path = r.id, f, path
	if err := s.replay(r, end); err != nil {
		return nil, err
	}
	if err := s.settle(r, end); err != nil {
		return nil, fmt.Errorf("settle the tail of %s: %w", path, err)
	}
	// Its name too: a former process may have failed between a rename and the sync of the folder.
	if err := s.publish(); err != nil {
		return nil, err
	}
	s.punch()
	return s, nil
}

// stagingEnd is what the heads of the frames and the synced points tell.
type stagingEnd struct {
	stop  int64 // the first place where a frame should begin and none does
	mark  int64 // offset of the last synced point; 0: none
	point StagingPoint
	epoch uint64
	extra []byte // of a footer that is the last synced point
	seal  bool
	head  stagingHead // of the last synced point
}

// scanStaging reads the header, the heads of all frames and the synced points, up to the first place where
// none stands. Only damage to the header is damage here: it was durable before the file had its name.
func scanStaging(f File, path string) (*stagingFile, *stagingEnd, error) {
	r := &stagingFile{f: f, path: path}
	var err error
	if r.size, err = f.Size(); err != nil {
		return nil, nil, err
	}
	b, err := r.read(make([]byte, stagingHeaderSize), 0)
	if err != nil {
		return nil, nil, err
	}
	if r.header, r.id, err = decodeStagingHeader(b); err != nil {
		if errors.Is(err, ErrDamaged) {
			return nil, nil, r.damaged(0, "%v", err)
		}
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	end := &stagingEnd{stop: stagingAlign, epoch: r.header.Epoch}
	prev, seq := int64(0), uint64(0)
	for {
		head, ok, err := r.head(end.stop)
		if err != nil {
			return nil, nil, err
		}
		if !ok || head.prev != prev || head.seq < seq {
			return r, end, nil
		}
		if head.kind != frameRecords {
			if ok, err := end.takeMark(r, &head); err != nil || !ok {
				return r, end, err
			}
		}
		prev, seq = end.stop, head.seq
		end.stop = head.next(end.stop)
	}
}

// takeMark reads the synced point at stop; ok is false where it does not check.
func (end *stagingEnd) takeMark(r *stagingFile, head *stagingHead) (ok bool, err error) {
	body, ok, err := r.body(end.stop, head)
	if err != nil || !ok {
		return false, err
	}
	point := decodePoint(body)
	if point.Seq != head.seq {
		return false, nil
	}
	epoch := end.epoch
	if head.kind == frameRebase {
		rb, err := decodeRebase(body, &r.header)
		if err != nil || rb.old != epoch {
			return false, nil
		}
		epoch = rb.new
	}
	end.mark, end.head, end.point, end.epoch = end.stop, *head, point, epoch
	end.seal, end.extra = false, nil
	if head.kind == frameFooter {
		end.seal, end.extra = true, decodeFooter(body).extra
	}
	return true, nil
}

// checkStagingEnd decides about a file in which the row of frames ends at stop. What was written since the
// last sync may be there in any part, and none of it was promised. But a frame behind stop that says
// "durable" beyond it proves that what stood there was durable; and so does the name of the file for its
// first synced point.
func checkStagingEnd(r *stagingFile, end *stagingEnd, vouched uint64) error {
	w := window{f: r.f, size: r.size}
	for off := end.stop; off+stagingHeadSize <= r.size; off += stagingAlign {
		b, err := w.at(off, stagingHeadSize)
		if err != nil {
			return err
		}
		if f, ok := decodeStagingHead(b, &r.id, off); ok && f.durable > end.stop {
			return r.damaged(end.stop, "no frame, but the one at offset %d says that it was durable", off)
		}
	}
	switch {
	case end.mark == 0:
		return r.damaged(end.stop, "no synced point, though the file has its final name")
	case end.point.Seq < vouched:
		return r.damaged(end.stop, "the last synced point is at %d, the journal knows one at %d", end.point.Seq, vouched)
	}
	return nil
}

// replay checks every table and every synced point, and learns pages and counts.
func (s *Staging) replay(r *stagingFile, end *stagingEnd) error {
	err := r.forward(end.head.end(end.mark), func(off int64, f *stagingHead) error {
		switch f.kind {
		case frameRecords:
			return s.replayTable(r, off, f)
		case frameRebase:
			rb, err := r.rebase(off, f)
			if err != nil {
				return err
			}
			if rb.seq <= s.seq {
				return r.damaged(off, "rebase at %d behind record %d", rb.seq, s.seq)
			}
			s.takeRebase(&rb)
		case frameFooter:
			body, ok, err := r.body(off, f)
			if err != nil {
				return err
			}
			if !ok {
				return r.damaged(off, "the footer does not check")
			}
			if foot := decodeFooter(body); foot.base != r.header.Base || foot.pages != s.pages.Count() {
				return r.damaged(off, "footer of %d pages on base %d, not %d on %d", foot.pages, foot.base,
					s.pages.Count(), r.header.Base)
			}
		}
		s.seq = f.seq
		return nil
	})
	s.last, s.tail = end.mark, end.head.next(end.mark)
	s.now.point, s.now.sealed, s.now.extra = end.point, end.seal, end.extra
	s.note()
	return err
}

func (s *Staging) replayTable(r *stagingFile, off int64, f *stagingHead) error {
	entries, err := r.table(off, f)
	if err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		if e.rec.Seq <= s.seq {
			return r.damaged(e.off, "record %d behind %d", e.rec.Seq, s.seq)
		}
		s.seq = e.rec.Seq
		s.pages.Add(pageRange(e.rec.Offset, e.rec.Length))
	}
	if s.seq != f.seq {
		return r.damaged(off, "the last record is %d, the frame says %d", s.seq, f.seq)
	}
	s.records += uint64(f.count)
	return nil
}

// settle makes the end of the file what Open says it is: cut, and durable. The last synced point is written
// once more: perhaps it was read out of a page cache that had failed to write it. What stands before it was
// synced before it was written.
func (s *Staging) settle(r *stagingFile, end *stagingEnd) error {
	tail := end.head.end(end.mark)
	if tail < r.size {
		// Durable before anything is appended, as in a log.
		if err := s.file.Truncate(tail); err != nil {
			return err
		}
	}
	b, err := r.read(make([]byte, tail-end.mark), end.mark)
	if err != nil {
		return err
	}
	if f, ok := decodeStagingHead(b, &r.id, end.mark); !ok || f != end.head {
		return r.damaged(end.mark, "the synced point changed while it was read")
	}
	if err := writeAt(s.file, b, end.mark); err != nil {
		return err
	}
	return s.sync()
}

// ListStaging lists the epochs that have staging in a folder, in ascending order. It is for the start,
// before any Staging of the folder is open: it removes what a crash has left of files without a synced
// point. A file that cannot be read counts for the epoch of its name, so that OpenStaging says what ails it.
func ListStaging(fs FS, dir string) (epochs []uint64, err error) {
	files, err := listStaging(fs, dir)
	if err != nil {
		return nil, fmt.Errorf("list staging in %s: %w", dir, err)
	}
	for _, f := range files {
		if f.temporary {
			if err := fs.Remove(f.path); err != nil {
				return nil, fmt.Errorf("list staging in %s: %w", dir, err)
			}
			continue
		}
		if slices.Contains(epochs, f.epoch) {
			return nil, fmt.Errorf("list staging in %s: %w", dir,
				&DamagedError{f.path, 0, fmt.Sprintf("epoch %d has another file too", f.epoch)})
		}
		epochs = append(epochs, f.epoch)
	}
	slices.Sort(epochs)
	return epochs, nil
}

// RemoveStaging removes the staging of an epoch, which nobody has open, durably. Where there is none,
// nothing is to be done.
func RemoveStaging(fs FS, dir string, epoch uint64) error {
	if err := removeStaging(fs, dir, epoch); err != nil {
		return fmt.Errorf("remove staging of epoch %d in %s: %w", epoch, dir, err)
	}
	return nil
}

func removeStaging(fsys FS, dir string, epoch uint64) error {
	path := stagingPath(dir, epoch)
	if err := removeIfExists(fsys, path+tempSuffix); err != nil {
		return err
	}
	// The usual case looks at no other file: there may be a large one that grows meanwhile.
	have, err := epochOf(fsys, path, epoch)
	if errors.Is(err, fs.ErrNotExist) || err == nil && have != epoch {
		path, err = findStaging(fsys, dir, epoch)
	}
	if errors.Is(err, fs.ErrNotExist) {
		path, err = "", nil
	}
	if err == nil && path != "" {
		err = fsys.Remove(path)
	}
	if err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// findStaging finds the file of an epoch: the one with its name, or one that a crash kept from getting it.
func findStaging(fsys FS, dir string, epoch uint64) (path string, err error) {
	files, err := listStaging(fsys, dir)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if f.epoch != epoch || f.temporary {
			continue
		}
		if path != "" {
			return "", &DamagedError{f.path, 0, fmt.Sprintf("epoch %d is in %s too", epoch, path)}
		}
		path = f.path
	}
	if path == "" {
		return "", fs.ErrNotExist
	}
	return path, nil
}

// stagingName is a file of a folder.
type stagingName struct {
	path      string
	epoch     uint64 // by its records; where they cannot be read, and of a temporary one, by its name
	temporary bool
}

func listStaging(fsys FS, dir string) ([]stagingName, error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []stagingName
	for _, name := range names {
		bare, temporary := strings.CutSuffix(name, tempSuffix)
		epoch, ok := stagingEpoch(bare)
		if !ok {
			continue
		}
		f := stagingName{filepath.Join(dir, name), epoch, temporary}
		if !temporary {
			if f.epoch, err = epochOf(fsys, f.path, epoch); err != nil {
				return nil, err
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// epochOf is the epoch that a file belongs to, or named where records are missing: a file gets a name only
// when the record of that epoch is durable.
func epochOf(fsys FS, path string, named uint64) (uint64, error) {
	f, err := fsys.Open(path, false)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	_, end, err := scanStaging(f, path)
	if errors.Is(err, ErrDamaged) || errors.Is(err, ErrVersion) {
		return named, nil
	}
	if err != nil {
		return 0, err
	}
	return max(end.epoch, named), nil
}
