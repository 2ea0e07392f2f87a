package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what to measure.
type Options struct {
	Binary       string   // blkmirror itself
	Dir          string   // for images and state; a folder of its own is made in it and removed
	Size         int64    // of the images
	Pairs        int      // rounds: in each, every tool runs once
	Scenarios    []string // empty: all
	SourceDevice string   // a block device to use in place of the source image; it is overwritten
	TargetDevice string   // likewise for the target
	ProfileDir   string   // CPU profiles of every blkmirror process are written here
	WarmCaches   bool     // leave the caches of the machine alone: for tests of the harness itself
	Tell         func(text string)
}

// runner holds what outlives a run.
type runner struct {
	options Options
	work    string // folder of the current scenario
	sockets string // a folder with a short path: that of a socket has at most 107 bytes
	notes   []string
	seed    uint64 // of the last change, so that no two are alike
}

// Run measures. A result comes back also with an error: the scenarios that were complete by then.
func Run(ctx context.Context, o Options) (result Result, err error) {
	r := &runner{options: o}
	if r.options.Tell == nil {
		r.options.Tell = func(string) {}
	}
	if err := r.useDevices(); err != nil {
		return result, err
	}
	if o.ProfileDir != "" {
		if err := os.MkdirAll(o.ProfileDir, 0o755); err != nil {
			return result, err
		}
	}
	chosen, err := r.choose()
	if err != nil {
		return result, err
	}
	base, err := os.MkdirTemp(o.Dir, "blkmirror-bench-")
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base)) }()
	if r.sockets, err = os.MkdirTemp("", "blkmirror-"); err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.sockets)) }()

	result = Result{Size: r.options.Size, Pairs: o.Pairs, Tools: toolVersions(ctx)}
	for i := range chosen {
		s := &chosen[i]
		r.work = filepath.Join(base, s.name)
		if err := os.Mkdir(r.work, 0o755); err != nil {
			return result, err
		}
		measured, err := r.measure(ctx, s)
		if err != nil {
			return result, fmt.Errorf("scenario %s: %w", s.name, err)
		}
		result.Scenarios = append(result.Scenarios, measured)
		result.Notes = r.notes
		if err := os.RemoveAll(r.work); err != nil {
			return result, err
		}
	}
	return result, nil
}

func (r *runner) choose() ([]scenario, error) {
	for _, name := range r.options.Scenarios {
		if !slices.Contains(ScenarioNames(), name) {
			return nil, fmt.Errorf("no scenario %q; there are %s", name, strings.Join(ScenarioNames(), ", "))
		}
	}
	devices := r.options.SourceDevice != "" || r.options.TargetDevice != ""
	var chosen []scenario
	for _, s := range scenarios {
		switch named := slices.Contains(r.options.Scenarios, s.name); {
		case len(r.options.Scenarios) > 0 && !named:
		case s.huge && devices:
			r.note("%s is left out: it needs image files", s.name)
		default:
			chosen = append(chosen, s)
		}
	}
	return chosen, nil
}

func (r *runner) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(r.notes, text) {
		r.notes = append(r.notes, text)
		r.options.Tell(text)
	}
}

// measure runs all rounds of one scenario.
func (r *runner) measure(ctx context.Context, s *scenario) (Scenario, error) {
	m := Scenario{Name: s.name, About: s.about, Bytes: r.options.Size, Goal: s.goal}
	r.options.Tell(fmt.Sprintf("%s: %s; making the images", s.name, s.about))
	if err := r.makeSources(ctx, s, &m); err != nil {
		return m, err
	}
	var taking []contender
	for _, c := range s.contenders {
		if program := c.tool.missing(); program != "" {
			m.Skipped = append(m.Skipped, Skipped{c.name, program + " is not installed"})
			continue
		}
		taking = append(taking, c)
		m.Contenders = append(m.Contenders, Contender{Name: c.name, Runs: []Sample{}})
	}
	for round := range r.options.Pairs {
		for i := range taking {
			n := (i + round) % len(taking)
			sample, err := r.once(ctx, s, taking[n], round)
			if err != nil {
				return m, fmt.Errorf("%s: %w", taking[n].name, err)
			}
			m.Contenders[n].Runs = append(m.Contenders[n].Runs, sample)
			r.options.Tell(fmt.Sprintf("%s, round %d of %d: %s: %.2f s", s.name, round+1, r.options.Pairs, taking[n].name, sample.Seconds))
		}
	}
	m.summarise()
	return m, nil
}

