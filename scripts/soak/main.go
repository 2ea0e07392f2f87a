// Command soak runs histories of the simulator on all processors for as long as wanted, and stops at the first
// that breaks an invariant:
//
//	go run ./scripts/soak -for 30m
//
// What it prints of a failure is the story of its last steps and the seed; `go test ./engine/sim -run
// TestHistories -seed S -seeds 1 -story` tells all of it.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/engine/sim"
)

var (
	length = flag.Duration("for", 10*time.Minute, "how long")
	first  = flag.Uint64("seed", uint64(time.Now().Unix()), "first seed; those that follow are consecutive")
	steps  = flag.Int("steps", 1000, "steps of a history before its faults end")
	jobs   = flag.Int("j", runtime.GOMAXPROCS(0), "histories at once")
	twice  = flag.Uint64("twice", 50, "each so manieth seed is run twice, and has to give the same digest")
)

// soak is the state that the workers share.
type soak struct {
	coverage *sim.Coverage
	next     atomic.Uint64
	ran      atomic.Uint64
	taken    atomic.Uint64 // steps
	failure  atomic.Pointer[error]
}

func main() {
	flag.Parse()
	debug.SetGCPercent(400) // histories leave nothing behind
	s := &soak{coverage: sim.NewCoverage()}
	began := time.Now()
	fmt.Printf("histories from seed %d on, %d at once, for %v\n", *first, *jobs, *length)
	var workers sync.WaitGroup
	done := make(chan struct{})
	for range *jobs {
		workers.Go(func() { s.work(began.Add(*length)) })
	}
	go func() { workers.Wait(); close(done) }()
	s.report(began, done)
	if err := s.failure.Load(); err != nil {
		fmt.Println(*err)
		os.Exit(1)
	}
	s.coverage.Print(os.Stdout)
}

// work runs one history after the other.
func (s *soak) work(until time.Time) {
	var pool sim.Pool
	for s.failure.Load() == nil && time.Now().Before(until) {
		nth := s.next.Add(1) - 1
		digest, err := s.history(*first+nth, &pool)
		if err == nil && *twice > 0 && nth%*twice == 0 {
			var again uint64
			if again, err = s.history(*first+nth, &pool); err == nil && again != digest {
				err = fmt.Errorf("seed %d gave %016x and %016x", *first+nth, digest, again)
			}
		}
		if err != nil {
			s.failure.CompareAndSwap(nil, &err)
		}
	}
}

func (s *soak) history(seed uint64, pool *sim.Pool) (digest uint64, err error) {
	w := sim.New(seed, s.coverage, pool)
	err = w.Run(*steps)
	s.ran.Add(1)
	s.taken.Add(w.Steps())
	return w.Digest(), err
}

// report tells every half a minute how far it is, until all is done.
func (s *soak) report(began time.Time, done <-chan struct{}) {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		over := false
		select {
		case <-done:
			over = true
		case <-tick.C:
		}
		spent := time.Since(began)
		fmt.Printf("%8v  %d histories, %d steps, %d faults, %d commits, %.0f histories a second\n", spent.Round(time.Second),
			s.ran.Load(), s.taken.Load(), s.coverage.Faults(), s.coverage.Count("action commit"), float64(s.ran.Load())/spent.Seconds())
		if over {
			return
		}
	}
}
