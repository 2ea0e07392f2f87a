package track

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

const crashPages = 6*regionPages + 100

// crashWorld takes random steps of writers, a mirror and a checkpoint, one at a time, and asks at any
// moment what a recovery would know. It is its own journal.
type crashWorld struct {
	t     *testing.T
	rng   *rand.Rand
	clock *clock
	tr    *Tracker
	s     *Sets
	disk  [crashPages][]byte // of each page's first byte: what is durable, then every version since
	image [crashPages]byte   // of the mirror, durable

	writes []*crashWrite
	depth  int
	step   int  // of the checkpoint under way
	inStep bool // in its step 0
	hot    []uint64
	snap   []Named

	// The journal: marks by segment, and how many of each are durable.
	segments [][]uint64
	durable  []int
	last     struct { // complete checkpoint
		needs *blockdev.PageSet
		hot   []uint64
		since int // segment
	}
	fail bool
}

type crashWrite struct {
	Write
	begun, reached bool
}

func (w *crashWorld) Mark(regions []uint64) (uint64, error) {
	w.wander()
	i := len(w.segments) - 1
	w.segments[i] = append(w.segments[i], regions...)
	lsn := uint64(i)<<32 | uint64(len(w.segments[i]))
	w.wander()
	if w.fail && w.rng.IntN(3) == 0 {
		return 0, errors.New("journal failed")
	}
	return lsn, nil
}

func (w *crashWorld) Sync(lsn uint64) error {
	w.wander()
	for i := range w.durable { // a log is durable from its front
		if uint64(i) < lsn>>32 {
			w.durable[i] = len(w.segments[i])
		}
	}
	w.durable[lsn>>32] = max(w.durable[lsn>>32], int(lsn&(1<<32-1)))
	w.wander()
	return nil
}

// wander takes some steps while a write waits for its mark.
func (w *crashWorld) wander() {
	for w.depth < 3 && w.rng.IntN(3) != 0 {
		w.depth++
		w.any()
		w.depth--
	}
}

func (w *crashWorld) any() {
	switch w.rng.IntN(10) {
	case 0, 1:
		w.begin()
	case 2, 3:
		w.reach()
	case 4, 5:
		w.end()
	case 6, 7:
		w.checkpoint()
	case 8:
		w.ship()
	case 9:
		w.clock.at = w.clock.at.Add(time.Second)
	}
	if w.depth > 0 || w.rng.IntN(4) == 0 {
		w.check()
	}
}

func (w *crashWorld) begin() {
	r := Run{w.rng.Uint64N(crashPages), 1}
	if w.rng.IntN(4) == 0 {
		r.Count = min(crashPages-r.First, 2*regionPages)
	}
	for _, x := range w.writes {
		if x.First < r.End() && r.First < x.End() {
			return
		}
	}
	// A region that is marking would have to be waited for, by the one goroutine there is.
	for i, end := w.tr.regionsOf(r); i < end; i++ {
		if w.tr.all[i].state == marking {
			return
		}
	}
	x := &crashWrite{Write: Write{Run: r}}
	w.writes = append(w.writes, x)
	got, err := w.tr.Begin(r.First, r.Count)
	if err != nil {
		w.writes = slices.DeleteFunc(w.writes, func(o *crashWrite) bool { return o == x })
		return
	}
	x.Write, x.begun = got, true
}

func (w *crashWorld) pick() *crashWrite {
	if len(w.writes) == 0 {
		return nil
	}
	if x := w.writes[w.rng.IntN(len(w.writes))]; x.begun { // else it waits for its mark
		return x
	}
	return nil
}

func (w *crashWorld) reach() {
	if x := w.pick(); x != nil && !x.reached {
		x.reached = true
		for p := x.First; p < x.End(); p += max(1, x.Count/8) {
			w.disk[p] = append(w.disk[p], byte(w.rng.Uint32()))
		}
	}
}

func (w *crashWorld) end() {
	if x := w.pick(); x != nil && x.reached {
		w.tr.End(x.Write)
		w.writes = slices.DeleteFunc(w.writes, func(o *crashWrite) bool { return o == x })
	}
}

