package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// The source's half of a sync, in the order in which a block travels:
//
//	scan     one goroutine walks the device's extents and hands out spans, ascending
//	copy     sourceChunks goroutines take one span each: read it, find zeroes, hash every block,
//	         offer the hashes where the target may have data, pack what is wanted, send it
//	receive  the link's reader: wants, acknowledgements, grants
//	reship   one goroutine reads and ships anew the blocks that were not taken
//	flush    one goroutine asks the target now and then to make the confirmed prefix durable
//
// A span's piece is done when all its records are acknowledged with our own checksum; the tracker turns
// that into the confirmed prefix.
type source struct {
	*link
	geometry
	dev     blockdev.Device
	opened  *wire.Opened
	options sourceOptions

	pool   *blockdev.Pool
	reads  chan struct{} // a token for each read in flight
	slots  chan struct{} // a token for each open offer
	window *wire.SendWindow
	flow   *wire.Flow    // nil: nobody steers, what the window lets through is sent as it comes
	limit  *rate.Limiter // nil: none

	turn sync.Mutex // of a run; before sending

	// Order: sequence, chain and wire agree because all three advance under sending.
	sending sync.Mutex
	seq     uint64
	chain   wire.Chain
	// committing is set under sending, with a Commit, until that is answered.
	committing atomic.Bool

	mu      sync.Mutex
	unacked map[uint64]*record
	offers  map[uint64]chan []byte // by Offer.Seq, each with room for its answer
	offerID uint64
	reships map[int64]int // tries of a block that was not taken, by offset, until it is

	records pending      // sent or to be shipped anew, and not acknowledged
	again   chan *record // records to ship anew
	// budget bounds the records that are open, in bytes of cost, whatever the target grants.
	budget *semaphore.Weighted
	// flushes counts the Flushes that were sent, flushed is the last that was answered.
	flushes, flushed atomic.Uint64
	answers          chan wire.Message
	tracker          *tracker
}

type sourceOptions struct {
	dryRun     bool
	noCompress bool
	flushEvery time.Duration
	renewAfter int64 // bytes of the connection; 0: never
	// changed tells whether the source was written to since the session opened.
	changed func() bool
}

// record is a Data or Zero that was sent and is not acknowledged.
type record struct {
	piece  *piece
	offset int64
	length int64
	hash   wire.Hash // what the Ack must carry
	zero   bool
	cost   int64 // of the window
	bytes  int64 // on the wire
}

func newSource(l *link, g geometry, dev blockdev.Device, opened *wire.Opened, o sourceOptions) *source {
	s := &source{
		link: l, geometry: g, dev: dev, opened: opened, options: o,
		pool:    blockdev.NewPool(sourceMemory),
		reads:   make(chan struct{}, sourceReads),
		slots:   make(chan struct{}, min(int(opened.MaxOffers), sourceChunks)),
		window:  wire.NewWindow(opened.Window),
		unacked: make(map[uint64]*record),
		offers:  make(map[uint64]chan []byte),
		reships: make(map[int64]int),
		again:   make(chan *record, maxUnacked),
		answers: make(chan wire.Message, maxDoubts/wire.MaxEntries+1),
		budget:  semaphore.NewWeighted(maxUnacked * wire.Cost(&wire.Zero{})),
		tracker: newTracker(),
	}
	s.parting = s.lastFlush
	return s
}

// lastFlush names what is confirmed when the session ends before its time, so that the next one can go on
// from there.
func (s *source) lastFlush() []wire.Message {
	mark, last := s.tracker.confirmed()
	if mark == 0 || s.options.dryRun {
		return nil
	}
	return []wire.Message{&wire.Flush{Number: lastFlushNumber, Position: mark, LastHash: last}}
}

// work copies everything and returns when the target has committed it.
func (s *source) work() error {
	defer s.window.Close(errDone)
	stopWindow := context.AfterFunc(s.ctx, func() { s.window.Close(context.Cause(s.ctx)) })
	defer stopWindow()

	from, err := s.resumePoint()
	if err != nil {
		return err
	}
	if from < s.opened.ResumeFrom {
		// The point that the target named is no good: it must not come back to it either.
		if err := s.flush(from, wire.Hash{}); err != nil {
			return err
		}
	}
	background, stop := errgroup.WithContext(s.ctx)
	ended := make(chan struct{})
	background.Go(func() error { return s.routineReship(stop, ended) })
	if !s.options.dryRun {
		background.Go(func() error { return s.routineFlush(stop, ended) })
	}
	background.Go(func() error {
		defer close(ended)
		err := s.copyAndCommit(stop, from)
		s.finished.Store(err == nil) // and stays so: what is committed is, however fast the target leaves
		return err
	})
	if err := background.Wait(); !s.finished.Load() {
		return err
	}
	return nil
}

// resumePoint checks the last block that the target says was confirmed, and returns where to go on. The
// target has compared the same hash with its own device before it named it.
func (s *source) resumePoint() (int64, error) {
	from := s.opened.ResumeFrom
	if from == 0 {
		return 0, nil
	}
	start := s.down(from - 1)
	buf, err := s.pool.Get(s.ctx, int(from-start))
	if err != nil {
		return 0, err
	}
	defer s.pool.Put(buf)
	if _, err := s.dev.ReadAt(buf, start); err != nil {
		return 0, sourceError(err)
	}
	if wire.Sum(buf) != s.opened.ResumeHash {
		return 0, nil // the source is not what the progress was about: look at everything
	}
	s.tracker.mark, s.tracker.last = from, s.opened.ResumeHash
	return from, nil
}

