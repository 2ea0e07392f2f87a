package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

func (r *run) node(args []any) *node { return r.nodes[args[0].(string)] }
func (r *run) link(args []any) *link { return r.links[args[0].(string)] }

func (r *run) start(ctx context.Context, args []any) error {
	return r.node(args).start(ctx, r.s.Limit)
}

func (r *run) launch(_ context.Context, args []any) error { return r.node(args).launch() }

func (r *run) stop(ctx context.Context, args []any) error {
	return r.node(args).stop(ctx, r.s.Limit)
}

// kill kills several as nearly at once as can be.
func (r *run) kill(_ context.Context, args []any) error {
	for _, name := range args {
		n := r.nodes[name.(string)]
		if !n.running() {
			return fmt.Errorf("%s does not run: %s", n.name, n.said())
		}
	}
	for _, name := range args {
		r.nodes[name.(string)].kill()
	}
	return nil
}

// awake lets the writer write.
func (r *run) awake(ctx context.Context) error {
	if r.writer == nil {
		load, err := r.target(ctx)
		if err != nil {
			return err
		}
		load.Longest, load.Pause, load.Seed = r.s.Longest, r.s.Pause, r.rng.Uint64()
		r.writer = stamp.NewWriter(r.history, load)
		r.writer.Start()
	}
	if r.resting {
		r.resting = false
		r.writer.Resume()
	}
	return nil
}

// target is where the writer writes. It stays where it is when the primary is started again.
func (r *run) target(ctx context.Context) (stamp.Load, error) {
	if r.load.Network != "" {
		return r.load, nil
	}
	said, err := r.a.ask(ctx, "export")
	if err == nil {
		r.load, err = stamp.Target(said)
	}
	if err != nil {
		return r.load, err
	}
	d, err := stamp.Open(r.load)
	if err != nil {
		return r.load, err
	}
	defer d.Close()
	if d.Bytes() < r.s.Size {
		return r.load, fmt.Errorf("the export %s has %d bytes, the volume has %d", said, d.Bytes(), r.s.Size)
	}
	return r.load, nil
}

// rest lets no request begin and waits until the outcome of each is known.
func (r *run) rest(ctx context.Context) error {
	if r.writer == nil || r.resting {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.s.Limit)
	defer cancel()
	if err := r.writer.Quiesce(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("requests have had no reply for %v, and nobody can be asked what became of them: %s", r.s.Limit, r.nodes["primary"].said())
		}
		return err
	}
	r.resting = true
	return nil
}

func (r *run) restStep(ctx context.Context, _ []any) error { return r.rest(ctx) }

func (r *run) write(ctx context.Context, args []any) error {
	if err := r.awake(ctx); err != nil {
		return err
	}
	if err := r.waitWrites(ctx, args); err != nil {
		return err
	}
	return r.rest(ctx)
}

func (r *run) background(ctx context.Context, _ []any) error { return r.awake(ctx) }

func (r *run) waitTime(ctx context.Context, args []any) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(args[0].(time.Duration)):
		return nil
	}
}

func (r *run) waitAbout(ctx context.Context, args []any) error {
	least, most := args[0].(time.Duration), args[1].(time.Duration)
	if most > least {
		least += time.Duration(r.rng.Int64N(int64(most - least)))
	}
	return r.waitTime(ctx, []any{least})
}

func (r *run) waitWrites(ctx context.Context, args []any) error {
	if r.writer == nil || r.resting {
		return errors.New("nothing is written: write in background before")
	}
	most := r.history.Writes() + args[0].(int)
	return poll(ctx, r.s.Limit, func() error {
		if err := r.sound(); err != nil {
			return err
		}
		if n := r.history.Writes(); n < most {
			return fmt.Errorf("%w: %d writes are missing; the primary: %s", errNo, most-n, r.nodes["primary"].said())
		}
		return nil
	})
}

// waitInSync waits until all that is answered now is at every mirror.
func (r *run) waitInSync(ctx context.Context, _ []any) error {
	now := r.history.Now()
	err := poll(ctx, r.s.Limit, func() error {
		if err := r.sound(); err != nil {
			return err
		}
		_, err := r.a.ask(ctx, "in-sync")
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\nthe primary: %s\nthe mirror: %s", err, r.nodes["primary"].said(), r.nodes["mirror"].said())
	}
	r.synced = now
	return nil
}

// waitStatus waits until a mirror is in one of some states.
func (r *run) waitStatus(ctx context.Context, args []any) error {
	return poll(ctx, r.s.Limit, func() error {
		err := r.expectStatus(ctx, args)
		if other := (*stateError)(nil); errors.As(err, &other) {
			return fmt.Errorf("%w: %w", errNo, err)
		}
		return err
	})
}

// stateError is a mirror in another state than is expected.
type stateError struct{ is, want string }

func (e *stateError) Error() string {
	return fmt.Sprintf("the state of the mirror is %q, not %s", e.is, e.want)
}

func (r *run) expectStatus(ctx context.Context, args []any) error {
	is, err := r.a.ask(ctx, "status", args[0].(string))
	switch {
	case err != nil:
		return err
	case !slices.Contains(States, is):
		return fmt.Errorf("adapter status: %q is no state", is)
	case slices.Contains(args[1:], any(is)):
		return nil
	}
	want := ""
	for _, s := range args[1:] {
		if want != "" {
			want += " or "
		}
		want += s.(string)
	}
	return &stateError{is, want}
}

func (r *run) pause(ctx context.Context, args []any) error  { return r.order(ctx, "pause", args) }
func (r *run) resume(ctx context.Context, args []any) error { return r.order(ctx, "resume", args) }

// overwrite says that the mirror is to follow the primary, whatever it holds. Its past counts no more.
func (r *run) overwrite(ctx context.Context, args []any) error {
	delete(r.looks, args[0].(string))
	return r.order(ctx, "overwrite", args)
}

func (r *run) order(ctx context.Context, what string, args []any) error {
	_, err := r.a.ask(ctx, what, args[0].(string))
	return err
}
