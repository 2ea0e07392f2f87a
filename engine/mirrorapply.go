package engine

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

const applyWriters = 4

// beginApply brings the oldest committed epoch to the device, beside the owner.
func (m *mirror) beginApply(a replica.Apply) {
	s, st := m.store, m.store.sealed[0]
	s.busy++
	m.spawn(func() {
		damaged, err := s.apply(s.ctx, st, a.ReadBack || m.readBack.Load())
		m.post(func() {
			s.busy--
			if err != nil {
				m.fail("apply", err)
				return
			}
			m.applied(a.Epoch, damaged)
		})
	})
}

// apply writes what an epoch brings: in ascending order, in large requests, several at once. What is written
// was hashed again: a payload that is not what was committed is left out, and its range returned, as is one
// that, with readBack, reads back as something else than was written. Then the
// device is flushed, and the index, whose entries were changed with their blocks, is synced. It may be done
// again, in part or as a whole, as long as the staging is there.
func (s *mirrorStore) apply(ctx context.Context, st *journal.Staging, readBack bool) (damaged []damage, err error) {
	for len(s.appliers) < s.m.writers {
		s.appliers = append(s.appliers, &applier{mirrorStore: s, pool: blockdev.NewPool(s.m.chunk)})
	}
	for _, a := range s.appliers {
		a.st, a.readBack = st, readBack
	}
	if len(s.appliers) == 1 {
		damaged, err = s.applyAlone(ctx, st)
	} else {
		damaged, err = s.applyTogether(ctx, st)
	}
	if err != nil {
		return nil, err
	}
	if err := s.flush(); err != nil {
		return nil, err
	}
	slices.SortFunc(damaged, func(a, b damage) int { return int(a.Offset>>12 - b.Offset>>12) })
	return damaged, nil
}

// applyAlone has the caller write one job after the other.
func (s *mirrorStore) applyAlone(ctx context.Context, st *journal.Staging) (damaged []damage, err error) {
	err = s.plan(st, func(job []journal.StagingPiece) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		bad, err := s.appliers[0].job(ctx, job)
		damaged = append(damaged, bad...)
		return err
	})
	return damaged, err
}

