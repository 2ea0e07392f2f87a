package engine

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// The target's half of a sync, in the order in which a block arrives:
//
//	receive  the link's reader: takes frames off the wire in their order, chains them, gathers runs of
//	         Data, and hands out work. It waits for nothing but buffers, which the writers give back.
//	compare  targetOffers goroutines read what is offered, or look into the index, and answer Want
//	write    targetWriters goroutines unpack, hash, compare, write, and note the hashes in the index
//	acks     one goroutine sends what has gathered: acknowledgements, refusals, grants
//	duty     one goroutine does what must be durable: Flush and Commit
//	recheck  one goroutine compares what an earlier run confirmed with the index, where the device may
//	         have been written to since (recheck.go)
//
// Nothing is written that was not hashed here and found equal to what the frame says (I4).
type target struct {
	*link
	geometry
	store   *targetStore
	options wire.OpenFlags
	indexed bool          // offers are answered from the index
	limit   *rate.Limiter // of what the source may send, nil: none

	pool  *blockdev.Pool // what arrives, and what is compared with it
	meter *wire.Meter
	// scratch holds one buffer for each writer. It is a pool of its own because the reader may wait for
	// pool until writers are done: a writer must never wait there as well.
	scratch *blockdev.Pool

	// Owned by the reader.
	gathering *run // that is being gathered, nil between runs
	chain     wire.Chain
	confirmed *wire.Flush // the last one, nil: none

	offers chan *wire.Offer
	writes chan *run // also carries zeroes
	duties chan duty
	acks   ackQueue
	// open counts runs that were handed out and are not written; Commit waits for it.
	open pending

	recheck *recheck // nil: nothing to compare
	changed bool     // the source said so with its Commit; owned by duty, read after the work
}

// run is a contiguous piece of Data frames with one buffer, or a Zero.
type run struct {
	off    int64
	buf    []byte // the raw bytes, filled as frames arrive or are unpacked
	filled int64
	parts  []part
	zero   *wire.Zero
	cost   int64

	readBack bool // by a mirror
}

// part is one Data frame of a run.
type part struct {
	seq    uint64
	lo, hi int64 // in run.buf
	hash   wire.Hash
	codec  wire.Codec
	packed []byte // payload that is still to be unpacked; nil: it lies in run.buf already
}

func newTarget(l *link, store *targetStore, flags wire.OpenFlags, answer *wire.Opened) *target {
	t := &target{
		link: l, geometry: store.geometry, store: store, options: flags,
		indexed: answer.Flags&wire.OpenedIndexed != 0,
		pool:    blockdev.NewPool(targetMemory),
		scratch: blockdev.NewPool(targetWriters * chunkSize),
		meter:   wire.NewMeter(answer.Window),
		offers:  make(chan *wire.Offer, maxOffers),
		writes:  make(chan *run, maxUnacked),
		duties:  make(chan duty, maxDuties),
		acks:    newAckQueue(),
	}
	l.late = func(m wire.Message) {
		// Both sides of a local sync are stopped at once, and the source's last word is still worth having.
		if f, ok := m.(*wire.Flush); ok && f.Number == lastFlushNumber {
			t.takeFlush(f) // one that makes no sense is not noted, and nobody is left to be told
		}
	}
	l.doneByPeer = flags&wire.OpenDryRun != 0
	l.renewedByPeer = !l.doneByPeer
	if answer.Flags&wire.OpenedRecheck != 0 {
		t.recheck = newRecheck(t.geometry, store, answer.ResumeFrom, t.pool)
	}
	return t
}

// work runs the stages until the session ends.
func (t *target) work() error {
	stages, ctx := errgroup.WithContext(t.ctx)
	for range targetOffers {
		stages.Go(func() error { return t.routineCompare(ctx) })
	}
	for range targetWriters {
		stages.Go(func() error { return t.routineWrite(ctx) })
	}
	stages.Go(func() error { return t.routineAcks(ctx) })
	stages.Go(func() error { return t.routineDuty(ctx) })
	if t.recheck != nil {
		stages.Go(func() error { return t.recheck.routine(ctx) })
	}
	return stages.Wait()
}

