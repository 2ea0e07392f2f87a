package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

var errShortWrite = io.ErrShortWrite

// history is what a workload did before it was stopped: what it asked for and what it was promised.
type history struct {
	appended journal.LSN // highest that Append was called for
	acked    journal.LSN // highest that Sync, Rotate or Close promised
	dropped  journal.LSN // records below may be gone
}

// work opens the log, goes on behind what is in it, and stops at the first error.
func (h *history) work(fs journal.FS, records int) error {
	var r run
	l, err := journal.Open(fs, testDir, small, r.replay)
	if err != nil {
		return err
	}
	defer l.Close()
	h.acked, h.appended = max(h.acked, r.last), max(h.appended, r.last)
	for i := range records {
		lsn := h.appended + 1
		h.appended = lsn
		got, err := l.Append(typeOf(lsn), bodyOf(lsn))
		if err != nil {
			return err
		}
		if got != lsn {
			return fmt.Errorf("append returned %d, want %d", got, lsn)
		}
		switch {
		case i%5 == 3:
			err = l.Sync(lsn - 1)
			if err == nil {
				h.acked = max(h.acked, lsn-1)
			}
		case i%17 == 11:
			_, err = l.Rotate()
			if err == nil {
				h.acked = lsn
			}
		case i == 25:
			segs := l.Segments()
			h.dropped = segs[2].First
			err = l.DropBefore(segs[2].Number)
		}
		if err != nil {
			return err
		}
	}
	if err := l.Close(); err != nil {
		return err
	}
	h.acked = h.appended
	return nil
}

// check opens what is left and compares it with the history.
func (h *history) check(fs *journaltest.MemFS) (run, error) {
	var r run
	l, err := journal.Open(fs, testDir, small, r.replay)
	if err != nil {
		return r, err
	}
	defer l.Close()
	switch first := l.Segments()[0].First; {
	case r.last < h.acked:
		return r, fmt.Errorf("records up to %d were promised, %v are there", h.acked, r)
	case r.last > h.appended:
		return r, fmt.Errorf("records up to %d were appended, %v are there", h.appended, r)
	case first > max(h.dropped, 1):
		return r, fmt.Errorf("log begins with %d, only what is below %d was dropped", first, h.dropped)
	}
	return r, nil
}

// workload makes a log, leaves it, opens it again and goes on: Open's own I/O is in it too.
func workload(fs journal.FS) (history, error) {
	var h history
	if err := h.work(fs, 40); err != nil {
		return h, err
	}
	err := h.work(fs, 20)
	return h, err
}

// Every operation fails in turn, with every kind of failure. What was promised must be there afterwards:
// for a process that starts anew on the same kernel, and after a power cut, whatever share of the
// unsynced bytes it keeps. Then the log must be good for more work, and for another power cut.
func TestLogSurvivesEveryFault(t *testing.T) {
	t.Parallel()
	clean := journaltest.New()
	if _, err := workload(clean); err != nil {
		t.Fatal(err)
	}
	ops := clean.Count(journaltest.OpAny)
	for _, cause := range []error{syscall.EIO, syscall.ENOSPC, journaltest.ErrShort} {
		for i := range ops {
			fs := journaltest.New()
			fs.Fail(journaltest.OpAny, i, cause)
			h, err := workload(fs)
			if fs.Struck() != 1 {
				t.Fatalf("fault %d did not strike", i)
			}
			if err == nil {
				t.Fatalf("operation %d failed with %v and nobody was told", i, cause)
			}
			fs.Heal()
			for seed := range uint64(8) {
				after := fs.Crash(seed)
				if seed == 7 {
					after = fs // no power cut: the process starts anew
				}
				if err := afterwards(h, after); err != nil {
					t.Fatalf("fault %v at operation %d of %d, seed %d: %v", cause, i, ops, seed, err)
				}
			}
		}
	}
}

