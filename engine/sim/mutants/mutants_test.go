package mutants_test

import (
	"path/filepath"
	"testing"

	"github.com/blkmirror/blkmirror/engine/sim/mutants"
)

// TestMutants: the simulator finds every mutation within the number of seeds that it states.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the simulator once for each mutation")
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	all, err := mutants.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	runner := mutants.NewRunner(root, t.TempDir())
	for _, m := range all {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			if m.NotYet != "" {
				t.Skip(m.NotYet)
			}
			r, err := runner.Find(t.Context(), m, m.Seeds)
			switch {
			case err != nil:
				t.Error(err)
			case r.Seed == 0:
				t.Errorf("%s: not found within %d seeds (of these fail without it: %v)", m.Title, m.Seeds, r.Broken)
			default:
				t.Logf("found at seed %d after %.1f s of building and %.1f s of running: %s", r.Seed, r.Build.Seconds(), r.Run.Seconds(), r.Failure)
			}
		})
	}
}

// TestTexts: what is said of a mutation is complete, and its text stands in the source.
func TestTexts(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	all, err := mutants.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if _, err := m.Apply(root); err != nil {
			t.Error(err)
		}
	}
}
