package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/wire"
)

// repairJob is a repair under way, over any number of connections.
type repairJob struct {
	all     bool
	began   bool  // its pages are in doubt
	blocks  int64 // in question
	pages   uint64
	differs []wire.Extent // what the mirror wanted
	vain    int           // sessions in a row that ended as the last did: what was brought cannot be read back
}

// repairTries is how often a repair brings the same blocks to a disk that does not keep them.
const repairTries = 3

// beginRepair lets a session repair, if that is wanted: the mirror is told before anything else is sent. What is
// in quarantine is put in doubt when the mirror has told it, or with `all` everything at once.
func (s *shipper) beginRepair(session *shipSession) error {
	s.mu.Lock()
	j := s.repairing
	if j == nil || s.session != session || s.core.State().Phase != ship.ReadOnly {
		s.mu.Unlock()
		return nil
	}
	j.began = false
	s.mu.Unlock()
	if err := session.conn.Send(&wire.Repair{All: j.all}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != session || s.repairing != j {
		return nil
	}
	if s.mirrorCause != nil || j.all {
		s.doubtQuarantineLocked()
	}
	s.core.Repair()
	s.notifyLocked()
	return nil
}

// doubtQuarantineLocked puts what is to be compared in doubt. What is dirty anyway stays that. s.mu is held.
func (s *shipper) doubtQuarantineLocked() {
	j := s.repairing
	if j.began {
		return
	}
	j.began = true
	s.blank = -1 // a bulk that goes on behind this meets what it has sent before
	set := blockdev.NewPageSet(s.p.tracker.Pages())
	if j.all {
		set.Fill()
	} else if s.mirrorCause != nil {
		for _, r := range runsOf(s.mirrorCause.Extents) {
			set.Add(r.First, r.Count)
		}
	}
	if pages := set.Count(); pages != j.pages {
		j.pages, j.vain = pages, 0
	}
	perBlock := uint64(s.p.blockSize / pageSize)
	j.blocks = int64((j.pages + perBlock - 1) / perBlock)
	s.p.tracker.Doubt(s.sets, set)
}

// noteDiffering keeps what a repair found to differ.
func (s *shipper) noteDiffering(first, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.repairing; j != nil {
		e := s.extent(first, n)
		if k := len(j.differs); k > 0 && j.differs[k-1].Offset+j.differs[k-1].Length == e.Offset {
			j.differs[k-1].Length += e.Length
		} else if k < maxBlocksTold {
			j.differs = append(j.differs, e)
		}
	}
}

// repair brings what mirrors have in quarantine, or with All everything that differs, by way of an epoch.
func (p *primary) repair(ctx context.Context, o RepairOptions, progress func(CheckProgress)) ([]RepairResult, error) {
	ctx, done, err := p.jobs.begin(ctx, p.name, "repair")
	if err != nil {
		return nil, err
	}
	defer done()
	chosen, err := p.chosen("repair", o.Mirror)
	if err != nil {
		return nil, err
	}
	if o.From == "mirror" {
		return p.repairFromMirror(ctx, o, chosen, progress)
	}
	var results []RepairResult
	for _, s := range chosen {
		r, err := s.repair(ctx, o, progress)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}

// repair repairs one mirror.
func (s *shipper) repair(ctx context.Context, o RepairOptions, progress func(CheckProgress)) (r RepairResult, err error) {
	began := time.Now()
	r = RepairResult{Volume: s.p.name, Mirror: s.config.Name, Extents: []CheckedExtent{}}
	defer func() { r.Seconds = time.Since(began).Seconds() }()
	if err := s.settleSuspects(ctx); err != nil {
		return r, err
	}
	s.mu.Lock()
	cause := s.mirrorCause
	s.mu.Unlock()
	switch {
	case cause == nil && !o.All:
		r.Nothing = true
		return r, nil
	case o.DryRun:
		return s.dryRun(ctx, o, cause, r, progress)
	case o.From == "":
		if err := s.undecided(o, cause); err != nil {
			return r, err
		}
	}
	return s.carryOutRepair(ctx, o, r, progress)
}

// undecided refuses to bring a block to a mirror that our own index says is rotten: a person has to say who is right.
func (s *shipper) undecided(o RepairOptions, cause *wire.Quarantine) error {
	for _, b := range s.p.scrubs.rotten() {
		e := blockdev.Extent{Offset: int64(b) * s.p.blockSize, Length: s.p.blockSize}
		asked := o.All || slices.ContainsFunc(cause.Extents, func(q wire.Extent) bool { return q.Offset < e.End() && e.Offset < q.Offset+q.Length })
		if asked && s.p.stillRotten(b) {
			return &Error{Kind: KindState, Op: "repair", On: s.p.name, Err: fmt.Errorf("block %d is rotten at the primary: mirror %s would get what that disk made of it", b, s.config.Name),
				Next: "say --from mirror first, which takes it from a mirror that has what was written; or --from primary, if that disk is to be believed"}
		}
	}
	return nil
}

// settleSuspects waits until a mirror that is to be told of mismatches knows them, and until one that says that
// it is read-only has said why.
func (s *shipper) settleSuspects(ctx context.Context) error {
	return s.await(ctx, "repair", func() bool {
		st := s.core.State()
		return s.session != nil && st.Phase != ship.Away && len(s.suspects) == 0 && (st.Phase != ship.ReadOnly || s.mirrorCause != nil)
	})
}

// carryOutRepair lets the mirror be repaired, and waits until it is.
func (s *shipper) carryOutRepair(ctx context.Context, o RepairOptions, r RepairResult, progress func(CheckProgress)) (RepairResult, error) {
	j := &repairJob{all: o.All}
	s.mu.Lock()
	s.repairing = j
	session, taken := s.session, s.core.State().Phase != ship.ReadOnly
	if taken { // also where a repair that was cut off has had the mirror let us
		s.doubtQuarantineLocked()
	}
	shipped, offered := s.stats.shipped.Load(), s.stats.offered.Load()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.repairing = nil
		s.mu.Unlock()
	}()
	if session != nil {
		if err := s.beginRepair(session); err != nil {
			session.end(err) // the next one begins with it
		}
	}
	s.notify()
	after := s.p.facts.get().Cut
	if taken {
		s.wantCut(after)
	}
	err := s.await(ctx, "repair", func() bool {
		n := s.p.tracker.Counts(s.sets)
		total := int64(j.pages) * pageSize
		if j.vain == repairTries {
			return true
		}
		progress(CheckProgress{Mirror: s.config.Name, Done: max(0, min(total-int64(n.Doubt)*pageSize, total)), Total: total})
		st := s.core.State()
		if s.mirrorCause != nil || len(s.suspects) > 0 || !j.began || s.session == nil || st.Phase == ship.ReadOnly {
			return false
		}
		return !taken || n.Doubt == 0 && st.Applied > after && !st.Inconsistent && !st.BulkBase
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Blocks = j.blocks
	r.ShippedBytes, r.ComparedBytes = s.stats.shipped.Load()-shipped, s.stats.offered.Load()-offered
	for _, e := range j.differs {
		r.Extents = append(r.Extents, CheckedExtent(e))
	}
	if err == nil && j.vain == repairTries {
		err = &Error{Kind: KindIntegrity, Op: "repair", On: s.config.Name, Next: "replace the mirror's disk",
			Err: fmt.Errorf("%w: %d times what was brought could not be read back", errMismatch, j.vain)}
	}
	return r, err
}

// dryRun compares what a repair would, and ships nothing.
func (s *shipper) dryRun(ctx context.Context, o RepairOptions, cause *wire.Quarantine, r RepairResult, progress func(CheckProgress)) (RepairResult, error) {
	v := newVerification(s, 0, progress)
	if o.All {
		v.pending.Fill()
	} else {
		for _, e := range cause.Extents {
			b := uint64(e.Offset / v.g.blockSize)
			v.pending.Add(b, uint64((e.Offset+e.Length+v.g.blockSize-1)/v.g.blockSize)-b)
		}
	}
	r.Blocks = int64(v.pending.Count())
	err := v.singles(ctx)
	r.ComparedBytes = v.checked.Load()
	for b, n, ok := v.wrong.NextSet(0); ok; b, n, ok = v.wrong.NextSet(b + n) {
		r.Extents = append(r.Extents, CheckedExtent(v.extent(b, n)))
	}
	return r, err
}

// await waits until something is so, which is asked with s.mu held and whenever the state changes, and now and
// then. A mirror that comes and goes is waited for; one that a person has to do something about is not.
func (s *shipper) await(ctx context.Context, op string, so func() bool) error {
	if s.p.wait != nil {
		s.p.wait(func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return so() || s.stopped != "" || ctx.Err() != nil
		})
	}
	tick := time.NewTicker(awakeEvery)
	defer tick.Stop()
	for {
		s.mu.Lock()
		ok, changed, stopped := so(), s.changed, s.stopped
		s.mu.Unlock()
		switch {
		case ok:
			return nil
		case stopped != "":
			return &Error{Kind: KindIntegrity, Op: op, On: s.config.Name, Err: errors.New(stopped), Next: "say `blkmirror resume " + s.p.name + "` first"}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return &Error{Kind: KindNetwork, Op: op, On: s.config.Name, Err: fmt.Errorf("interrupted while the mirror is %s: %w", s.status().State, context.Cause(ctx)),
				Next: "run it again: it goes on with what is left"}
		}
	}
}
