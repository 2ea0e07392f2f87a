package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/bench"
	"github.com/blkmirror/blkmirror/engine"
)

const (
	quickVolume  = "disk"
	quickPhase   = 3 * time.Second // how long each part of the demonstration is watched
	quickRate    = 2000            // pages a second that the client writes
	quickTimeout = 5 * time.Minute // for what takes seconds; only a broken machine reaches it
)

// quickstart is one demonstration: all paths lie in one folder.
type quickstart struct {
	*app
	dir, sockets    string
	source, target  string // images: the primary's and the mirror's
	size            int64
	binary          string
	primary, mirror *bench.Node // nil: does not run
}

func (a *app) quickstartCommand() *cli.Command {
	var keep string
	imageSize := size(1 << 30)
	return &cli.Command{
		Name:  "quickstart",
		Usage: "show everything on this machine, in one command",
		Description: `
Makes a disk image with real files in a temporary folder and starts two nodes, processes of their own: a
primary, which exports the disk, and a mirror. A client writes through the export, the mirror follows; the
mirror is killed while the client goes on, started again, and catches up. Then both images are compared,
without blkmirror, and everything is cleaned up. Needs no root, and takes less than a minute.`,
		UsageText: `
blkmirror quickstart
blkmirror quickstart --keep ~/blkmirror-demo --size 256M`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "keep", Destination: &keep, Usage: "work in `DIR`, new or empty, and keep the images there"},
			&cli.GenericFlag{Name: "size", Value: &imageSize, Usage: "make an image of `BYTES`"},
		},
		Action: func(c *cli.Context) error {
			return a.quickstart(c.Context, keep, int64(imageSize))
		},
	}
}

