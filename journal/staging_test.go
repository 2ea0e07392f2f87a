package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// The file tells what the model does, at every step of many random histories.
func TestStagingAgainstModel(t *testing.T) {
	for seed := range uint64(120) {
		w := newStagingWork(stagingFS(), seed)
		for range 8 {
			must(t, w.run(12))
			if err := w.agree(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		must(t, w.s.Close())
		must(t, w.s.Close())
	}
}

// Every operation fails in turn, with every kind of failure, and the power is cut behind it. What a Sync, a
// Rebase or a Seal has promised is there, or what was tried since as a whole, and nothing else.
func TestStagingSurvivesEveryFault(t *testing.T) {
	t.Parallel()
	const steps = 24
	for seed := range uint64(3) {
		clean := newStagingWork(stagingFS(), seed)
		before := clean.fs.(*journaltest.MemFS).Count(journaltest.OpAny)
		must(t, clean.run(steps))
		ops := clean.fs.(*journaltest.MemFS).Count(journaltest.OpAny)
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC, journaltest.ErrShort} {
			for i := before; i < ops; i++ {
				mem := stagingFS()
				mem.Fail(journaltest.OpAny, i, cause)
				w := newStagingWork(mem, seed)
				err := w.run(steps)
				if mem.Struck() != 1 {
					t.Fatalf("fault %d did not strike", i)
				}
				// Only what gives room back may fail in silence.
				if err == nil && w.m.String() != clean.m.String() {
					t.Fatalf("operation %d failed with %v, nobody was told, and the end is\n%v", i, cause, w.m)
				}
				mem.Heal()
				for crash := range uint64(6) {
					after := mem.Crash(crash)
					if crash == 5 {
						after = mem // no power cut: the process starts anew
					}
					if err := w.afterwards(after); err != nil {
						t.Fatalf("seed %d, %v at operation %d of %d, crash %d: %v", seed, cause, i, ops, crash, err)
					}
				}
			}
		}
	}
}

// After a failure every call says so.
func TestStagingErrorsAreSticky(t *testing.T) {
	ops := []journaltest.Op{journaltest.OpWrite, journaltest.OpSync, journaltest.OpRename, journaltest.OpSyncDir}
	for _, op := range ops {
		mem := stagingFS()
		w := newStagingWork(mem, 1)
		must(t, w.run(1))
		must(t, w.append())
		mem.Fail(op, mem.Count(op), syscall.EIO)
		voids := []blockdev.Extent{{Offset: 0, Length: page}}
		w.unseal()
		if err := w.s.Rebase(w.seq+1, 50, voids, journal.StagingPoint{Seq: w.seq + 1}); !errors.Is(err, syscall.EIO) {
			t.Fatalf("%s: %v", op, err)
		}
		mem.Heal()
		rec := journal.StagingRecord{Seq: 1000, Kind: journal.StagingZero, Length: page}
		for name, err := range map[string]error{
			"Append": w.s.Append(rec, nil),
			"Sync":   w.s.Sync(journal.StagingPoint{Seq: 1000}),
			"Seal":   w.s.Seal(5, 1, journal.StagingPoint{Seq: 1000}, nil),
			"Rebase": w.s.Rebase(1000, 60, nil, journal.StagingPoint{Seq: 1000}),
			"Each":   w.s.Each(nil),
			"Plan":   w.s.Plan(nil),
			"Close":  w.s.Close(),
		} {
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("%s, then %s: %v", op, name, err)
			}
		}
	}
}

// tornStaging is a file whose last Rebase has lost its new name, and which has a tail that was never synced.
func tornStaging(t *testing.T, seed uint64) (*journaltest.MemFS, *stagingWork) {
	mem := stagingFS()
	w := newStagingWork(mem, seed)
	must(t, w.run(12))
	if seed%2 == 0 {
		mem.Fail(journaltest.OpRename, mem.Count(journaltest.OpRename), syscall.EIO)
		if err := w.rebase(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("rename did not fail: %v", err)
		}
		w.maySay = w.maySay[1:] // the record is durable
	} else {
		for range 6 {
			must(t, w.append())
		}
		mem.Fail(journaltest.OpSync, mem.Count(journaltest.OpSync), syscall.EIO)
		if err := w.sync(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("sync did not fail: %v", err)
		}
	}
	mem.Heal()
	return mem, w
}

