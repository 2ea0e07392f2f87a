package track

import "github.com/blkmirror/blkmirror/blockdev"

// Doubt: pages that are in needs(M) only because nobody knows better. They are settled by comparing
// hashes, outside of any epoch. A page that is written leaves doubt in the step in which the write enters,
// and is simply dirty; so an answer about content that was read before that write finds the page gone
// from doubt and changes nothing.

// DoubtAll puts every page in doubt that is not to be sent anyway.
func (t *Tracker) DoubtAll(s *Sets) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.doubt.Fill()
	t.settleDoubtLocked(s)
}

// Doubt puts pages in doubt, those that are not to be sent anyway. Pages that are staged or committing are
// put in doubt all the same: their confirmation may be older than the doubt.
func (t *Tracker) Doubt(s *Sets, pages *blockdev.PageSet) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.doubt.Union(pages)
	t.settleDoubtLocked(s)
}

func (t *Tracker) settleDoubtLocked(s *Sets) {
	for _, sure := range []*blockdev.PageSet{t.open.PageSet, s.waiting.PageSet, s.todo.PageSet, s.holes} {
		s.doubt.Subtract(sure)
	}
}

// NextDoubt is the first run of at most limit pages in doubt at or after from.
func (t *Tracker) NextDoubt(s *Sets, from, limit uint64) (first, count uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.doubt.NextRun(from, limit)
}

// Equal takes pages out of doubt that the mirror was found to have.
func (t *Tracker) Equal(s *Sets, first, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.doubt.Remove(first, count)
}

// Differs makes those of the pages that are still in doubt simply dirty.
func (t *Tracker) Differs(s *Sets, first, count uint64) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range runsIn(s.doubt, first, count) {
		s.waiting.add(r.First, r.Count, now)
		s.doubt.Remove(r.First, r.Count)
	}
}
