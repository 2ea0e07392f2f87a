package track

// Claim is a run of todo that one reader has for itself. Its pages stay in todo until they are entered as
// read, so that a writer who comes first still captures them.
type Claim struct {
	Run
	round uint64
}

// ClaimTodo hands out the next run of todo, at most so many pages and not across a border of 1 MiB, that
// nobody else has claimed. Claims ascend, and begin anew at the front when they reach the end, for what
// was left behind. Every claim is to be released.
func (t *Tracker) ClaimTodo(s *Sets, maxPages uint64) (Claim, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.phase != epoch && s.phase != bulk || s.todo.Count() == 0 {
		return Claim{}, false
	}
	r, ok := s.nextUnclaimedLocked(s.cursor, maxPages)
	if !ok && s.cursor > 0 {
		r, ok = s.nextUnclaimedLocked(0, maxPages)
	}
	if !ok {
		return Claim{}, false
	}
	s.claims = append(s.claims, r)
	s.cursor = r.End()
	return Claim{r, s.round}, true
}

func (s *Sets) nextUnclaimedLocked(from, limit uint64) (Run, bool) {
	for {
		first, count, ok := s.todo.NextRun(from, max(1, min(limit, claimPages)))
		if !ok {
			return Run{}, false
		}
		count = min(count, (first/claimPages+1)*claimPages-first)
		r, next := s.freeLocked(Run{first, count})
		if r.Count > 0 {
			return r, true
		}
		from = next
	}
}

// freeLocked cuts a run off where somebody else's claim begins. Where it begins within a claim nothing is
// left, and next is the end of that claim.
func (s *Sets) freeLocked(r Run) (free Run, next uint64) {
	for _, c := range s.claims {
		if c.First <= r.First && r.First < c.End() {
			return Run{}, c.End()
		}
		if r.First < c.First && c.First < r.End() {
			r.Count = c.First - r.First
		}
	}
	return r, 0
}

// extend lengthens a claim up to end, as far as todo goes on without a gap and nobody else has claimed it.
func (t *Tracker) extend(s *Sets, c Claim, end uint64) Claim {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := s.claimLocked(c)
	if i < 0 || end <= c.End() {
		return c
	}
	first, count, ok := s.todo.NextRun(c.End(), end-c.End())
	if !ok || first != c.End() {
		return c
	}
	more, _ := s.freeLocked(Run{first, count})
	c.Count += more.Count
	s.claims[i] = c.Run
	s.cursor = max(s.cursor, c.End())
	return c
}

// Release ends a claim. What of it is left in todo can be claimed again, and is the next to be.
func (t *Tracker) Release(s *Sets, c Claim) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := s.claimLocked(c)
	if i < 0 {
		return
	}
	s.claims[i] = s.claims[len(s.claims)-1]
	s.claims = s.claims[:len(s.claims)-1]
	for left := range runsIn(s.todo.PageSet, c.First, c.Count) {
		s.cursor = min(s.cursor, left.First)
		break
	}
}

// claimLocked is where a claim stands in the list; -1: the pass that it was of is over.
func (s *Sets) claimLocked(c Claim) int {
	if c.round != s.round {
		return -1
	}
	for i, r := range s.claims {
		if r.First == c.First {
			return i
		}
	}
	return -1
}

// Unread is the first run of a claim that is still in todo: its pages were not captured since. The caller
// holds the shared range, so that this stays true until it has read. err: the pass is over.
func (t *Tracker) Unread(s *Sets, c Claim) (r Run, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.round != s.round {
		return Run{}, false, ErrGivenUp
	}
	for r := range runsIn(s.todo.PageSet, c.First, c.Count) {
		return r, true, nil
	}
	return Run{}, false, nil
}

// Read enters pages of a claim as read: they leave todo for staged. The caller holds the shared range
// since before it read. Returned is the number of pages that were in todo; false: the pass is over, and
// what was read may be newer than its cut.
func (t *Tracker) Read(s *Sets, c Claim, r Run) (moved uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.round != s.round {
		return 0, false
	}
	return s.todoToLocked(&s.staged, r), true
}

// Unreadable enters pages of a claim as holes.
func (t *Tracker) Unreadable(s *Sets, c Claim, r Run) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.round != s.round {
		return false
	}
	s.holeLocked(r)
	return true
}

func (s *Sets) todoToLocked(to *dated, r Run) uint64 { return to.take(&s.todo, r.First, r.Count) }

func (s *Sets) holeLocked(r Run) {
	for x := range runsIn(s.todo.PageSet, r.First, r.Count) {
		s.holes.Add(x.First, x.Count)
		s.todo.Remove(x.First, x.Count)
	}
}

// Shipped reports whether everything of the pass was read and fetched.
func (t *Tracker) Shipped(s *Sets) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.todo.Count() == 0 && s.capture.Pages() == 0
}

// Readable reports whether ReadClosed would find something to read.
func (t *Tracker) Readable(s *Sets) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.phase != givenUp && s.readableLocked()
}

// readableLocked reports whether a reader would find something, be it that the pass is given up.
func (s *Sets) readableLocked() bool {
	switch s.phase {
	case givenUp:
		return true
	case idle:
		return false
	}
	if s.capture.Pages() > 0 {
		return true
	}
	var claimed uint64
	for _, c := range s.claims {
		claimed += c.Count
	}
	if s.todo.Count() > claimed {
		return true
	}
	_, ok := s.nextUnclaimedLocked(0, 1)
	return ok
}
