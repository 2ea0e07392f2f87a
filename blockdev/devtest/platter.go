package devtest

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest/pagepool"
)

// SectorSize is what a Disk keeps or loses as a whole.
const SectorSize = 512

const (
	pageSize       = blockdev.PageSize
	sectorsPerPage = pageSize / SectorSize
	wholePage      = sectorMask(1<<sectorsPerPage - 1)
)

// pageData is the content of a page. It is shared by everything that holds this content, and never changed.
type pageData = pagepool.Page

var zeroPage pageData

// sectorMask is a set of the sectors of one page.
type sectorMask uint8

// image is a content with its id, once somebody asked for that.
type image struct {
	data *pageData // nil: zeroes
	id   uint64    // 0: not known, or zeroes
}

// version is what a request made of a page, and which of its sectors it wrote.
type version struct {
	data    *pageData
	seq     int // of the request
	sectors sectorMask
	doubt   bool // a flush of it failed: no later one makes it durable
}

// slot is a page: as it is read, as it is durable, and what was done to it between the two.
type slot struct {
	now, durable image
	log          []version
}

// platter is a Disk without what is done to its requests. Nobody can kill it.
type platter struct {
	// Garbage, where it is set, decides for each whole sector what a Discard leaves: what was there, zeroes
	// or anything. Otherwise all stays.
	Garbage *rand.Rand

	info    blockdev.Info
	arena   pagepool.Arena
	pages   []slot
	dirty   []uint32 // the pages with a log, in the order in which they got it
	seq     int      // of the last request that changed anything
	closed  bool
	written uint64 // sectors, since the machine started
}

// Info implements Device.
func (d *platter) Info() blockdev.Info { return d.info }

// ReadAt implements Device.
func (d *platter) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(OpRead, off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		page := &zeroPage
		if data := d.pages[at/pageSize].now.data; data != nil {
			page = data
		}
		done += copy(p[done:], page.Data[at%pageSize:])
	}
	return len(p), nil
}

// WriteAt implements Device.
func (d *platter) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(OpWrite, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.count(off, int64(len(p)))
	for done := 0; done < len(p); {
		at := off + int64(done)
		in := int(at % pageSize)
		part := p[done:min(len(p), done+pageSize-in)]
		n := uint32(at / pageSize)
		if len(part) == pageSize {
			d.put(n, d.arena.Page(part), wholePage)
		} else {
			data := d.arena.Copy(d.pages[n].now.data)
			copy(data.Data[in:], part)
			d.put(n, data, sectorsOf(in, in+len(part)))
		}
		done += len(part)
	}
	return len(p), nil
}

// Zero implements Device.
func (d *platter) Zero(off, n int64, _ bool) error {
	if err := d.check(OpZero, off, n); err != nil {
		return err
	}
	d.count(off, n)
	for at := off; at < off+n; {
		page, in := at/pageSize, int(at%pageSize)
		end := int(min(pageSize, off+n-page*pageSize))
		switch rest := d.info.Size - page*pageSize; {
		case in == 0 && int64(end) >= min(pageSize, rest):
			d.put(uint32(page), nil, sectorsOf(0, end))
		default:
			data := d.arena.Copy(d.pages[page].now.data)
			clear(data.Data[in:end])
			d.put(uint32(page), data, sectorsOf(in, end))
		}
		at = page*pageSize + int64(end)
	}
	return nil
}

// Discard implements Device.
func (d *platter) Discard(off, n int64) error {
	if err := d.check(OpDiscard, off, n); err != nil {
		return err
	}
	d.count(off, n)
	if d.Garbage == nil {
		return nil
	}
	end := (off + n) / SectorSize * SectorSize
	for at := (off + SectorSize - 1) / SectorSize * SectorSize; at < end; at += SectorSize {
		do := d.Garbage.IntN(3)
		if do == 0 {
			continue
		}
		page, in := uint32(at/pageSize), int(at%pageSize)
		data := d.arena.Copy(d.pages[page].now.data)
		clear(data.Data[in : in+SectorSize])
		for i := 0; do == 2 && i < SectorSize; i += 8 {
			binary.LittleEndian.PutUint64(data.Data[in+i:], d.Garbage.Uint64())
		}
		d.put(page, data, sectorsOf(in, in+SectorSize))
	}
	return nil
}

// Flush implements Device.
func (d *platter) Flush() error { return d.flushUntil(d.seq) }

// NextData implements Device. A page is a hole as long as nobody has written to it since it was zeroed.
func (d *platter) NextData(off int64) (blockdev.Extent, error) {
	if err := d.check(OpMap, off, 0); err != nil {
		return blockdev.Extent{}, err
	}
	size := d.info.Size
	if !d.info.KnowsHoles || off == size {
		return blockdev.Extent{Offset: off, Length: size - off}, nil
	}
	n := off / pageSize
	for n < int64(len(d.pages)) && d.pages[n].now.data == nil {
		n++
	}
	from := min(size, max(off, n*pageSize))
	for n < int64(len(d.pages)) && d.pages[n].now.data != nil {
		n++
	}
	return blockdev.Extent{Offset: from, Length: max(0, min(size, n*pageSize)-from)}, nil
}

// Close implements Device. What was not flushed is not lost by it.
func (d *platter) Close() error {
	d.closed = true
	return nil
}

// check refuses what is closed or out of range.
func (d *platter) check(op Op, off, n int64) error {
	switch {
	case d.closed:
		return d.failure(Call{Op: op, Offset: off, Length: n}, os.ErrClosed)
	case off < 0 || n < 0 || off > d.info.Size-n:
		return d.failure(Call{Op: op, Offset: off, Length: n}, fmt.Errorf("%w of %d bytes", blockdev.ErrOutOfRange, d.info.Size))
	}
	return nil
}

