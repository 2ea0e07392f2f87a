// Package pagepool gives simulated storage its pages: contents that several files, disks and snapshots share,
// that nobody changes once they are made, and whose memory is used again. A fresh page costs a microsecond or
// two of the garbage collector, one out of the pool a twentieth of that.
package pagepool

import "sync/atomic"

// Size is that of a page.
const Size = 4 << 10

// Page is a content.
type Page struct {
	Data  [Size]byte
	owner uint64 // the only arena that has it, 0: there may be others
}

// Pool is where pages come from. It is for one thread. The zero Pool is empty.
type Pool struct {
	all  []*Page // ever made
	next int     // of all, those before it are or were in use since Reset
	free []*Page
}

// Reset takes back every page that was ever taken. Nothing that took some may be used any more, and no
// content that it showed be looked at.
func (p *Pool) Reset() { p.next, p.free = 0, p.free[:0] }

func (p *Pool) page(owner uint64) *Page {
	var pg *Page
	switch n := len(p.free); {
	case n > 0:
		pg, p.free = p.free[n-1], p.free[:n-1]
	case p.next < len(p.all):
		pg = p.all[p.next]
		p.next++
	default:
		pg = new(Page)
		p.all = append(p.all, pg)
		p.next++
	}
	pg.owner = owner
	return pg
}

// Arena is one holder of pages.
type Arena struct {
	pool  *Pool
	owner uint64
	many  bool // the pool is for several arenas
}

var owners atomic.Uint64

// New is an Arena with a pool of its own, and so has each that is split off it; or one in a pool, as all that
// are split off it.
func New(pool *Pool) Arena {
	if pool == nil {
		return Arena{pool: new(Pool), owner: owners.Add(1)}
	}
	return Arena{pool: pool, owner: owners.Add(1), many: true}
}

// Split is the arena for a copy of all that a has. From then on neither may free what there was.
func (a *Arena) Split() Arena {
	a.owner = owners.Add(1)
	if a.many {
		return New(a.pool)
	}
	return New(nil)
}

// Page is a new page with this content, of Size bytes.
func (a *Arena) Page(data []byte) *Page {
	pg := a.page()
	copy(pg.Data[:], data)
	return pg
}

// Copy is a copy of a page for somebody to change before anybody else sees it; of nil, zeroes.
func (a *Arena) Copy(of *Page) *Page {
	pg := a.page()
	if of == nil {
		clear(pg.Data[:])
	} else {
		pg.Data = of.Data
	}
	return pg
}

func (a *Arena) page() *Page {
	pg := a.pool.page(a.owner)
	if !a.many { // the garbage collector has what is not freed
		a.pool.all, a.pool.next = a.pool.all[:0], 0
	}
	return pg
}

// Free gives a page back that the holder has no use for, unless somebody else may have it. nil is none.
func (a *Arena) Free(pg *Page) {
	if pg != nil && pg.owner == a.owner {
		pg.owner = 0
		a.pool.free = append(a.pool.free, pg)
	}
}

// Share has the page never be freed: somebody looks at it.
func (pg *Page) Share() { pg.owner = 0 }
