package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// The scrub of a mirror reads beside the owner. An entry is removed before its block changes and comes back behind
// it, so an entry that is the same before and after the block was read nearly always is that of what was read. A
// block that differs is read again by the owner itself, who begins every apply and every write in place: while
// nothing of both touches the block, it and its entry stand still.
//
// What is rotten is healed, by the owner and while it stands still, where the primary has a block with the very hash
// of the entry; else the mirror becomes read-only. Healing in place is no repair in place: the block gets what this
// mirror's own cut has there, and not what the primary has by now.
//
// A block without an entry gets one where nothing that could change it began, ended or was under way from before it
// was read until the entry is noted, in the owner: an entry may be absent, never wrong.

const scrubRounds = 20 // over blocks that were being changed

// mirrorScrub is one scrub of a mirror.
type mirrorScrub struct {
	*scrubbing
	m *mirror
	s *mirrorStore
}

// scrub compares the mirror's device with its index.
func (m *mirror) scrub(ctx context.Context, o ScrubOptions, progress func(CheckProgress)) ([]ScrubResult, error) {
	return m.runScrub(ctx, o, false, progress)
}

func (m *mirror) runScrub(ctx context.Context, o ScrubOptions, scheduled bool, progress func(CheckProgress)) (results []ScrubResult, err error) {
	ctx, done, err := m.scrubs.begin(ctx, m.name, scheduled)
	if err != nil {
		return nil, err
	}
	whole := false
	defer func() {
		done(whole)
		if err := m.scrubs.save(); err != nil {
			m.log(err.Error())
		}
	}()
	limit, chunk := o.pace(m.chunk)
	if m.steps != nil {
		limit.SetLimit(rate.Inf)
	}
	var x *mirrorScrub
	if !m.call(func() { x, err = m.beginScrub(limit, chunk, progress) }) {
		return nil, errMirrorStopped(m.name)
	}
	if err != nil {
		return nil, err
	}
	if m.steps != nil {
		x.parts = 1
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() bool { return true }
	if m.steps == nil { // in steps the owner tells it, at the next look
		stop = context.AfterFunc(x.s.ctx, func() { cancel(errVolumeStops) })
	}
	err = x.all(ctx, scrubRounds, func() error { return x.pause(ctx, verifyPause) }, func(part *scrubbing) looker { return (&mirrorScrub{part, m, x.s}).look })
	stop()
	whole = err == nil
	m.call(func() {
		x.s.busy--
		if err != nil && m.broken != nil {
			err = m.broken
		}
	})
	r := x.finish(m.name, "mirror")
	err = r.scrubError(ctx, err)
	cancel(nil)
	m.log(r.summary(err))
	return []ScrubResult{r}, err
}

// beginScrub is the owner's part of it: from here on the store stays open until the scrub has ended.
func (m *mirror) beginScrub(limit *rate.Limiter, chunk int64, progress func(CheckProgress)) (*mirrorScrub, error) {
	s := m.store
	switch {
	case m.stopping:
		return nil, errMirrorStopped(m.name)
	case s == nil || m.broken != nil || m.core == nil || m.core.Facts().UUID == [16]byte{}:
		return nil, m.unusable("scrub")
	case s.suspicion != "":
		return nil, errComparing("scrub", m.name)
	case m.core.Facts().Mirror.Inconsistent:
		return nil, &Error{Kind: KindState, Op: "scrub", On: m.name, Err: errors.New("no cut is complete here yet"), Next: "wait for the end of the first copy"}
	}
	base, err := newScrubbing(s.geometry, chunk, limit, progress)
	if err != nil {
		return nil, err
	}
	base.by(m.now)
	s.busy++
	return &mirrorScrub{scrubbing: base, m: m, s: s}, nil
}

// owner has something done by the owner, while the store can be used.
func (x *mirrorScrub) owner(do func()) (err error) {
	ok := x.m.call(func() {
		if x.m.store != x.s || x.m.broken != nil {
			err = errVolumeStops
			return
		}
		do()
	})
	if !ok {
		return errMirrorStopped(x.m.name)
	}
	return err
}

func (x *mirrorScrub) pause(ctx context.Context, d time.Duration) error {
	var wait func(try func() bool)
	if x.m.steps != nil {
		wait = x.m.steps.wait
	}
	return pause(ctx, wait, x.m.now, d)
}

// standsStill tells that nothing is under way, and nothing committed, that changes a range. In the owner.
func (x *mirrorScrub) standsStill(e blockdev.Extent) bool {
	if _, placing := x.m.core.Stir(); placing || x.m.core.Facts().Mirror.InPlace {
		return false
	}
	first, end := uint64(e.Offset)/pageSize, pagesOf(e.End())
	return !slices.ContainsFunc(x.s.sealed, func(st *journal.Staging) bool {
		page, _, ok := st.Pages().NextRun(first, 1)
		return ok && page < end
	})
}

// look compares blocks, and has those noted that have no entry.
func (x *mirrorScrub) look(ctx context.Context, b, n uint64) error {
	e := x.extent(b, n)
	before, after := make([]journal.Entry, n), make([]journal.Entry, n)
	known := func(list []journal.Entry) bool {
		return slices.ContainsFunc(list, func(e journal.Entry) bool { return e.Known })
	}
	if err := x.s.index.lookUp(e.Offset, before); err != nil {
		return err
	}
	if !known(before) && x.hole(e) {
		x.result.UnknownBytes += e.Length
		return nil
	}
	if err := x.limit.WaitN(ctx, int(e.Length)); err != nil {
		return err
	}
	var count uint64
	if err := x.owner(func() { count, _ = x.m.core.Stir() }); err != nil {
		return err
	}
	if err := x.s.index.lookUp(e.Offset, before); err != nil {
		return err
	}
	if _, err := x.s.dev.ReadAt(x.buf[:e.Length], e.Offset); err != nil {
		return x.failedRead(ctx, b, n)
	}
	hashes := make([]wire.Hash, n)
	x.hashBlocks(x.buf[:e.Length], hashes)
	if err := x.s.index.lookUp(e.Offset, after); err != nil {
		return err
	}
	var unknown []uint64
	for i := range n {
		switch {
		case !before[i].Known && !after[i].Known:
			unknown = append(unknown, b+i)
		case before[i] != after[i]:
			x.pending.Add(b+i, 1)
		case before[i].Hash == hashes[i]:
			x.checked(b + i)
		default:
			if err := x.confirm(ctx, b+i); err != nil {
				return err
			}
		}
	}
	return x.learn(b, unknown, hashes, count)
}

// hole tells that a range is not even allocated: its zeroes are cheaper to find than to note.
func (x *mirrorScrub) hole(e blockdev.Extent) bool {
	data, err := x.s.dev.NextData(e.Offset)
	return err == nil && x.s.dev.Info().KnowsHoles && (data.Length == 0 || data.Offset >= e.End())
}

func (x *mirrorScrub) failedRead(ctx context.Context, b, n uint64) error {
	if n > 1 {
		return each(ctx, b, n, x.look)
	}
	var v verdict
	right := x.askPrimary(ctx, b)
	if err := x.owner(func() { v = x.readAgain(b, right) }); err != nil {
		return err
	}
	switch v {
	case verdictUnreadable:
		x.cannotRead(b)
	case verdictHealed:
		x.healed.Add(b, 1)
		x.checked(b)
	default:
		x.pending.Add(b, 1)
	}
	return nil
}

// learn notes blocks without an entry, where nothing stirred since before they were read. from is the block of the
// first of the hashes.
func (x *mirrorScrub) learn(from uint64, blocks []uint64, hashes []wire.Hash, count uint64) (err error) {
	if len(blocks) == 0 {
		return nil
	}
	return errors.Join(x.owner(func() {
		now, _ := x.m.core.Stir()
		for _, b := range blocks {
			e := x.extent(b, 1)
			switch {
			case !x.m.core.Vouched(e):
				x.unknown(b)
			case now != count || !x.standsStill(e):
				x.pending.Add(b, 1)
			default:
				x.unknown(b)
				if err == nil {
					err = x.s.index.learn(e.Offset, hashes[b-from:b-from+1])
				}
			}
		}
	}), err)
}

// verdict is what the owner finds of a block.
type verdict int

const (
	verdictBusy    verdict = iota // it is about to change
	verdictChanged                // its entry is gone
	verdictDoubted                // the mirror does not vouch for it anyway, and the primary knows
	verdictRight
	verdictUnreadable
	verdictRot
	verdictHealed
)

// confirm has the owner read a block again that differs: what differs twice is rot. Before the last time the primary
// is asked for it.
func (x *mirrorScrub) confirm(ctx context.Context, b uint64) error {
	found, right := 1, []byte(nil)
	for try := 0; try < 2*scrubRounds; try++ {
		if err := x.pause(ctx, scrubPause); err != nil {
			return err
		}
		final := found == scrubTries-1
		if final && right == nil {
			right = x.askPrimary(ctx, b)
		}
		var v verdict
		if err := x.owner(func() { v = x.judge(b, final, right) }); err != nil {
			return err
		}
		switch v {
		case verdictBusy:
			continue
		case verdictChanged:
			x.pending.Add(b, 1)
			return nil
		case verdictDoubted:
			x.skipped(b)
			return nil
		case verdictUnreadable:
			x.cannotRead(b)
			return nil
		case verdictRight:
			x.m.mismatches.Add(1)
			x.m.log(fmt.Sprintf("block %d differed from the index once and does not any more: check memory and cables", b))
			x.checked(b)
			return nil
		case verdictHealed:
			x.healed.Add(b, 1)
			x.checked(b)
			return nil
		}
		if found++; found == scrubTries {
			x.rot.Add(b, 1)
			x.checked(b)
			return nil
		}
	}
	x.pending.Add(b, 1)
	return nil
}

// judge reads a block and its entry while both stand still. With final, what differs is replaced by what is right,
// where that is known, else it makes the mirror read-only. In the owner.
func (x *mirrorScrub) judge(b uint64, final bool, right []byte) verdict {
	m, e := x.m, x.extent(b, 1)
	var entry [1]journal.Entry
	switch {
	case !m.core.Vouched(e) && !m.core.Quarantined(e):
		return verdictDoubted
	case !x.standsStill(e):
		return verdictBusy
	}
	if err := x.s.index.lookUp(e.Offset, entry[:]); err != nil || !entry[0].Known {
		return verdictChanged
	}
	if bad, err := x.s.readAround(x.buf[:e.Length], e.Offset, x.blockSize); err != nil || len(bad) > 0 {
		m.unreadable(bad, false)
		return verdictUnreadable
	}
	var got [1]wire.Hash
	x.hashBlocks(x.buf[:e.Length], got[:])
	if got[0] == entry[0].Hash {
		return verdictRight
	}
	if final && !m.core.Quarantined(e) && x.heal(e, entry[0].Hash, right) {
		return verdictHealed
	}
	if final && !m.core.Quarantined(e) {
		m.mismatches.Add(1)
		cause, extents := causeOf([]damage{{Extent: e, class: journal.ClassRot, want: entry[0].Hash, got: got[0]}}, m.core.Facts().Mirror.Applied, m.now())
		m.log("read-only: " + cause.Reason)
		m.step(&replica.Mismatched{Cause: cause, Extents: extents}, nil)
		m.publish()
	}
	return verdictRot
}

// askPrimary is the block that an entry names, where the primary has it; nil: it does not, or is not here.
func (x *mirrorScrub) askPrimary(ctx context.Context, b uint64) []byte {
	e := x.extent(b, 1)
	var entry [1]journal.Entry
	var s *mirrorSession
	if x.m.steps != nil || x.s.index.lookUp(e.Offset, entry[:]) != nil || !entry[0].Known || x.owner(func() { s = x.m.current }) != nil || s == nil {
		return nil
	}
	right, err := s.fetches.fetch(ctx, s.link, s.queue, &wire.Fetch{Offset: e.Offset, Length: uint32(e.Length), Hash: entry[0].Hash})
	if err != nil && ctx.Err() == nil {
		x.m.log(fmt.Sprintf("the primary could not be asked for bad block %d: %v", b, err))
	}
	return right
}

// heal replaces a block, which is in x.buf, by what is right, while the mirror is not read-only. Where it fails, the
// block is as bad as before. In the owner.
func (x *mirrorScrub) heal(e blockdev.Extent, want wire.Hash, right []byte) bool {
	m := x.m
	if m.core.ReadOnly().Class != 0 || right == nil || wire.Sum(right) != want {
		return false
	}
	b, back := e.Offset/x.blockSize, x.buf[:e.Length]
	err := keepRot(m.dir, back, e.Offset, m.now())
	if err == nil {
		_, err = x.s.dev.WriteAt(right, e.Offset)
	}
	if err == nil {
		err = x.s.dev.Flush()
	}
	if err == nil {
		_, err = x.s.dev.ReadAt(back, e.Offset)
	}
	if err == nil && wire.Sum(back) != want {
		err = errors.New("it reads back as something else")
	}
	if err != nil {
		m.log(fmt.Sprintf("bad block %d could not be healed: %v", b, err))
		return false
	}
	m.mismatches.Add(1)
	m.log(fmt.Sprintf("bad block %d was replaced by what the primary has; %s keeps what could be read of it: check the disk (smartctl)", b, rotFolder))
	return true
}

// scrubSchedule scrubs as it becomes due, from when on the mirror holds a volume.
func (m *mirror) scrubSchedule() {
	m.scrubs.routineSchedule(m.ended, func() time.Duration { return time.Duration(m.scrubEvery.Load()) }, m.scrubReady, func() error {
		_, err := m.runScrub(m.aborted, ScrubOptions{}, true, nil)
		return err
	})
}

// scrubReady tells that there is something to scrub, and reads when that was done last.
func (m *mirror) scrubReady() bool {
	m.mu.Lock()
	v := &m.view
	ready := v.held && v.err == nil && !v.comparing && !v.facts.Mirror.Inconsistent
	m.mu.Unlock()
	if !ready {
		return false
	}
	if err := m.scrubs.load(filepath.Join(m.dir, scrubFile)); err != nil {
		m.log(err.Error())
	}
	return true
}
