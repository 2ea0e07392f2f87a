package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

// faulty is a file with faults in front of it.
type faulty struct {
	*devtest.Faults
	file *blockdev.File
}

func (f faulty) Facts() (blockdev.Facts, error) { return f.file.Facts() }

// withFaults opens files with rules in front of them.
func withFaults(rules ...devtest.Rule) openDevice {
	return func(path string, o blockdev.Options) (device, error) {
		file, err := blockdev.Open(path, o)
		if err != nil {
			return nil, err
		}
		f := faulty{devtest.NewFaults(file), file}
		for _, r := range rules {
			f.Inject(r)
		}
		return f, nil
	}
}

// counting opens files and lets the test see how often each kind of operation was called.
func counting(seen *faulty) openDevice {
	return func(path string, o blockdev.Options) (device, error) {
		d, err := withFaults()(path, o)
		if err == nil {
			*seen = d.(faulty)
		}
		return d, err
	}
}

// Each operation of each device fails once, at every place where it can: the sync says so, as what it is,
// and the next one completes.
func TestEveryDeviceErrorIsToldAndHealed(t *testing.T) {
	src := image(t, "src", 4*mib+1000, 5)
	old := image(t, "old", 4*mib+1000, 6)
	fresh := func() string {
		dst := filepath.Join(t.TempDir(), "dst")
		copyFile(t, old, dst)
		return dst
	}
	var reads, target faulty
	newSyncer(t).run(src, fresh(), func(o *SyncOptions) { o.openSource, o.openTarget = counting(&reads), counting(&target) })
	for _, c := range []struct {
		side string
		op   devtest.Op
		n    int
	}{
		{"source", devtest.OpRead, reads.Calls(devtest.OpRead)},
		{"source", devtest.OpMap, reads.Calls(devtest.OpMap)},
		{"target", devtest.OpRead, target.Calls(devtest.OpRead)},
		{"target", devtest.OpWrite, target.Calls(devtest.OpWrite)},
		{"target", devtest.OpZero, target.Calls(devtest.OpZero)},
		{"target", devtest.OpMap, target.Calls(devtest.OpMap)},
		{"target", devtest.OpFlush, target.Calls(devtest.OpFlush)},
	} {
		if c.n == 0 {
			t.Errorf("the sync under test never does %v on its %s", c.op, c.side)
		}
		for i := 1; i <= c.n; i++ {
			for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
				s, dst := newSyncer(t), fresh()
				open := withFaults(devtest.Rule{Op: c.op, When: devtest.Nth(i), Times: 1, Effect: devtest.Fail(errno)})
				_, err := s.try(t.Context(), src, dst, func(o *SyncOptions) {
					if c.side == "source" {
						o.openSource = open
					} else {
						o.openTarget = open
					}
				})
				if err == nil { // another order of the same operations: the nth was not reached
					mustEqual(t, src, dst)
					continue
				}
				if !errors.Is(err, errno) {
					t.Errorf("%s %v %d: got %v, want %v", c.side, c.op, i, err, errno)
				}
				wantKind(t, err, KindDevice)
				s.run(src, dst)
				mustEqual(t, src, dst)
			}
		}
	}
}

// What a disk loses, misplaces or garbles while it says that all is well, is found by reading it back.
func TestVerifyFindsWhatTheDiskDidNotWrite(t *testing.T) {
	src := denseImage(t, 8*mib, 7)
	for name, effect := range map[string]devtest.Effect{
		"lost": devtest.Lose(), "misdirected": devtest.Misdirect(4 * mib), "bit flip": devtest.Flip(12345),
	} {
		t.Run(name, func(t *testing.T) {
			s := newSyncer(t)
			dst := filepath.Join(t.TempDir(), "dst")
			// The disk damages one write: it is written again, and told.
			once := withFaults(devtest.Rule{Op: devtest.OpWrite, When: devtest.Touches(0, mib), Times: 1, Effect: effect})
			rep := s.run(src, dst, func(o *SyncOptions) { o.Verify, o.openTarget = true, once })
			if rep.RetriedBlocks == 0 {
				t.Error("nobody noticed")
			}
			if name != "misdirected" { // what it hit instead may have been read back before
				mustEqual(t, src, dst)
			}
			// It damages every write to one place: the sync ends, and says that the data are not right.
			always := withFaults(devtest.Rule{Op: devtest.OpWrite, When: devtest.Touches(0, mib), Effect: effect})
			_, err := s.try(t.Context(), src, filepath.Join(t.TempDir(), "dst"), func(o *SyncOptions) { o.Verify, o.openTarget = true, always })
			wantKind(t, err, KindIntegrity)
			// A later sync, on a disk that works, mends what is left.
			s.run(src, dst)
			mustEqual(t, src, dst)
		})
	}
}

// A flush that failed once is not trusted again: nothing is recorded as durable, and the next run compares.
func TestFailedFlushRecordsNothing(t *testing.T) {
	s := newSyncer(t)
	src := denseImage(t, 8*mib, 8)
	dst := filepath.Join(t.TempDir(), "dst")
	bad := withFaults(devtest.Rule{Op: devtest.OpFlush, When: devtest.Nth(1), Times: 1, Effect: devtest.Fail(syscall.EIO)})
	_, err := s.try(t.Context(), src, dst, func(o *SyncOptions) { o.openTarget, o.flushEvery = bad, time.Millisecond })
	wantKind(t, err, KindDevice)
	rep := s.run(src, dst)
	if rep.ResumedBytes != 0 {
		t.Errorf("went on at %d behind a flush that failed", rep.ResumedBytes)
	}
	mustEqual(t, src, dst)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	blob, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, blob, 0o600)
	}
	if err != nil {
		t.Fatal(fmt.Errorf("copy %s: %w", from, err))
	}
}
