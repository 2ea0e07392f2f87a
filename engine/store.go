package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// targetStore is a target's device with what is remembered about it: a folder in the state directory
// that holds the progress log and the index.
//
// The order of durable steps:
//
//	begin     the log says that a run is under way, before the first byte changes: from here on no facts
//	          are recorded, so a later run believes the index only where it has compared (recheck.go)
//	progress  device flushed, index synced, then the position is recorded
//	settle    device flushed, index synced, then the device's facts are recorded
//
// While a run is under way an entry of the index behind the confirmed position may be that of the content
// before: it is trusted by nobody until the run has completed and has noted every block anew.
//
// In a dry run only what exists is read, and nothing is kept.
type targetStore struct {
	geometry
	dev    device // nil: a dry run onto a target that does not exist
	dryRun bool
	warn   func(string)

	leave   func() // gives the volume back to who admitted us
	release func() // of the folder's lock
	log     *journal.SyncLog
	index   *journal.Index

	bootID       string
	indexDir     string
	indexDamaged atomic.Bool

	// failed is set when a flush failed: nothing may be recorded behind it.
	failed atomic.Bool
}

// openState opens, or makes, the folder of this target. What is damaged is set aside and told: then
// nothing is known, and everything will be compared.
func (s *targetStore) openState(stateDir string, facts blockdev.Facts) error {
	dir := filepath.Join(stateDir, "sync", facts.FolderName())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return deviceError("make state folder", dir, err)
	}
	release, err := journal.LockDir(dir)
	if err != nil {
		return deviceError("lock state folder", dir, err)
	}
	s.release = release
	if s.bootID, err = blockdev.BootID(); err != nil {
		return deviceError("look at this machine", dir, err)
	}
	osfs := journal.OS
	s.log, err = journal.OpenSync(osfs, dir)
	if errors.Is(err, journal.ErrDamaged) {
		aside, asideErr := journal.SetAsideSync(osfs, dir)
		if asideErr != nil {
			return deviceError("set aside damaged progress log", dir, asideErr)
		}
		s.warn(fmt.Sprintf("the progress log was damaged and is now %s: everything is compared (%v)", aside, err))
		s.log, err = journal.OpenSync(osfs, dir)
	}
	if err != nil {
		return deviceError("open progress log", dir, err)
	}
	s.indexDir = filepath.Join(dir, "index")
	s.index, err = journal.OpenIndex(s.indexDir)
	if errors.Is(err, journal.ErrIndexDamaged) {
		s.warn(fmt.Sprintf("the index %s is damaged and is built anew (%v)", s.indexDir, err))
		if err = journal.RemoveIndex(s.indexDir); err == nil {
			s.index, err = journal.OpenIndex(s.indexDir)
		}
	}
	if err != nil {
		return deviceError("open index", s.indexDir, err)
	}
	return nil
}

// footing is what an earlier run is worth to this one. The zero value: nothing.
type footing struct {
	from    int64     // below it all is confirmed
	last    wire.Hash // of the block that ends there
	recheck bool      // what lies below must be compared with the index first
	trusted bool      // the index may answer offers
}

// resume says on what footing a run for this source begins.
//
// A run that was completed is not resumed: the next one looks at everything again.
func (s *targetStore) resume(open *wire.Open, facts blockdev.Facts) (footing, error) {
	st := s.log.State()
	marker, err := s.index.Meta(markerName)
	if err != nil {
		return footing{}, s.indexError("read index", err)
	}
	if string(marker) != string(indexMarker(st.BlockSize, st.Size)) || st.BlockSize != open.BlockSize || st.Size != open.Size {
		return footing{}, nil // the index belongs to another run than the log, or to other blocks
	}
	untouched := false
	if st.Facts != nil {
		var then settledFacts
		untouched = json.Unmarshal(st.Facts, &then) == nil && then.BootID == s.bootID && facts.Unchanged(then.Facts)
	}
	if st.Complete {
		return footing{trusted: untouched}, nil
	}
	if st.Position <= 0 || st.Source != open.Fingerprint || (st.Position%s.blockSize != 0 && st.Position != s.size) {
		return footing{}, nil
	}
	// The last confirmed block is checked on both sides: here, and by the source.
	start := s.down(st.Position - 1)
	buf := make([]byte, st.Position-start)
	if _, err := s.dev.ReadAt(buf, start); err != nil {
		return footing{}, deviceError("read target", "", err)
	}
	if wire.Sum(buf) != st.LastHash {
		return footing{}, nil
	}
	return footing{from: st.Position, last: st.LastHash, recheck: !untouched}, nil
}

// The marker ties an index to the blocks that it is about. An index that was lost and made anew lacks it,
// and then "no entry" does not mean "zero".
const markerName = "volume"

func indexMarker(blockSize uint32, size int64) []byte {
	return fmt.Appendf(nil, "%d/%d", size, blockSize)
}

// begin makes durable that a run is under way. Behind keep the target is zero and no message will
// mention it where the source is zero too, so its entries go now.
func (s *targetStore) begin(open *wire.Open, f footing, keep int64) error {
	st := journal.SyncState{Source: open.Fingerprint, BlockSize: open.BlockSize, Size: open.Size, Position: f.from, LastHash: f.last}
	if err := s.log.Begin(st); err != nil {
		return deviceError("record the start of the sync", "", err)
	}
	marker, err := s.index.Meta(markerName)
	if err == nil && string(marker) != string(indexMarker(open.BlockSize, open.Size)) {
		if err = s.index.Reset(); err == nil {
			err = s.index.SetMeta(markerName, indexMarker(open.BlockSize, open.Size))
		}
	}
	if err == nil {
		end := s.up(max(f.from, keep))
		err = s.forget(end, s.size-end)
	}
	if err == nil {
		err = s.index.Sync()
	}
	if err != nil {
		return s.indexError("prepare index", err)
	}
	return nil
}