// afterwards checks a log, works on it, and cuts the power once more.
func afterwards(h history, fs *journaltest.MemFS) error {
	r, err := h.check(fs)
	if err != nil {
		return err
	}
	// What recovery has shown is durable from then on.
	h = history{appended: r.last, acked: r.last, dropped: h.dropped}
	if again, err := h.check(fs.Crash(0)); err != nil || again != r {
		return fmt.Errorf("second recovery: %v, first %v: %w", again, r, err)
	}
	if r.last == 0 {
		return nil
	}
	if err := h.work(fs, 7); err != nil {
		return fmt.Errorf("work afterwards: %w", err)
	}
	_, err = h.check(fs.Crash(0))
	return err
}

// The operations of recovery itself fail too, on a log with a torn tail.
func TestRecoverySurvivesEveryFault(t *testing.T) {
	torn := func() (*journaltest.MemFS, history) {
		fs := journaltest.New()
		h := history{}
		if err := h.work(fs, 12); err != nil {
			t.Fatal(err)
		}
		l, err := journal.Open(fs, testDir, journal.Options{Kind: journal.KindVolume}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			h.appended++
			appendNext(t, l, h.appended)
		}
		fs.Fail(journaltest.OpSync, fs.Count(journaltest.OpSync), syscall.EIO)
		if l.Sync(h.appended) == nil {
			t.Fatal("sync did not fail")
		}
		fs.Heal()
		return fs, h
	}
	for i := 0; ; i++ {
		fs, h := torn()
		fs.Fail(journaltest.OpAny, fs.Count(journaltest.OpAny)+i, syscall.EIO)
		l, err := journal.Open(fs, testDir, small, nil)
		if err == nil {
			l.Close()
			if fs.Struck() == 1 {
				return // the fault of torn, and none of ours: recovery has no more operations
			}
			continue // struck in Close, or where nothing was at stake
		}
		fs.Heal()
		for seed := range uint64(6) {
			if err := afterwards(h, fs.Crash(seed)); err != nil {
				t.Fatalf("fault at operation %d of recovery, seed %d: %v", i, seed, err)
			}
		}
		if err := afterwards(h, fs); err != nil {
			t.Fatalf("fault at operation %d of recovery: %v", i, err)
		}
	}
}

// layout is a log in one segment: where each record begins, and the bytes.
type layout struct {
	off  []int // of record i+1; one more: the end
	data []byte
}

const onlySegment = testDir + "/0000000001.seg"

// syncedEach appends n records with a sync behind each, so that each says that all before it are durable;
// then more records in one batch that nothing says anything about.
func syncedEach(t *testing.T, fs *journaltest.MemFS, n, batch journal.LSN) layout {
	t.Helper()
	l := fill(t, fs, journal.Options{Kind: journal.KindVolume}, 0)
	var at layout
	for lsn := journal.LSN(1); lsn <= n+batch; lsn++ {
		at.off = append(at.off, int(l.Segments()[0].Bytes))
		appendNext(t, l, lsn)
		if lsn <= n {
			if err := l.Sync(lsn); err != nil {
				t.Fatal(err)
			}
		}
	}
	at.off = append(at.off, int(l.Segments()[0].Bytes))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	at.data = fs.Read(onlySegment)
	return at
}

