package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// The protocol as docs/PROTOCOL.md tells it, and nothing else: this file is a second reading of that page,
// so it must not share code with the package that implements it.

const (
	typeHello     = 1
	typeOpened    = 3
	typeRefused   = 4
	typeData      = 7
	typeZero      = 8
	typeAck       = 10
	typeNak       = 11
	typeFlush     = 13
	typeFlushed   = 14
	typeCommit    = 16
	typeCommitted = 17

	headerSize = 24
	codecRaw   = 1
	codeOther  = 3 // Refused: no common protocol version
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frame is one frame as it came.
type frame struct {
	header  [headerSize]byte
	meta    []byte
	payload []byte
}

func (f *frame) version() uint16 { return binary.LittleEndian.Uint16(f.header[4:]) }
func (f *frame) kind() byte      { return f.header[6] }
func (f *frame) u64(at int) uint64 {
	return binary.LittleEndian.Uint64(f.meta[at:])
}
func (f *frame) u32(at int) uint32 { return binary.LittleEndian.Uint32(f.meta[at:]) }

// Fields of Data.
func (f *frame) offset() int64   { return int64(f.u64(16)) }
func (f *frame) rawLength() int  { return int(f.u32(24)) }
func (f *frame) codec() byte     { return f.meta[32] }
func (f *frame) hash() []byte    { return f.meta[40:72] }
func (f *frame) position() int64 { return int64(f.u64(8)) } // of Flush and Flushed

// newFrame makes a frame with right checksums.
func newFrame(kind byte, meta []byte) *frame {
	f := &frame{meta: meta}
	copy(f.header[:], "BLKM")
	binary.LittleEndian.PutUint16(f.header[4:], 1)
	f.header[6] = kind
	binary.LittleEndian.PutUint32(f.header[8:], uint32(len(meta)))
	f.seal()
	return f
}

// seal computes the checksums of a frame that was edited.
func (f *frame) seal() {
	binary.LittleEndian.PutUint32(f.header[16:], crc32.Checksum(f.meta, castagnoli))
	f.sealHeader()
}

func (f *frame) sealHeader() {
	binary.LittleEndian.PutUint32(f.header[20:], crc32.Checksum(f.header[:20], castagnoli))
}

func (f *frame) bytes() []byte {
	return append(append(append([]byte(nil), f.header[:]...), f.meta...), f.payload...)
}

// hello is the first frame of a dialler that wants to be source of a volume.
func hello(volume string) *frame {
	const name, software = "e2e", "e2e"
	meta := make([]byte, 48)
	binary.LittleEndian.PutUint32(meta[32:], block)
	meta[36] = 1 // source
	binary.LittleEndian.PutUint16(meta[40:], uint16(len(name)))
	binary.LittleEndian.PutUint16(meta[42:], uint16(len(software)))
	binary.LittleEndian.PutUint16(meta[44:], uint16(len(volume)))
	return newFrame(typeHello, append(meta, name+software+volume...))
}

// helloOf is the answer of an acceptor with a role: 1 source, 2 target.
func helloOf(role byte) *frame {
	f := hello("")
	binary.LittleEndian.PutUint32(f.meta[32:], 0)
	f.meta[36] = role
	f.seal()
	return f
}

// metaLimits are the lengths that the page's table allows.
var metaLimits = map[byte][2]uint32{
	1: {48, 813}, 2: {96, 2399}, 3: {72, 72}, 4: {4, 1028}, 5: {56, 16408}, 6: {9, 72}, 7: {72, 72}, 8: {40, 40},
	10: {56, 57344}, 11: {56, 57344}, 13: {48, 48}, 14: {16, 16}, 16: {72, 16456}, 17: {48, 48}, 18: {24, 16392},
	19: {8, 8}, 20: {8, 8}, 21: {8, 8}, 23: {4, 1028}, 24: {4, 1028},
}

// readFrame reads one frame and holds it against the page. The error of a stream that ended between two
// frames is io.EOF.
func readFrame(r io.Reader) (*frame, error) {
	f := new(frame)
	if _, err := io.ReadFull(r, f.header[:]); err != nil {
		return nil, err
	}
	if string(f.header[:4]) != "BLKM" {
		return nil, fmt.Errorf("magic %q", f.header[:4])
	}
	if got := crc32.Checksum(f.header[:20], castagnoli); got != binary.LittleEndian.Uint32(f.header[20:]) {
		return nil, fmt.Errorf("checksum of the header of %x", f.header)
	}
	meta, payload := binary.LittleEndian.Uint32(f.header[8:]), binary.LittleEndian.Uint32(f.header[12:])
	limit, known := metaLimits[f.kind()]
	switch {
	case f.version() != 1 || f.header[7] != 0 || !known:
		return nil, fmt.Errorf("version, type or flags of %x", f.header)
	case meta < limit[0] || meta > limit[1] || payload > mib || (payload == 0) != (f.kind() != typeData):
		return nil, fmt.Errorf("lengths of %x", f.header)
	}
	body := make([]byte, meta+payload)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	f.meta, f.payload = body[:meta:meta], body[meta:]
	if got := crc32.Checksum(f.meta, castagnoli); got != binary.LittleEndian.Uint32(f.header[16:]) {
		return nil, fmt.Errorf("checksum of the meta of type %d", f.kind())
	}
	return f, nil
}

// conversation follows what a source says, and counts.
type conversation struct {
	records uint64
	chain   [32]byte
}

// add takes the source's next frame and returns what breaks the page's rules.
func (c *conversation) add(f *frame) error {
	switch f.kind() {
	case typeData:
		n, sum := f.rawLength(), sha256.Sum256(f.payload)
		if f.codec() == codecRaw && (n != len(f.payload) || string(sum[:]) != string(f.hash())) {
			return fmt.Errorf("Data at %d: payload of %d bytes does not match its fields", f.offset(), len(f.payload))
		}
		if f.codec() != codecRaw && len(f.payload) >= n {
			return fmt.Errorf("Data at %d: packed, and not smaller", f.offset())
		}
		c.link(f, uint64(n), f.hash())
	case typeZero:
		zero := sha256.Sum256(f.meta[16:32]) // offset and length
		c.link(f, f.u64(24), zero[:])
	case typeCommit:
		if f.u64(16) != c.records || string(f.meta[32:64]) != string(c.chain[:]) {
			return fmt.Errorf("Commit of %d records, seen %d, or another chain", f.u64(16), c.records)
		}
	}
	return nil
}

// link adds a record to the chain.
func (c *conversation) link(f *frame, length uint64, hash []byte) {
	b := append(make([]byte, 0, 96), c.chain[:]...)
	b = append(b, f.meta[:8]...)    // seq
	b = append(b, f.meta[16:24]...) // offset
	b = binary.LittleEndian.AppendUint64(b, length)
	b = append(b, f.kind(), 0, 0, 0, 0, 0, 0, 0)
	c.chain = sha256.Sum256(append(b, hash...))
	c.records++
}
