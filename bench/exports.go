package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/blkmirror/blkmirror/engine"
)

const benchVolume = "bench"

// exporter shows an image as an NBD disk.
type exporter interface {
	// missing names a program that is not installed.
	missing() string
	// open returns when clients can connect.
	open(ctx context.Context, r *liveRun) (*opened, error)
}

// opened is an export that runs.
type opened struct {
	uri     string
	server  *process // which clients talk to
	primary *Node    // of ours
	mirror  *Node    // of ours, with a mirror
}

// stop ends what runs cleanly and notes what it took.
func (o *opened) stop(s *LiveSample) error {
	var err error
	for _, end := range []struct {
		p *process
		u *Usage
	}{{o.server, &s.Server}, {mirrorProcess(o.mirror), &s.Mirror}} {
		if end.p != nil {
			end.u.PeakBytes = end.p.peak() // the largest since its start, and nothing of ours
			u := Usage{}
			err = errors.Join(err, end.p.stop(&u))
			end.u.CPUSeconds = u.CPUSeconds
		}
	}
	return err
}

func mirrorProcess(n *Node) *process {
	if n == nil {
		return nil
	}
	return n.process
}

// liveExport is a primary of ours, with or without a mirror.
type liveExport struct {
	mirrored bool
	interval string // between cuts; "": the default
	secure   bool   // TLS, not --insecure
}

func (liveExport) missing() string { return "" }

func (e liveExport) open(ctx context.Context, r *liveRun) (*opened, error) {
	socket := r.socket("export")
	image, name := r.image("single"), "single"
	o := &opened{uri: nbdURI(benchVolume, socket)}
	flags := []string{"--quiet", "--export", benchVolume + "=unix:" + socket}
	if e.interval != "" {
		flags = append(flags, "--interval", benchVolume+"="+e.interval)
	}
	if e.mirrored {
		image, name = r.image("primary"), "primary"
		var err error
		if e.secure {
			if err = Introduce(r.state("primary"), r.state("mirror"), benchVolume); err != nil {
				return nil, err
			}
		}
		o.mirror, err = StartNode(ctx, NodeOptions{Binary: r.options.Binary, State: r.state("mirror"), Control: r.socket("mirror"), Listen: r.mirrorAddress, TLS: e.secure,
			Core: r.scenario.mirrorCore(), Flags: []string{"--quiet", "--volume", benchVolume + "=" + r.image("mirror")}})
		if err != nil {
			return nil, err
		}
		flags = append(flags, "--mirror", benchVolume+"="+r.mirrorAddress)
	}
	var err error
	o.primary, err = StartNode(ctx, NodeOptions{Binary: r.options.Binary, State: r.state(name), Control: r.socket("primary"), TLS: e.secure, Core: r.scenario.clientCore(),
		Flags: append(flags, "--volume", benchVolume+"="+image)})
	if err != nil {
		return nil, errors.Join(err, o.stop(new(LiveSample)))
	}
	o.server = o.primary.process
	if e.mirrored {
		err = o.awaitMirror(ctx)
	}
	if err != nil {
		err = errors.Join(err, o.stop(new(LiveSample)))
	}
	return o, err
}

// awaitMirror waits until the mirror follows.
func (o *opened) awaitMirror(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cutTimeout, errors.New("it takes too long"))
	defer cancel()
	v, err := o.primary.AwaitVolume(ctx, benchVolume, func(v engine.VolumeStatus) bool {
		return len(v.Mirrors) == 1 && v.Mirrors[0].State == "connected" && v.Mirrors[0].LagBytes == 0
	})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		state := "unknown"
		for _, m := range v.Mirrors {
			state = fmt.Sprintf("%s %s, %d of %d bytes to go", m.State, m.Reason, m.NeedsBytes, v.Size)
		}
		return fmt.Errorf("wait until the mirror follows (it is %s): %w", state, err)
	}
	return nil
}

// qemuNBD opens with O_DIRECT, as we do.
type qemuNBD struct{ aio string }

func (qemuNBD) missing() string {
	if find("qemu-nbd") == "" {
		return "qemu-nbd"
	}
	return ""
}

func (q qemuNBD) open(ctx context.Context, r *liveRun) (*opened, error) {
	return r.openForeign(ctx, func(socket string) []string {
		return []string{find("qemu-nbd"), "--format=raw", "--cache=none", "--aio=" + q.aio, "--persistent", "--shared=8",
			"--export-name=" + benchVolume, "--socket=" + socket, r.image("disk")}
	})
}

// nbdkitFile goes through the page cache: it is reported, and compared with nothing.
type nbdkitFile struct{}

func (nbdkitFile) missing() string {
	if find("nbdkit") == "" {
		return "nbdkit"
	}
	return ""
}

func (nbdkitFile) open(ctx context.Context, r *liveRun) (*opened, error) {
	return r.openForeign(ctx, func(socket string) []string {
		return []string{find("nbdkit"), "--foreground", "--exit-with-parent", "--exportname", benchVolume, "--unix", socket, "file", r.image("disk")}
	})
}

// openForeign starts a server of others and waits for its socket.
func (r *liveRun) openForeign(ctx context.Context, argv func(socket string) []string) (*opened, error) {
	socket := r.socket("foreign")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	p, err := start(ctx, "", append(pinned(r.scenario.clientCore()), argv(socket)...)...)
	if err != nil {
		return nil, err
	}
	err = p.await(ctx, startPoll, func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	if err != nil {
		return nil, errors.Join(err, p.stop(new(Usage)))
	}
	time.Sleep(socketSettle)
	return &opened{uri: nbdURI(benchVolume, socket), server: p}, nil
}

// socketSettle is between the moment when a socket has its name and the one when it listens.
const socketSettle = 50 * time.Millisecond

func nbdURI(export, socket string) string { return "nbd+unix:///" + export + "?socket=" + socket }

func (r *liveRun) socket(name string) string { return filepath.Join(r.sockets, name+".sock") }
func (r *liveRun) image(name string) string  { return filepath.Join(r.work, name+".img") }
func (r *liveRun) state(name string) string  { return filepath.Join(r.work, "state-"+name) }
