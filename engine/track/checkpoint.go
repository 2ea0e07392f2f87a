package track

import (
	"cmp"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// BeginCheckpoint is the instant T of a checkpoint: in one step every region becomes cold, save those that
// it returns, in ascending order, for the checkpoint to list. These are all regions with a write in
// flight, and of the others those used since keepUsedSince, the most recently used first, as long as no
// more than limit are listed.
//
// The journal must have turned to its new segment before the call, so that every mark that is appended
// after T is found behind the checkpoint. Then, while the device is flushed, Snapshot is taken, both after
// T. No write escapes a recovery that takes the checkpoint and the marks since:
//
//   - The write ended before T. Its bytes, if they arrived, are flushed. Its pages were in the open set
//     from its entry, so at Snapshot they are in the needs set, or a consumer has confirmed them since.
//   - It entered before T and is in flight at T. Its regions are listed, wherever its mark stands: entry
//     counts it as in flight in the very step that looks at the region's state, and only End takes it
//     back. That also holds for a write that waits for its mark, or for somebody else's.
//   - It entered after T. Either it found a region hot, then the region is listed or was marked by a write
//     that entered after T; or marking, and waits until it is hot, so the same is true; or cold, and its
//     mark is appended after T.
//
// If the checkpoint does not come to its end, the one before and all marks since stand, and a region that
// was cooled in vain is marked once more.
func (t *Tracker) BeginCheckpoint(keepUsedSince time.Time, limit int) (hot []uint64) {
	since := keepUsedSince.UnixNano()
	t.mu.Lock()
	defer t.mu.Unlock()
	var recent []uint64
	for _, i := range t.warm {
		one := &t.all[i]
		// A region that is marking has its marker in flight, so it is kept, and stays marking.
		switch {
		case one.inFlight.Load() > 0 || one.state == marking:
			hot = append(hot, i)
		case one.used >= since:
			recent = append(recent, i)
		default:
			one.state = cold
		}
	}
	if room := max(0, limit-len(hot)); len(recent) > room {
		slices.SortFunc(recent, func(a, b uint64) int {
			return cmp.Or(cmp.Compare(t.all[b].used, t.all[a].used), cmp.Compare(a, b))
		})
		for _, i := range recent[room:] {
			t.all[i].state = cold
		}
		recent = recent[:room]
	}
	hot = append(hot, recent...)
	t.warm = append(t.warm[:0], hot...)
	slices.Sort(hot)
	return hot
}

// Named is what a checkpoint keeps of a consumer.
type Named struct {
	Name  string
	Needs *blockdev.PageSet // without doubt
	Doubt *blockdev.PageSet
}

// Snapshot copies what every consumer needs, all at one instant. The copies are the caller's. Writers wait
// meanwhile: microseconds for each 256 MiB of the volume in which pages are dirty.
func (t *Tracker) Snapshot() []Named {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Named, len(t.consumers))
	for i, s := range t.consumers {
		out[i] = Named{Name: s.name, Needs: t.sureLocked(s), Doubt: s.doubt.Clone()}
	}
	return out
}

// sureLocked is a copy of what a consumer needs, without doubt.
func (t *Tracker) sureLocked(s *Sets) *blockdev.PageSet {
	all := t.open.Clone()
	for _, part := range []*blockdev.PageSet{
		s.waiting.PageSet, s.todo.PageSet, s.staged.PageSet, s.committing.PageSet, s.holes,
	} {
		all.Union(part)
	}
	return all
}

// Needed tells whether a consumer needs a page, be it in doubt.
func (t *Tracker) Needed(s *Sets, page uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(s.allLocked(), func(set *blockdev.PageSet) bool { return set.Contains(page) })
}

// allLocked are the sets that make up what a consumer needs.
func (s *Sets) allLocked() []*blockdev.PageSet {
	return []*blockdev.PageSet{s.tracker.open.PageSet, s.waiting.PageSet, s.todo.PageSet, s.staged.PageSet, s.committing.PageSet, s.holes, s.doubt}
}

// Needs is a copy of all that a consumer needs, what is in doubt with it.
func (t *Tracker) Needs(s *Sets) *blockdev.PageSet {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.sureLocked(s)
	all.Union(s.doubt)
	return all
}
