package journal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"sync"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

const testDir = "state/log"

// small makes segments and buffers so small that a few records go through every path.
var small = journal.Options{Kind: journal.KindVolume, SegmentSize: 512, BufferSize: 128}

// bodyOf is what record lsn holds in these tests: its length and bytes tell records apart.
func bodyOf(lsn journal.LSN) []byte {
	return bytes.Repeat([]byte{byte(lsn), byte(lsn >> 8), 0xa5}, int(lsn*7%40))
}

func typeOf(lsn journal.LSN) journal.Type { return journal.Type(lsn%200 + 1) }

// run is what a replay has shown: records first to last, checked one by one.
type run struct{ first, last journal.LSN }

func (r *run) replay(lsn journal.LSN, t journal.Type, body []byte) error {
	if r.first == 0 {
		r.first = lsn
	} else if lsn != r.last+1 {
		return fmt.Errorf("record %d follows %d", lsn, r.last)
	}
	r.last = lsn
	if t != typeOf(lsn) || !bytes.Equal(body, bodyOf(lsn)) {
		return fmt.Errorf("record %d is not what was appended: type %d, %x", lsn, t, body)
	}
	return nil
}

// appendNext appends the record that bodyOf says.
func appendNext(t *testing.T, l *journal.Log, lsn journal.LSN) {
	t.Helper()
	got, err := l.Append(typeOf(lsn), bodyOf(lsn))
	if err != nil || got != lsn {
		t.Fatalf("append %d: %d, %v", lsn, got, err)
	}
}

