package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

func (r *run) cutLink(_ context.Context, args []any) error {
	r.link(args).cut()
	return nil
}

func (r *run) resetLink(_ context.Context, args []any) error {
	r.link(args).reset()
	return nil
}

func (r *run) freezeLink(_ context.Context, args []any) error {
	k := r.link(args)
	k.set(func() { k.frozen = true })
	return nil
}

func (r *run) freezeAnswers(_ context.Context, args []any) error {
	k := r.link(args)
	k.set(func() { k.deaf = true })
	return nil
}

func (r *run) restoreLink(_ context.Context, args []any) error {
	r.link(args).restore()
	return nil
}

func (r *run) slowLink(_ context.Context, args []any) error {
	r.link(args).speed.SetLimit(rate.Limit(args[1].(int64)))
	return nil
}

func (r *run) flipBits(_ context.Context, args []any) error {
	r.link(args).flip(args[1].(int64))
	return nil
}

func (r *run) waitFlips(ctx context.Context, args []any) error {
	k := r.links[args[1].(string)]
	most := k.flips.Load() + int64(args[0].(int))
	return poll(ctx, r.s.Limit, func() error {
		if n := k.flips.Load(); n < most {
			return fmt.Errorf("%w: %d flips are missing: too little passes\nthe primary: %s", errNo, most-n, r.nodes["primary"].said())
		}
		return r.sound()
	})
}

func (r *run) countBytes(_ context.Context, args []any) error {
	r.link(args).carried.Store(0)
	return nil
}

// still expects that a node does not run.
func (r *run) still(n *node) error {
	if n.running() {
		return fmt.Errorf("%s runs: stop or kill it before", n.name)
	}
	return nil
}

// snapshot keeps image and state directory of a node, as a snapshot of its machine would.
func (r *run) snapshot(_ context.Context, args []any) error {
	n := r.node(args)
	if err := r.still(n); err != nil {
		return err
	}
	if n.name == "primary" {
		if r.writer != nil && !r.resting {
			return errors.New("the writer does not rest: what is in the snapshot would not be known")
		}
		r.marks[n.name] = stamp.Seq(r.history.Writes())
	}
	kept := filepath.Join(r.dir, "snapshot."+n.name)
	if err := os.RemoveAll(kept); err != nil {
		return err
	}
	if err := os.Mkdir(kept, 0o755); err != nil {
		return err
	}
	return errors.Join(command("cp", "--sparse=always", n.image, filepath.Join(kept, "image")),
		command("cp", "-a", "--sparse=always", n.state, filepath.Join(kept, "state")))
}

// putBack is the way back. The image is overwritten in place, as it stays the same disk.
func (r *run) putBack(_ context.Context, args []any) error {
	n := r.node(args)
	if err := r.still(n); err != nil {
		return err
	}
	kept := filepath.Join(r.dir, "snapshot."+n.name)
	if _, err := os.Stat(kept); err != nil {
		return fmt.Errorf("there is no snapshot of %s: %w", n.name, err)
	}
	if n.name == "primary" {
		if r.writer != nil && !r.resting {
			return errors.New("the writer does not rest")
		}
		r.history.Rewind(r.marks[n.name])
	}
	delete(r.looks, n.name)
	if err := os.RemoveAll(n.state); err != nil {
		return err
	}
	return errors.Join(command("cp", "--sparse=never", filepath.Join(kept, "image"), n.image),
		command("cp", "-a", "--sparse=always", filepath.Join(kept, "state"), n.state))
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// foreignWrite writes behind the tool's back.
func (r *run) foreignWrite(_ context.Context, args []any) error {
	n := r.node(args)
	if err := r.still(n); err != nil {
		return err
	}
	f, err := os.OpenFile(n.image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	b := make([]byte, stamp.PageSize)
	for range args[1].(int) {
		for i := range b {
			b[i] = byte(r.rng.Uint32())
		}
		if _, err := f.WriteAt(b, r.rng.Int64N(r.history.Pages())*stamp.PageSize); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// limitState mounts a small file system as the state directory of a node that was not started yet.
func (r *run) limitState(_ context.Context, args []any) error {
	n := r.node(args)
	if err := r.still(n); err != nil {
		return err
	}
	err := unix.Mount("tmpfs", n.state, "tmpfs", 0, fmt.Sprintf("size=%d", args[1].(int64)))
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: we may not mount: %w", errNotApplicable, err)
	}
	if err != nil {
		return fmt.Errorf("mount a small file system: %w", err)
	}
	r.mounts = append(r.mounts, n.state)
	return nil
}

func (n *node) filler() string { return filepath.Join(n.state, "filler") }

// fillState fills the state directory, and leaves some room.
func (r *run) fillState(_ context.Context, args []any) error {
	f, err := os.Create(r.node(args).filler())
	if err != nil {
		return err
	}
	length, err := io.Copy(f, endless{})
	if !errors.Is(err, unix.ENOSPC) {
		return errors.Join(fmt.Errorf("fill the state directory: %w", err), f.Close())
	}
	return errors.Join(f.Truncate(max(0, length-args[1].(int64))), f.Close())
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func (r *run) emptyState(_ context.Context, args []any) error {
	return os.Remove(r.node(args).filler())
}

// remember keeps the checksum of a mirror's image, for `expect … unchanged`.
func (r *run) remember(ctx context.Context, args []any) error {
	name := args[0].(string)
	return r.look(ctx, name, func(path string) error {
		sum, err := checksum(path)
		r.sums[name] = sum
		return err
	})
}

// look lets a mirror recover alone, ends it in order, and shows its image to f. Then it runs again, if it did.
func (r *run) look(ctx context.Context, name string, f func(path string) error) error {
	n := r.nodes[name]
	defer r.links[name].aside()()
	was := n.running()
	if !was {
		if err := n.start(ctx, r.s.Limit); err != nil {
			return fmt.Errorf("alone, to be looked at: %w", err)
		}
	}
	if err := n.stop(ctx, r.s.Limit); err != nil {
		return err
	}
	path, err := r.a.ask(ctx, "look", name)
	if err == nil {
		err = f(path)
	}
	if was {
		err = errors.Join(err, n.start(ctx, r.s.Limit))
	}
	return err
}
