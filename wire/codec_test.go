package wire

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// contents are blocks of n bytes as disks hold them.
func contents(n int) map[string][]byte {
	r := rand.NewChaCha8([32]byte{1})
	random := make([]byte, n)
	r.Read(random)
	half := make([]byte, n)
	copy(half, random[:n/2])
	var text bytes.Buffer
	for i := 0; text.Len() < n; i++ {
		fmt.Fprintf(&text, "%08x user=%d action=%s status=%d\n", i*7919, i%97, []string{"read", "write", "flush"}[i%3], i*i%13)
	}
	return map[string][]byte{"random": random, "half": half, "text": text.Bytes()[:n], "zero": make([]byte, n)}
}

func TestPackUnpack(t *testing.T) {
	p := NewPacker()
	want := map[string]Codec{"random": CodecRaw, "half": CodecLZ4, "text": CodecLZ4, "zero": CodecLZ4}
	for _, n := range []int{1, 15, 16, 17, 512, 4096, 64 << 10, MaxBlock} {
		for name, src := range contents(n) {
			for _, dst := range [][]byte{nil, make([]byte, 0, n), make([]byte, n)} {
				codec, packed := p.Compress(dst, src)
				if n >= 4096 && codec != want[name] {
					t.Errorf("%s of %d: codec %d, want %d", name, n, codec, want[name])
				}
				if codec == CodecLZ4 && len(packed) > n-n/16 || len(packed) > n {
					t.Errorf("%s of %d: packed to %d", name, n, len(packed))
				}
				if codec == CodecLZ4 && cap(dst) >= n && &packed[0] != &dst[:1][0] {
					t.Errorf("%s of %d: not packed into dst", name, n)
				}
				out := make([]byte, n)
				if err := Unpack(codec, out, packed); err != nil || !bytes.Equal(out, src) {
					t.Fatalf("%s of %d: unpacked to something else, %v", name, n, err)
				}
			}
		}
	}
}

// TestCompressThreshold: just under and just over one sixteenth.
func TestCompressThreshold(t *testing.T) {
	const n = 64 << 10
	src := contents(n)["random"]
	p := NewPacker()
	for zeroes, want := range map[int]Codec{n/16 - 512: CodecRaw, n/16 + 1024: CodecLZ4} {
		b := bytes.Clone(src)
		clear(b[n-zeroes:])
		if codec, packed := p.Compress(nil, b); codec != want {
			t.Errorf("%d zeroes in %d: codec %d of %d bytes, want codec %d", zeroes, n, codec, len(packed), want)
		}
	}
}

func TestUnpackExact(t *testing.T) {
	src := contents(4096)["half"]
	codec, packed := NewPacker().Compress(nil, src)
	if codec != CodecLZ4 {
		t.Fatal("half does not shrink")
	}
	room := bytes.Repeat([]byte{0xee}, 3*4096)
	for _, n := range []int{0, 1, 2048, 4095, 4097, 4096 + 64} {
		if err := Unpack(CodecLZ4, room[:n], packed); !errors.Is(err, ErrCodec) {
			t.Errorf("unpacked into %d bytes: %v", n, err)
		}
		for i, b := range room[n:] {
			if b != 0xee {
				t.Fatalf("unpacking into %d bytes wrote byte %d", n, n+i)
			}
		}
		for i := range room[:n] {
			room[i] = 0xee
		}
	}
	for i := range packed {
		if err := Unpack(CodecLZ4, room[:4096], packed[:i]); !errors.Is(err, ErrCodec) {
			t.Fatalf("unpacked %d of %d bytes: %v", i, len(packed), err)
		}
	}
	if err := Unpack(CodecRaw, room[:4], []byte("three")); !errors.Is(err, ErrCodec) {
		t.Errorf("raw of another length: %v", err)
	}
	if err := Unpack(9, room[:4], []byte("four")); !errors.Is(err, ErrCodec) {
		t.Errorf("unknown codec: %v", err)
	}
}

