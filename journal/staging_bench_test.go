package journal_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
)

// benchStaging is the staging of a volume of 1 TiB.
func benchStaging(b *testing.B, o journal.StagingOptions) *journal.Staging {
	fs := osIn(b.TempDir())
	must(b, fs.Mkdir(testDir))
	h := stagingHeader(7)
	h.BlockSize, h.Size = 64<<10, 1<<40
	s, err := journal.CreateStaging(fs, testDir, h, o)
	must(b, err)
	b.Cleanup(func() { s.Close() })
	return s
}

// With a synced point every 64 MiB, as a mirror makes them.
func BenchmarkStagingAppend(b *testing.B) {
	for _, size := range []int{64 << 10, 4 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := benchStaging(b, journal.StagingOptions{})
			payload := payloadOf(1, size)
			b.SetBytes(int64(size))
			seq := uint64(0)
			for b.Loop() {
				seq++
				offset := int64(seq) * int64(size) % (1 << 40)
				must(b, s.Append(dataAt(seq, offset, int64(size), size), payload))
				if seq*uint64(size)%(64<<20) == 0 {
					must(b, s.Sync(journal.StagingPoint{Seq: seq}))
				}
			}
		})
	}
}

// A million records, small ones that the disk need not hold: ascending as they are shipped, and anywhere.
// In one pass, and in about eight.
func BenchmarkStagingPlan(b *testing.B) {
	const records = 1 << 20
	for _, order := range []string{"ascending", "random"} {
		for _, pieces := range []int{1 << 20, 1 << 17} {
			b.Run(fmt.Sprintf("%s/%d", order, pieces), func(b *testing.B) {
				s := benchStaging(b, journal.StagingOptions{PlanPieces: pieces})
				rng := rand.New(rand.NewPCG(1, 1))
				for seq := range uint64(records) {
					block := int64(seq)
					if order == "random" {
						block = rng.Int64N(1 << 24)
					}
					must(b, s.Append(dataAt(seq+1, block<<16, 64<<10, 8), make([]byte, 8)))
				}
				must(b, s.Sync(journal.StagingPoint{Seq: records}))
				b.ReportAllocs()
				for b.Loop() {
					n := 0
					must(b, s.Plan(func(journal.StagingPiece) error { n++; return nil }))
					b.ReportMetric(float64(n), "pieces")
				}
			})
		}
	}
}

// What a start costs: 2 GiB in records of 64 KiB.
func BenchmarkStagingOpen(b *testing.B) {
	fs := osIn(b.TempDir())
	must(b, fs.Mkdir(testDir))
	h := stagingHeader(7)
	h.BlockSize, h.Size = 64<<10, 1<<40
	s, err := journal.CreateStaging(fs, testDir, h, journal.StagingOptions{})
	must(b, err)
	payload := payloadOf(1, 64<<10)
	for seq := range uint64(32 << 10) {
		must(b, s.Append(dataAt(seq+1, int64(seq)<<16, 64<<10, 64<<10), payload))
	}
	must(b, s.Sync(journal.StagingPoint{Seq: 32 << 10}))
	must(b, s.Close())
	for b.Loop() {
		s, err := journal.OpenStaging(fs, testDir, 7, journal.StagingOptions{})
		must(b, err)
		must(b, s.Close())
	}
}
