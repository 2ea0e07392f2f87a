package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// scrub compares the volume with its index.
func (p *primary) scrub(ctx context.Context, o ScrubOptions, progress func(CheckProgress)) ([]ScrubResult, error) {
	return p.runScrub(ctx, o, false, progress)
}

func (p *primary) runScrub(ctx context.Context, o ScrubOptions, scheduled bool, progress func(CheckProgress)) (results []ScrubResult, err error) {
	ctx, done, err := p.scrubs.begin(ctx, p.name, scheduled)
	if err != nil {
		return nil, err
	}
	whole := false
	defer func() {
		done(whole)
		p.keepScrubs()
	}()
	if p.unproven() {
		return nil, errComparing("scrub", p.name)
	}
	limit, chunk := o.pace(cmp.Or(p.sizes.OfferBytes, chunkSize))
	if p.wait != nil {
		limit.SetLimit(rate.Inf)
	}
	x := &primaryScrub{p: p}
	if x.scrubbing, err = newScrubbing(geometry{size: p.size, blockSize: p.blockSize}, chunk, limit, progress); err != nil {
		return nil, err
	}
	x.by(p.now)
	if p.wait != nil {
		x.parts = 1
	}
	err = x.all(ctx, 1, func() error { return nil }, func(part *scrubbing) looker { return (&primaryScrub{part, p}).look })
	r := x.finish(p.name, "primary")
	whole = err == nil
	err = r.scrubError(ctx, err)
	p.log(r.summary(err))
	return []ScrubResult{r}, err
}

func errComparing(op, volume string) error {
	return &Error{Kind: KindState, Op: op, On: volume, Err: errors.New("the disk is compared with its index already, after suspected foreign writes"),
		Next: "wait until `blkmirror status` does not say `comparing` any more"}
}

// primaryScrub is one scrub of a primary.
type primaryScrub struct {
	*scrubbing
	p *primary
}

