package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/engine"
)

// FailsafeOptions say what to measure of verify, scrub and repair.
type FailsafeOptions struct {
	Binary    string   // blkmirror itself
	Dir       string   // for images and state; a folder of its own is made in it and removed
	MirrorDir string   // likewise, for the mirror's, on another disk; "": Dir
	Size      int64    // of the full volume; the sparse one has sparseVolume
	Rounds    int      // how often everything is measured
	Seconds   int      // of each run of the writer
	Scenarios []string // empty: all
	Tell      func(text string)
}

const (
	sparseVolume  = 100 << 30
	damagedBlocks = 10
	failsafeBlock = 64 << 10 // the default block size

	coreRate     = 1.5e9 // bytes a second that one core is expected to hash
	oneSideGoal  = 0.8   // of the lower of the device's rate and coreRate: what reads one side
	bothEndsGoal = 0.4   // … and what reads both, on one machine and one disk
	growthGoal   = 64    // MiB of memory that a verify or a scrub may take
	p99ScrubGoal = 1.05  // times the p99 without a scrub
	repairGoal   = 10    // seconds
)

// failsafeScenario is one thing to measure, on a pair of nodes of its own.
type failsafeScenario struct {
	name, about string
	needs       string // a program
	image       func(ctx context.Context, r *failsafeRunner, path string) error
	run         func(ctx context.Context, r *failsafeRunner, m *FailsafeScenario) error
}

var failsafeScenarios = []failsafeScenario{
	{name: "rates", about: "verify and scrub of a full volume, as fast as they can, beside the device and one core", image: fullImage, run: measureRates},
	{name: "latency", about: "4 KiB random writes at half of the peak load, with and without a scrub of the primary at its default rate",
		needs: "fio", image: fullImage, run: measureLatency},
	{name: "sparse", about: "100 GiB with some MiB of data: a verify that finds 10 damaged blocks, and their repair", image: sparseImage, run: measureSparse},
}

// FailsafeScenarioNames lists what FailsafeOptions.Scenarios may hold.
func FailsafeScenarioNames() []string {
	var names []string
	for _, s := range failsafeScenarios {
		names = append(names, s.name)
	}
	return names
}

// failsafeRunner holds the pair of nodes that is measured.
type failsafeRunner struct {
	options         FailsafeOptions
	work            string // folder with images and state of a scenario
	mirrorWork      string // and the mirror's
	sockets         string // a folder with a short path
	primary, mirror *Node
}

// RunFailsafe measures. A result comes back also with an error: the scenarios that were complete by then.
func RunFailsafe(ctx context.Context, o FailsafeOptions) (result FailsafeResult, err error) {
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	for _, name := range o.Scenarios {
		if !slices.Contains(FailsafeScenarioNames(), name) {
			return result, fmt.Errorf("no scenario %q; there are %s", name, strings.Join(FailsafeScenarioNames(), ", "))
		}
	}
	r := &failsafeRunner{options: o}
	if r.sockets, err = os.MkdirTemp("", "blkmirror-"); err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.sockets)) }()
	result = FailsafeResult{Size: o.Size, Rounds: o.Rounds, Seconds: o.Seconds}
	for i := range failsafeScenarios {
		s := &failsafeScenarios[i]
		if len(o.Scenarios) > 0 && !slices.Contains(o.Scenarios, s.name) {
			continue
		}
		m := FailsafeScenario{Name: s.name, About: s.about, Goals: []FailsafeGoal{}}
		if s.needs != "" && find(s.needs) == "" {
			m.Skipped = s.needs + " is not installed"
		} else if err := r.measure(ctx, s, &m); err != nil {
			return result, fmt.Errorf("scenario %s: %w", s.name, err)
		}
		result.Scenarios = append(result.Scenarios, m)
	}
	return result, nil
}

