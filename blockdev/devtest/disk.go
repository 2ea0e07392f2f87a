package devtest

import (
	"errors"
	"math/rand/v2"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest/pagepool"
)

// ErrDead is what a disk answers whose machine or process is gone.
var ErrDead = errors.New("the disk is dead: its process ended")

// Disk is a block device in memory for simulations, with a volatile write cache and facts. It is Mem for one
// thread: cheap to write, to flush and to copy, since versions of a page share their bytes and a crash costs
// what is in the cache. It has logical sectors of SectorSize.
//
// Every request first meets the Hook, in which the simulation may do other things for as long as it likes,
// other requests among them. What the request does, it does at once after that, unless it was killed.
//
// A failed Flush is sticky, and what it was to make durable stays in doubt on every disk that comes of this
// one: it is read back, and may be lost in any later power cut, until it is written anew.
type Disk struct {
	// Hook sees every request and says what happens to it. The zero Effect: what was asked for.
	Hook func(Call) Effect

	platter
	calls    [OpMap + 1]int
	flying   []flight // requests in the Hook
	dead     bool
	flushErr error

	boot    string
	boots   int
	diskSeq uint64
}

// flight is a request that is in the Hook.
type flight struct {
	Call
	p   []byte
	seq int // of the last change when it came
}

var _ blockdev.Device = (*Disk)(nil)

// NewDisk makes a disk of zeroes. The last sector may be short.
func NewDisk(size int64) *Disk { return NewDiskIn(nil, size) }

// NewDiskIn makes a disk that has its pages, and those of all that comes of it, from a pool, if there is one.
func NewDiskIn(pool *pagepool.Pool, size int64) *Disk {
	return &Disk{
		platter: platter{
			arena: pagepool.New(pool),
			info: blockdev.Info{
				Path: "disk", Size: size, LogicalSector: SectorSize, PhysicalSector: SectorSize,
				Block: true, Writable: true, Direct: true, CheapZero: true, KnowsHoles: true,
			},
			pages: make([]slot, (size+pageSize-1)/pageSize),
		},
		boot: "boot-0", diskSeq: 1,
	}
}

// SetInfo changes what the disk says of itself. The size stays.
func (d *Disk) SetInfo(info blockdev.Info) {
	info.Size = d.info.Size
	d.info = info
}

// SetIdentity changes what the facts tell: the machine's run and the number of the disk in it.
// After a power cut the run has another name, boot-1 and so on, until it is set again.
func (d *Disk) SetIdentity(boot string, diskSeq uint64) { d.boot, d.diskSeq = boot, diskSeq }

// Facts are those of a whole block device whose kernel counts.
func (d *Disk) Facts() (blockdev.Facts, error) {
	if d.dead {
		return blockdev.Facts{}, &blockdev.Error{Op: "facts", Path: d.info.Path, Err: ErrDead}
	}
	return blockdev.Facts{
		Block: true, Size: d.info.Size, BootID: d.boot, Rdev: 0xfc00, DiskSeq: d.diskSeq,
		Counted: true, SectorsWritten: d.written,
	}, nil
}

// Calls is the number of requests of a kind so far.
func (d *Disk) Calls(op Op) int { return d.calls[op] }

// ReadAt implements Device.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	c := Call{Op: OpRead, Offset: off, Length: int64(len(p))}
	e, _, err := d.enter(&c, p)
	switch {
	case err != nil:
		return 0, err
	case e.run != nil:
		return e.run(&request{Call: c, dev: &d.platter, p: p})
	}
	return d.platter.ReadAt(p, off)
}

// WriteAt implements Device.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	c := Call{Op: OpWrite, Offset: off, Length: int64(len(p))}
	e, _, err := d.enter(&c, p)
	switch {
	case err != nil:
		return 0, err
	case e.run != nil:
		return e.run(&request{Call: c, dev: &d.platter, p: p})
	}
	return d.platter.WriteAt(p, off)
}

// Flush implements Device. What is written while it is in the Hook is not made durable by it.
func (d *Disk) Flush() error {
	c := Call{Op: OpFlush}
	e, seq, err := d.enter(&c, nil)
	switch {
	case err != nil:
		return err
	case d.flushErr != nil:
		return d.flushErr
	case e.run == nil:
		return d.flushUntil(seq)
	}
	if _, err = e.run(&request{Call: c, dev: flusher{&d.platter, seq}}); err != nil {
		d.flushErr = err
		d.doubtUntil(seq)
	}
	return err
}

// flusher is a platter of which a Flush reaches what was there when it was asked for.
type flusher struct {
	*platter
	seq int
}

func (f flusher) Flush() error { return f.flushUntil(f.seq) }

// Zero implements Device.
func (d *Disk) Zero(off, n int64, mayFree bool) error {
	c := Call{Op: OpZero, Offset: off, Length: n}
	e, _, err := d.enter(&c, nil)
	switch {
	case err != nil:
		return err
	case e.run != nil:
		_, err = e.run(&request{Call: c, dev: &d.platter, mayFree: mayFree})
		return err
	}
	return d.platter.Zero(off, n, mayFree)
}

