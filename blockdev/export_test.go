package blockdev

// Doors for the external tests.

// OpenBuffered is Open on a file system that refuses O_DIRECT.
func OpenBuffered(path string, o Options) (*File, error) {
	o.noDirect = true
	return Open(path, o)
}

// OnSync replaces fdatasync of an open device.
func (f *File) OnSync(fn func(fd int) error) { f.sync = fn }

// ClaimsHeld is the number of claims on sectors that are held or waited for.
func (f *File) ClaimsHeld() int {
	f.claims.mu.Lock()
	defer f.claims.mu.Unlock()
	n := 0
	for c := f.claims.list.next; c != nil && c != &f.claims.list; c = c.next {
		n++
	}
	return n
}

// Waiting is the number of Gets that wait.
func (p *Pool) Waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiters.Len()
}

// Footprint is what the pool keeps, handed out or cached.
func (p *Pool) Footprint() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inUse + p.cached
}

// FlushesWaiting is the number of Flushes that have entered and wait for one that runs.
func (f *File) FlushesWaiting() int { return int(f.flushWaiting.Load()) }
