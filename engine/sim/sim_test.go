package sim_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/blkmirror/blkmirror/engine/sim"
)

var (
	seed  = flag.Uint64("seed", 1, "first seed of the histories")
	seeds = flag.Uint64("seeds", 0, "how many histories; 0: what fits the occasion")
	steps = flag.Int("steps", 1000, "steps of a history before its faults end")
	trace = flag.Bool("trace", false, "print `trace SEED DIGEST` for each history")
	story = flag.Bool("story", false, "print everything that happens")
	cover = flag.Bool("cover", false, "print what was reached, and what never was")
)

// TestHistories runs histories from consecutive seeds, as many at once as there are processors. Each of them
// is checked after every step, and has to end with equal mirrors.
func TestHistories(t *testing.T) {
	n := *seeds
	if n == 0 {
		n = defaultSeeds
	}
	coverage := sim.NewCoverage()
	digests := make([]uint64, n)
	var next atomic.Uint64
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			var pool sim.Pool
			for !t.Failed() {
				i := next.Add(1) - 1
				if i >= n {
					return
				}
				w := sim.New(*seed+i, coverage, &pool)
				if *story {
					w.Story = os.Stdout
				}
				if err := w.Run(*steps); err != nil {
					t.Error(err)
				}
				digests[i] = w.Digest()
			}
		})
	}
	workers.Wait()
	if *trace && !t.Failed() {
		for i, d := range digests {
			fmt.Printf("trace %d %016x\n", *seed+uint64(i), d)
		}
	}
	if *cover {
		coverage.Print(os.Stdout)
	}
	t.Logf("%d histories, %d faults, %d commits", n, coverage.Faults(), coverage.Count("action commit"))
}

// TestSameSeed: a history is what its seed says, every time.
func TestSameSeed(t *testing.T) {
	for s := uint64(1); s <= 20; s++ {
		run := func() uint64 {
			w := sim.New(s, nil, nil)
			var f *sim.Failure
			if err := w.Run(300); err != nil && !errors.As(err, &f) {
				t.Fatal(err)
			}
			return w.Digest()
		}
		if a, b := run(), run(); a != b {
			t.Errorf("seed %d gave %016x and %016x", s, a, b)
		}
	}
}
