package track

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// nullDevice takes everything at once and keeps nothing.
type nullDevice struct{ size int64 }

func (d nullDevice) ReadAt(p []byte, _ int64) (int, error)  { return len(p), nil }
func (d nullDevice) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (d nullDevice) Flush() error                           { return nil }
func (d nullDevice) Zero(int64, int64, bool) error          { return nil }
func (d nullDevice) Discard(int64, int64) error             { return nil }
func (d nullDevice) Close() error                           { return nil }
func (d nullDevice) NextData(off int64) (blockdev.Extent, error) {
	return blockdev.Extent{Offset: off, Length: d.size - off}, nil
}
func (d nullDevice) Info() blockdev.Info {
	return blockdev.Info{Path: "null", Size: d.size, LogicalSector: 512, PhysicalSector: 4096, Writable: true, CheapZero: true}
}

// BenchmarkWrite is what a 4 KiB write costs besides its device.
func BenchmarkWrite(b *testing.B) {
	const size = 100 << 30
	for _, c := range []struct {
		name     string
		span     int64 // of the volume that is written to
		writers  int
		shipping bool // cuts, and a consumer that reads them in bulk
	}{
		{"1", 1 << 30, 1, false},
		{"32", 1 << 30, 32, false},
		{"32/sparse", size, 32, false},
		{"32/cuts", 1 << 30, 32, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			tr := NewTracker(size/page, nullMarker{}, time.Now)
			s := tr.AddConsumer("m", NewCapture(CaptureConfig{Pages: size / page, BlockPages: 16, Memory: 64 << 20}))
			path, err := NewPath(Config{Device: nullDevice{size}, Size: size, BlockSize: 65536, Tracker: tr})
			if err != nil {
				b.Fatal(err)
			}
			var stop atomic.Bool
			if c.shipping {
				go func() {
					for !stop.Load() {
						tr.CutStep(s.Bulk())
						for more := true; more; {
							_, more, _ = path.ReadClosed(b.Context(), s, 1<<20, heap{})
						}
						tr.BulkFlush(s)
						tr.BulkFlushed(s)
						time.Sleep(10 * time.Millisecond)
					}
				}()
			}
			buf := make([]byte, page)
			b.SetParallelism((c.writers + 1) / 2) // times GOMAXPROCS
			if c.writers == 1 {
				b.ReportAllocs()
				for b.Loop() {
					_ = path.WriteAt(buf, rand.Int64N(c.span/page)*page)
				}
				return
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_ = path.WriteAt(buf, rand.Int64N(c.span/page)*page)
				}
			})
			stop.Store(true)
		})
	}
}

// BenchmarkCut is how long a cut and a snapshot of a volume of 1 TiB keep writers out, with so many pages
// written at random since the last one.
func BenchmarkCut(b *testing.B) {
	const pages = 1 << 28
	for _, dirty := range []int{1000, 100_000, 4_000_000} {
		b.Run(fmt.Sprint(dirty), func(b *testing.B) {
			tr := NewTracker(pages, nullMarker{}, time.Now)
			m := tr.AddConsumer("m", NewCapture(CaptureConfig{Pages: pages, Memory: 64 << 20}))
			idx := tr.AddConsumer("index", nil)
			var cut, snap time.Duration
			for b.Loop() {
				for range dirty {
					tr.open.add(rand.Uint64N(pages), 1, time.Unix(0, 0))
				}
				start := time.Now()
				tr.CutStep(m.Epoch())
				cut += time.Since(start)
				start = time.Now()
				tr.Snapshot()
				snap += time.Since(start)
				tr.DropEpoch(m)
				for _, s := range []*Sets{m, idx} {
					s.waiting.Clear()
				}
			}
			b.ReportMetric(float64(cut.Microseconds())/float64(b.N), "µs/cut")
			b.ReportMetric(float64(snap.Microseconds())/float64(b.N), "µs/snapshot")
		})
	}
}
