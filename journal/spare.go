package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
)

// A log that must go on when the disk is full keeps spares: files of a segment's size whose room is
// allocated ahead. They are called spare.1, spare.2, …, and hold nothing; a new segment is a spare that
// gets a header and then its name. One that is used is replaced at once if it can be, else with the next
// chance. To fail in that is no failure of the log: nothing was promised. Low is what it leads to.
//
// What lies behind the last record of such a segment is zeroes, which are no record. Open cuts them, as it
// cuts a torn tail, and allocates them again.

func sparePath(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("spare.%d", i))
}

// makeSpare makes a spare, or sees to it that one that is there has its room. Nothing is synced: a spare
// that a crash takes away, or its room, is made again.
func makeSpare(fsys FS, path string, size int64) error {
	f, err := createOrOpen(fsys, path)
	if err != nil {
		return err
	}
	err = allocate(f, size)
	err = errors.Join(err, f.Close())
	if err != nil {
		fsys.Remove(path) // part of the room may be taken, and others need it
	}
	return err
}

func createOrOpen(fsys FS, path string) (File, error) {
	f, err := fsys.Create(path)
	if errors.Is(err, fs.ErrExist) {
		return fsys.Open(path, true)
	}
	return f, err
}

// allocate makes room in a file, where its file system can.
func allocate(f File, size int64) error {
	if a, ok := f.(Allocator); ok {
		return a.Allocate(size)
	}
	return nil
}

// isNoRoom says whether an error is a full disk's.
func isNoRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, ErrNoRoom)
}

// refillLocked makes the spares that are missing, as far as there is room. The caller holds the token.
// The lock is released during the I/O.
func (l *Log) refillLocked() {
	for i := 1; i <= l.opts.Spares; i++ {
		path := sparePath(l.dir, i)
		if slices.Contains(l.spares, path) {
			continue
		}
		l.mu.Unlock()
		err := makeSpare(l.fs, path, l.opts.SegmentSize)
		l.mu.Lock()
		if err != nil {
			l.noRoom = fmt.Errorf("make spare %s: %w", path, err)
			return
		}
		l.spares = append(l.spares, path)
	}
	l.noRoom = nil
}

// fullLocked says that the present segment is the last one there is room for.
func (l *Log) fullLocked() bool { return l.opts.Spares > 0 && len(l.spares) == 0 }

// prepareRoom gives the last segment and the spares their room. Open calls it.
func (l *Log) prepareRoom() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = true
	err := allocate(l.file, l.opts.SegmentSize)
	l.refillLocked()
	if err != nil && !l.fullLocked() {
		// Somebody took the room that was here before: the spares are what is left.
		l.startSegmentLocked()
	}
	l.releaseLocked()
	if l.err != nil {
		return errors.Join(l.err, l.file.Close())
	}
	return nil
}

// refill tries to make the spares that are missing.
func (l *Log) refill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.busy {
		l.idle.Wait()
	}
	if l.err != nil || l.closed {
		return
	}
	l.busy = true
	l.refillLocked()
	l.releaseLocked()
}

// low says that there are fewer spares than there should be.
func (l *Log) low() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.spares) < l.opts.Spares
}

// fail makes the log refuse all further work.
func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
	l.idle.Broadcast()
	return l.err
}
