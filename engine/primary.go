package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/nbd"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// primary is a volume that takes writes here, from its recovery to its clean stop.
//
//	primary.go        what it consists of; start, stop, a person's wishes
//	primaryopen.go    recovery: what must be needed by whom
//	primaryfacts.go   the live facts and their journal
//	checkpoint.go     bounds what a crash has to compare
//	compare.go        the device against its own index, after foreign writes
//	scrub.go          the same now and then, for what the disk itself has spoilt
//	shipper.go …      one for each mirror
//
// Goroutines: the export's, the checkpointer, the comparison, and each shipper's; stop ends them in the
// order in which they depend on each other.
type primary struct {
	name        string
	config      atomic.Pointer[VolumeConfig] // as the user says by now
	dir         string                       // folder of the volume in the state directory
	log         func(string)
	node        [32]byte
	gate        *gate // how mirrors are dialled
	incarnation uint64
	disconnects *disconnects
	door        func(context.Context) (port uint16) // where this node listens, once it does; nil: that is not told

	fs        journal.FS
	dev       device
	size      int64
	blockSize int64
	now       func() time.Time
	wait      func(try func() bool) // nil: goroutines block
	sizes     Sizes
	path      *track.Path
	tracker   *track.Tracker
	journal   *journal.VolumeLog
	facts     facts
	devices   []wire.Hash // what the device consists of
	compare   *comparison // nil: nothing to compare
	index     *indexer

	checkpointed time.Time     // when the last one was made; of routineCheckpoint
	probeEvery   time.Duration // 0: probeEvery
	renewAfter   int64         // bytes; 0: renewAfter

	export   *nbd.Server
	listener net.Listener

	mirrors struct {
		sync.RWMutex
		list []*shipper      // replaced, never changed
		ctx  context.Context // nil: they are not started, and somebody else drives them
	}

	jobs         jobs // verify, repair
	scrubs       scrubs
	sourceErrors atomic.Int64 // readings of the device that failed, or were not what the index has
	cancel       context.CancelCauseFunc
	routines     sync.WaitGroup
	release      func() // of the folder's lock

	read, written atomic.Int64 // bytes, by clients
	deviceErrors  atomic.Int64
	indexDropped  atomic.Int64
	deviceError   atomic.Pointer[string] // the last one
	failure       atomic.Pointer[Error]  // why writes are refused
}

// primaryDeps is what a primary gets from its node. Those from index on have defaults.
type primaryDeps struct {
	name   string
	config VolumeConfig
	dir    string
	node   [32]byte
	gate   *gate // nil where nobody dials
	fs     journal.FS
	open   openDevice
	lock   func(dir string) (release func(), err error)
	log    func(string)
	now    func() time.Time

	disconnects *disconnects
	door        func(context.Context) (port uint16)

	index      func(dir string) (blockIndex, error)
	unindex    func(dir string) error // removes an index
	identities func(path string) ([]string, error)
	bootID     func() (string, error)
	random     func([]byte)
	wait       func(try func() bool) // nil: goroutines block
	sizes      Sizes
	journal    journal.VolumeOptions
	probeEvery time.Duration
	renewAfter int64
}

func (d primaryDeps) withDefaults() primaryDeps {
	if d.index == nil {
		d.index, d.unindex = openBlockIndex, journal.RemoveIndex
	}
	if d.identities == nil {
		d.identities = blockdev.Identities
	}
	if d.bootID == nil {
		d.bootID = blockdev.BootID
	}
	if d.disconnects == nil {
		d.disconnects = newDisconnects(d.log, d.now)
	}
	if d.random == nil {
		d.random = func(b []byte) { rand.Read(b) }
	}
	return d
}

