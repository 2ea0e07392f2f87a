package track

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

const auditPages = 120

// auditWorld is a Path under everything at once: writers, shippers of two consumers, cuts, give-ups by
// either side, pages that cannot be read, a spool on a full disk and one that cannot be read back, and
// buffers that are not to be had.
type auditWorld struct {
	t    *testing.T
	seed uint64
	h    *historian
	fs   *journaltest.MemFS
	path *Path
	pace *pacer
	pool *blockdev.Pool
	bad  map[uint64]bool // pages that cannot be read, until heal
	all  []*auditor
}

// auditor is a consumer that holds every single page it is given against the history, at once and whatever
// becomes of the pass.
type auditor struct {
	*auditWorld
	s   *Sets
	rng *rand.Rand
	limits

	image  []byte            // of its mirror, which is at a cut, save for holes
	staged map[uint64][]byte // known to be staged

	// Of the present pass.
	cut    int
	todo   *blockdev.PageSet // at the cut
	mu     sync.Mutex
	pieces map[uint64][]byte // by page: what was given
	runs   []Run

	commits, given, pages int
	gaveUp, holes         atomic.Int64 // as told
}

// watched is a device that looks at the limits in the middle of every request.
type watched struct {
	*historian
	w *auditWorld
}

func (d watched) look() {
	for _, a := range d.w.all {
		a.look(d.w.t, d.w.seed)
	}
}

func (d watched) ReadAt(b []byte, off int64) (int, error) {
	d.look()
	return d.historian.ReadAt(b, off)
}

func (d watched) WriteAt(b []byte, off int64) (int, error) {
	d.look()
	return d.historian.WriteAt(b, off)
}

func (d watched) Zero(off, n int64, mayFree bool) error {
	d.look()
	return d.historian.Zero(off, n, mayFree)
}

var errNoBuffer = errors.New("no buffer")

// flaky are buffers of a pool, but for every eighth.
type flaky struct {
	*blockdev.Pool
	n *atomic.Int64
}

func (f flaky) Get(ctx context.Context, n int) ([]byte, error) {
	if f.n.Add(1)%8 == 0 {
		return nil, errNoBuffer
	}
	return f.Pool.Get(ctx, n)
}

func newAuditWorld(t *testing.T, seed uint64, writers int) *auditWorld {
	const size = auditPages*page - 700
	w := &auditWorld{
		t: t, seed: seed, h: newHistorian(size), fs: journaltest.New(), pace: newPacer(writers, 8),
		pool: blockdev.NewPool(16 << 20), bad: map[uint64]bool{},
	}
	w.h.tr = NewTracker(auditPages, nullMarker{}, time.Now)
	rng := rand.New(rand.NewPCG(seed, 600))
	for range 4 {
		p := rng.Uint64N(auditPages)
		w.bad[p] = true
		touches := devtest.Touches(int64(p)*page, 1)
		w.h.Inject(devtest.Rule{Op: devtest.OpRead, When: touches, Effect: devtest.Fail(syscall.EIO)})
	}
	for range 3 {
		w.fs.Fail(journaltest.OpWrite, rng.IntN(8), syscall.ENOSPC)
		w.fs.Fail(journaltest.OpRead, rng.IntN(8), syscall.EIO)
	}
	for i, name := range []string{"a", "b"} {
		w.all = append(w.all, w.auditor(name, uint64(i)))
	}
	path, err := NewPath(Config{
		Device: watched{w.h, w}, Size: size, BlockSize: 16 << 10, Tracker: w.h.tr, Observer: Observer{
			GaveUp: func(s *Sets, _ error) { w.of(s).gaveUp.Add(1) },
			Hole:   func(s *Sets, r Run, err error) { w.of(s).hole(r, err) },
		}})
	if err != nil {
		t.Fatal(err)
	}
	w.path = path
	return w
}

func (w *auditWorld) auditor(name string, n uint64) *auditor {
	c := NewCapture(CaptureConfig{
		Pages: auditPages, BlockPages: 4, Memory: int64(3+40*((w.seed+n)%2)) * page,
		Spool: int64(30*((w.seed+n)%3)) * page, FS: w.fs, Path: name,
	})
	return &auditor{
		auditWorld: w, s: w.h.tr.AddConsumer(name, c), rng: rand.New(rand.NewPCG(w.seed, 610+n)),
		limits: limits{c: c}, image: make([]byte, w.h.mem.Info().Size), staged: map[uint64][]byte{},
	}
}

func (w *auditWorld) of(s *Sets) *auditor {
	if w.all[0].s == s {
		return w.all[0]
	}
	return w.all[1]
}

// heal ends all faults.
func (w *auditWorld) heal() {
	w.fs.Heal()
	w.h.Clear()
}

