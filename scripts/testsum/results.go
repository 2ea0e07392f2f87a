package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// event is one line of 'go test -json'; see 'go doc test2json'.
type event struct {
	Action, Package, ImportPath, Test, Output string
	FailedBuild                               string
	Elapsed                                   float64
}

// result is how one test, or one step that is no Go test, ended.
type result struct {
	Name    string
	Outcome string // pass, fail, skip
	Reason  string `json:",omitempty"`
}

// run is a test under way.
type run struct {
	output  []string
	parent  bool // has subtests: these are counted in its place, unless it alone failed
	failure bool // a subtest failed
}

// reader turns events into results.
type reader struct {
	show    io.Writer
	verbose bool
	runs    map[string]*run // by package and test; an empty test is the package
	builds  map[string][]string
	results []result
}

// read takes the events to their end. Lines that are none, such as a compiler's, are passed on.
func read(in io.Reader, show io.Writer, verbose bool) ([]result, error) {
	r := &reader{show: show, verbose: verbose, runs: map[string]*run{}, builds: map[string][]string{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		var e event
		switch {
		case line == "":
		case json.Unmarshal([]byte(line), &e) == nil && e.Action != "":
			r.take(e)
		default:
			fmt.Fprint(show, line)
		}
		if errors.Is(err, io.EOF) {
			return r.results, nil
		}
		if err != nil {
			return r.results, err
		}
	}
}

func (r *reader) at(pkg, test string) *run {
	key := pkg + " " + test
	if r.runs[key] == nil {
		r.runs[key] = new(run)
	}
	return r.runs[key]
}

func (r *reader) take(e event) {
	switch e.Action {
	case "run":
		if i := strings.LastIndexByte(e.Test, '/'); i > 0 {
			r.at(e.Package, e.Test[:i]).parent = true
		}
	case "build-output":
		r.builds[e.ImportPath] = append(r.builds[e.ImportPath], e.Output)
	case "output":
		u := r.at(e.Package, e.Test)
		u.output = append(u.output, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
		} else {
			r.endTest(e)
		}
	}
}

func (r *reader) endTest(e event) {
	u := r.at(e.Package, e.Test)
	if e.Action == "fail" || r.verbose {
		fmt.Fprint(r.show, strings.Join(u.output, ""))
	}
	if i := strings.LastIndexByte(e.Test, '/'); i > 0 && e.Action == "fail" {
		r.at(e.Package, e.Test[:i]).failure = true
	}
	// A test with subtests counts by itself only where it did something of its own: failed or skipped.
	if u.parent && (e.Action == "pass" || u.failure) {
		return
	}
	res := result{Name: e.Package + "." + e.Test, Outcome: e.Action}
	if e.Action == "skip" {
		res.Reason = skipReason(u.output)
	}
	r.results = append(r.results, res)
}

// endPackage counts a package that failed outside of its tests: it does not compile, panicked, timed out.
func (r *reader) endPackage(e event) {
	fmt.Fprintf(r.show, "%-4s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
	if e.Action != "fail" {
		return
	}
	prefix := e.Package + "."
	told := slices.ContainsFunc(r.results, func(x result) bool {
		return x.Outcome == "fail" && strings.HasPrefix(x.Name, prefix)
	})
	if told {
		return
	}
	// What a test printed before the process died is with that test, not with the package.
	for key, u := range r.runs {
		if strings.HasPrefix(key, e.Package+" ") {
			fmt.Fprint(r.show, strings.Join(u.output, ""))
		}
	}
	fmt.Fprint(r.show, strings.Join(r.builds[e.FailedBuild], ""))
	r.results = append(r.results, result{Name: e.Package, Outcome: "fail", Reason: "the package as a whole"})
}

// skipReason finds what t.Skip was given: the last line that comes from a source file.
func skipReason(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if file, text, ok := strings.Cut(line, ": "); ok && strings.Contains(file, ".go:") {
			return text
		}
	}
	return "no reason given"
}

// save adds results to a file, one JSON object a line.
func save(path string, results []result) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	e := json.NewEncoder(f)
	for _, r := range results {
		err = errors.Join(err, e.Encode(r))
	}
	return errors.Join(err, f.Close())
}

// summarise prints what did not pass, with the reasons, and the count of all in the last line.
func summarise(in io.Reader, out io.Writer) (ok bool, err error) {
	count := map[string]int{}
	var failed, skipped []string
	for d := json.NewDecoder(in); ; {
		var r result
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return false, err
		}
		count[r.Outcome]++
		line := "  " + r.Name
		if r.Reason != "" {
			line += ": " + r.Reason
		}
		switch r.Outcome {
		case "fail":
			failed = append(failed, line)
		case "skip":
			skipped = append(skipped, line)
		}
	}
	for _, list := range []struct {
		title string
		lines []string
	}{{"Skipped", skipped}, {"Failed", failed}} {
		if len(list.lines) > 0 {
			fmt.Fprintf(out, "\n%s:\n%s\n", list.title, strings.Join(list.lines, "\n"))
		}
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
	// Nothing at all is no success: then the runs did not even begin.
	return count["fail"] == 0 && count["pass"] > 0, nil
}
