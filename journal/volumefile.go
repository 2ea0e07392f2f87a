package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
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

func decodeCheckpointFileHeader(b []byte) (h checkpointFileHeader, err error) {
	if err := checkHeader("checkpoint", b, checkpointFileHead, checkpointMagic, checkpointFileVersion); err != nil {
		return h, err
	}
	copy(h.id[:], b[16:32])
	h.number = binary.LittleEndian.Uint64(b[32:])
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