// Discard implements Device.
func (d *Disk) Discard(off, n int64) error {
	c := Call{Op: OpDiscard, Offset: off, Length: n}
	e, _, err := d.enter(&c, nil)
	switch {
	case err != nil:
		return err
	case e.run != nil:
		_, err = e.run(&request{Call: c, dev: &d.platter})
		return err
	}
	return d.platter.Discard(off, n)
}

// NextData implements Device.
func (d *Disk) NextData(off int64) (blockdev.Extent, error) {
	c := Call{Op: OpMap, Offset: off, Length: max(0, d.info.Size-off)}
	e, _, err := d.enter(&c, nil)
	switch {
	case err != nil:
		return blockdev.Extent{}, err
	case e.run != nil:
		r := &request{Call: c, dev: &d.platter}
		_, err = e.run(r)
		return r.found, err
	}
	return d.platter.NextData(off)
}

// enter takes a request through the Hook. seq is that of the last change before it.
func (d *Disk) enter(c *Call, p []byte) (e Effect, seq int, err error) {
	seq = d.seq
	if d.dead {
		return e, seq, d.failure(*c, ErrDead)
	}
	d.calls[c.Op]++
	c.Nth = d.calls[c.Op]
	if d.Hook == nil {
		return e, seq, nil
	}
	d.flying = append(d.flying, flight{*c, p, seq})
	e = d.Hook(*c)
	if i := slices.IndexFunc(d.flying, func(f flight) bool { return f.Call == *c }); i >= 0 {
		d.flying = slices.Delete(d.flying, i, i+1)
	}
	if d.dead {
		err = d.failure(*c, ErrDead)
	}
	return e, seq, err
}

// Kill ends the process that uses the disk: every later request fails with ErrDead and does nothing, those
// that are in the Hook too. What may be asked about the disk, and what comes of it, stays.
func (d *Disk) Kill() { d.dead = true }

// Pages is their number.
func (d *Disk) Pages() uint64 { return uint64(len(d.pages)) }

// Page is the content of a page as it is read, not to be changed.
func (d *Disk) Page(n uint64) []byte {
	if data := d.pages[n].now.data; data != nil {
		data.Share()
		return data.Data[:]
	}
	return zeroPage.Data[:]
}

// PageID names the content of a page as it is read: the same content has the same id, zeroes have 0.
func (d *Disk) PageID(n uint64) uint64 { return d.pages[n].now.ident() }

// DurableID names the durable content of a page.
func (d *Disk) DurableID(n uint64) uint64 { return d.pages[n].durable.ident() }

// Settled reports whether a power cut now would leave the page as it is read.
func (d *Disk) Settled(n uint64) bool { return len(d.pages[n].log) == 0 }

// ContentID is the id that a page of this content has.
func ContentID(page []byte) uint64 { return contentID(page) }

// Poke is a write of somebody else: durable, and counted. The page is whole; nil: zeroes.
func (d *Disk) Poke(page uint64, data []byte) {
	off := int64(page) * pageSize
	d.count(off, min(pageSize, d.info.Size-off))
	s := &d.pages[page]
	if len(s.log) > 0 {
		d.dirty = slices.DeleteFunc(d.dirty, func(n uint32) bool { return uint64(n) == page })
	}
	s.now = image{}
	if data != nil {
		s.now.data = d.arena.Page(data)
		clear(s.now.data.Data[min(pageSize, d.info.Size-off):])
	}
	d.settle(s)
}

// Rot turns over a bit of a page, in all that is known of it, and nobody is told.
func (d *Disk) Rot(page uint64, bit int) {
	s := &d.pages[page]
	in := int(min(pageSize, d.info.Size-int64(page)*pageSize))
	turned := map[*pageData]*pageData{}
	turn := func(data *pageData) *pageData {
		if turned[data] == nil {
			turned[data] = d.arena.Copy(data)
			flip(turned[data].Data[:in], bit)
		}
		return turned[data]
	}
	s.now, s.durable = image{data: turn(s.now.data)}, image{data: turn(s.durable.data)}
	for i := range s.log {
		s.log[i].data = turn(s.log[i].data)
	}
}

// Partial carries a write, a zero or a discard out on some of its sectors, each picked by rng, and answers
// with err. To all else it is Fail.
func Partial(rng *rand.Rand, err error) Effect {
	return Effect{"partial", func(r *request) (int, error) {
		if r.Op == OpWrite || r.Op == OpZero || r.Op == OpDiscard {
			if err := r.pieces(func() bool { return rng.IntN(2) == 0 }); err != nil {
				return 0, err
			}
		}
		return 0, r.failure(err)
	}}
}

// pieces carries the request out on those of its sectors that are picked.
func (r *request) pieces(pick func() bool) error {
	for at := r.Offset; at < r.Offset+r.Length; {
		end := min(r.Offset+r.Length, (at/SectorSize+1)*SectorSize)
		part := *r
		part.Offset, part.Length = at, end-at
		if r.p != nil {
			part.p = r.p[at-r.Offset : end-r.Offset]
		}
		if pick() {
			if _, err := part.pass(); err != nil {
				return err
			}
		}
		at = end
	}
	return nil
}
