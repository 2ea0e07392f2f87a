package engine

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// mirrorSession is one connection of the primary, from Attach on, in the order in which a record passes:
//
//	receive  the link's reader takes frames off the wire, and payloads into buffers. It never touches a
//	         disk and waits for nothing but buffers
//	check    mirrorCheckers goroutines unpack and hash what is to be staged, two at a time
//	owner    the mirror's owner takes everything in the order of its arrival, has the core decide, and stages
//	direct   in bulk, and for offers, goroutines of mirrordirect.go write to and read the device
//	send     one goroutine sends answers in the order in which they were given, and grants
type mirrorSession struct {
	*link
	geometry
	m     *mirror
	store *mirrorStore // set when it is attached
	peer  string
	prog  Progress

	node                    string // as it calls itself
	name                    string // under which it is trusted; the same where nobody has to be
	incarnation, connection uint64
	start                   time.Time

	pool  *blockdev.Pool // what arrives
	meter *wire.Meter
	out   outbox

	// Of the reader.
	gathering *run         // in place, being gathered
	rebase    *wire.Rebase // whose frames are not all there
	door      bool         // was told

	ordered chan *arrival // in the order of the wire
	checks  chan *arrival // the same, where something is to be hashed
	direct  chan *run
	offers  chan *wire.Offer
	placed  placed
	fetches *fetching
	asking  asking
	scratch *blockdev.Pool // of those who write to and read the device

	// Of the owner.
	waiting *arrival // that the core is holding
	ahead   *arrival // taken and not checked yet; in steps

	offered atomic.Int64 // bytes
}

// arrival is a message of the primary on its way to the owner.
type arrival struct {
	event   replica.Event
	record  *replica.Record // the event, where it is one
	payload []byte          // of its Data, as it came
	run     *run            // to be written in place
	cost    int64
	ready   chan struct{} // closed when the event is complete; nil: it is
	settled bool          // what it took of memory and window was given back; the owner's
}

// introduction is the answer to a primary that lost its journal and asks who it is: what is held here. Nothing
// is changed. nil: a mirror that holds nothing lets it in like any other, as it does those that do not ask.
func (m *mirror) introduction(a *wire.Attach) (answer *wire.Attached) {
	if a.Flags&wire.AttachRebuilt == 0 {
		return nil
	}
	m.call(func() {
		if m.store != nil && m.broken == nil {
			answer = m.core.Introduce(a)
		}
	})
	if answer != nil {
		m.log("a primary that lost its journal asked who it is")
		answer.Window, answer.MaxOffers = uint64(m.window), 1
	}
	return answer
}

// introduce answers, and waits for the primary to close.
func introduce(conn Conn, answer *wire.Attached) error {
	err := conn.Send(answer)
	if err == nil {
		_, err = conn.Next()
	}
	return err
}

// end ends the session; the peer is told why.
func (s *mirrorSession) end(err error) { s.cancel(err) }

// work runs the stages until the session ends. When it returns, nothing of the session is still to be staged
// or written, and the next one may begin while this one says farewell.
func (s *mirrorSession) work() error {
	err := s.stages()
	s.over(err)
	return err
}

// over is the session's end at the mirror, when none of its stages runs any more.
func (s *mirrorSession) over(err error) {
	s.cancel(err) // first: nothing more is taken
	s.m.call(func() { s.m.lost(s) })
	s.m.leave(s)
}

func (s *mirrorSession) stages() error {
	stages, ctx := errgroup.WithContext(s.ctx)
	for range mirrorCheckers {
		stages.Go(func() error { return s.routineCheck(ctx) })
	}
	for range mirrorOffers {
		stages.Go(func() error { return s.routineOffers(ctx) })
	}
	runs := make(chan *run)
	stages.Go(func() error { return s.routinePlace(ctx, runs) })
	for range mirrorWriters {
		stages.Go(func() error { return s.routineDirect(ctx, runs) })
	}
	stages.Go(func() error {
		// Not by way of the outbox: a primary that asks and does not read would fill it.
		return s.fetches.routineAnswer(ctx, s.readBlock, func(m wire.Message) error { return s.conn.Send(m) })
	})
	stages.Go(func() error { return s.routineSend(ctx) })
	return stages.Wait()
}

