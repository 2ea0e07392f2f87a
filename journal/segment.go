package journal

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
)

// SegmentInfo describes a segment of an open log.
type SegmentInfo struct {
	Number uint64
	First  LSN   // of its first record, or of the next one where it has none
	Bytes  int64 // header and records, what is still buffered included
	Path   string
}

// A segment has its final name only when its header is durable; before that it has the temporary one,
// which Open removes.
const (
	segmentSuffix = ".seg"
	tempSuffix    = ".tmp"
)

func segmentPath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%010d%s", number, segmentSuffix))
}

// segmentNumber is the inverse of segmentPath for a bare name.
func segmentNumber(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) < 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0 && filepath.Base(segmentPath("", n)) == name
}

// createSegment makes a segment whose header and name are durable, of a spare where one is named, else
// with that much room. The file that it returns stands behind no record yet.
func createSegment(fs FS, dir string, h segmentHeader, spare string, room int64) (File, error) {
	path := segmentPath(dir, h.number)
	var f File
	var err error
	from := spare
	if spare != "" {
		f, err = fs.Open(spare, true)
	} else {
		from = path + tempSuffix
		f, err = fs.Create(from)
	}
	if err != nil {
		return nil, err
	}
	if room > 0 {
		err = allocate(f, room)
	}
	if err == nil {
		err = writeAt(f, h.encode(), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = fs.Rename(from, path)
	}
	if err == nil {
		err = fs.SyncDir(dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// createLog starts a log in an empty folder.
func createLog(fs FS, dir string, o Options) (*Log, error) {
	h := segmentHeader{kind: o.Kind, number: 1, first: 1}
	o.Random(h.id[:])
	var room int64
	if o.Spares > 0 {
		room = o.SegmentSize
	}
	f, err := createSegment(fs, dir, h, "", room)
	if err != nil {
		return nil, err
	}
	return newLog(fs, dir, o, f, []*segment{{path: segmentPath(dir, 1), header: h}}, 1, segmentHeaderSize), nil
}

// newLog is a log whose records below next are durable, and whose last segment is f and ends at tail.
func newLog(fs FS, dir string, o Options, f File, segs []*segment, next LSN, tail int64) *Log {
	l := &Log{fs: fs, dir: dir, opts: o, id: segs[0].header.id, file: f, next: next, durable: next - 1, tail: tail}
	l.idle.L = &l.mu
	for _, s := range segs {
		l.segs = append(l.segs, SegmentInfo{s.header.number, s.header.first, s.size, s.path})
	}
	return l
}

// writeAt writes all of p; a short write without an error is one.
func writeAt(f File, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := f.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}
