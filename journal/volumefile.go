package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/bits"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/blkmirror/blkmirror/blockdev"
)

// The frozen numbers of the checkpoint file.
const (
	checkpointMagic       = "blkmckpt"
	checkpointFileVersion = 1
	checkpointFileHead    = 64
	pieceHead             = 16

	pieceSet   = 1
	piecePages = 2
	pieceHot   = 3
	pieceEnd   = 4

	setHead   = 16
	endSize   = 16
	chunkSize = 1 << 16 // pages

	formRuns   = 1
	formBitmap = 2

	maxPiece = 128 << 10 // bytes of a body

	// MaxSets and MaxSetName limit what a checkpoint holds.
	MaxSets    = 1024
	MaxSetName = 300 // bytes
)

// fullPiece is when the writer ends a piece: another chunk always fits behind it.
const fullPiece = 96 << 10

const (
	checkpointSuffix = ".ckpt"
	reserveName      = "reserve"
)

func checkpointPath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%010d%s", number, checkpointSuffix))
}

// checkpointNumber is the inverse of checkpointPath for a bare name.
func checkpointNumber(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, checkpointSuffix)
	if !ok || len(digits) < 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0 && filepath.Base(checkpointPath("", n)) == name
}

// checkpointFileHeader opens a checkpoint file. Pieces follow, one behind the other, up to the end.
//
//	 0       1       2       3       4       5       6       7
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| magic "blkmckpt"                                              |   0
//	+-------------------------------+-------------------------------+
//	| version = 1                   | zero                          |   8
//	+-------------------------------+-------------------------------+
//	| log id                                                        |  16
//	|                                                               |  24
//	+---------------------------------------------------------------+
//	| number of the checkpoint                                      |  32
//	+---------------------------------------------------------------+
//	| zero                                                          |  40
//	|                                                               |  48
//	+-------------------------------+-------------------------------+
//	| zero                          | CRC32C of bytes 0 to 59       |  56
//	+-------------------------------+-------------------------------+
type checkpointFileHeader struct {
	id     logID
	number uint64
}

func (h checkpointFileHeader) encode() []byte {
	b := make([]byte, checkpointFileHead)
	copy(b, checkpointMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], checkpointFileVersion)
	copy(b[16:32], h.id[:])
	le.PutUint64(b[32:], h.number)
	le.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

