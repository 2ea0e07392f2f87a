package track

import (
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Sets are a consumer's own page sets, which together with the tracker's open set make up needs(M).
//
//	open ─ CutStep ─> waiting ─ CutStep of M ─> todo ─ Read or captured ─> staged ─ StartCommit ─> committing ─ Committed
//
// todo and staged are disjoint, and so are todo and holes. Whatever was rewritten is in open or waiting as
// well, so to clear a set on a confirmation never forgets a newer write.
//
// A consumer's pass is what happens between two CutSteps of its own: it reads its todo set. In a pass that
// is an epoch, content is captured, so that what is read is that of the cut; in a bulk pass it is whatever
// is on the device. Everything that was claimed or begun to be captured in one pass carries its round, and
// counts for nothing once the round has changed.
type Sets struct {
	tracker *Tracker
	name    string
	capture *Capture // nil: can take bulk passes only

	// Guarded by tracker.mu.
	waiting, todo, staged, committing dated
	doubt, holes                      *blockdev.PageSet

	phase     phase
	kind      phase  // epoch or bulk: of the last pass, which staged is of; idle: there was none
	capturing bool   // an epoch is being read
	round     uint64 // of the pass; grows when a pass begins and when it ends
	cursor    uint64 // where the next claim looks first
	claims    []Run  // handed out and not released, a few
}

type phase uint8

const (
	idle    phase = iota // nothing to read
	epoch                // reading a cut; capturing is on
	bulk                 // reading what is there
	givenUp              // was one of the two; nothing can be read until the next CutStep
)

// Name is what AddConsumer was given.
func (s *Sets) Name() string { return s.name }

// Taker is a consumer that takes part in a cut.
type Taker struct {
	sets  *Sets
	phase phase
}

// Epoch makes the consumer a taker that wants the content of the cut: what is overwritten is captured.
func (s *Sets) Epoch() Taker { return Taker{s, epoch} }

// Bulk makes the consumer a taker to whom any later content is as good.
func (s *Sets) Bulk() Taker { return Taker{s, bulk} }

// CutStep is a cut: one step against the entry of every write. The open set closes into waiting of every
// consumer; each taker makes its pass of waiting. Returned are, for each taker, the pages that were staged
// for a former cut and were rewritten since: they are void and are in todo now. nil: none.
//
// Nobody may be reading for a taker. What is still captured for it is given up first.
func (t *Tracker) CutStep(takers ...Taker) (voids []*blockdev.PageSet) {
	t.mu.Lock()
	voids = t.cutLocked(takers)
	t.mu.Unlock()
	for _, k := range takers {
		k.sets.capture.shrink()
	}
	return voids
}

func (t *Tracker) cutLocked(takers []Taker) (voids []*blockdev.PageSet) {
	for _, k := range takers {
		k.sets.stopLocked()
	}
	t.closeOpenLocked()
	for _, k := range takers {
		voids = append(voids, k.sets.beginLocked(k.phase))
	}
	return voids
}

// closeOpenLocked moves open into everybody's waiting. One of those whose waiting is empty, most likely a
// taker, gets the set itself; only the others pay for copying.
func (t *Tracker) closeOpenLocked() {
	var heir *Sets
	for _, s := range t.consumers {
		if heir == nil && s.waiting.Count() == 0 {
			heir = s
			continue
		}
		s.waiting.include(&t.open)
	}
	if heir != nil {
		heir.waiting.absorb(&t.open)
		return
	}
	t.open.Clear()
}

// beginLocked begins a pass over waiting and what was left in todo. A page that could not be read and was
// written since may be readable now.
func (s *Sets) beginLocked(p phase) (voids *blockdev.PageSet) {
	if s.kind != p {
		// What was read in bulk and not flushed is in no staging, and no flush clears what is in one.
		s.todo.absorb(&s.staged)
	}
	if s.staged.Count() > 0 && s.waiting.Count() > 0 {
		voids = s.staged.Clone()
		s.staged.Subtract(s.waiting.PageSet)
		voids.Subtract(s.staged.PageSet)
		if voids.Count() == 0 {
			voids = nil
		}
	}
	if s.holes.Count() > 0 {
		s.holes.Subtract(s.waiting.PageSet)
	}
	s.todo.absorb(&s.waiting)
	s.round++
	s.cursor = 0
	s.phase, s.kind = p, p
	s.capturing = p == epoch
	return voids
}

// stopLocked ends the reading of a pass: what is captured and was not fetched goes back to todo, and what
// writers and readers are busy with will find that the round is another.
func (s *Sets) stopLocked() {
	s.round++
	s.capturing = false
	s.claims = nil
	unsent := s.capture.empty()
	if unsent == nil {
		return
	}
	for r := range runsIn(unsent, 0, s.tracker.pages) {
		s.todo.take(&s.staged, r.First, r.Count)
	}
}

// giveUpLocked is stopLocked for a pass that can be told as given up.
func (s *Sets) giveUpLocked() {
	s.stopLocked()
	if s.phase == epoch || s.phase == bulk {
		s.phase = givenUp
	}
}

// GiveUp gives up the cut: nothing is captured any more, and what was captured and not fetched goes back
// to todo, as do the pages that were fetched and are not known to be staged, which the caller names. What
// is staged stays staged: the next CutStep voids what was rewritten.
//
// It may come after the write path gave up by itself (Observer.GaveUp). Calls of ReadClosed under way are
// to be waited for, or the pages that they return named too.
func (t *Tracker) GiveUp(s *Sets, notStaged []Run) {
	t.mu.Lock()
	s.giveUpLocked()
	for _, r := range notStaged {
		s.todo.take(&s.staged, r.First, r.Count)
	}
	t.mu.Unlock()
	s.capture.shrink()
}

// giveUpRound gives up the cut of a round, if it is still that one that is being read.
func (t *Tracker) giveUpRound(s *Sets, round uint64) (done bool) {
	t.mu.Lock()
	if done = s.round == round; done {
		s.giveUpLocked()
	}
	t.mu.Unlock()
	s.capture.shrink()
	return done
}

// VoidStaging is for a mirror that lost its staging: everything staged is to be sent again. An epoch that
// is being read is given up by it.
func (t *Tracker) VoidStaging(s *Sets) {
	t.mu.Lock()
	s.giveUpLocked()
	s.todo.absorb(&s.staged)
	t.mu.Unlock()
	s.capture.shrink()
}

// StartCommit is the step before a Commit is sent: the epoch becomes the one that is unanswered.
// ErrUnfinished where something of it was not read, or the one before is not answered; ErrGivenUp where
// there is no epoch. Then nothing is changed.
func (t *Tracker) StartCommit(s *Sets) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case s.phase != epoch:
		return ErrGivenUp
	case s.todo.Count() > 0 || s.capture.Pages() > 0 || s.committing.Count() > 0:
		return ErrUnfinished
	}
	s.committing.absorb(&s.staged)
	s.stopLocked()
	s.phase = idle
	return nil
}

