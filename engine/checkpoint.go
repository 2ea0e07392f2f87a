package engine

import (
	"context"
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
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if p.journal.Low() {
			p.journal.Refill()
		}
		age, bytes := time.Since(last), p.journal.SinceCheckpoint()
		if age < checkpointPause || bytes == 0 {
			continue
		}
		if age < checkpointEvery && bytes < checkpointBytes && p.tracker.HotCount() < checkpointHot {
			continue
		}
		if err := p.checkpoint(nil); err != nil {
			p.fail("checkpoint", err)
			return
		}
		last = time.Now()
	}
}

// checkpoint bounds what recovery has to put in doubt. The order is what makes it sound:
//
//  1. the log turns to a new segment
//  2. T: regions cool, save those with a write in flight and the recently used, which are listed
//  3. the device is flushed: everything that ended before T is durable
//  4. the sets are read, and only then the facts (see facts.committed)
//  5. the file is written, synced and named; older segments go
//
// edit changes the facts that it carries, and is nil but for the last one of a clean stop, for which nothing
// is hot: no write is under way any more.
func (p *primary) checkpoint(edit func(*journal.VolumeFacts)) error {
	c, err := p.journal.BeginCheckpoint()
	if err != nil {
		return err
	}
	limit := checkpointHot / 2 // so that it is not due again at once
	if edit != nil {
		limit = 0
	}
	hot := p.tracker.BeginCheckpoint(time.Now().Add(-keepHot), limit)
	if err := p.dev.Flush(); err != nil {
		c.Abandon()
		return err
	}
	var sets []journal.NamedSet
	for _, n := range p.tracker.Snapshot() {
		sets = append(sets, journal.NamedSet{Name: needsPrefix + n.Name, Pages: n.Needs},
			journal.NamedSet{Name: doubtPrefix + n.Name, Pages: n.Doubt})
	}
	p.facts.mu.Lock()
	defer p.facts.mu.Unlock()
	if edit != nil {
		edit(&p.facts.now)
	}
	return c.Finish(p.facts.now, sets, hot)
}

// The names of page sets in a checkpoint.
const (
	needsPrefix = "needs/"
	doubtPrefix = "doubt/"
	indexName   = "index" // the index as one more consumer; no mirror is called so
)
