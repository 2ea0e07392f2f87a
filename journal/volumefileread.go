package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/bits"

	"github.com/blkmirror/blkmirror/blockdev"
)

// checkpointLimits is what a checkpoint may hold; it is checked before anything is allocated.
type checkpointLimits struct {
	pages   uint64 // of a set
	regions uint64
}

func (f *VolumeFacts) limits(regionSize int64) checkpointLimits {
	return checkpointLimits{pages: uint64(f.Size+4095) / 4096, regions: f.regions(regionSize)}
}

// checkpointReader takes the pieces of a checkpoint file in their order.
type checkpointReader struct {
	limits checkpointLimits
	sets   []NamedSet
	hot    []uint64

	count uint64 // pages that the last set should hold
	chunk uint64 // the next one of the last set
	isHot bool   // hot regions have begun: no set may follow
	ended bool
}

// readCheckpointFile reads a checkpoint whose size and checksum its record has told.
func readCheckpointFile(fsys FS, dir string, id logID, r checkpointRecord, limits checkpointLimits) ([]NamedSet, []uint64, error) {
	path := checkpointPath(dir, r.number)
	damaged := func(off int64, err error) error {
		if errors.Is(err, ErrDamaged) {
			return &DamagedError{path, off, err.Error()}
		}
		return fmt.Errorf("%s at %d: %w", path, off, err)
	}
	f, err := fsys.Open(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &DamagedError{path, 0, "it is missing, and a record names it"}
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, nil, err
	}
	if size != r.size {
		return nil, nil, &DamagedError{path, 0, fmt.Sprintf("it has %d bytes, not %d", size, r.size)}
	}
	h, sum, off := checkpointFileHeader{id, r.number}, uint32(0), int64(0)
	c := &checkpointReader{limits: limits}
	err = eachPiece(f, size, h, func(at int64, b []byte) error {
		off, sum = at, crc32.Update(sum, castagnoli, b)
		if at == 0 {
			return nil
		}
		return c.piece(b[4], b[pieceHead:])
	})
	if err == nil {
		err = c.complete()
	}
	if err == nil && sum != r.sum {
		err = fmt.Errorf("checksum is %08x, not %08x: %w", sum, r.sum, ErrDamaged)
	}
	if err != nil {
		return nil, nil, damaged(off, err)
	}
	return c.sets, c.hot, nil
}

// eachPiece calls do with the header of a checkpoint file, at 0, and with each piece, header included.
func eachPiece(f File, size int64, want checkpointFileHeader, do func(off int64, b []byte) error) error {
	w := window{f: f, size: size}
	b, err := w.at(0, checkpointFileHead)
	if err != nil {
		return err
	}
	h, err := decodeCheckpointFileHeader(b)
	if err != nil {
		return err
	}
	if h != want {
		return fmt.Errorf("it is checkpoint %d of log %x: %w", h.number, h.id, ErrDamaged)
	}
	if err := do(0, b); err != nil {
		return err
	}
	for off := int64(checkpointFileHead); off < size; off += int64(len(b)) {
		if b, err = w.at(off, pieceHead); err != nil {
			return err
		}
		length := int64(-1)
		if len(b) == pieceHead {
			length = int64(binary.LittleEndian.Uint32(b))
		}
		if length < 0 || length > maxPiece || length > size-off-pieceHead {
			return fmt.Errorf("no piece at %d: %w", off, ErrDamaged)
		}
		if b, err = w.at(off, pieceHead+int(length)); err != nil {
			return err
		}
		sum := binary.LittleEndian.Uint32(b[12:])
		if b[5]|b[6]|b[7]|b[8]|b[9]|b[10]|b[11] != 0 || pieceSum(b, place{h.id, h.number, off}) != sum {
			return fmt.Errorf("piece at %d does not check: %w", off, ErrDamaged)
		}
		if err := do(off, b); err != nil {
			return err
		}
	}
	return nil
}

