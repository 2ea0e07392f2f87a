package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/blkmirror/blkmirror/blockdev"
)

// StagingHeader says what a staging file belongs to.
type StagingHeader struct {
	Volume, Generation [16]byte
	Incarnation        uint64 // of the primary's process
	Base, Epoch        uint64 // the epoch takes a mirror from cut Base to cut Epoch
	BlockSize          uint32
	Size               int64 // of the volume, in bytes
}

// StagingKind says what a record does to its range.
type StagingKind uint8

// The kinds of records.
const (
	StagingData StagingKind = 1 // the payload, unpacked, is its content
	StagingZero StagingKind = 2 // it reads as zeroes
)

// StagingRecord is one record of an epoch. Its range is one of whole pages, of which the volume's last one
// may be short.
type StagingRecord struct {
	Seq            uint64
	Kind           StagingKind
	Codec          uint8    // as on the wire; opaque here; 0 for a Zero
	MayFree        bool     // of a Zero: the room may be given back
	Offset, Length int64    // raw bytes; a Data never crosses a block, a Zero has at most 1 GiB
	Hash           [32]byte // SHA-256 of the raw bytes; zero for a Zero
	PayloadLength  int      // 1 to MaxStagingPayload; 0 for a Zero
}

// StagingPoint names a state of the staging. The caller computes it; here it is only kept.
//
// Seq may be above that of the last record: some of the primary's records leave nothing here but their trace
// in the chain.
type StagingPoint struct {
	Seq, Records uint64
	Chain        [32]byte
}

// StagingOptions of a staging file. The zero value of a field stands for its default.
type StagingOptions struct {
	// BufferSize is how many bytes of payload wait in memory before Append writes them. At most 64 MiB,
	// default 1 MiB.
	BufferSize int

	// FrameRecords is how many records wait with their payloads. At most 1024, which is the default. 72 bytes
	// of the buffer are kept for each.
	FrameRecords int

	// PlanPieces is how many pieces Plan keeps in memory, 24 bytes each. Default 1,048,576.
	PlanPieces int

	// Vouched is for OpenStaging: the Seq of a point that was durable, as the caller knows from elsewhere
	// (the commit record). A file that ends below it is damaged, and nothing of it is cut.
	Vouched uint64

	// Random fills a file's identity. Default crypto/rand.
	Random func(b []byte)
}

const (
	defaultStagingBuffer = 1 << 20
	maxStagingBuffer     = 64 << 20
	defaultPlanPieces    = 1 << 20
)

func (o StagingOptions) withDefaults() StagingOptions {
	if o.BufferSize == 0 {
		o.BufferSize = defaultStagingBuffer
	}
	o.BufferSize = max(1, min(o.BufferSize, maxStagingBuffer))
	if o.FrameRecords <= 0 || o.FrameRecords > maxStagingEntries {
		o.FrameRecords = maxStagingEntries
	}
	if o.Random == nil {
		o.Random = func(b []byte) { rand.Read(b) } // which never fails
	}
	if o.PlanPieces == 0 {
		o.PlanPieces = defaultPlanPieces
	}
	return o
}

// Staging is the mirror's redo log of one epoch: partial, or committed and not yet applied.
//
// The file is a header and frames. A frame of records is a table of them and then their payloads, and is
// written in one piece when the buffer is full; the other frames are synced points, each written and synced
// after all before it was synced. So a synced point that is there proves that all before it was durable, and
// reading the tables costs a hundredth of reading the file. Nothing is kept in memory for each record: there
// are the set of pages, the buffer, and while Plan runs its pieces.
//
// Append, Sync, Rebase, Seal, Unseal and Close are one goroutine's; Each and Plan must not run beside them.
// Everything else may be called concurrently.
//
// A write, sync or rename that fails is sticky, as in Log: every later call fails with that cause until the
// file is opened anew.
type Staging struct {
	fs   FS
	dir  string
	opts StagingOptions
	id   stagingID
	file File

	// Of the one goroutine that appends.
	path      string // the file's present name
	published bool   // that name, or the one that Rebase replaced, is durable
	closed    bool
	seq       uint64 // of the last record, rebase or point
	tail      int64  // where the next frame begins
	last      int64  // offset of the last frame; 0: none
	durable   int64  // everything below is
	unsynced  bool   // something was written since the last sync
	unsealed  bool   // the last synced point is a footer that counts no more
	rebases   int
	records   uint64 // in the file and the buffer, void ones too
	pages     *blockdev.PageSet

	// The next frame of records. buf has room for head and table before the first payload.
	pending []StagingRecord
	buf     []byte

	mu  sync.Mutex
	now stagingNow
}

// stagingNow is what others may ask for at any time, under mu.
type stagingNow struct {
	header  StagingHeader
	point   StagingPoint
	sealed  bool
	extra   []byte
	pages   uint64
	bytes   int64 // up to tail and what is pending
	punched int64
	err     error // sticky
}

// table is the room for head and table at the beginning of the buffer.
func (s *Staging) table() int { return stagingHeadSize + s.opts.FrameRecords*stagingEntrySize }

