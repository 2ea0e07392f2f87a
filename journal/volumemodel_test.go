package journal_test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
	"github.com/google/go-cmp/cmp"
)

// volumeHistory is what a workload asked for and was promised. Every mark is of a region of its own, every
// facts have a cut of their own.
type volumeHistory struct {
	marked uint64          // regions 1 to this were marked, in this order
	synced uint64          // regions up to this durably
	gone   map[uint64]bool // marks that a crash took before they were promised

	cut    uint64 // facts with cuts 1 to this were appended
	facted uint64 // durably up to this

	checkpoints []checkpointed // all that were begun and might count
	finished    int            // index of the last that Finish has promised; -1: none
}

type checkpointed struct {
	number uint64
	from   uint64 // regions above were marked behind T
	hot    []uint64
}

func (h *volumeHistory) work(fs journal.FS, rounds int) error {
	l, state, err := journal.OpenVolume(fs, volumeDir, smallVolume)
	if err != nil {
		return err
	}
	defer l.Close()
	if !state.Found {
		if err := h.facts(l, true); err != nil {
			return err
		}
	}
	for i := range rounds {
		regions := []uint64{h.marked + 1, h.marked + 2}
		h.marked += 2
		lsn, err := l.Mark(regions)
		if err == nil && i%3 == 1 {
			err = l.Sync(lsn)
			if err == nil {
				h.synced, h.facted = h.marked, h.cut
			}
		}
		if err == nil && i%4 == 2 {
			err = h.facts(l, i%8 == 2)
		}
		if err == nil && i%13 == 12 {
			err = h.takeCheckpoint(l)
		}
		if err != nil {
			return err
		}
	}
	if err := l.Close(); err != nil {
		return err
	}
	h.synced, h.facted = h.marked, h.cut
	return nil
}

func (h *volumeHistory) facts(l *journal.VolumeLog, durable bool) error {
	h.cut++
	if !durable {
		_, err := l.AppendFacts(factsOf(h.cut))
		return err
	}
	err := l.SetFacts(factsOf(h.cut))
	if err == nil {
		h.facted, h.synced = h.cut, h.marked
	}
	return err
}

// takeCheckpoint abandons every third. Marks and facts go on meanwhile.
func (h *volumeHistory) takeCheckpoint(l *journal.VolumeLog) error {
	c, err := l.BeginCheckpoint()
	if err != nil {
		return err
	}
	one := checkpointed{number: uint64(len(h.checkpoints)) + 1, from: h.marked, hot: []uint64{h.marked / 2, 7}}
	h.checkpoints = append(h.checkpoints, one)
	h.marked++
	if _, err := l.Mark([]uint64{h.marked}); err != nil {
		return err
	}
	if err := h.facts(l, false); err != nil {
		return err
	}
	if one.number%3 == 2 {
		c.Abandon()
		return nil
	}
	h.cut++
	err = c.Finish(factsOf(h.cut), setsOf(one.number), one.hot)
	if err == nil {
		h.finished, h.facted, h.synced = int(one.number)-1, h.cut, h.marked
	}
	return err
}

// check opens what is left and compares it with the history.
func (h *volumeHistory) check(fs *journaltest.MemFS) (*journal.VolumeState, error) {
	l, state, err := journal.OpenVolume(fs, volumeDir, smallVolume)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if !state.Found {
		if h.facted > 0 {
			return nil, fmt.Errorf("facts of cut %d were promised, none are there", h.facted)
		}
		return state, nil
	}
	cut := state.Facts.Cut
	if cut < h.facted || cut > h.cut {
		return nil, fmt.Errorf("facts of cut %d were promised, %d appended, %d are there", h.facted, h.cut, cut)
	}
	if !cmp.Equal(state.Facts, factsOf(cut)) {
		return nil, fmt.Errorf("facts of cut %d: %s", cut, cmp.Diff(factsOf(cut), state.Facts))
	}
	return state, h.checkCheckpoint(state)
}

// checkCheckpoint wants the last checkpoint that was promised or the one that was being finished, and with
// it every mark since its T.
func (h *volumeHistory) checkCheckpoint(state *journal.VolumeState) error {
	candidates := []checkpointed{{}} // as if one was taken before everything
	if h.finished >= 0 {
		candidates[0] = h.checkpoints[h.finished]
	}
	if n := len(h.checkpoints); n > h.finished+1 {
		candidates = append(candidates, h.checkpoints[n-1])
	}
	for _, c := range candidates {
		if !sameSets(state.Sets, setsOf(c.number)) {
			continue
		}
		for r := c.from + 1; r <= h.synced; r++ {
			if !slices.Contains(state.Hot, r) && !h.gone[r] {
				return fmt.Errorf("checkpoint %d, mark %d of %d is lost: %d", c.number, r, h.synced, state.Hot)
			}
		}
		for _, r := range state.Hot {
			if (r <= c.from || r > h.marked) && !slices.Contains(c.hot, r) {
				return fmt.Errorf("checkpoint %d, nobody marked %d: %d", c.number, r, state.Hot)
			}
		}
		for _, r := range c.hot {
			if !slices.Contains(state.Hot, r) {
				return fmt.Errorf("checkpoint %d, listed region %d is lost: %d", c.number, r, state.Hot)
			}
		}
		return nil
	}
	return fmt.Errorf("sets are of no checkpoint in %+v", candidates)
}

