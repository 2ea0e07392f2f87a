package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/blkmirror/blkmirror/blockdev"
)

// The frozen numbers of the staging format, version 1. All integers are little-endian.
const (
	stagingMagic   = "blkmstag"
	stagingVersion = 1

	stagingHeaderSize = 128
	stagingHeadSize   = 64
	stagingEntrySize  = 72
	stagingPointSize  = 48
	stagingVoidSize   = 16

	// Frames begin at multiples of this: what is written behind a durable frame shares no sector with it,
	// and no page of the page cache either.
	stagingAlign = 4096

	maxStagingEntries = 1024     // records of one frame
	maxStagingFrame   = 65 << 20 // payload bytes of one frame
	maxStagingSize    = 1 << 50  // of a volume
	maxStagingZero    = 1 << 30  // length of one Zero

	// MaxStagingPayload is the longest payload of one record, in bytes.
	MaxStagingPayload = 1 << 20
	// MaxStagingExtra is the longest blob that a footer carries.
	MaxStagingExtra = 1 << 20
	// MaxStagingVoids is the number of extents of one Rebase, neighbours counted as one.
	MaxStagingVoids = 1 << 20
)

// stagingID is random and made with the file.
type stagingID [16]byte

// encodeStagingHeader makes the first bytes of a file. The epoch is the one that the file was made for; a
// Rebase changes it later.
//
//	 0       1       2       3       4       5       6       7
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| magic "blkmstag"                                              |   0
//	+-------------------------------+-------------------------------+
//	| version = 1                   | block size                    |   8
//	+-------------------------------+-------------------------------+
//	| file id, 16 random bytes                                      |  16
//	|                                                               |  24
//	+---------------------------------------------------------------+
//	| volume, its UUID                                              |  32
//	|                                                               |  40
//	+---------------------------------------------------------------+
//	| generation                                                    |  48
//	|                                                               |  56
//	+---------------------------------------------------------------+
//	| incarnation of the primary's process                          |  64
//	+---------------------------------------------------------------+
//	| base: the cut that the epoch starts from                      |  72
//	+---------------------------------------------------------------+
//	| epoch that the file was made for                              |  80
//	+---------------------------------------------------------------+
//	| size of the volume, in bytes                                  |  88
//	+---------------------------------------------------------------+
//	| zero                                                          |  96
//	| zero                                                          | 104
//	| zero                                                          | 112
//	+-------------------------------+-------------------------------+
//	| zero                          | CRC32C of bytes 0 to 123      | 120
//	+-------------------------------+-------------------------------+
func encodeStagingHeader(h StagingHeader, id stagingID) []byte {
	b := make([]byte, stagingHeaderSize)
	copy(b, stagingMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], stagingVersion)
	le.PutUint32(b[12:], h.BlockSize)
	copy(b[16:], id[:])
	copy(b[32:], h.Volume[:])
	copy(b[48:], h.Generation[:])
	le.PutUint64(b[64:], h.Incarnation)
	le.PutUint64(b[72:], h.Base)
	le.PutUint64(b[80:], h.Epoch)
	le.PutUint64(b[88:], uint64(h.Size))
	le.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