// Committed clears what the mirror has confirmed.
func (t *Tracker) Committed(s *Sets) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.committing.Clear()
}

// Uncommit is for an epoch whose Commit was sent and turns out not taken: it is staged again, and given
// up. The pages of the epoch after it wait for their next turn, also those that could not be read: what is
// staged again of them is older than the epoch after.
func (t *Tracker) Uncommit(s *Sets) {
	t.mu.Lock()
	s.stopLocked()
	s.phase = givenUp
	s.waiting.absorb(&s.todo)
	s.waiting.absorb(&s.staged)
	s.retryHolesLocked()
	s.staged.absorb(&s.committing)
	t.mu.Unlock()
	s.capture.shrink()
}

// DropEpoch is for a mirror that has nothing staged any more: whatever it was sent and did not confirm
// waits for its next turn.
func (t *Tracker) DropEpoch(s *Sets) {
	t.mu.Lock()
	s.stopLocked()
	s.phase = idle
	s.waiting.absorb(&s.todo)
	s.waiting.absorb(&s.staged)
	s.waiting.absorb(&s.committing)
	if s.doubt.Count() > 0 {
		s.doubt.Subtract(s.waiting.PageSet)
	}
	t.mu.Unlock()
	s.capture.shrink()
}

// WantAgain puts staged pages back into todo, to be read once more. false: some were rewritten since the
// cut, or are being rewritten, so that their content is gone; the caller gives up. In a bulk pass that
// does not matter.
//
// A write whose Begin comes after this step finds them in todo and captures them; one whose Begin came
// before put them into open in that step.
func (t *Tracker) WantAgain(s *Sets, pages []Run) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := true
	for _, r := range pages {
		for again := range runsIn(s.staged.PageSet, r.First, r.Count) {
			if s.kind == bulk {
				s.todo.take(&s.staged, again.First, again.Count)
				continue
			}
			for p := again.First; p < again.End(); p++ {
				if t.open.Contains(p) || s.waiting.Contains(p) {
					all = false
				} else {
					s.todo.take(&s.staged, p, 1)
				}
			}
		}
	}
	return all
}

