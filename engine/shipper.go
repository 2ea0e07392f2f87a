package engine

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/wire"
)

// shipper keeps one mirror up to date, over any number of connections:
//
//	shipper.go       what it holds; connecting; a person's wishes; status
//	shipattach.go    a new connection: the handshake, and what it means for the sets
//	shipdrive.go     routineDrive does what the core says, one thing at a time
//	shipread.go      readers take closed pages, hash and pack them, and send
//	shipreceive.go   what the mirror answers
//	shipflow.go      how fast
//	shipfailsafe.go  mismatches: what the mirror is told, and what it says of itself
//	shiperrand.go    verify and repair, for which the mirror's node asks
//	probewatch.go    whether another connection would come about
//	shiprenew.go     a connection that has carried much makes room for a new one
//
// Locks, in this order: hands, sending, mu. Whoever has a batch between reading and sending holds hands
// shared; routineDrive takes it exclusively to know that nobody does.
type shipper struct {
	p       *primary
	config  MirrorConfig
	sets    *track.Sets
	capture *track.Capture
	pool    *blockdev.Pool // payloads that are not acknowledged, and what is being read

	hands   sync.RWMutex
	inHand  atomic.Int64 // batches between reading and sending
	sending sync.Mutex   // gives out sequence numbers, in the order in which frames go out

	mu       sync.Mutex
	core     *ship.Core
	full     bool              // the write path gave the cut up
	kept     map[uint64]item   // sent and not acknowledged, by Seq
	again    []item            // to be sent before anything else
	refused  []wire.Extent     // the mirror had no room for it; todo again with the give-up that follows
	voids    *blockdev.PageSet // of the next Rebase
	session  *shipSession      // nil: not connected
	carrying Conn              // the same connection, until it is closed and counted in stats.wire; nil: none
	offers   map[uint64]claim
	offerSeq uint64
	doubtAt  uint64 // where the next offer begins
	tries    map[int64]int
	blank    int64         // at and behind it the mirror's device reads as zero, where nothing was sent yet; -1: not known
	changed  chan struct{} // closed and made anew whenever the state changes
	barred   string        // why the mirror did not let us in, where a person has to do something
	stopped  string        // why no connection is made: a person has to do something
	replace  bool          // a person said that the mirror's history does not count
	last     *DisconnectCause
	node     string
	probes   probes

	// The fail-safe (shipfailsafe.go).
	suspects    []wire.SuspectEntry    // the mirror is to be told, and nothing shipped before
	suspectOf   wire.Suspect           // class and epoch of them
	told        int                    // how many of them, with the last connection
	mirrorCause *wire.Quarantine       // why the mirror is read-only; nil: it is not
	gathered    *wire.Quarantine       // whose frames are not all there
	readOnly    bool                   // the session's Attached said so
	repairing   *repairJob             // under way
	checks      map[uint64]chan []byte // offers of a verify that are not answered
	verified    uint64                 // block up to which a verify came that was cut off
	verifyPool  *blockdev.Pool
	mismatches  struct{ wire, source, mirror int64 }
	errands     errands

	wake     chan struct{} // one token: routineDrive has something to look at
	redial   chan struct{} // one token: connect now
	attempt  *attempt      // under way, no session yet; of mu
	knocked  time.Time     // when the mirror knocked last and was heard; of mu
	cancel   context.CancelCauseFunc
	routines sync.WaitGroup

	connection atomic.Uint64
	stats      struct {
		shipped, offered, wire, retried, reconnects, givenUp atomic.Int64
	}
}

// item is one record's worth of content, kept until the mirror has it.
type item struct {
	off, length int64
	zero        bool
	mayFree     bool
	hash        wire.Hash
	codec       wire.Codec
	payload     []byte // packed or raw; a part of buf
	buf         *shared
	follow      uint32 // raw bytes that come contiguously behind it in its batch
	tries       int
}

// shared is a buffer of the pool that several items refer to.
type shared struct {
	pool *blockdev.Pool
	wait func(try func() bool) // for room in it; nil: the goroutine blocks
	bufs [][]byte
	refs atomic.Int32
}

