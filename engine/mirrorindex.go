package engine

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// blockIndex is what a mirror wants of journal.Index. Tests and the simulator have one in memory.
type blockIndex interface {
	Get(first uint64, dst []journal.Entry) error
	PutRun(first uint64, hashes [][32]byte) error
	Delete(first, count uint64) error
	Sync() error
	Reset() error
	Close() error
}

func openBlockIndex(dir string) (blockIndex, error) {
	x, err := journal.OpenIndex(dir)
	if err != nil {
		return nil, err
	}
	return x, nil
}

// mirrorIndex is a mirror's index. An entry may be absent, never wrong: where the index cannot take a change
// it is dropped as a whole, and the mirror goes on without one until it is opened again.
type mirrorIndex struct {
	geometry
	dir    string
	open   func(dir string) (blockIndex, error)
	remove func(dir string) error // nil: journal.RemoveIndex
	warn   func(string)

	dropped *atomic.Int64 // how often that was
	mu      sync.Mutex
	x       blockIndex // nil: there is none
}

// begin opens it. One that may be wrong is emptied, and one that is damaged begun anew.
func (i *mirrorIndex) begin(empty bool) error {
	x, err := i.open(i.dir)
	if errors.Is(err, journal.ErrIndexDamaged) {
		i.drop(err)
		if err = i.away(); err != nil {
			return err
		}
		x, err = i.open(i.dir)
	}
	if err == nil && empty {
		if err = x.Reset(); err != nil {
			x.Close()
		}
	}
	if err == nil {
		i.x = x
		return nil
	}
	if !isNoRoom(err) {
		return deviceError("open index", i.dir, err)
	}
	i.warn(fmt.Sprintf("there is no room for the index: %v", err))
	return i.away()
}

// away removes it from the disk. It is closed.
func (i *mirrorIndex) away() error {
	remove := i.remove
	if remove == nil {
		remove = journal.RemoveIndex
	}
	return deviceOr("remove index", i.dir, remove(i.dir))
}

// learn notes that whole blocks from off on have these hashes.
func (i *mirrorIndex) learn(off int64, hashes []wire.Hash) error {
	return i.change(func(x blockIndex) error { return x.PutRun(uint64(off/i.blockSize), hashes) })
}

// forget removes the entries of all blocks that a range touches.
func (i *mirrorIndex) forget(off, n int64) error {
	first, last := off/i.blockSize, (off+n-1)/i.blockSize
	return i.change(func(x blockIndex) error { return x.Delete(uint64(first), uint64(last-first+1)) })
}

func (i *mirrorIndex) sync() error { return i.change(func(x blockIndex) error { return x.Sync() }) }

func (i *mirrorIndex) reset() error { return i.change(func(x blockIndex) error { return x.Reset() }) }

// lookUp says what is known of the blocks from off on.
func (i *mirrorIndex) lookUp(off int64, entries []journal.Entry) error {
	clear(entries)
	return i.change(func(x blockIndex) error { return x.Get(uint64(off/i.blockSize), entries) })
}

func (i *mirrorIndex) change(do func(blockIndex) error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.x == nil {
		return nil
	}
	err := do(i.x)
	if err == nil {
		return nil
	}
	i.drop(err)
	if resetErr := i.x.Reset(); resetErr != nil {
		i.x.Close()
		i.x = nil
		return i.away()
	}
	return nil
}

// drop tells that what it knew is gone.
func (i *mirrorIndex) drop(cause error) {
	i.dropped.Add(1)
	i.warn(fmt.Sprintf("the index %s is dropped: %v", i.dir, cause))
}

func (i *mirrorIndex) close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.x == nil {
		return nil
	}
	err := i.x.Close()
	i.x = nil
	return err
}

// isNoRoom tells a full disk from a broken one.
func isNoRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, journal.ErrIndexNoRoom)
}