// useDevices looks at the devices that the user named, before anything is written to them: opened
// exclusively, one that is mounted or otherwise in use is refused.
func (r *runner) useDevices() error {
	sizes := map[string]int64{}
	for _, path := range []string{r.options.SourceDevice, r.options.TargetDevice} {
		if path == "" {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err != nil || info.Mode().Type() != os.ModeDevice {
			return errors.Join(err, fmt.Errorf("%s is no block device", path))
		}
		if sizes[path], err = f.Seek(0, io.SeekEnd); err != nil {
			return err
		}
	}
	if source := r.options.SourceDevice; source != "" && sizes[source] != r.options.Size {
		r.options.Size = sizes[source]
		r.note("the size is that of the source device, %d bytes", r.options.Size)
	}
	if target := r.options.TargetDevice; target != "" && sizes[target] < r.options.Size {
		return fmt.Errorf("%s holds %d bytes, %d are needed", target, sizes[target], r.options.Size)
	}
	return nil
}

func (r *runner) makeSources(ctx context.Context, s *scenario, m *Scenario) error {
	big, small, size := r.sourceOf(false), r.sourceOf(true), r.options.Size
	if s.huge {
		m.Bytes = size / 4
		return errors.Join(writeImage(ctx, big, 256*size, size/4, s.content, 1), writeImage(ctx, small, size/4, size/4, s.content, 1))
	}
	if err := WriteImage(ctx, big, size, s.content, 1); err != nil || s.changed == 0 {
		return err
	}
	return r.record(ctx, s)
}

func (r *runner) sourceOf(small bool) string {
	if r.options.SourceDevice != "" {
		return r.options.SourceDevice
	}
	if small {
		return filepath.Join(r.work, "small.img")
	}
	return filepath.Join(r.work, "source.img")
}

func (r *runner) target() string {
	if r.options.TargetDevice != "" {
		return r.options.TargetDevice
	}
	return filepath.Join(r.work, "target.img")
}

func (r *run) stateOf(node string) string { return filepath.Join(r.work, "state-"+node) }

func (r *run) profileOf(process string) string {
	if r.profile == "" {
		return ""
	}
	return r.profile + "-" + process + ".pprof"
}

func (r *run) sizeOf(path string) int64 {
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
		return info.Size()
	}
	return r.options.Size
}

// record makes the target equal by a sync of our own, out of the time, so that the next run with
// --trust-index finds an index that is true.
func (r *runner) record(ctx context.Context, s *scenario) error {
	copying := &run{runner: r, scenario: s, source: r.sourceOf(false), target: r.target()}
	_, err := copying.timed(ctx, blkmirror{})
	return err
}

// once prepares the target, measures one run, and in the first round compares the two sides afterwards.
func (r *runner) once(ctx context.Context, s *scenario, c contender, round int) (Sample, error) {
	m := &run{runner: r, scenario: s, source: r.sourceOf(c.small), target: r.target()}
	if r.options.ProfileDir != "" && strings.HasPrefix(c.name, "blkmirror") {
		label := strings.NewReplacer(" ", "", ",", "-", "--", "-").Replace(c.name)
		m.profile = filepath.Join(r.options.ProfileDir, fmt.Sprintf("%s-%s-%d", s.name, label, round+1))
	}
	if err := m.reset(ctx, c); err != nil {
		return Sample{}, err
	}
	sample, err := m.timed(ctx, c.tool)
	if err != nil || round > 0 {
		return sample, err
	}
	sample.Compared = true
	return sample, compare(ctx, m.source, m.target, m.sizeOf(m.source))
}

// reset brings the target to where the scenario begins. After a run the target equals the source, so a
// delta only needs a change of the source.
func (r *run) reset(ctx context.Context, c contender) error {
	if r.scenario.changed > 0 {
		if b, ours := c.tool.(blkmirror); ours && b.trustIndex {
			if err := r.record(ctx, r.scenario); err != nil {
				return err
			}
		}
		r.seed++
		return Change(ctx, r.source, r.options.Size, r.scenario.changed, changedShare, r.seed)
	}
	if err := errors.Join(os.RemoveAll(r.stateOf("node")), os.RemoveAll(r.stateOf("sync"))); err != nil {
		return err
	}
	if r.options.TargetDevice == "" {
		if err := os.Remove(r.target); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	f, err := os.OpenFile(r.target, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(empty(f, r.options.Size), f.Sync())
}

// timed starts the server, drops the caches, and takes the time from the client's start until the
// target is durable.
func (r *run) timed(ctx context.Context, t tool) (s Sample, err error) {
	if err := t.prepare(ctx, r); err != nil {
		if r.server != nil {
			r.server.stop(&s.Server)
		}
		return s, err
	}
	r.dropCaches()
	began := time.Now()
	client, err := start(ctx, r.profileOf("sync"), t.client(r)...)
	if err == nil {
		err = client.wait(&s.Client)
	}
	if err == nil {
		err = makeDurable(r.target)
	}
	s.Seconds = time.Since(began).Seconds()
	if _, ours := t.(blkmirror); ours && err == nil {
		s.Report, err = syncReport(client.stdout.Bytes())
	}
	if r.server != nil {
		err = errors.Join(err, r.server.stop(&s.Server))
	}
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return s, err
}

// dropCaches makes every run read from the disk.
func (r *run) dropCaches() {
	if r.options.WarmCaches {
		return
	}
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err == nil {
		return
	}
	r.note("caches: only those of the images are dropped, for lack of the right to drop all")
	for _, path := range []string{r.source, r.target} {
		if f, err := os.Open(path); err == nil {
			unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			f.Close()
		}
	}
}

func makeDurable(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
