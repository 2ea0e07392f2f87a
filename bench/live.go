package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// LiveOptions say what to measure of live volumes.
type LiveOptions struct {
	Binary    string   // blkmirror itself
	Dir       string   // for images and state; a folder of its own is made in it and removed
	Size      int64    // of the volumes
	Seconds   int      // of each run, behind WarmUp
	WarmUp    int      // seconds that do not count
	Pairs     int      // rounds: in each, every export runs once
	Scenarios []string // empty: all
	Tell      func(text string)
}

// liveRunner holds what outlives a scenario.
type liveRunner struct {
	options       LiveOptions
	base          string // folder
	sockets       string // a folder with a short path: that of a socket has at most 107 bytes
	mirrorAddress string // the same in all runs: it is the mirror's name, by which a primary knows what it has
}

// liveRun is a scenario under way.
type liveRun struct {
	*liveRunner
	scenario *liveScenario
	work     string // folder with images and state
	rate     int    // of a scenario at half load
}

// RunLive measures. A result comes back also with an error: the scenarios that were complete by then.
func RunLive(ctx context.Context, o LiveOptions) (result LiveResult, err error) {
	r := &liveRunner{options: o}
	if r.options.Tell == nil {
		r.options.Tell = func(string) {}
	}
	chosen, err := chooseLive(o.Scenarios)
	if err != nil {
		return result, err
	}
	if find("fio") == "" {
		return result, errors.New("fio is not installed: it makes the load (Debian: apt install fio)")
	}
	if r.base, err = os.MkdirTemp(o.Dir, "blkmirror-bench-"); err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.base)) }()
	if r.sockets, err = os.MkdirTemp("", "blkmirror-"); err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.sockets)) }()
	port, err := freePort()
	if err != nil {
		return result, err
	}
	r.mirrorAddress = "127.0.0.1:" + port

	result = LiveResult{Size: o.Size, Seconds: o.Seconds, Pairs: o.Pairs, Tools: map[string]string{
		"fio": toolVersion(ctx, "fio", "--version"), "qemu-nbd": toolVersion(ctx, "qemu-nbd", "--version"), "nbdkit": toolVersion(ctx, "nbdkit", "--version"),
	}}
	for i := range chosen {
		m, err := r.measure(ctx, &chosen[i])
		if err != nil {
			return result, fmt.Errorf("scenario %s: %w", chosen[i].name, err)
		}
		result.Scenarios = append(result.Scenarios, m)
	}
	return result, nil
}

func chooseLive(names []string) ([]liveScenario, error) {
	for _, name := range names {
		if !slices.Contains(LiveScenarioNames(), name) {
			return nil, fmt.Errorf("no scenario %q; there are %s", name, strings.Join(LiveScenarioNames(), ", "))
		}
	}
	var chosen []liveScenario
	for _, s := range liveScenarios {
		if len(names) == 0 || slices.Contains(names, s.name) {
			chosen = append(chosen, s)
		}
	}
	return chosen, nil
}