// decodeCheckpointFileHeader tells another version apart from damage, as decodeSegmentHeader does.
func decodeCheckpointFileHeader(b []byte) (h checkpointFileHeader, err error) {
	if len(b) < checkpointFileHead || string(b[:8]) != checkpointMagic {
		return h, fmt.Errorf("no checkpoint magic: %w", ErrDamaged)
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != checkpointFileVersion {
		return h, fmt.Errorf("checkpoint %w: %d, known is %d", ErrVersion, v, checkpointFileVersion)
	}
	if got, want := crc32.Checksum(b[:60], castagnoli), le.Uint32(b[60:]); got != want {
		return h, fmt.Errorf("checkpoint header checksum is %08x, not %08x: %w", got, want, ErrDamaged)
	}
	copy(h.id[:], b[16:32])
	h.number = le.Uint64(b[32:])
	return h, nil
}

// A piece of a checkpoint file. Its place, which seeds the checksum, is log id, number of the checkpoint
// and offset of the piece in the file.
//
//	 0       1       2       3       4       5       6       7
//	+-------------------------------+-------+-----------------------+
//	| length of the body            | type  | zero                  |   0
//	+-------------------------------+-------+-----------------------+
//	| zero                          | CRC32C of place, 0 to 11, body|   8
//	+-------------------------------+-------------------------------+
//	| body                                                          |  16
//	+---------------------------------------------------------------+
//
// Bodies, by type:
//
//	1  set: begins a set
//	   +---------------------------------------------------------------+
//	   | length: how many pages it could hold                          |   0
//	   +---------------------------------------------------------------+
//	   | count: how many pages it holds                                |   8
//	   +---------------------------------------------------------------+
//	   | name, 1 to 300 bytes                                          |  16
//	   +---------------------------------------------------------------+
//	2  pages of the set begun last, in chunks of 65,536, ascending, empty ones left out
//	   +---------------+-------+---------------------------------------+
//	   | chunk         | form=1| number of runs; for each: gap, length |
//	   +---------------+-------+---------------------------------------+
//	   | chunk         | form=2| bitmap: bit i of byte j is page 8j+i  |
//	   +---------------+-------+---------------------------------------+
//	3  hot regions, ascending
//	   +---------------------------------------------------------------+
//	   | for each: gap                                                 |   0
//	   +---------------------------------------------------------------+
//	4  end
//	   +---------------------------------------------------------------+
//	   | number of sets                                                |   0
//	   +---------------------------------------------------------------+
//	   | number of hot regions                                         |   8
//	   +---------------------------------------------------------------+
//
// Chunk, number of runs, gap and length are varints: 7 bits to a byte, the lowest first, bit 7: more follow.
// A chunk is told by how many chunks lie between it and the one before it in the set, a gap is how many
// pages (regions) lie between this run (region) and the one before it in the chunk (checkpoint), a length
// is 1 less than the run's. The bitmap of a set's last chunk ends with the byte that its last page is in.
func sealPiece(b []byte, typ byte, at place) {
	le := binary.LittleEndian
	clear(b[:pieceHead])
	le.PutUint32(b[0:], uint32(len(b)-pieceHead))
	b[4] = typ
	le.PutUint32(b[12:], pieceSum(b, at))
}

func pieceSum(b []byte, at place) uint32 {
	return crc32.Update(crc32.Update(at.seed(), castagnoli, b[:12]), castagnoli, b[pieceHead:])
}

// checkpointWriter writes a checkpoint file in pieces.
type checkpointWriter struct {
	f    File
	head checkpointFileHeader
	off  int64
	sum  uint32
	buf  []byte // the piece that is being filled, its header included
	typ  byte

	runs, bitmap []byte // of one chunk
}

// writeCheckpointFile returns size and checksum of what it has written. Nothing is synced.
func writeCheckpointFile(f File, h checkpointFileHeader, sets []NamedSet, hot []uint64) (size int64, sum uint32, err error) {
	w := &checkpointWriter{f: f, head: h, buf: make([]byte, pieceHead, maxPiece)}
	if err := w.put(h.encode()); err != nil {
		return 0, 0, err
	}
	for _, s := range sets {
		if err := w.set(s); err != nil {
			return 0, 0, err
		}
	}
	next := uint64(0)
	for _, r := range hot {
		if err := w.begin(pieceHot); err != nil {
			return 0, 0, err
		}
		w.buf = binary.AppendUvarint(w.buf, r-next)
		next = r + 1
	}
	if err := w.flush(); err != nil {
		return 0, 0, err
	}
	w.typ = pieceEnd
	w.buf = binary.LittleEndian.AppendUint64(w.buf, uint64(len(sets)))
	w.buf = binary.LittleEndian.AppendUint64(w.buf, uint64(len(hot)))
	err = w.flush()
	return w.off, w.sum, err
}

func (w *checkpointWriter) put(b []byte) error {
	if err := writeAt(w.f, b, w.off); err != nil {
		return err
	}
	w.sum = crc32.Update(w.sum, castagnoli, b)
	w.off += int64(len(b))
	return nil
}

// begin makes sure that the piece that is being filled has this type and room.
func (w *checkpointWriter) begin(typ byte) error {
	if w.typ != typ || len(w.buf) > fullPiece {
		if err := w.flush(); err != nil {
			return err
		}
		w.typ = typ
	}
	return nil
}

func (w *checkpointWriter) flush() error {
	if w.typ == 0 {
		return nil
	}
	sealPiece(w.buf, w.typ, place{w.head.id, w.head.number, w.off})
	err := w.put(w.buf)
	w.buf, w.typ = w.buf[:pieceHead], 0
	return err
}

func (w *checkpointWriter) set(s NamedSet) error {
	if err := w.flush(); err != nil {
		return err
	}
	w.typ = pieceSet
	w.buf = binary.LittleEndian.AppendUint64(w.buf, s.Pages.Len())
	w.buf = binary.LittleEndian.AppendUint64(w.buf, s.Pages.Count())
	w.buf = append(w.buf, s.Name...)
	if err := w.flush(); err != nil {
		return err
	}
	next := uint64(0) // chunk
	for page, ok := uint64(0), true; ; {
		if page, _, ok = s.Pages.NextRun(page, 1); !ok {
			return nil
		}
		c := page / chunkSize
		if err := w.begin(piecePages); err != nil {
			return err
		}
		w.buf = binary.AppendUvarint(w.buf, c-next)
		w.chunk(s.Pages, c*chunkSize, min((c+1)*chunkSize, s.Pages.Len()))
		next, page = c+1, (c+1)*chunkSize
	}
}

// chunk appends the pages in [first, end) in the shorter of two forms.
func (w *checkpointWriter) chunk(pages *blockdev.PageSet, first, end uint64) {
	size := int(end-first+7) / 8
	w.runs, w.bitmap = w.runs[:0], append(w.bitmap[:0], make([]byte, size)...)
	runs, last := 0, first
	for at := first; at < end; {
		from, count, ok := pages.NextRun(at, end-at)
		if !ok || from >= end {
			break
		}
		count = min(count, end-from)
		if len(w.runs) < size {
			w.runs = binary.AppendUvarint(w.runs, from-last)
			w.runs = binary.AppendUvarint(w.runs, count-1)
		}
		setBits(w.bitmap, int(from-first), int(from+count-first))
		runs++
		at, last = from+count, from+count
	}
	if len(w.runs) < size {
		w.buf = append(w.buf, formRuns)
		w.buf = binary.AppendUvarint(w.buf, uint64(runs))
		w.buf = append(w.buf, w.runs...)
		return
	}
	w.buf = append(w.buf, formBitmap)
	w.buf = append(w.buf, w.bitmap...)
}

// setBits sets the bits [lo, hi).
func setBits(bitmap []byte, lo, hi int) {
	for ; lo < hi && lo%8 != 0; lo++ {
		bitmap[lo/8] |= 1 << (lo % 8)
	}
	for ; lo+8 <= hi; lo += 8 {
		bitmap[lo/8] = 0xff
	}
	for ; lo < hi; lo++ {
		bitmap[lo/8] |= 1 << (lo % 8)
	}
}

// maxCheckpointBytes is what a checkpoint with these sets and so many hot regions takes at most, whatever
// pages are in the sets.
func maxCheckpointBytes(sets []NamedSet, hot int) int64 {
	const perChunk = chunkSize/8 + 2*binary.MaxVarintLen64
	sum := int64(2*checkpointFileHead + 2*pieceHead + endSize + hot*binary.MaxVarintLen64)
	for _, s := range sets {
		sum += int64((s.Pages.Len()+chunkSize-1)/chunkSize)*perChunk + setHead + MaxSetName + 2*pieceHead
	}
	return sum + sum/fullPiece*pieceHead
}

// checkpointLimits is what a checkpoint may hold; it is checked before anything is allocated.
type checkpointLimits struct {
	pages   uint64 // of a set
	regions uint64
}

func (f *VolumeFacts) limits() checkpointLimits {
	return checkpointLimits{pages: uint64(f.Size+4095) / 4096, regions: f.regions()}
}

// checkpointReader takes the pieces of a checkpoint file in their order.
type checkpointReader struct {
	limits checkpointLimits
	sets   []NamedSet
	hot    []uint64

	count uint64 // pages that the last set should hold
	chunk uint64 // the next one of the last set
	isHot bool   // hot regions have begun: no set may follow
	ended bool
}

// readCheckpointFile reads a checkpoint whose size and checksum its record has told.
func readCheckpointFile(fsys FS, dir string, id logID, r checkpointRecord, limits checkpointLimits) ([]NamedSet, []uint64, error) {
	path := checkpointPath(dir, r.number)
	damaged := func(off int64, err error) error {
		if errors.Is(err, ErrDamaged) {
			return &DamagedError{path, off, err.Error()}
		}
		return fmt.Errorf("%s at %d: %w", path, off, err)
	}
	f, err := fsys.Open(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &DamagedError{path, 0, "it is missing, and a record names it"}
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, nil, err
	}
	if size != r.size {
		return nil, nil, &DamagedError{path, 0, fmt.Sprintf("it has %d bytes, not %d", size, r.size)}
	}
	h, sum, off := checkpointFileHeader{id, r.number}, uint32(0), int64(0)
	c := &checkpointReader{limits: limits}
	err = eachPiece(f, size, h, func(at int64, b []byte) error {
		off, sum = at, crc32.Update(sum, castagnoli, b)
		if at == 0 {
			return nil
		}
		return c.piece(b[4], b[pieceHead:])
	})
	if err == nil {
		err = c.complete()
	}
	if err == nil && sum != r.sum {
		err = fmt.Errorf("checksum is %08x, not %08x: %w", sum, r.sum, ErrDamaged)
	}
	if err != nil {
		return nil, nil, damaged(off, err)
	}
	return c.sets, c.hot, nil
}

// eachPiece calls do with the header of a checkpoint file, at 0, and with each piece, header included.
func eachPiece(f File, size int64, want checkpointFileHeader, do func(off int64, b []byte) error) error {
	w := window{f: f, size: size}
	b, err := w.at(0, checkpointFileHead)
	if err != nil {
		return err
	}
	h, err := decodeCheckpointFileHeader(b)
	if err != nil {
		return err
	}
	if h != want {
		return fmt.Errorf("it is checkpoint %d of log %x: %w", h.number, h.id, ErrDamaged)
	}
	if err := do(0, b); err != nil {
		return err
	}
	for off := int64(checkpointFileHead); off < size; off += int64(len(b)) {
		if b, err = w.at(off, pieceHead); err != nil {
			return err
		}
		length := int64(-1)
		if len(b) == pieceHead {
			length = int64(binary.LittleEndian.Uint32(b))
		}
		if length < 0 || length > maxPiece || length > size-off-pieceHead {
			return fmt.Errorf("no piece at %d: %w", off, ErrDamaged)
		}
		if b, err = w.at(off, pieceHead+int(length)); err != nil {
			return err
		}
		sum := binary.LittleEndian.Uint32(b[12:])
		if b[5]|b[6]|b[7]|b[8]|b[9]|b[10]|b[11] != 0 || pieceSum(b, place{h.id, h.number, off}) != sum {
			return fmt.Errorf("piece at %d does not check: %w", off, ErrDamaged)
		}
		if err := do(off, b); err != nil {
			return err
		}
	}
	return nil
}

// piece takes one piece. One that checks and still makes no sense is damage too.
func (c *checkpointReader) piece(typ byte, b []byte) error {
	ok := !c.ended
	switch {
	case typ == pieceSet:
		ok = ok && !c.isHot && c.setEnds() && c.set(b)
	case typ == piecePages:
		ok = ok && !c.isHot && len(c.sets) > 0 && c.pages(b)
	case typ == pieceHot:
		ok = ok && c.setEnds() && c.regions(b)
		c.isHot = true
	case typ == pieceEnd:
		ok = ok && c.setEnds() && len(b) == endSize &&
			binary.LittleEndian.Uint64(b) == uint64(len(c.sets)) &&
			binary.LittleEndian.Uint64(b[8:]) == uint64(len(c.hot))
		c.ended = true
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("piece of type %d makes no sense: %w", typ, ErrDamaged)
	}
	return nil
}

func (c *checkpointReader) complete() error {
	if !c.ended {
		return fmt.Errorf("it has no end: %w", ErrDamaged)
	}
	return nil
}

// setEnds says whether the last set has all its pages.
func (c *checkpointReader) setEnds() bool {
	return len(c.sets) == 0 || c.sets[len(c.sets)-1].Pages.Count() == c.count
}

func (c *checkpointReader) set(b []byte) bool {
	if len(b) <= setHead || len(b) > setHead+MaxSetName || len(c.sets) == MaxSets {
		return false
	}
	length := binary.LittleEndian.Uint64(b)
	c.count, c.chunk = binary.LittleEndian.Uint64(b[8:]), 0
	if length > c.limits.pages || c.count > length {
		return false
	}
	c.sets = append(c.sets, NamedSet{string(b[setHead:]), blockdev.NewPageSet(length)})
	return true
}

func (c *checkpointReader) pages(b []byte) bool {
	s := c.sets[len(c.sets)-1].Pages
	chunks := (s.Len() + chunkSize - 1) / chunkSize
	for len(b) > 0 {
		gap, n := binary.Uvarint(b)
		if n <= 0 || gap >= chunks-c.chunk || n == len(b) {
			return false
		}
		form := b[n]
		b = b[n+1:]
		first := (c.chunk + gap) * chunkSize
		end := min(first+chunkSize, s.Len())
		c.chunk += gap + 1
		var ok bool
		switch form {
		case formRuns:
			b, ok = addRuns(s, b, first, end)
		case formBitmap:
			b, ok = addBitmap(s, b, first, end)
		}
		if !ok {
			return false
		}
	}
	return true
}

func addRuns(s *blockdev.PageSet, b []byte, at, end uint64) (rest []byte, ok bool) {
	runs, n := binary.Uvarint(b)
	if n <= 0 || runs == 0 || runs > chunkSize {
		return nil, false
	}
	b = b[n:]
	for ; runs > 0; runs-- {
		gap, n := binary.Uvarint(b)
		if n <= 0 || gap >= end-at {
			return nil, false
		}
		count, m := binary.Uvarint(b[n:])
		if m <= 0 || count >= end-at-gap {
			return nil, false
		}
		s.Add(at+gap, count+1)
		at += gap + count + 1
		b = b[n+m:]
	}
	return b, true
}

func addBitmap(s *blockdev.PageSet, b []byte, first, end uint64) (rest []byte, ok bool) {
	size := int(end-first+7) / 8
	if len(b) < size {
		return nil, false
	}
	bitmap, pages := b[:size], int(end-first)
	if pages%8 != 0 && bitmap[size-1]>>(pages%8) != 0 {
		return nil, false
	}
	for at := nextBit(bitmap, 0, pages, true); at < pages; {
		stop := nextBit(bitmap, at, pages, false)
		s.Add(first+uint64(at), uint64(stop-at))
		at = nextBit(bitmap, stop, pages, true)
	}
	return b[size:], true
}

// nextBit is the first bit at or after from that is set, or that is clear; end where there is none.
func nextBit(bitmap []byte, from, end int, set bool) int {
	var flip byte
	if !set {
		flip = 0xff
	}
	for from < end {
		if rest := (bitmap[from/8] ^ flip) >> (from % 8); rest != 0 {
			return min(end, from+bits.TrailingZeros8(rest))
		}
		from = from/8*8 + 8
	}
	return end
}

func (c *checkpointReader) regions(b []byte) bool {
	next := uint64(0)
	if len(c.hot) > 0 {
		next = c.hot[len(c.hot)-1] + 1
	}
	for len(b) > 0 {
		gap, n := binary.Uvarint(b)
		if n <= 0 || next > c.limits.regions || gap >= c.limits.regions-next {
			return false
		}
		c.hot = append(c.hot, next+gap)
		next += gap + 1
		b = b[n:]
	}
	return true
}
