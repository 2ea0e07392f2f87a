package journal_test

import (
	"errors"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
)

// Plan says the same in one pass and in many, and for records that overlap in every way.
func TestStagingPlanInPasses(t *testing.T) {
	for seed := range uint64(150) {
		mem := stagingFS()
		w := newStagingWork(mem, seed)
		w.m = &stagingModel{epoch: 7}
		var err error
		w.s, err = journal.CreateStaging(mem, testDir, stagingHeader(7), little)
		must(t, err)
		for range 1 + w.rng.IntN(1<<(2+seed%5)) {
			must(t, w.append())
		}
		must(t, w.seal())
		must(t, w.s.Close())
		for _, pieces := range []int{1, 2, 4, 7, 1000} {
			o := little
			o.PlanPieces = pieces
			w.s, err = journal.OpenStaging(mem, testDir, 7, o)
			must(t, err)
			if err := w.agree(); err != nil {
				t.Fatalf("seed %d, %d pieces: %v", seed, pieces, err)
			}
			stop := errors.New("enough")
			if err := w.s.Plan(func(journal.StagingPiece) error { return stop }); err != stop {
				t.Errorf("plan ended with %v", err)
			}
			if err := w.s.Each(func(journal.StagingRecord, int64) error { return stop }); err != stop {
				t.Errorf("Each ended with %v", err)
			}
			must(t, w.s.Close())
		}
	}
}

// A pass that finds more pieces than it may keep leaves some to the next, and cuts a zero between them.
func TestStagingPlanOverruns(t *testing.T) {
	mem := stagingFS()
	w := newStagingWork(mem, 0)
	w.m = &stagingModel{epoch: 7}
	var err error
	w.s, err = journal.CreateStaging(mem, testDir, stagingHeader(7), little)
	must(t, err)
	zero := func(from, count int64) {
		w.seq++
		rec := journal.StagingRecord{Seq: w.seq, Kind: journal.StagingZero, Offset: from * page}
		rec.Length = min(count*page, stagingSize-rec.Offset)
		w.m.append(rec)
		must(t, w.s.Append(rec, nil))
	}
	zero(0, stagingPages)
	for _, p := range []int64{0, 2, 4, 11, 13, 15, 17} {
		zero(p, 1)
	}
	zero(6, 4)
	must(t, w.seal())
	must(t, w.agree())
}