// Records 1 to 5 were synced one by one, 6 to 9 were one batch.
func TestRecoveryTellsTornFromDamaged(t *testing.T) {
	flip := func(record, at int) func(layout) []byte {
		return func(l layout) []byte { l.data[l.off[record-1]+at] ^= 0x10; return l.data }
	}
	cases := map[string]struct {
		change func(l layout) []byte
		last   journal.LSN // that is replayed
		hole   int         // record whose offset the error names
	}{
		"nothing":                      {func(l layout) []byte { return l.data }, 9, 0},
		"zeroes behind":                {func(l layout) []byte { return append(l.data, make([]byte, 4096)...) }, 9, 0},
		"garbage behind":               {func(l layout) []byte { return append(l.data, bytes.Repeat([]byte{0xff}, 999)...) }, 9, 0},
		"last record cut":              {func(l layout) []byte { return l.data[:l.off[8]+33] }, 8, 0},
		"last frame header cut":        {func(l layout) []byte { return l.data[:l.off[8]+5] }, 8, 0},
		"last body flipped":            {flip(9, 32), 8, 0},
		"last header flipped":          {flip(9, 0), 8, 0},
		"batch torn in the middle":     {flip(7, 33), 6, 0},
		"batch torn at its beginning":  {flip(6, 8), 5, 0},
		"batch lost":                   {func(l layout) []byte { return l.data[:l.off[5]] }, 5, 0},
		"batch never written":          {func(l layout) []byte { clear(l.data[l.off[5]:]); return l.data }, 5, 0},
		"synced length flipped":        {flip(2, 1), 0, 2},
		"synced type flipped":          {flip(2, 4), 0, 2},
		"synced LSN flipped":           {flip(3, 8), 0, 3},
		"synced durable flipped":       {flip(3, 16), 0, 3},
		"synced body flipped":          {flip(4, 32), 0, 4},
		"last synced record flipped":   {flip(5, 33), 0, 5}, // the batch says that 5 was durable
		"first record flipped":         {flip(1, 12), 0, 1},
		"synced records zeroed":        {func(l layout) []byte { clear(l.data[l.off[1]:l.off[3]]); return l.data }, 0, 2},
		"record over another":          {func(l layout) []byte { copy(l.data[l.off[1]:], l.data[l.off[3]:l.off[4]]); return l.data }, 0, 2},
		"cut at a synced record":       {func(l layout) []byte { return l.data[:l.off[3]] }, 3, 0}, // cannot be told
		"torn body, header is a proof": {func(l layout) []byte { l.data[l.off[2]] ^= 1; return l.data[:l.off[5]+33] }, 0, 3},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			fs := journaltest.New()
			at := syncedEach(t, fs, 5, 4)
			data := c.change(layout{at.off, slices.Clone(at.data)})
			fs.Write(onlySegment, data)
			var r run
			// Not small: what is appended must go into this segment, over the bytes that were cut.
			l, err := journal.Open(fs, testDir, journal.Options{Kind: journal.KindVolume}, r.replay)
			if c.hole == 0 {
				if err != nil || r.last != c.last {
					t.Fatalf("replayed %v, %v; want up to %d", r, err, c.last)
				}
				appendNext(t, l, r.last+1) // goes where the tail was cut
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				if got := mustReplay(t, fs.Crash(0), small); got.last != c.last+1 {
					t.Errorf("after one more record: %v", got)
				}
				return
			}
			wantDamage(t, err, onlySegment, int64(at.off[c.hole-1]))
			if !bytes.Equal(fs.Read(onlySegment), data) {
				t.Error("a damaged log was changed")
			}
		})
	}
}

func wantDamage(t *testing.T, err error, path string, off int64) {
	t.Helper()
	var d *journal.DamagedError
	if !errors.Is(err, journal.ErrDamaged) || !errors.As(err, &d) {
		t.Fatalf("got %v, want damage", err)
	}
	if d.Path != path || d.Offset != off {
		t.Errorf("damage is told at %s, %d; it is at %s, %d", d.Path, d.Offset, path, off)
	}
}

// In a segment that has a successor nothing can be torn.
func TestRecoverySealedSegments(t *testing.T) {
	cases := map[string]struct {
		change func(fs *journaltest.MemFS, segs []journal.SegmentInfo)
		seg    int // that the error names
		off    int64
	}{
		"tail of a sealed segment torn": {func(fs *journaltest.MemFS, s []journal.SegmentInfo) {
			data := fs.Read(s[1].Path)
			fs.Write(s[1].Path, data[:64])
		}, 1, 64},
		"segment missing": {func(fs *journaltest.MemFS, s []journal.SegmentInfo) { fs.Remove(s[2].Path) }, 3, 0},
		"segments swapped": {func(fs *journaltest.MemFS, s []journal.SegmentInfo) {
			a, b := fs.Read(s[1].Path), fs.Read(s[2].Path)
			fs.Write(s[1].Path, b)
			fs.Write(s[2].Path, a)
		}, 1, 0},
		"segment of another log": {func(fs *journaltest.MemFS, s []journal.SegmentInfo) {
			other := journaltest.New()
			l, _ := journal.Open(other, testDir, small, nil)
			for lsn := journal.LSN(1); lsn < 60; lsn++ {
				l.Append(typeOf(lsn), bodyOf(lsn))
			}
			l.Close()
			fs.Write(s[3].Path, other.Read(s[3].Path))
		}, 3, 0},
		"header damaged": {func(fs *journaltest.MemFS, s []journal.SegmentInfo) {
			data := fs.Read(s[0].Path)
			data[20] ^= 1
			fs.Write(s[0].Path, data)
		}, 0, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			fs := journaltest.New()
			l := fill(t, fs, small, 60)
			segs := l.Segments()
			l.Close()
			c.change(fs, segs)
			_, err := journal.Open(fs, testDir, small, nil)
			wantDamage(t, err, segs[c.seg].Path, c.off)
		})
	}
}

