package journal

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// Checkpoint is one that is under way. It ends with Finish or Abandon, whatever Finish returns.
type Checkpoint struct {
	log  *VolumeLog
	from SegmentInfo // T is its first record
	was  int64       // SinceCheckpoint before
	over bool        // guarded by log.mu
}

// BeginCheckpoint sets T: every mark that is appended after it has returned is behind T. A mark that was
// appended before may be on either side. One checkpoint at a time: ErrCheckpoint.
func (l *VolumeLog) BeginCheckpoint() (*Checkpoint, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.checkpoint != nil {
		return nil, ErrCheckpoint
	}
	// Where no new segment can be had, T is where the present one begins: more marks than need be are
	// behind it then, but what is older can go.
	if _, err := l.log.Rotate(); err != nil && !errors.Is(err, ErrNoRoom) {
		return nil, err
	}
	segs := l.log.Segments()
	l.lists.stale = true
	l.checkpoint = &Checkpoint{log: l, from: segs[len(segs)-1], was: l.since.Swap(0)}
	return l.checkpoint, nil
}

// Abandon ends the checkpoint and keeps everything as it was before.
func (c *Checkpoint) Abandon() {
	l := c.log
	l.mu.Lock()
	defer l.mu.Unlock()
	c.endLocked(false)
}

func (c *Checkpoint) endLocked(done bool) {
	if c.over {
		return
	}
	c.over, c.log.checkpoint = true, nil
	if !done {
		c.log.since.Add(c.was)
	}
}

// Finish makes the checkpoint count: facts, sets and hot regions, in any order, are what holds together
// with all marks since T. The sets are only read and must not change meanwhile. Where facts were appended
// since the call, those hold and not these.
//
// Whatever fails before the checkpoint is named durably leaves the former one in force. A disk without
// room for the file fails this checkpoint and nothing else (errors.Is syscall.ENOSPC); any other failure
// of I/O is sticky.
func (c *Checkpoint) Finish(facts VolumeFacts, sets []NamedSet, hot []uint64) error {
	err := c.finish(&facts, sets, hot)
	if err != nil {
		return fmt.Errorf("checkpoint of %s: %w", c.log.dir, err)
	}
	return nil
}

func (c *Checkpoint) finish(facts *VolumeFacts, sets []NamedSet, hot []uint64) error {
	l := c.log
	hot = slices.Clone(hot)
	slices.Sort(hot)
	hot = slices.Compact(hot)
	l.mu.Lock()
	over, changes, number := c.over, l.changes, l.named+1
	l.mu.Unlock()
	if over {
		return ErrCheckpoint
	}
	done := false
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		c.endLocked(done)
	}()
	if err := checkSets(facts, l.opts.RegionSize, sets, hot); err != nil {
		return err
	}
	record := checkpointRecord{number: number, segment: c.from.Number, first: c.from.First}
	if err := l.writeCheckpoint(&record, sets, hot); err != nil {
		return err
	}
	if err := l.nameCheckpoint(record, facts, changes); err != nil {
		return err
	}
	done = true
	if err := l.dropBefore(record); err != nil {
		return err
	}
	l.wantReserve(sets, hot)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.allocateReserveLocked()
	return nil
}

// checkSets says whether a checkpoint can be read back with these facts.
func checkSets(f *VolumeFacts, regionSize int64, sets []NamedSet, hot []uint64) error {
	if err := f.check(); err != nil {
		return err
	}
	limits := f.limits(regionSize)
	if len(sets) > MaxSets {
		return fmt.Errorf("%w: %d sets, at most %d", ErrFacts, len(sets), MaxSets)
	}
	for _, s := range sets {
		if len(s.Name) == 0 || len(s.Name) > MaxSetName {
			return fmt.Errorf("%w: name %q of a set", ErrFacts, s.Name)
		}
		if s.Pages.Len() > limits.pages {
			return fmt.Errorf("%w: set %q is for %d pages, the volume has %d", ErrFacts, s.Name, s.Pages.Len(), limits.pages)
		}
	}
	if n := len(hot); n > 0 && hot[n-1] >= limits.regions {
		return fmt.Errorf("%w: hot region %d of %d", ErrFacts, hot[n-1], limits.regions)
	}
	return nil
}

