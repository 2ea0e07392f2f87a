package mutants_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/blkmirror/blkmirror/engine/sim/mutants"
)

// TestMutants: the simulator finds every mutation. It takes seconds for each with a seed that still finds it,
// and up to minutes where the simulator has changed since: `go run ./scripts/mutants -update` notes new seeds.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the simulator once for each mutation")
	}
	root, all := load(t)
	runner := mutants.NewRunner(root, t.TempDir())
	two := make(chan struct{}, 2) // at a time
	for _, m := range all {
		if m.NotYet != "" {
			continue // docs/SIMULATOR.md lists them
		}
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			two <- struct{}{}
			defer func() { <-two }()
			r, err := runner.Find(t.Context(), m, m.Seeds)
			switch {
			case err != nil:
				t.Error(err)
			case r.Seed == 0:
				t.Errorf("%s: not found within %d seeds (of these fail without it: %v)", m.Title, m.Seeds, r.Broken)
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