// CreateStaging starts the staging of an epoch. The folder must exist. The file has a temporary name, and is
// gone after a crash, until the first Sync, Rebase or Seal has returned. fs.ErrExist: that epoch has a file.
func CreateStaging(fs FS, dir string, h StagingHeader, o StagingOptions) (*Staging, error) {
	s, err := createStaging(fs, dir, h, o.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("create staging of epoch %d in %s: %w", h.Epoch, dir, err)
	}
	return s, nil
}

func createStaging(fs FS, dir string, h StagingHeader, o StagingOptions) (*Staging, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	if err := mustNotExist(fs, stagingPath(dir, h.Epoch)); err != nil {
		return nil, err
	}
	path := stagingPath(dir, h.Epoch) + tempSuffix
	if err := removeIfExists(fs, path); err != nil { // of a former process: nothing of it was promised
		return nil, err
	}
	s := newStaging(fs, dir, o, h)
	o.Random(s.id[:])
	file, err := fs.Create(path)
	if err != nil {
		return nil, err
	}
	if err := writeAt(file, encodeStagingHeader(h, s.id), 0); err != nil {
		return nil, errors.Join(err, file.Close(), fs.Remove(path))
	}
	s.file, s.path, s.unsynced = file, path, true
	return s, nil
}

func newStaging(fs FS, dir string, o StagingOptions, h StagingHeader) *Staging {
	s := &Staging{fs: fs, dir: dir, opts: o, tail: stagingAlign, pages: blockdev.NewPageSet(h.pages())}
	s.now.header, s.now.bytes = h, s.tail
	return s
}

// Unseal makes of a sealed epoch without a commit record a partial one. It writes nothing: until the next
// synced point the footer would be found again.
func (s *Staging) Unseal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsealed = s.unsealed || s.now.sealed
	s.now.sealed, s.now.extra = false, nil
}

// Close releases the file. What no synced point covers is lost; a file without one is removed. It returns
// the sticky error, if there is one. A second call does nothing.
func (s *Staging) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	err := errors.Join(s.stickyError(), s.file.Close())
	if !s.published && strings.HasSuffix(s.path, tempSuffix) {
		err = errors.Join(err, s.fs.Remove(s.path))
	}
	s.buf, s.pending = nil, nil
	return err
}

// ready says whether something may be added.
func (s *Staging) ready() error {
	if err := s.usable(); err != nil {
		return err
	}
	if _, sealed := s.Sealed(); sealed {
		return fmt.Errorf("%s %w", s.path, ErrSealed)
	}
	return nil
}

func (s *Staging) usable() error {
	if s.closed {
		return fmt.Errorf("staging %s %w", s.path, ErrClosed)
	}
	return s.stickyError()
}

func (s *Staging) stickyError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.err
}

// fail makes the first failure the last word.
func (s *Staging) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.err == nil {
		s.now.err = fmt.Errorf("staging %s failed and must be opened anew: %w", s.path, err)
	}
	return s.now.err
}

// note tells others about pages and room.
func (s *Staging) note() {
	bytes := s.tail
	if n := len(s.pending); n > 0 {
		bytes = alignStaging(s.tail + int64(stagingHeadSize+n*stagingEntrySize+len(s.buf)-s.table()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.bytes, s.now.pages = bytes, s.pages.Count()
}

// Path is where the file is now: Rebase gives it another name.
func (s *Staging) Path() string { return stagingPath(s.dir, s.Header().Epoch) }

// Header is what the file belongs to now: Rebase changes the epoch.
func (s *Staging) Header() StagingHeader {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.header
}

// Point is the last synced point; the zero value where there is none yet.
func (s *Staging) Point() StagingPoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.point
}

// Sealed returns what Seal was given, where a footer is the last of the file.
func (s *Staging) Sealed() (extra []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.extra, s.now.sealed
}

// Pages is the set of pages that the epoch brings: all that were appended, void ones left out. It is the
// Staging's own: the caller must not change it, nor look at it while another goroutine appends or rebases.
func (s *Staging) Pages() *blockdev.PageSet { return s.pages }

// PageCount is Pages().Count() for any goroutine at any time.
func (s *Staging) PageCount() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.pages
}

// Bytes is the room that the file takes on disk, what is still buffered included, what was given back left
// out.
func (s *Staging) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.bytes - s.now.punched
}

// joinExtents makes one of those that touch; they ascend.
func joinExtents(in []blockdev.Extent) []blockdev.Extent {
	var out []blockdev.Extent
	for _, e := range in {
		if n := len(out); n > 0 && out[n-1].End() == e.Offset {
			out[n-1].Length += e.Length
			continue
		}
		out = append(out, e)
	}
	return out
}

const stagingSuffix = ".staging"

func stagingPath(dir string, epoch uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%010d%s", epoch, stagingSuffix))
}

// stagingEpoch is the inverse of stagingPath for a bare name.
func stagingEpoch(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, stagingSuffix)
	if !ok || len(digits) < 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0 && filepath.Base(stagingPath("", n)) == name
}

func mustNotExist(fsys FS, path string) error {
	f, err := fsys.Open(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(fmt.Errorf("%s: %w", path, fs.ErrExist), f.Close())
}

func removeIfExists(fsys FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