// The operations of recovery itself fail too.
func TestStagingRecoverySurvivesEveryFault(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		for i := 0; ; i++ {
			mem, w := tornStaging(t, seed)
			mem.Fail(journaltest.OpAny, mem.Count(journaltest.OpAny)+i, syscall.EIO)
			_, _, err := recovered(mem)
			if mem.Struck() == 1 { // only the fault of tornStaging: recovery has no more operations
				must(t, err)
				break
			}
			mem.Heal()
			for crash := range uint64(6) {
				if err := w.afterwards(mem.Crash(crash)); err != nil {
					t.Fatalf("seed %d, operation %d of recovery, crash %d: %v", seed, i, crash, err)
				}
			}
			if err := w.afterwards(mem); err != nil {
				t.Fatalf("seed %d, operation %d of recovery: %v", seed, i, err)
			}
		}
	}
}

// A file that still has its old name is the new epoch's, and no longer the old one's.
func TestStagingUnderItsOldName(t *testing.T) {
	mem, w := tornStaging(t, 0)
	names, err := mem.ReadDir(testDir)
	must(t, err)
	if names[0] == fmt.Sprintf("%010d.staging", w.m.epoch) {
		t.Fatal("it has its new name")
	}
	var old uint64
	fmt.Sscanf(names[0], "%d", &old)
	if _, err := journal.OpenStaging(mem, testDir, old, little); !isNone(err) {
		t.Errorf("opened as the old epoch: %v", err)
	}
	must(t, journal.RemoveStaging(mem, testDir, old)) // nothing of it is there
	if list, err := journal.ListStaging(mem, testDir); err != nil || !slices.Equal(list, []uint64{w.m.epoch}) {
		t.Errorf("listed %d, %v", list, err)
	}
	copied := mem.Crash(1)
	must(t, journal.RemoveStaging(copied, testDir, w.m.epoch))
	if names := copied.Crash(0).Paths(); len(names) > 0 {
		t.Errorf("left: %q", names)
	}
	s, err := journal.OpenStaging(mem, testDir, w.m.epoch, little)
	must(t, err)
	must(t, s.Close())
	want := filepath.Join(testDir, fmt.Sprintf("%010d.staging", w.m.epoch))
	if names := mem.Crash(0).Paths(); !slices.Equal(names, []string{want}) {
		t.Errorf("names are %q, want %q", names, want)
	}
}

// Two files that claim one epoch, as no crash leaves them, are not chosen between.
func TestStagingTwice(t *testing.T) {
	mem, w := tornStaging(t, 0)
	names := mem.Paths()
	mem.Write(filepath.Join(testDir, fmt.Sprintf("%010d.staging", w.m.epoch)), mem.Read(names[0]))
	if _, err := journal.ListStaging(mem, testDir); !errors.Is(err, journal.ErrDamaged) {
		t.Errorf("listed: %v", err)
	}
	if _, err := journal.OpenStaging(mem, testDir, w.m.epoch, little); !errors.Is(err, journal.ErrDamaged) {
		t.Errorf("opened: %v", err)
	}
}

