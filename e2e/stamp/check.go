package stamp

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Cut tells between which instants the cut that an image shows may lie. It was at some instant in
// [First, Last]; First alone is sure to have passed.
type Cut struct {
	First, Last Tick
	Writes      int // that are in, at First
	shown       []Shown
}

// ErrNoCut is wrapped by the errors of images that show the volume at no instant.
var ErrNoCut = errors.New("the image is no cut of the volume")

// CheckFile is Check for a file or a device. It may be longer than the volume.
func (h *History) CheckFile(path string) (Cut, error) {
	shown, err := h.read(path)
	if err != nil {
		return Cut{}, err
	}
	return h.Check(shown)
}

// read parses an image.
func (h *History) read(path string) ([]Shown, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	shown := make([]Shown, h.Pages())
	b := make([]byte, 256*PageSize)
	for page := int64(0); page < h.Pages(); {
		n := min(256, h.Pages()-page)
		if _, err := io.ReadFull(f, b[:n*PageSize]); err != nil {
			return nil, fmt.Errorf("read page %d of %s: %w", page, path, err)
		}
		for i := range n {
			shown[page+i] = parse(b[i*PageSize:(i+1)*PageSize], h.run, page+i)
		}
		page += n
	}
	return shown, nil
}

// Check finds the instants at which a cut would leave this image. Later writes may be under way.
func (h *History) Check(shown []Shown) (Cut, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.recognise(shown); err != nil {
		return Cut{}, err
	}
	var spans []span // of all pages
	for page, s := range shown {
		spans = append(spans, h.possible(int64(page), s)...)
	}
	fits := covered(spans, len(shown), h.clock)
	if len(fits) == 0 {
		return Cut{}, fmt.Errorf("%w: %s", ErrNoCut, h.disagreement(shown, spans))
	}
	torn, halves := h.halves(shown, fits)
	fits = without(fits, torn)
	if len(fits) == 0 {
		return Cut{}, fmt.Errorf("%w: requests that are there in part: %s", ErrNoCut, strings.Join(halves, "; "))
	}
	cut := Cut{First: fits[0].first, Last: fits[len(fits)-1].last, shown: shown}
	for _, w := range h.writes {
		if w.Issued <= cut.First && !w.Void {
			cut.Writes++
		}
	}
	return cut, nil
}

// recognise expects that every page holds something that was once written to it.
func (h *History) recognise(shown []Shown) error {
	var bad []string
	n := 0
	for page, s := range shown {
		if s.Bad == "" && (s.Seq == 0 || slices.Contains(h.versions[page], s.Seq)) && len(h.possible(int64(page), s)) > 0 {
			continue
		}
		if n++; n <= 5 {
			bad = append(bad, fmt.Sprintf("page %d: %v", page, s))
		}
	}
	if n > 0 {
		return fmt.Errorf("%w: %d pages hold what was never written there: %s", ErrNoCut, n, strings.Join(bad, "; "))
	}
	return nil
}

// span is a range of instants, both ends included.
type span struct{ first, last Tick }

// possible lists the instants at which a page may have looked like this, ascending and apart. A version was
// there from the issue of its request at the earliest to the acknowledgement of the next one.
func (h *History) possible(page int64, s Shown) []span {
	v := h.versions[page]
	var out []span
	for k := -1; k < len(v); k++ {
		var at Seq
		sp := span{0, h.clock}
		if k >= 0 {
			at = v[k]
			sp.first = h.writes[at-1].Issued
		}
		if !h.shows(s, at) {
			continue
		}
		if k+1 < len(v) {
			sp.last = min(sp.last, h.writes[v[k+1]-1].Acked-1)
		}
		if n := len(out); n > 0 && sp.first <= out[n-1].last+1 {
			out[n-1].last = sp.last // zeroes over zeroes
			continue
		}
		out = append(out, sp)
	}
	return out
}

// covered returns the instants that lie in n spans.
func covered(spans []span, n int, now Tick) []span {
	var out []span
	count := 0
	for _, e := range edges(spans) {
		was := count
		count += e.change
		switch {
		case count == n && was != n:
			out = append(out, span{e.at, now})
		case was == n && count != n:
			out[len(out)-1].last = e.at - 1
		}
	}
	return out
}

type edge struct {
	at     Tick
	change int
}

// edges sums up where spans begin and end, ascending.
func edges(spans []span) []edge {
	all := make([]edge, 0, 2*len(spans))
	for _, s := range spans {
		all = append(all, edge{s.first, 1}, edge{s.last + 1, -1})
	}
	slices.SortFunc(all, func(a, b edge) int { return int(a.at - b.at) })
	out := all[:0]
	for _, e := range all {
		if n := len(out); n > 0 && out[n-1].at == e.at {
			out[n-1].change += e.change
		} else {
			out = append(out, e)
		}
	}
	return out
}

