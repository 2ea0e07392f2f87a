package track

import (
	"sync"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
)

// Capture keeps contents of a cut for one consumer until its shipper fetches them: in memory up to a
// limit, then in a spool file up to another, and then it is full. It never waits for room.
//
// Contents are never changed, so several consumers keep the same one by reference; it counts against the
// limit of each, and the collector frees it when the last lets go.
//
// Room is reserved before anything is read, and content stored there outside of every lock; Tracker.captured
// then enters it in the step that takes its pages out of todo. All methods may be called concurrently, those
// in lower case also on nil, which has no room.
type Capture struct {
	cfg   CaptureConfig
	spool spool

	mu      sync.Mutex
	pages   *blockdev.PageSet // that are kept
	kept    map[uint64]kept   // by first page; disjoint
	memory  int64             // bytes reserved and kept in memory
	spooled int64             // end of what was ever reserved in the spool since it was last empty
	users   int               // contents and reservations that the spool holds
}

// CaptureConfig says how much a Capture may keep, and where.
type CaptureConfig struct {
	Pages      uint64 // of the volume
	BlockPages uint64 // contents come back in runs that never cross a border of this many pages
	Memory     int64  // bytes
	Spool      int64  // bytes; 0: no spool

	FS   journal.FS
	Path string // of the spool file. What has this name is removed; the file itself never keeps it
}

// content is what a run of pages held. It lies within one block.
type content struct {
	Run
	data []byte // at its true length; nil: zeroes. Never changed
}

// kept is a content as a Capture has it: zeroes, bytes in memory, or a place in the spool.
type kept struct {
	count   uint64
	data    []byte
	spooled bool
	off     int64 // in the spool
	length  int   // in the spool
}

// entry is a content that has its place and is not entered yet.
type entry struct {
	Run
	kept
}

func (k *kept) zero() bool { return k.data == nil && !k.spooled }

// bytes is the length of the data, 0 for zeroes.
func (k *kept) bytes() int {
	if k.spooled {
		return k.length
	}
	return len(k.data)
}

// room is a reservation.
type room struct {
	bytes   int64
	spooled bool
	off     int64 // where the next content goes
}

// NewCapture makes an empty store. A spool file that an earlier process left behind is removed.
func NewCapture(cfg CaptureConfig) *Capture {
	c := &Capture{cfg: cfg, pages: blockdev.NewPageSet(cfg.Pages), kept: map[uint64]kept{}}
	c.cfg.BlockPages = max(1, cfg.BlockPages)
	if cfg.FS == nil {
		c.cfg.Spool = 0
	} else {
		c.spool = spool{fs: cfg.FS, path: cfg.Path}
		c.spool.unlink()
	}
	return c
}

// Pages is the number of pages kept.
func (c *Capture) Pages() uint64 {
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages.Count()
}

// Used tells how many bytes are taken, in memory and in the spool.
func (c *Capture) Used() (memory, spool int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memory, c.spooled
}

// Close releases the spool file. Nothing may be kept any more.
func (c *Capture) Close() error { return c.spool.close() }

// free is how much could be reserved, in pieces.
func (c *Capture) free() int64 {
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.cfg.Memory-c.memory) + max(0, c.cfg.Spool-c.spooled)
}

