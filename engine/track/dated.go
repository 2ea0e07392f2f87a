package track

import (
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// dated is a page set with the time of the oldest write in it. The time outlives the page that it came
// from: what leaves a set one by one does not make it younger, so an age is never told too low. It counts
// only while the set is not empty.
type dated struct {
	*blockdev.PageSet
	since time.Time
}

func newDated(pages uint64) dated { return dated{PageSet: blockdev.NewPageSet(pages)} }

// add puts a run in that was written at a given time.
func (d *dated) add(first, count uint64, at time.Time) {
	if d.Count() == 0 || at.Before(d.since) {
		d.since = at
	}
	d.Add(first, count)
}

// include puts all pages of o in.
func (d *dated) include(o *dated) {
	if o.Count() == 0 {
		return
	}
	if d.Count() == 0 || o.since.Before(d.since) {
		d.since = o.since
	}
	d.Union(o.PageSet)
}

// absorb moves all pages of o in. Where d is empty this exchanges two pointers.
func (d *dated) absorb(o *dated) {
	if d.Count() == 0 {
		d.PageSet, o.PageSet = o.PageSet, d.PageSet
		d.since = o.since
		return
	}
	if o.Count() > 0 {
		d.include(o)
		o.Clear()
	}
}

// take moves those pages of a range that are in o.
func (d *dated) take(o *dated, first, count uint64) (moved uint64) {
	for r := range runsIn(o.PageSet, first, count) {
		d.add(r.First, r.Count, o.since)
		o.Remove(r.First, r.Count)
		moved += r.Count
	}
	return moved
}

// runsIn are the runs of a set within a range, ascending. What was yielded may be removed meanwhile.
func runsIn(s *blockdev.PageSet, first, count uint64) func(yield func(Run) bool) {
	return func(yield func(Run) bool) {
		for end := first + count; first < end; {
			at, n, ok := s.NextRun(first, end-first)
			if !ok || at >= end {
				return
			}
			n = min(n, end-at)
			if !yield(Run{at, n}) {
				return
			}
			first = at + n
		}
	}
}

// touches reports whether a page of a range is in the set. To look for the next page in a set costs a step
// for every empty chunk of it, to ask for one page does not depend on the set's size.
func touches(s *blockdev.PageSet, first, count uint64) bool {
	const few = 64
	if s.Count() == 0 {
		return false
	}
	if count > few {
		at, _, ok := s.NextRun(first, 1)
		return ok && at < first+count
	}
	for p := first; p < first+count; p++ {
		if s.Contains(p) {
			return true
		}
	}
	return false
}