// writeCheckpoint writes the file into the room that was reserved for it, and returns when it is durable
// under its name. It fills in size and checksum.
func (l *VolumeLog) writeCheckpoint(r *checkpointRecord, sets []NamedSet, hot []uint64) error {
	reserve, path := filepath.Join(l.dir, reserveName), checkpointPath(l.dir, r.number)
	f, err := createOrOpen(l.fs, reserve)
	if err == nil {
		r.size, r.sum, err = writeCheckpointFile(f, checkpointFileHeader{l.log.id, r.number}, sets, hot)
		if err == nil {
			err = f.Truncate(r.size)
		}
		if err == nil {
			err = f.Sync()
		}
		if isNoRoom(err) {
			l.giveBack(f, sets, hot)
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = l.fs.Rename(reserve, path)
	}
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("write %s: %w", path, err)
	if isNoRoom(err) {
		l.reserved.Store(false)
		return err
	}
	return l.log.fail(err)
}

// giveBack lets go of the room that a checkpoint which found too little has taken besides its own, and
// notes how much it would have needed. What cannot be given back is there for the next one.
func (l *VolumeLog) giveBack(f File, sets []NamedSet, hot []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if size, err := f.Size(); err == nil && size > l.reserve {
		f.Truncate(l.reserve)
	}
	l.reserve = max(l.reserve, l.checkpointBound(sets, hot))
}

// nameCheckpoint appends the record that makes a checkpoint file count, and returns when it is durable.
func (l *VolumeLog) nameCheckpoint(r checkpointRecord, facts *VolumeFacts, changes uint64) error {
	l.mu.Lock()
	encoded, err := l.encoded, error(nil)
	if l.changes == changes {
		encoded, err = l.encodeLocked(facts, 0)
	}
	var lsn LSN
	if err == nil {
		lsn, err = l.log.appendLast(typeCheckpoint, r.encode(encoded), 0)
	}
	if err == nil {
		l.named = r.number
		if l.changes == changes {
			l.adoptLocked(facts, encoded)
		}
	}
	l.mu.Unlock()
	if err == nil {
		err = l.log.Sync(lsn)
	}
	return err
}

// dropBefore removes what a named checkpoint makes superfluous: older segments, and every other file of a
// checkpoint.
func (l *VolumeLog) dropBefore(r checkpointRecord) error {
	if err := l.log.DropBefore(r.segment); err != nil {
		return err
	}
	names, err := l.fs.ReadDir(l.dir)
	removed := false
	for _, name := range names {
		if n, ok := checkpointNumber(name); ok && n != r.number && err == nil {
			err = l.fs.Remove(filepath.Join(l.dir, name))
			removed = true
		}
	}
	if err == nil && removed {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return l.log.fail(fmt.Errorf("drop checkpoints before %d: %w", r.number, err))
	}
	return nil
}

// wantReserve notes that the next checkpoint may be as large as one of these sets can become.
func (l *VolumeLog) wantReserve(sets []NamedSet, hot []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reserve = l.checkpointBound(sets, hot)
}

func (l *VolumeLog) checkpointBound(sets []NamedSet, hot []uint64) int64 {
	bytes := maxCheckpointBytes(sets, max(len(hot), usualHot))
	return min(max(bytes, l.opts.ReserveMin), l.opts.ReserveMax)
}

// usualHot is how many hot regions a checkpoint lists at most by default; more are no mistake.
const usualHot = 4096

// allocateReserveLocked makes the file that the next checkpoint is written into. Nothing is synced: one that a
// crash takes away is made again. A failure leads to Low, and to nothing else.
func (l *VolumeLog) allocateReserveLocked() {
	err := makeSpare(l.fs, filepath.Join(l.dir, reserveName), l.reserve)
	l.reserved.Store(err == nil)
}