// start lets clients and mirrors in.
func (p *primary) start(ctx context.Context) error {
	p.freeze()
	ctx, p.cancel = context.WithCancelCause(ctx)
	if p.config.Load().Export != "" {
		l, err := nbd.Listen(p.config.Load().Export)
		if err != nil {
			return &Error{Kind: KindState, Op: "export volume on", On: p.config.Load().Export, Err: err, Next: "choose another address for --export"}
		}
		p.listener = l
		p.export = nbd.NewServer(nbd.Options{Log: p.log}, nbd.Export{Name: p.name, Backend: (*exported)(p)})
		p.routines.Go(func() {
			if err := p.export.Serve(l); err != nil {
				p.log(fmt.Sprintf("export %s: %v", p.config.Load().Export, err))
			}
		})
	}
	p.routines.Go(func() { p.routineCheckpoint(ctx) })
	p.routines.Go(func() { p.index.routine(ctx) })
	if p.compare != nil {
		p.routines.Go(func() { p.compare.routine(ctx) })
	}
	if p.fs == journal.OS {
		if err := p.scrubs.load(filepath.Join(p.dir, scrubFile)); err != nil {
			p.log(err.Error()) // it is kept from the next one on
		}
		p.routines.Go(func() { p.scrubSchedule(ctx) })
	}
	p.mirrors.Lock()
	p.mirrors.ctx = ctx
	p.mirrors.Unlock()
	for _, s := range p.shippers() {
		s.start(ctx)
	}
	return nil
}

// shippers are the mirrors by now.
func (p *primary) shippers() []*shipper {
	p.mirrors.RLock()
	defer p.mirrors.RUnlock()
	return p.mirrors.list
}

// tune takes changed settings up: the pace, what counts as lag, and mirrors that came or went. A mirror that
// went is forgotten, so that it is compared as a whole if it comes again.
func (p *primary) tune(c VolumeConfig) {
	p.config.Store(&c)
	p.freeze()
	p.mirrors.Lock()
	ctx := p.mirrors.ctx
	var next, gone []*shipper
	for _, s := range p.mirrors.list {
		if slices.ContainsFunc(c.Mirrors, s.config.is) {
			next = append(next, s)
		} else {
			gone = append(gone, s)
		}
	}
	p.mirrors.list = slices.Clone(next)
	p.mirrors.Unlock()
	for _, s := range gone {
		s.stop()
		p.tracker.RemoveConsumer(s.sets)
		s.capture.Close() // nothing in it is of use any more
		p.log("mirror " + s.config.Name + " is left away from now on")
	}
	if len(gone) > 0 { // before one of the name is new: its sets are empty for a moment
		err := p.facts.forget(func(name string) bool {
			return slices.ContainsFunc(next, func(s *shipper) bool { return s.config.Name == name })
		})
		if err != nil {
			p.fail("forget mirror", err)
		}
	}
	for _, m := range c.Mirrors {
		if slices.ContainsFunc(next, func(s *shipper) bool { return s.config.is(m) }) {
			continue
		}
		s := p.addMirror(m)
		p.tracker.DoubtAll(s.sets)
		if ctx != nil {
			s.start(ctx)
		}
		p.log("mirror " + m.Name + " is new")
	}
	for _, s := range next {
		s.mu.Lock()
		s.core.Tune(s.tune())
		s.mu.Unlock()
		s.poke()
	}
}

// addMirror adds one to the list, with empty sets.
func (p *primary) addMirror(m MirrorConfig) *shipper {
	s := newShipper(p, m, track.NewCapture(p.capture(m)))
	p.mirrors.Lock()
	defer p.mirrors.Unlock()
	p.mirrors.list = append(slices.Clone(p.mirrors.list), s)
	return s
}

// stop ends the volume cleanly (docs/LIVE.md, "Clean stop"). Whatever fails on the way, everything is
// closed; the first error is returned, and then the next start finds an unclean end.
func (p *primary) stop(ctx context.Context) error {
	end := ending{p: p}
	p.jobs.end()
	p.scrubs.stop()
	if p.export != nil {
		end.note("close export", p.export.Close(ctx))
	}
	p.path.Refuse(errStopping)
	end.note("finish writes", p.path.Drain(ctx))
	var last sync.WaitGroup
	for _, s := range p.shippers() {
		last.Go(func() { s.finish(ctx) })
	}
	last.Wait()
	if p.cancel != nil {
		p.cancel(context.Canceled)
	}
	for _, s := range p.shippers() {
		s.stop()
	}
	p.routines.Wait()
	p.close(&end)
	return end.first
}