func (b *shared) release() {
	if b != nil && b.refs.Add(-1) == 0 {
		for _, buf := range b.bufs {
			b.pool.Put(buf)
		}
	}
}

// claim is an offer that is not answered.
type claim struct {
	first, count uint64 // pages
	unit         uint64 // pages that one hash covers
}

// The limits of one shipper.
const (
	shipReaders = 6
	shipBatch   = 512 << 10 // raw bytes that a reader gathers before it sends
	shipMemory  = 48 << 20  // unacknowledged payloads (the window, 32 MiB) and what is being read
	shipOffers  = 3         // readers that hash what is offered
	pageOffers  = 16 << 30  // bytes of doubt up to which pages are offered, and not blocks
	awakeEvery  = 250 * time.Millisecond
)

func newShipper(p *primary, m MirrorConfig, c *track.Capture) *shipper {
	s := &shipper{p: p, config: m, capture: c, pool: blockdev.NewPool(cmp.Or(p.sizes.ShipMemory, shipMemory)), kept: map[uint64]item{}, offers: map[uint64]claim{},
		tries: map[int64]int{}, checks: map[uint64]chan []byte{},
		verifyPool: blockdev.NewPool(verifyWorkers * offerBytes), blank: -1, changed: make(chan struct{}), wake: make(chan struct{}, 1), redial: make(chan struct{}, 1), node: m.Name,
		last: p.disconnects.last("primary", p.name, m.Name)}
	s.errands.wake = make(chan struct{}, 1)
	s.sets = p.tracker.AddConsumer(m.Name, c)
	known := p.facts.of(m.Name)
	g := p.facts.get().Generation
	s.core = ship.New(s.tune(), wire.Generation(g), p.incarnation,
		ship.History{Committed: known.Committed, Sent: known.Sent, Bulk: known.Bulk, Known: known.Attached})
	if p.facts.get().Paused {
		s.core.Pause()
	}
	return s
}

func (s *shipper) tune() ship.Config {
	c := s.p.config.Load()
	return ship.Config{Interval: c.Interval, BulkWhenFull: c.OnStagingFull == "bulk",
		FlushBytes: s.p.sizes.BulkFlush, SmallRest: s.p.sizes.SmallRest}
}

// start begins to connect and to drive. stop ends both and waits.
func (s *shipper) start(ctx context.Context) {
	ctx, s.cancel = context.WithCancelCause(ctx)
	s.routines.Go(func() { s.routineDrive(ctx) })
	s.routines.Go(func() { s.routineConnect(ctx) })
	s.routines.Go(func() { s.routineErrands(ctx) })
	s.routines.Go(func() { s.routineProbe(ctx) })
}

func (s *shipper) stop() {
	if s.cancel != nil {
		s.cancel(context.Canceled)
	}
	s.routines.Wait()
}

// finish gives the mirror what it still needs, as far as ctx and the connection allow: where nobody writes
// any more, a clean stop then leaves both sides equal.
func (s *shipper) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	s.mu.Lock()
	session := s.session
	st := s.core.State()
	s.mu.Unlock()
	if session == nil || st.Phase != ship.Shipping || st.Paused || st.Holding || s.p.tracker.Counts(s.sets).Needs == 0 {
		return
	}
	stop := context.AfterFunc(session.ctx, cancel)
	defer stop()
	after := s.p.facts.get().Cut
	s.wantCut(after)
	s.waitCommitted(ctx, after) // or not: then it is shipped after the next start
}

// finishTimeout is what a clean stop waits for each mirror.
const finishTimeout = 3 * time.Second

// routineConnect keeps a connection to the mirror (retry.go says when).
func (s *shipper) routineConnect(ctx context.Context) {
	var r retry
	for ctx.Err() == nil {
		began := time.Now()
		due := began.Add(retryMost)
		if s.mayConnect() {
			p := s.connect(ctx, r.limit(began))
			s.disconnected(p)
			if p.established && !errors.Is(p.err, errRenewed) {
				s.stats.reconnects.Add(1)
			}
			due = r.next(p, began, time.Now())
		}
		select {
		case <-ctx.Done():
		case <-s.redial:
			r.pause = 0
		case <-time.After(time.Until(due)):
		}
	}
}

