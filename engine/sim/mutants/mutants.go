// Package mutants asks whether the simulator (engine/sim) finds what it is there for. Each mutation is a
// deliberate bug, kept as a text beside the simulator and never in the product's source: the simulator is
// built with a changed copy in the place of one file or several (go build -overlay), and has to fail within a
// stated number of seeds, at a seed with which it does not fail otherwise.
//
//	mutants.go  what a mutation is, and how its text is read
//	runner.go   builds and runs them
//
// A mutation is a file engine/sim/testdata/mutations/NAME.txt:
//
//	A title
//
//	Anything else that a reader wants to know.
//
//	finds: I2, the invariant that is to catch it
//	seeds: 100
//	seed: 17
//	file: engine/checkpoint.go
//	--- old
//	whole lines of the file, which stand there exactly once
//	--- new
//	what replaces them
//	--- end
//
// There may be several pairs, of several files. seed is where it was found last, and is tried first: it saves
// the search for as long as the simulator stays as it is, and `go run ./scripts/mutants -update` writes it anew.
// A mutation that cannot be tried yet, or is not found, has a line `not yet: REASON`.
package mutants

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Dir is where they lie, below the root of the module.
const Dir = "engine/sim/testdata/mutations"

// Mutation is a deliberate bug.
type Mutation struct {
	Name, Title string
	Finds       string // the invariant that is to catch it
	Seeds       uint64 // within which it has to be found
	Seed        uint64 // with which it was found last; 0: not known
	NotYet      string // why it cannot be tried; "": it can
	Edits       []Edit
}

// Edit replaces lines of a file.
type Edit struct{ File, Old, New string }

// Load reads all mutations, ascending by name.
func Load(root string) ([]*Mutation, error) {
	paths, err := filepath.Glob(filepath.Join(root, Dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	var all []*Mutation
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		m, err := parse(strings.TrimSuffix(filepath.Base(path), ".txt"), string(text))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there are no mutations in %s", filepath.Join(root, Dir))
	}
	return all, nil
}

// parse reads the text of a mutation.
func parse(name, text string) (*Mutation, error) {
	m := &Mutation{Name: name}
	file := ""
	var part *string // of an edit, that is being read
	for i, line := range strings.SplitAfter(text, "\n") {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		var err error
		switch {
		case key == "--- old" && part == nil && file != "":
			m.Edits = append(m.Edits, Edit{File: file})
			part = &m.Edits[len(m.Edits)-1].Old
		case key == "--- new" && part != nil && part == &m.Edits[len(m.Edits)-1].Old:
			part = &m.Edits[len(m.Edits)-1].New
		case key == "--- end" && part != nil && part == &m.Edits[len(m.Edits)-1].New:
			part = nil
		case strings.HasPrefix(line, "--- "):
			err = fmt.Errorf("%q is not in its place", key)
		case part != nil:
			*part += line
		case i == 0:
			m.Title = strings.TrimSuffix(line, "\n")
		case key == "file":
			file = value
		case key == "finds":
			m.Finds = value
		case key == "not yet":
			m.NotYet = value
		case key == "seeds":
			m.Seeds, err = strconv.ParseUint(value, 10, 32)
		case key == "seed":
			m.Seed, err = strconv.ParseUint(value, 10, 32)
		}
		if err != nil {
			return nil, fmt.Errorf("mutation %s, line %d: %w", name, i+1, err)
		}
	}
	if part != nil || m.Title == "" || m.NotYet == "" && (m.Seeds == 0 || len(m.Edits) == 0 || m.Finds == "") {
		return nil, fmt.Errorf("mutation %s lacks its title, what finds it, seeds or text, or an end", name)
	}
	return m, nil
}

// Note writes the seed with which the mutation was found into its text.
func (m *Mutation) Note(root string, seed uint64) error {
	path := filepath.Join(root, Dir, m.Name+".txt")
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var out strings.Builder
	head := true // the text of the edits stays as it is
	for line := range strings.SplitAfterSeq(string(b), "\n") {
		head = head && !strings.HasPrefix(line, "--- ")
		if head && strings.HasPrefix(line, "seed: ") {
			continue
		}
		out.WriteString(line)
		if head && strings.HasPrefix(line, "seeds: ") {
			fmt.Fprintf(&out, "seed: %d\n", seed)
		}
	}
	return os.WriteFile(path, []byte(out.String()), 0o644)
}

// Apply returns the changed files by their paths below root. Text that does not stand in its file exactly once
// is an error: the code has changed, and the mutation has to follow.
func (m *Mutation) Apply(root string) (map[string]string, error) {
	files := map[string]string{}
	for _, e := range m.Edits {
		text, ok := files[e.File]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, e.File))
			if err != nil {
				return nil, fmt.Errorf("mutation %s: %w", m.Name, err)
			}
			text = string(b)
		}
		if n := strings.Count(text, e.Old); n != 1 || e.Old == "" {
			return nil, fmt.Errorf("mutation %s: its old text stands %d times in %s, and not once: the code has changed, and it has to follow:\n%s",
				m.Name, n, e.File, e.Old)
		}
		files[e.File] = strings.Replace(text, e.Old, e.New, 1)
	}
	return files, nil
}