// piece takes one piece. One that checks and still makes no sense is damage too.
func (c *checkpointReader) piece(typ byte, b []byte) error {
	ok := !c.ended
	switch {
	case typ == pieceSet:
		ok = ok && !c.isHot && c.setEnds() && c.set(b)
	case typ == piecePages:
		ok = ok && !c.isHot && len(c.sets) > 0 && c.pages(b)
	case typ == pieceHot:
		ok = ok && c.setEnds() && c.regions(b)
		c.isHot = true
	case typ == pieceEnd:
		ok = ok && c.setEnds() && len(b) == endSize &&
			binary.LittleEndian.Uint64(b) == uint64(len(c.sets)) &&
			binary.LittleEndian.Uint64(b[8:]) == uint64(len(c.hot))
		c.ended = true
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("piece of type %d makes no sense: %w", typ, ErrDamaged)
	}
	return nil
}

func (c *checkpointReader) complete() error {
	if !c.ended {
		return fmt.Errorf("it has no end: %w", ErrDamaged)
	}
	return nil
}

// setEnds says whether the last set has all its pages.
func (c *checkpointReader) setEnds() bool {
	return len(c.sets) == 0 || c.sets[len(c.sets)-1].Pages.Count() == c.count
}

func (c *checkpointReader) set(b []byte) bool {
	if len(b) <= setHead || len(b) > setHead+MaxSetName || len(c.sets) == MaxSets {
		return false
	}
	length := binary.LittleEndian.Uint64(b)
	c.count, c.chunk = binary.LittleEndian.Uint64(b[8:]), 0
	if length > c.limits.pages || c.count > length {
		return false
	}
	c.sets = append(c.sets, NamedSet{string(b[setHead:]), blockdev.NewPageSet(length)})
	return true
}

func (c *checkpointReader) pages(b []byte) bool {
	s := c.sets[len(c.sets)-1].Pages
	chunks := (s.Len() + chunkSize - 1) / chunkSize
	for len(b) > 0 {
		gap, n := binary.Uvarint(b)
		if n <= 0 || gap >= chunks-c.chunk || n == len(b) {
			return false
		}
		form := b[n]
		b = b[n+1:]
		first := (c.chunk + gap) * chunkSize
		end := min(first+chunkSize, s.Len())
		c.chunk += gap + 1
		var ok bool
		switch form {
		case formRuns:
			b, ok = addRuns(s, b, first, end)
		case formBitmap:
			b, ok = addBitmap(s, b, first, end)
		}
		if !ok {
			return false
		}
	}
	return true
}

func addRuns(s *blockdev.PageSet, b []byte, at, end uint64) (rest []byte, ok bool) {
	runs, n := binary.Uvarint(b)
	if n <= 0 || runs == 0 || runs > chunkSize {
		return nil, false
	}
	b = b[n:]
	for ; runs > 0; runs-- {
		gap, n := binary.Uvarint(b)
		if n <= 0 || gap >= end-at {
			return nil, false
		}
		count, m := binary.Uvarint(b[n:])
		if m <= 0 || count >= end-at-gap {
			return nil, false
		}
		s.Add(at+gap, count+1)
		at += gap + count + 1
		b = b[n+m:]
	}
	return b, true
}

func addBitmap(s *blockdev.PageSet, b []byte, first, end uint64) (rest []byte, ok bool) {
	size := int(end-first+7) / 8
	if len(b) < size {
		return nil, false
	}
	bitmap, pages := b[:size], int(end-first)
	if pages%8 != 0 && bitmap[size-1]>>(pages%8) != 0 {
		return nil, false
	}
	for at := nextBit(bitmap, 0, pages, true); at < pages; {
		stop := nextBit(bitmap, at, pages, false)
		s.Add(first+uint64(at), uint64(stop-at))
		at = nextBit(bitmap, stop, pages, true)
	}
	return b[size:], true
}

// nextBit is the first bit at or after from that is set, or that is clear; end where there is none.
func nextBit(bitmap []byte, from, end int, set bool) int {
	var flip byte
	if !set {
		flip = 0xff
	}
	for from < end {
		if rest := (bitmap[from/8] ^ flip) >> (from % 8); rest != 0 {
			return min(end, from+bits.TrailingZeros8(rest))
		}
		from = from/8*8 + 8
	}
	return end
}

func (c *checkpointReader) regions(b []byte) bool {
	next := uint64(0)
	if len(c.hot) > 0 {
		next = c.hot[len(c.hot)-1] + 1
	}
	for len(b) > 0 {
		gap, n := binary.Uvarint(b)
		if n <= 0 || next > c.limits.regions || gap >= c.limits.regions-next {
			return false
		}
		c.hot = append(c.hot, next+gap)
		next += gap + 1
		b = b[n:]
	}
	return true
}