// applyTogether has all writers take jobs.
func (s *mirrorStore) applyTogether(ctx context.Context, st *journal.Staging) (damaged []damage, err error) {
	group, ctx := errgroup.WithContext(ctx)
	jobs := make(chan []journal.StagingPiece)
	var mu sync.Mutex
	for _, a := range s.appliers {
		group.Go(func() error {
			for job := range jobs {
				bad, err := a.job(ctx, job)
				if err != nil {
					return err
				}
				if len(bad) > 0 {
					mu.Lock()
					damaged = append(damaged, bad...)
					mu.Unlock()
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(jobs)
		return s.plan(st, func(job []journal.StagingPiece) error {
			select {
			case jobs <- job:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	err = group.Wait()
	return damaged, err
}

// plan cuts an epoch into jobs, which are the callee's own: a Zero, or Data without a gap inside one chunk.
func (s *mirrorStore) plan(st *journal.Staging, emit func(job []journal.StagingPiece) error) error {
	var job []journal.StagingPiece
	err := st.Plan(func(p journal.StagingPiece) error {
		if n := len(job); n > 0 {
			last := &job[n-1]
			joins := last.Record.Kind == journal.StagingData && p.Record.Kind == journal.StagingData &&
				last.Offset+last.Length == p.Offset && p.Offset%s.m.chunk != 0
			if !joins {
				whole := job
				job = nil
				if err := emit(whole); err != nil {
					return err
				}
			}
		}
		job = append(job, p)
		return nil
	})
	if err != nil || len(job) == 0 {
		return err
	}
	return emit(job)
}

// applier is one writer. Its buffers stay for the next epoch.
type applier struct {
	*mirrorStore
	st   *journal.Staging
	pool *blockdev.Pool // of one buffer, for zeroes

	raw     []byte // of the job; aligned
	payload []byte // packed
	whole   []byte // of a record of which the job has a part only

	readBack bool
	back     []byte // what was read back; aligned
}

func (a *applier) job(ctx context.Context, job []journal.StagingPiece) (damaged []damage, err error) {
	first, last := &job[0], &job[len(job)-1]
	if a.readBack && a.back == nil {
		if a.back, err = blockdev.NewPool(a.m.chunk).Get(ctx, int(a.m.chunk)); err != nil {
			return nil, err
		}
	}
	if first.Record.Kind == journal.StagingZero {
		return a.writeZero(ctx, first)
	}
	if a.raw == nil {
		if a.raw, err = blockdev.NewPool(a.m.chunk).Get(ctx, int(a.m.chunk)); err != nil {
			return nil, err
		}
		a.whole = make([]byte, a.blockSize)
	}
	raw := a.raw[:last.Offset+last.Length-first.Offset]
	good, found, err := a.read(job, raw)
	if err != nil {
		return nil, err
	}
	for i := range job {
		if p := &job[i]; !good[i] {
			damaged = append(damaged, damage{Extent: blockdev.Extent{Offset: p.Offset, Length: p.Length}, class: journal.ClassStaging, want: p.Record.Hash, got: found[i]})
		}
	}
	for i, j := range stretches(len(job), func(i, j int) bool { return good[i] == good[j] }) {
		end := job[j-1].Offset + job[j-1].Length
		if !good[i] {
			if err := a.index.forget(job[i].Offset, end-job[i].Offset); err != nil {
				return nil, err
			}
			continue
		}
		bad, err := a.write(job[i:j], raw[job[i].Offset-first.Offset:end-first.Offset])
		if err != nil {
			return nil, err
		}
		damaged = append(damaged, bad...)
	}
	return damaged, nil
}

// read fills raw with the pieces of a job, and tells of each whether its record is what was committed, and
// which hash it has. Whole records, most of them, are hashed where they lie, two at a time.
func (a *applier) read(job []journal.StagingPiece, raw []byte) (good []bool, hashes []wire.Hash, err error) {
	good = make([]bool, len(job))
	hashes = make([]wire.Hash, len(job))
	pair := pairHasher{hashes: hashes}
	for i := range job {
		p := &job[i]
		r := &p.Record
		dst := raw[p.Offset-job[0].Offset:][:p.Length]
		whole := dst
		if p.Length != r.Length {
			whole = a.whole[:r.Length]
		}
		packed := wire.Codec(r.Codec) != wire.CodecRaw || int64(r.PayloadLength) != r.Length
		payload := whole
		if packed {
			if len(a.payload) < r.PayloadLength {
				a.payload = make([]byte, max(r.PayloadLength, len(a.whole)))
			}
			payload = a.payload[:r.PayloadLength]
		}
		if err := a.st.ReadPayload(*r, p.At, payload); err != nil {
			return nil, nil, err
		}
		good[i] = !packed || wire.Unpack(wire.Codec(r.Codec), whole, payload) == nil
		switch {
		case !good[i]:
		case p.Length == r.Length:
			pair.add(i, dst)
		default: // its place is needed for the next one
			hashes[i] = wire.Sum(whole)
			copy(dst, whole[p.Offset-r.Offset:])
		}
	}
	pair.flush()
	for i := range job {
		good[i] = good[i] && hashes[i] == job[i].Record.Hash
	}
	return good, hashes, nil
}

// into is where what was written is read back; nil: it is not.
func (a *applier) into() []byte {
	if !a.readBack {
		return nil
	}
	return a.back
}

func (a *applier) writeZero(ctx context.Context, p *journal.StagingPiece) ([]damage, error) {
	if err := a.index.forget(p.Offset, p.Length); err != nil {
		return nil, err
	}
	return a.zeroBack(ctx, blockdev.Extent{Offset: p.Offset, Length: p.Length}, p.Record.MayFree, a.pool, a.into())
}

// write writes pieces that are good, and has the index know the blocks that passed by as a whole, and no
// other.
func (a *applier) write(pieces []journal.StagingPiece, raw []byte) ([]damage, error) {
	off := pieces[0].Offset
	if err := a.index.forget(off, int64(len(raw))); err != nil {
		return nil, err
	}
	back := a.into()
	if found, err := a.writeBack(raw, off, back); err != nil || len(found) > 0 {
		return found, err
	}
	if found := changed(pieces, back); len(found) > 0 {
		return found, nil
	}
	end := off + int64(len(raw))
	first := off + (a.blockSize-off%a.blockSize)%a.blockSize
	var hashes []wire.Hash
	for at := first; at < a.size && a.blockEnd(at) <= end; at = a.blockEnd(at) {
		for pieces[0].Offset+pieces[0].Length <= at {
			pieces = pieces[1:]
		}
		n := a.blockEnd(at) - at
		if p := &pieces[0]; p.Record.Offset == at && p.Record.Length == n && p.Length == n {
			hashes = append(hashes, p.Record.Hash)
		} else {
			hashes = append(hashes, wire.Sum(raw[at-off:][:n]))
		}
	}
	if len(hashes) == 0 {
		return nil, nil
	}
	return nil, a.index.learn(first, hashes)
}

// changed are the pieces whose record is there as a whole and that read back with another hash than was committed,
// although with the bytes that were written: those changed in memory between the check and the write.
func changed(pieces []journal.StagingPiece, back []byte) (found []damage) {
	if back == nil {
		return nil
	}
	hashes := make([]wire.Hash, len(pieces))
	pair := pairHasher{hashes: hashes}
	whole := func(p *journal.StagingPiece) bool { return p.Length == p.Record.Length }
	for i := range pieces {
		if p := &pieces[i]; whole(p) {
			pair.add(i, back[p.Offset-pieces[0].Offset:][:p.Length])
		}
	}
	pair.flush()
	for i := range pieces {
		if p := &pieces[i]; whole(p) && hashes[i] != p.Record.Hash {
			found = append(found, damage{Extent: blockdev.Extent{Offset: p.Offset, Length: p.Length}, class: journal.ClassDevice, want: p.Record.Hash, got: hashes[i]})
		}
	}
	return found
}

// differing are the pages of what was written to off that read back as something else.
func differing(off int64, want, got []byte) (found []damage) {
	for at := 0; at < len(got); at += pageSize {
		w, g := want[at:min(at+pageSize, len(want))], got[at:min(at+pageSize, len(got))]
		if !bytes.Equal(w, g) {
			found = append(found, damage{Extent: blockdev.Extent{Offset: off + int64(at), Length: int64(len(w))}, class: journal.ClassDevice, want: wire.Sum(w), got: wire.Sum(g)})
		}
	}
	return found
}