// learn notes that the blocks from off on hold content with these hashes. Zero blocks have no entry.
func (s *targetStore) learn(off int64, hashes []wire.Hash) error {
	if s.dryRun {
		return nil
	}
	first := uint64(off / s.blockSize)
	zero := func(i int) bool {
		start := off + int64(i)*s.blockSize
		return hashes[i] == zeroBlockHash(s.blockEnd(start)-start)
	}
	for i, j := range stretches(len(hashes), func(i, j int) bool { return zero(i) == zero(j) }) {
		var err error
		if zero(i) {
			err = s.index.Delete(first+uint64(i), uint64(j-i))
		} else {
			err = s.index.PutRun(first+uint64(i), hashes[i:j])
		}
		if err != nil {
			return s.indexError("write index", err)
		}
	}
	return nil
}

// forget removes the entries of a range of whole blocks.
func (s *targetStore) forget(off, n int64) error {
	if s.dryRun || n <= 0 {
		return nil
	}
	count := (n + s.blockSize - 1) / s.blockSize
	if err := s.index.Delete(uint64(off/s.blockSize), uint64(count)); err != nil {
		return s.indexError("write index", err)
	}
	return nil
}

// lookUp fills the hashes of the blocks from off on, and tells whether it knew them all.
func (s *targetStore) lookUp(off int64, hashes []wire.Hash) (bool, error) {
	entries := make([]journal.Entry, len(hashes))
	if err := s.index.Get(uint64(off/s.blockSize), entries); err != nil {
		return false, s.indexError("read index", err)
	}
	for i := range entries {
		if !entries[i].Known {
			return false, nil
		}
		hashes[i] = entries[i].Hash
	}
	return true, nil
}

// indexError wraps what the index said. One that turns out damaged is removed when the store is closed:
// the next run builds it anew, and compares everything.
func (s *targetStore) indexError(op string, err error) error {
	e := deviceError(op, s.indexDir, err)
	var own *Error
	if errors.Is(err, journal.ErrIndexDamaged) && errors.As(e, &own) {
		s.indexDamaged.Store(true)
		own.Next = "run the same sync again: the index is built anew"
	}
	return e
}

// makeDurable flushes the device and then the index.
func (s *targetStore) makeDurable() error {
	if err := s.dev.Flush(); err != nil {
		s.failed.Store(true)
		return deviceError("flush target", "", err)
	}
	if err := s.index.Sync(); err != nil {
		return s.indexError("sync index", err)
	}
	return nil
}

func (s *targetStore) progress(position int64, last wire.Hash) error {
	if err := s.log.Progress(position, last); err != nil {
		return deviceError("record progress", "", err)
	}
	return nil
}

// settledFacts are what the log keeps of the device. The boot is part of it: after a power cut an image may
// hold a stranger's last write without the time of that write.
type settledFacts struct {
	blockdev.Facts
	BootID string `json:"settled_in_boot"`
}

// settle records the device's facts. The device and the index are durable. It promises that whatever the
// log says about this target holds as long as the facts stay the same.
func (s *targetStore) settle(complete bool) error {
	facts, err := s.dev.Facts()
	if err != nil {
		return deviceError("look at target", "", err)
	}
	blob, err := json.Marshal(settledFacts{Facts: facts, BootID: s.bootID})
	if err != nil {
		return fmt.Errorf("encode facts of %s: %w", s.dev.Info().Path, err)
	}
	if err := s.log.Settle(blob, complete); err != nil {
		return deviceError("record the end of the sync", "", err)
	}
	return nil
}

// interrupted leaves a run that did not complete so that the next one can go on without comparing
// again, if that is possible. Errors are only told: the state before is as good, if slower.
func (s *targetStore) interrupted(confirmed *wire.Flush) {
	if s.dryRun || s.failed.Load() {
		return
	}
	err := s.makeDurable()
	if err == nil && confirmed != nil {
		err = s.progress(confirmed.Position, confirmed.LastHash)
	}
	if err == nil {
		err = s.settle(false)
	}
	if err != nil {
		s.warn(fmt.Sprintf("the next sync into %s will compare what was confirmed: %v", s.dev.Info().Path, err))
	}
}

// close releases everything. It is safe on a store that is open only in part.
func (s *targetStore) close() error {
	var errs []error
	if s.index != nil {
		errs = append(errs, s.index.Close())
		if s.indexDamaged.Load() {
			errs = append(errs, journal.RemoveIndex(s.indexDir))
		}
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.release != nil {
		s.release()
	}
	if s.dev != nil {
		errs = append(errs, s.dev.Close())
	}
	return errors.Join(errs...)
}

// prepareImage makes the target exist with the volume's size where it does not, or is an empty file.
func prepareImage(path string, size int64) (created bool, err error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = blockdev.Create(path, size)
		created = err == nil
	case err == nil && isEmptyImage(fi):
		err = blockdev.Extend(path, size)
	}
	if err != nil {
		return false, deviceError("create target", path, err)
	}
	return created, nil
}

// isEmptyImage tells a file that somebody made for a copy to be put in.
func isEmptyImage(fi fs.FileInfo) bool { return fi.Mode().IsRegular() && fi.Size() == 0 }
