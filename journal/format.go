package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The frozen numbers of the log format, version 1. All integers are little-endian.
const (
	segmentMagic   = "blkmjrnl"
	segmentVersion = 1

	segmentHeaderSize = 64
	frameHeaderSize   = 32
	frameAlign        = 8

	// MaxBody is the longest body of one record, in bytes.
	MaxBody = 4 << 20
)

// Kind says what a log is for; the meaning of its record types depends on it.
type Kind uint32

// The kinds of logs.
const (
	KindSync   Kind = 1 // what the target of a one-shot sync remembers
	KindVolume Kind = 2 // a volume's journal
)

// Type says what a record is. 0 is no record.
type Type uint8

// LSN numbers the records of a log from 1 on, without gaps, over all its segments.
type LSN uint64

// logID is random and made with the log.
type logID [16]byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segmentHeader opens every segment. It is durable before the segment gets its final name.
//
//	 0       1       2       3       4       5       6       7
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| magic "blkmjrnl"                                              |   0
//	+-------------------------------+-------------------------------+
//	| version = 1                   | kind                          |   8
//	+-------------------------------+-------------------------------+
//	| log id, 16 random bytes                                       |  16
//	|                                                               |  24
//	+---------------------------------------------------------------+
//	| segment number                                                |  32
//	+---------------------------------------------------------------+
//	| first LSN                                                     |  40
//	+---------------------------------------------------------------+
//	| zero                                                          |  48
//	+-------------------------------+-------------------------------+
//	| zero                          | CRC32C of bytes 0 to 59       |  56
//	+-------------------------------+-------------------------------+
//
// Everything below first LSN was durable before the header was written.
type segmentHeader struct {
	kind   Kind
	id     logID
	number uint64
	first  LSN
}

func (h segmentHeader) encode() []byte {
	b := make([]byte, segmentHeaderSize)
	copy(b, segmentMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], segmentVersion)
	le.PutUint32(b[12:], uint32(h.kind))
	copy(b[16:32], h.id[:])
	le.PutUint64(b[32:], h.number)
	le.PutUint64(b[40:], uint64(h.first))
	le.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

// checkHeader checks what the header of a file has in all its versions, at the same places: the magic, the
// version behind it, and in the last 4 of always so many bytes the checksum of those before. The version comes
// last: only a header that is whole says that another program wrote it, and one bit of rot is not a newer program.
func checkHeader(what string, b []byte, size int, magic string, version uint32) error {
	if len(b) < size {
		return fmt.Errorf("%s header has %d bytes, not %d: %w", what, len(b), size, ErrDamaged)
	}
	if string(b[:8]) != magic {
		return fmt.Errorf("no %s magic, but %q: %w", what, b[:8], ErrDamaged)
	}
	le := binary.LittleEndian
	if got, want := crc32.Checksum(b[:size-4], castagnoli), le.Uint32(b[size-4:]); got != want {
		return fmt.Errorf("%s header checksum is %08x, not %08x: %w", what, got, want, ErrDamaged)
	}
	if v := le.Uint32(b[8:]); v != version {
		return fmt.Errorf("%s %w: %d, known is %d", what, ErrVersion, v, version)
	}
	return nil
}

func decodeSegmentHeader(b []byte) (segmentHeader, error) {
	var h segmentHeader
	if err := checkHeader("segment", b, segmentHeaderSize, segmentMagic, segmentVersion); err != nil {
		return h, err
	}
	le := binary.LittleEndian
	h.kind = Kind(le.Uint32(b[12:]))
	copy(h.id[:], b[16:32])
	h.number = le.Uint64(b[32:])
	h.first = LSN(le.Uint64(b[40:]))
	if h.number == 0 || h.first == 0 {
		return h, fmt.Errorf("segment header with number %d, first LSN %d: %w", h.number, h.first, ErrDamaged)
	}
	return h, nil
}