func TestStagingNames(t *testing.T) {
	mem := stagingFS()
	for _, name := range []string{"7.staging", "0000000000.staging", "00000000007.staging", "x.staging",
		"0000000007.stagin", "lock"} {
		mem.Write(filepath.Join(testDir, name), []byte("not ours"))
	}
	foreign := len(mem.Paths())
	s, err := journal.CreateStaging(mem, testDir, stagingHeader(7), little)
	must(t, err)
	must(t, s.Append(journal.StagingRecord{Seq: 1, Kind: journal.StagingZero, Length: page}, nil))
	if _, err := journal.OpenStaging(mem, testDir, 7, little); !isNone(err) {
		t.Errorf("opened before its first point: %v", err)
	}
	must(t, s.Sync(journal.StagingPoint{Seq: 1}))
	if _, err := journal.CreateStaging(mem, testDir, stagingHeader(7), little); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created twice: %v", err)
	}
	other, err := journal.CreateStaging(mem, testDir, stagingHeader(12345678901), little)
	must(t, err)
	must(t, other.Sync(journal.StagingPoint{}))
	if err := s.Rebase(2, 12345678901, nil, journal.StagingPoint{Seq: 2}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("rebased onto another: %v", err)
	}
	must(t, s.Rebase(2, 8, nil, journal.StagingPoint{Seq: 2})) // that changed nothing
	lost, err := journal.CreateStaging(mem, testDir, stagingHeader(9), little)
	must(t, err)
	if list, err := journal.ListStaging(mem, testDir); err != nil || !slices.Equal(list, []uint64{8, 12345678901}) {
		t.Errorf("listed %d, %v", list, err)
	}
	if err := lost.Sync(journal.StagingPoint{}); !isNone(err) {
		t.Errorf("its name was taken away: %v", err)
	}
	again, err := journal.CreateStaging(mem, testDir, stagingHeader(9), little)
	must(t, err)
	must(t, again.Close()) // never synced: gone
	must(t, errors.Join(s.Close(), other.Close()))
	must(t, journal.RemoveStaging(mem, testDir, 8))
	must(t, journal.RemoveStaging(mem, testDir, 8))
	must(t, journal.RemoveStaging(mem, testDir, 12345678901))
	if n := len(mem.Crash(0).Paths()); n != foreign {
		t.Errorf("%d files, want %d", n, foreign)
	}
}

