package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/wire"
)

const unlimited = 1 << 40 // bytes a second

// measureRates reads the device, hashes, verifies and scrubs in turn.
func measureRates(ctx context.Context, r *failsafeRunner, m *FailsafeScenario) error {
	if err := r.awaitIndex(ctx); err != nil {
		return err
	}
	for round := range r.options.Rounds {
		m.row("SHA-256, one core", "MB/s").add(hashRate(min(r.options.Size, 1<<30)) / 1e6)
		for _, job := range r.jobs() {
			before, err := readRate(ctx, r.image(job.image), r.options.Size)
			if err != nil {
				return err
			}
			rate, err := job.measure(ctx, m)
			if err != nil {
				return fmt.Errorf("%s: %w", job.name, err)
			}
			after, err := readRate(ctx, r.image(job.image), r.options.Size)
			if err != nil {
				return err
			}
			device := (before + after) / 2 // what else the disk does changes all the time
			m.row("device, O_DIRECT", "MB/s").add(device / 1e6)
			m.row(job.name, "MB/s").add(rate / 1e6)
			m.row(job.ratio(), "×").add(rate / min(device, coreRate))
		}
		r.options.Tell(fmt.Sprintf("rates, round %d of %d: %s", round+1, r.options.Rounds, m.brief()))
	}
	for _, job := range r.jobs() {
		m.atLeast(job.ratio(), job.goal)
		m.atMost(job.name+": memory", growthGoal)
	}
	return nil
}

// failsafeJob reads all of the volume, in the processes named.
type failsafeJob struct {
	name      string
	image     string // which is read beside it
	goal      float64
	processes []*Node
	run       func(ctx context.Context) (bytes int64, err error)
}

// ratio is the row of its rate beside what can be had.
func (j *failsafeJob) ratio() string { return j.name + " / min(device, 1.5 GB/s)" }

func (r *failsafeRunner) jobs() []failsafeJob {
	scrub := func(n *Node) func(ctx context.Context) (int64, error) {
		return func(ctx context.Context) (bytes int64, err error) {
			results, err := engine.Scrub(ctx, n.control, benchVolume, engine.ScrubOptions{Rate: unlimited}, nil)
			for _, s := range results {
				bytes += s.CheckedBytes
				if err == nil && len(s.Extents) > 0 {
					err = errors.New("the scrub has found rot")
				}
			}
			return bytes, err
		}
	}
	verify, verifyGoal := "verify, both ends on one disk", bothEndsGoal
	if r.options.MirrorDir != "" {
		verify, verifyGoal = "verify, a disk for each end", oneSideGoal
	}
	return []failsafeJob{
		{verify, "primary", verifyGoal, []*Node{r.primary, r.mirror}, func(ctx context.Context) (int64, error) {
			v, err := r.verify(ctx)
			if err == nil && len(v.Extents) > 0 {
				err = errors.New("the mirror differs")
			}
			return v.CheckedBytes, err
		}},
		{"scrub of the primary", "primary", oneSideGoal, []*Node{r.primary}, scrub(r.primary)},
		{"scrub of the mirror", "mirror", oneSideGoal, []*Node{r.mirror}, scrub(r.mirror)},
	}
}

// measure runs the job once, and notes what it took of memory and CPU.
func (j *failsafeJob) measure(ctx context.Context, m *FailsafeScenario) (bytesPerSecond float64, err error) {
	var before, cpu float64
	base := make([]int64, len(j.processes))
	for i, n := range j.processes {
		base[i] = n.resetPeak()
		before += n.cpuSeconds()
	}
	began := time.Now()
	bytes, err := j.run(ctx)
	seconds := time.Since(began).Seconds()
	if err == nil && bytes == 0 {
		err = errors.New("nothing was compared")
	}
	var growth int64
	for i, n := range j.processes {
		growth = max(growth, n.peak()-base[i])
		cpu += n.cpuSeconds()
	}
	m.row(j.name+": memory", "MiB").add(float64(growth) / (1 << 20))
	m.row(j.name+": CPU", "s/GB").add((cpu - before) / (float64(bytes) / 1e9))
	return float64(bytes) / seconds, err
}

func (r *failsafeRunner) verify(ctx context.Context) (engine.VerifyResult, error) {
	results, err := engine.Verify(ctx, r.primary.control, benchVolume, engine.VerifyOptions{}, nil)
	if err != nil || len(results) != 1 {
		return engine.VerifyResult{}, errors.Join(err, ctx.Err())
	}
	return results[0], nil
}

// readRate reads an image with O_DIRECT, as fast as the device goes.
func readRate(ctx context.Context, path string, size int64) (bytesPerSecond float64, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0) // not by blockdev: the node holds its lock
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const readers = 4
	pool := blockdev.NewPool(readers * extent)
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(readers)
	began := time.Now()
	for at := int64(0); at < size; at += extent {
		work.Go(func() error {
			buf, err := pool.Get(ctx, int(min(extent, size-at)))
			if err != nil {
				return err
			}
			defer pool.Put(buf)
			_, err = f.ReadAt(buf, at)
			return err
		})
	}
	err = work.Wait()
	return float64(size) / time.Since(began).Seconds(), err
}

