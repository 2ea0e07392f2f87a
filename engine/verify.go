package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

const (
	verifyWorkers = 6                      // groups compared at once, each with a buffer of 1 MiB
	verifyRounds  = 50                     // over what was written meanwhile …
	verifyIdle    = 10                     // … and those in a row that settle nothing are the last
	verifyPause   = 200 * time.Millisecond // before another round
	verifyTries   = 3                      // readings of both sides before a block counts as different
)

// chosen are the mirrors that a person named: one, or all.
func (p *primary) chosen(op, name string) ([]*shipper, error) {
	all := p.shippers()
	if name != "" {
		all = slices.Clone(all)
		all = slices.DeleteFunc(all, func(s *shipper) bool { return s.config.Name != name })
	}
	switch {
	case len(p.shippers()) == 0:
		return nil, &Error{Kind: KindState, Op: op, On: p.name, Err: errors.New("the volume has no mirror"), Next: "name one with --mirror"}
	case len(all) == 0:
		return nil, &Error{Kind: KindUsage, Op: op, On: p.name, Err: fmt.Errorf("no mirror is called %q", name), Next: "see `blkmirror status` for their names"}
	}
	return all, nil
}

// verify compares mirrors with what is here.
func (p *primary) verify(ctx context.Context, o VerifyOptions, progress func(CheckProgress)) ([]VerifyResult, error) {
	ctx, done, err := p.jobs.begin(ctx, p.name, "verify")
	if err != nil {
		return nil, err
	}
	defer done()
	if p.unproven() { // what somebody else wrote here is not the mirror's fault
		return nil, errComparing("verify", p.name)
	}
	chosen, err := p.chosen("verify", o.Mirror)
	if err != nil {
		return nil, err
	}
	var results []VerifyResult
	for _, s := range chosen {
		v := newVerification(s, o.Rate, progress)
		r, err := v.run(ctx)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}

// verification is one verify of one mirror. Blocks are settled one way or another exactly once.
type verification struct {
	s        *shipper
	g        geometry
	blocks   uint64
	tree     uint64 // blocks that are compared by one hash first
	piece    int64  // bytes that are read in one go, and that one Offer block by block covers
	limit    *rate.Limiter
	progress func(CheckProgress)
	checked  atomic.Int64 // bytes

	mu      sync.Mutex
	pending *blockdev.PageSet    // blocks that are to be compared one by one, or again
	wrong   *blockdev.PageSet    // blocks that differ and are to be brought
	rot     *blockdev.PageSet    // blocks of our own that are not what was written
	found   map[uint64]wire.Hash // what blocks of wrong have to be

	own sync.Mutex    // one at a time looks at what our own index says
	x   *primaryScrub // made when it is needed
}

func newVerification(s *shipper, bytesPerSecond int64, progress func(CheckProgress)) *verification {
	g := geometry{size: s.p.size, blockSize: s.p.blockSize}
	blocks := uint64((g.size + g.blockSize - 1) / g.blockSize)
	limit := rate.NewLimiter(rate.Inf, offerBytes)
	if bytesPerSecond > 0 {
		limit.SetLimit(rate.Limit(bytesPerSecond))
	}
	sizes := &s.p.sizes
	return &verification{s: s, g: g, blocks: blocks, tree: cmp.Or(sizes.VerifyTree, treeBlocks), piece: cmp.Or(sizes.OfferBytes, offerBytes), limit: limit, progress: progress,
		pending: blockdev.NewPageSet(blocks), wrong: blockdev.NewPageSet(blocks), rot: blockdev.NewPageSet(blocks), found: map[uint64]wire.Hash{}}
}

// run compares everything, and then what was written meanwhile, as long as that comes to rest.
func (v *verification) run(ctx context.Context) (r VerifyResult, err error) {
	began := time.Now()
	s := v.s
	r = VerifyResult{Volume: s.p.name, Mirror: s.config.Name, Extents: []CheckedExtent{}}
	from := s.verifyFrom()
	r.ResumedAt = int64(from) * v.g.blockSize
	at, err := v.groups(ctx, from)
	if err != nil {
		s.setVerifyFrom(at)
		return r, err
	}
	s.setVerifyFrom(0)
	for round, idle := 0, 0; err == nil && v.pending.Count() > 0 && round < verifyRounds && idle < verifyIdle; round++ {
		if round > 0 {
			s.wantCut(s.p.facts.get().Cut) // what is shipped can be compared
			if err = pause(ctx, s.p.wait, s.p.now, verifyPause); err != nil {
				break
			}
		}
		before := v.pending.Count()
		err = v.singles(ctx)
		if idle++; v.pending.Count() < before {
			idle = 0
		}
	}
	if err == nil {
		err = v.tell(ctx)
	}
	for b, n, ok := v.wrong.NextSet(0); ok; b, n, ok = v.wrong.NextSet(b + n) {
		r.Extents = append(r.Extents, CheckedExtent(v.extent(b, n)))
	}
	for b, n, ok := v.rot.NextSet(0); ok; b, n, ok = v.rot.NextSet(b + n) {
		r.Rot = append(r.Rot, CheckedExtent(v.extent(b, n)))
	}
	for b, n, ok := v.pending.NextSet(0); ok; b, n, ok = v.pending.NextSet(b + n) {
		r.SkippedBytes += v.extent(b, n).Length
	}
	r.CheckedBytes, r.Seconds = v.checked.Load(), time.Since(began).Seconds()
	return r, err
}

// extent are the bytes of blocks.
func (v *verification) extent(b, n uint64) wire.Extent {
	off := int64(b) * v.g.blockSize
	return wire.Extent{Offset: off, Length: min(int64(b+n)*v.g.blockSize, v.g.size) - off}
}

// groups compares groups of blocks by the hash of their hashes, several at once. at is up to where all are equal: what
// is left for later is compared again by a verify that goes on.
func (v *verification) groups(ctx context.Context, from uint64) (at uint64, err error) {
	work, ctx := newCrew(ctx, v.s.p.wait != nil, verifyWorkers)
	var done sync.Map
	next := from
	for ; next < v.blocks && ctx.Err() == nil; next += v.tree {
		b := next
		work.do(func() error {
			equal, err := v.group(ctx, b, min(v.tree, v.blocks-b))
			if equal {
				done.Store(b, true)
			}
			return err
		})
	}
	err = work.wait()
	for at = from; at < next; at += v.tree {
		if _, ok := done.Load(at); !ok {
			break
		}
	}
	return at, err
}

func (v *verification) group(ctx context.Context, b, n uint64) (equal bool, err error) {
	bits, _, proved, err := v.ask(ctx, b, n, true)
	if err != nil {
		return false, err
	}
	if proved && bits[0] == 0 {
		v.settled(b, n)
		return true, nil
	}
	v.mu.Lock()
	v.pending.Add(b, n)
	v.mu.Unlock()
	return false, nil
}

// settled counts blocks that are known to be equal or different.
func (v *verification) settled(b, n uint64) {
	done := v.checked.Add(v.extent(b, n).Length)
	v.progress(CheckProgress{Mirror: v.s.config.Name, Done: done, Total: v.g.size})
}

// singles compares what is pending block by block, in runs that one Offer holds, several at once.
func (v *verification) singles(ctx context.Context) error {
	most := max(1, uint64(v.piece/v.g.blockSize))
	work, ctx := newCrew(ctx, v.s.p.wait != nil, verifyWorkers)
	for at := uint64(0); ctx.Err() == nil; {
		v.mu.Lock()
		b, n, ok := v.pending.NextRun(at, most)
		v.mu.Unlock()
		if !ok {
			break
		}
		at = b + n
		work.do(func() error { return v.blocksOf(ctx, b, n) })
	}
	return work.wait()
}

// blocksOf compares blocks in one go, and where some of them are written to, each for itself.
func (v *verification) blocksOf(ctx context.Context, b, n uint64) error {
	bits, hashes, proved, err := v.ask(ctx, b, n, false)
	switch {
	case err != nil:
		return err
	case !proved && n == 1:
		return nil // later
	case !proved:
		for i := range n {
			if err := v.blocksOf(ctx, b+i, 1); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range n {
		if bits[i/8]>>(i%8)&1 == 0 {
			v.settle(b+i, wire.Hash{})
		} else if err := v.confirm(ctx, b+i, hashes[i]); err != nil {
			return err
		}
	}
	return nil
}

// confirm reads a block that differs again, on both sides.
func (v *verification) confirm(ctx context.Context, b uint64, first wire.Hash) error {
	for try := 1; try < verifyTries; try++ {
		bits, hashes, proved, err := v.ask(ctx, b, 1, false)
		switch {
		case err != nil:
			return err
		case !proved:
			return nil // it was written: later
		case bits[0]&1 == 0:
			v.s.p.log(fmt.Sprintf("block %d differed from mirror %s once and does not any more: check memory and cables", b, v.s.config.Name))
			v.settle(b, wire.Hash{})
			return nil
		case hashes[0] != first:
			v.s.mu.Lock()
			v.s.mismatches.source++
			v.s.mu.Unlock()
			v.s.p.log(fmt.Sprintf("block %d, which nobody wrote, was read twice with different content: check the primary's disk", b))
		}
	}
	return v.judge(ctx, b, first)
}

// settle notes what a block was found to be: wrong at the mirror where there is a hash that it has to have.
func (v *verification) settle(b uint64, want wire.Hash) {
	v.mu.Lock()
	v.pending.Remove(b, 1)
	if want != (wire.Hash{}) {
		v.wrong.Add(b, 1)
		v.found[b] = want
	}
	v.mu.Unlock()
	v.settled(b, 1)
}

// ask compares blocks once: under a watch, so that neither side may change them meanwhile. proved is false where
// they are needed or were written; then it says nothing about them. hashes are ours.
func (v *verification) ask(ctx context.Context, b, n uint64, tree bool) (bits []byte, hashes []wire.Hash, proved bool, err error) {
	e := v.extent(b, n)
	first := uint64(e.Offset) / pageSize
	w, ok := v.s.p.tracker.Watch(v.s.sets, first, pagesOf(e.Offset+e.Length)-first)
	if !ok {
		return nil, nil, false, nil
	}
	defer func() { proved = w.End() && proved }()
	if hashes, err = v.read(ctx, e); err != nil {
		if ctx.Err() != nil {
			return nil, nil, false, context.Cause(ctx)
		}
		return nil, nil, false, nil // the path has told it
	}
	unit := v.g.blockSize
	if tree {
		hashes, unit = []wire.Hash{wire.TreeHash(hashes)}, unit*int64(v.tree)
	}
	m := &wire.Offer{Offset: e.Offset, Length: uint32(e.Length), Unit: uint32(unit), Flags: wire.OfferVerify, Hashes: hashes}
	if tree {
		m.Flags |= wire.OfferTree
	}
	bits, err = v.s.check(ctx, m)
	return bits, hashes, err == nil, err
}

// read hashes blocks here.
func (v *verification) read(ctx context.Context, e wire.Extent) ([]wire.Hash, error) {
	pool := v.s.verifyPool
	buf, err := pool.Get(ctx, int(v.piece))
	if err != nil {
		return nil, err
	}
	defer pool.Put(buf)
	return v.s.p.hashRange(v.g, blockdev.Extent(e), buf, func(n int) error { return v.limit.WaitN(ctx, n) })
}

// hashRange hashes blocks of the volume, each read while no write to it is under way. wait is asked before each reading.
func (p *primary) hashRange(g geometry, e blockdev.Extent, buf []byte, wait func(n int) error) ([]wire.Hash, error) {
	return g.hashRange(e, buf, func(off int64) (blockdev.Extent, error) { return p.path.Map(off, e.End()) }, func(b []byte, off int64) error {
		if err := wait(len(b)); err != nil {
			return err
		}
		first := uint64(off) / pageSize
		return p.path.ReadRange(first, pagesOf(off+int64(len(b)))-first, b)
	})
}

// tell has the mirror told what differs, and waits until it is read-only.
func (v *verification) tell(ctx context.Context) error {
	if v.wrong.Count() == 0 {
		return nil
	}
	entries := v.suspects(1)
	for unit := uint64(2); len(entries) > maxSuspects && unit <= uint64(wire.MaxZeroExtent/v.g.blockSize); unit *= 2 {
		entries = v.suspects(unit)
	}
	s := v.s
	s.mu.Lock()
	s.suspect(journal.ClassVerify, entries)
	session := s.session
	s.mu.Unlock()
	if session != nil {
		e := entries[0]
		session.end(&Error{Kind: KindIntegrity, Op: "verify", On: s.config.Name, Next: nextByCode[wire.CodeReadOnly],
			Err: fmt.Errorf("%w: %d blocks, the first at %d", errMismatch, v.wrong.Count(), e.Offset)})
	}
	return s.settleSuspects(ctx)
}

// suspects are the blocks that differ: one by one, or where they are too many, those of a unit of blocks with all that
// lies between them. What is in quarantine without need a repair finds equal.
func (v *verification) suspects(unit uint64) (entries []wire.SuspectEntry) {
	last := uint64(0)
	for b, n, ok := v.wrong.NextSet(0); ok; b, n, ok = v.wrong.NextSet(b + n) {
		for i := b; i < b+n; i++ {
			if k := len(entries) - 1; k >= 0 && i/unit == last/unit {
				first := uint64(entries[k].Offset / v.g.blockSize)
				entries[k].Length = uint32(v.extent(first, i-first+1).Length)
			} else {
				e := v.extent(i, 1)
				entries = append(entries, wire.SuspectEntry{Offset: e.Offset, Length: uint32(e.Length), Want: v.found[i]})
			}
			last = i
		}
	}
	return entries
}

// check sends an Offer of a verify and waits for the answer. Where the connection is lost it is sent again with
// the next one: the watch stands.
func (s *shipper) check(ctx context.Context, m *wire.Offer) (bits []byte, err error) {
	for {
		var session *shipSession
		hopeless := false
		if err := s.await(ctx, "verify", func() bool {
			session = s.session
			st := s.core.State()
			incomplete := st.Inconsistent || st.BulkBase
			hopeless = st.Phase == ship.ReadOnly && incomplete && s.mirrorCause != nil
			return hopeless || session != nil && session.ctx.Err() == nil && !incomplete && st.Phase != ship.Away
		}); err != nil {
			return nil, err
		}
		if hopeless { // and nobody can repair it meanwhile
			return nil, &Error{Kind: KindState, Op: "verify", On: s.config.Name, Err: errors.New("it is read-only, and no cut is complete there"), Next: nextByCode[wire.CodeReadOnly]}
		}
		answer := make(chan []byte, 1)
		s.mu.Lock()
		if s.session != session {
			s.mu.Unlock()
			continue
		}
		s.offerSeq++
		m.Seq = s.offerSeq
		s.checks[m.Seq] = answer
		s.mu.Unlock()
		if err := session.conn.Send(m); err != nil {
			session.end(err)
		}
		bits, ok, err := receive(ctx, s.p.wait, answer)
		switch {
		case err != nil:
			return nil, err
		case !ok:
			continue
		case len(bits) != (len(m.Hashes)+7)/8:
			return nil, protocolError("Want %d of %d bytes answers %d hashes", m.Seq, len(bits), len(m.Hashes))
		}
		return bits, nil
	}
}

// dropChecksLocked tells those who wait that no answer will come. s.mu is held.
func (s *shipper) dropChecksLocked() {
	for seq, answer := range s.checks {
		close(answer)
		delete(s.checks, seq)
	}
}

// verifyFrom is the block from which a verify goes on that was cut off.
func (s *shipper) verifyFrom() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verified
}

func (s *shipper) setVerifyFrom(b uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verified = b
}
