package journal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// Dump prints what lies at a path, in words: a log folder, one of its segments, a sync folder, a volume's
// folder, a checkpoint, an index folder, staging or a folder of it. It changes nothing: a torn tail is shown,
// not cut. Damage is printed where it is found and returned at the end. ErrUnknownPath: it is none of these.
func Dump(w io.Writer, path string) error {
	out := bufio.NewWriter(w)
	err := dump(out, path)
	return errors.Join(err, out.Flush())
}

func dump(w io.Writer, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() && isStagingFile(path) {
		return dumpStaging(w, path)
	}
	if _, ok := checkpointNumber(filepath.Base(path)); ok && !info.IsDir() {
		return dumpCheckpointFile(w, path)
	}
	if !info.IsDir() {
		return dumpSegmentFile(w, path)
	}
	names, err := OS.ReadDir(path)
	if err != nil {
		return err
	}
	var segments, index, sync, volume, staging bool
	for _, name := range names {
		_, isSegment := segmentNumber(name)
		segments = segments || isSegment
		index = index || name == "MANIFEST"
		sync = sync || name == syncLogDir
		volume = volume || name == volumeLogDir
		staging = staging || isStagingName(name)
	}
	switch {
	case segments && isVolumeLog(path, names):
		return dumpVolumeLog(w, path)
	case segments:
		return dumpLog(w, path, nil)
	case index:
		return dumpIndex(w, path)
	case sync:
		return dumpSync(w, path, names)
	case volume:
		return errors.Join(dumpVolume(w, path, names), dumpStagingDir(w, path, names))
	case staging:
		return dumpStagingDir(w, path, names)
	}
	return fmt.Errorf("%s %w", path, ErrUnknownPath)
}

// dumpSync prints the records of a sync folder's log and the state they add up to.
func dumpSync(w io.Writer, dir string, names []string) error {
	fmt.Fprintf(w, "sync folder %s\n", dir)
	var s SyncLog
	err := dumpLog(w, filepath.Join(dir, syncLogDir), s.replay)
	if err != nil {
		fmt.Fprintln(w, "state: the log is damaged; a sync takes nothing as known")
		return err
	}
	dumpState(w, s.state, s.begun)
	for _, name := range names {
		if strings.HasPrefix(name, syncLogDir+damagedSuffix) {
			fmt.Fprintf(w, "set aside as damaged: %s\n", filepath.Join(dir, name))
		}
		if _, err := os.Stat(filepath.Join(dir, name, "MANIFEST")); err == nil {
			fmt.Fprintf(w, "index: %s\n", filepath.Join(dir, name))
		}
	}
	return nil
}

func dumpState(w io.Writer, s SyncState, begun bool) {
	if !begun {
		fmt.Fprintln(w, "state: nothing is known")
		return
	}
	fmt.Fprintf(w, "state: source %x\n", s.Source)
	fmt.Fprintf(w, "state: size %d, block size %d, position %d, complete %t\n", s.Size, s.BlockSize, s.Position, s.Complete)
	fmt.Fprintf(w, "state: last hash %x\n", s.LastHash)
	if s.Facts == nil {
		fmt.Fprintln(w, "state: facts unknown, the target may have changed")
	} else {
		fmt.Fprintf(w, "state: facts %q\n", s.Facts)
	}
}

// dumpLog prints all segments of a log; replay, if any, sees the records too.
func dumpLog(w io.Writer, dir string, replay Replay) error {
	names, err := OS.ReadDir(dir)
	if err != nil {
		return err
	}
	var segs []*segment
	var bad error
	for _, name := range names {
		if _, ok := segmentNumber(name); !ok {
			continue
		}
		s, err := readSegmentHeader(OS, filepath.Join(dir, name))
		if err == nil && len(segs) > 0 {
			err = follows(segs[len(segs)-1], s)
		}
		if err != nil {
			fmt.Fprintf(w, "DAMAGED: %v\n", err)
			bad = errors.Join(bad, err)
		}
		if s != nil {
			segs = append(segs, s)
		}
	}
	for i, s := range segs {
		var until LSN
		if i < len(segs)-1 {
			until = segs[i+1].header.first
		}
		if err := dumpSegment(w, s, until, replay); err != nil {
			fmt.Fprintf(w, "DAMAGED: %v\n", err)
			bad = errors.Join(bad, err)
		}
	}
	return bad
}

func dumpSegmentFile(w io.Writer, path string) error {
	s, err := readSegmentHeader(OS, path)
	if errors.Is(err, ErrDamaged) && !strings.HasSuffix(path, segmentSuffix) {
		return fmt.Errorf("%s %w", path, ErrUnknownPath)
	}
	if err != nil {
		return err
	}
	return dumpSegment(w, s, 0, nil)
}

