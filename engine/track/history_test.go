package track

import (
	"bytes"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// historian is a device that knows which cut every write belongs to.
//
// A write's pages are in open from its entry until the next cut closes them, and as the writer holds them
// exclusively, nobody else puts them there: so at the moment of the device write, either they are in open,
// and the write is after the last cut, or it belongs to the last cut that closed them.
type historian struct {
	*devtest.Faults
	mem   *devtest.Mem
	pages uint64
	seed  maphash.Seed
	tr    *Tracker

	mu     sync.Mutex
	closed []*blockdev.PageSet // by cut, from 1: what it closed
	pasts  [][]version         // by page
}

type version struct {
	cut  int // the first cut that has it
	hash uint64
}

func newHistorian(size int64) *historian {
	pages := uint64((size + page - 1) / page)
	h := &historian{mem: devtest.NewMem(size, 512, 1), pages: pages, seed: maphash.MakeSeed()}
	h.Faults = devtest.NewFaults(h.mem)
	h.pasts = make([][]version, pages)
	h.closed = []*blockdev.PageSet{nil}
	for p := range h.pasts {
		h.pasts[p] = []version{{0, h.hash(make([]byte, min(page, size-int64(p)*page)))}}
	}
	return h
}

func (h *historian) hash(b []byte) uint64 { return maphash.Bytes(h.seed, b) }

func (h *historian) WriteAt(b []byte, off int64) (int, error) {
	if rand.IntN(4) == 0 {
		runtime.Gosched() // between entry and device
	}
	n, err := h.Faults.WriteAt(b, off)
	h.record(off, int64(len(b)))
	return n, err
}

func (h *historian) Zero(off, n int64, mayFree bool) error {
	err := h.Faults.Zero(off, n, mayFree)
	h.record(off, n)
	return err
}

// record notes the pages as they are now; the writer holds them.
func (h *historian) record(off, n int64) {
	first, end := uint64(off/page), uint64((off+n-1)/page+1)
	buf := make([]byte, int64(end-first)*page)
	buf = buf[:min(int64(len(buf)), h.mem.Info().Size-int64(first)*page)]
	if _, err := h.mem.ReadAt(buf, int64(first)*page); err != nil {
		panic(err)
	}
	h.tr.mu.Lock() // the order in which test cuts are taken
	defer h.tr.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	cut := len(h.closed)
	if !h.tr.open.Contains(first) {
		for cut--; !h.closed[cut].Contains(first); cut-- {
		}
	}
	for p := first; p < end; p++ {
		at := int64(p-first) * page
		h.pasts[p] = append(h.pasts[p], version{cut, h.hash(buf[at:min(at+page, int64(len(buf)))])})
	}
}

// cut is Tracker.CutStep, and notes what it closed.
func (h *historian) cut(k Taker) (number int, voids *blockdev.PageSet) {
	h.tr.mu.Lock()
	h.mu.Lock()
	h.closed = append(h.closed, h.tr.open.Clone())
	number = len(h.closed) - 1
	h.mu.Unlock()
	voids = h.tr.cutLocked([]Taker{k})[0]
	h.tr.mu.Unlock()
	k.sets.capture.shrink()
	return number, voids
}

// at is the hash that a page has at a cut.
func (h *historian) at(cut int, p uint64) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	past := h.pasts[p]
	for i := len(past) - 1; ; i-- {
		if past[i].cut <= cut {
			return past[i].hash
		}
	}
}

// follower is a mirror of a history test: staging, and an image that is always at a cut.
type follower struct {
	t      *testing.T
	h      *historian
	path   *Path
	s      *Sets
	rng    *rand.Rand
	image  []byte
	staged map[uint64][]byte

	given, commits int
}

func (f *follower) run(stop *atomic.Bool) {
	for last := false; !last && !f.t.Failed(); {
		last = stop.Load() // one more after the last write
		cut, voids := f.h.cut(f.s.Epoch())
		if voids != nil {
			for r := range runsIn(voids, 0, f.h.pages) {
				for p := r.First; p < r.End(); p++ {
					if f.staged[p] == nil {
						f.t.Errorf("void %d is not staged", p)
					}
					delete(f.staged, p)
				}
			}
		}
		if !f.epoch(cut) {
			last = false
		}
		time.Sleep(time.Millisecond)
	}
}

