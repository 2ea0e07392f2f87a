package engine

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/journal"
)

// When a checkpoint is due, and what it lists (DESIGN §6, §11).
const (
	checkpointEvery = 60 * time.Second
	checkpointBytes = 16 << 20 // of marks and facts
	checkpointHot   = 4096     // regions
	checkpointPause = 5 * time.Second
	keepHot         = 30 * time.Second // regions used since stay hot
	checkpointLook  = time.Second
)

// routineCheckpoint makes checkpoints as they become due. A failed one leaves everything as it was; what
// failed is sticky in device or journal, so that the volume refuses writes.
func (p *primary) routineCheckpoint(ctx context.Context) {
	tick := time.NewTicker(checkpointLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if p.checkpointDue() && p.dueCheckpoint() != nil {
			return
		}
	}
}

// checkpointDue tells whether one has to be made now. It also looks after the room for it.
func (p *primary) checkpointDue() bool {
	if p.journal.Low() {
		p.journal.Refill()
	}
	age, bytes, uncovered := p.now().Sub(p.checkpointed), p.journal.SinceCheckpoint(), p.facts.uncovered() || p.proven()
	if age < checkpointPause || bytes == 0 && !uncovered {
		return false
	}
	return age >= checkpointEvery || bytes >= cmp.Or(p.sizes.CheckpointBytes, checkpointBytes) || p.tracker.HotCount() >= p.mostHot() || uncovered
}

// dueCheckpoint makes it. An error is the end of all writes, and of checkpoints.
func (p *primary) dueCheckpoint() error {
	err := p.checkpoint(nil)
	switch {
	case isNoRoom(err) && p.journal.Err() == nil:
		p.log(fmt.Sprintf("no room for a checkpoint; it is tried again: %v", err))
	case err != nil:
		p.fail("checkpoint", err)
		return err
	}
	p.checkpointed = p.now()
	return nil
}

// mostHot is how many hot regions make a checkpoint due.
func (p *primary) mostHot() int { return cmp.Or(p.sizes.CheckpointHot, checkpointHot) }

// checkpoint bounds what recovery has to put in doubt. The order is what makes it sound:
//
//  1. the log turns to a new segment
//  2. T: regions cool, save those with a write in flight and the recently used, which are listed
//  3. the device is flushed: everything that ended before T is durable
//  4. the sets are read, and the facts, which must not change meanwhile
//  5. the file is written, synced and named; older segments go
//
// edit changes the facts that it carries, and is nil but for the last one of a clean stop, for which nothing
// is hot: no write is under way any more.
func (p *primary) checkpoint(edit func(*journal.VolumeFacts)) error {
	c, err := p.journal.BeginCheckpoint()
	if err != nil {
		return err
	}
	limit := p.mostHot() / 2 // so that it is not due again at once
	if edit != nil {
		limit = 0
	}
	hot := p.tracker.BeginCheckpoint(p.now().Add(-keepHot), limit)
	if err := p.dev.Flush(); err != nil {
		c.Abandon()
		return err
	}
	p.facts.mu.Lock()
	defer p.facts.unlock()
	proven := p.compare != nil && p.compare.finished()
	var sets []journal.NamedSet
	for _, n := range p.tracker.Snapshot() {
		sets = append(sets, journal.NamedSet{Name: needsPrefix + n.Name, Pages: n.Needs},
			journal.NamedSet{Name: doubtPrefix + n.Name, Pages: n.Doubt})
	}
	next := p.facts.covered()
	if proven {
		next.Mirror.Unproven = false
	}
	if edit != nil {
		edit(&next)
	}
	if err := c.Finish(next, sets, hot); err != nil {
		return err // what it would have made true is not
	}
	p.facts.now = next
	return nil
}

// proven tells that the comparison is done and the journal does not know yet: what it found is in no
// checkpoint.
func (p *primary) proven() bool {
	return p.compare != nil && p.compare.finished() && p.facts.get().Mirror.Unproven
}

// The names of page sets in a checkpoint.
const (
	needsPrefix = "needs/"
	doubtPrefix = "doubt/"
	indexName   = "index" // the index as one more consumer; no mirror is called so
)