func (a *app) quickstart(ctx context.Context, keep string, size int64) error {
	const least = 16 << 20 // room for a file system with something in it
	if size < least {
		return usageError{command: "quickstart", text: "--size must be at least " + formatBytes(least)}
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	dir, remove, err := quickFolder(keep)
	if err != nil {
		return err
	}
	q := &quickstart{app: a, dir: dir, source: filepath.Join(dir, "disk.img"), target: filepath.Join(dir, "copy.img"),
		size: size &^ (pageSize - 1), binary: binary}
	err = q.run(ctx)
	if err := remove(); err != nil {
		fmt.Fprintf(a.stderr, "%s: warning: %s is left behind: %v\n", name, dir, err)
	}
	switch {
	case ctx.Err() != nil:
		return &interruptedError{text: "quickstart: interrupted, everything is cleaned up", next: "run it again"}
	case err != nil:
		return err
	case keep != "":
		fmt.Fprintf(a.stdout, "\nKept in %s: disk.img, copy.img, and the state of both nodes.\n", dir)
	default:
		fmt.Fprintf(a.stdout, "\nCleaned up. Next: '%s serve --help' for disks of yours, '%s sync SRC DST' to copy one once.\n", name, name)
	}
	return nil
}

// quickFolder makes the folder to work in, and the function that removes what is not to be kept.
func quickFolder(keep string) (dir string, remove func() error, err error) {
	if keep == "" {
		dir, err = os.MkdirTemp("", "blkmirror-quickstart-")
		return dir, func() error { return os.RemoveAll(dir) }, err
	}
	if dir, err = filepath.Abs(keep); err != nil {
		return "", nil, err
	}
	fail := func(err error, next string) error {
		return &engine.Error{Kind: engine.KindDevice, Op: "use folder", On: dir, Err: reason(err), Next: next}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, fail(err, "name another folder with --keep")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, fail(err, "name another folder with --keep")
	}
	if len(entries) > 0 {
		return "", nil, fail(errors.New("it is not empty"), "name a new folder with --keep")
	}
	return dir, func() error { return nil }, nil
}

func (q *quickstart) run(ctx context.Context) (err error) {
	if err := enoughRoom(q.dir, 3*q.size); err != nil {
		return err
	}
	// The path of a socket has at most 107 bytes, and the folder to keep may lie deep.
	if q.sockets, err = os.MkdirTemp("", "blkmirror-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(q.sockets)) }()
	defer q.killNodes()

	q.say("1. Make a disk: an image of %s", formatBytes(q.size))
	pages, err := q.makeImage(ctx)
	if err != nil {
		return err
	}
	if err := q.startNodes(ctx); err != nil {
		return err
	}
	if err := q.firstCopy(ctx); err != nil {
		return err
	}
	if err := q.live(ctx, pages); err != nil {
		return err
	}
	q.say("8. Stop both nodes and compare the two images, without blkmirror")
	if err := errors.Join(q.primary.Stop(), q.mirror.Stop()); err != nil {
		return err
	}
	q.primary, q.mirror = nil, nil
	return q.compare(ctx)
}

func (q *quickstart) say(format string, args ...any)  { fmt.Fprintf(q.stdout, format+"\n", args...) }
func (q *quickstart) note(format string, args ...any) { q.say("   "+format, args...) }

func (q *quickstart) exportSocket() string { return filepath.Join(q.sockets, "disk.sock") }

func (q *quickstart) startNodes(ctx context.Context) error {
	q.say("2. Start two nodes, each a process of its own, that trust each other's keys and talk TLS")
	if err := bench.Introduce(filepath.Join(q.dir, "primary"), filepath.Join(q.dir, "mirror"), quickVolume); err != nil {
		return err
	}
	if err := q.startMirror(ctx, ""); err != nil {
		return err
	}
	q.note("the mirror listens at %s; its copy is %s", q.mirror.Address, filepath.Base(q.target))
	var err error
	q.primary, err = bench.StartNode(ctx, bench.NodeOptions{Binary: q.binary, State: filepath.Join(q.dir, "primary"), TLS: true,
		Control: filepath.Join(q.sockets, "primary.sock"), Flags: []string{"--volume", quickVolume + "=" + q.source,
			"--export", quickVolume + "=unix:" + q.exportSocket(), "--mirror", quickVolume + "=" + q.mirror.Address, "--interval", quickVolume + "=500ms"}})
	if err != nil {
		return err
	}
	q.note("the primary exports %s as an NBD disk at unix:%s", filepath.Base(q.source), q.exportSocket())
	return nil
}

// startMirror starts it at the address that it had, if it had one.
func (q *quickstart) startMirror(ctx context.Context, address string) (err error) {
	q.mirror, err = bench.StartNode(ctx, bench.NodeOptions{Binary: q.binary, State: filepath.Join(q.dir, "mirror"), TLS: true, Listen: address,
		Control: filepath.Join(q.sockets, "mirror.sock"), Flags: []string{"--volume", quickVolume + "=" + q.target}})
	return err
}

// killNodes ends what an error or an interrupt left running.
func (q *quickstart) killNodes() {
	for _, n := range []*bench.Node{q.primary, q.mirror} {
		if n != nil {
			n.Kill()
		}
	}
}

// firstCopy waits until the mirror holds a cut of the disk.
func (q *quickstart) firstCopy(ctx context.Context) error {
	q.say("3. The first copy: everything that is not zero is hashed, compressed, sent, hashed again and compared")
	began := time.Now()
	m, err := q.await(ctx, func(m engine.MirrorStatus) bool { return m.State == "connected" && m.CommittedEpoch > 0 })
	if err != nil {
		return err
	}
	q.note("shipped %s (%s of the disk), %s on the wire, in %s", formatBytes(m.ShippedBytes), percent(m.ShippedBytes, q.size),
		formatBytes(m.WireBytes), engine.FormatSeconds(time.Since(began).Seconds()))
	return nil
}

// await waits until the mirror is as wanted, as its primary sees it.
func (q *quickstart) await(ctx context.Context, wanted func(engine.MirrorStatus) bool) (engine.MirrorStatus, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, quickTimeout, errors.New("the mirror does not become what it should"))
	defer cancel()
	v, err := q.primary.AwaitVolume(ctx, quickVolume, func(v engine.VolumeStatus) bool { return len(v.Mirrors) == 1 && wanted(v.Mirrors[0]) })
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil || len(v.Mirrors) != 1 {
		return engine.MirrorStatus{}, fmt.Errorf("wait for the mirror: %w", err)
	}
	return v.Mirrors[0], nil
}

// live is the part with a client: the mirror follows, is killed, and catches up.
func (q *quickstart) live(ctx context.Context, pages []int64) error {
	q.say("4. A client writes %s/s through the primary, pages of files picked at random; the mirror follows", formatBytes(quickRate*pageSize))
	w, err := startWriter(ctx, q.exportSocket(), pages)
	if err != nil {
		return err
	}
	defer w.stop()
	if err := q.watch(ctx, w, quickPhase); err != nil {
		return err
	}

	q.say("5. Kill the mirror (SIGKILL). The client goes on and notices nothing; the primary tracks what the mirror lacks")
	before, err := q.await(ctx, func(engine.MirrorStatus) bool { return true })
	if err != nil {
		return err
	}
	address, written := q.mirror.Address, w.written.Load()
	q.mirror.Kill()
	if err := q.watch(ctx, w, quickPhase); err != nil {
		return err
	}

	q.say("6. Start the mirror again: it gets what it lacks, and nothing else")
	began := time.Now()
	if err := q.startMirror(ctx, address); err != nil {
		return err
	}
	after, err := q.await(ctx, func(m engine.MirrorStatus) bool {
		return m.State == "connected" && m.CommittedEpoch > before.CommittedEpoch && m.LagSeconds < 2
	})
	if err != nil {
		return err
	}
	shipped := after.ShippedBytes - before.ShippedBytes
	q.note("connected and up to date after %s: shipped %s since the kill, %s of the disk (the client wrote %s meanwhile)",
		engine.FormatSeconds(time.Since(began).Seconds()), formatBytes(shipped), percent(shipped, q.size), formatBytes(w.written.Load()-written))
	if err := q.watch(ctx, w, quickPhase); err != nil {
		return err
	}

	q.say("7. The client stops; 'blkmirror cut %s --wait' until the mirror has everything", quickVolume)
	if err := w.stop(); err != nil {
		return fmt.Errorf("write through the export: %w", err)
	}
	r, err := q.primary.Cut(ctx, quickVolume)
	if err != nil {
		return err
	}
	q.note("cut %d is on the mirror's disk after %s; %s were written in all", r.Epoch, engine.FormatSeconds(r.Seconds), formatBytes(w.written.Load()))
	return nil
}

// watch shows the lag for a while: one line that changes on a terminal, else a line now and then.
func (q *quickstart) watch(ctx context.Context, w *quickWriter, span time.Duration) error {
	terminal, every := isTerminal(q.stdout.w), time.Second
	if terminal {
		every = 100 * time.Millisecond
		defer fmt.Fprintln(q.stdout)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	end := time.After(span)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.ended:
			return fmt.Errorf("write through the export: %w", w.err)
		case <-end:
			return nil
		case <-tick.C:
		}
		v, err := q.primary.Volume(ctx, quickVolume)
		if err != nil {
			return err
		}
		line := fmt.Sprintf("   written %s", formatBytes(w.written.Load()))
		for _, m := range v.Mirrors {
			line += fmt.Sprintf(", mirror %s at cut %d of %d, lag %s, %s", m.State, m.CommittedEpoch, v.Epoch, engine.FormatSeconds(m.LagSeconds), formatBytes(m.LagBytes))
		}
		if terminal {
			fmt.Fprintf(q.stdout, "\r%s\x1b[K", line)
		} else {
			fmt.Fprintln(q.stdout, line)
		}
	}
}

