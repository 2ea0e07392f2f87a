package journal

// The page cache of an index: pages that were read or written and not yet dropped. It gathers writes, so
// that filling a page in ascending order costs one write of it. It is bounded: when it is full, what is
// dirty is written and all of it is dropped.
const indexCachePages = 240 // of 16.1 KiB each: 3.9 MiB

type cachedPage struct {
	indexPage
	dirty bool
}

// pageLocked returns a page, from the cache or from the database, and keeps it in the cache. The pointer
// is valid until the next call of pageLocked, blankLocked or writeBackLocked.
func (x *Index) pageLocked(number uint64) (*cachedPage, error) {
	if p := x.cache[number]; p != nil {
		return p, nil
	}
	p, err := x.slotLocked()
	if err != nil {
		return nil, err
	}
	if err := x.readPageLocked(number, &p.indexPage); err != nil {
		x.free = append(x.free, p)
		return nil, err
	}
	x.cache[number] = p
	return p, nil
}

// slotLocked returns room for one more page, all of it zero bits, and makes room for it if need be.
func (x *Index) slotLocked() (*cachedPage, error) {
	if len(x.cache) >= indexCachePages {
		if err := x.writeBackLocked(); err != nil {
			return nil, err
		}
		for number, p := range x.cache {
			x.free = append(x.free, p)
			delete(x.cache, number)
		}
	}
	if n := len(x.free); n > 0 {
		p := x.free[n-1]
		x.free = x.free[:n-1]
		p.known, p.dirty = [len(p.known)]uint64{}, false
		return p, nil
	}
	return new(cachedPage), nil
}

// blankLocked forgets a whole page, without reading it.
func (x *Index) blankLocked(number uint64) error {
	p := x.cache[number]
	if p == nil {
		var err error
		if p, err = x.slotLocked(); err != nil {
			return err
		}
		x.cache[number] = p
	}
	p.known, p.dirty = [len(p.known)]uint64{}, true
	return nil
}

// clearLocked forgets blocks [from, to) of a page.
func (x *Index) clearLocked(number uint64, from, to int) error {
	p, err := x.pageLocked(number)
	if err != nil {
		return err
	}
	p.dirty = p.clear(from, to) || p.dirty
	return nil
}
