// Package sha2x computes the SHA-256 (FIPS 180-4) of two messages of equal length at once.
//
// With the SHA extensions of x86 one message leaves the processor half idle: each sha256rnds2 waits for the
// one before. Two messages side by side have no such dependency, and take hardly longer than one. Where
// the extensions are missing, both are hashed one after the other.
package sha2x

import (
	"encoding/binary"

	"github.com/minio/sha256-simd"
)

const (
	blockSize = 64 // bytes that SHA-256 takes at a time
	lengthEnd = 8  // bytes of the length at the end of the padding
)

// state is the chaining value in the order of the processor's registers: A B E F and C D G H, each from
// the highest word to the lowest.
type state [8]uint32

var initial = state{
	0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667, // f e b a
	0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372, // h g d c
}

func (s *state) digest() (d [32]byte) {
	for i, word := range [8]uint32{s[3], s[2], s[7], s[6], s[1], s[0], s[5], s[4]} {
		binary.BigEndian.PutUint32(d[4*i:], word)
	}
	return d
}

// Pair returns the SHA-256 of a and of b. They should have the same length: otherwise nothing is gained.
func Pair(a, b []byte) (x, y [32]byte) {
	if !fast || len(a) != len(b) {
		return sha256.Sum256(a), sha256.Sum256(b)
	}
	sa, sb := initial, initial
	whole := len(a) / blockSize
	if whole > 0 {
		blocks(&sa, &sb, &a[0], &b[0], whole)
	}
	ta, n := pad(a[whole*blockSize:], len(a))
	tb, _ := pad(b[whole*blockSize:], len(b))
	blocks(&sa, &sb, &ta[0], &tb[0], n)
	return sa.digest(), sb.digest()
}

// pad makes the last one or two blocks of a message of total bytes, whose unfinished block is rest.
func pad(rest []byte, total int) (tail [2 * blockSize]byte, n int) {
	copy(tail[:], rest)
	tail[len(rest)] = 0x80
	n = 1
	if len(rest)+1+lengthEnd > blockSize {
		n = 2
	}
	binary.BigEndian.PutUint64(tail[n*blockSize-lengthEnd:], uint64(total)*8)
	return tail, n
}
