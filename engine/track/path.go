package track

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Path is the way of every request of a client to the device of a volume, and of every read that a shipper
// makes of it. Every method may be called concurrently, with any alignment; pages that a request touches
// in part count as a whole.
//
// A write goes through these steps:
//
//  1. enter the gate, and take the pages exclusively in the range lock;
//  2. Tracker.Begin: join the open epoch, and wait until the marks are durable;
//  3. capture what a consumer's cut still needs of the old content;
//  4. write to the device;
//  5. Tracker.End, release the range, leave the gate.
//
// Step 4 may fail: what is on the device then is unknown, the pages are dirty, and the write is complete.
type Path struct {
	cfg   Config
	dev   blockdev.Device
	info  blockdev.Info
	t     *Tracker
	locks RangeLock
	gate  gate
}

// Config is what a Path works with.
type Config struct {
	Device    blockdev.Device
	Size      int64 // of the volume; the device may be larger
	BlockSize int   // bytes: runs of captured pages and of zeroes keep to this grid
	Tracker   *Tracker
	Observer  Observer

	ZeroPiece int64 // bytes; 0: 64 MiB. A longer zeroing is several writes

	// Wait waits until try says true, for ranges that somebody else holds; nil: the goroutine blocks.
	Wait func(try func() bool)
}

// Observer is told what the write path decides or suffers. Any of it may be nil. It is called by those who
// write and read, holding their ranges: it must not wait, nor call the Path.
type Observer struct {
	// Failed: a request to the device failed. The client or shipper is told as well.
	Failed func(op string, off, n int64, err error)

	// GaveUp: the consumer's cut was given up by a write, for want of room. The engine has to follow with
	// Tracker.GiveUp, naming what was fetched and is not known to be staged.
	GaveUp func(s *Sets, err error)

	// Hole: pages that a consumer's cut needs could not be read.
	Hole func(s *Sets, r Run, err error)
}

// NewPath makes the path of a volume. The tracker is for just its pages.
func NewPath(cfg Config) (*Path, error) {
	info := cfg.Device.Info()
	switch pages := (cfg.Size + blockdev.PageSize - 1) / blockdev.PageSize; {
	case cfg.Size <= 0 || info.Size < cfg.Size:
		return nil, fmt.Errorf("%s has %d bytes, the volume %d", info.Path, info.Size, cfg.Size)
	case uint64(pages) != cfg.Tracker.Pages():
		return nil, fmt.Errorf("a tracker of %d pages for a volume of %d", cfg.Tracker.Pages(), pages)
	case cfg.BlockSize < blockdev.PageSize || cfg.BlockSize&(cfg.BlockSize-1) != 0:
		return nil, fmt.Errorf("a block size of %d", cfg.BlockSize)
	}
	o := &cfg.Observer
	if o.Failed == nil {
		o.Failed = func(string, int64, int64, error) {}
	}
	if o.GaveUp == nil {
		o.GaveUp = func(*Sets, error) {}
	}
	if o.Hole == nil {
		o.Hole = func(*Sets, Run, error) {}
	}
	cfg.ZeroPiece = cmp.Or(cfg.ZeroPiece, zeroPiece)
	return &Path{cfg: cfg, dev: cfg.Device, info: info, t: cfg.Tracker, locks: RangeLock{wait: cfg.Wait}}, nil
}

// Size is the size of the volume.
func (p *Path) Size() int64 { return p.cfg.Size }

// CheapZero tells that Zero needs no data transfer.
func (p *Path) CheapZero() bool { return p.info.CheapZero }

// Refuse makes all later writes, zeroes and trims fail with err. Those under way go on.
func (p *Path) Refuse(err error) { p.gate.refused.Store(&err) }

// Admit lets writes in again.
func (p *Path) Admit() { p.gate.refused.Store(nil) }

// Refused is the error that writes fail with at present; nil: none.
func (p *Path) Refused() error {
	if err := p.gate.refused.Load(); err != nil {
		return *err
	}
	return nil
}

// Drain waits until no write is under way. Without Refuse that may never be.
func (p *Path) Drain(ctx context.Context) error { return p.gate.drain(ctx) }

// ReadAt fills b from off. It takes no range: beside a write of the same bytes it gives what the device
// gives.
func (p *Path) ReadAt(b []byte, off int64) error {
	if err := p.check("read", off, int64(len(b))); err != nil {
		return err
	}
	return p.readDevice(b, off)
}

// WriteAt writes b at off.
func (p *Path) WriteAt(b []byte, off int64) error {
	if err := p.enter("write", off, int64(len(b))); err != nil {
		return err
	}
	defer p.gate.leave()
	r := p.pagesOf(off, int64(len(b)))
	if r.Count == 0 {
		return nil
	}
	p.locks.Lock(r.First, r.Count)
	defer p.locks.Unlock(r.First, r.Count)
	return p.writeLocked(r, b, off)
}

// writeLocked does the rest of a write. Its range is taken.
func (p *Path) writeLocked(r Run, b []byte, off int64) error {
	w, err := p.t.Begin(r.First, r.Count)
	if err != nil {
		return err
	}
	defer p.t.End(w)
	if w.closed != nil {
		p.capture(w)
	}
	if _, err := p.dev.WriteAt(b, off); err != nil {
		p.cfg.Observer.Failed("write", off, int64(len(b)), err)
		return err
	}
	return nil
}

