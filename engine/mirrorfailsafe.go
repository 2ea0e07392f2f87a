package engine

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// damage is a range of a mirror that does not hold what it must.
type damage struct {
	blockdev.Extent
	class     journal.Class
	want, got wire.Hash
	err       error // it cannot be read
}

// readBackTries is how often a range is written again that reads back as something else.
const readBackTries = 3

func (d *damage) String() string {
	if d.err != nil {
		cause := d.err
		if errno, ok := errors.AsType[syscall.Errno](cause); ok {
			cause = errno
		}
		return fmt.Sprintf("%d+%d cannot be read: %v: check the mirror's disk (dmesg, smartctl)", d.Offset, d.Length, cause)
	}
	switch d.class {
	case journal.ClassStaging:
		return fmt.Sprintf("what was staged for %d+%d has checksum %x, and had %x when it was committed: check the disk of the state directory",
			d.Offset, d.Length, d.got[:6], d.want[:6])
	case journal.ClassDevice:
		return fmt.Sprintf("%d+%d reads back as %x and must be %x: check the mirror's disk and memory", d.Offset, d.Length, d.got[:6], d.want[:6])
	}
	return fmt.Sprintf("%v: %d+%d has checksum %x and must have %x", d.class, d.Offset, d.Length, d.got[:6], d.want[:6])
}

// causeOf is what the journal keeps of damages, which are not empty, found at an epoch.
func causeOf(found []damage, epoch uint64, now time.Time) (cause journal.ReadOnly, extents []blockdev.Extent) {
	cause = journal.ReadOnly{Class: found[0].class, Epoch: epoch, Since: now.Unix(), Reason: found[0].String()}
	if n := len(found) - 1; n > 0 {
		cause.Reason += fmt.Sprintf("; and %d more", n)
	}
	for i := range found {
		d := &found[i]
		extents = append(extents, d.Extent)
		if len(cause.Blocks) < journal.MaxBadBlocks {
			cause.Blocks = append(cause.Blocks, journal.BadBlock{Offset: d.Offset, Want: d.want, Got: d.got})
		}
	}
	return cause, extents
}

// applied tells the core how an epoch was applied.
func (m *mirror) applied(epoch uint64, found []damage) {
	e := &replica.Applied{Epoch: epoch}
	if len(found) > 0 {
		m.mismatches.Add(int64(len(found)))
		e.Cause, e.Damaged = causeOf(found, epoch, m.now())
		m.log("read-only: " + e.Cause.Reason)
	}
	m.step(e, nil)
	m.publish()
}

// writeBack writes a range, and where back is not nil reads it into there and compares. What reads back as
// something else, or not at all, is written again; what still does is returned.
func (s *mirrorStore) writeBack(b []byte, off int64, back []byte) (found []damage, err error) {
	for try := 0; ; try++ {
		if _, err := s.dev.WriteAt(b, off); err != nil {
			return nil, deviceError("write mirror", "", err)
		}
		if back == nil {
			return nil, nil
		}
		if found, err = s.readsBack(b, off, back[:len(b)]); err != nil || len(found) == 0 || try == readBackTries {
			return found, err
		}
		s.m.mismatches.Add(1)
	}
}

// readOnlyCause is what a status tells.
func readOnlyCause(ro *journal.ReadOnly, quarantine []blockdev.Extent, blockSize int64) *ReadOnlyCause {
	if ro.Class == 0 {
		return nil
	}
	c := &ReadOnlyCause{Reason: ro.Reason, Class: ro.Class.String(), Blocks: []int64{}, Since: time.Unix(ro.Since, 0).UTC().Format(time.RFC3339)}
	c.Blocks, c.Quarantined = blockNumbers(quarantine, blockSize)
	return c
}

// blockNumbers are those of the first blocks that extents, in ascending order, touch; all is how many they touch.
func blockNumbers(extents []blockdev.Extent, blockSize int64) (numbers []int64, all int64) {
	numbers = []int64{}
	last := int64(-1)
	for _, e := range extents {
		first := max(e.Offset/blockSize, last+1) // two extents may touch one block
		last = max(last, (e.End()-1)/blockSize)
		all += max(0, last+1-first)
		for b := first; b <= last && len(numbers) < maxBlocksTold; b++ {
			numbers = append(numbers, b)
		}
	}
	return numbers, all
}

// treeBlocks is how many blocks one hash of a tree covers: as many as an index page has.
const treeBlocks = recheckBlocks

// maxBlocksTold is how many blocks a status names.
const maxBlocksTold = 1024

// takeSuspect checks what a primary says of blocks here.
func (s *mirrorSession) takeSuspect(msg *wire.Suspect) error {
	if i := slices.IndexFunc(msg.Entries, func(e wire.SuspectEntry) bool { return !s.pages(e.Offset, int64(e.Length)) }); i >= 0 {
		return protocolError("Suspect about %d+%d of a volume of %d", msg.Entries[i].Offset, msg.Entries[i].Length, s.size)
	}
	return s.hand(&arrival{event: &replica.Suspect{Message: msg, Now: s.m.now().Unix()}})
}

// checkOffer checks the shape of an Offer.
func (s *mirrorSession) checkOffer(msg *wire.Offer) error {
	most := s.blockSize
	if msg.Flags&wire.OfferTree != 0 {
		most = min(most*treeBlocks, wire.MaxTree)
		if int64(msg.Unit)%s.blockSize != 0 {
			return protocolError("Offer of trees in units of %d, of blocks of %d", msg.Unit, s.blockSize)
		}
	}
	if msg.Offset%blockdev.PageSize != 0 || int64(msg.Length) > s.size-msg.Offset || int64(msg.Unit) > most {
		return protocolError("Offer at %d+%d in units of %d", msg.Offset, msg.Length, msg.Unit)
	}
	return nil
}