func (w *crashWorld) checkpoint() {
	if w.inStep {
		return
	}
	switch w.step {
	case 0:
		w.inStep = true
		w.segments = append(w.segments, nil)
		w.durable = append(w.durable, 0)
		w.wander()
		w.hot = w.tr.BeginCheckpoint(w.clock.at.Add(-3*time.Second), w.rng.IntN(3))
		w.inStep = false
	case 1:
		for p, versions := range w.disk {
			w.disk[p] = versions[len(versions)-1:]
		}
	case 2:
		w.snap = w.tr.Snapshot()
	case 3:
		if w.rng.IntN(4) != 0 { // else it does not come to its end
			w.last.needs, w.last.hot = w.snap[0].Needs, w.hot
			w.last.since = len(w.segments) - 1
		}
		w.step = -1
	}
	w.step++
}

// ship takes a pass to the mirror, as far as no write holds the pages.
func (w *crashWorld) ship() {
	w.tr.CutStep(w.s.Bulk())
	for {
		c, ok := w.tr.ClaimTodo(w.s, 64)
		if !ok {
			break
		}
		for _, x := range w.writes {
			if x.First < c.End() && c.First < x.End() {
				w.tr.DropEpoch(w.s) // nothing of this pass was confirmed
				return
			}
		}
		for p := c.First; p < c.End(); p++ {
			w.image[p] = w.disk[p][len(w.disk[p])-1]
		}
		w.tr.Read(w.s, c, c.Run)
		w.tr.Release(w.s, c)
	}
	w.tr.BulkFlush(w.s)
	w.check()
	w.tr.BulkFlushed(w.s)
}

// check lets the machine crash and compares: a page that may come back other than the mirror has it must
// be known.
func (w *crashWorld) check() {
	var marked [crashPages/regionPages + 1]bool
	know := func(region uint64) { marked[region] = true }
	for _, i := range w.last.hot {
		know(i)
	}
	for i := w.last.since; i < len(w.segments); i++ {
		for _, r := range w.segments[i][:w.durable[i]] {
			know(r)
		}
	}
	for p, versions := range w.disk {
		for _, v := range versions {
			if v != w.image[p] && !marked[p/regionPages] && !w.last.needs.Contains(uint64(p)) {
				w.t.Fatalf("page %d of region %d differs and nobody knows", p, p/regionPages)
			}
		}
	}
}

func TestNoWriteEscapesACheckpoint(t *testing.T) {
	for seed := range uint64(10) {
		w := &crashWorld{t: t, rng: rand.New(rand.NewPCG(seed, 6)), clock: newClock(), fail: seed%3 == 0}
		for p := range w.disk {
			w.disk[p] = []byte{0}
		}
		w.tr = NewTracker(crashPages, w, w.clock.now)
		w.s = w.tr.AddConsumer("m", nil)
		w.segments, w.durable = [][]uint64{nil}, []int{0}
		w.last.needs = blockdev.NewPageSet(crashPages)
		for range 300 {
			w.any()
		}
		for _, x := range w.writes {
			w.tr.End(x.Write)
		}
		for i := range w.tr.all {
			if n := w.tr.all[i].inFlight.Load(); n != 0 {
				t.Fatalf("seed %d: region %d has %d writes in flight", seed, i, n)
			}
		}
		w.tr.BeginCheckpoint(w.clock.at.Add(time.Hour), 100)
		if n := w.tr.HotCount(); n != 0 {
			t.Fatalf("seed %d: %d regions stay hot without a write", seed, n)
		}
	}
}

func TestCheckpointKeepsTheRecent(t *testing.T) {
	c := newClock()
	tr := NewTracker(20*regionPages, nullMarker{}, c.now)
	for i := range uint64(10) {
		w, _ := tr.Begin(i*regionPages, 1)
		if i != 2 {
			tr.End(w)
		}
		c.at = c.at.Add(time.Second)
	}
	start := time.Unix(1000, 0)
	if got := tr.BeginCheckpoint(start.Add(4*time.Second), 4); !slices.Equal(got, []uint64{2, 7, 8, 9}) {
		t.Error(got)
	}
	if n := tr.HotCount(); n != 4 {
		t.Error(n)
	}
	if got := tr.BeginCheckpoint(start.Add(9*time.Second), 0); !slices.Equal(got, []uint64{2}) {
		t.Error(got)
	}
}

// slowMarker is a journal with a durable point, that takes its time.
type slowMarker struct {
	mu      sync.Mutex
	lsn     uint64
	pending map[uint64]uint64 // by region: appended, not durable
	durable map[uint64]bool   // as a recovery would see it
	syncs   atomic.Int32
	gate    func() // in Sync
	err     error
}

