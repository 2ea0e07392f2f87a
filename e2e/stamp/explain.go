package stamp

import (
	"fmt"
	"slices"
	"strings"
)

// Fate is what an image shows of one request.
type Fate int

// The fates. A request counts as there also where later ones have written over it. Void ones are not counted.
const (
	There Fate = iota
	Missing
	Torn
	Void
)

func (f Fate) String() string { return [...]string{"there", "missing", "torn", "void"}[f] }

// Verdict is what an image shows, for people to read.
type Verdict struct {
	Cut   Cut   // where Wrong is nil
	Wrong error // wraps ErrNoCut
	Why   string

	At    Tick // the earliest instant of the cut; where there is none, the instant at which most pages fit
	Now   Tick // the last instant of the history
	Pages int
	Fit   int // pages that are as they were at that instant,
	Older int // as they were before,
	Newer int // as they were after it,
	Bad   int // as they never were

	Fates  []Fate // of all requests, by Seq-1
	Counts [3]int // of the fates
}

// JudgeFile is Judge for a file or a device.
func (h *History) JudgeFile(path string) (Verdict, error) {
	shown, err := h.read(path)
	if err != nil {
		return Verdict{}, err
	}
	return h.Judge(shown), nil
}

// Judge decides as Check does, and says what led to it: which requests are there, missing or there in part,
// and the first thing that no cut can show.
func (h *History) Judge(shown []Shown) Verdict {
	var v Verdict
	v.Cut, v.Wrong = h.Check(shown)
	h.mu.Lock()
	defer h.mu.Unlock()
	v.Now, v.Pages, v.At = h.clock, len(shown), v.Cut.First
	when := make([][]span, len(shown))
	for page, s := range shown {
		if s.Bad == "" {
			when[page] = h.possible(int64(page), s)
		}
	}
	if v.Wrong != nil {
		v.At = fullest(when)
	}
	for _, spans := range when {
		v.count(spans)
	}
	v.Fates = make([]Fate, len(h.writes))
	for i, w := range h.writes {
		if w.Void {
			v.Fates[i] = Void
			continue
		}
		v.Fates[i] = h.fate(Seq(i+1), shown)
		v.Counts[v.Fates[i]]++
	}
	if v.Wrong != nil {
		v.Why = h.why(shown, when, v.Wrong)
	}
	return v
}

func (v *Verdict) count(spans []span) {
	switch {
	case len(spans) == 0:
		v.Bad++
	case covers(spans, v.At):
		v.Fit++
	case spans[0].first > v.At:
		v.Newer++
	default:
		v.Older++
	}
}

func covers(spans []span, at Tick) bool {
	for _, s := range spans {
		if s.first <= at && at <= s.last {
			return true
		}
	}
	return false
}

// fullest is the earliest instant at which most pages fit.
func fullest(when [][]span) Tick {
	var all []span
	for _, spans := range when {
		all = append(all, spans...)
	}
	best, at, count := 0, Tick(0), 0
	for _, e := range edges(all) {
		if count += e.change; count > best {
			best, at = count, e.at
		}
	}
	return at
}

// fate looks at all pages of a request. Zeroes that may be of two times count for neither, nor do pages that
// have lost it in a kill, which is known. What is garbage was torn by the latest write to it.
func (h *History) fate(seq Seq, shown []Shown) Fate {
	w := h.writes[seq-1]
	known, there, missing := false, false, false
	for page := w.Page; page < w.Page+w.Pages; page++ {
		at := slices.Index(h.versions[page], seq)
		if at < 0 {
			continue
		}
		known = true
		switch s := shown[page]; {
		case s.Bad != "" && h.latest(page) == seq:
			return Torn
		case s.Bad != "":
		case h.oldest(page, s) >= at:
			there = true
		case h.newest(page, s) < at:
			missing = true
		}
	}
	switch {
	case there && missing && !w.Split:
		return Torn
	case missing && !there, !known:
		return Missing
	}
	return There
}

// why explains the first violation. The last one of three is a request in part, that no order of the others
// explains; Check has told of it.
func (h *History) why(shown []Shown, when [][]span, wrong error) string {
	late, early := -1, -1 // the page that shows the latest write, and the one that misses the earliest
	for page, spans := range when {
		if len(spans) == 0 {
			return fmt.Sprintf("page %d holds what was never written there, whole: %s", page, h.alien(int64(page), shown[page]))
		}
		if late < 0 || spans[0].first > when[late][0].first {
			late = page
		}
		if early < 0 || end(spans) < end(when[early]) {
			early = page
		}
	}
	if late < 0 || when[late][0].first <= end(when[early]) {
		return strings.TrimPrefix(wrong.Error(), ErrNoCut.Error()+": ")
	}
	has := h.versions[late][max(h.oldest(int64(late), shown[late]), 0)]
	lacks := h.versions[early][h.newest(int64(early), shown[early])+1]
	return fmt.Sprintf("a mix of two times: page %d has write %d, which was issued at instant %d; page %d lacks write %d, which was answered before, at instant %d (it shows %v)",
		late, has, h.writes[has-1].Issued, early, lacks, h.writes[lacks-1].Acked, shown[early])
}

func end(spans []span) Tick { return spans[len(spans)-1].last }

// alien tells a page that shows a write of another page or of none.
func (h *History) alien(page int64, s Shown) string {
	switch {
	case s.Bad != "" || s.Zero:
		return s.String()
	case int(s.Seq) > len(h.writes):
		return fmt.Sprintf("write %d, and there were %d", s.Seq, len(h.writes))
	case h.writes[s.Seq-1].Void:
		return fmt.Sprintf("write %d, which is void: the volume was put back to a time before it", s.Seq)
	}
	return fmt.Sprintf("write %d, which was lost there or written elsewhere", s.Seq)
}
