package mutants

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Runner builds simulators and runs them. Its methods may be called concurrently.
type Runner struct {
	root, temp string

	once  sync.Once
	plain string // the simulator as it is
	err   error
}

// NewRunner makes one for the module in root. temp is a folder for what it builds.
func NewRunner(root, temp string) *Runner { return &Runner{root: root, temp: temp} }

// Result is what became of a mutation.
type Result struct {
	*Mutation
	Seed    uint64   // at which it was found; 0: it was not
	Failure string   // what the simulator said
	Ran     uint64   // the last seed, where none was found
	Broken  []uint64 // seeds with which the simulator fails as it is: they count for nothing
	Build   time.Duration
	Run     time.Duration
}

// Find runs a mutation with the seed that it names, and then with so many from 1 on, until it is found.
func (r *Runner) Find(ctx context.Context, m *Mutation, seeds uint64) (*Result, error) {
	began := time.Now()
	bin, err := r.build(ctx, m)
	if err != nil {
		return nil, err
	}
	defer os.Remove(bin)
	out := &Result{Mutation: m, Build: time.Since(began)}
	began = time.Now()
	defer func() { out.Run = time.Since(began) }()
	if m.Seed != 0 {
		if err := r.search(ctx, bin, m.Seed, m.Seed, out); err != nil || out.Seed != 0 {
			return out, err
		}
	}
	return out, r.search(ctx, bin, 1, seeds, out)
}

// search runs the seeds from first to last, until one fails with the mutation alone.
func (r *Runner) search(ctx context.Context, bin string, first, last uint64, out *Result) error {
	for first <= last {
		seed, failure, err := r.run(ctx, bin, first, last-first+1)
		if err != nil {
			return fmt.Errorf("mutation %s: %w", out.Name, err)
		}
		if seed == 0 {
			break
		}
		without, err := r.withoutIt(ctx, seed)
		if err != nil {
			return err
		}
		if without == 0 {
			out.Seed, out.Failure = seed, failure
			return nil
		}
		out.Broken = append(out.Broken, seed)
		first = seed + 1
	}
	out.Ran = last
	return nil
}

// build makes the simulator with a mutation, or as it is.
func (r *Runner) build(ctx context.Context, m *Mutation) (bin string, err error) {
	dir, err := os.MkdirTemp(r.temp, "mutant-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	bin = dir + ".test"
	args := []string{"test", "-c", "-ldflags=-w", "-o", bin}
	name := "the simulator"
	if m != nil {
		name = "mutation " + m.Name
		overlay, err := m.writeOverlay(r.root, dir)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./engine/sim")...)
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s is not built: %w\n%s", name, err, out)
	}
	return bin, nil
}

func (m *Mutation) writeOverlay(root, dir string) (path string, err error) {
	files, err := m.Apply(root)
	if err != nil {
		return "", err
	}
	return WriteOverlay(root, dir, files)
}

// WriteOverlay writes sources, by their paths below root, to a folder, and what `go build -overlay` is to know of them, whose path
// it returns.
func WriteOverlay(root, dir string, files map[string]string) (path string, err error) {
	replace := map[string]string{}
	for file, text := range files {
		to := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(root, file)] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, b, 0o644)
}

// withoutIt runs a seed as it is. What fails then as well has nothing to do with a mutation.
func (r *Runner) withoutIt(ctx context.Context, seed uint64) (failed uint64, err error) {
	r.once.Do(func() { r.plain, r.err = r.build(ctx, nil) })
	if r.err != nil {
		return 0, r.err
	}
	failed, _, err = r.run(ctx, r.plain, seed, 1)
	return failed, err
}

// A failure of the simulator says where it was; so does a panic that it could not explain.
var failureLine = regexp.MustCompile(`(?m)seed (\d+), step \d+: .*`)

// run runs a simulator from a seed on; seed is the first with which it failed, 0: none.
func (r *Runner) run(ctx context.Context, bin string, first, seeds uint64) (seed uint64, failure string, err error) {
	patience := time.Minute + time.Duration(seeds)*200*time.Millisecond // many times what it takes
	cmd := exec.CommandContext(ctx, bin, "-test.run", "^TestHistories$", "-test.timeout", patience.String(),
		"-seed", strconv.FormatUint(first, 10), "-seeds", strconv.FormatUint(seeds, 10))
	cmd.Dir = r.temp
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1") // one seed after the other
	out, err := cmd.CombinedOutput()
	if err == nil {
		return 0, "", nil
	}
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || ctx.Err() != nil {
		return 0, "", err
	}
	line := failureLine.FindSubmatch(out)
	if line == nil {
		return 0, "", fmt.Errorf("the simulator ended without saying why: %w\n%s", err, tail(out))
	}
	seed, err = strconv.ParseUint(string(line[1]), 10, 64)
	return seed, string(line[0]), err
}

// tail is the end of an output.
func tail(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}