// reserve takes room for n bytes, all in memory or all in the spool. false: full.
func (c *Capture) reserve(n int64) (room, bool) {
	if c == nil {
		return room{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n <= c.cfg.Memory-c.memory {
		c.memory += n
		return room{bytes: n}, true
	}
	if n > c.cfg.Spool-c.spooled {
		return room{}, false
	}
	r := room{bytes: n, spooled: true, off: c.spooled}
	c.spooled += n
	c.users++
	return r, true
}

// store gives a content its place in the room, which has enough. An error of the spool means that there is
// no room, whatever its cause.
func (c *Capture) store(r *room, x content) (entry, error) {
	e := entry{x.Run, kept{count: x.Count, data: x.data}}
	if !r.spooled || x.data == nil {
		return e, nil
	}
	e.kept = kept{count: x.Count, spooled: true, off: r.off, length: len(x.data)}
	r.off += int64(len(x.data))
	return e, c.spool.write(x.data, e.off)
}

// put enters what was stored in the room, and gives back what the room had more. The pages are none that
// are kept already.
func (c *Capture) put(r room, entries []entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range entries {
		if e.spooled {
			c.users++
		}
		c.memory += int64(len(e.data))
		if c.pages.Add(e.First, e.Count) != e.Count {
			panic("track: a page is captured twice")
		}
		c.kept[e.First] = e.kept
	}
	c.dropLocked(r)
}

// drop gives a reservation back.
func (c *Capture) drop(r room) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(r)
}

func (c *Capture) dropLocked(r room) {
	if r.spooled {
		c.releaseLocked()
	} else {
		c.memory -= r.bytes
	}
}

// releaseLocked lets go of one user of the spool. Its room is used anew from the front when the last has
// left.
func (c *Capture) releaseLocked() {
	if c.users--; c.users == 0 {
		c.spooled = 0
	}
}

// empty forgets everything that is kept and returns its pages; nil: none.
func (c *Capture) empty() *blockdev.PageSet {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pages.Count() == 0 {
		return nil
	}
	for first, k := range c.kept {
		delete(c.kept, first)
		c.forgetLocked(k)
	}
	pages := c.pages
	c.pages = blockdev.NewPageSet(c.cfg.Pages)
	return pages
}

func (c *Capture) forgetLocked(k kept) {
	c.memory -= int64(len(k.data))
	if k.spooled {
		c.releaseLocked()
	}
}

// fetched is a run that was taken out of a Capture.
type fetched struct {
	Run
	zero  bool
	bytes int
	parts []kept
}

// peek is the number of bytes that the next pop can give; 0 for zeroes. false: nothing is kept.
func (c *Capture) peek() (bytes int, ok bool) {
	if c == nil {
		return 0, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.nextLocked(int(c.cfg.BlockPages) * blockdev.PageSize)
	return f.bytes, ok
}

// pop takes out the first run in ascending order. false: there is none of at most so many bytes. The run
// has to be loaded, and holds its room in the spool until it is.
func (c *Capture) pop(limit int) (f fetched, ok bool) {
	if c == nil {
		return fetched{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok = c.nextLocked(limit); !ok {
		return fetched{}, false
	}
	at := f.First
	for _, k := range f.parts {
		delete(c.kept, at)
		c.memory -= int64(len(k.data))
		at += k.count
	}
	c.pages.Remove(f.First, f.Count)
	return f, true
}

// nextLocked is the first run: within one block, all data or all zeroes, and as long as it fits.
func (c *Capture) nextLocked(limit int) (f fetched, ok bool) {
	f.First, _, ok = c.pages.NextRun(0, 1)
	for at := f.First; ok; {
		k, follows := c.kept[at]
		if !follows || f.Count > 0 && k.zero() != f.zero || f.bytes+k.bytes() > limit {
			break
		}
		f.zero = k.zero()
		f.bytes += k.bytes()
		f.parts = append(f.parts, k)
		f.Count += k.count
		if at += k.count; at%c.cfg.BlockPages == 0 {
			break
		}
	}
	return f, f.Count > 0
}

// load copies the data of a popped run to dst, and ends its hold on the spool. After an error the content
// is lost.
func (c *Capture) load(f fetched, dst []byte) error {
	var err error
	for _, k := range f.parts {
		if k.spooled {
			if err == nil {
				err = c.spool.read(dst[:k.length], k.off)
			}
			dst = dst[k.length:]
			c.release()
		} else {
			dst = dst[copy(dst, k.data):]
		}
	}
	c.shrink()
	return err
}

func (c *Capture) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.releaseLocked()
}

// shrink gives the spool's disk space back where it holds nothing. It does I/O, so it is called outside of
// Tracker.mu, after whatever may have emptied the store.
func (c *Capture) shrink() {
	if c == nil {
		return
	}
	c.spool.shrink(func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.users == 0
	})
}
