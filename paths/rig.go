package paths

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/campaign/daemon"
	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// The volume is much larger than what is written, and starts as zeroes: little is written twice, so that it is known
// what has to be shipped, and whoever ships everything again cannot be overlooked.
const (
	volumeSize = 128 << 20
	interval   = "200ms"
)

// The load is several times what a line of 1 Mbit/s can carry.
var load = stamp.Load{Network: "unix", Export: "v", Depth: 2, Longest: 4, Pause: 15 * time.Millisecond, NoTrim: true}

// rig is a primary with a writer on its export, the path, and its mirror.
type rig struct {
	*result
	ctx             context.Context
	o               *Options
	dir, src, dst   string
	primary, mirror *daemon.Node
	line            *Proxy // between them, or, with a name for the mirror:
	hop             *Hop
	names           *names
	history         *stamp.History
	writer          *stamp.Writer
	watch           *watch
	start           daemon.Peer // when the writer began

	faulty time.Time // the present fault began
	known  int       // losses before it
	marked int       // writes that must knows of
}

// newRig starts everything, and returns when the mirror has a first cut and the writer writes.
func newRig(ctx context.Context, o *Options, s *scenario, res *result) (r *rig, err error) {
	dir, err := os.MkdirTemp(o.Temp, s.name)
	if err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	r = &rig{result: res, ctx: ctx, o: o, dir: dir, src: at("src"), dst: at("dst"),
		primary: daemon.New(o.Binary, at("P")), mirror: daemon.New(o.Binary, at("M"), "--volume", "v="+at("dst"))}
	r.primary.Log, r.mirror.Log = new(daemon.Output), new(daemon.Output)
	f, err := os.Create(r.src)
	if err != nil {
		return r, err
	}
	if err = errors.Join(f.Truncate(volumeSize), f.Close()); err != nil {
		return r, err
	}
	if s.moves {
		if err = r.places(); err != nil {
			return r, err
		}
	}
	if !o.Plain {
		if err = daemon.Pin(ctx, "v", r.primary, r.mirror); err != nil {
			return r, err
		}
	}
	if err = r.mirror.Up(ctx); err != nil {
		return r, err
	}
	address, err := r.path()
	if err != nil {
		return r, err
	}
	r.primary.Flags = []string{"--volume", "v=" + r.src, "--export", "v=unix:" + at("nbd"), "--mirror", "v=" + address, "--interval", "v=" + interval}
	if err = r.primary.Up(ctx); err != nil {
		return r, err
	}
	if err = r.cut(); err != nil {
		return r, err
	}
	if r.watch, err = newWatch(ctx, r.primary); err != nil {
		return r, err
	}
	r.start = r.watch.peer()
	r.history = stamp.NewHistory(volumeSize/stamp.PageSize, o.Seed)
	l := load
	l.Address, l.Seed = at("nbd"), o.Seed
	r.writer = stamp.NewWriter(r.history, l)
	r.writer.Start()
	return r, r.written(50)
}

// places gives each of the two a network of its own, and the mirror a name.
func (r *rig) places() (err error) {
	if r.o.Plain {
		return fmt.Errorf("%w: plain text does not leave a machine", errNotHere)
	}
	if r.hop, err = NewHop(r.ctx, 1500); err != nil {
		return err
	}
	here := func(f func() error) error { return r.hop.In(Middle, f) }
	if r.names, err = newNames(r.dir, netip.MustParseAddr(LeftAddr), here); err != nil {
		return err
	}
	r.primary.Wrap, r.primary.Listen = append(r.hop.Wrap(Middle), r.names.wrap()...), "0.0.0.0:0"
	r.mirror.Wrap, r.mirror.Listen = r.hop.Wrap(Left), LeftAddr+":0"
	return nil
}

// move has the mirror start at the right the next time, under its name; at the left nobody answers any more.
func (r *rig) move() error {
	_, port, err := net.SplitHostPort(r.mirror.Addr)
	if err == nil {
		err = r.hop.Unplug(r.ctx, Left)
	}
	r.mirror.Wrap, r.mirror.Listen = r.hop.Wrap(Right), net.JoinHostPort(RightAddr, port)
	return err
}

// path makes what lies between the two, and returns what the primary has to dial.
func (r *rig) path() (address string, err error) {
	if r.names != nil {
		_, port, err := net.SplitHostPort(r.mirror.Addr)
		return net.JoinHostPort(hostName, port), err
	}
	if r.line, err = NewProxy(r.mirror.Addr); err != nil {
		return "", err
	}
	return r.line.Addr(), nil
}

