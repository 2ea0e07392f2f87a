package journaltest

import (
	"slices"

	"github.com/blkmirror/blkmirror/blockdev/devtest/pagepool"
)

// SectorSize is the unit that a crash keeps or loses as a whole.
const SectorSize = 512

const chunkSize = pagepool.Size

// chunk is a piece of a file. It is shared by all views that have this content, and never changed.
type chunk = pagepool.Page

var zeroChunk chunk

// view is the content of a file. A nil chunk holds zeroes, and so does what lies behind the size.
type view struct {
	size   int64
	chunks []*chunk
}

// memFile is a file's content; both views of the names share it.
type memFile struct {
	data   view     // as programs see it
	disk   view     // as it is durable
	dirty  []dataOp // since, in order
	linked bool     // has a name that programs see
	twin   *memFile // while a file system is copied: its copy
}

// dataOp is a write of [off, off+n), or a change of the size to off. It knows what became of each chunk that
// it changed, so that it costs no copying where these are the same in another view.
type dataOp struct {
	seq    int
	kind   Op // OpWrite, OpPunch, OpTruncate or OpAllocate
	off, n int64
	first  int64 // of the chunks that changed
	steps  []step
}

type step struct{ before, after *chunk }

func (op dataOp) resizes() bool { return op.kind == OpTruncate || op.kind == OpAllocate }

func (v view) clone() view { return view{v.size, slices.Clone(v.chunks)} }

// read copies from off on, and returns how many bytes there were.
func (v view) read(p []byte, off int64) int {
	n := int(min(int64(len(p)), v.size-off))
	if n <= 0 {
		return 0
	}
	for done := 0; done < n; {
		at := off + int64(done)
		done += copy(p[done:n], bytesOf(v.chunks[at/chunkSize])[at%chunkSize:])
	}
	return n
}

func bytesOf(c *chunk) []byte {
	if c == nil {
		c = &zeroChunk
	}
	return c.Data[:]
}

// write replaces what is at off, and says what it did.
func (v *view) write(a *pagepool.Arena, p []byte, off int64) dataOp {
	op := v.begin(a, OpWrite, off, int64(len(p)))
	for i := range op.steps {
		at := (op.first + int64(i)) * chunkSize
		from, to := max(0, off-at), min(chunkSize, off+int64(len(p))-at)
		part := p[at+from-off : at+to-off]
		var c *chunk
		if len(part) == chunkSize {
			c = a.Page(part)
		} else {
			c = a.Copy(op.steps[i].before)
			copy(c.Data[from:to], part)
		}
		v.set(&op, i, c)
	}
	return op
}

// zero makes zeroes of what is there, and says what it did.
func (v *view) zero(a *pagepool.Arena, off, n int64) dataOp {
	op := v.begin(a, OpPunch, off, n)
	for i := range op.steps {
		at := (op.first + int64(i)) * chunkSize
		from, to := max(0, off-at), min(chunkSize, off+n-at)
		var c *chunk
		if old := op.steps[i].before; old != nil && to-from < chunkSize {
			c = a.Copy(old)
			clear(c.Data[from:to])
		}
		v.set(&op, i, c)
	}
	return op
}

// begin makes room for a change of bytes and notes what was there.
func (v *view) begin(a *pagepool.Arena, kind Op, off, n int64) dataOp {
	v.resize(a, max(v.size, off+n))
	first := off / chunkSize
	op := dataOp{kind: kind, off: off, n: n, first: first, steps: make([]step, (off+n+chunkSize-1)/chunkSize-first)}
	for i := range op.steps {
		op.steps[i].before = v.chunks[first+int64(i)]
	}
	return op
}

func (v *view) set(op *dataOp, i int, c *chunk) {
	op.steps[i].after = c
	v.chunks[op.first+int64(i)] = c
}

// setSize changes the size, and says what it did.
func (v *view) setSize(a *pagepool.Arena, kind Op, size int64) dataOp {
	op := dataOp{kind: kind, off: size}
	if size < v.size && size%chunkSize != 0 {
		op.first = size / chunkSize
		op.steps = []step{{before: v.chunks[op.first]}}
	}
	v.resize(a, size)
	if len(op.steps) > 0 {
		op.steps[0].after = v.chunks[op.first]
	}
	return op
}

// resize cuts for good: growing again shows zeroes.
func (v *view) resize(a *pagepool.Arena, size int64) {
	n := int((size + chunkSize - 1) / chunkSize)
	switch {
	case n > len(v.chunks):
		v.chunks = append(v.chunks, make([]*chunk, n-len(v.chunks))...)
	case size < v.size:
		clear(v.chunks[n:])
		v.chunks = v.chunks[:n]
		if rest := size % chunkSize; rest != 0 && v.chunks[n-1] != nil {
			c := a.Copy(v.chunks[n-1])
			clear(c.Data[rest:])
			v.chunks[n-1] = c
		}
	}
	v.size = size
}

// apply does to v what the operation did to the view that it was made on.
func (v *view) apply(a *pagepool.Arena, op dataOp) {
	if op.resizes() {
		same := len(op.steps) > 0 && op.off < v.size && v.chunks[op.first] == op.steps[0].before
		v.resize(a, op.off)
		if same {
			v.chunks[op.first] = op.steps[0].after
		}
		return
	}
	v.resize(a, max(v.size, op.off+op.n))
	for i, s := range op.steps {
		at := (op.first + int64(i)) * chunkSize
		c := &v.chunks[op.first+int64(i)]
		from, to := max(0, op.off-at), min(chunkSize, op.off+op.n-at)
		if *c == s.before || to-from == chunkSize {
			*c = s.after
			continue
		}
		mixed := a.Copy(*c)
		copy(mixed.Data[from:to], bytesOf(s.after)[from:to])
		*c = mixed
	}
}

// applySome applies those sectors of a change of bytes that pick names, in order. Only they make the file
// longer.
func (v *view) applySome(a *pagepool.Arena, op dataOp, pick func() bool) {
	for i, s := range op.steps {
		at := (op.first + int64(i)) * chunkSize
		from, to := max(0, op.off-at), min(chunkSize, op.off+op.n-at)
		all, end, mixed := true, int64(0), (*chunk)(nil)
		var old *chunk
		if op.first+int64(i) < int64(len(v.chunks)) {
			old = v.chunks[op.first+int64(i)]
		}
		for from < to {
			next := min(to, (from/SectorSize+1)*SectorSize)
			if pick() {
				if mixed == nil {
					mixed = a.Copy(old)
				}
				copy(mixed.Data[from:next], bytesOf(s.after)[from:next])
				end = next
			} else {
				all = false
			}
			from = next
		}
		if end == 0 {
			continue
		}
		v.resize(a, max(v.size, at+end))
		if all && old == s.before {
			mixed = s.after
		}
		v.chunks[op.first+int64(i)] = mixed
	}
}

// settle makes the disk hold what the dirty operations did, and gives back what nobody can see any more.
func (f *memFile) settle(a *pagepool.Arena) {
	for _, op := range f.dirty {
		f.disk.apply(a, op)
	}
	for _, op := range f.dirty {
		for i, s := range op.steps {
			for _, c := range [...]*chunk{s.before, s.after} {
				if at := op.first + int64(i); f.data.at(at) != c && f.disk.at(at) != c {
					a.Free(c)
				}
			}
		}
	}
	f.dirty = nil
}

func (v view) at(n int64) *chunk {
	if n < int64(len(v.chunks)) {
		return v.chunks[n]
	}
	return nil
}
