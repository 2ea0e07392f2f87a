package engine

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
)

// SteppedPrimary is a primary in steps (stepped.go). Methods that ask the device for something may give the
// turn away, and at most one of each of Checkpoint, IndexPass and CompareBlock is under way at a time; requests
// of clients are as many as one likes. All others are over at once.
type SteppedPrimary struct {
	p      *primary
	steps  map[*shipper]*SteppedShipper
	failed struct{ checkpoint, compare bool } // that routine has ended
}

// OpenSteppedPrimary recovers a volume, or makes one of a device that is new. It asks the device.
func OpenSteppedPrimary(name string, c VolumeConfig, dir string, node [32]byte, s Surroundings) (*SteppedPrimary, error) {
	if err := s.FS.Mkdir(dir); err != nil {
		return nil, deviceError("make folder", dir, err)
	}
	remove := s.RemoveIndex
	if remove == nil {
		remove = func(string) error { return nil }
	}
	p, err := openPrimary(primaryDeps{
		name: name, config: c, dir: dir, node: node, fs: s.FS, log: s.Log, now: s.Now,
		open:       func(string, blockdev.Options) (device, error) { return s.Device() },
		lock:       func(string) (func(), error) { return func() {}, nil },
		identities: func(string) ([]string, error) { return nil, fs.ErrNotExist },
		index:      s.Index, unindex: remove, bootID: s.BootID, random: s.Random, wait: s.Wait, sizes: s.Sizes,
		journal: s.journal(),
	})
	if err != nil {
		return nil, err
	}
	return &SteppedPrimary{p: p, steps: map[*shipper]*SteppedShipper{}}, nil
}

// What clients ask for, as the export does.

func (p *SteppedPrimary) ReadAt(b []byte, off int64) error  { return (*exported)(p.p).ReadAt(b, off) }
func (p *SteppedPrimary) WriteAt(b []byte, off int64) error { return (*exported)(p.p).WriteAt(b, off) }
func (p *SteppedPrimary) Zero(off, n int64, mayFree bool) error {
	return (*exported)(p.p).Zero(off, n, mayFree)
}
func (p *SteppedPrimary) Trim(off, n int64) error { return (*exported)(p.p).Trim(off, n) }
func (p *SteppedPrimary) Flush() error            { return (*exported)(p.p).Flush() }
func (p *SteppedPrimary) NextData(off int64) (blockdev.Extent, error) {
	return (*exported)(p.p).NextData(off)
}

// CheckpointDue tells whether a checkpoint is to be made now. It is asked every second or so.
func (p *SteppedPrimary) CheckpointDue() bool { return !p.failed.checkpoint && p.p.checkpointDue() }

// Checkpoint makes one. It asks the device. With an error, which Failure tells as well, it was the last.
func (p *SteppedPrimary) Checkpoint() error {
	err := p.p.dueCheckpoint()
	p.failed.checkpoint = err != nil
	return err
}

// IndexPass indexes what was written, if anything was and it may be done now. It asks the device.
func (p *SteppedPrimary) IndexPass() error { return p.p.index.duePass(context.Background()) }

// Comparing tells whether there is something left for CompareBlock.
func (p *SteppedPrimary) Comparing() bool { return p.p.unproven() && !p.failed.compare }

// CompareBlock compares the next block of the device with the index, after foreign writes. more: it is to be
// called again. It asks the device.
func (p *SteppedPrimary) CompareBlock() (more bool, err error) {
	if !p.Comparing() {
		return false, nil
	}
	more, err = p.p.compare.step(context.Background())
	if err != nil {
		p.failed.compare = true
		p.p.log(fmt.Sprintf("comparison with the index: %v", err))
	}
	return more, err
}

// Stop ends the volume cleanly. No request and no session is under way any more, nor anything else. It asks
// the device.
func (p *SteppedPrimary) Stop() error {
	end := ending{p: p.p}
	p.p.path.Refuse(errStopping)
	end.note("finish writes", p.p.path.Drain(context.Background()))
	p.p.close(&end)
	return end.first
}

// What a person may want.

// Cut has every mirror take a cut that is later than this call.
func (p *SteppedPrimary) Cut()                          { p.p.cut(context.Background(), false) } // without a mirror there is none
func (p *SteppedPrimary) Pause() error                  { return p.p.pause() }
func (p *SteppedPrimary) Resume(overwrite string) error { return p.p.resume(overwrite) }
func (p *SteppedPrimary) Rebuild() error                { return p.p.rebuild() }

// Tune takes changed settings up. Of a mirror that is left away nothing may be under way.
func (p *SteppedPrimary) Tune(c VolumeConfig) { p.p.tune(c) }

// Failure is why writes are refused; nil: they are not.
func (p *SteppedPrimary) Failure() error {
	if e := p.p.failure.Load(); e != nil {
		return e
	}
	return nil
}

// Facts are what the journal remembers, or is about to.
func (p *SteppedPrimary) Facts() journal.VolumeFacts { return p.p.facts.get() }

// Unproven tells that the comparison after foreign writes is not done.
func (p *SteppedPrimary) Unproven() bool { return p.p.unproven() }

// Needs is a copy of what a mirror needs: what is open and what is in doubt with it.
func (p *SteppedPrimary) Needs(mirror int) *blockdev.PageSet {
	return p.p.tracker.Needs(p.p.shippers()[mirror].sets)
}

// Needed tells whether a page is in Needs.
func (p *SteppedPrimary) Needed(mirror int, page uint64) bool {
	return p.p.tracker.Needed(p.p.shippers()[mirror].sets, page)
}

// NeedsIndex is a copy of what the index needs. What it has of other blocks is their content.
func (p *SteppedPrimary) NeedsIndex() *blockdev.PageSet { return p.p.tracker.Needs(p.p.index.sets) }

// HotRegions is how many regions are marked.
func (p *SteppedPrimary) HotRegions() int { return p.p.tracker.HotCount() }

// Mirrors is how many mirrors there are, and Mirror one of them, in the order in which they came.
func (p *SteppedPrimary) Mirrors() int { return len(p.p.shippers()) }

func (p *SteppedPrimary) Mirror(i int) *SteppedShipper {
	s := p.p.shippers()[i]
	if p.steps[s] == nil {
		p.steps[s] = &SteppedShipper{s: s}
	}
	return p.steps[s]
}
