package identity

import (
	"slices"
	"time"
)

// A clock can be wrong: set far ahead by a time server or an empty battery, and right again some hours later. What is good
// goes by it at once, and comes back with it. What cannot be taken back, to destroy a key or to make the next one, waits until
// each look has found it due for a while, by a clock that nobody sets, in one life of this process.

// certain is such a while; less, where what is waited for is short itself.
const certain = 6 * time.Hour

// lookAtTime notes what has become due, and forgets what is so no longer.
func (n *Node) lookAtTime() {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, elapsed, lifetime, f := n.now(), n.options.Elapsed(), n.options.Lifetime, n.files
	from := map[ID]time.Duration{}
	note := func(id ID, wait time.Duration) {
		at, noted := n.overdue[id]
		if !noted {
			at = elapsed + wait
		}
		from[id] = at
	}
	for _, id := range f.over(now) {
		note(id, min(n.options.Grace, certain))
	}
	ahead := min(lifetime/3, certain) // so that the next key comes in time, and not so much later
	if _, due := f.own.due(now.Add(ahead), lifetime); due {
		note(f.own[f.own.current(now)].id, ahead)
	}
	n.overdue = from
}

// sure tells of which key it is sure that its time has come: to be destroyed, or for the current one to get a successor.
func (n *Node) sure() func(ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	elapsed, from := n.options.Elapsed(), n.overdue // which is replaced, and never changed
	return func(id ID) bool {
		at, noted := from[id]
		return noted && elapsed >= at
	}
}

// over are the keys that would be destroyed if the clock were right.
func (f *files) over(now time.Time) (ids []ID) {
	any := func(ID) bool { return true }
	left := f.own.expire(now, any)
	for _, k := range f.own {
		if left.index(k.id) < 0 {
			ids = append(ids, k.id)
		}
	}
	for _, p := range f.trust.Peers {
		kept := p.kept(now, any)
		for _, k := range p.Keys {
			if !slices.ContainsFunc(kept, func(other peerKey) bool { return other.ID == k.ID }) {
				ids = append(ids, k.ID)
			}
		}
	}
	return ids
}
