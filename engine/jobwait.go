package engine

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
)

// What jobs wait for. In steps (stepped.go) nothing blocks: there wait is Surroundings.Wait, elsewhere nil.

// pause waits for a while by the node's own clock. In steps one that is put back ends it.
func pause(ctx context.Context, wait func(try func() bool), now func() time.Time, d time.Duration) error {
	if wait == nil {
		return pauseFor(ctx, d)
	}
	began := now()
	wait(func() bool {
		past := now().Sub(began)
		return ctx.Err() != nil || past < 0 || past >= d
	})
	return context.Cause(ctx)
}

func pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// receive takes what comes out of a channel; ok is false where that was closed.
func receive[T any](ctx context.Context, wait func(try func() bool), from <-chan T) (v T, ok bool, err error) {
	if wait == nil {
		select {
		case v, ok = <-from:
			return v, ok, nil
		case <-ctx.Done():
			return v, false, context.Cause(ctx)
		}
	}
	came := false
	wait(func() bool {
		select {
		case v, ok = <-from:
			came = true
		default:
		}
		return came || ctx.Err() != nil
	})
	if !came {
		err = context.Cause(ctx)
	}
	return v, ok, err
}

// crew does the pieces of a job, several at once; the first that fails ends ctx. In steps a piece is done where it is
// given out, one after the other.
type crew struct {
	job    context.Context
	group  *errgroup.Group
	single bool
	cancel context.CancelCauseFunc
	err    error // of a single one
}

func newCrew(ctx context.Context, single bool, most int) (*crew, context.Context) {
	c := &crew{job: ctx, single: single}
	if single {
		ctx, c.cancel = context.WithCancelCause(ctx)
		return c, ctx
	}
	c.group, ctx = errgroup.WithContext(ctx)
	c.group.SetLimit(most)
	return c, ctx
}

func (c *crew) do(piece func() error) {
	if !c.single {
		c.group.Go(piece)
		return
	}
	if err := piece(); err != nil && c.err == nil {
		c.err = err
		c.cancel(err)
	}
}

// wait waits for all of them. Where the job was cut off there may be more that was never given out.
func (c *crew) wait() error {
	err := c.err
	if c.single {
		c.cancel(nil)
	} else {
		err = c.group.Wait()
	}
	if err == nil {
		err = context.Cause(c.job)
	}
	return err
}
