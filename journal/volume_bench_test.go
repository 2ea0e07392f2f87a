package journal_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
)

func benchVolume(b *testing.B) *journal.VolumeLog {
	l, _, err := journal.OpenVolume(osIn(b.TempDir()), testDir, journal.VolumeOptions{})
	must(b, err)
	b.Cleanup(func() { l.Close() })
	must(b, l.SetFacts(journal.VolumeFacts{Role: journal.RolePrimary, Size: 1 << 40, BlockSize: 64 << 10}))
	return l
}

func BenchmarkVolumeMark(b *testing.B) {
	l := benchVolume(b)
	regions := []uint64{17}
	b.ReportAllocs()
	for b.Loop() {
		_, err := l.Mark(regions)
		must(b, err)
	}
}

func BenchmarkVolumeMarkSync1(b *testing.B)  { benchMarkSync(b, 1) }
func BenchmarkVolumeMarkSync32(b *testing.B) { benchMarkSync(b, 32) }

// benchMarkSync is what a write to a region that is not hot waits for, with so many writers at a time.
func benchMarkSync(b *testing.B, writers int) {
	l := benchVolume(b)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range writers {
		wg.Go(func() {
			regions := make([]uint64, 1)
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				regions[0] = uint64(i) % (1 << 18)
				lsn, err := l.Mark(regions)
				if err == nil {
					err = l.Sync(lsn)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A terabyte of which every second page is in the set, and one of which 1 % is, in runs of 16.
func BenchmarkVolumeCheckpoint(b *testing.B) {
	const pages = 1 << 28
	worst, usual := blockdev.NewPageSet(pages), blockdev.NewPageSet(pages)
	for p := uint64(0); p < pages; p += 2 {
		worst.Add(p, 1)
	}
	for p := uint64(0); p < pages; p += 1600 {
		usual.Add(p, 16)
	}
	for name, set := range map[string]*blockdev.PageSet{"worst": worst, "usual": usual} {
		b.Run(name, func(b *testing.B) {
			l := benchVolume(b)
			for b.Loop() {
				c, err := l.BeginCheckpoint()
				must(b, err)
				facts := journal.VolumeFacts{Role: journal.RolePrimary, Size: 1 << 40, BlockSize: 64 << 10}
				must(b, c.Finish(facts, []journal.NamedSet{{Name: "needs/m", Pages: set}}, nil))
			}
		})
	}
}
