package track

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// limits watches that a Capture never takes more than it may, and what the most was that it took.
type limits struct {
	c                   *Capture
	memoryMax, spoolMax atomic.Int64
	looks               atomic.Int64
}

// look is called at any moment, by anybody who holds no lock of the package.
func (l *limits) look(t *testing.T, seed uint64) {
	memory, spooled, kept, inSpool, users := l.measure()
	l.c.spool.mu.Lock()
	file := l.c.spool.size
	l.c.spool.mu.Unlock()
	switch cfg := &l.c.cfg; {
	case memory < 0 || memory > cfg.Memory || spooled < 0 || spooled > cfg.Spool || file > cfg.Spool:
		t.Errorf("seed %d: %d bytes in memory of %d, %d in the spool of %d, whose file has %d",
			seed, memory, cfg.Memory, spooled, cfg.Spool, file)
	case kept > memory || inSpool > spooled || users < 0:
		t.Errorf("seed %d: %d bytes are kept in memory and %d counted, %d in the spool and %d counted, users %d",
			seed, kept, memory, inSpool, spooled, users)
	}
	raise(&l.memoryMax, memory)
	raise(&l.spoolMax, spooled)
	l.looks.Add(1)
}

// measure is what a capture counts, and what it really holds.
func (l *limits) measure() (memory, spooled, kept, inSpool int64, users int) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	for _, k := range l.c.kept {
		kept += int64(len(k.data))
		if k.spooled {
			inSpool += int64(k.length)
		}
	}
	return l.c.memory, l.c.spooled, kept, inSpool, l.c.users
}

func raise(a *atomic.Int64, to int64) {
	for old := a.Load(); old < to && !a.CompareAndSwap(old, to); old = a.Load() {
	}
}

// watch looks all the time until stop.
func (l *limits) watch(t *testing.T, seed uint64, stop *atomic.Bool) {
	for !stop.Load() && !t.Failed() {
		l.look(t, seed)
		runtime.Gosched()
	}
}

// wantEmpty wants all room to be there again, and no disk space to be taken.
func (l *limits) wantEmpty(t *testing.T, seed uint64) {
	t.Helper()
	c := l.c
	c.shrink()
	memory, spool := c.Used()
	if memory+spool != 0 || c.users != 0 || c.Pages() != 0 || len(c.kept) != 0 || c.spool.size != 0 {
		t.Errorf("seed %d: %d pages are kept, %d and %d bytes used, by %d; the file has %d",
			seed, c.Pages(), memory, spool, c.users, c.spool.size)
	}
	if c.spool.file != nil {
		if n, err := c.spool.file.Size(); n != 0 || err != nil {
			t.Errorf("seed %d: the spool takes %d bytes, %v", seed, n, err)
		}
	}
}

// storeWorld uses a Capture from many goroutines as writers and shippers do. Who stores takes pages that
// nobody else has, who fetches gives them back: so each content comes back once, as it was.
type storeWorld struct {
	t    *testing.T
	seed uint64
	fs   *journaltest.MemFS
	limits

	mu                      sync.Mutex
	free                    []Run             // of one block each
	want                    map[uint64][]byte // by page; nil: zeroes
	stored, refused, faults int
	fetched                 int
}

const (
	storeBlock  = 2
	storeBlocks = 40
)

func newStoreWorld(t *testing.T, seed uint64) *storeWorld {
	w := &storeWorld{t: t, seed: seed, fs: journaltest.New(), want: map[uint64][]byte{}}
	w.c = NewCapture(CaptureConfig{
		Pages: storeBlock * storeBlocks, BlockPages: storeBlock,
		Memory: int64(4+8*(seed%2)) * page, Spool: int64(12*(seed%3)) * page, FS: w.fs, Path: "spool",
	})
	for i := range uint64(storeBlocks) {
		w.free = append(w.free, Run{i * storeBlock, storeBlock})
	}
	return w
}

// contents takes some free blocks and says what parts of them are to hold.
func (w *storeWorld) contents(rng *rand.Rand) (out []content) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range min(1+rng.IntN(3), len(w.free)) {
		i := rng.IntN(len(w.free))
		x := content{Run: w.free[i]}
		w.free[i] = w.free[len(w.free)-1]
		w.free = w.free[:len(w.free)-1]
		if rng.IntN(4) != 0 {
			x.data = make([]byte, x.Count*page)
			for p := range x.Count {
				copy(x.data[p*page:], bytes.Repeat([]byte{byte(rng.Uint32()) | 1}, page))
			}
		}
		for p := range x.Count {
			w.want[x.First+p] = nil
			if x.data != nil {
				w.want[x.First+p] = x.data[p*page:][:page]
			}
		}
		out = append(out, x)
	}
	return out
}