// handle takes what the source sends, in the link's reader.
func (t *target) handle(m wire.Message) error {
	if t.gathering != nil {
		if _, ok := m.(*wire.Data); !ok {
			return protocolError("type %d inside a run of Data", m.Type())
		}
	}
	if t.finished.Load() {
		return protocolError("type %d after Committed", m.Type())
	}
	switch m := m.(type) {
	case *wire.Offer:
		return t.takeOffer(m)
	case *wire.Data:
		return t.takeData(m)
	case *wire.Zero:
		return t.takeZero(m)
	case *wire.Flush:
		return t.takeFlush(m)
	case *wire.Commit:
		return t.takeDuty(duty{commit: m, records: t.chain.Records(), chain: t.chain.Sum()})
	}
	return protocolError("a source does not send type %d", m.Type())
}

// duty is a Flush or a Commit, the latter with what had arrived before it.
type duty struct {
	flush   *wire.Flush
	commit  *wire.Commit
	records uint64
	chain   wire.Hash
}

// takeFlush notes what the source says is confirmed. If the session ends before the duty was done, it is
// done then (targetStore.interrupted).
func (t *target) takeFlush(m *wire.Flush) error {
	if t.options&wire.OpenDryRun != 0 || m.Position < 0 || m.Position > t.size ||
		(m.Position%t.blockSize != 0 && m.Position != t.size) {
		return protocolError("Flush at %d", m.Position)
	}
	t.confirmed = m
	if m.Number == lastFlushNumber {
		return nil
	}
	return t.takeDuty(duty{flush: m})
}

func (t *target) takeDuty(d duty) error {
	select {
	case t.duties <- d:
		return nil
	default:
		return protocolError("more than %d unanswered Flush and Commit", cap(t.duties))
	}
}

func (t *target) takeOffer(m *wire.Offer) error {
	if m.Flags != 0 {
		return protocolError("Offer with flags %x in a sync", m.Flags)
	}
	if !t.covers(m.Offset, int64(m.Length)) || int64(m.Length) > chunkSize || int64(m.Unit) != t.blockSize {
		return protocolError("Offer of %d hashes of %d bytes for %d+%d", len(m.Hashes), m.Unit, m.Offset, m.Length)
	}
	select {
	case t.offers <- m:
		return nil
	default:
		return protocolError("more than %d open offers", cap(t.offers))
	}
}

// takeData adds a frame to the run under way, or begins one. A raw payload is read to its place in the
// run's buffer, a packed one to a buffer of its own.
func (t *target) takeData(m *wire.Data) error {
	n := int64(m.RawLength)
	switch {
	case t.options&wire.OpenDryRun != 0:
		return protocolError("Data in a dry run")
	case m.Offset < 0 || m.Offset >= t.size || m.Offset%t.blockSize != 0 || t.blockEnd(m.Offset)-m.Offset != n:
		return protocolError("Data at %d+%d is no block of the volume", m.Offset, n)
	case int64(m.Follow) > t.size-m.Offset-n:
		return protocolError("Data at %d is followed by more than the volume", m.Offset)
	case t.gathering == nil:
		buf, err := t.pool.Get(t.ctx, int(n)+int(m.Follow))
		if err != nil {
			return err
		}
		t.gathering = &run{off: m.Offset, buf: buf}
	case m.Offset != t.gathering.off+t.gathering.filled || t.gathering.filled+n+int64(m.Follow) != int64(len(t.gathering.buf)):
		return protocolError("Data at %d+%d does not continue its run", m.Offset, n)
	}
	r := t.gathering
	cost := wire.Cost(m)
	if err := t.meter.Take(cost); err != nil {
		return err
	}
	r.cost += cost
	p := part{seq: m.Seq, lo: r.filled, hi: r.filled + n, hash: m.Hash, codec: m.Codec}
	dst := r.buf[p.lo:p.hi]
	if m.Codec != wire.CodecRaw {
		packed, err := t.pool.Get(t.ctx, m.PayloadLength)
		if err != nil {
			return err
		}
		p.packed, dst = packed, packed
	}
	if err := t.conn.ReadPayload(dst); err != nil {
		return err
	}
	t.chain.Add(m)
	r.filled = p.hi
	r.parts = append(r.parts, p)
	if m.Follow == 0 {
		t.gathering = nil
		return t.handOut(r)
	}
	return nil
}

