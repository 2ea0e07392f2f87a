package track

// Watch tells whether pages stay as they are while somebody compares them with a mirror's.
type Watch struct {
	Run
	t       *Tracker
	written bool
}

// Watch watches pages that a consumer does not need, so that its copy of them is their present content; false
// where it needs one of them. Every watch is to be ended.
func (t *Tracker) Watch(s *Sets, first, count uint64) (*Watch, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, set := range s.allLocked() {
		if touches(set, first, count) {
			return nil, false
		}
	}
	w := &Watch{Run: Run{first, count}, t: t}
	t.watches = append(t.watches, w)
	return w, true
}

// End ends it. clean: no write entered since it began.
func (w *Watch) End() (clean bool) {
	t := w.t
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, o := range t.watches {
		if o == w {
			t.watches[i] = t.watches[len(t.watches)-1]
			t.watches = t.watches[:len(t.watches)-1]
			break
		}
	}
	return !w.written
}

// watchedLocked notes a write that enters.
func (t *Tracker) watchedLocked(r Run) {
	for _, w := range t.watches {
		w.written = w.written || r.First < w.Run.End() && w.First < r.End()
	}
}