// giveBack makes pages free that are not kept, in runs as the blocks are.
func (w *storeWorld) giveBack(runs ...Run) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range runs {
		for p := r.First; p < r.End(); p++ {
			if _, ok := w.want[p]; !ok {
				w.t.Errorf("seed %d: page %d came back twice", w.seed, p)
			}
			delete(w.want, p)
		}
		w.free = append(w.free, r)
	}
}

func (w *storeWorld) store(rng *rand.Rand) {
	contents := w.contents(rng)
	if len(contents) == 0 {
		return
	}
	err := stored(w.c, contents...)
	w.look(w.t, w.seed)
	w.mu.Lock()
	switch {
	case err == nil:
		w.stored += len(contents)
	case errors.Is(err, errNoRoom):
		w.refused++
	case errors.Is(err, syscall.ENOSPC):
		w.faults++
	default:
		w.t.Errorf("seed %d: %v", w.seed, err)
	}
	w.mu.Unlock()
	if err != nil {
		for _, x := range contents {
			w.giveBack(x.Run)
		}
	}
}

func (w *storeWorld) fetch(rng *rand.Rand) {
	f, ok := w.c.pop((1 + rng.IntN(storeBlock+1)) * page)
	w.look(w.t, w.seed)
	if !ok {
		return
	}
	buf := make([]byte, f.bytes)
	if err := w.c.load(f, buf); err != nil {
		w.t.Errorf("seed %d: %v", w.seed, err)
	}
	w.mu.Lock()
	w.fetched += int(f.Count)
	for i := range f.Count {
		want, ok := w.want[f.First+i]
		if !ok || f.zero != (want == nil) || !f.zero && !bytes.Equal(buf[i*page:][:page], want) {
			w.t.Errorf("seed %d: page %d is not what was kept", w.seed, f.First+i)
		}
	}
	w.mu.Unlock()
	w.giveBack(f.Run)
}

// empty gives up, as at the end of a pass.
func (w *storeWorld) empty() {
	pages := w.c.empty()
	w.c.shrink()
	w.look(w.t, w.seed)
	if pages == nil {
		return
	}
	var blocks []Run
	for r := range runsIn(pages, 0, storeBlock*storeBlocks) {
		for ; r.Count > 0; r = (Run{r.First + storeBlock, r.Count - storeBlock}) {
			blocks = append(blocks, Run{r.First, storeBlock})
		}
	}
	w.giveBack(blocks...)
}

// TestCaptureWorlds: room is neither exceeded nor lost, whoever stores, fetches and gives up at once, and
// however often the disk of the spool is full.
func TestCaptureWorlds(t *testing.T) {
	var total storeWorld
	var spooled int64
	for seed := range uint64(8) {
		w := newStoreWorld(t, seed)
		rng := rand.New(rand.NewPCG(seed, 400))
		for range 6 {
			w.fs.Fail(journaltest.OpWrite, rng.IntN(100), syscall.ENOSPC)
		}
		var working, watching sync.WaitGroup
		var stop atomic.Bool
		watching.Go(func() { w.watch(t, seed, &stop) })
		for i := range uint64(6) {
			rng := rand.New(rand.NewPCG(seed, 401+i))
			working.Go(func() {
				for range 400 {
					switch n := rng.IntN(30); {
					case n == 0:
						w.empty()
					case i < 3 && n < 25 || n < 8:
						w.store(rng)
					default:
						w.fetch(rng)
					}
				}
			})
		}
		finish(t, seed, &working)
		stop.Store(true)
		finish(t, seed, &watching)
		w.drain()
		total.stored, total.refused, total.faults = total.stored+w.stored, total.refused+w.refused, total.faults+w.faults
		spooled += w.spoolMax.Load()
	}
	t.Logf("%d stored, %d refused, %d faults", total.stored, total.refused, total.faults)
	if total.stored == 0 || total.refused == 0 || total.faults == 0 || spooled == 0 {
		t.Errorf("%d stored, %d refused, %d faults, %d bytes in spools", total.stored, total.refused, total.faults, spooled)
	}
}

// drain fetches what is left, and wants all of the room to be had again.
func (w *storeWorld) drain() {
	rng := rand.New(rand.NewPCG(w.seed, 500))
	for w.c.Pages() > 0 && !w.t.Failed() {
		w.fetch(rng)
	}
	if len(w.want) != 0 || len(w.free) != storeBlocks {
		w.t.Errorf("seed %d: %d pages are lost, %d blocks are free", w.seed, len(w.want), len(w.free))
	}
	w.wantEmpty(w.t, w.seed)
	for _, n := range []int64{w.c.cfg.Memory, w.c.cfg.Spool} {
		if _, ok := w.c.reserve(n); !ok {
			w.t.Errorf("seed %d: no room for %d bytes in an empty capture", w.seed, n)
		}
	}
}