// look compares blocks.
func (x *primaryScrub) look(ctx context.Context, b, n uint64) error {
	entries, hashes, proved, err := x.compare(ctx, b, n)
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && !isDeviceError(err):
		return err
	case (err != nil || !proved) && n > 1:
		return each(ctx, b, n, x.look)
	case err != nil:
		x.cannotRead(b) // the path has told it
		return nil
	case !proved:
		x.pending.Add(b, 1)
		return nil
	}
	for i := range n {
		switch e := entries[i]; {
		case !e.Known:
			x.unknown(b + i)
		case hashes[i] == e.Hash:
			x.checked(b + i)
			if x.p.scrubs.mended(b + i) {
				x.p.log(fmt.Sprintf("block %d is as the index has it again", b+i))
			}
		default:
			if err := x.confirm(ctx, b+i); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare reads entries and blocks once. proved is false where the index needs a page of them, or they were written
// meanwhile: then it says nothing. Without any entry nothing is read.
func (x *primaryScrub) compare(ctx context.Context, b, n uint64) (entries []journal.Entry, hashes []wire.Hash, proved bool, err error) {
	p, e := x.p, x.extent(b, n)
	first := uint64(e.Offset) / pageSize
	count := pagesOf(e.End()) - first
	if w, ok := p.tracker.Watch(p.index.sets, first, count); !ok {
		return nil, nil, false, nil // before it is waited for
	} else {
		w.End()
	}
	entries, hashes = make([]journal.Entry, n), make([]wire.Hash, n)
	if err := p.index.index.lookUp(e.Offset, entries); err != nil {
		return nil, nil, false, err
	}
	if !slices.ContainsFunc(entries, func(e journal.Entry) bool { return e.Known }) {
		return entries, hashes, true, nil
	}
	if err := x.limit.WaitN(ctx, int(e.Length)); err != nil {
		return nil, nil, false, err
	}
	w, ok := p.tracker.Watch(p.index.sets, first, count)
	if !ok {
		return nil, nil, false, nil
	}
	defer func() { proved = w.End() && proved }()
	if err := p.index.index.lookUp(e.Offset, entries); err != nil {
		return nil, nil, false, err
	}
	if err := p.path.ReadRange(first, count, x.buf); err != nil {
		return nil, nil, false, err
	}
	x.hashBlocks(x.buf[:e.Length], hashes)
	return entries, hashes, true, nil
}

// confirm reads a block that differs again. It is noted as rotten before the last time: should a client write to
// it then, the indexer knows.
func (x *primaryScrub) confirm(ctx context.Context, b uint64) error {
	p, fresh := x.p, false
	forget := func() {
		if fresh {
			p.scrubs.mended(b)
		}
	}
	var entry journal.Entry
	var found wire.Hash
	for try := 1; try < scrubTries; try++ {
		if try == scrubTries-1 {
			fresh = p.scrubs.noteRot(b)
		}
		entries, hashes, proved, err := x.compare(ctx, b, 1)
		if err != nil || !proved || !entries[0].Known {
			forget()
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil && !isDeviceError(err):
				return err
			case err != nil:
				x.cannotRead(b)
			default:
				x.pending.Add(b, 1) // it was written
			}
			return nil
		}
		if entry, found = entries[0], hashes[0]; found == entry.Hash {
			forget()
			p.sourceErrors.Add(1)
			p.log(fmt.Sprintf("block %d differed from the index once and does not any more: check memory and cables", b))
			x.checked(b)
			return nil
		}
	}
	x.rot.Add(b, 1)
	x.checked(b)
	if !fresh {
		return nil
	}
	p.sourceErrors.Add(1)
	p.log(fmt.Sprintf("rot: block %d, which nobody wrote, has checksum %x and had %x when the index noted it; %s", b, found[:6], entry.Hash[:6], nextRot))
	p.keepScrubs()
	return nil
}

func (p *primary) keepScrubs() {
	if err := p.scrubs.save(); err != nil {
		p.log(err.Error())
	}
}

// nextRot is what a person can do about a primary's own rot.
const nextRot = "check the disk (smartctl), then take what was written from a mirror with `blkmirror repair VOLUME --from mirror`"

// fillRot tells what is known of it.
func (p *primary) fillRot(v *VolumeStatus) {
	rotten := p.scrubs.rotten()
	v.RotBlocks = int64(len(rotten))
	for _, b := range rotten[:min(len(rotten), maxBlocksTold)] {
		v.Rot = append(v.Rot, int64(b))
	}
	if n := p.sourceErrors.Load(); n > 0 {
		v.Mismatches = &MismatchCounts{Source: n}
	}
	if len(v.Rot) > 0 && v.Error == "" {
		v.Error, v.Next = fmt.Sprintf("rot: %d blocks are not what was written, the first is %d", v.RotBlocks, v.Rot[0]), nextRot
	}
}

// spoilt tells whether a block that is to be indexed is rotten and was written in part only since: then nothing of
// what it holds may pass for right. One that was written as a whole is right again.
func (x *indexer) spoilt(off, n int64) bool {
	b := uint64(off / x.p.blockSize)
	if !x.p.scrubs.isRotten(b) {
		return false
	}
	if x.p.stillRotten(b) {
		return true
	}
	if x.p.scrubs.mended(b) {
		x.p.log(fmt.Sprintf("block %d was rotten, and counts as written anew", b))
		x.p.keepScrubs()
	}
	return false
}

// stillRotten tells whether a block is rotten and was not written as a whole since.
func (p *primary) stillRotten(b uint64) bool {
	if !p.scrubs.isRotten(b) {
		return false
	}
	off := int64(b) * p.blockSize
	for page := uint64(off) / pageSize; page < pagesOf(min(off+p.blockSize, p.size)); page++ {
		if !p.tracker.Needed(p.index.sets, page) {
			return true
		}
	}
	return false
}

// scrubSchedule scrubs as it becomes due.
func (p *primary) scrubSchedule(ctx context.Context) {
	p.scrubs.routineSchedule(ctx.Done(), func() time.Duration { return p.config.Load().scrubEvery() },
		func() bool { return !p.unproven() }, func() error {
			_, err := p.runScrub(ctx, ScrubOptions{}, true, nil)
			return err
		})
}

func (f *failedVolume) scrub(context.Context, ScrubOptions, func(CheckProgress)) ([]ScrubResult, error) {
	return nil, f.refusal("scrub")
}
