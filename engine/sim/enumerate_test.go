//go:build !race

package sim_test

import (
	"flag"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/engine/sim"
)

var (
	depth  = flag.Int("depth", 0, "try all enumerated histories of up to so many operations; 0: those of up to one, and some of the others")
	full   = flag.Bool("enumerate.full", false, "try all enumerated histories, of up to four operations")
	sample = flag.Int("enumerate.sample", defaultSeeds/250, "how many of the others, chosen by -seed")
	only   = flag.String("enumerate.only", "", "try only the histories whose name contains this")
)

// maxDepth is how many operations a history has at most.
const maxDepth = 4

// TestEnumerate tries every crash of short histories.
func TestEnumerate(t *testing.T) {
	next, total := make(chan sim.Sequence), sim.EnumerationCounts{}
	var mu sync.Mutex
	var workers sync.WaitGroup
	failures := 0
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			e, err := sim.NewEnumeration()
			for q := range next {
				if err == nil {
					err = e.Try(q)
				}
				mu.Lock()
				if err != nil && failures < 5 {
					failures++
					t.Error(err)
				}
				mu.Unlock()
				err = nil
			}
			mu.Lock()
			defer mu.Unlock()
			total.Add(e.Counts)
		})
	}
	began := time.Now()
	for _, q := range enumerated() {
		next <- q
	}
	close(next)
	workers.Wait()
	t.Logf("%+v in %v", total, time.Since(began))
}

// enumerated are the histories to be tried.
func enumerated() (chosen []sim.Sequence) {
	whole := max(1, *depth)
	if *full {
		whole = maxDepth
	}
	var others []sim.Sequence
	for _, q := range sim.Sequences(maxDepth) {
		switch {
		case !strings.Contains(q.String(), *only):
		case q.Length() <= whole:
			chosen = append(chosen, q)
		default:
			others = append(others, q)
		}
	}
	if whole > 1 {
		return chosen
	}
	rng := rand.New(rand.NewPCG(*seed, 0))
	rng.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	return append(chosen, others[:min(*sample, len(others))]...)
}
