package wire

import (
	"fmt"

	"github.com/blkmirror/blkmirror/wire/sha2x"
	"github.com/minio/sha256-simd"
	"github.com/pierrec/lz4/v4"
)

// Sum is the SHA-256 of p.
func Sum(p []byte) Hash { return sha256.Sum256(p) }

// SumPair returns the SHA-256 of two payloads, in hardly more than the time of one where they are equally
// long and the processor has the instructions for it.
func SumPair(p, q []byte) (Hash, Hash) { return sha2x.Pair(p, q) }

// ZeroHash is what stands for the content of a Zero in its Ack and in the Chain: the SHA-256 of offset
// and length as 16 little-endian bytes. It proves which range was understood, without hashing zeroes.
func ZeroHash(offset, length int64) Hash {
	var b [16]byte
	le.PutUint64(b[0:], uint64(offset))
	le.PutUint64(b[8:], uint64(length))
	return sha256.Sum256(b[:])
}

// RebaseHash is what stands for a Rebase in the Chain: the SHA-256 of base, then offset and length of each
// void extent in order, as little-endian numbers of 8 bytes.
func RebaseHash(base uint64, voids []Extent) (hash Hash) {
	sum := sha256.New()
	var b [extentSize]byte
	le.PutUint64(b[0:], base)
	sum.Write(b[:8])
	for _, e := range voids {
		le.PutUint64(b[0:], uint64(e.Offset))
		le.PutUint64(b[8:], uint64(e.Length))
		sum.Write(b[:])
	}
	sum.Sum(hash[:0])
	return hash
}

// TreeHash is what stands for a unit in an Offer of trees: the SHA-256 over the hashes of its blocks, in
// order.
func TreeHash(blocks []Hash) (hash Hash) {
	sum := sha256.New()
	for i := range blocks {
		sum.Write(blocks[i][:])
	}
	sum.Sum(hash[:0])
	return hash
}

// Packer compresses payloads. It owns the compressor's table and a scratch buffer, so that a block costs
// no allocation; it is not safe for concurrent use: one for each goroutine.
type Packer struct {
	lz4     lz4.Compressor
	scratch []byte
}

// NewPacker returns a Packer, of about 140 KiB.
func NewPacker() *Packer { return &Packer{} }

// Compress packs src, of at most MaxBlock bytes. Where that saves at least a sixteenth it returns
// CodecLZ4 and the packed bytes, else CodecRaw and src itself. The packed bytes lie in dst, whatever its
// length, where its capacity is at least len(src); otherwise in the Packer, until its next Compress.
// dst and src must not overlap.
func (p *Packer) Compress(dst, src []byte) (Codec, []byte) {
	limit := len(src) - max(1, len(src)/16)
	if limit <= 0 {
		return CodecRaw, src
	}
	if cap(dst) < len(src) {
		if cap(p.scratch) < len(src) {
			p.scratch = make([]byte, len(src))
		}
		dst = p.scratch
	}
	// The compressor gives up as soon as it would write beyond what it is given: that is the limit.
	n, err := p.lz4.CompressBlock(src, dst[:limit:limit])
	if err != nil || n == 0 {
		return CodecRaw, src
	}
	return CodecLZ4, dst[:n]
}

// Unpack fills all of dst, which has the raw length, from a payload. It never writes beyond dst; after
// an error, which wraps ErrCodec, dst holds anything.
func Unpack(codec Codec, dst, src []byte) error {
	switch codec {
	case CodecRaw:
		if len(src) != len(dst) {
			return fmt.Errorf("%w: raw payload of %d bytes, want %d", ErrCodec, len(src), len(dst))
		}
		copy(dst, src)
		return nil
	case CodecLZ4:
		n, err := lz4.UncompressBlock(src, dst[:len(dst):len(dst)])
		if err != nil {
			return fmt.Errorf("%w: lz4 payload of %d bytes for %d: %w", ErrCodec, len(src), len(dst), err)
		}
		if n != len(dst) {
			return fmt.Errorf("%w: lz4 payload of %d bytes makes %d, want %d", ErrCodec, len(src), n, len(dst))
		}
		return nil
	}
	return fmt.Errorf("%w: unknown codec %d", ErrCodec, codec)
}

// Chain is a checksum over the headers of all records of an epoch, in order: each link is the SHA-256
// of the link before (zero at first) and one record. It is 32 bytes and a count, can be copied, stored
// (Sum and Records) and gone on from (ChainAt); the zero value is ready. Not safe for concurrent use.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                    the link before, 32 bytes                  |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              seq                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                   offset, or old of a Rebase                  |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|       raw length, length of a Zero, or new of a Rebase        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| type  |                       reserved                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|         SHA-256 of a Data, else ZeroHash or RebaseHash        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
type Chain struct {
	link    Hash
	records uint64
}

// ChainAt is the chain whose last link and count of records were stored.
func ChainAt(link Hash, records uint64) Chain { return Chain{link: link, records: records} }

// Add takes a Data in; its payload is not looked at.
func (c *Chain) Add(m *Data) {
	c.add(m.Seq, uint64(m.Offset), uint64(m.RawLength), TypeData, &m.Hash)
}

// AddZero takes a Zero in.
func (c *Chain) AddZero(m *Zero) {
	hash := ZeroHash(m.Offset, m.Length)
	c.add(m.Seq, uint64(m.Offset), uint64(m.Length), TypeZero, &hash)
}

// AddRebase takes a whole Rebase in as one record: where it came in several frames, what Join made of them.
func (c *Chain) AddRebase(m *Rebase) {
	hash := RebaseHash(m.Base, m.Voids)
	c.add(m.Seq, m.Old, m.New, TypeRebase, &hash)
}

func (c *Chain) add(seq, from, to uint64, kind Type, hash *Hash) {
	var b [2*HashSize + 32]byte
	copy(b[:], c.link[:])
	le.PutUint64(b[32:], seq)
	le.PutUint64(b[40:], from)
	le.PutUint64(b[48:], to)
	b[56] = byte(kind)
	copy(b[64:], hash[:])
	c.link = sha256.Sum256(b[:])
	c.records++
}

// Sum is the last link, zero where there is no record.
func (c *Chain) Sum() Hash { return c.link }

// Records counts what was taken in.
func (c *Chain) Records() uint64 { return c.records }
