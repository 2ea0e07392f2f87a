package sim

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/engine/ship"
)

// Coverage counts what histories reached. It may be shared by histories that run at once.
type Coverage struct {
	mu     sync.Mutex
	counts map[string]uint64
}

// NewCoverage has counted nothing yet.
func NewCoverage() *Coverage { return &Coverage{counts: map[string]uint64{}} }

type coverKind string

const (
	coverAction coverKind = "action "
	coverFault  coverKind = "fault "
	coverPair   coverKind = "pair "
)

// cover counts something; it also becomes a part of the digest.
func (w *World) cover(kind coverKind, what string) {
	w.trace.add(what)
	if w.coverage != nil {
		w.coverage.add(string(kind) + what)
	}
}

// hit is a fault that struck in the present step.
type hit struct {
	node *node // nil: of none alone
	kind string
}

// struck notes a fault. It is counted when the step is over: the engine may hold any lock by now.
func (w *World) struck(n *node, kind string) { w.hits = append(w.hits, hit{n, kind}) }

// countHits counts the faults of a step, each with the states that the last step had left.
func (w *World) countHits() {
	for _, h := range w.hits {
		w.cover(coverFault, h.kind)
		for _, state := range w.states(h.node) {
			w.cover(coverPair, state+" × "+h.kind)
		}
	}
	w.hits = w.hits[:0]
}

// states are the words for how the lines to a node stand; all lines where it is the primary.
func (w *World) states(n *node) (states []string) {
	for i, m := range w.mirrors {
		if n == nil || n == &w.primary.node || n == &m.node {
			states = append(states, phaseNames[m.phase])
		}
		if w.primary.volume != nil && !w.primary.dead {
			m.phase = w.primary.lines[i].shipper.State().Phase
		}
	}
	return states
}

var phaseNames = map[ship.Phase]string{ship.Away: "away", ship.Refused: "refused", ship.Reconciling: "reconciling", ship.Bulk: "bulk", ship.Shipping: "shipping", ship.ReadOnly: "read-only"}

var kindNames = map[ship.Kind]string{ship.Wait: "wait", ship.Cut: "cut", ship.SendRebase: "rebase", ship.SendCommit: "commit", ship.GiveUp: "give up",
	ship.Void: "void", ship.Drop: "drop", ship.BeginBulk: "begin bulk", ship.Pass: "pass", ship.Flush: "flush", ship.Offer: "offer", ship.RetryHoles: "retry holes"}

func (c *Coverage) add(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

// Count is how often something was reached.
func (c *Coverage) Count(what string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[what]
}

// Faults is the number of faults that struck.
func (c *Coverage) Faults() (sum uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, n := range c.counts {
		if len(what) > len(coverFault) && what[:len(coverFault)] == string(coverFault) {
			sum += n
		}
	}
	return sum
}

// Missing is what could have been reached and was not.
func (c *Coverage) Missing() (missing []string) {
	for _, what := range expected() {
		if c.Count(what) == 0 {
			missing = append(missing, what)
		}
	}
	return missing
}

// Print writes all counts, and behind them what was never reached.
func (c *Coverage) Print(out io.Writer) {
	c.mu.Lock()
	names := slices.Sorted(maps.Keys(c.counts))
	for _, what := range names {
		fmt.Fprintf(out, "%10d  %s\n", c.counts[what], what)
	}
	c.mu.Unlock()
	for _, what := range c.Missing() {
		fmt.Fprintf(out, "%10s  %s\n", "never", what)
	}
}

// expected is everything that a long run has to reach.
func expected() (all []string) {
	for k := ship.Cut; k <= ship.RetryHoles; k++ {
		all = append(all, string(coverAction)+"drive "+kindNames[k])
	}
	for _, f := range faults {
		all = append(all, string(coverFault)+f.name)
		for phase := ship.Away; phase <= ship.Shipping; phase++ {
			all = append(all, string(coverPair)+phaseNames[phase]+" × "+f.name)
		}
	}
	return all
}