// fill opens a log on fs and appends records 1 to n, all of them durable.
func fill(t *testing.T, fs journal.FS, o journal.Options, n journal.LSN) *journal.Log {
	t.Helper()
	l, err := journal.Open(fs, testDir, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	for lsn := journal.LSN(1); lsn <= n; lsn++ {
		appendNext(t, l, lsn)
	}
	if err := l.Sync(n); err != nil {
		t.Fatal(err)
	}
	return l
}

// mustReplay opens and closes the log and returns what it holds.
func mustReplay(t *testing.T, fs journal.FS, o journal.Options) run {
	t.Helper()
	var r run
	l, err := journal.Open(fs, testDir, o, r.replay)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLogKeepsRecordsOverSegments(t *testing.T) {
	for name, fsys := range map[string]journal.FS{"memory": journaltest.New(), "os": osIn(t.TempDir())} {
		t.Run(name, func(t *testing.T) {
			l := fill(t, fsys, small, 100)
			segs := l.Segments()
			if len(segs) < 5 {
				t.Fatalf("100 records are in %d segments", len(segs))
			}
			for i, s := range segs {
				if s.Number != uint64(i+1) || s.Bytes > small.SegmentSize {
					t.Errorf("segment %d: %+v", i, s)
				}
			}
			if err := l.DropBefore(3); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if got, want := mustReplay(t, fsys, small), (run{segs[2].First, 100}); got != want {
				t.Errorf("replayed %v, want %v", got, want)
			}
		})
	}
}

// osIn roots the operating system's file system in a folder.
func osIn(root string) journal.FS { return rooted{journal.OS, root + "/"} }

type rooted struct {
	journal.FS
	root string
}

func (r rooted) Create(p string) (journal.File, error)       { return r.FS.Create(r.root + p) }
func (r rooted) Open(p string, w bool) (journal.File, error) { return r.FS.Open(r.root+p, w) }
func (r rooted) Rename(from, to string) error                { return r.FS.Rename(r.root+from, r.root+to) }
func (r rooted) Remove(p string) error                       { return r.FS.Remove(r.root + p) }
func (r rooted) Mkdir(p string) error                        { return r.FS.Mkdir(r.root + p) }
func (r rooted) ReadDir(p string) ([]string, error)          { return r.FS.ReadDir(r.root + p) }
func (r rooted) SyncDir(p string) error                      { return r.FS.SyncDir(r.root + p) }

func TestLogRotate(t *testing.T) {
	fsys := journaltest.New()
	l := fill(t, fsys, journal.Options{Kind: journal.KindVolume}, 3)
	defer l.Close()
	for range 2 { // the second time the last segment is empty
		n, err := l.Rotate()
		if err != nil || n != 2 {
			t.Fatalf("rotate: %d, %v", n, err)
		}
	}
	appendNext(t, l, 4)
	segs := l.Segments()
	if len(segs) != 2 || segs[0].First != 1 || segs[1].First != 4 {
		t.Errorf("segments %+v", segs)
	}
	if l.Durable() != 3 {
		t.Errorf("durable is %d after a rotation behind 3", l.Durable())
	}
}

func TestLogKeepsHugeRecords(t *testing.T) {
	fsys := journaltest.New()
	l, err := journal.Open(fsys, testDir, small, nil)
	if err != nil {
		t.Fatal(err)
	}
	huge := bytes.Repeat([]byte("x"), journal.MaxBody)
	for _, body := range [][]byte{nil, huge, {1}} {
		if _, err := l.Append(1, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var sizes []int
	l, err = journal.Open(fsys, testDir, small, func(_ journal.LSN, _ journal.Type, body []byte) error {
		sizes = append(sizes, len(body))
		return nil
	})
	if err != nil || fmt.Sprint(sizes) != fmt.Sprint([]int{0, journal.MaxBody, 1}) {
		t.Fatalf("replayed %v, %v", sizes, err)
	}
	l.Close()
}

func TestLogRefusesMisuse(t *testing.T) {
	l := fill(t, journaltest.New(), small, 1)
	if _, err := l.Append(0, nil); !errors.Is(err, journal.ErrType) {
		t.Errorf("type 0: %v", err)
	}
	if _, err := l.Append(1, make([]byte, journal.MaxBody+1)); !errors.Is(err, journal.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := l.Sync(2); !errors.Is(err, journal.ErrNoRecord) {
		t.Errorf("sync of a future record: %v", err)
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if _, err := l.Append(1, nil); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if _, err := l.Rotate(); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("rotate after close: %v", err)
	}
	if err := l.DropBefore(9); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("drop after close: %v", err)
	}
	if err := l.Sync(1); err != nil {
		t.Errorf("sync of a durable record after close: %v", err)
	}
}

func TestLogGroupCommit(t *testing.T) {
	fsys := journaltest.New()
	o := journal.Options{Kind: journal.KindVolume, SegmentSize: 8 << 10, BufferSize: 1 << 10}
	l, err := journal.Open(fsys, testDir, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 32, 40
	var wg sync.WaitGroup
	var mu sync.Mutex
	appended := map[journal.LSN]string{}
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				body := fmt.Sprintf("writer %d record %d", w, i)
				lsn, err := l.AppendSync(1, []byte(body))
				if err != nil {
					t.Errorf("%s: %v", body, err)
					return
				}
				mu.Lock()
				appended[lsn] = body
				mu.Unlock()
				if i == each/2 && w%8 == 0 {
					if _, err := l.Rotate(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	// No Close: what AppendSync promised must be there after the worst of crashes.
	seen := map[journal.LSN]string{}
	after, err := journal.Open(fsys.Crash(0), testDir, o, func(lsn journal.LSN, _ journal.Type, body []byte) error {
		seen[lsn] = string(body)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if len(seen) != writers*each {
		t.Fatalf("%d of %d records survived", len(seen), writers*each)
	}
	for lsn, body := range appended {
		if seen[lsn] != body {
			t.Errorf("record %d is %q, was %q", lsn, seen[lsn], body)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// One sync covers what was appended before it, however many ask for it.
func TestLogSyncIsShared(t *testing.T) {
	fsys := journaltest.New()
	l := fill(t, fsys, journal.Options{Kind: journal.KindVolume}, 1)
	defer l.Close()
	before := fsys.Count(journaltest.OpSync)
	for lsn := journal.LSN(2); lsn <= 50; lsn++ {
		appendNext(t, l, lsn)
	}
	var wg sync.WaitGroup
	for lsn := journal.LSN(50); lsn >= 2; lsn-- {
		wg.Go(func() {
			if err := l.Sync(lsn); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := fsys.Count(journaltest.OpSync) - before; n != 1 {
		t.Errorf("%d syncs for one batch", n)
	}
}

func TestLogErrorIsSticky(t *testing.T) {
	cases := map[string]struct {
		op  journaltest.Op
		err error
	}{
		"write":       {journaltest.OpWrite, syscall.EIO},
		"no space":    {journaltest.OpWrite, syscall.ENOSPC},
		"short write": {journaltest.OpWrite, journaltest.ErrShort},
		"sync":        {journaltest.OpSync, syscall.EIO},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			fsys := journaltest.New()
			l := fill(t, fsys, journal.Options{Kind: journal.KindVolume}, 5)
			fsys.Fail(c.op, fsys.Count(c.op), c.err)
			for lsn := journal.LSN(6); lsn <= 20; lsn++ {
				appendNext(t, l, lsn)
			}
			// Every waiter is told the cause, and so is every later caller, though the fault is gone.
			var wg sync.WaitGroup
			for lsn := journal.LSN(6); lsn <= 20; lsn++ {
				wg.Go(func() { wantFailed(t, l.Sync(lsn), c.err) })
			}
			wg.Wait()
			fsys.Heal()
			_, err := l.Append(1, nil)
			wantFailed(t, err, c.err)
			_, err = l.Rotate()
			wantFailed(t, err, c.err)
			wantFailed(t, l.DropBefore(1), c.err)
			if err := l.Sync(5); err != nil {
				t.Errorf("what was durable before is not: %v", err)
			}
			wantFailed(t, l.Close(), c.err)
			if got := mustReplay(t, fsys, small); got.last < 5 {
				t.Errorf("after reopening: %v", got)
			}
		})
	}
}

func wantFailed(t *testing.T, err, cause error) {
	t.Helper()
	if cause == journaltest.ErrShort {
		cause = errShortWrite
	}
	if !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause %v", err, cause)
	}
}

// resummed makes the header of a segment whole again.
func resummed(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestLogOpenTellsVersionsAndKinds(t *testing.T) {
	path := testDir + "/0000000001.seg"
	cases := map[string]struct {
		change func(b []byte) []byte
		kind   journal.Kind
		want   error
	}{
		"another version": {func(b []byte) []byte { b[8]++; return resummed(b) }, journal.KindVolume, journal.ErrVersion},
		"rotten version":  {func(b []byte) []byte { b[8]++; return b }, journal.KindVolume, journal.ErrDamaged},
		"another magic":   {func(b []byte) []byte { b[0]++; return b }, journal.KindVolume, journal.ErrDamaged},
		"another kind":    {func(b []byte) []byte { return b }, journal.KindSync, journal.ErrKind},
		"header checksum": {func(b []byte) []byte { b[60]++; return b }, journal.KindVolume, journal.ErrDamaged},
		"header short":    {func(b []byte) []byte { return b[:63] }, journal.KindVolume, journal.ErrDamaged},
		"empty":           {func(b []byte) []byte { return nil }, journal.KindVolume, journal.ErrDamaged},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			fsys := journaltest.New()
			fill(t, fsys, small, 3).Close()
			before := c.change(fsys.Read(path))
			fsys.Write(path, before)
			_, err := journal.Open(fsys, testDir, journal.Options{Kind: c.kind}, nil)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if !bytes.Equal(fsys.Read(path), before) {
				t.Error("a log that was not understood was changed")
			}
		})
	}
}

func TestLockDir(t *testing.T) {
	dir := t.TempDir() + "/a/b"
	release, err := journal.LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.LockDir(dir); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	release()
	release, err = journal.LockDir(dir)
	if err != nil {
		t.Errorf("lock after release: %v", err)
	}
	release()
	if _, err := journal.OS.Open(dir+"/none", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of nothing: %v", err)
	}
}