// hashRate hashes blocks on one core, as a verify does.
func hashRate(total int64) (bytesPerSecond float64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := newFiller(Random, 1).next(extent)
	began := time.Now()
	for done := int64(0); done < total; done += extent {
		for at := 0; at < extent; at += 2 * failsafeBlock {
			wire.SumPair(buf[at:][:failsafeBlock], buf[at+failsafeBlock:][:failsafeBlock])
		}
	}
	return float64(total) / time.Since(began).Seconds()
}

// measureLatency has a writer in the first quarter of the volume, which is scrubbed every other time.
func measureLatency(ctx context.Context, r *failsafeRunner, m *FailsafeScenario) error {
	if err := r.awaitIndex(ctx); err != nil {
		return err
	}
	l := load{rw: "randwrite", block: 4 << 10, depth: 8, span: r.options.Size / 4}
	write := func() (Measured, error) {
		got, err := runFio(ctx, nbdURI(benchVolume, r.socket("export")), l, r.options.Size, min(2, r.options.Seconds/2), r.options.Seconds, "")
		if err == nil && got.P99Micros == 0 {
			err = errors.New("fio tells no percentiles")
		}
		return got, err
	}
	peak, err := write()
	if err != nil {
		return err
	}
	l.rate = max(int(peak.IOPS/2), 1)
	for round := range r.options.Rounds {
		var p99 [2]float64
		for i := range p99 {
			scrubbed := (i+round)%2 == 1
			stop := func() error { return nil }
			if scrubbed {
				stop = r.keepScrubbing(ctx, m)
			}
			got, err := write()
			if err = errors.Join(err, stop()); err != nil {
				return err
			}
			name := "p99 without a scrub"
			if scrubbed {
				name = "p99 with a scrub"
				p99[1] = got.P99Micros
			} else {
				p99[0] = got.P99Micros
			}
			m.row(name, "µs").add(got.P99Micros)
		}
		m.row("p99 with / without", "×").add(p99[1] / p99[0])
		r.options.Tell(fmt.Sprintf("latency, round %d of %d: %s", round+1, r.options.Rounds, m.brief()))
	}
	m.row("paced at", "IOPS").add(float64(l.rate))
	m.atMost("p99 with / without", p99ScrubGoal)
	return nil
}

// keepScrubbing scrubs the primary again and again until it is stopped, and notes how much that was.
func (r *failsafeRunner) keepScrubbing(ctx context.Context, m *FailsafeScenario) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	began := time.Now()
	var done int64
	go func() {
		for ctx.Err() == nil {
			var last int64
			_, err := engine.Scrub(ctx, r.primary.control, benchVolume, engine.ScrubOptions{}, func(p engine.CheckProgress) { last = p.Done })
			done += last
			if e, ok := errors.AsType[*engine.Error](err); ok && e.Kind == engine.KindState {
				time.Sleep(statusPoll) // the one before is not over yet
			} else if err != nil && ctx.Err() == nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	return func() error {
		cancel()
		err := <-ended
		if err == nil && done == 0 {
			err = errors.New("nothing was scrubbed")
		}
		m.row("scrubbed meanwhile, and passed over", "MB/s").add(float64(done) / time.Since(began).Seconds() / 1e6)
		return err
	}
}

// measureSparse damages blocks of the mirror behind its back, has them found and repaired.
func measureSparse(ctx context.Context, r *failsafeRunner, m *FailsafeScenario) error {
	for round := range r.options.Rounds {
		if err := r.damage(uint64(round)); err != nil {
			return err
		}
		began := time.Now()
		v, err := r.verify(ctx)
		if err != nil {
			return err
		}
		if len(v.Extents) != damagedBlocks {
			return fmt.Errorf("the verify has found %d damaged blocks of %d", len(v.Extents), damagedBlocks)
		}
		m.row("verify", "s").add(time.Since(began).Seconds())
		began = time.Now()
		results, err := engine.Repair(ctx, r.primary.control, benchVolume, engine.RepairOptions{}, nil)
		if err != nil {
			return err
		}
		m.row("repair", "s").add(time.Since(began).Seconds())
		m.row("shipped", "KiB").add(float64(results[0].ShippedBytes) / 1024)
		if v, err = r.verify(ctx); err != nil || len(v.Extents) > 0 {
			return errors.Join(err, fmt.Errorf("%d extents differ after the repair", len(v.Extents)))
		}
		r.options.Tell(fmt.Sprintf("sparse, round %d of %d: %s", round+1, r.options.Rounds, m.brief()))
	}
	m.atMost("repair", repairGoal)
	m.atMost("shipped", damagedBlocks*failsafeBlock/1024)
	return nil
}

// damage changes a byte in one block of each MiB of data.
func (r *failsafeRunner) damage(seed uint64) error {
	f, err := os.OpenFile(r.image("mirror"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(seed, 3))
	for i := range int64(damagedBlocks) {
		at := i*(sparseVolume/damagedBlocks) + random.Int64N(extent)
		var b [1]byte
		if _, err = f.ReadAt(b[:], at); err == nil {
			b[0] ^= 1 << random.IntN(8)
			_, err = f.WriteAt(b[:], at)
		}
		if err != nil {
			break
		}
	}
	return errors.Join(err, f.Sync(), f.Close())
}