// Replace writes b at off, both of whole pages, if may says so of what is there: old, read with the range taken, so that
// nobody writes to it in between. It is read back. To marks, cuts and captures it is a write like any other. old has room
// for as much as b, and is used for what is read.
func (p *Path) Replace(b []byte, off int64, old []byte, may func(old []byte) (bool, error)) (done bool, err error) {
	if err := p.enter("replace", off, int64(len(b))); err != nil {
		return false, err
	}
	defer p.gate.leave()
	r := p.pagesOf(off, int64(len(b)))
	p.locks.Lock(r.First, r.Count)
	defer p.locks.Unlock(r.First, r.Count)
	if err := p.readDevice(old[:len(b)], off); err != nil {
		return false, err
	}
	if ok, err := may(old[:len(b)]); err != nil || !ok {
		return false, err
	}
	for try := 0; ; try++ {
		if err := p.writeLocked(r, b, off); err != nil {
			return true, err
		}
		if err := p.readDevice(old[:len(b)], off); err != nil {
			return true, err
		}
		if bytes.Equal(old[:len(b)], b) {
			return true, nil
		}
		if try == replaceTries {
			return true, &blockdev.Error{Op: "replace", Path: p.info.Path, Offset: off, Length: int64(len(b)), Err: errors.New("it reads back as something else")}
		}
	}
}

// replaceTries is how often what reads back as something else is written again.
const replaceTries = 3

// Zero makes [off, off+n) read as zeroes; with mayFree the space may be given back. It goes in pieces of
// 64 MiB (Config.ZeroPiece), each a write of its own to locks, marks and cuts: it is not answered before the last one, so
// that a cut between them shows what a crash at that moment could.
func (p *Path) Zero(off, n int64, mayFree bool) error {
	if err := p.enter("zero", off, n); err != nil {
		return err
	}
	defer p.gate.leave()
	p.giveUpBefore(p.pagesOf(off, n))
	for end := off + n; off < end; {
		to := min(end, (off/p.cfg.ZeroPiece+1)*p.cfg.ZeroPiece)
		if err := p.zeroPiece(off, to-off, mayFree); err != nil {
			return err
		}
		off = to
	}
	return nil
}

func (p *Path) zeroPiece(off, n int64, mayFree bool) error {
	r := p.pagesOf(off, n)
	p.locks.Lock(r.First, r.Count)
	defer p.locks.Unlock(r.First, r.Count)
	w, err := p.t.Begin(r.First, r.Count)
	if err != nil {
		return err
	}
	defer p.t.End(w)
	if w.closed != nil {
		p.capture(w)
	}
	if err := p.dev.Zero(off, n, mayFree); err != nil {
		p.cfg.Observer.Failed("zero", off, n, err)
		return err
	}
	return nil
}

// Trim is a zeroing that may free room, of the whole pages in [off, off+n). Where the device cannot zero
// cheaply it is a hint that is dropped: then nothing changes, here or at a mirror.
func (p *Path) Trim(off, n int64) error {
	if !p.info.CheapZero {
		err := p.enter("trim", off, n)
		if err == nil {
			p.gate.leave()
		}
		return err
	}
	if err := p.check("trim", off, n); err != nil {
		return err
	}
	end := off + n
	off = (off + blockdev.PageSize - 1) / blockdev.PageSize * blockdev.PageSize
	if end < p.cfg.Size { // the last page is whole at its true length
		end = end / blockdev.PageSize * blockdev.PageSize
	}
	return p.Zero(min(off, end), max(0, end-off), true)
}

// Flush makes durable everything that was answered before.
func (p *Path) Flush() error {
	if err := p.dev.Flush(); err != nil {
		p.cfg.Observer.Failed("flush", 0, 0, err)
		return err
	}
	return nil
}

// NextData is blockdev.Device.NextData, up to the end of the volume.
func (p *Path) NextData(off int64) (blockdev.Extent, error) {
	if err := p.check("map", off, 0); err != nil {
		return blockdev.Extent{}, err
	}
	x, err := p.dev.NextData(off)
	if err != nil {
		return x, err
	}
	end := min(x.End(), p.cfg.Size)
	x.Offset = min(x.Offset, p.cfg.Size)
	x.Length = end - x.Offset
	return x, nil
}

// enter checks a request that changes something and lets it in.
func (p *Path) enter(op string, off, n int64) error {
	if err := p.check(op, off, n); err != nil {
		return err
	}
	return p.gate.enter()
}

func (p *Path) check(op string, off, n int64) error {
	if off >= 0 && n >= 0 && off <= p.cfg.Size-n {
		return nil
	}
	return &blockdev.Error{Op: op, Path: p.info.Path, Offset: off, Length: n,
		Err: fmt.Errorf("%w: the volume has %d bytes", blockdev.ErrOutOfRange, p.cfg.Size)}
}

// readDevice reads and reports.
func (p *Path) readDevice(b []byte, off int64) error {
	if _, err := p.dev.ReadAt(b, off); err != nil {
		p.cfg.Observer.Failed("read", off, int64(len(b)), err)
		return err
	}
	return nil
}

// pagesOf are the pages that a range of bytes touches.
func (p *Path) pagesOf(off, n int64) Run {
	if n == 0 {
		return Run{First: uint64(off / blockdev.PageSize)}
	}
	first := off / blockdev.PageSize
	return Run{uint64(first), uint64((off+n-1)/blockdev.PageSize - first + 1)}
}

// bytesOf is the range of bytes of a run, at its true length.
func (p *Path) bytesOf(r Run) (off, n int64) {
	off = int64(r.First) * blockdev.PageSize
	return off, min(int64(r.End())*blockdev.PageSize, p.cfg.Size) - off
}
