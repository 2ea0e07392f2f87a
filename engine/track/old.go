package track

import (
	"errors"
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
)

// How a write keeps the old content of pages that a cut still needs.

// errNoRoom is why a cut is given up by a write.
var errNoRoom = errors.New("no room to capture what is overwritten")

// wanted is what a write has to keep for one consumer.
type wanted struct {
	closed
	runs []Run // of the consumer's todo, ascending

	room    room
	entries []entry // stored in room so far
	holes   []hole
	err     error // of the spool; the rest need not be kept
}

// hole is a page that cannot be read.
type hole struct {
	Run
	err error
}

// segment is a run of pages within one block that the same consumers want.
type segment struct {
	Run
	of []*wanted
}

// capture reads the old content of the pages of a write that are in the todo set of a capturing consumer,
// once for all of these, and keeps it for each. The write holds its range and has not reached the device.
// It never fails: a consumer without room loses its cut, a page that cannot be read becomes a hole.
func (p *Path) capture(w Write) {
	want := slices.DeleteFunc(p.t.wanted(w), func(x *wanted) bool {
		var ok bool
		if x.room, ok = x.sets.capture.reserve(p.bytesIn(x.runs)); !ok {
			p.full(x, errNoRoom)
		}
		return !ok
	})
	for stretch := range stretches(segments(want, uint64(p.cfg.BlockSize/blockdev.PageSize))) {
		p.keepStretch(stretch)
	}
	for _, x := range want {
		if x.err != nil {
			x.sets.capture.drop(x.room)
			p.full(x, fmt.Errorf("%w: %w", errNoRoom, x.err))
			continue
		}
		if p.t.captured(x) {
			for _, h := range x.holes {
				p.cfg.Observer.Hole(x.sets, h.Run, h.err)
			}
		}
	}
}

// wanted asks again, after Begin, what of the pages of a write is in todo. It is the same as in the step
// of Begin or, where the pass is over, nothing: only this writer, who holds the pages, and a change of
// round could take them out, and nothing puts pages into todo within a round that are in open.
func (t *Tracker) wanted(w Write) (want []*wanted) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range w.closed {
		if c.sets.round != c.round {
			continue
		}
		x := &wanted{closed: c}
		for r := range runsIn(c.sets.todo.PageSet, w.First, w.Count) {
			x.runs = append(x.runs, r)
		}
		if len(x.runs) > 0 {
			want = append(want, x)
		}
	}
	return want
}

// captured enters what was kept, in the step that takes the pages out of todo: whoever gives up finds
// either both or neither. Content for a round that is over is dropped (false); its pages are where giving
// up has put them.
func (t *Tracker) captured(x *wanted) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := x.sets
	if s.round != x.round {
		s.capture.drop(x.room)
		return false
	}
	for _, e := range x.entries {
		s.todoToLocked(&s.staged, e.Run)
	}
	for _, h := range x.holes {
		s.holeLocked(h.Run)
	}
	s.capture.put(x.room, x.entries)
	return true
}

// full gives up the cut that a consumer has no room for.
func (p *Path) full(x *wanted, err error) {
	if p.t.giveUpRound(x.sets, x.round) {
		p.cfg.Observer.GaveUp(x.sets, err)
	}
}

// giveUpBefore gives up every cut that needs more of a range than its consumer has room for, before
// anything is read: a zero or trim of gigabytes would fill capture first and give up then.
func (p *Path) giveUpBefore(r Run) {
	if int64(r.Count)*blockdev.PageSize <= p.cfg.ZeroPiece {
		return // one piece: reserve decides
	}
	for _, c := range p.t.capturers() {
		room := c.sets.capture.free()
		if p.t.countTodo(c, r, uint64(room/blockdev.PageSize)) {
			p.full(&wanted{closed: c}, errNoRoom)
		}
	}
}

func (t *Tracker) capturers() (out []closed) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.consumers {
		if s.capturing {
			out = append(out, closed{s, s.round})
		}
	}
	return out
}

// countTodo reports whether more than limit pages of a range are in a consumer's todo. It looks at one
// chunk of the set at a time, so that nobody waits for it long; what changes meanwhile does not matter.
func (t *Tracker) countTodo(c closed, r Run, limit uint64) (more bool) {
	const step = 1 << 16
	var sum uint64
	for first := r.First; first < r.End() && sum <= limit; first += step {
		t.mu.Lock()
		if c.sets.round != c.round {
			t.mu.Unlock()
			return false
		}
		for x := range runsIn(c.sets.todo.PageSet, first, min(step, r.End()-first)) {
			sum += x.Count
		}
		t.mu.Unlock()
	}
	return sum > limit
}