// close ends what was started and removes the folder.
func (r *rig) close() {
	if r.watch != nil {
		r.watch.close()
		r.saw() // also of what failed
	}
	r.primary.End(syscall.SIGKILL)
	r.mirror.End(syscall.SIGKILL)
	if r.writer != nil {
		r.writer.Stop() // where it waited for an answer, that does not come any more
	}
	if r.line != nil {
		r.line.Close()
	}
	if r.names != nil {
		r.names.close()
	}
	if r.hop != nil {
		r.hop.Close()
	}
	os.RemoveAll(r.dir)
}

// written waits for n more requests.
func (r *rig) written(n int) error {
	n += r.history.Writes()
	return daemon.Until(r.ctx, "the writer", func() (bool, error) { return r.history.Writes() >= n, r.writer.Err() })
}

// sleep lets time pass.
func (r *rig) sleep(d time.Duration) error {
	select {
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	case <-time.After(d):
		return r.writer.Err()
	}
}

// fault begins one.
func (r *rig) fault(how func()) {
	r.mark(false)
	r.known = len(r.watch.lostSince(0))
	r.faulty = time.Now()
	how()
}

// lost waits until the primary has noticed.
func (r *rig) lost() error {
	return daemon.Until(r.ctx, "the primary to notice", func() (bool, error) { return len(r.watch.lostSince(r.known)) > 0, nil })
}

// resumed waits until a cut is committed on the path that is as it should be since a moment, and ends the fault.
func (r *rig) resumed(since time.Time) error {
	base := r.watch.peer().Committed
	err := daemon.Until(r.ctx, "traffic", func() (bool, error) { return r.watch.peer().Committed > base, r.writer.Err() })
	if err != nil {
		return err
	}
	r.resume = max(r.resume, time.Since(since))
	lost := r.watch.lostSince(r.known)
	if len(lost) > 0 {
		r.notice = max(r.notice, lost[0].at.Sub(r.faulty))
	}
	r.mark(len(lost) > 0)
	return nil
}

// mark adds to what has to be shipped: while the mirror follows that is every write, and where it was away only what is
// left in the end. (A page that is written twice within one cut is shipped once, so it may be a little less.)
func (r *rig) mark(away bool) {
	every, left, until := r.history.Brought(r.marked)
	if away {
		every = left
	}
	r.must += every
	r.marked = until
}

// cut takes one, and waits until the mirror has it.
func (r *rig) cut() error {
	if a := r.primary.Ask(r.ctx, "cut", "v", "--wait", "--timeout", (daemon.Patience - 10*time.Second).String()); a.Code != 0 {
		v, _ := r.primary.Volume(r.ctx)
		return fmt.Errorf("cut: %s; the primary says %+v", a, v)
	}
	return nil
}

// finish has the writer rest, and judges the whole.
func (r *rig) finish() error {
	ctx, cancel := context.WithTimeout(r.ctx, daemon.Patience)
	defer cancel()
	if err := r.writer.Quiesce(ctx); err != nil {
		return fmt.Errorf("the writer does not come to rest: %w", err)
	}
	if err := r.cut(); err != nil {
		return err
	}
	r.mark(false)
	if err := r.equal(); err != nil {
		return err
	}
	if err := r.watch.end(r.ctx); err != nil {
		return err
	}
	if err := r.told(); err != nil {
		return err
	}
	r.saw()
	r.judge()
	r.writer.Resume()
	if err := r.writer.Stop(); err != nil {
		return err
	}
	if err := errors.Join(r.primary.End(syscall.SIGTERM), r.mirror.End(syscall.SIGTERM)); err != nil {
		return err
	}
	return r.equal()
}

// equal holds the mirror against the history, and both devices against each other.
func (r *rig) equal() error {
	if err := r.isCut(); err != nil {
		return err
	}
	same, err := sameFiles(r.src, r.dst)
	if err == nil && !same {
		err = errors.New("the two devices differ")
	}
	return err
}

// isCut expects that the mirror's device is the volume at one instant.
func (r *rig) isCut() error {
	if _, err := r.history.CheckFile(r.dst); err != nil {
		return fmt.Errorf("the mirror: %w", err)
	}
	return nil
}

// sameFiles is cmp.
func sameFiles(a, b string) (bool, error) {
	var files [2]*os.File
	for i, path := range []string{a, b} {
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		defer f.Close()
		files[i] = f
	}
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(files[0], x)
		m, err2 := io.ReadFull(files[1], y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if err != nil || err2 != nil {
			end := []error{io.EOF, io.ErrUnexpectedEOF}
			if slices.Contains(end, err) && slices.Contains(end, err2) {
				return true, nil
			}
			return false, errors.Join(err, err2)
		}
	}
}