// halves finds the requests over several pages that are there on some and missing on others, and the
// instants that they rule out: while such a request was under way a cut could have it only whole. Within
// that time a page shows this request or the one before, so it says there, missing, or (zeroes over zeroes)
// nothing.
func (h *History) halves(shown []Shown, fits []span) (torn []span, told []string) {
	for i, w := range h.writes {
		seq := Seq(i + 1)
		if w.Pages < 2 || w.Split || w.Issued > fits[len(fits)-1].last || w.Acked <= fits[0].first {
			continue
		}
		in, out := int64(-1), int64(-1)
		for page := w.Page; page < w.Page+w.Pages; page++ {
			k := slices.Index(h.versions[page], seq)
			if k < 0 {
				continue
			}
			var before Seq
			if k > 0 {
				before = h.versions[page][k-1]
			}
			there, missing := h.shows(shown[page], seq), h.shows(shown[page], before)
			if there && !missing {
				in = page
			}
			if missing && !there {
				out = page
			}
		}
		if in >= 0 && out >= 0 {
			torn = append(torn, span{w.Issued, min(w.Acked, h.clock+1) - 1})
			told = append(told, fmt.Sprintf("%s is there on page %d and missing on page %d", h.Describe(seq), in, out))
		}
	}
	return torn, told
}

// without takes the instants of b out of a.
func without(a, b []span) []span {
	for _, cut := range b {
		var left []span
		for _, s := range a {
			if s.last < cut.first || cut.last < s.first {
				left = append(left, s)
				continue
			}
			if s.first < cut.first {
				left = append(left, span{s.first, cut.first - 1})
			}
			if cut.last < s.last {
				left = append(left, span{cut.last + 1, s.last})
			}
		}
		a = left
	}
	return a
}

// disagreement tells, for the instant at which most pages fit, which ones do not.
func (h *History) disagreement(shown []Shown, spans []span) string {
	best, at, count := -1, Tick(0), 0
	for _, e := range edges(spans) {
		if count += e.change; count > best {
			best, at = count, e.at
		}
	}
	var told []string
	for page, s := range shown {
		if slices.ContainsFunc(h.possible(int64(page), s), func(sp span) bool { return sp.first <= at && at <= sp.last }) {
			continue
		}
		if told = append(told, fmt.Sprintf("page %d shows %v, the last write before was %s", page, s, h.Describe(h.at(int64(page), at)))); len(told) == 5 {
			break
		}
	}
	return fmt.Sprintf("at the best instant %d (of %d) %d of %d pages fit; %s", at, h.clock, best, len(shown), strings.Join(told, "; "))
}

// Forward expects that a later cut lacks nothing that an earlier one had.
func (h *History) Forward(before, after Cut) error {
	if after.Last < before.First {
		return fmt.Errorf("the cut went back: it was at an instant in [%d, %d], and is in [%d, %d]",
			before.First, before.Last, after.First, after.Last)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for page := range before.shown {
		oldest, newest := h.oldest(int64(page), before.shown[page]), h.newest(int64(page), after.shown[page])
		if newest < oldest {
			return fmt.Errorf("the cut went back: page %d showed %v, and shows %v", page, before.shown[page], after.shown[page])
		}
	}
	return nil
}

// oldest is the place in a page's versions of the first that looks like this.
func (h *History) oldest(page int64, s Shown) int {
	if h.shows(s, 0) {
		return -1
	}
	return slices.IndexFunc(h.versions[page], func(v Seq) bool { return h.shows(s, v) })
}

// newest is that of the last.
func (h *History) newest(page int64, s Shown) int {
	v := h.versions[page]
	for k := len(v) - 1; k >= 0; k-- {
		if h.shows(s, v[k]) {
			return k
		}
	}
	return -1
}

// at is the last write to a page that was acknowledged at an instant.
func (h *History) at(page int64, t Tick) Seq {
	var last Seq
	for _, seq := range h.versions[page] {
		if h.writes[seq-1].Acked <= t {
			last = seq
		}
	}
	return last
}

// DurableFile expects that an image lacks nothing that was acknowledged by an instant. It need not be at
// any cut: a disk after a power cut holds what was flushed, and of the rest what it likes, page by page.
func (h *History) DurableFile(path string, by Tick) error {
	shown, err := h.read(path)
	if err != nil {
		return err
	}
	return h.Durable(shown, by)
}

// Durable is DurableFile for an image that was read.
func (h *History) Durable(shown []Shown, by Tick) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var told []string
	n := 0
	for page, s := range shown {
		must := h.at(int64(page), by)
		newer := h.versions[page]
		newer = newer[slices.Index(newer, must)+1:]
		if s.Bad == "" && (h.shows(s, must) || slices.ContainsFunc(newer, func(v Seq) bool { return h.shows(s, v) })) {
			continue
		}
		if n++; n <= 5 {
			told = append(told, fmt.Sprintf("page %d shows %v, must not be older than %s", page, s, h.Describe(must)))
		}
	}
	if n > 0 {
		return fmt.Errorf("%d pages have lost what was acknowledged by %d: %s", n, by, strings.Join(told, "; "))
	}
	return nil
}
