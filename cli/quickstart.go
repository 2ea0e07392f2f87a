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

	"github.com/blkmirror/blkmirror/engine"
)

const quickVolume = "copy"

// quickstart is one demonstration: all paths lie in one folder.
type quickstart struct {
	*app
	dir            string
	source, target string // images
	size           int64
}

func (a *app) quickstartCommand() *cli.Command {
	var keep string
	imageSize := size(1 << 30)
	return &cli.Command{
		Name:  "quickstart",
		Usage: "show everything on this machine, in one command",
		Description: `
Makes a disk image with real files in a temporary folder, copies it over TCP to a second node in the
same process, changes one percent, copies again, compares, and cleans up. Needs no root.`,
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
	dir, remove, err := quickFolder(keep)
	if err != nil {
		return err
	}
	q := &quickstart{app: a, dir: dir, source: filepath.Join(dir, "disk.img"), target: filepath.Join(dir, "copy.img"),
		size: size &^ (pageSize - 1)}
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
		fmt.Fprintf(a.stdout, "\nKept in %s. To go on:\n  %s sync %s %s\n  cmp %s %s\n", dir, name, q.source, q.target, q.source, q.target)
	default:
		fmt.Fprintf(a.stdout, "\nCleaned up. Next: '%s sync SRC DST' with a disk of yours, '%s sync --help' tells more.\n", name, name)
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

func (q *quickstart) run(ctx context.Context) error {
	if err := enoughRoom(q.dir, 2*q.size); err != nil {
		return err
	}
	q.say("1. Make a disk: an image of %s", formatBytes(q.size))
	pages, err := q.makeImage(ctx)
	if err != nil {
		return err
	}
	q.say("2. Start a second node, which will hold the copy")
	addr, stop, err := q.serve(ctx)
	if err != nil {
		return err
	}
	defer stop()

	q.say("3. First sync, over TCP: everything that is not zero is hashed, compressed, sent, hashed again and compared")
	if err := q.sync(ctx, addr); err != nil {
		return err
	}
	changed, err := changePages(q.source, pages, int(q.size/pageSize/100))
	if err != nil {
		return err
	}
	q.say("4. Change 1 %% of the disk: %s in %d places picked at random", formatBytes(int64(changed)*pageSize), changed)
	q.say("5. Second sync: the two nodes compare hashes of blocks of 4 KiB, only what differs is sent")
	if err := q.sync(ctx, addr); err != nil {
		return err
	}
	if err := stop(); err != nil {
		return err
	}
	q.say("6. Compare the two images, without blkmirror")
	return q.compare(ctx)
}

func (q *quickstart) say(format string, args ...any)  { fmt.Fprintf(q.stdout, format+"\n", args...) }
func (q *quickstart) note(format string, args ...any) { q.say("   "+format, args...) }

// serve runs the second node in this process. The stop that it returns waits for the node's end, and may
// be called twice.
func (q *quickstart) serve(ctx context.Context) (addr string, stop func() error, err error) {
	// The path of a socket has at most 107 bytes, and the folder to keep may lie deep.
	sockets, err := os.MkdirTemp("", "blkmirror-")
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	o := engine.ServerOptions{StateDir: filepath.Join(q.dir, "node"), Listen: "127.0.0.1:0", Control: filepath.Join(sockets, "node.sock"),
		Volumes: map[string]string{quickVolume: q.target}, Insecure: true, Version: versionOf().Version}
	var failed error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		failed = engine.Serve(ctx, o)
	}()
	stop = func() error {
		cancel()
		<-ended
		return errors.Join(failed, os.RemoveAll(sockets))
	}

	status, err := awaitNode(ctx, o.Control, ended)
	if err != nil {
		return "", nil, errors.Join(stop(), err)
	}
	q.note("it offers the volume %q at %s", quickVolume, status.Listen)
	return status.Listen, stop, nil
}

// awaitNode asks the control socket until it answers, or until the node ended instead.
func awaitNode(ctx context.Context, control string, ended <-chan struct{}) (engine.Status, error) {
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		s, err := engine.FetchStatus(ctx, control)
		if err == nil {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-ended:
			return s, err
		case <-retry.C:
		}
	}
}

func (q *quickstart) sync(ctx context.Context, addr string) error {
	o := engine.SyncOptions{Source: engine.Endpoint{Path: q.source}, Target: engine.Endpoint{Addr: addr, Volume: quickVolume},
		BlockSize: pageSize, // what changes is scattered pages: with larger blocks more would be sent
		StateDir:  filepath.Join(q.dir, "state"), Insecure: true, Retry: 10 * time.Second, Progress: new(engine.Progress)}
	view := q.startProgress(o.Progress, syncFlags{})
	o.Warn = view.warn
	r, err := engine.Sync(ctx, o)
	view.stop()
	if err != nil {
		return err
	}
	q.note("%s looked at in %s: shipped %s (%s), skipped %s, zero %s; %s on the wire", formatBytes(r.ScannedBytes), formatSeconds(r.Seconds),
		formatBytes(r.ShippedBytes), percent(r.ShippedBytes, r.Size), formatBytes(r.SkippedBytes), formatBytes(r.ZeroBytes), formatBytes(r.WireBytes))
	return nil
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