// keepStretch reads one stretch of segments without a gap, with one request if all is well, and stores
// each one's content for those who want it. What goes to a spool leaves memory with this stretch.
func (p *Path) keepStretch(stretch []segment) {
	whole := Run{stretch[0].First, stretch[len(stretch)-1].End() - stretch[0].First}
	start, n := p.bytesOf(whole)
	buf := make([]byte, n)
	bad := map[uint64]error{}
	p.readAround(buf, whole, bad)
	for _, g := range stretch {
		off, n := p.bytesOf(g.Run)
		data := buf[off-start:][:n]
		if len(stretch) > 1 {
			data = slices.Clone(data) // so that each is freed for itself
		}
		for _, c := range split(g.Run, data, bad) {
			for _, x := range g.of {
				x.keep(c, bad[c.First])
			}
		}
	}
}

// keep stores a content; with an error it is of one page that could not be read.
func (x *wanted) keep(c content, unreadable error) {
	if x.err != nil {
		return
	}
	if unreadable != nil {
		x.holes = append(x.holes, hole{c.Run, unreadable})
		return
	}
	var e entry
	if e, x.err = x.sets.capture.store(&x.room, c); x.err == nil {
		x.entries = append(x.entries, e)
	}
}

// split makes contents of a segment, one for each bad page and one for each run between them.
func split(r Run, data []byte, bad map[uint64]error) (out []content) {
	for len(data) > 0 {
		var n uint64
		for n < r.Count && bad[r.First+n] == nil {
			n++
		}
		n = max(1, n)
		size := min(int(n)*blockdev.PageSize, len(data))
		c := content{Run: Run{r.First, n}, data: data[:size:size]}
		if blockdev.IsZero(c.data) {
			c.data = nil
		}
		out = append(out, c)
		r, data = Run{r.First + n, r.Count - n}, data[size:]
	}
	return out
}

// readAround reads a run, page by page where it must, and notes the pages that cannot be read.
func (p *Path) readAround(buf []byte, r Run, bad map[uint64]error) {
	off, n := p.bytesOf(r)
	_, err := p.dev.ReadAt(buf[:n], off)
	if err == nil {
		return
	}
	if r.Count == 1 {
		p.cfg.Observer.Failed("read", off, n, err)
		bad[r.First] = err
		return
	}
	half := r.Count / 2
	p.readAround(buf, Run{r.First, half}, bad)
	p.readAround(buf[half*blockdev.PageSize:], Run{r.First + half, r.Count - half}, bad)
}

func (p *Path) bytesIn(runs []Run) (sum int64) {
	for _, r := range runs {
		_, n := p.bytesOf(r)
		sum += n
	}
	return sum
}

// segments cuts what the consumers want at every border of a block and wherever one of them begins or
// ends to want: a content is shared as a whole, so that what it takes is what each is charged with.
func segments(want []*wanted, blockPages uint64) (out []segment) {
	var borders []uint64
	for _, x := range want {
		for _, r := range x.runs {
			borders = append(borders, r.First, r.End())
			for b := (r.First/blockPages + 1) * blockPages; b < r.End(); b += blockPages {
				borders = append(borders, b)
			}
		}
	}
	slices.Sort(borders)
	borders = slices.Compact(borders)
	next := make([]int, len(want)) // the run of each that may hold the next border
	for i := 1; i < len(borders); i++ {
		g := segment{Run: Run{borders[i-1], borders[i] - borders[i-1]}}
		for j, x := range want {
			for next[j] < len(x.runs) && x.runs[next[j]].End() <= g.First {
				next[j]++
			}
			if next[j] < len(x.runs) && x.runs[next[j]].First <= g.First {
				g.of = append(g.of, x)
			}
		}
		if len(g.of) > 0 {
			out = append(out, g)
		}
	}
	return out
}

// stretches are the longest rows of segments without a gap, of about 1 MiB at most.
func stretches(all []segment) func(yield func([]segment) bool) {
	return func(yield func([]segment) bool) {
		for len(all) > 0 {
			n := 1
			for n < len(all) && all[n].First == all[n-1].End() && all[n].End()-all[0].First <= claimPages {
				n++
			}
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}
