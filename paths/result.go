package paths

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// told reads what both sides have kept of their disconnects. The watch has ended.
func (r *rig) told() error {
	history, counted, err := r.primary.History(r.ctx)
	if err != nil {
		return err
	}
	if !tallies(history, counted) {
		r.fail("the counters say %v, the history %+v", counted, history)
	}
	r.vain = tries(history)
	if history, _, err = r.mirror.History(r.ctx); err != nil {
		return err
	}
	for _, d := range history {
		if d.Role == "mirror" && len(r.toMirror) > 0 && !slices.Contains(r.toMirror, d.Class) {
			r.fail("the mirror tells of a %s (%s), expected %s", d.Class, d.Error, strings.Join(r.toMirror, " or "))
		}
	}
	return nil
}

// saw notes what the primary told meanwhile. The watch has ended.
func (r *rig) saw() {
	w := r.watch
	r.losses, r.lag, r.rtt = w.losses, w.lag, w.rtt
	r.shipped = w.last.Shipped - r.start.Shipped
}

// judge holds what was seen against what the scenario expects.
func (r *rig) judge() {
	now := r.watch.last
	times := max(r.times, 1)
	if n := len(r.losses); n < r.least*times || n > r.most*times {
		r.fail("%d disconnects, expected %d to %d", n, r.least*times, r.most*times)
	}
	for _, l := range r.losses {
		if !slices.Contains(r.classes, l.class) && r.most > 0 {
			r.fail("a disconnect of class %s, expected %s", l.class, strings.Join(r.classes, " or "))
		}
	}
	if now.State != "connected" && now.State != "catching-up" || now.ReadOnly != nil || now.Noticed() > 0 {
		r.fail("the mirror is %+v", now)
	}
	if n := now.Offered - r.start.Offered; r.watch.states["bulk"] || n > volumeSize/16 {
		r.fail("a resync: %d bytes were compared; states %v", n, r.watch.states)
	}
	if again := r.again(); again > spare+int64(len(r.losses))*spareEach {
		r.fail("%d bytes were shipped again", again)
	}
	w := r.writer
	if err := w.Err(); err != nil || w.Lost.Load()+w.Errors.Load()+w.Reconnects.Load() > 0 {
		r.fail("the writer noticed: %d requests without a reply, %d errors: %v", w.Lost.Load(), w.Errors.Load(), err)
	}
}

// What may be shipped again: what was written while nobody could know yet that it does not arrive, and for each lost
// connection what was under way. It also makes up for what a page that is written again at once leaves open.
const (
	spare     = 4 << 20
	spareEach = 512 << 10
)

// result is how a scenario ended.
type result struct {
	*scenario
	notRun   string
	failures []string

	times          int // how often the fault was made; 0: once
	notice, resume time.Duration
	losses         []loss
	vain           map[string]int
	lag, rtt       float64
	must, shipped  int64
}

func (r *result) fail(format string, a ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, a...))
}

// again is what was shipped and had been shipped before.
func (r *result) again() int64 { return max(0, r.shipped-r.must) }