// compare trusts nothing of the engine's.
func (q *quickstart) compare(ctx context.Context) error {
	var sums [2][]byte
	var errs [2]error
	var both sync.WaitGroup
	for i, path := range []string{q.source, q.target} {
		both.Go(func() { sums[i], errs[i] = hashFile(ctx, path) })
	}
	both.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	q.note("SHA-256 of the disk  %x", sums[0])
	q.note("SHA-256 of the copy  %x", sums[1])
	if !bytes.Equal(sums[0], sums[1]) {
		return &engine.Error{Kind: engine.KindIntegrity, Op: "compare", On: q.target, Err: errors.New("it differs from " + q.source),
			Next: "please report this with the output above"}
	}
	q.note("equal")
	fsck := findTool("e2fsck")
	if fsck == "" || findTool("mkfs.ext4") == "" {
		return nil
	}
	if out, err := exec.CommandContext(ctx, fsck, "-fn", q.target).CombinedOutput(); err != nil {
		return &engine.Error{Kind: engine.KindIntegrity, Op: "e2fsck -fn", On: q.target, Err: fmt.Errorf("%w:\n%s", err, out)}
	}
	q.note("e2fsck finds the file system on the copy clean")
	return nil
}

func hashFile(ctx context.Context, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.CopyBuffer(h, &readerContext{ctx, f}, make([]byte, 1<<20))
	return h.Sum(nil), err
}

// readerContext ends a long read with its context.
type readerContext struct {
	ctx context.Context
	r   io.Reader
}

func (r *readerContext) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

func enoughRoom(dir string, need int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("look at the room in %s: %w", dir, err)
	}
	if free := int64(s.Bavail) * s.Bsize; free < need {
		return &engine.Error{Kind: engine.KindDevice, Op: "make images in", On: dir,
			Err:  fmt.Errorf("%s of room is needed, %s is free", formatBytes(need), formatBytes(free)),
			Next: "give a smaller --size, or a folder on a larger disk with --keep DIR or TMPDIR"}
	}
	return nil
}
