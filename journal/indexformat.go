package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// The frozen numbers of the index format, version 1.
const (
	indexVersion  = 1
	indexPageSize = 512 // blocks per page
	indexPageHead = 72  // bytes before the hashes
	indexMetaHead = 8
	hashSize      = 32

	indexPageKey = 'h' // then the page number, 8 bytes, big-endian: keys sort by number
	indexMetaKey = 'm' // then the name
)

// indexPage is the known hashes of 512 consecutive blocks.
//
//	 0       1       2       3       4       5       6       7
//	+-------+-----------------------+-------------------------------+
//	| ver=1 | zero                  | CRC32C of key, 0 to 3, 8 on   |   0
//	+-------+-----------------------+-------------------------------+
//	| bitmap, 512 bits: bit i of byte j stands for block 8j+i       |   8
//	| of the page                                                   |
//	+---------------------------------------------------------------+
//	| SHA-256 of each block whose bit is set, in ascending order    |  72
//	+---------------------------------------------------------------+
//
// The key is in the checksum, so that a value never counts for another page. A page that does not check
// is absent: the index may forget, but not err.
type indexPage struct {
	known  [indexPageSize / 64]uint64
	hashes [indexPageSize][hashSize]byte
}

func (p *indexPage) has(i int) bool { return p.known[i/64]>>(i%64)&1 != 0 }

func (p *indexPage) set(i int, h [hashSize]byte) {
	p.known[i/64] |= 1 << (i % 64)
	p.hashes[i] = h
}

// clear forgets blocks [from, to) of the page and reports whether it knew one.
func (p *indexPage) clear(from, to int) bool {
	hit := false
	for i := from; i < to; i++ {
		hit = hit || p.has(i)
		p.known[i/64] &^= 1 << (i % 64)
	}
	return hit
}

func (p *indexPage) count() int {
	n := 0
	for _, w := range p.known {
		n += bits.OnesCount64(w)
	}
	return n
}

func pageKey(page uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{indexPageKey}, page)
}

// parsePageKey is the inverse of pageKey.
func parsePageKey(key []byte) (uint64, bool) {
	if len(key) != 9 || key[0] != indexPageKey {
		return 0, false
	}
	return binary.BigEndian.Uint64(key[1:]), true
}

// appendPage appends a page's value to dst.
func appendPage(dst []byte, number uint64, p *indexPage) []byte {
	start := len(dst)
	dst = append(dst, indexVersion, 0, 0, 0, 0, 0, 0, 0)
	for _, w := range p.known {
		dst = binary.LittleEndian.AppendUint64(dst, w)
	}
	for i := range p.hashes {
		if p.has(i) {
			dst = append(dst, p.hashes[i][:]...)
		}
	}
	v := dst[start:]
	binary.LittleEndian.PutUint32(v[4:], valueSum(pageKey(number), v))
	return dst
}

// valueSum is the checksum of a value under its key, for pages and for blobs.
func valueSum(key, v []byte) uint32 {
	sum := crc32.Checksum(key, castagnoli)
	sum = crc32.Update(sum, castagnoli, v[:4])
	return crc32.Update(sum, castagnoli, v[8:])
}

// decodePage fills p from the value of page number. After an error p is undefined.
func decodePage(v []byte, number uint64, p *indexPage) error {
	if err := checkValue(pageKey(number), v, indexPageHead); err != nil {
		return err
	}
	for i := range p.known {
		p.known[i] = binary.LittleEndian.Uint64(v[8+8*i:])
	}
	if want := indexPageHead + p.count()*hashSize; len(v) != want {
		return fmt.Errorf("page has %d bytes, its bitmap asks for %d: %w", len(v), want, ErrDamaged)
	}
	rest := v[indexPageHead:]
	for i := range p.hashes {
		if p.has(i) {
			rest = rest[copy(p.hashes[i][:], rest):]
		}
	}
	return nil
}

func checkValue(key, v []byte, head int) error {
	if len(v) < head {
		return fmt.Errorf("value has %d bytes, at least %d belong there: %w", len(v), head, ErrDamaged)
	}
	if got, want := valueSum(key, v), binary.LittleEndian.Uint32(v[4:]); got != want {
		return fmt.Errorf("index value checksum is %08x, not %08x: %w", got, want, ErrDamaged)
	}
	if v[0] != indexVersion {
		return fmt.Errorf("index value %w: %d, known is %d", ErrVersion, v[0], indexVersion)
	}
	return nil
}

// A meta blob is kept with the same head as a page.
//
//	+-------+-----------------------+-------------------------------+
//	| ver=1 | zero                  | CRC32C of key, 0 to 3, 8 on   |   0
//	+-------+-----------------------+-------------------------------+
//	| the blob                                                      |   8
//	+---------------------------------------------------------------+

func metaKey(name string) []byte { return append([]byte{indexMetaKey}, name...) }

func appendMeta(dst []byte, name string, blob []byte) []byte {
	start := len(dst)
	dst = append(dst, indexVersion, 0, 0, 0, 0, 0, 0, 0)
	dst = append(dst, blob...)
	v := dst[start:]
	binary.LittleEndian.PutUint32(v[4:], valueSum(metaKey(name), v))
	return dst
}

// decodeMeta returns the blob, which lies in v.
func decodeMeta(v []byte, name string) ([]byte, error) {
	if err := checkValue(metaKey(name), v, indexMetaHead); err != nil {
		return nil, err
	}
	return v[indexMetaHead:], nil
}
