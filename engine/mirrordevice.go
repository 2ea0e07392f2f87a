package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
)

// A mirror's device that gives errors (docs/FAILSAFE.md). A write, zero or flush that fails ends the use of the device:
// it is opened anew, and what was committed is applied again. A read that fails is the matter of one place as long as
// the device lives elsewhere: what cannot be read counts as different from whatever it is compared with, and is in
// quarantine until a repair has written it and read it back. A scrub heals it as it heals rot.

// ofThePlace tells whether an error may be that of one place. A device that is gone, or was closed, says something else.
func ofThePlace(err error) bool {
	return slices.ContainsFunc([]error{syscall.EIO, syscall.ENODATA, syscall.EILSEQ, syscall.EREMOTEIO},
		func(errno error) bool { return errors.Is(err, errno) })
}

// readAround reads a range. Where that gives an error it is read again, unit by unit, and what still cannot be read is
// returned, with zeroes in its place. An error means that the device as a whole cannot be read.
func (s *mirrorStore) readAround(b []byte, off, unit int64) (bad []damage, err error) {
	_, first := s.dev.ReadAt(b, off)
	if first == nil {
		return nil, nil
	}
	if !ofThePlace(first) {
		return nil, deviceError("read mirror", "", first)
	}
	for part := range slices.Chunk(b, int(unit)) {
		if _, err := s.dev.ReadAt(part, off); err != nil {
			if !ofThePlace(err) || !s.alive() {
				return nil, deviceError("read mirror", "", err)
			}
			clear(part)
			bad = append(bad, damage{Extent: blockdev.Extent{Offset: off, Length: int64(len(part))}, class: journal.ClassDevice, err: err})
		}
		off += int64(len(part))
	}
	if len(bad) == 0 {
		s.m.mismatches.Add(1)
		s.m.log(fmt.Sprintf("%v; the next time it could be read: check the mirror's disk", first))
	}
	return bad, nil
}

// alive tells whether the device can be read anywhere: one of which nothing can be read has failed as a whole, and is
// not to be repaired block by block.
func (s *mirrorStore) alive() bool {
	b := make([]byte, min(pageSize, s.size))
	for _, at := range []int64{0, s.size / 2, s.size - int64(len(b))} {
		if _, err := s.dev.ReadAt(b, min(at, s.size-int64(len(b)))); err == nil {
			return true
		}
	}
	return false
}

// unreadable tells the core of places where the device gives an error. wanted: a primary will bring them. In the owner.
func (m *mirror) unreadable(found []damage, wanted bool) {
	if len(found) == 0 {
		return
	}
	m.mismatches.Add(int64(len(found)))
	cause, extents := causeOf(found, m.core.Facts().Mirror.Applied, m.now())
	m.log(cause.Reason)
	m.step(&replica.Unreadable{Cause: cause, Extents: extents, Wanted: wanted}, nil)
	m.publish()
}

// readsBack compares what is read back with what was written, page by page where some of it cannot be read.
func (s *mirrorStore) readsBack(want []byte, off int64, got []byte) (found []damage, err error) {
	bad, err := s.readAround(got, off, pageSize)
	if err != nil {
		return nil, err
	}
	for _, d := range differing(off, want, got) {
		if !slices.ContainsFunc(bad, func(b damage) bool { return b.Extent == d.Extent }) {
			found = append(found, d)
		}
	}
	return append(found, bad...), nil
}

// zeroBack makes a range read as zeroes and, where back is not nil, reads it back into there, a piece at a time; what
// does not read as zeroes is zeroed again.
func (s *mirrorStore) zeroBack(ctx context.Context, r blockdev.Extent, mayFree bool, pool *blockdev.Pool, back []byte) (found []damage, err error) {
	if err := s.zero(ctx, r, mayFree, pool); err != nil || back == nil {
		return nil, err
	}
	found, err = s.notZero(r, back)
	for try := 0; try < readBackTries && err == nil && len(found) > 0; try++ {
		s.m.mismatches.Add(1)
		found, err = s.zeroAgain(ctx, found, pool, back)
	}
	return found, err
}

// zeroAgain zeroes what did not read as zeroes: written, and not only given back, which would not heal a bad place.
func (s *mirrorStore) zeroAgain(ctx context.Context, places []damage, pool *blockdev.Pool, back []byte) (found []damage, err error) {
	for i := range places {
		if err := s.zero(ctx, places[i].Extent, false, pool); err != nil {
			return nil, err
		}
		more, err := s.notZero(places[i].Extent, back)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// notZero is what of a range does not read as zeroes.
func (s *mirrorStore) notZero(r blockdev.Extent, buf []byte) (found []damage, err error) {
	zeroes := make([]byte, len(buf))
	for pos := r.Offset; pos < r.End(); {
		data, err := s.dev.NextData(pos)
		if err != nil {
			return nil, deviceError("map mirror", "", err)
		}
		if pos = max(data.Offset, pos); data.Length == 0 || pos >= r.End() {
			break
		}
		n := min(data.End(), r.End(), pos+int64(len(buf))) - pos
		more, err := s.readsBack(zeroes[:n], pos, buf[:n])
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
		pos += n
	}
	return found, nil
}

// readAgain has a block read again that gave an error, while it stands still. What cannot be read is replaced as rot
// is: for a write a disk gives a sector from its reserve. In the owner.
func (x *mirrorScrub) readAgain(b uint64, right []byte) verdict {
	e := x.extent(b, 1)
	if !x.standsStill(e) {
		return verdictBusy
	}
	bad, err := x.s.readAround(x.buf[:e.Length], e.Offset, x.blockSize)
	var entry [1]journal.Entry
	if len(bad) > 0 && x.m.core.Vouched(e) && x.s.index.lookUp(e.Offset, entry[:]) == nil && entry[0].Known &&
		x.heal(e, entry[0].Hash, right) {
		return verdictHealed
	}
	x.m.unreadable(bad, false)
	switch {
	case err != nil:
		x.m.log(fmt.Sprintf("block %d cannot be read: %v", b, err))
		return verdictUnreadable
	case len(bad) > 0:
		return verdictUnreadable
	}
	return verdictRight
}

// flagDevice sets or clears the kernel's read-only flag of the device, where it has one: a hint to others and no fence. A
// kernel that will not changes nothing.
func (s *mirrorStore) flagDevice(readOnly bool) {
	dev, ok := s.dev.(interface{ SetReadOnly(bool) error })
	if !ok {
		return
	}
	if err := dev.SetReadOnly(readOnly); err != nil {
		s.m.log(fmt.Sprintf("the kernel's read-only flag of the device is not changed: %v", err))
	}
}

// unflag clears the flag that an earlier process may have left: with it the device cannot be opened for writing.
func (m *mirror) unflag() {
	if m.setReadOnly == nil {
		return
	}
	if err := m.setReadOnly(m.config.Path, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log(fmt.Sprintf("the kernel's read-only flag of %s is not cleared: %v", m.config.Path, err))
	}
}
