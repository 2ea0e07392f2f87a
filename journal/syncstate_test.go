package journal_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
	"github.com/google/go-cmp/cmp"
)

const syncDir = "state/target"

var zeroState journal.SyncState

// step is one call and the state that it leaves.
type step struct {
	call func(*journal.SyncLog) error
	want journal.SyncState
}

// syncSteps is two runs: an interrupted one, and one that takes up its position and reaches the end.
func syncSteps() []step {
	begin := journal.SyncState{Source: hashOf(1, 0), BlockSize: 65536, Size: 1 << 30}
	var steps []step
	add := func(call func(*journal.SyncLog) error, want journal.SyncState) {
		steps = append(steps, step{call, want})
	}
	start := func(s journal.SyncState) {
		add(func(l *journal.SyncLog) error { return l.Begin(s) }, s)
	}
	progress := func(s journal.SyncState, position int64) journal.SyncState {
		s.Position, s.LastHash = position, hashOf(uint64(position), 1)
		add(func(l *journal.SyncLog) error { return l.Progress(position, s.LastHash) }, s)
		return s
	}
	settle := func(s journal.SyncState, facts string, complete bool) journal.SyncState {
		s.Complete, s.Facts = complete, nil
		if facts != "" {
			s.Facts = []byte(facts)
		}
		add(func(l *journal.SyncLog) error { return l.Settle([]byte(facts), complete) }, s)
		return s
	}
	start(begin)
	s := progress(begin, 64<<20)
	s = progress(s, 128<<20)
	s = settle(s, `{"mtime":1}`, false)
	s.Facts = nil
	start(s)
	s = progress(s, 1<<30)
	s = settle(s, `{"mtime":2}`, true)
	s.Facts, s.Complete, s.Position = nil, false, 0
	start(s)
	settle(s, "", false)
	return steps
}

// runSteps calls them until one fails; it returns the states before and behind the one that failed, which
// are the same if none did.
func runSteps(fs journal.FS) (before, behind journal.SyncState, err error) {
	l, err := journal.OpenSync(fs, syncDir)
	if err != nil {
		return zeroState, zeroState, err
	}
	defer l.Close()
	for _, s := range syncSteps() {
		if err := s.call(l); err != nil {
			return before, s.want, err
		}
		before = s.want
		if got := l.State(); !cmp.Equal(got, before) {
			return before, before, fmt.Errorf("state: %s", cmp.Diff(before, got))
		}
	}
	return before, before, l.Close()
}

// Whatever operation fails, and whatever a power cut takes: the state that is found is the last that was
// promised, or the one that was being written.
func TestSyncStateSurvivesEveryFault(t *testing.T) {
	clean := journaltest.New()
	if _, _, err := runSteps(clean); err != nil {
		t.Fatal(err)
	}
	for i := range clean.Count(journaltest.OpAny) {
		fs := journaltest.New()
		fs.Fail(journaltest.OpAny, i, syscall.EIO)
		before, behind, err := runSteps(fs)
		if err == nil {
			t.Fatalf("operation %d failed and nobody was told", i)
		}
		fs.Heal()
		for seed := range uint64(9) {
			after := fs.Crash(seed)
			if seed == 8 {
				after = fs
			}
			l, err := journal.OpenSync(after, syncDir)
			if err != nil {
				t.Fatalf("operation %d, seed %d: %v", i, seed, err)
			}
			got := l.State()
			if !cmp.Equal(got, before) && !cmp.Equal(got, behind) {
				t.Fatalf("operation %d, seed %d: %s", i, seed, cmp.Diff(before, got))
			}
			l.Close()
		}
	}
}

func TestSyncLogIsCompacted(t *testing.T) {
	fs := journaltest.New()
	l, err := journal.OpenSync(fs, syncDir)
	must(t, err)
	state := journal.SyncState{BlockSize: 4096, Size: 1 << 40}
	for n := range int64(5) {
		state.Position = n * 4096
		must(t, l.Begin(state))
		must(t, l.Progress(n*4096+4096, hashOf(1, 1)))
	}
	must(t, l.Close())
	if files := fs.Paths(); len(files) != 1 || len(fs.Read(files[0])) > 400 {
		t.Errorf("after five runs: %v", files)
	}
}

func TestSyncLogRefusesMisuse(t *testing.T) {
	l, err := journal.OpenSync(journaltest.New(), syncDir)
	must(t, err)
	defer l.Close()
	if !cmp.Equal(l.State(), zeroState) {
		t.Errorf("fresh: %+v", l.State())
	}
	if err := l.Progress(1, [32]byte{}); !errors.Is(err, journal.ErrNotBegun) {
		t.Errorf("progress: %v", err)
	}
	if err := l.Settle(nil, true); !errors.Is(err, journal.ErrNotBegun) {
		t.Errorf("settle: %v", err)
	}
	if err := l.Begin(zeroState); !errors.Is(err, journal.ErrState) {
		t.Errorf("begin: %v", err)
	}
	must(t, l.Begin(journal.SyncState{BlockSize: 4096, Size: 8192}))
	if err := l.Progress(8193, [32]byte{}); !errors.Is(err, journal.ErrState) {
		t.Errorf("progress behind the end: %v", err)
	}
	if err := l.Settle(make([]byte, journal.MaxFacts+1), true); !errors.Is(err, journal.ErrTooLarge) {
		t.Errorf("long facts: %v", err)
	}
	must(t, l.Settle([]byte("facts"), true)) // a refusal is no failure
}

func TestSetAsideSync(t *testing.T) {
	fs := journaltest.New()
	for round := range 3 {
		if _, _, err := runSteps(fs); err != nil {
			t.Fatal(err)
		}
		path := fs.Paths()[len(fs.Paths())-1] // those set aside sort first
		data := fs.Read(path)
		data[70] ^= 1
		fs.Write(path, data)
		if _, err := journal.OpenSync(fs, syncDir); !errors.Is(err, journal.ErrDamaged) {
			t.Fatalf("open: %v", err)
		}
		to, err := journal.SetAsideSync(fs, syncDir)
		must(t, err)
		want := syncDir + "/log.damaged" + []string{"", ".2", ".3"}[round]
		if to != want {
			t.Errorf("set aside as %s, want %s", to, want)
		}
		fs = fs.Crash(0)
		l, err := journal.OpenSync(fs, syncDir)
		must(t, err)
		if !cmp.Equal(l.State(), zeroState) {
			t.Errorf("state: %+v", l.State())
		}
		must(t, l.Close())
		for _, p := range fs.Paths() {
			if strings.HasPrefix(p, syncDir+"/log/") {
				must(t, fs.Remove(p))
			}
		}
	}
}