// close makes the state durable, if all went well until now, and closes everything. Nothing runs any more.
func (p *primary) close(end *ending) {
	if end.first == nil {
		end.note("make state durable", p.settle())
	}
	end.note("close index", p.index.index.close())
	end.note("close journal", p.journal.Close())
	end.note("close device", p.dev.Close())
	p.release()
}

// ending keeps the first error of a stop.
type ending struct {
	p     *primary
	first error
}

func (e *ending) note(what string, err error) {
	if err != nil && e.first == nil {
		e.first = deviceError(what, e.p.dir, err)
	}
}

// settle writes the last checkpoint: with it the next start knows exactly what every mirror needs.
func (p *primary) settle() error {
	if err := p.dev.Flush(); err != nil {
		return err
	}
	blob, err := deviceFacts(p.dev)
	if err != nil {
		return err
	}
	return p.checkpoint(func(f *journal.VolumeFacts) { f.Clean, f.Device = true, blob })
}

var errStopping = fmt.Errorf("the volume is being stopped: %w", os.ErrClosed)

// fail makes the export refuse writes: what the journal cannot remember must not happen. Reads go on.
func (p *primary) fail(op string, err error) {
	e, ok := errors.AsType[*Error](deviceError(op, p.dir, err))
	if !ok {
		return
	}
	if p.failure.CompareAndSwap(nil, e) {
		e.Next = "make room for the state directory or repair its disk, then restart the daemon: nothing is lost"
		p.path.Refuse(fmt.Errorf("%s: %w", op, err))
		p.log(fmt.Sprintf("writes are refused: %v; %s", e, e.Next))
	}
}

// fill tells the state of the volume.
func (p *primary) fill(v *VolumeStatus) {
	f := p.facts.told()
	v.Role, v.State, v.Error = "primary", "ok", ""
	v.Size, v.UUID, v.BlockSize = p.size, hex.EncodeToString(f.UUID[:]), int(f.BlockSize)
	v.Generation = hex.EncodeToString(f.Generation.ID[:])
	v.Epoch, v.Mode, v.Export = f.Cut, "async", p.exportName()
	v.HotRegions, v.DeviceErrors, v.IndexDropped = int64(p.tracker.HotCount()), p.deviceErrors.Load(), p.indexDropped.Load()
	v.MaxLag = p.maxLag().Seconds()
	v.IndexNeeds = min(int64(p.tracker.Counts(p.index.sets).Needs)*pageSize, p.size)
	v.ReadBytes, v.WrittenBytes = p.read.Load(), p.written.Load()
	if text := p.deviceError.Load(); text != nil {
		v.Error, v.Next = *text, "check the disk (dmesg, smartctl); the range stays in needs until it can be read"
	}
	p.fillRot(v)
	if p.unproven() {
		v.State, v.Unproven, v.Compared, v.Error = "comparing", true, p.compare.done.Load(), p.compare.reason
	}
	if f.Paused {
		v.State = "paused"
	}
	if e := p.failure.Load(); e != nil {
		v.State, v.Error, v.Next = "failed", e.Error(), e.Next
	}
	v.Mirrors = []MirrorStatus{}
	for _, s := range p.shippers() {
		v.Mirrors = append(v.Mirrors, s.status())
	}
}

// exportName is the export's address as bound.
func (p *primary) exportName() string {
	if p.listener == nil {
		return ""
	}
	if a := p.listener.Addr(); a.Network() == "tcp" {
		return "tcp:" + a.String()
	}
	return p.config.Load().Export
}

func (p *primary) maxLag() time.Duration {
	if p.config.Load().MaxLag > 0 {
		return p.config.Load().MaxLag
	}
	return DefaultMaxLag
}

// cut has every mirror take a cut that is later than this call.
func (p *primary) cut(ctx context.Context, wait bool) (uint64, error) {
	after := p.facts.get().Cut
	if len(p.shippers()) == 0 {
		return after, &Error{Kind: KindState, Op: "cut", On: p.name, Err: errors.New("the volume has no mirror"), Next: "name one with --mirror"}
	}
	for _, s := range p.shippers() {
		s.wantCut(after)
	}
	if !wait {
		return after + 1, nil
	}
	reached := after
	var missing []string
	for _, s := range p.shippers() {
		number, err := s.waitApplied(ctx, after)
		if err != nil {
			missing = append(missing, s.config.Name+" ("+s.status().State+")")
		}
		reached = max(reached, number)
	}
	if missing != nil {
		return reached, &Error{Kind: KindNetwork, Op: "cut", On: p.name,
			Err: fmt.Errorf("not yet committed and applied by %s", strings.Join(missing, ", ")), Next: "see `blkmirror status`; the cut is taken as soon as they can"}
	}
	return reached, nil
}

