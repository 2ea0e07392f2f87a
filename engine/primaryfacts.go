package engine

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/journal"
)

// facts are the live facts of a primary's volume and the journal that keeps them. One lock orders what is
// written: a record holds all facts, so a later one must never carry an older value. It is held while they become
// durable, which a disk that hangs keeps from ending: who only tells of them reads told.
type facts struct {
	mu   sync.Mutex
	now  journal.VolumeFacts
	log  *journal.VolumeLog
	here map[string]bool // mirrors that attached in this process, with what they need in their sets

	shown atomic.Pointer[journal.VolumeFacts] // as they were when mu was last let go of; never changed
}

// unlock lets go of mu, and has what changed meanwhile told.
func (f *facts) unlock() {
	f.shown.Store(f.copyLocked())
	f.mu.Unlock()
}

func (f *facts) copyLocked() *journal.VolumeFacts {
	c := f.now
	c.Mirrors = slices.Clone(c.Mirrors)
	return &c
}

// told are the facts for a status. It waits for nobody: what is just becoming durable is not in it yet.
func (f *facts) told() journal.VolumeFacts { return *f.shown.Load() }

// open takes up what the journal had.
func (f *facts) open(now journal.VolumeFacts, log *journal.VolumeLog) {
	f.mu.Lock()
	defer f.unlock()
	f.now, f.log = now, log
}

// errJournalLow stops cuts while the journal has only its reserve left, which is for marks.
var errJournalLow = errors.New("the journal has only its reserved room left")

// number takes the next number for a cut or a bulk flush of one mirror and makes it durable: it is never
// used again, whatever happens, and the journal knows that this mirror may hold it.
func (f *facts) number(mirror string) (uint64, error) {
	f.mu.Lock()
	defer f.unlock()
	if f.log.Low() {
		return 0, errJournalLow
	}
	f.now.Cut++
	f.mirror(mirror).Sent = f.now.Cut
	return f.now.Cut, f.log.SetFacts(f.now)
}

// seen raises the counter above a number that a mirror has shown.
func (f *facts) seen(number uint64) {
	f.mu.Lock()
	defer f.unlock()
	f.now.Cut = max(f.now.Cut, number)
}

// committed notes what a mirror has confirmed. It need not be durable: after a crash an older value only
// means that more is in doubt. It comes before the sets change, so that no checkpoint pairs smaller sets with
// an older cut.
func (f *facts) committed(mirror string, number uint64, bulk bool) error {
	f.mu.Lock()
	defer f.unlock()
	m := f.mirror(mirror)
	m.Committed, m.Bulk = number, bulk
	_, err := f.log.AppendFacts(f.now)
	return err
}

// attached notes which node a mirror is, and what it holds, durably: from here on its numbers are compared.
//
// anew: what it needs does not follow from what the journal has of it. So the sets of the last checkpoint
// count for nothing, however well its numbers will fit: Attached falls, and rises with the next checkpoint
// (see covered).
func (f *facts) attached(mirror string, node [32]byte, committed, sent uint64, bulk, anew bool) error {
	f.mu.Lock()
	defer f.unlock()
	m := f.mirror(mirror)
	before := *m
	if f.here == nil {
		f.here = map[string]bool{}
	}
	f.here[mirror] = true
	m.Node, m.Attached, m.Committed, m.Bulk, m.Sent = node, m.Attached && !anew, committed, bulk, max(m.Sent, sent)
	if *m == before {
		return nil
	}
	return f.log.SetFacts(f.now)
}

// covered are the facts that are true once a checkpoint has been made of the present sets, and not before: of every
// mirror that was here they say what it needs. f.mu is held from before the sets are read.
func (f *facts) covered() journal.VolumeFacts {
	next := f.now
	next.Mirrors = slices.Clone(f.now.Mirrors)
	for i := range next.Mirrors {
		m := &next.Mirrors[i]
		m.Attached = m.Attached || f.here[m.Name]
	}
	return next
}

// uncovered tells whether covered would change anything.
func (f *facts) uncovered() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.now.Mirrors, func(m journal.MirrorFacts) bool { return f.here[m.Name] && !m.Attached })
}

// met tells whether any mirror ever took this history up.
func (f *facts) met() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.here) > 0 || slices.ContainsFunc(f.now.Mirrors, func(m journal.MirrorFacts) bool { return m.Attached })
}

// forget drops all that is known of mirrors that are not kept: should one come again, it is compared as a whole.
func (f *facts) forget(keep func(name string) bool) error {
	return f.change(func(now *journal.VolumeFacts) {
		now.Mirrors = slices.DeleteFunc(now.Mirrors, func(m journal.MirrorFacts) bool {
			if keep(m.Name) {
				return false
			}
			delete(f.here, m.Name)
			return true
		})
	})
}

// change edits the facts and makes them durable.
func (f *facts) change(edit func(*journal.VolumeFacts)) error {
	f.mu.Lock()
	defer f.unlock()
	edit(&f.now)
	return f.log.SetFacts(f.now)
}

// get is a copy of the facts.
func (f *facts) get() journal.VolumeFacts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *f.copyLocked()
}

// of is what is remembered of one mirror.
func (f *facts) of(mirror string) journal.MirrorFacts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *f.mirror(mirror)
}

// mirror is the entry of a mirror, made where there is none. f.mu is held.
func (f *facts) mirror(name string) *journal.MirrorFacts {
	for i := range f.now.Mirrors {
		if f.now.Mirrors[i].Name == name {
			return &f.now.Mirrors[i]
		}
	}
	f.now.Mirrors = append(f.now.Mirrors, journal.MirrorFacts{Name: name})
	return &f.now.Mirrors[len(f.now.Mirrors)-1]
}
