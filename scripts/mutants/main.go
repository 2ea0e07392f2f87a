// Mutants asks whether the simulator finds deliberate bugs (engine/sim/mutants), and shows how fast:
//
//	go run ./scripts/mutants                    all of them, two at a time
//	go run ./scripts/mutants -only NAME,NAME    some
//	go run ./scripts/mutants -seeds 5000        with more seeds than they state
//	go run ./scripts/mutants -update            notes the first seed that finds each now
//
// It exits 1 where one is not found within the seeds that it states, or within -seeds.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blkmirror/blkmirror/engine/sim/mutants"
)

func main() {
	only := flag.String("only", "", "run only `NAMES`, separated by commas")
	seeds := flag.Uint64("seeds", 0, "look for each within `N` seeds; 0: as many as it states")
	update := flag.Bool("update", false, "search each from seed 1 on, and write the seed that finds it into its text")
	jobs := flag.Int("j", 2, "run `N` at a time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	found, err := run(ctx, *only, *seeds, *jobs, *update)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	}
	if !found {
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, seeds uint64, jobs int, update bool) (found bool, err error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return false, err
	}
	chosen, err := choose(root, only)
	if err != nil {
		return false, err
	}
	temp, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(temp)
	began := time.Now()
	runner := mutants.NewRunner(root, temp)
	missed := make([]bool, len(chosen))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(jobs)
	for i, m := range chosen {
		group.Go(func() error {
			n := m.Seeds
			if seeds > 0 {
				n = seeds
			}
			if m.NotYet != "" {
				fmt.Printf("%-32s not yet: %s\n", m.Name, m.NotYet)
				return nil
			}
			if update {
				m.Seed = 0
			}
			r, err := runner.Find(ctx, m, n)
			if err == nil && update && r.Seed != 0 {
				err = m.Note(root, r.Seed)
			}
			if err != nil {
				missed[i] = true
				fmt.Printf("%-32s %v\n", m.Name, err)
				return ctx.Err()
			}
			missed[i] = r.Seed == 0
			show(r)
			return nil
		})
	}
	err = group.Wait()
	fmt.Printf("%d mutations in %.0f s\n", len(chosen), time.Since(began).Seconds())
	return !slices.Contains(missed, true), err
}

func show(r *mutants.Result) {
	times := fmt.Sprintf("%4.1f s to build, %5.1f s to run", r.Build.Seconds(), r.Run.Seconds())
	what := r.Failure
	if r.Seed == 0 {
		what = fmt.Sprintf("NOT FOUND within %d seeds; it is to break %s", r.Ran, r.Finds)
	}
	if len(r.Broken) > 0 {
		what += fmt.Sprintf(" (seeds that fail without it: %v)", r.Broken)
	}
	fmt.Printf("%-32s %s  %s\n", r.Name, times, what)
}

func choose(root, only string) ([]*mutants.Mutation, error) {
	all, err := mutants.Load(root)
	if err != nil || only == "" {
		return all, err
	}
	var chosen []*mutants.Mutation
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(all, func(m *mutants.Mutation) bool { return m.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no mutation %q in %s", name, mutants.Dir)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// moduleRoot is the folder of go.mod.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	return filepath.Dir(strings.TrimSpace(string(out))), err
}
