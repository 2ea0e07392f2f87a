package track

import (
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Tracker knows, for every consumer of a volume, the pages whose present content it has not confirmed:
// needs(M), the union of the shared open set and of the sets in M's Sets. And it keeps that knowledge
// recoverable: before a write touches the device, its regions are durably marked.
//
// Every method is one step against all others; what they promise together stands with each.
type Tracker struct {
	pages  uint64
	marker Marker
	now    func() time.Time

	// mu guards everything below and in every Sets.
	mu        sync.Mutex
	open      dated // written since the last cut, of everybody
	consumers []*Sets
	watches   []*Watch
	regions
}

// Write is a write that has entered. It is a value, so that entering costs no allocation.
type Write struct {
	Run
	closed []closed // the consumers for which old content is to be kept; nearly always none
}

// closed is a consumer in whose todo set a write found pages when it entered.
type closed struct {
	sets  *Sets
	round uint64
}

// NewTracker makes a tracker for a volume of so many pages. All regions are cold and every set empty.
func NewTracker(pages uint64, marker Marker, now func() time.Time) *Tracker {
	return NewTrackerOf(pages, regionPages, marker, now)
}

// NewTrackerOf is NewTracker with regions of so many pages.
func NewTrackerOf(pages, regionPages uint64, marker Marker, now func() time.Time) *Tracker {
	return &Tracker{pages: pages, marker: marker, now: now, open: newDated(pages), regions: newRegions(pages, regionPages)}
}

// Pages is the size of the volume in pages.
func (t *Tracker) Pages() uint64 { return t.pages }

// AddConsumer adds a consumer with empty sets: it needs what is open, and what Dirty, Doubt or DoubtAll
// say. Its captures go to c; without one no cut can be held for it while there are writes.
func (t *Tracker) AddConsumer(name string, c *Capture) *Sets {
	s := &Sets{
		tracker: t, name: name, capture: c,
		waiting: newDated(t.pages), todo: newDated(t.pages), staged: newDated(t.pages), committing: newDated(t.pages),
		doubt: blockdev.NewPageSet(t.pages), holes: blockdev.NewPageSet(t.pages),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.consumers = append(t.consumers, s)
	return s
}

// RemoveConsumer forgets a consumer. Nobody may be reading for it.
func (t *Tracker) RemoveConsumer(s *Sets) {
	t.mu.Lock()
	for i, o := range t.consumers {
		if o == s {
			t.consumers = append(t.consumers[:i:i], t.consumers[i+1:]...)
			break
		}
	}
	s.stopLocked()
	t.mu.Unlock()
	s.capture.shrink()
}

// Begin is the entry of a write, which holds its pages exclusively. In one step the pages join the open
// set and leave every doubt set, the write becomes one in flight for a checkpoint, and it learns what it
// has to capture. When Begin returns, all its regions are durably marked: not before that may the device
// or a mirror get a byte.
//
// An error is the Marker's: the write is refused, and its pages stay in the open set, which costs a
// needless copy and no more.
func (t *Tracker) Begin(first, count uint64) (Write, error) {
	w := Write{Run: Run{first, count}}
	now := t.now()
	t.mu.Lock()
	t.open.add(first, count, now)
	for _, s := range t.consumers {
		if s.doubt.Count() > 0 {
			s.doubt.Remove(first, count)
		}
		if s.capturing && touches(s.todo.PageSet, first, count) {
			w.closed = append(w.closed, closed{s, s.round})
		}
	}
	t.watchedLocked(w.Run)
	marks := t.enterLocked(w.Run, now)
	t.mu.Unlock()

	if marks != nil {
		if err := t.settle(marks); err != nil {
			t.End(w)
			return Write{}, err
		}
	}
	return w, nil
}

// End ends a write, when the device has answered: whatever it answered. Then its content, if it arrived,
// is made durable by a flush that begins from now on.
func (t *Tracker) End(w Write) { t.leave(w.Run) }
