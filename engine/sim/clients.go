package sim

import (
	"encoding/binary"
	"fmt"

	"github.com/blkmirror/blkmirror/blockdev"
)

const pageSize = blockdev.PageSize

// clientOp is a request of a client, from its beginning to its answer.
type clientOp struct {
	kind    string
	off, n  int64
	data    []byte
	mayFree bool
	size    int64 // of the volume

	// entered is set at its first call to the disk: it has joined the open epoch by then, and no cut can have
	// come between, since only disks give the turn away.
	entered bool
	cuts    []*cut // that were taken since, whose content of its pages is settled when it ends
	broken  bool   // a fault was put into its own call to the disk
}

func (o *clientOp) changes() bool { return o.kind == "write" || o.kind == "zero" || o.kind == "trim" }

// pages are those that the request touches: of a trim those that are inside of it as a whole.
func (o *clientOp) pages() (first, end uint64) {
	switch {
	case o.n == 0:
		return 0, 0
	case o.kind == "trim":
		first, end = uint64(o.off+pageSize-1)/pageSize, uint64(o.off+o.n)/pageSize
		if o.off+o.n == o.size {
			end = uint64(o.size-1)/pageSize + 1
		}
		return first, max(first, end)
	}
	return uint64(o.off) / pageSize, uint64(o.off+o.n-1)/pageSize + 1
}

// actClient lets a client ask for something.
func (w *World) actClient() bool {
	p := w.primary
	if p.volume == nil || w.quiet || p.clients >= w.setup.clients {
		return false
	}
	w.ask(w.newOp())
	return true
}

// ask has a client ask for something.
func (w *World) ask(o *clientOp) {
	p := w.primary
	o.size = w.setup.size()
	w.note("client %s %d+%d", o.kind, o.off, o.n)
	w.cover(coverAction, "client "+o.kind)
	p.clients++
	volume := p.volume
	t := w.spawn(&p.node, "client "+o.kind, func() {
		err := w.request(volume, o)
		if p.volume != volume {
			return // it died meanwhile, and nobody is left to be told
		}
		p.clients--
		w.oracle.answered(o, err)
	})
	t.op = o
}

// request carries a client's request out as the export would.
func (w *World) request(v volume, o *clientOp) error {
	switch o.kind {
	case "write":
		return v.WriteAt(o.data, o.off)
	case "zero":
		return v.Zero(o.off, o.n, o.mayFree)
	case "trim":
		return v.Trim(o.off, o.n)
	case "flush":
		w.oracle.flushing(o)
		return v.Flush()
	}
	b := make([]byte, o.n)
	return v.ReadAt(b, o.off)
}

// volume is what clients see of a primary.
type volume interface {
	ReadAt(b []byte, off int64) error
	WriteAt(b []byte, off int64) error
	Zero(off, n int64, mayFree bool) error
	Trim(off, n int64) error
	Flush() error
}

// newOp makes a request up. Most writes fall into a part of the volume that moves now and then, so that pages
// are written again while they are still on their way.
func (w *World) newOp() *clientOp {
	o := &clientOp{}
	switch r := w.rng.IntN(100); {
	case r < w.setup.writes:
		o.kind = "write"
	case r < 78:
		o.kind = "zero"
		o.mayFree = w.rng.IntN(2) == 0
	case r < 83:
		o.kind = "trim"
	case r < 95:
		o.kind = "flush"
		return o
	default:
		o.kind = "read"
	}
	size := w.setup.size()
	if w.rng.IntN(20) == 0 {
		w.focus = w.rng.Int64N(size)
	}
	at := (w.focus + w.rng.Int64N(w.setup.spread)) % size
	if w.rng.IntN(16) == 0 {
		at = w.rng.Int64N(size)
	}
	o.n = pageSize
	switch w.rng.IntN(10) {
	case 0, 1:
		o.n *= 1 + w.rng.Int64N(8)
	case 2:
		o.n = 512 * (1 + w.rng.Int64N(20)) // parts of pages
	}
	o.off = at / pageSize * pageSize
	if o.n%pageSize != 0 {
		o.off = at / 512 * 512
	}
	o.n = min(o.n, size-o.off)
	if o.kind == "write" {
		o.data = w.fill(o.n)
		w.again(o)
	}
	return o
}

// again has a write now and then bring back what was written before: what a page holds is then no proof that
// it was not changed.
func (w *World) again(o *clientOp) {
	f := &w.former[w.rng.IntN(len(w.former))]
	if f.data != nil && w.rng.IntN(8) == 0 {
		o.off, o.n, o.data = f.off, f.n, f.data
	}
	*f = clientOp{off: o.off, n: o.n, data: o.data}
}

// fill makes content that was never written before: every sector tells which write it is of, so that a torn
// or mixed page has an identity of its own.
func (w *World) fill(n int64) []byte {
	w.writes++
	b := make([]byte, n)
	for at := int64(0); at < n; at += 512 {
		binary.LittleEndian.PutUint64(b[at:], w.writes<<16|uint64(at/512)+1)
	}
	if w.writes%16 == 0 { // what does not pack
		for i := range b[8:] {
			b[8+i] = byte(w.writes*2654435761>>(i%24)) ^ byte(i*i>>4)
		}
	}
	return b
}

func (o *clientOp) String() string { return fmt.Sprintf("%s %d+%d", o.kind, o.off, o.n) }
