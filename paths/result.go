package paths

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// saw notes what the primary told. The watch has ended.
func (r *rig) saw() {
	w := r.watch
	r.losses, r.vain, r.lag, r.rtt = w.losses, w.vain, w.lag, w.rtt
	if w.cause != nil {
		r.vain[w.cause.Class]++
		w.cause = nil
	}
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