// A file that was used before must not be mistaken for part of the log: bytes of an older segment, whole
// valid records of it, stand behind the tail.
func TestRecoveryIgnoresFormerBytes(t *testing.T) {
	fs := journaltest.New()
	at := syncedEach(t, fs, 3, 0)
	older := journaltest.New()
	old := syncedEach(t, older, 9, 0)
	fs.Write(onlySegment, append(slices.Clone(at.data), old.data[len(at.data):]...))
	if got := mustReplay(t, fs, small); got.last != 3 {
		t.Errorf("replayed %v, want up to 3", got)
	}
}

func TestRecoveryRemovesUnfinishedSegments(t *testing.T) {
	fs := journaltest.New()
	fill(t, fs, small, 2).Close()
	fs.Write(testDir+"/0000000002.seg.tmp", []byte("half a hea"))
	fs.Write(testDir+"/notes.txt", []byte("not ours"))
	mustReplay(t, fs, small)
	if got := fmt.Sprint(fs.Paths()); got != "["+onlySegment+" "+testDir+"/notes.txt]" {
		t.Errorf("left: %s", got)
	}
}

func TestReplayErrorEndsOpen(t *testing.T) {
	fs := journaltest.New()
	fill(t, fs, small, 3).Close()
	cause := errors.New("no")
	_, err := journal.Open(fs, testDir, small, func(lsn journal.LSN, _ journal.Type, _ []byte) error {
		if lsn == 2 {
			return cause
		}
		return nil
	})
	if !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

// FuzzSegment opens a log whose only segment is any bytes: it must not panic, and what it accepts once it
// must accept again, unchanged, after a crash.
func FuzzSegment(f *testing.F) {
	t := &testing.T{}
	fs := journaltest.New()
	at := syncedEach(t, fs, 4, 3)
	f.Add(at.data, 0, byte(0))
	f.Add(at.data, at.off[2]+3, byte(1))
	f.Add(at.data[:at.off[6]+9], at.off[5], byte(0x80))
	f.Add(at.data[:64], 0, byte(0))
	f.Add(append(slices.Clone(at.data), make([]byte, 100)...), len(at.data)-1, byte(7))
	f.Fuzz(func(t *testing.T, data []byte, where int, flip byte) {
		data = slices.Clone(data)
		if where >= 0 && where < len(data) {
			data[where] ^= flip
		}
		fs := journaltest.New()
		fs.Mkdir(testDir)
		fs.Write(onlySegment, data)
		collect := func(to *[]string) journal.Replay {
			return func(lsn journal.LSN, t journal.Type, body []byte) error {
				*to = append(*to, fmt.Sprintf("%d %d %x", lsn, t, body))
				return nil
			}
		}
		var first, second []string
		l, err := journal.Open(fs, testDir, small, collect(&first))
		if err != nil {
			return
		}
		defer l.Close()
		again, err := journal.Open(fs.Crash(0), testDir, small, collect(&second))
		if err != nil || !slices.Equal(first, second) {
			t.Fatalf("first %v, then %v, %v", first, second, err)
		}
		again.Close()
	})
}
