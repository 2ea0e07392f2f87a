package journal_test

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
	"github.com/google/go-cmp/cmp"
)

const (
	markWorkers = 6
	markEach    = 60
)

// volumeWorld is a volume's journal under markers, facts and checkpoints at once, with a fault somewhere,
// and images of its disk as power cuts at any moment would leave it. TestVolumeConcurrently looks at one,
// at the end.
type volumeWorld struct {
	t     *testing.T
	seed  uint64
	fs    *journaltest.MemFS
	log   *journal.VolumeLog
	cause error // of the fault; nil: none

	marks  [markWorkers * markEach]marked
	turn   atomic.Uint64 // checkpoints begun: rises behind every T
	failed atomic.Bool   // somebody was told of the fault

	cuts sync.Mutex    // makes the facts of checkpoints and others one order, as the caller has to
	cut  atomic.Uint64 // of the facts that were asked for last

	mu     sync.Mutex
	images []volumeImage
	facted uint64 // cut of facts that are promised
	ended  uint64 // checkpoint that is promised
}

// marked is a region, which is marked once.
type marked struct {
	asked, promised atomic.Bool
	behind          atomic.Uint64 // the turn when its mark was asked for
}

// volumeImage is an image, what was promised before it was taken, and what was asked for before that was
// done.
type volumeImage struct {
	fs              *journaltest.MemFS
	promised, asked []bool
	facted, cut     uint64
	ended, turn     uint64
}

func (w *volumeWorld) told(err error) {
	w.failed.Store(true)
	if w.cause == nil {
		w.t.Errorf("seed %d: %v", w.seed, err)
		return
	}
	wantFailed(w.t, err, w.cause)
}

// work is a marker. After a failure it goes on asking.
func (w *volumeWorld) work(n int, rng *rand.Rand) {
	for i := range markEach {
		region := n*markEach + i
		m := &w.marks[region]
		failed := w.failed.Load()
		m.behind.Store(w.turn.Load())
		m.asked.Store(true)
		lsn, err := w.log.Mark([]uint64{uint64(region)})
		if err == nil {
			err = w.log.Sync(lsn)
		}
		switch {
		case err != nil:
			w.told(err)
		case failed:
			w.t.Errorf("seed %d: mark %d was promised behind a failure", w.seed, region)
		default:
			m.promised.Store(true)
		}
		if rng.IntN(16) == 0 {
			w.crash(rng.Uint64N(6))
		}
	}
}

// crash takes an image of a moment, with the promises of before and the requests of behind.
func (w *volumeWorld) crash(seed uint64) {
	x := volumeImage{promised: make([]bool, len(w.marks)), asked: make([]bool, len(w.marks))}
	for i := range w.marks {
		x.promised[i] = w.marks[i].promised.Load()
	}
	w.mu.Lock()
	x.facted, x.ended = w.facted, w.ended
	w.mu.Unlock()
	x.fs = w.fs.Crash(seed)
	for i := range w.marks {
		x.asked[i] = w.marks[i].asked.Load()
	}
	// T comes before the turn rises.
	x.cut, x.turn = w.cut.Load(), w.turn.Load()+1
	w.mu.Lock()
	defer w.mu.Unlock()
	w.images = append(w.images, x)
}

func (w *volumeWorld) promise(cut, checkpoint uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.facted, w.ended = max(w.facted, cut), max(w.ended, checkpoint)
}

func (w *volumeWorld) setFacts() error {
	w.cuts.Lock()
	defer w.cuts.Unlock()
	cut := w.cut.Add(1)
	err := w.log.SetFacts(factsOf(cut))
	if err == nil {
		w.promise(cut, 0)
	}
	return err
}

// checkpoint takes one, and abandons every fourth. Its facts are the newest: others wait, for facts that
// came between would be set back.
func (w *volumeWorld) checkpoint() error {
	c, err := w.log.BeginCheckpoint()
	if err != nil {
		return err
	}
	n := w.turn.Add(1)
	if n%4 == 3 {
		c.Abandon()
		return nil
	}
	w.cuts.Lock()
	defer w.cuts.Unlock()
	cut := w.cut.Add(1)
	if err := c.Finish(factsOf(cut), setsOf(n), nil); err != nil {
		return err
	}
	w.promise(cut, n)
	return nil
}