// redialNow has the mirror dialled without a pause. An attempt that has hung for a while is given up for that.
func (s *shipper) redialNow() {
	s.mu.Lock()
	if a := s.attempt; a != nil && time.Since(a.began) > stoppedTry {
		a.end(errRedial)
	}
	s.mu.Unlock()
	select {
	case s.redial <- struct{}{}:
	default:
	}
}

// redialUnlessConnected is redialNow where no session goes on. One that is coming about may still fail for what has changed
// meanwhile, so the token is left for it.
func (s *shipper) redialUnlessConnected() {
	s.mu.Lock()
	connected := s.session != nil
	s.mu.Unlock()
	if !connected {
		s.redialNow()
	}
}

var errRedial = errors.New("another attempt is made")

// attempt is a connection that is coming about.
type attempt struct {
	began time.Time
	end   context.CancelCauseFunc
}

// attempting notes the attempt under way; nil: there is none.
func (s *shipper) attempting(a *attempt) {
	s.mu.Lock()
	s.attempt = a
	s.mu.Unlock()
}

func (s *shipper) mayConnect() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped == ""
}

// disconnected notes why a connection ended or did not come about.
func (s *shipper) disconnected(p parting) {
	err := p.err
	if err == nil || errors.Is(err, errRedial) || errors.Is(err, errRenewed) || !p.established && errors.Is(err, context.Canceled) {
		return
	}
	var own *Error
	if !errors.As(err, &own) {
		if !errors.As(sessionError(err, s.config.Address), &own) {
			own = &Error{On: s.config.Address, Err: err}
		}
		own.Op = "replicate to"
	}
	s.mu.Lock()
	s.barred = ""
	if own.Kind == KindAuth {
		s.barred = own.Error() + "; " + own.Next
	}
	if remote, ok := errors.AsType[*wire.RemoteError](err); ok && own.Kind == KindState && remote.Code != wire.CodeBusy && remote.Code != wire.CodeReplaced {
		s.barred = own.Error() + "; " + own.Next
	}
	s.last = &DisconnectCause{Class: string(classOf(err)), Error: own.Error(), At: s.p.now().UTC().Format(time.RFC3339), Next: nextStep(err)}
	readOnly := errors.Is(err, wire.ErrReadOnly) || len(s.suspects) > 0
	if j := s.repairing; j != nil && j.began && errors.Is(err, wire.ErrReadOnly) {
		j.vain = min(j.vain+1, repairTries)
	}
	if own.Kind == KindIntegrity && !readOnly {
		s.stopped = own.Error() + "; " + resumeHint
	}
	s.notifyLocked()
	s.mu.Unlock()
	s.p.disconnects.add(Disconnect{Role: "primary", Volume: s.p.name, Peer: s.config.Name, Address: s.config.Address}, p)
}

const resumeHint = "nothing more is sent until `blkmirror resume VOLUME`"

// poke wakes routineDrive.
func (s *shipper) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// notifyLocked tells everybody who waits for a change. s.mu is held.
func (s *shipper) notifyLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *shipper) notify() {
	s.mu.Lock()
	s.notifyLocked()
	s.mu.Unlock()
	s.poke()
}

func (s *shipper) wantCut(after uint64) {
	s.mu.Lock()
	s.core.WantCut(after)
	s.mu.Unlock()
	s.poke()
}

func (s *shipper) pause() {
	s.mu.Lock()
	s.core.Pause()
	s.mu.Unlock()
	s.poke()
}

func (s *shipper) resume(overwrite bool) {
	s.mu.Lock()
	s.core.Resume()
	s.stopped, s.replace = "", s.replace || overwrite
	clear(s.tries)
	session := s.session
	refused := s.core.State().Phase == ship.Refused
	s.notifyLocked()
	s.mu.Unlock()
	if refused && session != nil {
		session.end(errResumed)
	}
	s.poke()
	s.redialNow()
}

