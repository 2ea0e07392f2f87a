package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Content is what an image is filled with.
type Content int

const (
	Random Content = iota // does not compress
	Text                  // words: lz4 halves it
	Sparse                // a tenth of the image is random data, in extents of 1 MiB; the rest are holes
	Mixed                 // a third each of random, text and holes, in extents of 1 MiB
)

const (
	extent   = 1 << 20
	textPool = 8 << 20
)

// WriteImage fills a new image, or a block device. The same seed gives the same content.
func WriteImage(ctx context.Context, path string, size int64, content Content, seed uint64) error {
	data := 1.0
	switch content {
	case Sparse:
		data = 0.1
	case Mixed:
		data = 2.0 / 3
	}
	return writeImage(ctx, path, size, int64(data*float64(size)), content, seed)
}

// writeImage spreads data bytes over an image of size bytes, at extents picked at random.
func writeImage(ctx context.Context, path string, size, data int64, content Content, seed uint64) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := empty(f, size); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(seed, 1))
	fill := newFiller(content, seed)
	for at := int64(0); at < size && data > 0; at += extent {
		// Exactly as many extents as there is data left for, wherever they fall (selection sampling).
		if left := size - at; data < left && random.Int64N(left) >= data {
			continue
		}
		n := min(extent, size-at, data)
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.WriteAt(fill.next(int(n)), at); err != nil {
			return err
		}
		data -= n
	}
	return f.Sync()
}

// empty makes a file or a device read as zeroes, size bytes long.
func empty(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		return errors.Join(f.Truncate(0), f.Truncate(size))
	}
	span := [2]uint64{0, uint64(size)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span))); errno != 0 {
		return fmt.Errorf("zero %s: %w", f.Name(), errno)
	}
	return nil
}

// filler makes content, extent by extent, in one buffer.
type filler struct {
	content Content
	stream  *rand.ChaCha8
	random  *rand.Rand
	text    []byte
	buffer  []byte
}

func newFiller(content Content, seed uint64) *filler {
	f := &filler{content: content, stream: rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7}), buffer: make([]byte, extent)}
	f.random = rand.New(f.stream)
	if content == Text || content == Mixed {
		f.text = makeText(f.random)
	}
	return f
}

func (f *filler) next(n int) []byte {
	b := f.buffer[:n]
	if f.content == Text || f.content == Mixed && f.random.IntN(2) == 0 {
		// From anywhere in the pool: no two extents are alike, and making them costs next to nothing.
		copy(b, f.text[f.random.IntN(len(f.text)-extent):])
		return b
	}
	f.stream.Read(b)
	return b
}

func makeText(random *rand.Rand) []byte {
	words := make([][]byte, 400)
	for i := range words {
		word := make([]byte, 2+random.IntN(9))
		for j := range word {
			word[j] = byte('a' + random.IntN(26))
		}
		words[i] = append(word, ' ')
	}
	text := make([]byte, 0, textPool+16)
	for len(text) < textPool {
		// The square of a uniform number: some words come often, as in a language.
		u := random.Float64()
		text = append(text, words[int(u*u*float64(len(words)))]...)
	}
	return text
}

// Change overwrites a share of the pages, of pageSize bytes each, at places picked at random.
func Change(ctx context.Context, path string, size int64, pageSize int, share float64, seed uint64) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	pages := size / int64(pageSize)
	wanted := int(share * float64(pages))
	random := rand.New(rand.NewPCG(seed, 2))
	stream := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 9})
	page := make([]byte, pageSize)
	for seen := make(map[int64]bool, wanted); len(seen) < wanted; {
		n := random.Int64N(pages)
		if seen[n] {
			continue
		}
		seen[n] = true
		stream.Read(page)
		if _, err := f.WriteAt(page, n*int64(pageSize)); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return f.Sync()
}

// IsZero tells whether there is nothing but zeroes.
func IsZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
