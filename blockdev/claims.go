package blockdev

import "sync"

// claims keeps a read-modify-write of a partial sector apart from other writes of the same sector, which
// it would undo with what it had read. Writes of whole sectors share: among them, and for everybody who
// touches other sectors, a claim costs two short sections under a mutex and never waits.
//
// Claims stand in a list in the order of arrival, and each waits for those before it that it collides
// with: a read-modify-write cannot be starved, and nobody waits in a circle.
type claims struct {
	mu        sync.Mutex
	freed     sync.Cond // some claim was released; L is set by the first waiter
	list      claim     // list.next is the oldest; a ring once it was used
	exclusive int       // claims in the list that are
	waiting   int       // goroutines at freed
}

type claim struct {
	prev, next *claim
	lo, hi     int64
	exclusive  bool
}

// take claims [lo, hi), multiples of the sector, and waits until the claim holds.
func (cs *claims) take(lo, hi int64, exclusive bool) *claim {
	c := &claim{lo: lo, hi: hi, exclusive: exclusive}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.list.next == nil {
		cs.list.next, cs.list.prev = &cs.list, &cs.list
		cs.freed.L = &cs.mu
	}
	c.prev, c.next = cs.list.prev, &cs.list
	c.prev.next, c.next.prev = c, c
	if exclusive {
		cs.exclusive++
	}
	for cs.blocked(c) {
		cs.waiting++
		cs.freed.Wait()
		cs.waiting--
	}
	return c
}

// blocked reports whether an older claim collides with c.
func (cs *claims) blocked(c *claim) bool {
	if cs.exclusive == 0 {
		return false
	}
	for o := cs.list.next; o != c; o = o.next {
		if o.lo < c.hi && c.lo < o.hi && (o.exclusive || c.exclusive) {
			return true
		}
	}
	return false
}

// release ends a claim.
func (cs *claims) release(c *claim) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.prev.next, c.next.prev = c.next, c.prev
	if c.exclusive {
		cs.exclusive--
	}
	if cs.waiting > 0 {
		cs.freed.Broadcast()
	}
}
