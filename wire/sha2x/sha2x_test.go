package sha2x

import (
	"crypto/sha256"
	"math/rand/v2"
	"testing"

	simd "github.com/minio/sha256-simd"
)

func check(t *testing.T, a, b []byte) {
	t.Helper()
	x, y := Pair(a, b)
	if x != sha256.Sum256(a) || y != sha256.Sum256(b) {
		t.Fatalf("Pair of %d and %d bytes differs from crypto/sha256", len(a), len(b))
	}
}

func TestPairEveryLength(t *testing.T) {
	if !fast {
		t.Log("this processor has no SHA extensions: only the fallback is tested")
	}
	r := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 2*1024)
	for i := range buf {
		buf[i] = byte(r.Uint32())
	}
	for n := range 1024 {
		check(t, buf[:n], buf[n:2*n]) // also at every alignment
	}
	check(t, buf[:100], buf[:64]) // unequal
}

func FuzzPair(f *testing.F) {
	f.Add([]byte(""), []byte(""))
	f.Add([]byte("abc"), []byte("abd"))
	f.Add(make([]byte, 55), make([]byte, 55))
	f.Add(make([]byte, 4096), make([]byte, 4096))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		check(t, a, b)
		n := min(len(a), len(b))
		check(t, a[:n], b[:n])
	})
}

func BenchmarkHash(b *testing.B) {
	p, q := make([]byte, 64<<10), make([]byte, 64<<10)
	b.Run("one by one", func(b *testing.B) {
		b.SetBytes(int64(len(p) + len(q)))
		for b.Loop() {
			simd.Sum256(p)
			simd.Sum256(q)
		}
	})
	b.Run("pair", func(b *testing.B) {
		b.SetBytes(int64(len(p) + len(q)))
		for b.Loop() {
			Pair(p, q)
		}
	})
}