func (t *target) takeZero(m *wire.Zero) error {
	switch {
	case t.options&wire.OpenDryRun != 0:
		return protocolError("Zero in a dry run")
	case !t.covers(m.Offset, m.Length):
		return protocolError("Zero at %d+%d is no range of blocks of the volume", m.Offset, m.Length)
	}
	cost := wire.Cost(m)
	if err := t.meter.Take(cost); err != nil {
		return err
	}
	t.chain.AddZero(m)
	return t.handOut(&run{off: m.Offset, zero: m, cost: cost})
}

// handOut gives a run to the writers. The window bounds how many there can be.
func (t *target) handOut(r *run) error {
	t.open.add(1)
	select {
	case t.writes <- r:
		return nil
	default:
		t.open.add(-1)
		return protocolError("more than %d records open", cap(t.writes))
	}
}

// routineDuty does what must be durable, one thing at a time, in the order in which it was asked.
func (t *target) routineDuty(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-t.duties:
			var err error
			if d.flush != nil {
				err = t.flush(d.flush)
			} else {
				err = t.commit(ctx, d)
			}
			if err != nil {
				return err
			}
		}
	}
}

// flush makes the prefix that the source found confirmed durable, and then remembers it: data, index,
// progress, in this order, so that progress never promises what a power cut can take back.
func (t *target) flush(m *wire.Flush) error {
	if err := t.store.makeDurable(); err != nil {
		return err
	}
	if err := t.store.progress(m.Position, m.LastHash); err != nil {
		return err
	}
	t.prog.Durable.Store(m.Position)
	t.prog.Scanned.Store(m.Position - t.prog.Resumed.Load())
	return t.conn.Send(&wire.Flushed{Number: m.Number, Position: m.Position})
}

// commit ends a pass: everything received is written, nothing was lost or changed on the way, what an
// earlier run confirmed is still there. Only then it is made durable and answered.
func (t *target) commit(ctx context.Context, d duty) error {
	m := d.commit
	if t.options&wire.OpenDryRun != 0 {
		return protocolError("Commit in a dry run")
	}
	if m.Epoch != 0 || m.Flags&wire.CommitUnproven != 0 {
		return protocolError("Commit of epoch %d with flags %#x, in a sync", m.Epoch, m.Flags)
	}
	if m.Records != d.records || m.Chain != d.chain {
		return fmt.Errorf("%w: Commit of %d records, but %d arrived, or their chain differs", errMismatch, m.Records, d.records)
	}
	if err := t.open.wait(ctx); err != nil {
		return err
	}
	if t.recheck != nil {
		doubts, err := t.recheck.result(ctx)
		if err != nil {
			return err
		}
		if len(doubts) > 0 {
			return t.sendDoubts(doubts)
		}
	}
	if err := t.store.makeDurable(); err != nil {
		return err
	}
	if err := t.store.settle(true); err != nil {
		return err
	}
	t.finished.Store(true)
	t.changed = m.Flags&wire.CommitSourceChanged != 0
	return t.conn.Send(&wire.Committed{Records: m.Records, Chain: m.Chain})
}

func (t *target) sendDoubts(doubts []blockdev.Extent) error {
	for len(doubts) > 0 {
		n := min(len(doubts), wire.MaxEntries)
		m := &wire.Doubt{More: n < len(doubts)}
		for _, e := range doubts[:n] {
			m.Extents = append(m.Extents, wire.Extent(e))
		}
		if err := t.conn.Send(m); err != nil {
			return err
		}
		doubts = doubts[n:]
	}
	return nil
}