// measure starts a pair of nodes on new images, and ends and removes all of that.
func (r *failsafeRunner) measure(ctx context.Context, s *failsafeScenario, m *FailsafeScenario) (err error) {
	r.options.Tell(s.name + ": " + s.about)
	for _, f := range []struct {
		path *string
		in   string
	}{{&r.work, r.options.Dir}, {&r.mirrorWork, cmp.Or(r.options.MirrorDir, r.options.Dir)}} {
		if *f.path, err = os.MkdirTemp(f.in, "blkmirror-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(*f.path)) }()
	}
	if err := s.image(ctx, r, r.image("primary")); err != nil {
		return err
	}
	if err := r.startPair(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stopPair(err == nil)) }()
	if err := s.run(ctx, r, m); err != nil {
		return err
	}
	m.summarise()
	return ctx.Err()
}

// folder is where a node keeps its image and its state.
func (r *failsafeRunner) folder(node string) string {
	if node == "mirror" {
		return r.mirrorWork
	}
	return r.work
}

func (r *failsafeRunner) image(node string) string { return filepath.Join(r.folder(node), node+".img") }

func (r *failsafeRunner) socket(name string) string { return filepath.Join(r.sockets, name) }

// startPair returns when the mirror has everything.
func (r *failsafeRunner) startPair(ctx context.Context) (err error) {
	if r.mirror, err = r.start(ctx, "mirror"); err != nil {
		return err
	}
	r.primary, err = r.start(ctx, "primary", "--mirror", benchVolume+"="+r.mirror.Address, "--export", benchVolume+"=unix:"+r.socket("export"))
	if err == nil {
		r.options.Tell("the mirror gets everything")
		_, err = r.primary.Cut(ctx, benchVolume)
	}
	if err != nil {
		err = errors.Join(err, r.stopPair(false))
	}
	return err
}

func (r *failsafeRunner) start(ctx context.Context, name string, flags ...string) (*Node, error) {
	return StartNode(ctx, NodeOptions{Binary: r.options.Binary, State: filepath.Join(r.folder(name), name), Control: r.socket(name), Profile: r.profile(name),
		Flags: append([]string{"--quiet", "--volume", benchVolume + "=" + r.image(name), "--scrub", benchVolume + "=off"}, flags...)})
}

// profile is where a node writes its CPU profile, where the caller wants them.
func (r *failsafeRunner) profile(name string) string {
	if dir := os.Getenv("BLKMIRROR_BENCH_PROFILES"); dir != "" {
		return filepath.Join(dir, name+".pprof")
	}
	return ""
}

// stopPair ends both nodes: cleanly, or as fast as can be where nothing of them is wanted any more.
func (r *failsafeRunner) stopPair(clean bool) (err error) {
	for _, n := range []**Node{&r.primary, &r.mirror} {
		switch {
		case *n == nil:
		case clean:
			err = errors.Join(err, (*n).Stop())
		default:
			(*n).Kill()
		}
		*n = nil
	}
	return err
}

// awaitIndex waits until a scrub of the primary finds everything in its index.
func (r *failsafeRunner) awaitIndex(ctx context.Context) error {
	r.options.Tell("the primary indexes its volume")
	_, err := r.primary.AwaitVolume(ctx, benchVolume, func(v engine.VolumeStatus) bool { return v.IndexNeeds == 0 })
	return err
}

func fullImage(ctx context.Context, r *failsafeRunner, path string) error {
	r.options.Tell("making the image")
	return WriteImage(ctx, path, r.options.Size, Random, 7)
}

// sparseImage has a MiB of data behind each tenth of its size.
func sparseImage(_ context.Context, _ *failsafeRunner, path string) error {
	if err := ensureSize(path, sparseVolume); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	fill := newFiller(Random, 7)
	for i := range int64(damagedBlocks) {
		if _, err = f.WriteAt(fill.next(extent), i*(sparseVolume/damagedBlocks)); err != nil {
			break
		}
	}
	return errors.Join(err, f.Sync(), f.Close())
}