// handle takes what the primary sends, in the link's reader.
func (s *mirrorSession) handle(msg wire.Message) error {
	if s.rebase != nil {
		return s.moreRebase(msg)
	}
	switch msg := msg.(type) {
	case *wire.Data:
		if msg.Epoch == 0 {
			return s.takeDirect(msg)
		}
		return s.takeData(msg)
	case *wire.Zero:
		return s.takeZero(msg)
	case *wire.Rebase:
		s.rebase = &wire.Rebase{}
		*s.rebase = *msg
		return s.wholeRebase()
	case *wire.Commit:
		return s.hand(&arrival{event: &replica.Commit{Message: msg}})
	case *wire.Bulk:
		return s.hand(&arrival{event: &replica.Bulk{Message: msg}})
	case *wire.Flush:
		return s.hand(&arrival{event: &replica.Flush{Message: msg}})
	case *wire.Offer:
		if err := s.checkOffer(msg); err != nil {
			return err
		}
		return s.hand(&arrival{event: &replica.Offer{Message: msg}})
	case *wire.Suspect:
		return s.takeSuspect(msg)
	case *wire.Repair:
		return s.hand(&arrival{event: &replica.Repair{Message: msg}})
	case *wire.Door:
		return s.takeDoor(msg)
	case *wire.Fetch:
		return s.fetches.wanted(s.geometry, msg)
	case *wire.Fetched:
		return s.fetches.fetched(s.conn, msg)
	case *wire.Told:
		return s.takeTold(msg)
	case *wire.Ended:
		return s.takeEnded(msg)
	}
	return protocolError("a primary does not send type %d", msg.Type())
}

// moreRebase takes the next frame of a Rebase, and hands it on with the last.
func (s *mirrorSession) moreRebase(msg wire.Message) error {
	next, ok := msg.(*wire.Rebase)
	if !ok {
		return protocolError("type %d inside a Rebase", msg.Type())
	}
	if err := s.rebase.Join(next); err != nil {
		return err
	}
	if len(s.rebase.Voids) > journal.MaxStagingVoids {
		return protocolError("Rebase with more than %d voids", journal.MaxStagingVoids)
	}
	return s.wholeRebase()
}

func (s *mirrorSession) wholeRebase() error {
	m := s.rebase
	if m.More {
		return nil
	}
	if n := len(m.Voids); n > 0 && !s.pages(m.Voids[n-1].Offset, m.Voids[n-1].Length) {
		return protocolError("Rebase with a void at %d+%d of a volume of %d", m.Voids[n-1].Offset, m.Voids[n-1].Length, s.size)
	}
	s.rebase = nil
	return s.hand(&arrival{event: &replica.Rebase{Message: m}})
}

// hand gives an arrival to the owner, behind all before.
func (s *mirrorSession) hand(a *arrival) error {
	select {
	case s.ordered <- a:
		return nil
	default:
		return protocolError("more than %d messages open", cap(s.ordered))
	}
}

// pages tells whether a range is one of whole pages of the volume.
func (s *mirrorSession) pages(off, n int64) bool {
	return off >= 0 && n > 0 && off%blockdev.PageSize == 0 && n <= s.size-off &&
		((off+n)%blockdev.PageSize == 0 || off+n == s.size)
}

// takeData reads a payload that is to be staged as it came.
func (s *mirrorSession) takeData(d *wire.Data) error {
	n := int64(d.RawLength)
	if !s.pages(d.Offset, n) || s.down(d.Offset) != s.down(d.Offset+n-1) {
		return protocolError("Data at %d+%d is no run of pages of a block", d.Offset, n)
	}
	cost := wire.Cost(d)
	if err := s.meter.Take(cost); err != nil {
		return err
	}
	payload, err := s.pool.Get(s.ctx, d.PayloadLength)
	if err != nil {
		return err
	}
	if err := s.conn.ReadPayload(payload); err != nil {
		return err
	}
	r := &replica.Record{Data: d}
	a := &arrival{event: r, record: r, payload: payload, cost: cost, ready: make(chan struct{})}
	s.checks <- a // has room wherever ordered has
	return s.hand(a)
}