func volumeWorkload(fs journal.FS) (*volumeHistory, error) {
	h := &volumeHistory{finished: -1}
	if err := h.work(fs, 44); err != nil {
		return h, err
	}
	return h, h.work(fs, 16)
}

// Every operation fails in turn, with every kind of failure. What was promised must be there afterwards:
// for a process that starts anew on the same kernel, and after a power cut, whatever share of the
// unsynced bytes it keeps. Then the journal must be good for more work, and for another power cut.
func TestVolumeSurvivesEveryFault(t *testing.T) {
	t.Parallel()
	clean := journaltest.New()
	if _, err := volumeWorkload(clean); err != nil {
		t.Fatal(err)
	}
	ops := clean.Count(journaltest.OpAny)
	const restart = 99 // no power cut: the process starts anew
	silent := 0
	for n, cause := range []error{syscall.EIO, syscall.ENOSPC, journaltest.ErrShort} {
		seeds := []uint64{0, 1, 2, restart}
		if n > 0 {
			seeds = []uint64{3, restart} // what the others leave is much the same
		}
		for i := range ops {
			fs := journaltest.New()
			fs.Fail(journaltest.OpAny, i, cause)
			h, err := volumeWorkload(fs)
			if fs.Struck() != 1 {
				t.Fatalf("fault %d did not strike", i)
			}
			if err == nil {
				silent++
			}
			fs.Heal()
			for _, seed := range seeds {
				after := fs.Crash(seed)
				if seed == restart {
					after = fs
				}
				if err := volumeAfterwards(h, after); err != nil {
					t.Fatalf("fault %v at operation %d of %d, seed %d: %v", cause, i, ops, seed, err)
				}
			}
		}
	}
	// Only to make room ahead may fail without a word: see TestVolumeTellsThatNoRoomCouldBeKept.
	if spares := clean.Count(journaltest.OpAllocate); silent > 3*4*spares {
		t.Errorf("%d faults were not told, and room was made %d times", silent, spares)
	}
}

// A power cut without a fault before it, at every operation.
func TestVolumeSurvivesEveryCrash(t *testing.T) {
	t.Parallel()
	clean := journaltest.New()
	if _, err := volumeWorkload(clean); err != nil {
		t.Fatal(err)
	}
	for i := range clean.Count(journaltest.OpAny) {
		// Everything fails from i on: the process has stopped there.
		fs := journaltest.New()
		for at := i; at < i+200; at++ {
			fs.Fail(journaltest.OpAny, at, syscall.EIO)
		}
		h, err := volumeWorkload(fs)
		if err == nil {
			t.Fatalf("everything failed from %d on, and nobody was told", i)
		}
		fs.Heal()
		for seed := range uint64(6) {
			if err := volumeAfterwards(h, fs.Crash(seed)); err != nil {
				t.Fatalf("stopped at operation %d, seed %d: %v", i, seed, err)
			}
		}
	}
}

// volumeAfterwards checks a journal, works on it, and cuts the power once more.
func volumeAfterwards(h *volumeHistory, fs *journaltest.MemFS) error {
	state, err := h.check(fs)
	if err != nil {
		return err
	}
	again, err := h.check(fs.Crash(0))
	if err != nil {
		return fmt.Errorf("second recovery: %w", err)
	}
	if !cmp.Equal(state.Facts, again.Facts) || !slices.Equal(state.Hot, again.Hot) || !sameSets(state.Sets, again.Sets) {
		return fmt.Errorf("second recovery: %+v, first %+v", again, state)
	}
	next := *h
	next.checkpoints = slices.Clone(h.checkpoints)
	next.cut, next.facted = max(h.cut, state.Facts.Cut), state.Facts.Cut
	next.gone = map[uint64]bool{}
	for r := next.synced + 1; r <= next.marked; r++ {
		next.gone[r] = !slices.Contains(state.Hot, r)
	}
	for i, c := range next.checkpoints {
		if sameSets(state.Sets, setsOf(c.number)) {
			next.finished = i
		}
	}
	if err := next.work(fs, 16); err != nil {
		return fmt.Errorf("work afterwards: %w", err)
	}
	if _, err := next.check(fs.Crash(3)); err != nil {
		return fmt.Errorf("work afterwards and a crash: %w", err)
	}
	return nil
}
