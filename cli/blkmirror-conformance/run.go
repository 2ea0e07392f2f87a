package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/blkmirror/blkmirror/conformance"
)

// report is what `run --json` prints.
type report struct {
	Adapter       string               `json:"adapter"`
	Seed          uint64               `json:"seed"`
	Scenarios     []conformance.Result `json:"scenarios"`
	Passed        int                  `json:"passed"`
	Failed        int                  `json:"failed"`
	NotApplicable int                  `json:"not_applicable"`
}

func (a *app) runScenarios(ctx context.Context, args []string) error {
	f := a.flags("run")
	adapter := f.String("adapter", "blkmirror", "a `NAME` in the folder adapters beside that of the scenarios, or a path to an executable")
	seed := f.Uint64("seed", 0, "of all that is random; 0: a new `N` each time")
	keep := f.Bool("keep", false, "leave images, history and logs")
	asJSON := f.Bool("json", false, "one object on standard output, nothing else")
	verbose := f.Bool("verbose", false, "print each step before it is done")
	paths, err := a.parse(f, args, 1, 1000)
	if err != nil {
		return err
	}
	scenarios, err := conformance.Load(paths...)
	if err != nil {
		return err
	}
	path, err := findAdapter(*adapter, scenarios[0].Path)
	if err != nil {
		return err
	}
	u := &conformance.Suite{Adapter: path, Seed: seedOr(*seed), Keep: *keep}
	if *verbose {
		u.Told = func(s *conformance.Scenario, step conformance.Step) {
			fmt.Fprintf(a.stderr, "    %s:%d: %s\n", filepath.Base(s.Path), step.Line, step.Text)
		}
	}
	rep := report{Adapter: path, Seed: u.Seed}
	if !*asJSON {
		fmt.Fprintf(a.stdout, "%d scenarios with the adapter %s, seed %d\n", len(scenarios), path, u.Seed)
	}
	for _, s := range scenarios {
		res, err := u.Run(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Path, err)
		}
		rep.add(res)
		if !*asJSON {
			a.tell(res)
		}
	}
	return a.end(rep, *asJSON)
}

// findAdapter takes a name for that of a file near the scenarios.
func findAdapter(name, scenario string) (string, error) {
	path := name
	if !strings.ContainsRune(name, filepath.Separator) {
		path = filepath.Join(filepath.Dir(scenario), "..", "adapters", name)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0) {
		err = errors.New("it is not executable")
	}
	if err != nil {
		return "", usageError{fmt.Errorf("adapter %s: %w", path, err)}
	}
	return path, nil
}

func (r *report) add(res conformance.Result) {
	r.Scenarios = append(r.Scenarios, res)
	switch res.Outcome {
	case conformance.Passed:
		r.Passed++
	case conformance.Failed:
		r.Failed++
	default:
		r.NotApplicable++
	}
}

// tell prints the outcome of one scenario.
func (a *app) tell(res conformance.Result) {
	word := map[conformance.Outcome]string{conformance.Passed: "pass", conformance.Failed: "FAIL", conformance.NotApplicable: "n.a."}[res.Outcome]
	fmt.Fprintf(a.stdout, "%s  %s (%s, %.1f s, %d writes)\n", word, res.Name, filepath.Base(res.File), res.Seconds, res.Writes)
	if res.Outcome == conformance.Failed && res.Line > 0 {
		fmt.Fprintf(a.stdout, "      line %d: %s\n", res.Line, res.Step)
	}
	if res.Reason != "" {
		fmt.Fprintf(a.stdout, "      %s\n", strings.ReplaceAll(res.Reason, "\n", "\n      "))
	}
	if res.Kept != "" {
		fmt.Fprintf(a.stdout, "      kept in %s\n", res.Kept)
	}
}

func (a *app) end(rep report, asJSON bool) error {
	if asJSON {
		if err := a.printJSON(rep); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "%d passed, %d failed, %d not applicable\n", rep.Passed, rep.Failed, rep.NotApplicable)
	}
	if rep.Failed > 0 {
		return errWrong
	}
	return nil
}
