package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// What is rotten on a primary is taken from a mirror when a person says so (`repair --from mirror`), and only where a
// mirror has a block with the very hash that the primary's index noted when it was written: that is what clients wrote,
// whatever anybody believes. To the mirrors it is a write like any other.

// routineAnswer answers what the mirror asks for.
func (s *shipper) routineAnswer(session *shipSession) {
	read := func(b []byte, off int64) error {
		first := uint64(off) / pageSize
		return s.p.path.ReadRange(first, pagesOf(off+int64(len(b)))-first, b)
	}
	if err := session.fetches.routineAnswer(session.ctx, read, func(m wire.Message) error { return session.conn.Send(m) }); err != nil {
		session.end(err)
	}
}

func (s *shipper) here() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hereLocked()
}

func (s *shipper) hereLocked() bool {
	return s.session != nil && s.session.ctx.Err() == nil && s.core.State().Phase != ship.Away
}

// fetch asks the mirror for a block, as soon as it is there; nil: it does not have it.
func (s *shipper) fetch(ctx context.Context, m *wire.Fetch) ([]byte, error) {
	for {
		var session *shipSession
		if err := s.await(ctx, "repair", func() bool {
			session = s.session
			return s.hereLocked()
		}); err != nil {
			return nil, err
		}
		b, err := session.fetches.fetch(ctx, session.link, func(m wire.Message) error { return session.conn.Send(m) }, m)
		switch {
		case err == nil:
			return b, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		session.end(err) // and on with the next one
	}
}

// healing is one repair of what is rotten here.
type healing struct {
	*primaryScrub
	o       RepairOptions
	results []RepairResult // one for each mirror, in their order
	left    []uint64       // blocks that no mirror has
	lost    []uint64       // blocks whose hash the index does not have any more
}

// repairFromMirror heals what a scrub or a verify has found rotten. Where no mirror is named those are asked that are
// here, if any is.
func (p *primary) repairFromMirror(ctx context.Context, o RepairOptions, chosen []*shipper, progress func(CheckProgress)) ([]RepairResult, error) {
	if o.All {
		return nil, &Error{Kind: KindUsage, Op: "repair", On: p.name, Err: errors.New("--from mirror takes what is rotten at the primary from a mirror, and --all is for the other direction"),
			Next: "leave one of them away"}
	}
	began := time.Now()
	if here := slices.DeleteFunc(slices.Clone(chosen), func(s *shipper) bool { return !s.here() }); len(here) > 0 {
		chosen = here
	}
	base, err := newScrubbing(geometry{size: p.size, blockSize: p.blockSize}, chunkSize, rate.NewLimiter(rate.Inf, 0), nil)
	if err != nil {
		return nil, err
	}
	rotten := p.scrubs.rotten()
	h := &healing{primaryScrub: &primaryScrub{scrubbing: base, p: p}, o: o}
	for _, s := range chosen {
		h.results = append(h.results, RepairResult{Volume: p.name, Mirror: s.config.Name, Extents: []CheckedExtent{}, Nothing: len(rotten) == 0, Blocks: int64(len(rotten))})
	}
	for i, b := range rotten {
		if err = h.block(ctx, b, chosen); err != nil {
			break
		}
		progress(CheckProgress{Mirror: chosen[0].config.Name, Done: int64(i+1) * p.blockSize, Total: int64(len(rotten)) * p.blockSize})
	}
	if !o.DryRun && len(rotten) > 0 {
		if ferr := p.path.Flush(); err == nil && ferr != nil {
			err = deviceError("flush volume", p.config.Load().Path, ferr)
		}
		p.keepScrubs()
	}
	for i := range h.results {
		h.results[i].Seconds = time.Since(began).Seconds()
	}
	if err == nil {
		err = h.unhealed()
	}
	return h.results, err
}

// block heals one, from the first mirror that has it.
func (h *healing) block(ctx context.Context, b uint64, chosen []*shipper) error {
	e := h.extent(b, 1)
	entries, hashes, proved, err := h.compare(ctx, b, 1)
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && !isDeviceError(err):
		return err
	case err == nil && !proved:
		return nil // it is being written: what it becomes is not rot
	case !entries[0].Known:
		h.lost = append(h.lost, b)
		return nil
	case err == nil && hashes[0] == entries[0].Hash:
		h.p.scrubs.mended(b)
		return nil
	}
	want := entries[0].Hash
	for i, s := range chosen {
		right, err := s.fetch(ctx, &wire.Fetch{Offset: e.Offset, Length: uint32(e.Length), Hash: want})
		if err != nil {
			return err
		}
		if right == nil {
			continue
		}
		h.results[i].Extents = append(h.results[i].Extents, CheckedExtent(e))
		h.results[i].ComparedBytes += e.Length
		if h.o.DryRun {
			return nil
		}
		return h.replace(b, right, want)
	}
	h.left = append(h.left, b)
	return nil
}

// replace writes what is right over a block that still is rotten. What it held is kept first.
func (h *healing) replace(b uint64, right []byte, want wire.Hash) error {
	p, e := h.p, h.extent(b, 1)
	first := uint64(e.Offset) / pageSize
	done, err := p.path.Replace(right, e.Offset, h.buf, func(old []byte) (bool, error) {
		w, ok := p.tracker.Watch(p.index.sets, first, pagesOf(e.End())-first)
		if !ok {
			return false, nil // it was written meanwhile
		}
		defer w.End()
		var entry [1]journal.Entry
		if err := p.index.index.lookUp(e.Offset, entry[:]); err != nil || entry[0].Hash != want || wire.Sum(old) == want {
			return false, err
		}
		return true, keepRot(p.dir, old, e.Offset, p.now())
	})
	switch {
	case err != nil:
		return deviceError("heal block", p.config.Load().Path, err)
	case !done:
		return nil
	}
	p.scrubs.mended(b)
	p.log(fmt.Sprintf("rot: block %d was replaced by what a mirror has; %s keeps what it held", b, rotFolder))
	return nil
}

// unhealed tells what is left to a person.
func (h *healing) unhealed() error {
	switch {
	case len(h.left) > 0:
		return &Error{Kind: KindIntegrity, Op: "repair", On: h.p.name, Err: fmt.Errorf("no mirror has what was written to %d rotten blocks, the first is %d", len(h.left), h.left[0]),
			Next: "restore them from a backup: once they are written as a whole they count as right"}
	case len(h.lost) > 0:
		return &Error{Kind: KindIntegrity, Op: "repair", On: h.p.name, Err: fmt.Errorf("%d rotten blocks were written in part since, the first is %d: which content is right is not known any more", len(h.lost), h.lost[0]),
			Next: "look at them: once they are written as a whole they count as right"}
	}
	return nil
}

// ownRot judges a block that a mirror has with another content than ours by our own index: rotten where that knows what
// was written and we do not hold it. want is what it knows.
func (x *primaryScrub) ownRot(ctx context.Context, b uint64) (want wire.Hash, rotten bool, err error) {
	entries, hashes, proved, err := x.compare(ctx, b, 1)
	if err != nil || !proved || !entries[0].Known || hashes[0] == entries[0].Hash {
		return wire.Hash{}, false, err
	}
	err = x.confirm(ctx, b)
	return entries[0].Hash, x.rot.Contains(b), err
}
