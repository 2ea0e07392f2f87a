package track

import "sync"

// RangeLock locks ranges of pages, exclusively or shared. The zero value is ready.
//
// Who asks waits for everybody who asked before for an overlapping range, waiting or not, unless both
// want it shared. So overlapping writes get their turn in the order of arrival, nobody is overtaken for
// ever, and there is no deadlock: each waits only for earlier ones. A goroutine that holds a range must
// not ask for another.
//
// It is one list: with the few hundred requests that are ever in flight, looking at all of them costs
// less than keeping a tree in order, and nothing is allocated where nobody waits.
type RangeLock struct {
	// wait waits until try says true; nil: the goroutine blocks.
	wait func(try func() bool)

	mu      sync.Mutex
	arrived uint64
	asked   []ask // held or waiting, in no order
	waiting int   // of these
}

// ask is a range that somebody holds or waits for.
type ask struct {
	first, end uint64
	arrival    uint64
	before     int           // conflicting asks that arrived earlier and are not released; 0: held
	ready      chan struct{} // closed when before becomes 0; nil where nobody waits
	shared     bool
}

// Lock takes a range exclusively.
func (l *RangeLock) Lock(first, count uint64) { l.lock(first, count, false) }

// Unlock releases a range exactly as it was locked.
func (l *RangeLock) Unlock(first, count uint64) { l.unlock(first, count, false) }

// RLock takes a range that others may share.
func (l *RangeLock) RLock(first, count uint64) { l.lock(first, count, true) }

// RUnlock releases a range exactly as it was locked.
func (l *RangeLock) RUnlock(first, count uint64) { l.unlock(first, count, true) }

func (l *RangeLock) lock(first, count uint64, shared bool) {
	if count == 0 {
		return
	}
	a := ask{first: first, end: first + count, shared: shared}
	l.mu.Lock()
	for i := range l.asked {
		if l.asked[i].conflicts(&a) {
			a.before++
		}
	}
	l.arrived++
	a.arrival = l.arrived
	if a.before > 0 {
		a.ready = make(chan struct{})
		l.waiting++
	}
	l.asked = append(l.asked, a)
	l.mu.Unlock()
	if a.ready != nil {
		l.await(a.ready)
	}
}

func (l *RangeLock) await(ready <-chan struct{}) {
	if l.wait == nil {
		<-ready
		return
	}
	l.wait(func() bool {
		select {
		case <-ready:
			return true
		default:
			return false
		}
	})
}

// unlock takes one held ask of just this range off the list. Shared ones of the same range are
// interchangeable: whoever conflicts with one arrived after all of those that are held, and counts each.
func (l *RangeLock) unlock(first, count uint64, shared bool) {
	if count == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	a, ok := l.removeLocked(first, first+count, shared)
	if !ok {
		panic("track: unlock of a range that is not locked")
	}
	if l.waiting == 0 {
		return
	}
	for i := range l.asked {
		b := &l.asked[i]
		if b.arrival < a.arrival || !b.conflicts(&a) {
			continue
		}
		if b.before--; b.before == 0 {
			close(b.ready)
			l.waiting--
		}
	}
}

func (l *RangeLock) removeLocked(first, end uint64, shared bool) (a ask, ok bool) {
	for i := range l.asked {
		a = l.asked[i]
		if a.first == first && a.end == end && a.shared == shared && a.before == 0 {
			last := len(l.asked) - 1
			l.asked[i] = l.asked[last]
			l.asked[last] = ask{}
			l.asked = l.asked[:last]
			return a, true
		}
	}
	return ask{}, false
}

func (a *ask) conflicts(b *ask) bool {
	return a.first < b.end && b.first < a.end && !(a.shared && b.shared)
}