func (s *mirrorSession) takeZero(z *wire.Zero) error {
	if !s.pages(z.Offset, z.Length) {
		return protocolError("Zero at %d+%d is no range of pages of the volume", z.Offset, z.Length)
	}
	cost := wire.Cost(z)
	if err := s.meter.Take(cost); err != nil {
		return err
	}
	if z.Epoch == 0 {
		return s.hand(&arrival{event: &replica.Direct{}, run: &run{off: z.Offset, zero: z, cost: cost}})
	}
	r := &replica.Record{Zero: z, Found: wire.ZeroHash(z.Offset, z.Length)}
	return s.hand(&arrival{event: r, record: r, cost: cost})
}

// routineCheck unpacks and hashes what is to be staged: nothing unchecked gets there.
func (s *mirrorSession) routineCheck(ctx context.Context) error {
	var c checker
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-s.checks:
			c.check(s, a)
		}
	}
}

// checker is what one routineCheck keeps.
type checker struct {
	raw   [2][]byte
	batch [2]*arrival
	found [2]wire.Hash
}

// check checks an arrival, and the one behind it where that waits already.
func (c *checker) check(s *mirrorSession, first *arrival) {
	batch := append(c.batch[:0], first)
	select {
	case a := <-s.checks:
		batch = append(batch, a)
	default:
	}
	pair := pairHasher{hashes: c.found[:]}
	for i, a := range batch {
		if b, ok := unpacked(a, &c.raw[i], s.blockSize); ok {
			pair.add(i, b)
		}
	}
	pair.flush()
	for i, a := range batch {
		if r := a.record; r.Cause == 0 {
			if r.Found = c.found[i]; r.Found != r.Data.Hash {
				r.Cause = wire.NakHash
			}
		}
		close(a.ready)
		batch[i] = nil
	}
}

// unpacked is the raw content of an arrival, in buf where it came packed.
func unpacked(a *arrival, buf *[]byte, blockSize int64) (raw []byte, ok bool) {
	d := a.record.Data
	if d.Codec == wire.CodecRaw && len(a.payload) == int(d.RawLength) {
		return a.payload, true
	}
	if cap(*buf) < int(d.RawLength) {
		*buf = make([]byte, max(int(d.RawLength), int(min(blockSize, DefaultBlockSize))))
	}
	raw = (*buf)[:d.RawLength]
	if wire.Unpack(d.Codec, raw, a.payload) != nil {
		a.record.Cause = wire.NakCodec
		return nil, false
	}
	return raw, true
}

// arrive takes the next message of the primary. In the owner.
func (m *mirror) arrive(a *arrival) {
	s := m.current
	if a.ready != nil {
		select {
		case <-a.ready:
		case <-s.ctx.Done():
			return
		}
	}
	if s.ctx.Err() != nil {
		return // nothing is taken that nobody can be told of
	}
	if c, ok := a.event.(*replica.Commit); ok && m.store.partial != nil {
		c.Pages = m.store.partial.Pages()
	}
	m.step(a.event, a)
	if a.record == nil {
		m.publish()
	}
}

// done gives back what a record took of memory and window, once it is settled.
func (s *mirrorSession) done(a *arrival) {
	s.pool.Put(a.payload)
	a.payload = nil
	s.meter.Done(a.cost)
	s.out.wake()
}

// send answers. An Attached is completed by what is known of the device. In the owner.
func (s *mirrorSession) send(msg wire.Message) {
	if a, ok := msg.(*wire.Attached); ok {
		info := s.store.dev.Info()
		a.Size, a.MaxOffers, a.Window = info.Size, maxOffers, uint64(s.m.window)
		if !info.Direct {
			a.Flags |= wire.AttachedPageCache
		}
	}
	s.out.add(msg)
}

// queue is send for what does not come from the owner.
func (s *mirrorSession) queue(msg wire.Message) error {
	s.out.add(msg)
	return nil
}

func (s *mirrorSession) readBlock(b []byte, off int64) error {
	_, err := s.store.dev.ReadAt(b, off)
	return err
}

// routineSend sends what was answered, and grants.
func (s *mirrorSession) routineSend(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.out.ready:
		}
		for batch := s.answers(); len(batch) > 0; batch = s.answers() {
			if err := s.conn.Send(batch...); err != nil {
				return err
			}
		}
	}
}

// answers are what is to be sent next, and the grant that is due with them.
func (s *mirrorSession) answers() []wire.Message {
	batch := s.out.take()
	if granted, ok := s.meter.Next(); ok {
		batch = append(batch, &wire.Window{Granted: granted})
	}
	return batch
}