// check recovers an image.
func (w *volumeWorld) check(x volumeImage) {
	l, state, err := journal.OpenVolume(x.fs, volumeDir, worldVolume)
	if err != nil {
		w.t.Fatalf("seed %d: %v", w.seed, err)
	}
	defer l.Close()
	if cut := state.Facts.Cut; cut < x.facted || cut > x.cut || !cmp.Equal(state.Facts, factsOf(cut)) {
		w.t.Errorf("seed %d: facts of cut %d, %d were promised and %d asked for", w.seed, cut, x.facted, x.cut)
	}
	n := checkpointOf(state.Sets)
	if n < x.ended || n > x.turn || n%4 == 3 || !sameSets(state.Sets, setsOf(n)) {
		w.t.Errorf("seed %d: sets of checkpoint %d, %d was promised and %d begun", w.seed, n, x.ended, x.turn)
	}
	for region := range w.marks {
		hot := slices.Contains(state.Hot, uint64(region))
		if behind := w.marks[region].behind.Load(); x.promised[region] && behind >= n && !hot {
			w.t.Errorf("seed %d: mark %d, promised and asked for behind checkpoint %d, is lost behind %d",
				w.seed, region, behind, n)
		}
		if hot && !x.asked[region] {
			w.t.Errorf("seed %d: region %d is hot and nobody marked it", w.seed, region)
		}
	}
}

// checkpointOf is the n of setsOf.
func checkpointOf(sets []journal.NamedSet) uint64 {
	if len(sets) < 2 {
		return 0
	}
	n, _, _ := sets[1].Pages.NextSet(0)
	return n
}

var worldVolume = journal.VolumeOptions{SegmentSize: 4 << 10, BufferSize: 256, ReserveMin: 1024, ReserveMax: 4096}

func newVolumeWorld(t *testing.T, seed uint64) *volumeWorld {
	w := &volumeWorld{t: t, seed: seed, fs: journaltest.New()}
	var err error
	w.log, _, err = journal.OpenVolume(w.fs, volumeDir, worldVolume)
	must(t, err)
	must(t, w.setFacts())
	rng := rand.New(rand.NewPCG(seed, 900))
	op := journaltest.OpSync
	switch seed % 3 {
	case 1:
		w.cause = syscall.EIO
	case 2:
		op, w.cause = journaltest.OpWrite, []error{syscall.EIO, journaltest.ErrShort}[rng.IntN(2)]
	}
	if w.cause != nil {
		w.fs.Fail(op, w.fs.Count(op)+rng.IntN(markEach-2), w.cause)
	}
	return w
}

func (w *volumeWorld) run() {
	var working, helping sync.WaitGroup
	var stop atomic.Bool
	for i := range markWorkers {
		working.Go(func() { w.work(i, rand.New(rand.NewPCG(w.seed, 901+uint64(i)))) })
	}
	for _, do := range []func() error{w.setFacts, w.checkpoint} {
		helping.Go(func() {
			for !stop.Load() {
				if err := do(); err != nil {
					w.told(err)
					return
				}
			}
		})
	}
	finish(w.t, w.seed, &working)
	stop.Store(true)
	finish(w.t, w.seed, &helping)
}

func TestVolumeHistories(t *testing.T) {
	for seed := range uint64(18) {
		w := newVolumeWorld(t, seed)
		w.run()
		w.crash(0)
		w.crash(2 + seed)
		for _, x := range w.images {
			w.check(x)
		}
		if told := w.log.Err() != nil; told != (w.cause != nil) || told != w.failed.Load() {
			t.Errorf("seed %d: cause %v, error %v", seed, w.cause, w.log.Err())
		}
		if err := w.log.Close(); (err == nil) != (w.cause == nil) {
			t.Errorf("seed %d: closed with %v", seed, err)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
