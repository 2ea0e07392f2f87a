package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// mirrorStore is everything of a mirror that is durable, while it is open.
type mirrorStore struct {
	geometry
	m      *mirror
	dev    device
	log    *journal.VolumeLog
	index  *mirrorIndex
	ctx    context.Context // ends with its use
	cancel context.CancelFunc

	bootID    string
	suspicion string // why the device is compared with its index; "": it is not

	// Of the owner.
	partial  *journal.Staging   // staged in part; nil: nothing
	sealed   []*journal.Staging // committed and not applied, the oldest first
	busy     int                // goroutines that use it and are no session's
	appliers []*applier         // of those that applied the last epoch: their buffers
}

// close releases everything. Nobody uses it any more.
func (s *mirrorStore) close() error {
	s.cancel()
	var errs []error
	for _, st := range append(s.sealed, s.partial) {
		if st != nil {
			errs = append(errs, st.Close())
		}
	}
	if s.index != nil {
		errs = append(errs, s.index.close())
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.dev != nil {
		errs = append(errs, s.dev.Close())
	}
	return errors.Join(errs...)
}

// settle makes everything durable and notes the device's facts: the last words of a clean stop. What is
// staged in part stays.
func (s *mirrorStore) settle(core *replica.Core) error {
	f := core.Facts()
	if st, ok := core.Staged(); ok && s.partial != nil {
		if err := s.partial.Sync(pointOf(&st)); err != nil {
			return err
		}
	}
	if err := s.dev.Flush(); err != nil {
		return err
	}
	if err := s.index.sync(); err != nil {
		return err
	}
	now, err := s.dev.Facts()
	if err != nil {
		return err
	}
	if f.Device, err = json.Marshal(deviceMark{now}); err != nil {
		return err
	}
	f.Clean = true
	return s.checkpoint(f)
}

func pointOf(st *replica.Staged) journal.StagingPoint {
	return journal.StagingPoint{Seq: st.Seq, Records: st.Chain.Records(), Chain: st.Chain.Sum()}
}

// checkpoint makes facts durable and lets older segments of the journal go.
func (s *mirrorStore) checkpoint(f journal.VolumeFacts) error {
	if err := s.log.SetFacts(f); err != nil {
		return err
	}
	c, err := s.log.BeginCheckpoint()
	if err != nil {
		return err
	}
	if err := c.Finish(f, nil, nil); err != nil {
		c.Abandon()
		return err
	}
	return nil
}

// held is what staging takes on disk.
func (s *mirrorStore) held() (bytes int64) {
	for _, st := range append(s.sealed[:len(s.sealed):len(s.sealed)], s.partial) {
		if st != nil {
			bytes += st.Bytes()
		}
	}
	return bytes
}

// limit is what it may take.
func (s *mirrorStore) limit(held int64) int64 {
	if s.log.Low() && !s.log.Refill() {
		return held // what is left is the journal's
	}
	free, err := s.m.room(s.m.dir)
	if err != nil {
		return held
	}
	room := (max(free, 0) + held) / 100
	if l := s.m.config.StagingLimit; l > 0 {
		return min(l, room*stagingMost)
	}
	return room * stagingShare
}

// fresh tells whether the device reads as zero throughout, as far as it can tell.
func (s *mirrorStore) fresh(size int64) (bool, error) {
	if !s.dev.Info().KnowsHoles {
		return false, nil
	}
	data, err := s.dev.NextData(0)
	return err == nil && (data.Length == 0 || data.Offset >= size), err
}

// measure tells the core about room.
func (m *mirror) measure() {
	if m.store == nil || m.broken != nil {
		return
	}
	held := m.store.held()
	m.step(&replica.Measured{Limit: m.store.limit(held), Held: held}, nil)
	m.publish()
}

// step gives the core an event and carries out what it decides. a is what the event came with, nil where it
// did not come from the primary.
func (m *mirror) step(e replica.Event, a *arrival) {
	if m.broken != nil {
		return
	}
	if a == nil && m.current != nil {
		a = m.current.waiting
	}
	actions := m.core.Step(e)
	if m.current != nil {
		m.current.waiting = nil
		if m.core.Holding() {
			m.current.waiting = a
		}
	}
	m.carryOut(actions, a)
	// A step within this one, of Measured say, may have taken it already.
	if a != nil && a.record != nil && !a.settled && m.current != nil && m.current.waiting != a {
		a.settled = true
		m.current.done(a)
	}
}

// carryOut does what the core decided. A failure is the last: it ends the use of the store.
func (m *mirror) carryOut(actions []replica.Action, a *arrival) {
	measure := false
	for _, action := range actions {
		if m.broken != nil {
			return
		}
		op, err := m.perform(action, a)
		if err != nil {
			m.fail(op, err)
			return
		}
		switch action.(type) {
		case replica.DropStaging, replica.BeginStaging, replica.RebaseStaging, replica.SyncStaging, replica.SealStaging, replica.RemoveStaging:
			measure = true
		}
	}
	if measure {
		m.measure()
	}
}

func (m *mirror) perform(action replica.Action, a *arrival) (op string, err error) {
	s := m.store
	switch action := action.(type) {
	case replica.Append:
		return "stage", s.append(a)
	case replica.Ack:
		m.current.out.ack(action.Entry)
	case replica.Nak:
		m.current.out.nak(action.Entry)
		m.current.prog.RetriedBlocks.Add(1)
	case replica.Send:
		m.current.send(action.Message)
	case replica.End:
		m.current.end(m.peerError(action))
	case replica.Write:
		a.run.readBack = action.ReadBack || m.readBack.Load()
		m.current.direct <- a.run // has room for all that the window allows
	case replica.Compare:
		select {
		case m.current.offers <- action.Offer:
		default:
			m.current.end(protocolError("more than %d open offers", maxOffers))
		}
	case replica.Apply:
		m.beginApply(action)
	case replica.Reserve:
		enough, err := s.reserve()
		if err != nil {
			return "make room on the device", err
		}
		m.step(&replica.Reserved{Enough: enough}, a)
	case replica.Journal:
		if err := s.journal(action.Facts); err != nil {
			return "journal", err
		}
		m.show(action.Facts)
	case replica.DropIndex:
		return "drop index", s.index.reset()
	case replica.FlushDevice:
		return "flush device", s.flush()
	case replica.FlagDevice:
		s.flagDevice(action.ReadOnly)
	default:
		return "stage", s.stage(action)
	}
	return "", nil
}

// peerError is what a primary did that ends its session.
func (m *mirror) peerError(e replica.End) error {
	if e.Code == wire.CodeProtocol {
		return protocolError("%s", e.Text)
	}
	return &Error{Kind: KindIntegrity, Op: "mirror", On: m.name, Err: errors.New(e.Text), code: e.Code,
		Next: "the primary compares and ships again what differs"}
}

// stage does what concerns staging files alone.
func (s *mirrorStore) stage(action replica.Action) error {
	dir := s.m.stagingDir()
	switch action := action.(type) {
	case replica.BeginStaging:
		return s.beginStaging(action)
	case replica.RebaseStaging:
		return s.partial.Rebase(action.Seq, action.Epoch, action.Voids, action.Point)
	case replica.SyncStaging:
		return s.partial.Sync(action.Point)
	case replica.DropStaging:
		st := s.partial
		s.partial = nil
		st.Close() // what it could not write is removed now
		return journal.RemoveStaging(s.m.fs, dir, st.Header().Epoch)
	case replica.SealStaging:
		if err := s.partial.Seal(action.Base, action.Pages, action.Point, nil); err != nil {
			return err
		}
		s.sealed, s.partial = append(s.sealed, s.partial), nil
	case replica.RemoveStaging:
		st := s.sealed[0]
		s.sealed = s.sealed[1:]
		st.Close() // it was only read
		return journal.RemoveStaging(s.m.fs, dir, action.Epoch)
	}
	return nil
}

func (s *mirrorStore) beginStaging(a replica.BeginStaging) error {
	f := s.m.core.Facts()
	h := journal.StagingHeader{Volume: f.UUID, Generation: f.Generation.ID, Incarnation: a.Incarnation,
		Base: a.Base, Epoch: a.Epoch, BlockSize: f.BlockSize, Size: f.Size}
	st, err := journal.CreateStaging(s.m.fs, s.m.stagingDir(), h, s.m.staging)
	if errors.Is(err, fs.ErrExist) { // of a number that was never committed
		if err = journal.RemoveStaging(s.m.fs, s.m.stagingDir(), a.Epoch); err == nil {
			st, err = journal.CreateStaging(s.m.fs, s.m.stagingDir(), h, s.m.staging)
		}
	}
	s.partial = st
	return err
}

// append puts the record of an arrival into staging.
func (s *mirrorStore) append(a *arrival) error {
	if z := a.record.Zero; z != nil {
		return s.partial.Append(journal.StagingRecord{Seq: z.Seq, Kind: journal.StagingZero, MayFree: z.Flags&wire.ZeroMayFree != 0,
			Offset: z.Offset, Length: z.Length}, nil)
	}
	d := a.record.Data
	return s.partial.Append(journal.StagingRecord{Seq: d.Seq, Kind: journal.StagingData, Codec: uint8(d.Codec), Offset: d.Offset,
		Length: int64(d.RawLength), Hash: d.Hash, PayloadLength: d.PayloadLength}, a.payload)
}

func (s *mirrorStore) journal(f journal.VolumeFacts) error {
	if s.log.SinceCheckpoint() >= s.m.segment {
		return s.checkpoint(f)
	}
	return s.log.SetFacts(f)
}

func (s *mirrorStore) flush() error {
	if err := s.dev.Flush(); err != nil {
		return err
	}
	return s.index.sync()
}

// ample tells whether the image's file system has so much room that no epoch needs to be allocated ahead,
// which costs a transaction of the file system for each run of pages. Should somebody else fill it up in
// between, the epoch waits, committed, until there is room.
func (s *mirrorStore) ample() bool {
	free, err := s.m.deviceRoom(s.m.config.Path)
	return err == nil && free >= roomAmple && free/2 >= int64(s.partial.PageCount())*pageSize
}

// roomAmple is what a file system must have left for its room not to be asked for.
const roomAmple = 4 << 30

// reserve sees to it that the device has room for what is staged. An image file may have holes there.
func (s *mirrorStore) reserve() (enough bool, err error) {
	dev, ok := s.dev.(interface{ Allocate(off, n int64) error })
	if !ok || s.dev.Info().Block || s.ample() {
		return true, nil
	}
	var next blockdev.Extent
	allocate := func() error {
		if next.Length == 0 {
			return nil
		}
		return dev.Allocate(next.Offset, next.Length)
	}
	err = s.partial.Plan(func(p journal.StagingPiece) error {
		if p.Record.Kind != journal.StagingData {
			return nil
		}
		if next.End() == p.Offset {
			next.Length += p.Length
			return nil
		}
		err := allocate()
		next = blockdev.Extent{Offset: p.Offset, Length: p.Length}
		return err
	})
	if err == nil {
		err = allocate()
	}
	if isNoRoom(err) {
		s.m.log(fmt.Sprintf("%s has no room for the next epoch: %v", s.m.config.Path, err))
		return false, nil
	}
	return err == nil, err
}