// copyAndCommit makes passes until the target vouches for everything: the first over the volume from
// the resume point on, later ones over what the target came to doubt.
func (s *source) copyAndCommit(ctx context.Context, from int64) error {
	todo := []blockdev.Extent{{Offset: from, Length: s.size - from}}
	tracked := true // only the first pass is contiguous and moves the confirmed prefix
	for {
		err := s.pass(ctx, todo, tracked)
		if err != nil && !errors.Is(err, errRenewed) {
			return err
		}
		if s.options.dryRun {
			return nil
		}
		// Before another connection as well: so the next session goes on from the end of this one.
		if err := s.records.wait(ctx); err != nil {
			return err
		}
		if err != nil {
			return err
		}
		doubts, err := s.commit(ctx)
		if err != nil || len(doubts) == 0 {
			return err
		}
		todo, tracked = doubts, false
	}
}

// pass scans ranges and copies their spans, many at a time. It returns when all are sent, or, with errRenewed, as many
// as this connection may carry.
func (s *source) pass(ctx context.Context, ranges []blockdev.Extent, tracked bool) error {
	group, ctx := errgroup.WithContext(ctx)
	type job struct {
		span
		piece *piece
	}
	jobs := make(chan job)
	renew := false // set by the scan
	group.Go(func() error {
		defer close(jobs)
		track := s.tracker
		if !tracked {
			track = newTracker()
		}
		for _, r := range ranges {
			err := s.scan(ctx, s.dev, r, func(sp span) error {
				if spent(s.conn, s.options.renewAfter) {
					return errRenewed
				}
				p, err := track.begin(ctx, sp.End())
				if err != nil {
					return err
				}
				select {
				case jobs <- job{sp, p}:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			})
			if renew = errors.Is(err, errRenewed); renew {
				return nil // what was handed out is still copied
			}
			if err != nil {
				return sourceError(err)
			}
		}
		return nil
	})
	// Behind dataEnd the target is known to be zero. A doubtful range is always offered.
	dataEnd := s.opened.DataEnd
	if !tracked {
		dataEnd = s.size
	}
	for range sourceChunks {
		group.Go(func() error {
			packer := wire.NewPacker()
			for j := range jobs {
				var err error
				if j.hole {
					err = s.copyHole(ctx, j.Extent, j.piece, dataEnd)
				} else {
					err = s.copySpan(ctx, j.Extent, j.piece, dataEnd, packer)
				}
				if err != nil {
					return err
				}
				j.piece.release()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil || !renew {
		return err
	}
	return errRenewed
}

// commit asks the target to make everything durable, and returns what it doubts.
func (s *source) commit(ctx context.Context) ([]blockdev.Extent, error) {
	s.sending.Lock()
	m := &wire.Commit{Records: s.chain.Records(), Chain: s.chain.Sum()}
	if s.options.changed() {
		m.Flags |= wire.CommitSourceChanged
	}
	s.committing.Store(true)
	defer s.committing.Store(false)
	err := s.conn.Send(m)
	s.sending.Unlock()
	if err != nil {
		return nil, err
	}
	var doubts []blockdev.Extent
	for {
		answer, err := s.nextAnswer(ctx)
		if err != nil {
			return nil, err
		}
		switch answer := answer.(type) {
		case *wire.Committed:
			if len(doubts) > 0 || answer.Epoch != 0 || answer.Records != m.Records || answer.Chain != m.Chain {
				return nil, protocolError("Committed names another history than our Commit")
			}
			return nil, nil
		case *wire.Doubt:
			for _, e := range answer.Extents {
				if !s.covers(e.Offset, e.Length) {
					return nil, protocolError("Doubt about %d+%d, which is no range of blocks of the volume", e.Offset, e.Length)
				}
				doubts = append(doubts, blockdev.Extent(e))
			}
			if len(doubts) > maxDoubts {
				return nil, protocolError("Doubt about more than %d ranges", maxDoubts)
			}
			if !answer.More {
				return doubts, nil
			}
		}
	}
}

// nextAnswer waits for an answer to Commit. One that came before the session ended counts.
func (s *source) nextAnswer(ctx context.Context) (wire.Message, error) {
	select {
	case answer := <-s.answers:
		return answer, nil
	case <-ctx.Done():
	}
	select {
	case answer := <-s.answers:
		return answer, nil
	default:
		return nil, context.Cause(ctx)
	}
}

// routineFlush makes the confirmed prefix durable now and then, until ended.
func (s *source) routineFlush(ctx context.Context, ended <-chan struct{}) error {
	tick := time.NewTicker(s.options.flushEvery)
	defer tick.Stop()
	asked, _ := s.tracker.confirmed()
	for {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			mark, last := s.tracker.confirmed()
			// A disk that flushes slowly is not asked again before it has answered.
			if mark <= asked || s.flushed.Load() != s.flushes.Load() {
				continue
			}
			if err := s.flushUnlessCommitting(mark, last); err != nil {
				return err
			}
			asked = mark
		}
	}
}

// flushUnlessCommitting: a Commit makes more durable, and behind Committed nothing may come.
func (s *source) flushUnlessCommitting(position int64, last wire.Hash) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if s.committing.Load() {
		return nil
	}
	return s.flush(position, last)
}

// flush asks the target to make all below position durable, and to remember it.
func (s *source) flush(position int64, last wire.Hash) error {
	return s.conn.Send(&wire.Flush{Number: s.flushes.Add(1), Position: position, LastHash: last})
}

// sourceError tells that the source's device failed. Errors of the session pass as they are.
func sourceError(err error) error {
	if isDeviceError(err) {
		return deviceError("read source", "", err)
	}
	return err
}