var errResumed = errors.New("a person asked for another try")

// waitApplied returns when the mirror's device holds a cut above after; waitCommitted when it cannot lose it.
func (s *shipper) waitApplied(ctx context.Context, after uint64) (uint64, error) {
	return s.waitFor(ctx, func(st ship.State) (uint64, bool) {
		return st.Applied, st.Applied > after && !st.Inconsistent && !st.BulkBase
	})
}

func (s *shipper) waitCommitted(ctx context.Context, after uint64) (uint64, error) {
	return s.waitFor(ctx, func(st ship.State) (uint64, bool) { return st.Committed, st.Committed > after && !st.BulkBase })
}

func (s *shipper) waitFor(ctx context.Context, reached func(ship.State) (uint64, bool)) (uint64, error) {
	for {
		s.mu.Lock()
		st, changed := s.core.State(), s.changed
		s.mu.Unlock()
		number, ok := reached(st)
		if ok {
			return number, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return number, context.Cause(ctx)
		}
	}
}

// status tells how the mirror stands.
func (s *shipper) status() MirrorStatus {
	counts := s.p.tracker.Counts(s.sets)
	lag := s.sets.Oldest(s.p.now())
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.core.State()
	m := MirrorStatus{Name: s.config.Name, Node: s.node, Address: s.config.Address, Reason: st.Reason, CommittedEpoch: st.Committed, AppliedEpoch: st.Applied,
		LagSeconds: lag.Seconds(), NeedsBytes: s.bytes(counts.Needs), StagedBytes: s.bytes(counts.Staged), Holes: int64(counts.Holes),
		LagBytes:     s.bytes(counts.Needs - counts.Doubt),
		ShippedBytes: s.stats.shipped.Load(), OfferedBytes: s.stats.offered.Load(), WireBytes: s.stats.wire.Load(),
		RetriedBlocks: s.stats.retried.Load(), Reconnects: s.stats.reconnects.Load(), GivenUp: s.stats.givenUp.Load(),
		CapturedBytes: s.bytes(counts.Captured), RoomMissing: st.Missing, LastDisconnect: s.last, Probe: s.probedLocked(),
		ReadOnly:   s.readOnlyLocked(),
		Mismatches: MismatchCounts{Wire: s.mismatches.wire, Source: s.mismatches.source, Mirror: s.mismatches.mirror}}
	if s.carrying != nil {
		m.WireBytes += s.carrying.Sent() + s.carrying.Received()
	}
	if s.session != nil {
		m.RTTMillis = float64(s.session.conn.RTT().Microseconds()) / 1000
		m.Flow = s.flowStatus(s.session.flow)
	}
	m.State = s.state(st, lag)
	if s.session == nil {
		m.Reason = cmp.Or(s.stopped, s.barred, m.Reason)
	}
	return m
}

// bytes of pages, of which the last of the volume may be short: at most the volume.
func (s *shipper) bytes(pages uint64) int64 { return min(int64(pages)*blockdev.PageSize, s.p.size) }

// state is the word for how a mirror stands (DESIGN §10).
func (s *shipper) state(st ship.State, lag time.Duration) string {
	switch {
	case s.stopped != "" || s.mirrorCause != nil || len(s.suspects) > 0 || st.Phase == ship.ReadOnly:
		return "read-only"
	case st.Paused:
		return "paused"
	case s.session == nil && s.barred != "":
		return "refused"
	case s.session == nil:
		return "connecting"
	case st.Phase == ship.Refused:
		return "refused"
	case st.Phase == ship.Bulk || st.Inconsistent && st.Phase == ship.Shipping:
		return "bulk"
	case st.Phase == ship.Reconciling:
		return "reconciling"
	case st.Holding:
		return "holding"
	case lag > s.p.maxLag():
		return "lagging"
	case !st.Began.IsZero() && s.p.now().Sub(st.Began) > 2*max(s.p.config.Load().Interval, time.Second):
		return "catching-up"
	}
	return "connected"
}