func decodeStagingHeader(b []byte) (h StagingHeader, id stagingID, err error) {
	if err := checkHeader("staging", b, stagingHeaderSize, stagingMagic, stagingVersion); err != nil {
		return h, id, err
	}
	le := binary.LittleEndian
	h.BlockSize = le.Uint32(b[12:])
	copy(id[:], b[16:])
	copy(h.Volume[:], b[32:])
	copy(h.Generation[:], b[48:])
	h.Incarnation = le.Uint64(b[64:])
	h.Base = le.Uint64(b[72:])
	h.Epoch = le.Uint64(b[80:])
	h.Size = int64(le.Uint64(b[88:]))
	if err := h.check(); err != nil {
		return h, id, fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	return h, id, nil
}

func (h StagingHeader) check() error {
	switch {
	case h.Epoch == 0:
		return fmt.Errorf("%w: epoch 0", ErrStaging)
	case h.Base >= h.Epoch:
		return fmt.Errorf("%w: epoch %d on base %d", ErrStaging, h.Epoch, h.Base)
	case h.Size <= 0 || h.Size > maxStagingSize:
		return fmt.Errorf("%w: volume of %d bytes, at most %d", ErrStaging, h.Size, int64(maxStagingSize))
	case h.BlockSize < blockdev.PageSize || h.BlockSize > MaxStagingPayload || bits.OnesCount32(h.BlockSize) != 1:
		return fmt.Errorf("%w: blocks of %d bytes", ErrStaging, h.BlockSize)
	}
	return nil
}

// pages is the number of pages of the volume.
func (h StagingHeader) pages() uint64 { return pagesOf(h.Size) }

// checkExtent checks that a range is one of whole pages of the volume, the last of which may be short.
func (h StagingHeader) checkExtent(offset, length int64) error {
	end := offset + length
	switch {
	case offset < 0 || length <= 0 || length > h.Size || offset > h.Size-length:
		return fmt.Errorf("%w: %d bytes at %d, outside a volume of %d", ErrStaging, length, offset, h.Size)
	case offset%blockdev.PageSize != 0 || end%blockdev.PageSize != 0 && end != h.Size:
		return fmt.Errorf("%w: %d bytes at %d are not whole pages", ErrStaging, length, offset)
	}
	return nil
}

// check holds for every record, when it is appended and when it is read.
func (r *StagingRecord) check(h *StagingHeader) error {
	if err := h.checkExtent(r.Offset, r.Length); err != nil {
		return err
	}
	block := int64(h.BlockSize)
	switch r.Kind {
	case StagingData:
		switch {
		case r.Offset/block != (r.Offset+r.Length-1)/block:
			return fmt.Errorf("%w: data of %d bytes at %d crosses a block of %d", ErrStaging, r.Length, r.Offset, block)
		case r.PayloadLength < 1 || r.PayloadLength > MaxStagingPayload:
			return fmt.Errorf("%w: payload of %d bytes", ErrStaging, r.PayloadLength)
		case r.MayFree:
			return fmt.Errorf("%w: data that may be freed", ErrStaging)
		}
	case StagingZero:
		if r.Length > maxStagingZero || r.PayloadLength != 0 || r.Codec != 0 || r.Hash != [32]byte{} {
			return fmt.Errorf("%w: zero of %d bytes with codec %d and a payload of %d bytes", ErrStaging,
				r.Length, r.Codec, r.PayloadLength)
		}
	default:
		return fmt.Errorf("%w: kind %d", ErrStaging, r.Kind)
	}
	return nil
}

// frameKind says what a frame of a staging file is. 0 is no frame.
type frameKind uint8

const (
	frameRecords frameKind = 1 // a table of records, and their payloads
	framePoint   frameKind = 2
	frameRebase  frameKind = 3
	frameFooter  frameKind = 4
)

// stagingHead opens every frame. A body and the payloads follow; the next frame begins at the next multiple
// of 4096.
//
//	 0       1       2       3       4       5       6       7
//	+-------+-----------------------+-------------------------------+
//	| kind  | zero                  | count of records              |   0
//	+-------+-----------------------+-------------------------------+
//	| length of the body            | length of all payloads        |   8
//	+-------------------------------+-------------------------------+
//	| offset of the frame before; 0: none                           |  16
//	+---------------------------------------------------------------+
//	| durable: every byte below this offset was, when written       |  24
//	+---------------------------------------------------------------+
//	| low: lowest offset in the volume of a record                  |  32
//	+---------------------------------------------------------------+
//	| high: where the highest one ends                              |  40
//	+---------------------------------------------------------------+
//	| sequence of the last record up to here                        |  48
//	+-------------------------------+-------------------------------+
//	| CRC32C of the body; records: 0| CRC32C of place and 0 to 59   |  56
//	+-------------------------------+-------------------------------+
//
// The place is the file's id and the frame's offset, neither of which is stored here. Points, rebases and
// footers are synced points: what stands before one of them was durable before it was written.
type stagingHead struct {
	kind          frameKind
	count         uint32
	body, payload uint32
	prev, durable int64
	low, high     int64
	seq           uint64
	bodySum       uint32
}

// stagingSeed begins the checksum of what stands at an offset of a file: CRC32C of id and offset. The offset
// is taken in by hand, because the library's argument would be allocated, for every record.
func stagingSeed(id *stagingID, off int64) uint32 {
	crc := ^crc32.Checksum(id[:], castagnoli)
	for range 8 {
		crc = castagnoli[byte(crc)^byte(off)] ^ crc>>8
		off >>= 8
	}
	return ^crc
}

// encode fills the first bytes of b.
func (f *stagingHead) encode(b []byte, id *stagingID, off int64) {
	le := binary.LittleEndian
	b = b[:stagingHeadSize]
	le.PutUint32(b[0:], uint32(f.kind))
	le.PutUint32(b[4:], f.count)
	le.PutUint32(b[8:], f.body)
	le.PutUint32(b[12:], f.payload)
	le.PutUint64(b[16:], uint64(f.prev))
	le.PutUint64(b[24:], uint64(f.durable))
	le.PutUint64(b[32:], uint64(f.low))
	le.PutUint64(b[40:], uint64(f.high))
	le.PutUint64(b[48:], f.seq)
	le.PutUint32(b[56:], f.bodySum)
	le.PutUint32(b[60:], crc32.Update(stagingSeed(id, off), castagnoli, b[:60]))
}

// decodeStagingHead reads the head of a frame at its place and says whether it is one. Nothing is allocated,
// nothing of the body is looked at; the lengths of one that is accepted keep to the limits.
func decodeStagingHead(b []byte, id *stagingID, off int64) (stagingHead, bool) {
	var f stagingHead
	if len(b) < stagingHeadSize || b[0] == 0 || b[1]|b[2]|b[3] != 0 {
		return f, false
	}
	le := binary.LittleEndian
	if crc32.Update(stagingSeed(id, off), castagnoli, b[:60]) != le.Uint32(b[60:]) {
		return f, false
	}
	f = stagingHead{
		kind: frameKind(b[0]), count: le.Uint32(b[4:]), body: le.Uint32(b[8:]), payload: le.Uint32(b[12:]),
		prev: int64(le.Uint64(b[16:])), durable: int64(le.Uint64(b[24:])),
		low: int64(le.Uint64(b[32:])), high: int64(le.Uint64(b[40:])),
		seq: le.Uint64(b[48:]), bodySum: le.Uint32(b[56:]),
	}
	return f, f.valid(off)
}

func (f *stagingHead) valid(off int64) bool {
	if f.prev < 0 || f.prev >= off || f.prev%stagingAlign != 0 || f.durable < 0 || f.durable > off {
		return false
	}
	if f.kind == frameRecords {
		return f.count >= 1 && f.count <= maxStagingEntries && f.body == f.count*stagingEntrySize &&
			f.payload <= maxStagingFrame && f.low >= 0 && f.low < f.high && f.bodySum == 0
	}
	if f.count != 0 || f.payload != 0 || f.low != 0 || f.high != 0 || f.durable != off {
		return false
	}
	switch f.kind {
	case framePoint:
		return f.body == stagingPointSize
	case frameRebase:
		return f.body >= rebaseHead && f.body <= rebaseHead+MaxStagingVoids*stagingVoidSize &&
			(f.body-rebaseHead)%stagingVoidSize == 0
	case frameFooter:
		return f.body >= footerHead && f.body <= footerHead+MaxStagingExtra
	}
	return false
}

// end is where a frame at off ends, next where the one behind it begins.
func (f *stagingHead) end(off int64) int64 {
	return off + stagingHeadSize + int64(f.body) + int64(f.payload)
}
func (f *stagingHead) next(off int64) int64 { return alignStaging(f.end(off)) }

func alignStaging(n int64) int64 { return (n + stagingAlign - 1) / stagingAlign * stagingAlign }

// encodeEntry makes a record's line in the table of its frame. Payloads follow the table in its order,
// without gaps.
//
//	 0       1       2       3       4       5       6       7
//	+---------------------------------------------------------------+
//	| sequence                                                      |   0
//	+---------------------------------------------------------------+
//	| offset in the volume                                          |   8
//	+-------------------------------+-------------------------------+
//	| length in the volume          | length of the payload         |  16
//	+-------------------------------+-------------------------------+
//	| offset of the payload in the file; zero: 0                    |  24
//	+---------------------------------------------------------------+
//	| SHA-256 of the raw bytes, 32 bytes; of a zero: 0              |  32
//	+-------+-------+-------+-------+-------------------------------+
//	| kind  | codec | flags | zero  | CRC32C of place and 0 to 67   |  64
//	+-------+-------+-------+-------+-------------------------------+
//
// Kind is 1 for data, 2 for a zero; bit 0 of the flags says that the room of a zero may be freed.
func encodeEntry(b []byte, r *StagingRecord, at int64, id *stagingID, off int64) {
	le := binary.LittleEndian
	b = b[:stagingEntrySize]
	le.PutUint64(b[0:], r.Seq)
	le.PutUint64(b[8:], uint64(r.Offset))
	le.PutUint32(b[16:], uint32(r.Length))
	le.PutUint32(b[20:], uint32(r.PayloadLength))
	le.PutUint64(b[24:], uint64(at))
	copy(b[32:], r.Hash[:])
	b[64], b[65], b[66], b[67] = byte(r.Kind), r.Codec, 0, 0
	if r.MayFree {
		b[66] = 1
	}
	le.PutUint32(b[68:], crc32.Update(stagingSeed(id, off), castagnoli, b[:68]))
}

// decodeEntry reads the line at its place, and whether it is a record that the volume could have.
func decodeEntry(b []byte, h *StagingHeader, id *stagingID, off int64) (r StagingRecord, at int64, ok bool) {
	if len(b) < stagingEntrySize {
		return r, 0, false
	}
	le := binary.LittleEndian
	if crc32.Update(stagingSeed(id, off), castagnoli, b[:68]) != le.Uint32(b[68:]) || b[66] > 1 || b[67] != 0 {
		return r, 0, false
	}
	r = StagingRecord{
		Seq: le.Uint64(b[0:]), Kind: StagingKind(b[64]), Codec: b[65], MayFree: b[66] == 1,
		Offset: int64(le.Uint64(b[8:])), Length: int64(le.Uint32(b[16:])), PayloadLength: int(le.Uint32(b[20:])),
	}
	copy(r.Hash[:], b[32:])
	at = int64(le.Uint64(b[24:]))
	return r, at, r.check(h) == nil && (r.Kind == StagingData) == (at > off)
}

// appendPoint makes the body of a point; the other synced points begin with the same bytes.
//
//	 0       1       2       3       4       5       6       7
//	+---------------------------------------------------------------+
//	| sequence of the last record                                   |   0
//	+---------------------------------------------------------------+
//	| number of records                                             |   8
//	+---------------------------------------------------------------+
//	| chain over them, 32 bytes, as the caller gave it              |  16
//	+---------------------------------------------------------------+
func appendPoint(b []byte, p StagingPoint) []byte {
	b = binary.LittleEndian.AppendUint64(b, p.Seq)
	b = binary.LittleEndian.AppendUint64(b, p.Records)
	return append(b, p.Chain[:]...)
}

func decodePoint(b []byte) (p StagingPoint) {
	p.Seq, p.Records = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	copy(p.Chain[:], b[16:])
	return p
}

// stagingRebase is the body of a rebase: from its point on the file belongs to another epoch, and pages of
// earlier records are void.
//
//	 0       1       2       3       4       5       6       7
//	+---------------------------------------------------------------+
//	| point, 48 bytes                                               |   0
//	+---------------------------------------------------------------+
//	| sequence of the rebase                                        |  48
//	+---------------------------------------------------------------+
//	| old epoch                                                     |  56
//	+---------------------------------------------------------------+
//	| new epoch                                                     |  64
//	+---------------------------------------------------------------+
//	| for each void extent: offset                                  |  72
//	+---------------------------------------------------------------+
//	|                       length                                  |
//	+---------------------------------------------------------------+
type stagingRebase struct {
	point    StagingPoint
	seq      uint64
	old, new uint64
	voids    []blockdev.Extent // ascending, whole pages, no two touch
}

const rebaseHead = stagingPointSize + 24

func (r *stagingRebase) encode() []byte {
	le := binary.LittleEndian
	b := appendPoint(make([]byte, 0, rebaseHead+len(r.voids)*stagingVoidSize), r.point)
	b = le.AppendUint64(b, r.seq)
	b = le.AppendUint64(b, r.old)
	b = le.AppendUint64(b, r.new)
	for _, v := range r.voids {
		b = le.AppendUint64(b, uint64(v.Offset))
		b = le.AppendUint64(b, uint64(v.Length))
	}
	return b
}

func decodeRebase(b []byte, h *StagingHeader) (r stagingRebase, err error) {
	le := binary.LittleEndian
	r.point = decodePoint(b)
	r.seq, r.old, r.new = le.Uint64(b[48:]), le.Uint64(b[56:]), le.Uint64(b[64:])
	b = b[rebaseHead:]
	r.voids = make([]blockdev.Extent, 0, len(b)/stagingVoidSize)
	for ; len(b) > 0; b = b[stagingVoidSize:] {
		r.voids = append(r.voids, blockdev.Extent{Offset: int64(le.Uint64(b)), Length: int64(le.Uint64(b[8:]))})
	}
	if r.new <= r.old || r.seq > r.point.Seq {
		return r, fmt.Errorf("%w: rebase of %d to %d at %d, point at %d", ErrStaging, r.old, r.new, r.seq, r.point.Seq)
	}
	return r, h.checkVoids(r.voids)
}

func (h *StagingHeader) checkVoids(voids []blockdev.Extent) error {
	end := int64(0)
	for _, v := range voids {
		if err := h.checkExtent(v.Offset, v.Length); err != nil {
			return err
		}
		if v.Offset < end {
			return fmt.Errorf("%w: void pages at %d stand behind those up to %d", ErrStaging, v.Offset, end)
		}
		end = v.Offset + v.Length
	}
	return nil
}

// stagingFooter is the body of a footer. It commits nothing by itself.
//
//	 0       1       2       3       4       5       6       7
//	+---------------------------------------------------------------+
//	| point, 48 bytes                                               |   0
//	+---------------------------------------------------------------+
//	| base                                                          |  48
//	+---------------------------------------------------------------+
//	| number of distinct pages                                      |  56
//	+---------------------------------------------------------------+
//	| extra, opaque                                                 |  64
//	+---------------------------------------------------------------+
type stagingFooter struct {
	point       StagingPoint
	base, pages uint64
	extra       []byte
}

const footerHead = stagingPointSize + 16

func (f *stagingFooter) encode() []byte {
	b := appendPoint(make([]byte, 0, footerHead+len(f.extra)), f.point)
	b = binary.LittleEndian.AppendUint64(b, f.base)
	b = binary.LittleEndian.AppendUint64(b, f.pages)
	return append(b, f.extra...)
}

func decodeFooter(b []byte) stagingFooter {
	le := binary.LittleEndian
	return stagingFooter{decodePoint(b), le.Uint64(b[48:]), le.Uint64(b[56:]), b[footerHead:]}
}

func pagesOf(size int64) uint64 { return uint64((size + blockdev.PageSize - 1) / blockdev.PageSize) }

// pageRange is the pages that an extent covers.
func pageRange(offset, length int64) (first, count uint64) {
	first = uint64(offset / blockdev.PageSize)
	return first, pagesOf(offset+length) - first
}