func (d *platter) failure(c Call, err error) error {
	return &blockdev.Error{Op: c.Op.String(), Path: d.info.Path, Offset: c.Offset, Length: c.Length, Err: err}
}

// count begins a request that changes sectors.
func (d *platter) count(off, n int64) {
	d.seq++
	if n > 0 {
		d.written += uint64((off+n+SectorSize-1)/SectorSize - off/SectorSize)
	}
}

// put makes a page hold data, of which the request at hand has written some sectors.
func (d *platter) put(n uint32, data *pageData, sectors sectorMask) {
	s := &d.pages[n]
	if len(s.log) == 0 {
		d.dirty = append(d.dirty, n)
	}
	s.now = image{data: data}
	s.log = append(s.log, version{data: data, seq: d.seq, sectors: sectors})
}

// flushUntil makes what requests up to seq have written durable.
func (d *platter) flushUntil(seq int) error {
	if err := d.check(OpFlush, 0, 0); err != nil {
		return err
	}
	rest := d.dirty[:0]
	for _, n := range d.dirty {
		if s := &d.pages[n]; !d.flushPage(s, seq) {
			rest = append(rest, n)
		}
	}
	d.dirty = rest
	return nil
}

// doubtUntil notes that the cache failed to write what requests up to seq have written. It may be there or
// not, and nobody tries again.
func (d *platter) doubtUntil(seq int) {
	for _, n := range d.dirty {
		log := d.pages[n].log
		for i := range log {
			log[i].doubt = log[i].doubt || log[i].seq <= seq
		}
	}
}

// flushPage reports whether all of the page is durable now.
func (d *platter) flushPage(s *slot, seq int) bool {
	if last := s.log[len(s.log)-1]; last.seq <= seq && !s.log[0].doubt {
		d.settle(s)
		return true
	}
	// A sector is settled by its newest version, unless that one is in doubt. What is in doubt stands before all else.
	var sure sectorMask
	var newest *pageData
	for _, v := range s.log {
		if v.seq <= seq && !v.doubt {
			sure |= v.sectors
			newest = v.data // holds what all before it have written too
		}
	}
	if sure == 0 {
		return false
	}
	s.durable = d.blend(s.durable, newest, sure)
	rest := s.log[:0]
	for _, v := range s.log {
		if v.seq <= seq {
			v.sectors &^= sure
		}
		if v.sectors != 0 {
			rest = append(rest, v)
		}
	}
	clear(s.log[len(rest):])
	s.log = rest
	return len(rest) == 0
}

// settle makes what is read durable. Of what was before, nothing is needed any more.
func (d *platter) settle(s *slot) {
	if s.durable.data != s.now.data {
		d.arena.Free(s.durable.data)
	}
	for _, v := range s.log {
		if v.data != s.now.data {
			d.arena.Free(v.data)
		}
	}
	clear(s.log)
	s.durable, s.log = s.now, s.log[:0]
}

// blend is a page of which some sectors come from data.
func (d *platter) blend(old image, data *pageData, sectors sectorMask) image {
	switch {
	case sectors == wholePage:
		return image{data: data}
	case sectors == 0 || old.data == data:
		return old
	}
	if data == nil {
		data = &zeroPage
	}
	mixed := d.arena.Copy(old.data)
	for i := range sectorsPerPage {
		if sectors&(1<<i) != 0 {
			copy(mixed.Data[i*SectorSize:(i+1)*SectorSize], data.Data[i*SectorSize:])
		}
	}
	return image{data: mixed}
}

// ident is the id of the content, kept for the next time.
func (m *image) ident() uint64 {
	if m.id == 0 && m.data != nil {
		m.id = contentID(m.data.Data[:])
	}
	return m.id
}

func sectorsOf(from, to int) sectorMask {
	return sectorMask(1<<((to+SectorSize-1)/SectorSize) - 1<<(from/SectorSize))
}

// contentID is a 64-bit hash, the same in every run, and 0 for zeroes. Four lanes keep the processor busy.
func contentID(p []byte) uint64 {
	if blockdev.IsZero(p) {
		return 0
	}
	const p1, p2 = 0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f
	a, b, c, d := uint64(1), uint64(2), uint64(3), uint64(4)
	for q := p[:pageSize]; len(q) >= 32; q = q[32:] {
		a = bits.RotateLeft64(a+binary.LittleEndian.Uint64(q)*p2, 31) * p1
		b = bits.RotateLeft64(b+binary.LittleEndian.Uint64(q[8:])*p2, 31) * p1
		c = bits.RotateLeft64(c+binary.LittleEndian.Uint64(q[16:])*p2, 31) * p1
		d = bits.RotateLeft64(d+binary.LittleEndian.Uint64(q[24:])*p2, 31) * p1
	}
	h := uint64(0)
	for _, lane := range [...]uint64{a, b, c, d} {
		h = (h ^ lane ^ lane>>32) * p2
		h ^= h >> 29
	}
	return max(h, 1)
}

// copyOf is the same platter for somebody else, with what keep returns for its dirty pages.
func (d *platter) copyOf(keep func(n uint32, s slot) slot) platter {
	c := *d
	c.arena = d.arena.Split()
	c.Garbage, c.closed = nil, false
	c.pages = slices.Clone(d.pages)
	c.dirty = nil
	for _, n := range d.dirty {
		c.pages[n] = keep(n, d.pages[n])
		if len(c.pages[n].log) > 0 {
			c.dirty = append(c.dirty, n)
		}
	}
	// An empty log has room that the original will use.
	for i := range c.pages {
		if len(c.pages[i].log) == 0 {
			c.pages[i].log = nil
		}
	}
	return c
}
