package engine

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"time"
)

var (
	errScrubGivesWay = errors.New("somebody asked for a scrub now")
	errVolumeStops   = errors.New("the volume is being stopped")
)

// scrubs are those of one volume: one at a time, the schedule, and what is remembered of them.
type scrubs struct {
	mu     sync.Mutex
	run    *scrubRun // under way
	closed bool
	last   time.Time       // the last whole one began; before the first one the volume was opened
	after  time.Time       // no scheduled one before that
	rot    map[uint64]bool // blocks of a primary that are rotten and were not written as a whole since
	path   string          // of the record; "": it is not kept

	saving sync.Mutex // of the file; taken before mu
}

type scrubRun struct {
	scheduled bool
	cancel    context.CancelCauseFunc
	ended     chan struct{}
}

// scrubRecord is what a restart must not lose. Nothing rests on it: where it is gone, the next scrub begins one
// interval later, and finds again what has an entry.
type scrubRecord struct {
	Last time.Time `json:"last"`
	Rot  []uint64  `json:"rot,omitempty"`
}

// begin begins one. A scheduled one gives way to one that a person wants. done ends it; whole: it came to its end.
func (x *scrubs) begin(ctx context.Context, volume string, scheduled bool) (run context.Context, done func(whole bool), err error) {
	for {
		x.mu.Lock()
		switch former := x.run; {
		case x.closed:
			x.mu.Unlock()
			return nil, nil, errMirrorStopped(volume)
		case former == nil:
			r, began := &scrubRun{scheduled: scheduled, ended: make(chan struct{})}, time.Now()
			run, r.cancel = context.WithCancelCause(ctx)
			x.run = r
			x.mu.Unlock()
			return run, func(whole bool) { x.end(r, began, whole) }, nil
		case former.scheduled && !scheduled:
			former.cancel(errScrubGivesWay)
			x.mu.Unlock()
			select {
			case <-former.ended:
			case <-ctx.Done():
				return nil, nil, context.Cause(ctx)
			}
		default:
			x.mu.Unlock()
			return nil, nil, &Error{Kind: KindState, Op: "scrub", On: volume, Err: errors.New("a scrub is under way"), Next: "wait for it, or end it"}
		}
	}
}

func (x *scrubs) end(r *scrubRun, began time.Time, whole bool) {
	r.cancel(nil)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.run = nil
	if whole {
		x.last = began
	}
	close(r.ended)
}

// stop ends the one under way, and waits for it. No other begins.
func (x *scrubs) stop() {
	x.mu.Lock()
	x.closed = true
	r := x.run
	x.mu.Unlock()
	if r != nil {
		r.cancel(errVolumeStops)
		<-r.ended
	}
}

// load reads the record, or makes the first one. A second time it does nothing.
func (x *scrubs) load(path string) error {
	x.mu.Lock()
	known := x.path != ""
	x.path = path
	x.mu.Unlock()
	if known {
		return nil
	}
	var r scrubRecord
	blob, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(blob, &r)
	}
	now := time.Now()
	fresh := err != nil || r.Last.IsZero() || r.Last.After(now)
	if fresh {
		r.Last = now
	}
	x.mu.Lock()
	x.last = r.Last
	for _, b := range r.Rot[:min(len(r.Rot), maxRot)] {
		x.noteRotLocked(b)
	}
	x.mu.Unlock()
	if !fresh {
		return nil
	}
	return x.save()
}

// save keeps the record, where one is kept.
func (x *scrubs) save() error {
	x.saving.Lock()
	defer x.saving.Unlock()
	rot := x.rotten()
	x.mu.Lock()
	path := x.path
	blob, err := json.Marshal(scrubRecord{Last: x.last, Rot: rot})
	x.mu.Unlock()
	if path == "" || err != nil {
		return err
	}
	return deviceOr("note scrub", path, writeDurably(path, blob))
}

// noteRot remembers a block, and tells whether it was not known.
func (x *scrubs) noteRot(block uint64) (fresh bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.noteRotLocked(block)
}

func (x *scrubs) noteRotLocked(block uint64) (fresh bool) {
	if x.rot[block] || len(x.rot) >= maxRot {
		return false
	}
	if x.rot == nil {
		x.rot = map[uint64]bool{}
	}
	x.rot[block] = true
	return true
}

// mended forgets a block, and tells whether it was known.
func (x *scrubs) mended(block uint64) (known bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	known = x.rot[block]
	delete(x.rot, block)
	return known
}

func (x *scrubs) isRotten(block uint64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rot[block]
}

// rotten are the blocks, in ascending order.
func (x *scrubs) rotten() []uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Sorted(maps.Keys(x.rot))
}

// routineSchedule begins scrubs as they become due, until done is closed. every is 0 where there are to be none; ready
// tells that the volume can be scrubbed and that the record is loaded.
func (x *scrubs) routineSchedule(done <-chan struct{}, every func() time.Duration, ready func() bool, run func() error) {
	for {
		e := every()
		wait := scrubLook
		if e > 0 {
			wait = min(wait, e)
			if ready() {
				wait = max(0, min(wait, time.Until(x.next(e))))
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-done:
			t.Stop()
			return
		case <-t.C:
		}
		if e = every(); e == 0 || !ready() || time.Now().Before(x.next(e)) {
			continue
		}
		if err := run(); err != nil {
			x.mu.Lock()
			x.after = time.Now().Add(min(scrubLook, e))
			x.mu.Unlock()
		}
	}
}

// next is when the next scheduled scrub is due.
func (x *scrubs) next(every time.Duration) time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	next := x.last.Add(every)
	if next.Before(x.after) {
		return x.after
	}
	return next
}
