package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// What a mirror may hold and how long it waits.
const (
	mirrorWindow   = 24 << 20 // unanswered raw payload that the primary is granted
	mirrorMemory   = 56 << 20 // window, rounded up to the pool's sizes, and runs of bulk
	mirrorCheckers = 4        // records unpacked and hashed at once
	mirrorWriters  = 6        // runs written in place at once
	mirrorOffers   = 4        // offers compared at once
	mirrorArrivals = maxUnacked + maxOffers + 16
	mirrorPlan     = 1 << 18 // pieces of an epoch that are planned at once, 24 bytes each
	mirrorMeasure  = time.Second
	mirrorSegment  = 4 << 20 // of the journal: a mirror appends some hundred bytes an epoch

	// Percent of what is free, and its own, that staging may take; and where a user chose a limit.
	stagingShare = 80
	stagingMost  = 95
)

// mirrorOptions say what a mirror is made of. What is nil is the real thing; tests put others in its place.
type mirrorOptions struct {
	name   string
	dir    string // of the volume in the state directory
	config VolumeConfig
	log    func(text string)

	fs         journal.FS
	device     openDevice
	prepare    func(path string, size int64) (created bool, err error)
	identities func(path string) ([]string, error)
	// of the kernel's flag of a device that is not open; nil: there is none
	setReadOnly func(path string, readOnly bool) error
	index       func(dir string) (blockIndex, error)
	room        func(dir string) (free int64, err error)
	bootID      func() (string, error)
	now         func() time.Time
	disconnects *disconnects

	deviceRoom  func(path string) (free int64, err error) // of the file system of an image
	removeIndex func(dir string) error

	window    int64
	segment   int64                 // of the journal
	volumeLog journal.VolumeOptions // of the journal, the rest
	staging   journal.StagingOptions
	limits    replica.Limits
	chunk     int64 // unit of reading and writing; a multiple of every block size
	open      int   // messages that the primary may have open
	writers   int   // of an epoch; 1: it is written without a goroutine
}

