package mutants_test

import (
	"flag"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/engine/sim/mutants"
)

var every = flag.Bool("all", false, "try all mutations, and not only those whose turn it is today")

// shares is how many days it takes until every mutation had its turn.
const shares = 5

// TestMutants: the simulator finds every mutation within the number of seeds that it states. To build and run
// all of them takes minutes: without -all each has its turn every fifth day. `go run ./scripts/mutants` tries
// all of them as well, and shows more.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the simulator once for each mutation")
	}
	root, all := load(t)
	today := int(time.Now().Unix()/86400) % shares
	runner := mutants.NewRunner(root, t.TempDir())
	two := make(chan struct{}, 2) // at a time
	for i, m := range all {
		if i%shares != today && !*every {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			if m.NotYet != "" {
				t.Skip(m.NotYet)
			}
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
	if !*every {
		t.Logf("share %d of %d; -all tries every mutation", today+1, shares)
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