func (p *primary) pause() error { return p.setPaused(true) }
func (p *primary) resume(overwrite string) error {
	if overwrite != "" && !slices.ContainsFunc(p.shippers(), func(s *shipper) bool { return s.config.Name == overwrite }) {
		return &Error{Kind: KindUsage, Op: "resume", On: p.name, Err: fmt.Errorf("no mirror is called %q", overwrite), Next: "see `blkmirror status` for their names"}
	}
	err := p.setPaused(false)
	for _, s := range p.shippers() {
		s.resume(s.config.Name == overwrite)
	}
	return err
}

func (p *primary) setPaused(paused bool) error {
	if err := p.facts.change(func(f *journal.VolumeFacts) { f.Paused = paused }); err != nil {
		p.fail("note pause", err)
		return deviceError("note pause", p.dir, err)
	}
	for _, s := range p.shippers() {
		if paused {
			s.pause()
		}
	}
	return nil
}

// rebuild is for a volume whose journal is new while its mirrors are not: it asks them who it is. One that
// a mirror has taken up already needs none.
func (p *primary) rebuild() error {
	if p.facts.met() {
		return &Error{Kind: KindState, Op: "rebuild", On: p.name, Err: errors.New("its journal is in order"), Next: "nothing needs to be done"}
	}
	if err := p.facts.change(func(f *journal.VolumeFacts) { f.Rebuilt = true }); err != nil {
		return journalError("note rebuild", p.dir, err)
	}
	p.log("the volume begins a new history; who it is, its mirrors are asked, and everything is compared")
	for _, s := range p.shippers() {
		s.resume(false)
	}
	return nil
}

// unproven: the comparison after suspected foreign writes is not done.
func (p *primary) unproven() bool { return p.compare != nil && !p.compare.finished() }

// observe is told of device errors by the write path.
func (p *primary) observe(op string, e blockdev.Extent, err error) {
	p.deviceErrors.Add(1)
	if op == "read" {
		p.sourceErrors.Add(1)
	}
	text := fmt.Sprintf("%s at %d+%d: %v", op, e.Offset, e.Length, err)
	if old := p.deviceError.Swap(&text); old == nil || *old != text {
		p.log(text)
	}
}

// marker adapts the journal to the write path. A journal that fails stops all writes.
type marker struct{ p *primary }

func (m marker) Mark(regions []uint64) (uint64, error) {
	lsn, err := m.p.journal.Mark(regions)
	if err != nil {
		m.p.fail("mark regions", err)
	}
	return uint64(lsn), err
}

func (m marker) Sync(lsn uint64) error {
	err := m.p.journal.Sync(journal.LSN(lsn))
	if err != nil {
		m.p.fail("mark regions", err)
	}
	return err
}

// exported is the volume as the export shows it.
type exported primary

func (e *exported) Size() int64                           { return e.size }
func (e *exported) ReadOnly() bool                        { return false }
func (e *exported) Zero(off, n int64, mayFree bool) error { return e.path.Zero(off, n, mayFree) }
func (e *exported) Trim(off, n int64) error               { return e.path.Trim(off, n) }
func (e *exported) Flush() error                          { return e.path.Flush() }
func (e *exported) CheapZero() bool                       { return e.path.CheapZero() }

func (e *exported) ReadAt(b []byte, off int64) error {
	e.read.Add(int64(len(b)))
	return e.path.ReadAt(b, off)
}

func (e *exported) WriteAt(b []byte, off int64) error {
	e.written.Add(int64(len(b)))
	return e.path.WriteAt(b, off)
}

func (e *exported) NextData(off int64) (blockdev.Extent, error) { return e.path.NextData(off) }