// frame is the header of one record. The body follows, then zeroes up to a multiple of 8 bytes.
//
//	 0       1       2       3       4       5       6       7
//	+-------------------------------+-------+-----------------------+
//	| length of the body            | type  | zero                  |   0
//	+-------------------------------+-------+-----------------------+
//	| LSN                                                           |   8
//	+---------------------------------------------------------------+
//	| durable: every LSN up to this one was, when this was written  |  16
//	+-------------------------------+-------------------------------+
//	| CRC32C of identity and 0 to 23| CRC32C of 0 to 27 and body    |  24
//	+-------------------------------+-------------------------------+
//	| body, then zeroes                                             |  32
//	+---------------------------------------------------------------+
//
// The identity is log id, segment number and the frame's offset in its segment. The first checksum lets
// a length be trusted before a body of that length is read, and keeps a scan over garbage cheap; the
// second one covers the first, and so the identity.
type frame struct {
	length  uint32
	typ     Type
	lsn     LSN
	durable LSN
	bodySum uint32
	headSum uint32
}

// place is the identity of the bytes at one offset of one segment; it seeds the checksums of frames.
type place struct {
	id     logID
	number uint64
	off    int64
}

func (p place) seed() uint32 {
	var b [placeSize]byte
	return p.seedIn(b[:])
}

// seedIn is seed for who has room to work in: an array on the stack would be moved to the heap.
func (p place) seedIn(b []byte) uint32 {
	copy(b[:16], p.id[:])
	binary.LittleEndian.PutUint64(b[16:], p.number)
	binary.LittleEndian.PutUint64(b[24:], uint64(p.off))
	return crc32.Checksum(b[:placeSize], castagnoli)
}

// placeSize is what goes into a seed, in bytes.
const placeSize = 32

// frameSize is the room of a record with a body of n bytes.
func frameSize(n int) int64 {
	return frameHeaderSize + (int64(n)+frameAlign-1)/frameAlign*frameAlign
}

// appendFrame appends a whole record, padding included, to dst.
func appendFrame(dst []byte, p place, t Type, lsn, durable LSN, body []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, frameHeaderSize)...)
	head := dst[start:]
	seed := p.seedIn(head)
	clear(head)
	le := binary.LittleEndian
	le.PutUint32(head[0:], uint32(len(body)))
	head[4] = byte(t)
	le.PutUint64(head[8:], uint64(lsn))
	le.PutUint64(head[16:], uint64(durable))
	le.PutUint32(head[24:], crc32.Update(seed, castagnoli, head[:24]))
	le.PutUint32(head[28:], crc32.Update(crc32.Checksum(head[:28], castagnoli), castagnoli, body))
	dst = append(dst, body...)
	for int64(len(dst)-start) < frameSize(len(body)) {
		dst = append(dst, 0)
	}
	return dst
}

// decodeFrame reads a frame header at its place and says whether it is one: checksum, type, length and
// order of the LSNs. Nothing is allocated, nothing of the body is looked at.
func decodeFrame(b []byte, p place) (frame, bool) {
	var f frame
	if len(b) < frameHeaderSize || b[4] == 0 || b[5]|b[6]|b[7] != 0 {
		return f, false
	}
	le := binary.LittleEndian
	f.length, f.typ = le.Uint32(b), Type(b[4])
	f.lsn, f.durable = LSN(le.Uint64(b[8:])), LSN(le.Uint64(b[16:]))
	if f.length > MaxBody || f.lsn == 0 || f.durable >= f.lsn {
		return f, false
	}
	f.headSum, f.bodySum = le.Uint32(b[24:]), le.Uint32(b[28:])
	return f, crc32.Update(p.seed(), castagnoli, b[:24]) == f.headSum
}

// bodyIs reports whether body belongs to the frame header b, which decodeFrame has accepted.
func (f frame) bodyIs(b, body []byte) bool {
	sum := crc32.Checksum(b[:28], castagnoli)
	return len(body) == int(f.length) && crc32.Update(sum, castagnoli, body) == f.bodySum
}