func TestSums(t *testing.T) {
	if p := []byte("abc"); Sum(p) != sha256.Sum256(p) {
		t.Error("Sum is no SHA-256")
	}
	b := []byte{2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0}
	if ZeroHash(0x102, 0x304) != sha256.Sum256(b) {
		t.Error("ZeroHash is not that of offset and length")
	}
	one := append([]byte{6, 5, 0, 0, 0, 0, 0, 0}, b...)
	two := append(append([]byte{}, one...), 0, 0, 1, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0)
	for want, voids := range map[string][]Extent{
		string(one[:8]): nil, string(one): {{0x102, 0x304}}, string(two): {{0x102, 0x304}, {0x10000, 0x1000}},
	} {
		if RebaseHash(0x506, voids) != sha256.Sum256([]byte(want)) {
			t.Errorf("RebaseHash of %v is not that of base and voids", voids)
		}
	}
	x, y := Sum(one), Sum(two)
	if TreeHash([]Hash{x, y}) != sha256.Sum256(append(x[:], y[:]...)) {
		t.Error("TreeHash is not that of the hashes")
	}
}

// TestChain: every field and the order count, and a copy goes on from where it was taken.
func TestChain(t *testing.T) {
	base := Data{Seq: 1, Offset: 4096, RawLength: 4096, Hash: Sum([]byte("a"))}
	seen := map[Hash]string{}
	try := func(name string, add func(c *Chain)) {
		var c Chain
		add(&c)
		if other, ok := seen[c.Sum()]; ok {
			t.Errorf("%s has the chain of %s", name, other)
		}
		seen[c.Sum()] = name
	}
	zero := &Zero{Seq: 1, Offset: 4096, Length: 4096}
	try("nothing", func(c *Chain) {})
	try("base", func(c *Chain) { c.Add(&base) })
	try("seq", func(c *Chain) { d := base; d.Seq++; c.Add(&d) })
	try("offset", func(c *Chain) { d := base; d.Offset++; c.Add(&d) })
	try("length", func(c *Chain) { d := base; d.RawLength++; c.Add(&d) })
	try("hash", func(c *Chain) { d := base; d.Hash[0]++; c.Add(&d) })
	try("zero", func(c *Chain) { c.AddZero(zero) })
	try("zero as data", func(c *Chain) { d := base; d.Hash = ZeroHash(4096, 4096); c.Add(&d) })
	try("data, zero", func(c *Chain) { c.Add(&base); c.AddZero(zero) })
	try("zero, data", func(c *Chain) { c.AddZero(zero); c.Add(&base) })
	rebase := Rebase{Seq: 1, Base: 3, Old: 4096, New: 8192, Voids: []Extent{{0, 4096}}}
	try("rebase", func(c *Chain) { c.AddRebase(&rebase) })
	try("rebase seq", func(c *Chain) { m := rebase; m.Seq++; c.AddRebase(&m) })
	try("rebase base", func(c *Chain) { m := rebase; m.Base++; c.AddRebase(&m) })
	try("rebase old", func(c *Chain) { m := rebase; m.Old++; c.AddRebase(&m) })
	try("rebase new", func(c *Chain) { m := rebase; m.New++; c.AddRebase(&m) })
	try("rebase void", func(c *Chain) { m := rebase; m.Voids = []Extent{{0, 8192}}; c.AddRebase(&m) })
	try("rebase voids", func(c *Chain) { m := rebase; m.Voids = nil; c.AddRebase(&m) })
	try("rebase as data", func(c *Chain) {
		d := base
		d.RawLength, d.Hash = 8192, RebaseHash(rebase.Base, rebase.Voids)
		c.Add(&d)
	})
	try("twice", func(c *Chain) { c.Add(&base); c.Add(&base) })

	var whole, part Chain
	whole.Add(&base)
	part = whole
	whole.AddZero(zero)
	part.AddZero(zero)
	if whole != part || whole.Records() != 2 {
		t.Errorf("a copy of a chain goes on to %x, want %x, of 2 records", part.Sum(), whole.Sum())
	}
	stored := ChainAt(part.Sum(), part.Records())
	whole.AddRebase(&rebase)
	stored.AddRebase(&rebase)
	if whole != stored || whole.Records() != 3 || ChainAt(Hash{}, 0) != (Chain{}) {
		t.Errorf("a stored chain goes on to %x, want %x, of 3 records", stored.Sum(), whole.Sum())
	}
}

// TestCodecAllocations: a block costs none.
func TestCodecAllocations(t *testing.T) {
	p := NewPacker()
	for name, src := range contents(64 << 10) {
		dst, out := make([]byte, len(src)), make([]byte, len(src))
		var chain Chain
		d := &Data{RawLength: uint32(len(src))}
		n := testing.AllocsPerRun(20, func() {
			codec, packed := p.Compress(dst, src)
			if err := Unpack(codec, out, packed); err != nil {
				t.Error(err)
			}
			d.Hash = Sum(out)
			chain.Add(d)
		})
		if n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
