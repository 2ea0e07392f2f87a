package conformance

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// Outcome is how a scenario ended.
type Outcome string

// The outcomes. NotApplicable: the tool lacks what the scenario is about, or a part of it; that is no pass.
const (
	Passed        Outcome = "passed"
	Failed        Outcome = "failed"
	NotApplicable Outcome = "not applicable"
)

// Result is the outcome of one scenario. It is printed as JSON.
type Result struct {
	Name    string  `json:"name"`
	File    string  `json:"file"`
	Outcome Outcome `json:"outcome"`
	Line    int     `json:"line,omitempty"` // of the step that failed
	Step    string  `json:"step,omitempty"`
	Reason  string  `json:"reason,omitempty"`
	Seconds float64 `json:"seconds"`
	Writes  int     `json:"writes"`
	Kept    string  `json:"kept,omitempty"` // the folder with images, history and logs
}

// Suite runs scenarios against one tool.
type Suite struct {
	Adapter string // an executable
	Seed    uint64 // of all that is random
	Dir     string // where a folder is made for each scenario; "": the system's for temporary files
	Keep    bool   // leave these folders
	Told    func(*Scenario, Step)
}

// errNotApplicable ends a scenario that cannot be run here.
var errNotApplicable = errors.New("not applicable")

// stepError is what a step was not satisfied with.
type stepError struct {
	step Step
	err  error
}