func (a *auditor) fail(format string, args ...any) {
	a.t.Errorf("seed %d, %s, cut %d: "+format, append([]any{a.seed, a.s.Name(), a.cut}, args...)...)
}

// hole is what the write path tells: only of pages that really cannot be read.
func (a *auditor) hole(r Run, err error) {
	a.holes.Add(int64(r.Count))
	if r.Count != 1 || !a.bad[r.First] || !errors.Is(err, syscall.EIO) {
		a.fail("a hole of %+v: %v", r, err)
	}
}

// begin is CutStep, and keeps in the same step what is to be read.
func (a *auditor) begin() {
	h := a.h
	h.tr.mu.Lock()
	h.mu.Lock()
	h.closed = append(h.closed, h.tr.open.Clone())
	a.cut = len(h.closed) - 1
	h.mu.Unlock()
	voids := h.tr.cutLocked([]Taker{a.s.Epoch()})[0]
	a.todo = a.s.todo.Clone()
	h.tr.mu.Unlock()
	a.c.shrink()
	if voids != nil {
		for r := range runsIn(voids, 0, auditPages) {
			for p := r.First; p < r.End(); p++ {
				if a.staged[p] == nil {
					a.fail("void page %d is not staged", p)
				}
				delete(a.staged, p)
			}
		}
	}
	a.pieces, a.runs = map[uint64][]byte{}, nil
}

// take audits a piece: of the todo of this cut, not given before, with the content of the cut.
func (a *auditor) take(x Piece) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x.Err != nil {
		if x.Count != 1 || !a.bad[x.First] {
			a.fail("%+v cannot be read: %v", x.Run, x.Err)
		}
		return
	}
	data := x.Data
	if x.Zero {
		data = make([]byte, x.Length)
	}
	if _, n := a.path.bytesOf(x.Run); n != x.Length || int64(len(data)) != n {
		a.fail("%+v has %d bytes and says %d", x.Run, len(data), x.Length)
		return
	}
	for i := range x.Count {
		p, b := x.First+i, data[i*page:min((i+1)*page, uint64(len(data)))]
		switch {
		case !a.todo.Contains(p):
			a.fail("page %d is none of this cut", p)
		case a.pieces[p] != nil:
			a.fail("page %d is given twice", p)
		case a.h.hash(b) != a.h.at(a.cut, p):
			a.fail("page %d is not what it was at the cut", p)
		}
		a.pieces[p] = bytes.Clone(b)
	}
	a.runs = append(a.runs, x.Run)
	a.pages += int(x.Count)
	a.pool.Put(x.Data)
}

// read is one of several shippers. Each goes on as long as it is told that there is more, or that its buffer
// was not to be had; enough says that this one gives up.
func (a *auditor) read(limit int, bufs flaky, givenUp *atomic.Bool, enough int) {
	for more := true; more && !givenUp.Load(); {
		out, left, err := a.path.ReadClosed(a.t.Context(), a.s, limit, bufs)
		for _, x := range out {
			a.take(x)
		}
		a.look(a.t, a.seed)
		switch more = left; {
		case errors.Is(err, ErrGivenUp):
			givenUp.Store(true)
		case errors.Is(err, errNoBuffer):
			more = true
		case err != nil:
			a.fail("%v", err)
		}
		if a.hasEnough(enough) {
			// As the engine does when a connection is lost: while others still read.
			a.path.t.GiveUp(a.s, nil)
			givenUp.Store(true)
		}
	}
}

func (a *auditor) hasEnough(enough int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.runs) >= enough
}

// pass takes a cut and ships it.
func (a *auditor) pass(disturbed bool) (committed bool) {
	a.begin()
	enough := 1 << 30
	if disturbed {
		a.pace.linger(a.rng.IntN(24))
		if a.rng.IntN(4) == 0 {
			enough = a.rng.IntN(8)
		}
	}
	limit := 1 << (12 + a.rng.IntN(6))
	bufs := flaky{a.pool, new(atomic.Int64)}
	var givenUp atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { a.read(limit, bufs, &givenUp, enough) })
	}
	wg.Wait()
	if !givenUp.Load() {
		return a.commit()
	}
	a.giveUp()
	return false
}

// giveUp keeps a part of what was given as staged.
func (a *auditor) giveUp() {
	a.given++
	var lost []Run
	for _, r := range a.runs {
		if a.rng.IntN(2) == 0 {
			lost = append(lost, r)
			continue
		}
		a.stage(r)
	}
	a.path.t.GiveUp(a.s, lost)
}

func (a *auditor) stage(r Run) {
	for p := r.First; p < r.End(); p++ {
		if a.staged[p] != nil {
			a.fail("page %d is staged already", p)
		}
		a.staged[p] = a.pieces[p]
	}
}