func (o mirrorOptions) withDefaults() mirrorOptions {
	if o.fs == nil {
		o.fs = journal.OS
	}
	if o.device == nil {
		o.device, o.prepare, o.identities, o.setReadOnly = openFile, prepareImage, blockdev.Identities, blockdev.SetReadOnly
	}
	if o.index == nil {
		o.index = openBlockIndex
	}
	if o.room == nil {
		o.room = freeBytes
	}
	if o.bootID == nil {
		o.bootID = blockdev.BootID
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.deviceRoom == nil {
		o.deviceRoom = freeBytes
	}
	if o.removeIndex == nil {
		o.removeIndex = journal.RemoveIndex
	}
	if o.log == nil {
		o.log = func(string) {}
	}
	if o.disconnects == nil {
		o.disconnects = newDisconnects(o.log, o.now)
	}
	o.window = cmp.Or(o.window, mirrorWindow)
	o.segment = cmp.Or(o.segment, mirrorSegment)
	o.volumeLog.SegmentSize = o.segment
	o.chunk = cmp.Or(o.chunk, chunkSize)
	o.open = cmp.Or(o.open, mirrorArrivals)
	o.writers = cmp.Or(o.writers, applyWriters)
	o.staging.PlanPieces = cmp.Or(o.staging.PlanPieces, mirrorPlan)
	return o
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// mirror is a volume that is somebody's mirror, or may become one.
//
//	mirror.go         its life: opened, used, failed and opened again, stopped (mirrorstatus.go: what it tells)
//	mirrorstore.go    device, journal, index and staging, and what the core wants done with them
//	mirroropen.go     opening them, and what an earlier process left
//	mirrorsession.go  a connection of the primary: from its reader to its sender (mirrorattach.go: how it begins)
//	mirrordirect.go   bulk and offers
//	mirrorapply.go    committed epochs to the device
//	mirrorcompare.go  the device against its own index
//	mirrorfailsafe.go what does not hold what it must
//	mirrordevice.go   a device that gives errors
//	mirrorscrub.go    the device against its own index, now and then
//	mirrorask.go      verify and repair, for which the primary is asked
//	steppedmirror.go  the same without goroutines, for the simulator
//
// One goroutine, routineOwn, owns the core (engine/replica) and carries out what it decides, one action after
// the other; a failure of device, journal or staging ends the use of all of them, and they are opened anew, as
// after a crash. Others hand it functions to run (call, post). It never waits for a peer.
type mirror struct {
	mirrorOptions
	release func()         // of the folder's lock
	steps   *SteppedMirror // in place of all goroutines; nil: they run

	calls    chan func() // run by the owner
	ended    chan struct{}
	replayed chan struct{}      // closed when nothing that an earlier process committed is unapplied, or that failed
	abort    context.CancelFunc // ends the owner at once
	aborted  context.Context
	owner    sync.WaitGroup

	// Owned by routineOwn.
	store    *mirrorStore // nil: no role yet, or failed
	core     *replica.Core
	current  *mirrorSession // attached
	broken   error          // ends the use of store as soon as nobody uses it
	failures int            // in a row
	retry    *time.Timer
	final    bool // no retry: a person has to do something
	stopping bool
	settled  error // of the clean stop
	once     sync.Once

	jobs         jobs // that the primary is asked for
	scrubs       scrubs
	scrubEvery   atomic.Int64 // time between scheduled ones
	readBack     atomic.Bool  // what is written is read back, as the settings say
	mismatches   atomic.Int64 // of what was staged, and what was written and read back
	indexDropped atomic.Int64

	mu       sync.Mutex
	admitted *mirrorSession // from admission until it is drained
	free     chan struct{}  // closed when it leaves; nil while nobody waits
	view     mirrorView
}

// openMirror opens a volume as a mirror. It returns when everything that was committed before is applied. A
// volume that cannot be opened is failed, and tried again; an error means that it cannot even be that.
func openMirror(o mirrorOptions) (*mirror, error) {
	m := newMirror(o)
	m.calls, m.retry = make(chan func(), 256), time.NewTimer(0)
	m.retry.Stop()
	if m.fs == journal.OS {
		release, err := journal.LockDir(m.dir)
		if err != nil {
			return nil, deviceError("lock state folder", m.dir, err)
		}
		m.release = release
	}
	m.tryOpen()
	m.owner.Go(m.routineOwn)
	if m.fs == journal.OS {
		m.owner.Go(m.scrubSchedule)
	}
	<-m.replayed
	return m, nil
}

func newMirror(o mirrorOptions) *mirror {
	m := &mirror{mirrorOptions: o.withDefaults(), ended: make(chan struct{}), replayed: make(chan struct{}), release: func() {}}
	m.aborted, m.abort = context.WithCancel(context.Background())
	m.readBack.Store(m.config.VerifyWrites == "readback")
	m.scrubEvery.Store(int64(m.config.scrubEvery()))
	m.view.last = m.disconnects.last("mirror", m.name, "")
	return m
}

// routineOwn runs until the mirror is stopped.
func (m *mirror) routineOwn() {
	defer close(m.ended)
	tick := time.NewTicker(mirrorMeasure)
	defer tick.Stop()
	aborted := m.aborted.Done()
	for !m.settle() {
		select {
		case <-aborted:
			aborted = nil
			m.stopping, m.broken = true, context.Canceled
			m.endUse()
		case call := <-m.calls:
			call()
		case a := <-m.arrivals():
			m.arrive(a)
		case <-tick.C:
			m.measure()
		case <-m.retry.C:
			m.tryOpen()
		}
	}
}

// arrivals is where the next message of the primary comes from; nil: none is taken now.
func (m *mirror) arrivals() <-chan *arrival {
	if m.current == nil || m.broken != nil || m.core.Holding() {
		return nil
	}
	return m.current.ordered
}

// settle looks at what the last step left: it closes what failed, and tells when the mirror has stopped.
func (m *mirror) settle() (stopped bool) {
	idle := m.current == nil && (m.store == nil || m.store.busy == 0)
	if m.broken != nil && idle {
		m.closeBroken()
	}
	if m.store == nil || len(m.core.Facts().Mirror.Epochs) == 0 {
		m.once.Do(func() { close(m.replayed) })
	}
	if !m.stopping || m.current != nil {
		return false
	}
	if m.store == nil {
		return true
	}
	if len(m.core.Facts().Mirror.Epochs) > 0 {
		return false
	}
	m.store.cancel() // a comparison; it is begun again at the next start
	if m.store.busy > 0 {
		return false
	}
	m.settled = m.store.settle(m.core)
	m.settled = errors.Join(m.settled, m.store.close())
	m.store = nil
	return true
}

// post hands the owner something to do, in the order of the posts of one goroutine.
func (m *mirror) post(do func()) {
	if m.steps != nil {
		m.steps.post(do)
		return
	}
	select {
	case m.calls <- do:
	case <-m.ended:
	}
}

// call has the owner do something and waits for it. ok is false where the owner has ended.
func (m *mirror) call(do func()) (ok bool) {
	if m.steps != nil {
		return m.steps.call(do)
	}
	done := make(chan struct{})
	m.post(func() { do(); close(done) })
	select {
	case <-done:
		return true
	case <-m.ended:
		return false
	}
}

// spawn runs something beside the owner.
func (m *mirror) spawn(do func()) {
	if m.steps != nil {
		m.steps.spawn(do)
		return
	}
	m.owner.Go(do)
}

// fail ends the use of device, journal and staging. They are opened again when nobody uses them any more.
func (m *mirror) fail(op string, err error) {
	if m.broken != nil {
		return
	}
	m.broken = deviceError(op, m.dir, err)
	m.endUse()
}

// endUse has everybody stop who uses the store.
func (m *mirror) endUse() {
	if m.store != nil {
		m.store.cancel()
	}
	if m.current != nil {
		m.current.end(m.broken)
	}
}

func (m *mirror) closeBroken() {
	if m.store != nil {
		m.store.close() // the cause is known
		m.store = nil
	}
	if !m.stopping {
		m.failed(m.broken)
	}
	m.broken = nil
}

// failed notes why the mirror cannot be used, and when it is tried again.
func (m *mirror) failed(err error) {
	var own *Error
	if !errors.As(err, &own) {
		own = &Error{Kind: KindDevice, Op: "open mirror", On: m.config.Path, Err: err, code: wire.CodeDevice}
	}
	shown := *own
	m.final = errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrVersion)
	switch {
	case errors.Is(err, journal.ErrDamaged):
		shown.Next = "`blkmirror rebuild " + m.name + "` sets it aside and starts anew: everything is compared, little is copied"
	case !m.final:
		shown.Next = "repair the device or make room; it is tried again by itself"
	}
	wait := min(backoffFirst<<min(m.failures, 16), backoffMax)
	if m.failures++; !m.final && m.steps == nil {
		m.retry.Reset(wait)
	}
	m.update(func(v *mirrorView) {
		if v.err == nil || v.err.Error() != shown.Error() {
			m.log(fmt.Sprintf("failed: %v; %s", &shown, shown.Next))
		}
		v.err = &shown
	})
}

// tryOpen opens the mirror, where it has a role.
func (m *mirror) tryOpen() {
	if m.store != nil || m.stopping {
		return
	}
	store, state, err := m.openStore()
	if err != nil {
		m.failed(err)
		return
	}
	m.adoptStore(store, state)
	if store == nil {
		return
	}
	m.measure()
	m.carryOut(m.core.Begin(), nil)
	m.beginCompare()
}

// adoptStore begins to use what was opened.
func (m *mirror) adoptStore(store *mirrorStore, state openedState) {
	m.store, m.failures, m.final = store, 0, false
	m.update(func(v *mirrorView) { v.err = nil })
	if store == nil {
		return
	}
	m.core = replica.New(state.facts, state.staged)
	m.core.SetLimits(m.limits)
	if state.facts.UUID != [16]byte{} {
		m.show(state.facts)
	}
}

// rebuild sets a journal aside that cannot be used, and what was staged with it. The next primary that
// attaches finds a new mirror that holds something. What another version has written is not touched: that
// version can go on with it.
func (m *mirror) rebuild() error {
	var err error
	ok := m.call(func() {
		m.mu.Lock()
		failed := m.view.err
		m.mu.Unlock()
		if m.store != nil || failed == nil {
			err = &Error{Kind: KindState, Op: "rebuild", On: m.name, Err: errors.New("its journal is in order"),
				Next: "nothing needs to be done; `blkmirror status` tells its state"}
			return
		}
		if errors.Is(failed, journal.ErrVersion) {
			err = &Error{Kind: KindState, Op: "rebuild", On: m.name, Err: failed.Err, Next: failed.Next}
			return
		}
		if err = m.setAside(); err == nil {
			m.update(func(v *mirrorView) { v.err, v.held, v.facts = nil, false, journal.VolumeFacts{} })
			m.failures, m.final = 0, false
			m.tryOpen()
		}
	})
	if !ok {
		return errMirrorStopped(m.name)
	}
	return err
}

func (m *mirror) setAside() error {
	to, err := journal.SetAsideVolume(m.fs, m.dir)
	if err != nil {
		return deviceError("set aside journal", m.dir, err)
	}
	if err := m.dropAllStaging(); err != nil {
		return deviceError("remove staging", m.stagingDir(), err)
	}
	m.unflag() // the next journal does not know
	m.log(fmt.Sprintf("its journal is now %s; the next primary compares everything", to))
	return nil
}

// stop ends the mirror cleanly: the session is told, what is committed is applied, and everything is durable
// and recorded. Where ctx ends first, the rest is left to the next start.
func (m *mirror) stop(ctx context.Context) error {
	m.jobs.end()
	m.scrubs.stop()
	m.post(m.beginStop)
	select {
	case <-m.ended:
	case <-ctx.Done():
		m.abort()
		<-m.ended
	}
	m.owner.Wait()
	m.abort()
	m.release()
	if m.settled != nil {
		return deviceError("stop mirror", m.dir, m.settled)
	}
	return nil
}

// beginStop is the owner's part of it: settle does the rest.
func (m *mirror) beginStop() {
	m.stopping = true
	if m.current != nil {
		m.current.end(context.Canceled)
	}
}

func (m *mirror) stagingDir() string { return filepath.Join(m.dir, "staging") }
func (m *mirror) indexDir() string   { return filepath.Join(m.dir, "index") }
