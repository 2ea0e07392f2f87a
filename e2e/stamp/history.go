package stamp

import (
	"fmt"
	"math"
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
	Split       bool // part of it was lost in a kill: its pages stand each for itself
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
	h.mu.Lock()
	h.clock++
	h.writes = append(h.writes, Write{Page: page, Pages: n, Zero: buf == nil, Issued: h.clock, Acked: Never})
	seq := Seq(len(h.writes))
	prev := make([]Seq, n)
	for i := range prev {
		prev[i] = h.latest(page + int64(i))
		h.versions[page+int64(i)] = append(h.versions[page+int64(i)], seq)
	}
	h.mu.Unlock()
	for i := range int64(len(buf) / PageSize) {
		put(buf[i*PageSize:(i+1)*PageSize], h.run, page+i, seq, prev[i])
	}
	return seq
}

// ack records the reply of a request.
func (h *History) ack(seq Seq) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.writes[seq-1].Acked = h.clock
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
		return fmt.Errorf("page %d reads as %v, want %s", page, got, h.describe(want))
	}
	return nil
}

// settle ends the uncertainty about a request whose reply never came, or that ended in an error: what its
// pages hold now, read from the volume with nobody writing, is what counts. Pages that show what was there
// before have lost the write.
func (h *History) settle(seq Seq, content []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := &h.writes[seq-1]
	lost := int64(0)
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
			h.versions[page] = v[:len(v)-1]
			lost++
		default:
			return fmt.Errorf("page %d reads as %v; it was %s, and its last write, of unknown outcome, was %s",
				page, got, h.describe(before), h.describe(seq))
		}
	}
	h.clock++
	w.Acked = h.clock
	w.Split = lost > 0
	return nil
}

// shows tells whether a page's content is that of a version.
func (h *History) shows(s Shown, version Seq) bool {
	if version == 0 || h.writes[version-1].Zero {
		return s.Zero
	}
	return !s.Zero && s.Seq == version
}

func (h *History) describe(seq Seq) string {
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