// epoch ships what the cut closed and commits it, or gives it up.
func (f *follower) epoch(cut int) (committed bool) {
	var mu sync.Mutex
	var fetched []Piece
	var givenUp atomic.Bool
	abandon := f.rng.IntN(4) == 0
	limit := 1 << (12 + f.rng.IntN(8))
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for more := true; more; {
				var out []Piece
				var err error
				out, more, err = f.path.ReadClosed(f.t.Context(), f.s, limit, heap{})
				mu.Lock()
				fetched = append(fetched, out...)
				enough := abandon && len(fetched) > 10
				mu.Unlock()
				if errors.Is(err, ErrGivenUp) || enough {
					givenUp.Store(true)
				} else if err != nil {
					f.t.Error(err)
				}
				if givenUp.Load() {
					return
				}
			}
		})
	}
	wg.Wait()
	if givenUp.Load() {
		f.given++
		var lost []Run
		for _, p := range fetched {
			if f.rng.IntN(2) == 0 {
				lost = append(lost, p.Run)
			} else {
				f.stage(p)
			}
		}
		f.path.t.GiveUp(f.s, lost)
		return false
	}
	for _, p := range fetched {
		f.stage(p)
	}
	return f.commit(cut)
}

func (f *follower) stage(p Piece) {
	data := p.Data
	if p.Zero {
		data = make([]byte, p.Length)
	}
	if int64(len(data)) != p.Length || p.Err != nil {
		f.t.Errorf("%+v has %d bytes, %v", p.Run, len(data), p.Err)
		return
	}
	for i := range p.Count {
		if f.staged[p.First+i] != nil {
			f.t.Errorf("page %d was read twice", p.First+i)
		}
		f.staged[p.First+i] = bytes.Clone(data[i*page : min((i+1)*page, uint64(len(data)))])
	}
}

func (f *follower) commit(cut int) bool {
	if !f.path.t.Shipped(f.s) {
		f.t.Error("not everything was shipped")
	}
	if err := f.path.t.StartCommit(f.s); errors.Is(err, ErrGivenUp) {
		f.path.t.GiveUp(f.s, nil)
		return false
	} else if err != nil {
		f.t.Error(err)
		return false
	}
	if n := f.path.t.Counts(f.s).Committing; n != uint64(len(f.staged)) {
		f.t.Errorf("%d pages are committing, %d staged", n, len(f.staged))
	}
	for p, data := range f.staged {
		copy(f.image[p*page:], data)
	}
	clear(f.staged)
	for p := range f.h.pages {
		at := int(p * page)
		if f.h.hash(f.image[at:min(at+page, len(f.image))]) != f.h.at(cut, p) {
			f.t.Errorf("%s at cut %d: page %d is not what it was", f.s.name, cut, p)
			return false
		}
	}
	f.path.t.Committed(f.s)
	f.commits++
	return true
}

// TestEveryCommitIsItsCut is the heart: writers, cuts and shippers of two consumers, all at once, and each
// epoch that is committed makes its mirror exactly what the primary was at that cut.
func TestEveryCommitIsItsCut(t *testing.T) {
	for seed := range uint64(6) {
		testHistory(t, seed)
	}
}

func testHistory(t *testing.T, seed uint64) {
	const size = 150*page + 1000
	h := newHistorian(size)
	fs := journaltest.New()
	h.tr = NewTracker(h.pages, nullMarker{}, time.Now)
	path, err := NewPath(Config{Device: h, Size: size, BlockSize: 16 << 10, Tracker: h.tr})
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var writers, shippers sync.WaitGroup
	for i := range uint64(4) {
		writers.Go(func() { scribble(t, path, rand.New(rand.NewPCG(seed, 100+i)), 200) })
	}
	var all []*follower
	for i, name := range []string{"a", "b"} {
		capture := CaptureConfig{
			Pages: h.pages, BlockPages: 4, Memory: int64(10+90*(seed%2)) * page, Spool: int64(20*(seed%3)) * page, FS: fs, Path: name,
		}
		f := &follower{
			t: t, h: h, path: path, rng: rand.New(rand.NewPCG(seed, uint64(i))), image: make([]byte, size),
			staged: map[uint64][]byte{}, s: h.tr.AddConsumer(name, NewCapture(capture)),
		}
		all = append(all, f)
	}
	for _, f := range all {
		shippers.Go(func() { f.run(&stop) })
	}
	writers.Wait()
	stop.Store(true)
	shippers.Wait()
	for _, f := range all {
		t.Logf("seed %d %s: %d commits, %d given up", seed, f.s.name, f.commits, f.given)
		if f.commits == 0 {
			t.Errorf("%s committed nothing", f.s.name)
		}
		if memory, spool := f.s.capture.Used(); memory+spool != 0 {
			t.Errorf("%d and %d bytes are left", memory, spool)
		}
	}
}

func scribble(t *testing.T, path *Path, rng *rand.Rand, writes int) {
	for range writes {
		off := rng.Int64N(path.Size())
		n := min(1+rng.Int64N(1<<rng.IntN(17)), path.Size()-off)
		var err error
		switch rng.IntN(6) {
		case 0:
			err = path.Zero(off, n, true)
		case 1:
			err = path.Trim(off, n)
		default:
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			err = path.WriteAt(b, off)
		}
		if err != nil {
			t.Error(err)
		}
		if rng.IntN(20) == 0 {
			time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
		}
	}
}