// What may be asked of it at any time may be asked while it is written.
func TestStagingIsAskedMeanwhile(t *testing.T) {
	w := newStagingWork(stagingFS(), 3)
	must(t, w.run(1))
	w.unseal()
	rec := dataAt(w.seq+1, 0, page, 5000)
	w.seq++
	w.m.append(rec)
	must(t, w.s.Append(rec, payloadOf(rec.Seq, 5000)))
	must(t, w.sync())
	var where int64
	must(t, w.s.Each(func(rec journal.StagingRecord, at int64) error { where = at; return nil }))
	s, done, asked := w.s, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(asked)
		b := make([]byte, 5000)
		for {
			select {
			case <-done:
				return
			default:
			}
			s.Header()
			s.Point()
			s.Sealed()
			s.PageCount()
			if s.Bytes() <= 0 {
				t.Error("no bytes")
			}
			if err := s.ReadPayload(rec, where, b); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 50 {
		must(t, w.append())
		must(t, w.sync())
		must(t, w.rebase())
		must(t, w.seal())
	}
	close(done)
	<-asked
	must(t, s.Close())
}

// What is not allowed is refused, changes nothing, and is no failure.
func TestStagingRefuses(t *testing.T) {
	mem := stagingFS()
	s, err := journal.CreateStaging(mem, testDir, stagingHeader(7), little)
	must(t, err)
	good := dataAt(5, page, page, 10)
	good.Hash[0] = 1
	must(t, s.Append(good, make([]byte, 10)))
	p := journal.StagingPoint{Seq: 5, Records: 1}
	must(t, s.Sync(p))
	zero := journal.StagingRecord{Seq: 6, Kind: journal.StagingZero, Length: page}
	record := func(from journal.StagingRecord, change func(r *journal.StagingRecord)) error {
		from.Seq = 6
		change(&from)
		return s.Append(from, make([]byte, max(0, min(from.PayloadLength, 2<<20))))
	}
	type R = journal.StagingRecord
	for name, err := range map[string]error{
		"sequence again":        record(good, func(r *R) { r.Seq = 5 }),
		"kind 0":                record(good, func(r *R) { r.Kind = 0 }),
		"kind 3":                record(good, func(r *R) { r.Kind = 3 }),
		"not at a page":         record(good, func(r *R) { r.Offset = 512 }),
		"half a page":           record(good, func(r *R) { r.Length = 512 }),
		"empty":                 record(good, func(r *R) { r.Length = 0 }),
		"negative":              record(good, func(r *R) { r.Length = -page }),
		"negative offset":       record(good, func(r *R) { r.Offset = -page }),
		"beyond the end":        record(good, func(r *R) { r.Offset = 40 * page }),
		"wrapping":              record(good, func(r *R) { r.Offset = 1<<63 - page }),
		"crossing a block":      record(good, func(r *R) { r.Offset, r.Length = 3*page, 2*page }),
		"no payload":            record(good, func(r *R) { r.PayloadLength = 0 }),
		"long payload":          record(good, func(r *R) { r.PayloadLength = 1<<20 + 1 }),
		"other payload":         s.Append(R{Seq: 6, Kind: 1, Length: page, PayloadLength: 10}, make([]byte, 9)),
		"data that may be free": record(good, func(r *R) { r.MayFree = true }),
		"zero with payload":     record(zero, func(r *R) { r.PayloadLength = 1 }),
		"zero with codec":       record(zero, func(r *R) { r.Codec = 1 }),
		"zero with hash":        record(zero, func(r *R) { r.Hash[3] = 1 }),
		"point going back":      s.Sync(journal.StagingPoint{Seq: 4}),
		"rebase going back":     s.Rebase(6, 7, nil, journal.StagingPoint{Seq: 6}),
		"rebase again":          s.Rebase(5, 8, nil, journal.StagingPoint{Seq: 6}),
		"rebase behind point":   s.Rebase(6, 8, nil, journal.StagingPoint{Seq: 5}),
		"void half a page":      s.Rebase(6, 8, []blockdev.Extent{{Offset: 0, Length: 100}}, journal.StagingPoint{Seq: 6}),
		"void in disorder": s.Rebase(6, 8, []blockdev.Extent{{Offset: page, Length: page}, {Offset: 0, Length: page}},
			journal.StagingPoint{Seq: 6}),
		"another base":   s.Seal(4, 1, p, nil),
		"another count":  s.Seal(5, 2, p, nil),
		"read elsewhere": s.ReadPayload(good, 100, make([]byte, 10)),
		"read less":      s.ReadPayload(good, 5000, make([]byte, 9)),
	} {
		if !errors.Is(err, journal.ErrStaging) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Seal(5, 1, p, make([]byte, journal.MaxStagingExtra+1)); !errors.Is(err, journal.ErrTooLarge) {
		t.Errorf("long extra: %v", err)
	}
	must(t, s.Seal(5, 1, p, nil))
	if extra, ok := s.Sealed(); !ok || len(extra) > 0 {
		t.Errorf("sealed %t with %q", ok, extra)
	}
	for name, err := range map[string]error{
		"Append": s.Append(zero, nil), "Sync": s.Sync(p), "Seal": s.Seal(5, 1, p, nil),
		"Rebase": s.Rebase(6, 8, nil, journal.StagingPoint{Seq: 6}),
	} {
		if !errors.Is(err, journal.ErrSealed) {
			t.Errorf("%s of what is sealed: %v", name, err)
		}
	}
	s.Unseal()
	must(t, s.Append(zero, nil))
	must(t, s.Close())
	if err := s.Append(zero, nil); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	// Nothing was durable behind the footer: it is found again.
	s, err = journal.OpenStaging(mem, testDir, 7, little)
	must(t, err)
	if _, ok := s.Sealed(); !ok || s.Point() != p || s.PageCount() != 1 {
		t.Errorf("sealed %t, point %+v, %d pages", ok, s.Point(), s.PageCount())
	}
}

// A sync without anything new costs nothing.
func TestStagingSyncsOnce(t *testing.T) {
	mem := stagingFS()
	s, err := journal.CreateStaging(mem, testDir, stagingHeader(7), little)
	must(t, err)
	must(t, s.Append(journal.StagingRecord{Seq: 1, Kind: journal.StagingZero, Length: page}, nil))
	count := func(do func() error) (syncs, writes int) {
		syncs, writes = mem.Count(journaltest.OpSync), mem.Count(journaltest.OpWrite)
		must(t, do())
		return mem.Count(journaltest.OpSync) - syncs, mem.Count(journaltest.OpWrite) - writes
	}
	p := journal.StagingPoint{Seq: 1, Records: 1}
	for _, c := range []struct {
		name          string
		do            func() error
		syncs, writes int
	}{
		{"first sync", func() error { return s.Sync(p) }, 2, 2},
		{"again", func() error { return s.Sync(p) }, 0, 0},
		{"only a later point", func() error { p.Seq++; return s.Sync(p) }, 1, 1},
		{"seal", func() error { return s.Seal(5, 1, p, nil) }, 1, 1},
	} {
		if syncs, writes := count(c.do); syncs != c.syncs || writes != c.writes {
			t.Errorf("%s: %d syncs, %d writes, want %d and %d", c.name, syncs, writes, c.syncs, c.writes)
		}
	}
}

// Room that void records took is given back and counted so, and what is live stays.
func TestStagingGivesRoomBack(t *testing.T) {
	for _, name := range []string{"memory", "disk"} {
		var fsys journal.FS = stagingFS()
		if name == "disk" {
			fsys = osIn(t.TempDir())
			must(t, fsys.Mkdir(testDir))
		}
		h := stagingHeader(7)
		h.BlockSize, h.Size = 1<<20, 64<<20
		s, err := journal.CreateStaging(fsys, testDir, h, journal.StagingOptions{})
		must(t, err)
		seq := uint64(0)
		add := func(from, to int64) {
			for i := from; i < to; i++ {
				seq++
				must(t, s.Append(dataAt(seq, i*64<<10, 64<<10, 50_000), payloadOf(seq, 50_000)))
			}
		}
		add(0, 100)
		if got := s.Bytes(); got < 100*50_000 || got > 100*50_000+1<<20 {
			t.Errorf("%s: %d bytes with all in the buffer or written", name, got)
		}
		must(t, s.Sync(journal.StagingPoint{Seq: seq}))
		before := s.Bytes()
		seq++
		voids := []blockdev.Extent{{Offset: 0, Length: 50 * 64 << 10}, {Offset: 60*64<<10 + page, Length: page}}
		must(t, s.Rebase(seq, 8, voids, journal.StagingPoint{Seq: seq}))
		after := s.Bytes()
		// Fifty payloads in three frames, less a block at each end of a row; the one that is void in part stays.
		if freed := before - after; freed < 50*50_000-8*page || freed > 50*50_000 {
			t.Errorf("%s: %d bytes before, %d after", name, before, after)
		}
		add(40, 45)
		must(t, s.Sync(journal.StagingPoint{Seq: seq}))
		size := s.Bytes()
		must(t, s.Close())
		s, err = journal.OpenStaging(fsys, testDir, 8, journal.StagingOptions{})
		must(t, err)
		if s.Bytes() != size {
			t.Errorf("%s: %d bytes, after a restart %d", name, size, s.Bytes())
		}
		var got []uint64
		must(t, s.Each(func(rec journal.StagingRecord, at int64) error {
			got = append(got, rec.Seq)
			b := make([]byte, rec.PayloadLength)
			must(t, s.ReadPayload(rec, at, b))
			if !bytes.Equal(b, payloadOf(rec.Seq, len(b))) {
				t.Errorf("%s: payload of %d has changed", name, rec.Seq)
			}
			return nil
		}))
		if len(got) != 55 || got[0] != 51 || got[54] != 106 {
			t.Errorf("%s: records %d", name, got)
		}
		pieces := 0
		must(t, s.Plan(func(p journal.StagingPiece) error { pieces++; return nil }))
		if pieces != 56 || s.PageCount() != 55*16-1 {
			t.Errorf("%s: %d pieces, %d pages", name, pieces, s.PageCount())
		}
		must(t, s.Close())
	}
}

// A file system that gives nothing back is no reason to fail, and Bytes does not pretend.
func TestStagingThatCannotPunch(t *testing.T) {
	mem := stagingFS()
	s, err := journal.CreateStaging(mem, testDir, stagingHeader(7), little)
	must(t, err)
	for i := range uint64(8) {
		must(t, s.Append(dataAt(i+1, 0, page, 9000), payloadOf(i, 9000)))
	}
	mem.Fail(journaltest.OpPunch, 0, syscall.EOPNOTSUPP)
	must(t, s.Rebase(20, 8, []blockdev.Extent{{Offset: 0, Length: page}}, journal.StagingPoint{Seq: 20}))
	if mem.Struck() != 1 || s.Bytes() < 8*9000 {
		t.Errorf("struck %d, %d bytes", mem.Struck(), s.Bytes())
	}
	before := s.Bytes()
	must(t, s.Close())
	s, err = journal.OpenStaging(mem, testDir, 8, little) // where it goes better
	must(t, err)
	if s.Bytes() > before-8*page {
		t.Errorf("%d bytes, before %d", s.Bytes(), before)
	}
}
