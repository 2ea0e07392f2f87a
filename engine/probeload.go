package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/engine/doctor"
	"github.com/blkmirror/blkmirror/wire"
)

const (
	loadPatience = 2 * time.Second        // that a load test may be late
	loadAsks     = 100 * time.Millisecond // between two round trips under load
)

// loadTest is the dialler's half of one load test, which has its contact for itself. Three goroutines: the
// reader, the one that pours ballast where the direction is ours, and the caller, who asks and waits. run
// returns when the others have ended.
type loadTest struct {
	*contact
	load  wire.Load
	began time.Time

	mu     sync.Mutex
	result doctor.Load
	asked  time.Time // of the Survey that is not answered; zero: there is none

	answered chan struct{} // one token: a Survey was
	over     chan struct{} // closed when the reader has ended
	err      error         // why; the reader's until then
}

// errLoaded ends a load test that is done.
var errLoaded = errors.New("load test done")

// loadTest runs one and closes the contact.
func (c *contact) loadTest(ctx context.Context, direction wire.Direction, length time.Duration) *doctor.Load {
	t := &loadTest{contact: c, load: wire.Load{Direction: direction, Millis: uint32(length.Milliseconds()), Bytes: wire.MaxLoadBytes},
		began: time.Now(), answered: make(chan struct{}, 1), over: make(chan struct{})}
	ctx, cancel := context.WithTimeoutCause(ctx, length+loadPatience, errLoaded)
	defer cancel()
	// Whatever hangs, in a queue that is seconds long for instance, ends with ctx.
	release := context.AfterFunc(ctx, func() { c.conn.Close(context.Cause(ctx)) })
	var both sync.WaitGroup
	both.Go(t.read)
	if err := c.conn.Send(&t.load); err == nil {
		if direction == wire.LoadTo {
			both.Go(t.pour)
		}
		t.ask()
	}
	<-t.over
	release()
	if errors.Is(t.err, errLoaded) && c.conn.Err() == nil {
		c.leave() // the reader has ended
	}
	c.conn.Close(nil)
	both.Wait()
	return t.finish()
}

// read counts what comes until the load test is over.
func (t *loadTest) read() {
	defer close(t.over)
	for {
		m, err := t.conn.Next()
		if err == nil {
			err = t.take(m)
		}
		if err != nil {
			t.err = err
			return
		}
	}
}

func (t *loadTest) take(m wire.Message) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch m := m.(type) {
	case *wire.Surveyed:
		if t.asked.IsZero() {
			return protocolError("Surveyed, and nobody asked")
		}
		t.result.Within = append(t.result.Within, time.Since(t.asked))
		t.asked = time.Time{}
		select {
		case t.answered <- struct{}{}:
		default:
		}
	case *wire.Ballast:
		if t.load.Direction != wire.LoadFrom {
			return protocolError("Ballast against the direction of the load test")
		}
		t.result.Bytes += uint64(m.PayloadLength)
		t.result.Took = time.Since(t.began)
	case *wire.Loaded:
		if t.load.Direction == wire.LoadTo {
			t.result.Bytes, t.result.Took = m.Bytes, time.Duration(m.Nanos)
		} else {
			t.result.Resent = int64(m.Resent)
		}
		if m.Flags&wire.LoadedLast != 0 {
			return errLoaded
		}
	default:
		return unexpected(m, "Loaded")
	}
	return nil
}

// pour is the load towards the other node. An error is the connection's, and the reader tells it.
func (t *loadTest) pour() {
	last, err := pour(t.conn, &t.load, func() bool {
		select {
		case <-t.over:
			return true
		default:
			return false
		}
	})
	if err != nil {
		return
	}
	t.mu.Lock()
	t.result.Resent = int64(last.Resent)
	t.mu.Unlock()
	_ = t.conn.Send(last)
}

// ask measures round trips through the load, one at a time, until it is over.
func (t *loadTest) ask() {
	tick := time.NewTicker(loadAsks)
	defer tick.Stop()
	for {
		select {
		case <-t.over:
			return
		case <-tick.C:
		}
		t.mu.Lock()
		t.asked = time.Now()
		t.mu.Unlock()
		if t.conn.Send(&wire.Survey{From: noVolumes}) != nil {
			<-t.over
			return
		}
		select {
		case <-t.over:
			return
		case <-t.answered:
		}
	}
}

// finish is called when every goroutine has ended.
func (t *loadTest) finish() *doctor.Load {
	r := t.result
	if !t.asked.IsZero() {
		// Not answered to the end: it would have taken at least that long.
		r.Within = append(r.Within, time.Since(t.asked))
	}
	if r.Took == 0 {
		r.Took = time.Since(t.began)
	}
	if !errors.Is(t.err, errLoaded) {
		r.Failure = failureOf(t.err)
	}
	if broken := r.Failure != nil && r.Failure.Class == wire.ClassReset; broken && t.load.Direction == wire.LoadTo {
		r.Bytes, r.Took = uint64(t.conn.Sent()), time.Since(t.began) // nobody told what arrived
	}
	return &r
}

// failureOf is an error as the doctor takes it.
func failureOf(err error) *doctor.Failure {
	told := probeError("", err)
	return &doctor.Failure{Class: wire.Classify(err), Text: told.Err.Error(), Next: told.Next}
}

// busy tells whether another load test is in the way, which ends soon.
func busy(l *doctor.Load) bool {
	return l.Failure != nil && l.Failure.Class == wire.ClassRefused // by a word of the peer: the connection stands
}

// loadWith tries until the node has time for a load test, and measures beside it.
func (d *doctorRun) loadWith(ctx context.Context, beside *contact, address string, direction wire.Direction) (*doctor.Load, error) {
	for try := 0; ; try++ {
		nc, err := wire.DialSegment(ctx, address, d.segment)
		if err != nil {
			return nil, err
		}
		c, err := d.greet(ctx, nc)
		if err != nil {
			return nil, err
		}
		within, cancel := context.WithCancel(ctx)
		var trips []time.Duration
		var lost error
		var other sync.WaitGroup
		other.Go(func() { trips, lost = besideLoad(within, beside) })
		l := c.loadTest(ctx, direction, d.Time)
		cancel()
		other.Wait()
		l.Beside = trips
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case lost != nil:
			return l, fmt.Errorf("the connection beside the load test: %w", lost)
		case !busy(l) || try == busyTries:
			return l, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(busyWait):
		}
	}
}

const (
	busyTries = 12
	busyWait  = 500 * time.Millisecond
)

// besideLoad measures round trips on a connection of its own until ctx ends. What is under way then is waited
// for: the next load test wants the connection in order.
func besideLoad(ctx context.Context, c *contact) (trips []time.Duration, err error) {
	tick := time.NewTicker(loadAsks)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return trips, nil
		case <-tick.C:
		}
		_, _, took, err := c.survey(context.WithoutCancel(ctx), noVolumes) // liveness bounds it
		if err != nil {
			return trips, err
		}
		trips = append(trips, took)
	}
}
