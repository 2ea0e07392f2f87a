package e2e

import (
	"testing"

	"github.com/blkmirror/blkmirror/paths"
)

// What `go run ./scripts/paths -short` does, with the race detector and many at once: the scenarios mostly wait.
func TestPaths(t *testing.T) {
	t.Parallel()
	for _, name := range paths.ShortNames() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table, err := paths.Run(t.Context(), paths.Options{
				Binary: checked, Temp: folder(t), Only: []string{name}, Short: true, Seed: *seed, Log: t.Output(),
			})
			if err != nil {
				t.Fatal(err)
			}
			if table.Failed() {
				t.Errorf("seed %d: not as expected", *seed)
			}
			for _, why := range table.NotRun() {
				t.Skip(why)
			}
		})
	}
}
