package journal_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// finish waits for all of a history. Somebody who waits for ever is what it is there to show; its limit is
// far beyond what any machine takes.
func finish(t *testing.T, seed uint64, wg *sync.WaitGroup) {
	t.Helper()
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		buf := make([]byte, 1<<20)
		t.Fatalf("seed %d: somebody waits for ever\n%s", seed, buf[:runtime.Stack(buf, true)])
	}
}

// logWorld is a log under many goroutines that append, sync and rotate, with a fault somewhere, and images
// of its disk as power cuts at any moment would leave it. What was promised when an image was taken must be
// in it, and nothing else than what was appended, in this order.
type logWorld struct {
	t     *testing.T
	seed  uint64
	fs    *journaltest.MemFS
	log   *journal.Log
	cause error // of the fault; nil: none
	clock atomic.Uint64

	mu       sync.Mutex
	appended map[journal.LSN]*logged
	promised journal.LSN
	images   []logImage
	failed   bool        // somebody was told of the fault
	durable  journal.LSN // then
	refused  int
}

// logged is a record and when its Append was called and returned.
type logged struct {
	from, to uint64
	body     []byte
}

type logImage struct {
	fs       *journaltest.MemFS
	at       uint64
	promised journal.LSN
}

// append appends a record. false: it was refused.
func (w *logWorld) append(body []byte) (journal.LSN, bool) {
	w.mu.Lock()
	failed := w.failed
	w.mu.Unlock()
	r := &logged{from: w.clock.Add(1), body: body}
	lsn, err := w.log.Append(typeOf(journal.LSN(len(body))), body)
	r.to = w.clock.Add(1)
	if err != nil {
		w.refuse(err)
		return 0, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if failed {
		w.t.Errorf("seed %d: record %d was taken behind a failure", w.seed, lsn)
	}
	if w.appended[lsn] != nil {
		w.t.Errorf("seed %d: two records are %d", w.seed, lsn)
	}
	w.appended[lsn] = r
	return lsn, true
}

// refuse notes that somebody was told of the failure: nothing becomes durable from then on.
func (w *logWorld) refuse(err error) {
	durable := w.log.Durable()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused++
	if w.cause == nil {
		w.t.Errorf("seed %d: %v", w.seed, err)
		return
	}
	wantFailed(w.t, err, w.cause)
	if !w.failed {
		w.failed, w.durable = true, durable
	}
}

// promise notes that everything up to lsn is durable.
func (w *logWorld) promise(lsn journal.LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.promised = max(w.promised, lsn)
	if w.failed && lsn > w.durable {
		w.t.Errorf("seed %d: %d was promised behind a failure, when %d was durable", w.seed, lsn, w.durable)
	}
}

// crash takes an image of a moment. Promises are noted before it is taken.
func (w *logWorld) crash(seed uint64) {
	w.mu.Lock()
	promised := w.promised
	w.mu.Unlock()
	image := w.fs.Crash(seed)
	at := w.clock.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.images = append(w.images, logImage{image, at, promised})
}

func (w *logWorld) sync(lsn journal.LSN) {
	if err := w.log.Sync(lsn); err != nil {
		w.refuse(err)
	} else {
		w.promise(lsn)
	}
}

// work is a writer. After a failure it goes on asking.
func (w *logWorld) work(rng *rand.Rand, n int) {
	var mine []journal.LSN
	for i := range n {
		body := fmt.Appendf(nil, "writer %d record %d %x", rng.Uint32(), i, make([]byte, rng.IntN(60)))
		if lsn, ok := w.append(body); ok {
			mine = append(mine, lsn)
		}
		switch k := rng.IntN(16); {
		case k == 0:
			w.rotate()
		case k < 4: // not synced, or somebody else does
		case k < 6 && len(mine) > 0:
			w.sync(mine[rng.IntN(len(mine))])
		case len(mine) > 0:
			w.sync(mine[len(mine)-1])
		}
		if rng.IntN(24) == 0 {
			w.crash(rng.Uint64N(6))
		}
	}
}

// rotate promises whatever was appended before.
func (w *logWorld) rotate() {
	w.mu.Lock()
	var last journal.LSN
	for lsn := range w.appended {
		last = max(last, lsn)
	}
	w.mu.Unlock()
	if _, err := w.log.Rotate(); err != nil {
		w.refuse(err)
	} else {
		w.promise(last)
	}
}

// checkOrder: records stand in the order of their appends, where these did not overlap, without a gap.
func (w *logWorld) checkOrder() {
	var began uint64
	for lsn := journal.LSN(1); int(lsn) <= len(w.appended); lsn++ {
		r := w.appended[lsn]
		if r == nil {
			w.t.Fatalf("seed %d: %d records, and none is %d", w.seed, len(w.appended), lsn)
		}
		if r.to < began {
			w.t.Errorf("seed %d: record %d was appended before an older one was begun", w.seed, lsn)
		}
		began = max(began, r.from)
	}
}

// check recovers an image.
func (w *logWorld) check(x logImage, o journal.Options) {
	var last journal.LSN
	l, err := journal.Open(x.fs, testDir, o, func(lsn journal.LSN, t journal.Type, body []byte) error {
		r := w.appended[lsn]
		if lsn != last+1 || r == nil || r.from > x.at || t != typeOf(journal.LSN(len(body))) || !bytes.Equal(body, r.body) {
			return fmt.Errorf("record %d behind %d: %q", lsn, last, body)
		}
		last = lsn
		return nil
	})
	if err != nil {
		w.t.Fatalf("seed %d: at %d: %v", w.seed, x.at, err)
	}
	if last < x.promised {
		w.t.Errorf("seed %d: at %d: %d records are there, %d were promised", w.seed, x.at, last, x.promised)
	}
	if err := l.Close(); err != nil {
		w.t.Errorf("seed %d: %v", w.seed, err)
	}
}

func newLogWorld(t *testing.T, seed uint64, o journal.Options) *logWorld {
	w := &logWorld{t: t, seed: seed, fs: journaltest.New(), appended: map[journal.LSN]*logged{}}
	var err error
	if w.log, err = journal.Open(&gatedFS{FS: w.fs}, testDir, o, nil); err != nil {
		t.Fatal(err)
	}
	// Every fault strikes: a writer needs a sync of its own for each record that it appended behind the
	// sync before.
	rng := rand.New(rand.NewPCG(seed, 700))
	switch seed % 4 {
	case 1, 2:
		w.cause = syscall.EIO
		w.fs.Fail(journaltest.OpSync, w.fs.Count(journaltest.OpSync)+rng.IntN(20), w.cause)
	case 3:
		w.cause = []error{syscall.EIO, syscall.ENOSPC, journaltest.ErrShort}[rng.IntN(3)]
		w.fs.Fail(journaltest.OpWrite, w.fs.Count(journaltest.OpWrite)+rng.IntN(20), w.cause)
	}
	return w
}

func TestLogHistories(t *testing.T) {
	o := journal.Options{Kind: journal.KindVolume, SegmentSize: 2048, BufferSize: 256}
	for seed := range uint64(32) {
		w := newLogWorld(t, seed, o)
		var wg sync.WaitGroup
		for i := range uint64(6) {
			wg.Go(func() { w.work(rand.New(rand.NewPCG(seed, 701+i)), 80) })
		}
		finish(t, seed, &wg)
		if w.cause != nil {
			if w.fs.Struck() != 1 || w.refused == 0 || w.log.Err() == nil || w.log.Durable() != w.durable {
				t.Errorf("seed %d: the fault struck %d times, %d were told, durable %d and later %d: %v",
					seed, w.fs.Struck(), w.refused, w.durable, w.log.Durable(), w.log.Err())
			}
		}
		w.crash(0)
		w.crash(2 + seed)
		w.checkOrder()
		for _, x := range w.images {
			w.check(x, o)
		}
		if err := w.log.Close(); (err == nil) != (w.cause == nil) {
			t.Errorf("seed %d: closed with %v", seed, err)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// gatedFS lets a test hold the next fsync of a file that the log has made. While any other is under way,
// all goroutines get their turn, as a disk would let them.
type gatedFS struct {
	journal.FS
	gated atomic.Bool
	held  chan chan struct{} // who is held; closing what it sent lets it go
}

func (g *gatedFS) Create(path string) (journal.File, error) {
	f, err := g.FS.Create(path)
	return gatedFile{f, g}, err
}

type gatedFile struct {
	journal.File
	g *gatedFS
}

func (f gatedFile) Sync() error {
	if f.g.gated.CompareAndSwap(true, false) {
		free := make(chan struct{})
		f.g.held <- free
		<-free
	}
	runtime.Gosched()
	return f.File.Sync()
}

// TestLogBatches: while one fsync is under way all others append, and the next one is for all of them. If
// the first one fails, there is no next one, and nobody is told that his record is durable.
func TestLogBatches(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 800))
		mem := journaltest.New()
		g := &gatedFS{FS: mem, held: make(chan chan struct{})}
		l, err := journal.Open(g, testDir, journal.Options{Kind: journal.KindVolume}, nil)
		if err != nil {
			t.Fatal(err)
		}
		writers, fails := 1+rng.IntN(24), seed%2 == 1
		before := mem.Count(journaltest.OpSync)
		want := 2
		if fails {
			want = 1
			mem.Fail(journaltest.OpSync, before, syscall.EIO)
		}
		testBatch(t, seed, l, g, writers, fails)
		if got := mem.Count(journaltest.OpSync) - before; got != want {
			t.Errorf("seed %d: %d fsyncs for %d writers, want %d", seed, got, 1+writers, want)
		}
		if !fails {
			var n int
			after, err := journal.Open(mem.Crash(0), testDir, journal.Options{Kind: journal.KindVolume},
				func(journal.LSN, journal.Type, []byte) error { n++; return nil })
			if err != nil || n != 1+writers {
				t.Errorf("seed %d: %d records of %d are durable: %v", seed, n, 1+writers, err)
				continue
			}
			after.Close()
		}
		l.Close()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func testBatch(t *testing.T, seed uint64, l *journal.Log, g *gatedFS, writers int, fails bool) {
	told := func(err error) {
		if fails {
			wantFailed(t, err, syscall.EIO)
		} else if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	var syncing, appending sync.WaitGroup
	g.gated.Store(true)
	syncing.Go(func() {
		_, err := l.AppendSync(1, []byte("first"))
		told(err)
	})
	free := <-g.held
	appending.Add(writers)
	for range writers {
		syncing.Go(func() {
			lsn, err := l.Append(1, []byte("another"))
			appending.Done()
			if err != nil {
				t.Errorf("seed %d: append beside an fsync: %v", seed, err)
				return
			}
			told(l.Sync(lsn))
		})
	}
	finish(t, seed, &appending)
	close(free)
	finish(t, seed, &syncing)
}