// measure runs all rounds of one scenario.
func (r *liveRunner) measure(ctx context.Context, s *liveScenario) (LiveScenario, error) {
	m := LiveScenario{Name: s.name, About: s.about, Unit: s.unit}
	r.options.Tell(s.name + ": " + s.about)
	run := &liveRun{liveRunner: r, scenario: s, work: filepath.Join(r.base, "volumes")}
	switch { // with images, or a state, that no other scenario can use
	case s.sparse:
		run.work = filepath.Join(r.base, "sparse")
		defer os.RemoveAll(run.work)
	case s.copying:
		run.work = filepath.Join(r.base, "copy")
		defer os.RemoveAll(run.work)
	}
	var taking []liveContender
	for _, c := range s.contenders {
		if program := c.export.missing(); program != "" {
			m.Skipped = append(m.Skipped, Skipped{c.name, program + " is not installed"})
			continue
		}
		taking = append(taking, c)
		m.Contenders = append(m.Contenders, LiveContender{Name: c.name, Runs: []LiveSample{}})
	}
	if err := run.makeImages(ctx, taking); err != nil {
		return m, err
	}
	if s.half {
		if err := run.findHalf(ctx, taking[0]); err != nil {
			return m, err
		}
		m.Rate = run.rate
	}
	for round := range r.options.Pairs {
		for i := range taking {
			n := (i + round) % len(taking)
			sample, err := run.once(ctx, taking[n], run.rate, round == 0)
			if err != nil {
				return m, fmt.Errorf("%s: %w", taking[n].name, err)
			}
			m.Contenders[n].Runs = append(m.Contenders[n].Runs, sample)
			r.options.Tell(fmt.Sprintf("%s, round %d of %d: %s: %s", s.name, round+1, r.options.Pairs, taking[n].name, sample.brief(s)))
		}
	}
	m.summarise(s)
	return m, nil
}

// makeImages makes what is not there yet. Images are full, so that no run pays for room; each export of
// ours keeps its own, with its state, and the others share one.
func (r *liveRun) makeImages(ctx context.Context, taking []liveContender) error {
	if err := os.MkdirAll(r.work, 0o755); err != nil {
		return err
	}
	for _, c := range taking {
		name := "disk"
		if e, ours := c.export.(liveExport); ours && e.mirrored {
			name = "primary"
		} else if ours {
			name = "single"
		}
		if _, err := os.Stat(r.image(name)); err == nil {
			continue
		}
		if r.scenario.sparse {
			if err := ensureSize(r.image(name), hugeVolume); err != nil {
				return err
			}
			continue
		}
		r.options.Tell(fmt.Sprintf("%s: making the image %s", r.scenario.name, name))
		if err := WriteImage(ctx, r.image(name), r.options.Size, Random, uint64(len(name))); err != nil {
			return err
		}
	}
	return nil
}

// findHalf measures the peak load of an export and keeps half of it.
func (r *liveRun) findHalf(ctx context.Context, c liveContender) error {
	sample, err := r.once(ctx, c, 0, false)
	if err != nil {
		return err
	}
	r.rate = max(int(sample.Measured.IOPS/2), 1)
	r.options.Tell(fmt.Sprintf("%s: the peak of %s is %.0f IOPS, half of it is %d", r.scenario.name, c.name, sample.Measured.IOPS, r.rate))
	return nil
}

// once starts an export, puts the load on it, and ends it. With check the mirror is compared with the
// primary afterwards.
func (r *liveRun) once(ctx context.Context, c liveContender, rate int, check bool) (s LiveSample, err error) {
	if r.scenario.copying {
		return r.copyOnce(ctx, c, check)
	}
	unix.Sync() // what another export left in the page cache must not be written during our time
	o, err := c.export.open(ctx, r)
	if err != nil {
		return s, err
	}
	l, seconds, size := r.scenario.load, r.options.Seconds*r.scenario.times, r.options.Size
	if l.rate = rate; r.scenario.sparse {
		size = hugeVolume
	}
	var watch *lagWatch
	if o.mirror != nil {
		watch = startLagWatch(ctx, o.primary, seconds)
	}
	s.Measured, err = runFio(ctx, o.uri, l, size, r.options.WarmUp, seconds, r.scenario.clientCore())
	s.Value = r.scenario.value(s.Measured)
	if watch != nil {
		s.Lag = watch.stop()
		if err == nil && l.writes() {
			err = s.settle(ctx, o)
		}
	}
	err = errors.Join(err, o.stop(&s))
	if err == nil {
		err = ctx.Err()
	}
	// Of a huge volume with pages here and there, comparing would take longer than all the rest.
	if err == nil && check && o.mirror != nil && !r.scenario.sparse {
		s.Compared = true
		err = compare(ctx, r.image("primary"), r.image("mirror"), size)
	}
	return s, err
}
