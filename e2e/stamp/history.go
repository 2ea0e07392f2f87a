package stamp

import (
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
)

// Tick is an instant of the history's logical clock: each issue and each acknowledgement takes one.
type Tick int64

// Never is the acknowledgement of a request whose reply has not come (yet).
const Never Tick = math.MaxInt64

// Write is a request that changes pages.
type Write struct {
	Page, Pages int64
	Zero        bool // it writes zeroes
	Issued      Tick // before its first byte was sent
	Acked       Tick // after its reply was read
	Split       bool // part of it may be missing: its pages stand each for itself
	Void        bool // the volume was put back to a time before it
}

// History is the exact record of all that was written. Its zero pages are what the volume began with.
// All methods may be called from any goroutine.
type History struct {
	run uint64

	mu       sync.Mutex
	clock    Tick
	writes   []Write // by Seq-1
	versions [][]Seq // of each page, in their order; version -1 is the content it began with
	reserved []bool  // pages with a request under way, or of unknown fate
	flushed  Tick    // all that was acknowledged by then was flushed since
	log      io.Writer
	logErr   error // sticky
}

// NewHistory begins the record of a volume that is all zeroes. run tells its stamps from others'.
func NewHistory(pages int64, run uint64) *History {
	return &History{run: run, versions: make([][]Seq, pages), reserved: make([]bool, pages)}
}

// Pages is the number of pages of the volume.
func (h *History) Pages() int64 { return int64(len(h.versions)) }

// Now is the present instant. What was acknowledged before the call is in every later cut.
func (h *History) Now() Tick {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clock
}

// Writes counts the requests so far.
func (h *History) Writes() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.writes)
}

// Brought tells what the writes behind the first so many brought: the bytes of data in all, and those that are left where
// the last write to a page counts. Zeroes bring none. Until is the number of writes by now.
func (h *History) Brought(behind int) (every, left int64, until int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := map[int64]bool{} // pages, and whether they hold data
	for _, w := range h.writes[behind:] {
		for page := w.Page; page < w.Page+w.Pages; page++ {
			last[page] = !w.Zero
		}
		if !w.Zero {
			every += w.Pages * PageSize
		}
	}
	for _, data := range last {
		if data {
			left += PageSize
		}
	}
	return every, left, len(h.writes)
}

// reserve takes pages for one request, so that the order of the writes to a page is known. It fails where
// another request is under way.
func (h *History) reserve(page, n int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, taken := range h.reserved[page : page+n] {
		if taken {
			return false
		}
	}
	for i := range h.reserved[page : page+n] {
		h.reserved[page+int64(i)] = true
	}
	return true
}

func (h *History) release(page, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.reserved[page : page+n])
}

// issue records a request, whose pages are reserved, before it is sent. With a buffer it stamps the pages
// into it, without one it is a request that writes zeroes.
func (h *History) issue(page, n int64, buf []byte) Seq {
	kind := "data"
	if buf == nil {
		kind = "zero"
	}
	h.mu.Lock()
	prev := make([]Seq, n)
	for i := range prev {
		prev[i] = h.latest(page + int64(i))
	}
	seq := h.issued(page, n, kind)
	h.mu.Unlock()
	for i := range int64(len(buf) / PageSize) {
		put(buf[i*PageSize:(i+1)*PageSize], h.run, page+i, seq, prev[i])
	}
	return seq
}

// trim records a request that leaves zeroes or what was there, on each page for itself: settle tells which.
func (h *History) trim(page, n int64) Seq {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.issued(page, n, "trim")
}

func (h *History) issued(page, n int64, kind string) Seq {
	h.clock++
	h.writes = append(h.writes, Write{Page: page, Pages: n, Zero: kind != "data", Split: kind == "trim", Issued: h.clock, Acked: Never})
	seq := Seq(len(h.writes))
	for i := range n {
		h.versions[page+i] = append(h.versions[page+i], seq)
	}
	h.record("issue %d %s %d+%d\n", seq, kind, page, n)
	return seq
}

// ack records the reply of a request.
func (h *History) ack(seq Seq) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acked(seq)
	h.record("ack %d\n", seq)
}

func (h *History) acked(seq Seq) {
	h.clock++
	h.writes[seq-1].Acked = h.clock
}

// flush records that all that was acknowledged by an instant was flushed since.
func (h *History) flush(by Tick) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if by > h.flushed {
		h.flushed = by
		h.record("flush %d\n", by)
	}
}