func newSlowMarker(gate func()) *slowMarker {
	return &slowMarker{pending: map[uint64]uint64{}, durable: map[uint64]bool{}, gate: gate}
}

func (m *slowMarker) Mark(regions []uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range regions {
		m.lsn++
		m.pending[r] = m.lsn
	}
	return m.lsn, nil
}

func (m *slowMarker) Sync(lsn uint64) error {
	m.syncs.Add(1)
	m.gate()
	m.mu.Lock()
	defer m.mu.Unlock()
	for r, at := range m.pending {
		if at <= lsn && m.err == nil {
			m.durable[r] = true
			delete(m.pending, r)
		}
	}
	return m.err
}

// checkpoint forgets the marks that a checkpoint makes needless, at its T.
func (m *slowMarker) checkpoint(tr *Tracker) {
	m.mu.Lock() // no mark is appended around T
	defer m.mu.Unlock()
	kept := tr.BeginCheckpoint(time.Now().Add(-time.Millisecond), 2)
	for r := range m.durable {
		if !slices.Contains(kept, r) {
			delete(m.durable, r)
		}
	}
}

// marksFirst is a device that looks whether what reaches it is marked.
type marksFirst struct {
	blockdev.Device
	t *testing.T
	m *slowMarker
}

func (d marksFirst) check(off, n int64) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	for r := off / page / regionPages; r <= (off+n-1)/page/regionPages; r++ {
		if !d.m.durable[uint64(r)] {
			d.t.Errorf("bytes reach region %d before its mark is durable", r)
		}
	}
}

func (d marksFirst) WriteAt(b []byte, off int64) (int, error) {
	d.check(off, int64(len(b)))
	return d.Device.WriteAt(b, off)
}

func (d marksFirst) Zero(off, n int64, mayFree bool) error {
	d.check(off, n)
	return d.Device.Zero(off, n, mayFree)
}

func TestMarksComeFirst(t *testing.T) {
	const size = 30 * regionPages * page
	m := newSlowMarker(func() { time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond) })
	dev := marksFirst{zeroed{nullDevice{size}}, t, m}
	tr := NewTracker(30*regionPages, m, time.Now)
	path, err := NewPath(Config{Device: dev, Size: size, BlockSize: 65536, Tracker: tr})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range uint64(8) {
		wg.Go(func() { scribble(t, path, rand.New(rand.NewPCG(i, 7)), 200) })
	}
	var stop atomic.Bool
	go func() {
		defer stop.Store(true)
		wg.Wait()
	}()
	for !stop.Load() {
		m.checkpoint(tr)
		time.Sleep(500 * time.Microsecond)
	}
}

// TestOneMarkForMany: whoever meets a region that is being marked waits for that mark, and fails with it.
func TestOneMarkForMany(t *testing.T) {
	for _, fail := range []error{nil, errors.New("disk full")} {
		synctest.Test(t, func(t *testing.T) {
			held := make(chan bool)
			m := newSlowMarker(func() { <-held })
			m.err = fail
			tr := NewTracker(10*regionPages, m, time.Now)
			var done, failed atomic.Int32
			for i := range uint64(5) {
				go func() {
					w, err := tr.Begin(i, 1)
					if done.Add(1); err != nil {
						failed.Add(1)
						return
					}
					tr.End(w)
				}()
				synctest.Wait()
			}
			if done.Load() != 0 {
				t.Error("a write passed before the mark was durable")
			}
			if got := tr.BeginCheckpoint(time.Now().Add(time.Hour), 0); !slices.Equal(got, []uint64{0}) {
				t.Error("a region that is being marked was not listed:", got)
			}
			close(held)
			synctest.Wait()
			want := int32(0)
			if fail != nil {
				want = 5
			}
			if m.syncs.Load() != 1 || m.lsn != 1 || done.Load() != 5 || failed.Load() != want {
				t.Errorf("%d syncs, %d marks, %d done, %d failed", m.syncs.Load(), m.lsn, done.Load(), failed.Load())
			}
			if hot := tr.HotCount(); hot != 1-int(want)/5 {
				t.Error("hot:", hot)
			}
			if tr.all[0].inFlight.Load() != 0 || tr.open.Count() != 5 {
				t.Error("refused writes are in flight, or their pages forgotten")
			}
		})
	}
}
