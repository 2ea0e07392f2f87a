// Package paths puts a bad path between a real primary and its mirror while somebody writes, and sees what the two make
// of it: the mirroring has to go on by itself, with no disconnect that was not needed, without shipping again what had
// arrived, and at the end the mirror is the primary. `go run ./scripts/paths` runs it; docs/RESILIENCE.md has the table.
//
//	paths.go      which scenarios are run, and how one is judged
//	scenarios.go  the scenarios
//	rig.go        a primary with a writer, the path, the mirror; from the start to the last comparison
//	watch.go      what the primary tells meanwhile
//	result.go     what was seen, and what was expected
//	proxy.go      the path: latency, silence, resets, half-open connections, little room
//	names.go      a name whose address changes
//	hop.go        network namespaces in a row, for what a proxy cannot do to packets
//	table.go      what was seen, for people
//
// Times are measured, and told beside the limit that they are to keep; a slow machine fails no scenario by them.
package paths

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// Options of a run.
type Options struct {
	Binary string    // of the product
	Temp   string    // a folder for everything
	Only   []string  // names of scenarios; none: all
	Short  bool      // fewer and shorter repetitions
	Plain  bool      // no TLS: what leaves the machine is not run then
	Seed   uint64    // of what is written
	Log    io.Writer // what happens meanwhile, and the logs of what failed
}

// Names are those of all scenarios, with what they do. ShortNames are those that are done within seconds.
func Names() (names []string) {
	for _, s := range scenarios {
		names = append(names, s.name+"\t"+s.cause)
	}
	return names
}

func ShortNames() (names []string) {
	for _, s := range scenarios {
		if s.short {
			names = append(names, s.name)
		}
	}
	return names
}

// Run runs scenarios one after the other. What they expect and did not see is in the table, and no error.
func Run(ctx context.Context, o Options) (*Table, error) {
	chosen := slices.Clone(scenarios)
	if len(o.Only) > 0 {
		chosen = slices.DeleteFunc(chosen, func(s *scenario) bool { return !slices.Contains(o.Only, s.name) })
		for _, name := range o.Only {
			if !slices.ContainsFunc(chosen, func(s *scenario) bool { return s.name == name }) {
				return nil, fmt.Errorf("there is no scenario %q", name)
			}
		}
	}
	t := new(Table)
	for _, s := range chosen {
		res := o.run(ctx, s)
		if ctx.Err() != nil {
			return t, context.Cause(ctx)
		}
		t.results = append(t.results, res)
		fmt.Fprintln(o.Log, res.line())
	}
	return t, nil
}

// errNotHere is wrapped by the errors of scenarios that need what this machine has not.
var errNotHere = errors.New("not run")

// run makes one scenario.
func (o *Options) run(ctx context.Context, s *scenario) *result {
	res := &result{scenario: s}
	r, err := newRig(ctx, o, s, res)
	if err == nil {
		err = s.run(r)
	}
	if err == nil {
		err = r.finish()
	}
	switch {
	case errors.Is(err, errNotHere):
		res.notRun = err.Error()
	case err != nil:
		res.fail("%v", err)
	}
	if r == nil {
		return res
	}
	r.close()
	if len(res.failures) > 0 && ctx.Err() == nil {
		fmt.Fprintf(o.Log, "%s: %s\nprimary's log: %s\nmirror's log: %s\n", s.name, res.failures, r.primary.Log.Tail(), r.mirror.Log.Tail())
	}
	return res
}

// needRoot is asked by scenarios that make namespaces.
func needRoot() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it needs root", errNotHere)
	}
	return nil
}