// Flushed is an instant: all that was acknowledged by then has been flushed since.
func (h *History) Flushed() Tick {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.flushed
}

// Rewind says that the volume was put back to what it was when last, at rest, was the latest request. What
// came later is void, and an image that shows it is wrong. Nothing may be under way.
func (h *History) Rewind(last Seq) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rewind(last)
	h.record("rewind %d\n", last)
}

func (h *History) rewind(last Seq) {
	for page, v := range h.versions {
		if i := slices.IndexFunc(v, func(seq Seq) bool { return seq > last }); i >= 0 {
			h.versions[page] = slices.Clip(v[:i])
		}
	}
	for i := range h.writes[last:] {
		h.writes[int(last)+i].Void = true
	}
}

// latest is the sequence number of the last write to a page.
func (h *History) latest(page int64) Seq {
	if v := h.versions[page]; len(v) > 0 {
		return v[len(v)-1]
	}
	return 0
}

// expect holds a page that was read from the volume, and that no request is changing, against its last
// write.
func (h *History) expect(page int64, b []byte) error {
	got := parse(b, h.run, page)
	h.mu.Lock()
	defer h.mu.Unlock()
	if want := h.latest(page); got.Bad != "" || !h.shows(got, want) {
		return fmt.Errorf("page %d reads as %v, want %s", page, got, h.Describe(want))
	}
	return nil
}

// Complete expects that a disk, to which nobody writes, holds every write that was answered.
func (h *History) Complete(d Disk) error {
	b := make([]byte, 256*PageSize)
	for page := int64(0); page < h.Pages(); {
		n := min(256, h.Pages()-page)
		if err := d.Read(b[:n*PageSize], page*PageSize); err != nil {
			return err
		}
		for i := range n {
			if err := h.expect(page+i, b[i*PageSize:(i+1)*PageSize]); err != nil {
				return err
			}
		}
		page += n
	}
	return nil
}

// settle ends the uncertainty about a request whose reply never came, or that ended in an error: what its
// pages hold now, read from the volume with nobody writing, is what counts. Pages that show what was there
// before have lost the write.
func (h *History) settle(seq Seq, content []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.writes[seq-1]
	var lost []int64
	for i := range w.Pages {
		page := w.Page + i
		v := h.versions[page]
		var before Seq
		if len(v) > 1 {
			before = v[len(v)-2]
		}
		got := parse(content[i*PageSize:(i+1)*PageSize], h.run, page)
		switch {
		case got.Bad == "" && h.shows(got, seq):
		case got.Bad == "" && h.shows(got, before):
			lost = append(lost, page)
		default:
			return fmt.Errorf("page %d reads as %v; it was %s, and its last write, of unknown outcome, was %s",
				page, got, h.Describe(before), h.Describe(seq))
		}
	}
	if err := h.settled(seq, lost); err != nil {
		return err
	}
	h.recordLost(seq, lost)
	return nil
}

// settled takes a request as done, save on the pages that have lost it.
func (h *History) settled(seq Seq, lost []int64) error {
	w := &h.writes[seq-1]
	for _, page := range lost {
		if page < w.Page || page >= w.Page+w.Pages || h.latest(page) != seq {
			return fmt.Errorf("request %d is not the last one to page %d", seq, page)
		}
		h.versions[page] = h.versions[page][:len(h.versions[page])-1]
	}
	h.clock++
	w.Acked = h.clock
	w.Split = len(lost) > 0
	return nil
}

// shows tells whether a page's content is that of a version.
func (h *History) shows(s Shown, version Seq) bool {
	if version == 0 || h.writes[version-1].Zero {
		return s.Zero
	}
	return !s.Zero && s.Seq == version
}

// Describe tells a request. Nobody may be writing.
func (h *History) Describe(seq Seq) string {
	if seq == 0 {
		return "never written"
	}
	w := h.writes[seq-1]
	kind, acked := "data", fmt.Sprint(w.Acked)
	if w.Zero {
		kind = "zeroes"
	}
	if w.Acked == Never {
		acked = "never"
	}
	return fmt.Sprintf("seq %d (%s, pages %d+%d, issued %d, acked %s)", seq, kind, w.Page, w.Pages, w.Issued, acked)
}

func (s Shown) String() string {
	switch {
	case s.Bad != "":
		return s.Bad
	case s.Zero:
		return "zeroes"
	}
	return fmt.Sprintf("seq %d", s.Seq)
}