// dumpSegment prints one segment; until is the first LSN of its successor, 0 where it is the last.
func dumpSegment(w io.Writer, s *segment, until LSN, replay Replay) error {
	f, err := OS.Open(s.path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	h := s.header
	fmt.Fprintf(w, "segment %s: number %d, kind %s, log %x, first LSN %d, %d bytes\n",
		s.path, h.number, kindName(h.kind), h.id, h.first, s.size)
	off := int64(segmentHeaderSize)
	end, err := replaySegment(f, s, until, func(lsn LSN, t Type, body []byte) error {
		fmt.Fprintf(w, "  %d at %d: %s\n", lsn, off, describeRecord(h.kind, t, body))
		off += frameSize(len(body))
		if replay != nil {
			return replay(lsn, t, body)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if until != 0 && end.next != until {
		return s.damaged(end.off, "no record %d", end.next)
	}
	if end.off == s.size || until != 0 {
		return nil
	}
	if err := checkTorn(f, s, end); err != nil {
		return err
	}
	if zero, err := isZero(f, end.off, s.size); err != nil || zero {
		fmt.Fprintf(w, "  room of %d bytes at %d\n", s.size-end.off, end.off)
		return err
	}
	fmt.Fprintf(w, "  torn tail at %d: %d bytes that were never promised; the next start cuts them\n",
		end.off, s.size-end.off)
	return nil
}

// isZero says whether a file holds nothing but zeroes in [off, end).
func isZero(f File, off, end int64) (bool, error) {
	w := window{f: f, size: end}
	for off < end {
		b, err := w.at(off, windowSize)
		if err != nil || len(bytes.TrimLeft(b, "\x00")) > 0 {
			return false, err
		}
		off += int64(len(b))
	}
	return true, nil
}

func kindName(k Kind) string {
	switch k {
	case KindSync:
		return "sync"
	case KindVolume:
		return "volume"
	}
	return fmt.Sprintf("%d", uint32(k))
}

func describeRecord(k Kind, t Type, body []byte) string {
	if line, ok := describeVolumeRecord(t, body); ok && k == KindVolume {
		return line
	}
	if k != KindSync {
		return fmt.Sprintf("type %d, %d bytes", t, len(body))
	}
	switch t {
	case typeBegin:
		s, err := decodeBegin(body)
		if err == nil {
			return fmt.Sprintf("begin source %x size %d block %d position %d last %x",
				s.Source, s.Size, s.BlockSize, s.Position, s.LastHash)
		}
	case typeProgress:
		position, last, err := decodeProgress(body)
		if err == nil {
			return fmt.Sprintf("progress position %d last %x", position, last)
		}
	case typeSettle:
		facts, complete, err := decodeSettle(body)
		if err == nil {
			return fmt.Sprintf("settle complete %t facts %q", complete, facts)
		}
	}
	return fmt.Sprintf("type %d, %d bytes, not understood", t, len(body))
}

// dumpIndex prints an index that nobody has open.
func dumpIndex(w io.Writer, dir string) error {
	if lock, err := os.Open(filepath.Join(dir, lockName)); err == nil {
		defer lock.Close()
		if unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK {
			return fmt.Errorf("index %s %w", dir, ErrLocked)
		}
	}
	// A clean close leaves no log of a memtable; one that is left has to be cut by who opens it.
	if logs, err := filepath.Glob(filepath.Join(dir, "*.mem")); err != nil || len(logs) > 0 {
		return errors.Join(err, fmt.Errorf("index %s %w", dir, ErrIndexUnclean))
	}
	var log indexLogger
	var db *badger.DB
	err := checkTables(dir)
	if err == nil {
		db, err = openBadger(indexOptions(dir, &log).WithReadOnly(true))
	}
	if err != nil {
		return fmt.Errorf("open index %s for reading: %w", dir, err)
	}
	defer db.Close()
	if _, err := checkCount(db, dir); err != nil {
		return fmt.Errorf("index %s: %w", dir, err)
	}
	fmt.Fprintf(w, "index %s\n", dir)
	txn := db.NewTransaction(false)
	defer txn.Discard()
	dumpMeta(w, txn)
	var pages, blocks, bad uint64
	err = eachPage(txn, func(number uint64, v []byte) error {
		var p indexPage
		if err := decodePage(v, number, &p); err != nil {
			bad++
			fmt.Fprintf(w, "  page %d: counts as absent: %v\n", number, err)
			return nil
		}
		pages++
		blocks += uint64(p.count())
		fmt.Fprintf(w, "  page %d: %d blocks\n", number, p.count())
		for i := range p.hashes {
			if p.has(i) {
				fmt.Fprintf(w, "    block %d %x\n", number*indexPageSize+uint64(i), p.hashes[i])
			}
		}
		return nil
	})
	fmt.Fprintf(w, "index: %d pages, %d blocks, %d bad pages\n", pages, blocks, bad)
	return err
}

func dumpMeta(w io.Writer, txn *badger.Txn) {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{indexMetaKey}})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		name := string(it.Item().Key()[1:])
		err := it.Item().Value(func(v []byte) error {
			blob, err := decodeMeta(v, name)
			if err == nil {
				fmt.Fprintf(w, "  meta %q: %q\n", name, blob)
			}
			return err
		})
		if err != nil {
			fmt.Fprintf(w, "  meta %q: counts as absent: %v\n", name, err)
		}
	}
}
