package engine

import (
	"context"
	"fmt"
	"sync"
)

// jobs are what a person has a volume do, one at a time: they end with it.
type jobs struct {
	mu     sync.Mutex
	under  string // what is under way
	closed bool
	ended  sync.WaitGroup
	cancel context.CancelCauseFunc
}

// begin begins one of the volume of this name. done ends it.
func (j *jobs) begin(ctx context.Context, name, what string) (job context.Context, done func(), err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return nil, nil, errMirrorStopped(name)
	case j.under != "":
		return nil, nil, &Error{Kind: KindState, Op: what, On: name, Err: fmt.Errorf("a %s is under way", j.under), Next: "wait for it, or end it"}
	}
	job, j.cancel = context.WithCancelCause(ctx)
	j.under = what
	j.ended.Add(1)
	return job, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.cancel(nil)
		j.under = ""
		j.ended.Done()
	}, nil
}

// end ends what is under way, and waits.
func (j *jobs) end() {
	j.mu.Lock()
	j.closed = true
	if j.under != "" {
		j.cancel(errDaemonStops)
	}
	j.mu.Unlock()
	j.ended.Wait()
}
