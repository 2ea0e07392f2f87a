package stamp

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// PageSize is the unit in which pages are stamped and shown.
const PageSize = 4096

// A stamped page, little-endian:
//
//	 0      8     16     24     32     40            4092   4096
//	+------+------+------+------+------+--- ~ ------+------+
//	|magic | run  | page | seq  | prev | filler      |crc32c|
//	+------+------+------+------+------+--- ~ ------+------+
//
// run tells one history from another, prev is the sequence number that the page showed before. The filler
// depends on seq, so that two versions differ in every sector and a torn page cannot pass its checksum.
const (
	magic    = 0x31504d4154534b42 // "BKSTAMP1"
	fillerAt = 40
	crcAt    = PageSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seq numbers a request from 1 on, in the order of issue. 0 is what was there before the first.
type Seq uint32

// put stamps one page. Every fourth sequence number gets a filler that packs well.
func put(b []byte, run uint64, page int64, seq, prev Seq) {
	_ = b[PageSize-1]
	binary.LittleEndian.PutUint64(b, magic)
	binary.LittleEndian.PutUint64(b[8:], run)
	binary.LittleEndian.PutUint64(b[16:], uint64(page))
	binary.LittleEndian.PutUint64(b[24:], uint64(seq))
	binary.LittleEndian.PutUint64(b[32:], uint64(prev))
	x := uint64(seq)*0x9e3779b97f4a7c15 + uint64(page)
	for i := fillerAt; i+8 <= crcAt; i += 8 {
		if seq%4 != 0 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	clear(b[crcAt-4 : crcAt]) // the filler is no multiple of eight
	binary.LittleEndian.PutUint32(b[crcAt:], crc32.Checksum(b[:crcAt], castagnoli))
}

// Shown is what a page of an image holds.
type Shown struct {
	Zero bool   // all zeroes; Seq is then 0
	Seq  Seq    // the stamp
	Bad  string // why it is no page of this history
}

// parse reads a page of an image.
func parse(b []byte, run uint64, page int64) Shown {
	word := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	switch {
	case isZero(b):
		return Shown{Zero: true}
	case word(0) != magic:
		return Shown{Bad: fmt.Sprintf("no stamp: begins with %x", b[:16])}
	case binary.LittleEndian.Uint32(b[crcAt:]) != crc32.Checksum(b[:crcAt], castagnoli):
		return Shown{Bad: fmt.Sprintf("torn: the head says seq %d, the checksum is wrong", word(24))}
	case word(8) != run:
		return Shown{Bad: fmt.Sprintf("of another run: %#x", word(8))}
	case word(16) != uint64(page):
		return Shown{Bad: fmt.Sprintf("misplaced: it is page %d, seq %d", word(16), word(24))}
	}
	return Shown{Seq: Seq(word(24))}
}

var zeroes [PageSize]byte

func isZero(b []byte) bool { return string(b) == string(zeroes[:len(b)]) }
