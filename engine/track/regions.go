package track

import (
	"slices"
	"sync/atomic"
	"time"
)

// Marker is the journal as the write path uses it. Both methods are called concurrently.
type Marker interface {
	// Mark appends the mark of regions to the log.
	Mark(regions []uint64) (lsn uint64, err error)

	// Sync returns when everything up to lsn is durable. Many callers share one fdatasync.
	Sync(lsn uint64) error
}

// A region is cold, marking or hot. It becomes marking in the step in which a write enters that finds it
// cold, hot when that write's mark is durable, and cold again by BeginCheckpoint alone (or because its
// mark failed). Nobody passes a region that is marking: whoever meets one waits for that mark.
const (
	cold uint8 = iota
	marking
	hot
)

// regions is the part of a Tracker that knows what is durably marked. Guarded by Tracker.mu, save for
// region.inFlight.
type regions struct {
	size  uint64 // of one, in pages
	all   []region
	warm  []uint64         // the regions that are not cold, in no order
	marks map[uint64]*mark // of the regions that are marking
}

type region struct {
	// inFlight counts writes between entry and End. It grows under Tracker.mu only, so that a checkpoint
	// sees every write that entered before it. It falls at any time: a write whose End is not seen counts
	// as in flight a little longer.
	inFlight atomic.Int32
	state    uint8
	used     int64 // when a write last entered, as Unix nanoseconds
}

// mark is a mark on its way to the disk.
type mark struct {
	regions []uint64
	done    chan struct{}
	err     error // set before done is closed
}

// pendingMarks is what a write must wait for.
type pendingMarks struct {
	own    mark    // of the regions that it found cold
	others []*mark // of those that somebody else is marking
}

func newRegions(pages, size uint64) regions {
	n := (pages + size - 1) / size
	return regions{size: size, all: make([]region, n), marks: map[uint64]*mark{}}
}

// regionsOf is the range of regions that a run touches.
func (g *regions) regionsOf(r Run) (first, end uint64) {
	if r.Count == 0 {
		return 0, 0
	}
	return r.First / g.size, (r.End()-1)/g.size + 1
}

// enterLocked makes a write one in flight, and claims the marking of its cold regions. nil: all are hot.
func (g *regions) enterLocked(r Run, now time.Time) *pendingMarks {
	var p *pendingMarks
	used := now.UnixNano()
	first, end := g.regionsOf(r)
	for i := first; i < end; i++ {
		one := &g.all[i]
		one.inFlight.Add(1)
		one.used = used
		if one.state == hot {
			continue
		}
		if p == nil {
			p = &pendingMarks{}
		}
		if one.state == marking {
			p.others = append(p.others, g.marks[i])
			continue
		}
		if p.own.done == nil {
			p.own.done = make(chan struct{})
		}
		one.state = marking
		g.marks[i] = &p.own
		g.warm = append(g.warm, i)
		p.own.regions = append(p.own.regions, i)
	}
	return p
}

// leave ends a write.
func (g *regions) leave(r Run) {
	first, end := g.regionsOf(r)
	for i := first; i < end; i++ {
		g.all[i].inFlight.Add(-1)
	}
}

// settle makes a write's own marks durable and then waits for those of others. In this order nobody waits
// for somebody who waits: every mark is brought to its end by its owner before the owner looks around.
//
// The pages are in the open set already. So a checkpoint whose T comes after the mark was appended, and
// which drops the mark, finds the write in flight; and one whose T came before finds the mark behind T.
func (t *Tracker) settle(p *pendingMarks) error {
	var err error
	if len(p.own.regions) > 0 {
		err = t.makeDurable(&p.own)
	}
	for _, m := range p.others {
		<-m.done
		if err == nil {
			err = m.err
		}
	}
	return err
}

func (t *Tracker) makeDurable(m *mark) error {
	lsn, err := t.marker.Mark(m.regions)
	if err == nil {
		err = t.marker.Sync(lsn)
	}
	t.mu.Lock()
	for _, i := range m.regions {
		delete(t.marks, i)
		t.all[i].state = hot
		if err != nil {
			t.coolLocked(i)
		}
	}
	t.mu.Unlock()
	m.err = err
	close(m.done)
	return err
}

// coolLocked makes one region cold.
func (t *Tracker) coolLocked(i uint64) {
	t.all[i].state = cold
	if at := slices.Index(t.warm, i); at >= 0 {
		t.warm[at] = t.warm[len(t.warm)-1]
		t.warm = t.warm[:len(t.warm)-1]
	}
}

// HotCount is the number of regions that are marked or being marked.
func (t *Tracker) HotCount() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.warm)
}
