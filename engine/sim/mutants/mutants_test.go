package mutants_test

import (
	"flag"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/engine/sim/mutants"
)

// searched is how many seeds are tried here for a mutation whose own seed finds it no more, because the simulator
// has changed: some take tens of thousands, and `go run ./scripts/mutants -update` has the time for that.
const searched = 1500

var (
	tried = flag.Int("tried", 16, "how many mutations, since each takes a build of the simulator; 0: all")
	pick  = flag.Uint64("pick", uint64(time.Now().UnixNano()), "chooses them")
)

// TestMutants: the simulator finds a mutation at the seed that its text names, or a little further on. Which ones are tried
// is another choice each time; `go run ./scripts/mutants` tries all.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the simulator once for each mutation")
	}
	root, all := load(t)
	all = slices.DeleteFunc(all, func(m *mutants.Mutation) bool { return m.NotYet != "" }) // docs/SIMULATOR.md lists them
	rand.New(rand.NewPCG(*pick, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if *tried > 0 {
		all = all[:min(*tried, len(all))]
	}
	t.Logf("%d mutations, -pick %d", len(all), *pick)
	runner := mutants.NewRunner(root, t.TempDir())
	two := make(chan struct{}, 2) // at a time
	for _, m := range all {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			two <- struct{}{}
			defer func() { <-two }()
			r, err := runner.Find(t.Context(), m, min(m.Seeds, searched))
			switch {
			case err != nil:
				t.Error(err)
			case r.Seed == 0:
				t.Errorf("%s: not found with seed %d, nor up to %d (of these fail without it: %v): go run ./scripts/mutants -update searches further and notes the seed",
					m.Title, m.Seed, r.Ran, r.Broken)
			default:
				t.Logf("built in %.1f s, found in %.1f s: %s", r.Build.Seconds(), r.Run.Seconds(), r.Failure)
			}
		})
	}
}

// TestTexts: what is said of a mutation is complete, and its old text stands in the source once.
func TestTexts(t *testing.T) {
	root, all := load(t)
	for _, m := range all {
		if _, err := m.Apply(root); err != nil {
			t.Error(err)
		}
	}
	if !slices.ContainsFunc(all, func(m *mutants.Mutation) bool { return m.NotYet == "" }) {
		t.Error("there is no mutation to be tried")
	}
}

func load(t *testing.T) (root string, all []*mutants.Mutation) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if all, err = mutants.Load(root); err != nil {
		t.Fatal(err)
	}
	return root, all
}
