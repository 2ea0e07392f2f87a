package campaign

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/blkmirror/blkmirror/campaign/daemon"
	"github.com/blkmirror/blkmirror/engine/sim/mutants"
)

const (
	testdata   = "scripts/faults/testdata"
	faultPoint = "engine/faultpoint.go" // a file that only the campaign's binary has
)

// build makes the binary with the fault points.
func build(ctx context.Context, root, dir string) (string, error) {
	files, err := pointsOf(root)
	if err != nil {
		return "", err
	}
	overlay, err := mutants.WriteOverlay(root, dir, files)
	if err != nil {
		return "", err
	}
	return daemon.Build(ctx, root, dir, "-overlay", overlay)
}

// pointsOf are the sources with fault points, by their paths below root.
func pointsOf(root string) (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(root, testdata, "points.txt"))
	if err != nil {
		return nil, err
	}
	edits, err := parsePoints(string(text))
	if err != nil {
		return nil, err
	}
	files, err := (&mutants.Mutation{Name: "points.txt", Edits: edits}).Apply(root)
	if err != nil {
		return nil, err
	}
	point, err := os.ReadFile(filepath.Join(root, testdata, "faultpoint.go.txt"))
	files[faultPoint] = string(point)
	return files, err
}

// parsePoints reads pairs of old and new text, as mutations have them; everything around is for people.
func parsePoints(text string) (edits []mutants.Edit, err error) {
	file := ""
	var part *string
	for line := range strings.SplitAfterSeq(text, "\n") {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch {
		case key == "--- old" && part == nil && file != "":
			edits = append(edits, mutants.Edit{File: file})
			part = &edits[len(edits)-1].Old
		case key == "--- new" && part != nil:
			part = &edits[len(edits)-1].New
		case key == "--- end" && part != nil:
			part, file = nil, ""
		case strings.HasPrefix(line, "--- "):
			return nil, fmt.Errorf("points.txt: %q is not in its place", key)
		case part != nil:
			*part += line
		case key == "file":
			file = value
		}
	}
	if part != nil || len(edits) == 0 {
		return nil, fmt.Errorf("points.txt: %d edits, or an end is missing", len(edits))
	}
	return edits, nil
}