func (e *stepError) Error() string { return e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// run is a scenario under way.
type run struct {
	*Suite
	s       *Scenario
	dir     string
	a       *adapter
	can     []string // capabilities
	rng     *rand.Rand
	nodes   map[string]*node
	links   map[string]*link // by the mirror's name
	skipped []string         // steps that the tool cannot do
	mounts  []string

	history *stamp.History
	record  *os.File
	load    stamp.Load    // where the writer writes; empty until it is asked for
	writer  *stamp.Writer // nil until the first write
	resting bool
	synced  stamp.Tick               // all that was answered by then was in sync since
	looks   map[string]stamp.Verdict // the last one of each mirror
	sums    map[string]string        // of images that are remembered
	marks   map[string]stamp.Seq     // the last write in a snapshot of the primary
}

// Run runs one scenario from end to end. The error is about ourselves; the tool's failures are in the Result.
func (u *Suite) Run(ctx context.Context, s *Scenario) (Result, error) {
	res := Result{Name: s.Name, File: s.Path}
	begin := time.Now()
	r, err := u.prepare(s)
	if err != nil {
		return res, err
	}
	if err := r.capabilities(ctx); err != nil {
		return res, errors.Join(err, r.finish(), os.RemoveAll(r.dir))
	}
	if err = r.needs(); err == nil {
		err = r.do(ctx, s.Steps)
	}
	if end := r.finish(); err == nil {
		err = end
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	res.Seconds, res.Writes = time.Since(begin).Seconds(), r.history.Writes()
	r.judge(&res, err)
	if u.Keep {
		res.Kept = r.dir
	} else if err := os.RemoveAll(r.dir); err != nil {
		return res, err
	}
	if ctx.Err() != nil {
		return res, fmt.Errorf("interrupted; what was started is ended: %w", context.Cause(ctx))
	}
	return res, nil
}

// judge fills in the outcome.
func (r *run) judge(res *Result, err error) {
	var at *stepError
	if errors.As(err, &at) {
		res.Line, res.Step = at.step.Line, at.step.Text
	}
	switch {
	case errors.Is(err, errNotApplicable):
		res.Outcome, res.Reason = NotApplicable, err.Error()
	case err != nil:
		res.Outcome, res.Reason = Failed, err.Error()
	case len(r.skipped) > 0:
		res.Outcome, res.Reason = NotApplicable, "the rest passed, but these steps were left out: "+strings.Join(r.skipped, "; ")
	default:
		res.Outcome = Passed
	}
}

// prepare makes the folder, the primary's image, the links and the environment of the adapter.
func (u *Suite) prepare(s *Scenario) (_ *run, err error) {
	dir, err := os.MkdirTemp(u.Dir, "conf") // short: sockets lie in it
	if err != nil {
		return nil, err
	}
	r := &run{
		Suite: u, s: s, dir: dir, a: &adapter{path: u.Adapter}, nodes: map[string]*node{}, links: map[string]*link{},
		looks: map[string]stamp.Verdict{}, sums: map[string]string{}, marks: map[string]stamp.Seq{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.finish(), os.RemoveAll(dir))
		}
	}()
	// Scenarios of one seed shall differ, and one of them alone be as it was among all.
	name := fnv.New64a()
	name.Write([]byte(filepath.Base(s.Path)))
	seed := u.Seed ^ name.Sum64()
	r.rng = rand.New(rand.NewPCG(seed, 0))

	own, err := freeAddress()
	if err != nil {
		return nil, err
	}
	r.nodes["primary"] = newNode("primary", dir, own, r.a)
	for i, name := range nodeNames[1 : 1+s.Mirrors] {
		if r.links[name], err = newLink(seed + uint64(i)); err != nil {
			return nil, err
		}
		r.nodes[name] = newNode(name, dir, r.links[name].listens, r.a)
	}
	r.a.env = r.environment(seed)
	return r, r.volume(seed)
}

// environment is what an adapter knows of a scenario.
func (r *run) environment(seed uint64) []string {
	names := nodeNames[:1+r.s.Mirrors]
	env := append(os.Environ(),
		"CONFORMANCE_DIR="+r.dir,
		fmt.Sprintf("CONFORMANCE_SIZE=%d", r.s.Size),
		fmt.Sprintf("CONFORMANCE_SEED=%d", seed),
		"CONFORMANCE_NODES="+strings.Join(names, " "),
	)
	for _, name := range names {
		n, key := r.nodes[name], "CONFORMANCE_"+strings.ToUpper(name)
		env = append(env, key+"_IMAGE="+n.image, key+"_STATE="+n.state, key+"_LISTEN="+n.listen)
		if k := r.links[name]; k != nil {
			env = append(env, key+"_LINK="+k.addr)
		}
	}
	return env
}

// volume makes the primary's image, state directories, and an empty history.
func (r *run) volume(seed uint64) error {
	for _, n := range r.nodes {
		if err := os.Mkdir(n.state, 0o755); err != nil {
			return err
		}
	}
	f, err := os.Create(r.nodes["primary"].image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(r.s.Size), f.Close()); err != nil {
		return err
	}
	r.history = stamp.NewHistory(r.s.Size/stamp.PageSize, seed)
	if r.record, err = os.Create(filepath.Join(r.dir, "history")); err != nil {
		return err
	}
	return r.history.LogTo(r.record)
}

// capabilities asks what the tool can do. An adapter that cannot tell judges nobody.
func (r *run) capabilities(ctx context.Context) error {
	said, err := r.a.ask(ctx, "capabilities")
	if err != nil {
		return err
	}
	r.can = strings.Fields(said)
	for _, c := range r.can {
		if !slices.Contains(Capabilities, c) || c == "root" {
			return fmt.Errorf("adapter capabilities: there is none with the name %q", c)
		}
	}
	if os.Geteuid() == 0 {
		r.can = append(r.can, "root")
	}
	return nil
}

// needs ends a scenario that says nothing about this tool.
func (r *run) needs() error {
	for _, need := range r.s.Needs {
		if !slices.Contains(r.can, need) {
			return fmt.Errorf("%w: it needs %q, and there is none", errNotApplicable, need)
		}
	}
	return nil
}

// do does steps in turn, up to the first that is not satisfied.
func (r *run) do(ctx context.Context, steps []Step) error {
	for _, step := range steps {
		if step.verb.do == nil {
			for range step.args[0].(int) {
				if err := r.do(ctx, step.body); err != nil {
					return err
				}
			}
			continue
		}
		if need := step.verb.capability; need != "" && !slices.Contains(r.can, need) {
			r.skipped = append(r.skipped, fmt.Sprintf("line %d: %s (no %s)", step.Line, step.Text, need))
			continue
		}
		if r.Told != nil {
			r.Told(r.s, step)
		}
		err := ctx.Err()
		if err == nil {
			err = step.verb.do(r, ctx, step.args)
		}
		if err == nil {
			err = r.sound()
		}
		if err != nil {
			return &stepError{step, err}
		}
	}
	return nil
}

// sound fails a scenario as soon as the writer read something else than it wrote.
func (r *run) sound() error {
	if err := r.history.LogErr(); err != nil {
		return err
	}
	if r.writer != nil && r.writer.Err() != nil {
		return fmt.Errorf("what the primary shows to its users is wrong: %w", r.writer.Err())
	}
	return nil
}

// finish ends everything.
func (r *run) finish() error {
	for _, n := range r.nodes {
		n.kill()
	}
	var err error
	if r.writer != nil {
		r.writer.Stop()
		err = r.sound()
	}
	for _, k := range r.links {
		if k != nil {
			k.close()
		}
	}
	for _, dir := range r.mounts {
		err = errors.Join(err, unix.Unmount(dir, 0))
	}
	if r.record != nil {
		err = errors.Join(err, r.record.Close())
	}
	return err
}
