package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
)

// The log of dm-log-writes, little-endian, in units of the logged disk's sector:
//
//	sector 0   magic 8 | version 8 | entries 8 | sector size 4
//	then for each entry
//	1 sector   sector 8 | sectors 8 | flags 8 | length of a mark 8 | the mark's text
//	n sectors  what was written; of a discard nothing
//
// Writes stand in the order in which they completed, but before the flush that covers them: the disk after
// the first n entries is one that a power cut may have left.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	flagFlush   = 1 << 0
	flagFUA     = 1 << 1
	flagDiscard = 1 << 2
	flagMark    = 1 << 3

	headSize   = 32
	maxEntries = 1 << 24
)

// log is what stands in a log; the data stays in the file.
type log struct {
	sector  int64
	entries []entry
}

// entry is a write, flush, discard or mark. All numbers are bytes.
type entry struct {
	offset, length int64
	flags          uint64
	mark           string
	data           int64 // where in the log
}

func (e entry) flushes() bool { return e.flags&(flagFlush|flagFUA) != 0 }

func (e entry) String() string {
	if e.flags&flagMark != 0 {
		return "mark " + e.mark
	}
	var kinds []string
	for i, name := range []string{"flush", "fua", "discard"} {
		if e.flags&(1<<i) != 0 {
			kinds = append(kinds, name)
		}
	}
	return fmt.Sprintf("%d+%d %s", e.offset, e.length, strings.Join(kinds, ","))
}

func readLog(r io.ReaderAt) (*log, error) {
	super := make([]byte, 28)
	if _, err := r.ReadAt(super, 0); err != nil {
		return nil, fmt.Errorf("read the log's head: %w", err)
	}
	le := binary.LittleEndian
	n, sector := le.Uint64(super[16:]), int64(le.Uint32(super[24:]))
	if le.Uint64(super) != logMagic || le.Uint64(super[8:]) != logVersion || n > maxEntries || (sector != 512 && sector != 4096) {
		return nil, fmt.Errorf("no log of dm-log-writes: begins with %x", super)
	}
	l := &log{sector: sector}
	at := sector
	b := make([]byte, sector)
	for i := range n {
		if _, err := r.ReadAt(b, at); err != nil {
			return nil, fmt.Errorf("read entry %d at %d: %w", i, at, err)
		}
		start, count, mark := le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[24:])
		e := entry{flags: le.Uint64(b[16:]), data: at + sector}
		if start > 1<<40 || count > 1<<40 || mark > uint64(sector)-headSize {
			return nil, fmt.Errorf("entry %d at %d is none: %x", i, at, b[:headSize])
		}
		e.offset, e.length = int64(start)*sector, int64(count)*sector
		if e.flags&flagMark != 0 {
			e.mark = strings.TrimRight(string(b[headSize:headSize+mark]), "\x00\n")
		}
		at += sector
		if e.flags&flagDiscard == 0 {
			at += e.length
		}
		l.entries = append(l.entries, e)
	}
	return l, nil
}

// find is the number of a mark, or -1.
func (l *log) find(mark string) int {
	return slices.IndexFunc(l.entries, func(e entry) bool { return e.flags&flagMark != 0 && e.mark == mark })
}

// points chooses moments behind an entry: a point p is the disk with the entries before p.
func (l *log) points(first, count int, seed uint64) []int {
	end := len(l.entries)
	if first >= end {
		return nil
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	var flushes []int
	for i := first; i < end; i++ {
		if l.entries[i].flushes() {
			flushes = append(flushes, i)
		}
	}
	chosen := map[int]bool{end: true}
	for range 100 * count {
		if len(chosen) >= count {
			break
		}
		if len(flushes) == 0 || len(chosen) >= count/2 {
			chosen[first+rng.IntN(end-first)] = true
			continue
		}
		f := flushes[rng.IntN(len(flushes))]
		for _, p := range []int{f, f + 1, f + 2} { // before it, with it, with one write more
			if p <= end {
				chosen[p] = true
			}
		}
	}
	var out []int
	for p := range chosen {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}