// commit: all of the cut's todo was given or is a hole, and what is staged makes the mirror the primary at
// the cut.
func (a *auditor) commit() bool {
	tr := a.path.t
	if err := tr.StartCommit(a.s); errors.Is(err, ErrGivenUp) {
		a.giveUp() // by a writer, behind the last read
		return false
	} else if err != nil {
		a.fail("everything was read: %v", err)
		return false
	}
	holes := blockdev.NewPageSet(auditPages)
	for _, r := range tr.Holes(a.s, auditPages) {
		holes.Add(r.First, r.Count)
	}
	for p := range uint64(auditPages) {
		if a.todo.Contains(p) && (a.pieces[p] != nil) == holes.Contains(p) {
			a.fail("page %d was given is %v, is a hole %v", p, a.pieces[p] != nil, holes.Contains(p))
		}
	}
	for _, r := range a.runs {
		a.stage(r)
	}
	if n := tr.Counts(a.s).Committing; n != uint64(len(a.staged)) {
		a.fail("%d pages are committing, %d are staged", n, len(a.staged))
	}
	for p, b := range a.staged {
		copy(a.image[p*page:], b)
	}
	clear(a.staged)
	for p := range uint64(auditPages) {
		b := a.image[p*page : min((p+1)*page, uint64(len(a.image)))]
		if !holes.Contains(p) && a.h.hash(b) != a.h.at(a.cut, p) {
			a.fail("page %d of the mirror is not what it was", p)
		}
	}
	tr.Committed(a.s)
	a.commits++
	return !a.t.Failed()
}

func (a *auditor) run() {
	defer a.pace.end()
	for a.pace.cut() && !a.t.Failed() {
		a.pass(true)
	}
}

// settle is a last pass without faults and writers. Nothing is left behind it.
func (a *auditor) settle() {
	a.path.t.RetryHoles(a.s)
	if !a.pass(false) {
		a.fail("given up with nobody there who could")
	}
	if c := a.path.t.Counts(a.s); c != (Counts{}) {
		a.fail("left: %+v", c)
	}
	if !bytes.Equal(a.image, a.h.mem.Bytes()) {
		a.fail("the mirror is not the primary")
	}
	a.wantEmpty(a.t, a.seed)
}

// write is one random request of a client, who is never told of what a capture suffers.
func (w *auditWorld) write(rng *rand.Rand) {
	off := rng.Int64N(w.path.Size())
	n := min(1+rng.Int64N(1<<rng.IntN(16)), w.path.Size()-off)
	var err error
	switch rng.IntN(6) {
	case 0:
		err = w.path.Zero(off, n, true)
	case 1:
		err = w.path.Trim(off, n)
	default:
		err = w.path.WriteAt(bytes.Repeat([]byte{byte(rng.Uint32()), byte(rng.Uint32())}, int(n+1)/2)[:n], off)
	}
	if err != nil {
		w.t.Errorf("seed %d: %v", w.seed, err)
	}
}

// TestEveryPageIsOfItsCut: each page of a cut is given at most once, as it was at the cut, also where the
// pass comes to nothing; a pass that ends well has given all of them but its holes; and no capture ever
// takes more room than it may, nor keeps any.
func TestEveryPageIsOfItsCut(t *testing.T) {
	const writers = 4
	var sum struct{ commits, given, pages, gaveUp, holes, memory, spool, struck int64 }
	for seed := range uint64(18) {
		w := newAuditWorld(t, seed, writers)
		var writing, shipping sync.WaitGroup
		for i := range uint64(writers) {
			writing.Go(func() {
				defer w.pace.left()
				rng := rand.New(rand.NewPCG(seed, 620+i))
				for range 100 {
					w.write(rng)
					w.pace.wrote()
				}
			})
		}
		for _, a := range w.all {
			shipping.Go(a.run)
		}
		finish(t, seed, &writing)
		finish(t, seed, &shipping)
		if t.Failed() {
			return
		}
		sum.struck += int64(w.fs.Struck())
		w.heal()
		for _, a := range w.all {
			a.settle()
			sum.commits, sum.given, sum.pages = sum.commits+int64(a.commits), sum.given+int64(a.given), sum.pages+int64(a.pages)
			sum.gaveUp, sum.holes = sum.gaveUp+a.gaveUp.Load(), sum.holes+a.holes.Load()
			sum.memory, sum.spool = sum.memory+a.memoryMax.Load(), sum.spool+a.spoolMax.Load()
		}
		if n := w.pool.InUse(); n != 0 {
			t.Errorf("seed %d: %d bytes of buffers were not given back", seed, n)
		}
	}
	t.Logf("%+v", sum)
	if sum.gaveUp == 0 || sum.holes == 0 || sum.memory == 0 || sum.spool == 0 || sum.struck == 0 {
		t.Errorf("something never happened: %+v", sum)
	}
}
