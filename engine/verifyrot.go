package engine

import (
	"context"

	"github.com/blkmirror/blkmirror/wire"
)

// judge tells whose fault it is that a block differs. It is ours where our own index says so, and then the mirror's too
// unless it has what the index knows.
func (v *verification) judge(ctx context.Context, b uint64, ours wire.Hash) error {
	want, rotten, err := v.ownRot(ctx, b)
	if err != nil || !rotten {
		if err == nil {
			v.settle(b, ours)
		}
		return err
	}
	equal, proved, err := v.askFor(ctx, b, want)
	if err != nil || !proved {
		return err // later, if at all
	}
	v.mu.Lock()
	v.rot.Add(b, 1)
	v.mu.Unlock()
	if equal {
		want = wire.Hash{}
	}
	v.settle(b, want)
	return nil
}

func (v *verification) ownRot(ctx context.Context, b uint64) (want wire.Hash, rotten bool, err error) {
	v.own.Lock()
	defer v.own.Unlock()
	if v.x == nil {
		base, err := newScrubbing(v.g, chunkSize, v.limit, nil)
		if err != nil {
			return want, false, err
		}
		v.x = &primaryScrub{scrubbing: base, p: v.s.p}
	}
	want, rotten, err = v.x.ownRot(ctx, b)
	if isDeviceError(err) {
		return want, false, nil // it is told, and stays what it is: different
	}
	return want, rotten, err
}

// askFor asks whether the mirror has a block of this hash.
func (v *verification) askFor(ctx context.Context, b uint64, hash wire.Hash) (equal, proved bool, err error) {
	e := v.extent(b, 1)
	first := uint64(e.Offset) / pageSize
	w, ok := v.s.p.tracker.Watch(v.s.sets, first, pagesOf(e.Offset+e.Length)-first)
	if !ok {
		return false, false, nil
	}
	defer func() { proved = w.End() && proved }()
	bits, err := v.s.check(ctx, &wire.Offer{Offset: e.Offset, Length: uint32(e.Length), Unit: uint32(v.g.blockSize), Flags: wire.OfferVerify, Hashes: []wire.Hash{hash}})
	if err != nil {
		return false, false, err
	}
	return bits[0]&1 == 0, true, nil
}