// rewritten reports whether a page of a range was written since the cut that s is reading.
func (t *Tracker) rewritten(s *Sets, first, count uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return touches(t.open.PageSet, first, count) || touches(s.waiting.PageSet, first, count)
}

// BulkFlush is the step before a Flush of a bulk pass is sent: what was read until now is what its answer
// will clear. false: an earlier one is unanswered, or the last pass was no bulk pass, and nothing is
// changed.
func (t *Tracker) BulkFlush(s *Sets) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.kind != bulk || s.committing.Count() > 0 {
		return false
	}
	s.committing.absorb(&s.staged)
	return true
}

// BulkFlushed clears what the flush covered. Pages written since they were read are in open or waiting.
func (t *Tracker) BulkFlushed(s *Sets) { t.Committed(s) }

// BulkLost is for a bulk pass whose connection is lost: what is not known to be flushed is to be read
// again in this same pass.
func (t *Tracker) BulkLost(s *Sets) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.stopLocked() // nobody enters as read what the lost connection does not carry any more
	s.cursor = 0
	s.todo.absorb(&s.staged)
	s.todo.absorb(&s.committing)
}

// Dirty puts pages into waiting: they differ, or may, and are to be sent.
func (t *Tracker) Dirty(s *Sets, first, count uint64) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	s.waiting.add(first, count, now)
	s.doubt.Remove(first, count)
}

// RetryHoles gives the pages that could not be read another chance at the next cut.
func (t *Tracker) RetryHoles(s *Sets) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.retryHolesLocked()
}

func (s *Sets) retryHolesLocked() {
	if s.holes.Count() == 0 {
		return
	}
	s.waiting.include(&dated{PageSet: s.holes, since: s.tracker.now()})
	s.holes.Clear()
}

// Holes are the pages that could not be read, at most limit runs of them, ascending.
func (t *Tracker) Holes(s *Sets, limit int) (runs []Run) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range runsIn(s.holes, 0, t.pages) {
		if len(runs) == limit {
			break
		}
		runs = append(runs, r)
	}
	return runs
}

// Oldest is the age of the oldest write that the consumer has not confirmed; 0 where there is none. Pages
// in doubt and holes have no age.
func (s *Sets) Oldest(now time.Time) time.Duration {
	t := s.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	oldest := now
	for _, d := range []*dated{&t.open, &s.waiting, &s.todo, &s.staged, &s.committing} {
		if d.Count() > 0 && d.since.Before(oldest) {
			oldest = d.since
		}
	}
	return now.Sub(oldest)
}

// Counts are sizes in pages.
type Counts struct {
	// Needs is never too small. A page that was rewritten while it was sent is in several of the sets and
	// counts in each, so it may be too large while an epoch is under way.
	Needs uint64

	Open, Waiting, Todo, Staged, Committing, Doubt, Holes uint64
	Captured                                              uint64 // of those staged, kept here and not fetched yet
}

// Counts tells the sizes of a consumer's sets at one instant.
func (t *Tracker) Counts(s *Sets) Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := Counts{
		Open: t.open.Count(), Waiting: s.waiting.Count(), Todo: s.todo.Count(), Staged: s.staged.Count(),
		Committing: s.committing.Count(), Doubt: s.doubt.Count(), Holes: s.holes.Count(), Captured: s.capture.Pages(),
	}
	c.Needs = min(t.pages, c.Open+c.Waiting+c.Todo+c.Staged+c.Committing+c.Doubt+c.Holes)
	return c
}
