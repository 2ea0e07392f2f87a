package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// shipSession is one connection of a shipper, after Attached.
type shipSession struct {
	*link
	window  *wire.SendWindow
	flow    *wire.Flow    // nil: nobody steers, what the window lets through is sent as it comes
	work    chan offerJob // has room for all that may be unanswered
	fetches *fetching

	// ship ends when reading must stop: the session is over, or the cut was given up.
	mu     sync.Mutex
	ship   context.Context
	noShip context.CancelCauseFunc
}

// end ends the session with a reason.
func (s *shipSession) end(err error) { s.cancel(err) }

// connect is the life of one connection. Connecting may take as long as limit.
func (s *shipper) connect(ctx context.Context, limit time.Duration) parting {
	attempting, end := context.WithCancelCause(ctx) // until there is a session
	defer end(nil)
	s.attempting(&attempt{began: time.Now(), end: end})
	defer s.attempting(nil)
	dialling, cancel := context.WithTimeout(attempting, limit)
	defer cancel()
	gate := s.p.gate
	nc, peer, err := gate.dial(dialling, s.config.Address, s.p.name, identity.AsMirror)
	if err != nil {
		if cause := context.Cause(attempting); cause != nil {
			err = cause
		}
		return parting{err: err}
	}
	conn := wire.NewConn(nc, gate.options(peer))
	ctx, pass := gate.pass(ctx, conn, peer, s.config.Address)
	defer pass.leave()
	release := context.AfterFunc(attempting, func() { conn.Close(context.Cause(attempting)) })
	trusted := context.AfterFunc(ctx, func() { conn.Close(context.Cause(ctx)) })
	hello, answer, err := s.attach(conn, pass)
	s.attempting(nil)
	if !trusted() && err == nil {
		err = context.Cause(ctx)
	}
	if !release() && err == nil {
		err = context.Cause(attempting)
	}
	established := err == nil
	if established {
		conn.Established()
		err = s.session1(ctx, conn, hello, answer)
	}
	conn.Close(err)
	gate.narrow.learn(s.config.Address, conn.Remote(), conn.Segment(), err)
	s.carried(conn)
	return partingOf(conn, established, gate.explain(err, s.config.Address, s.p.name, identity.AsMirror, false))
}

// attach is the handshake.
func (s *shipper) attach(conn *wire.Conn, pass *pass) (*wire.Hello, *wire.Attached, error) {
	hello, err := greet(conn, &wire.Hello{Node: s.p.node, Name: hostName(), Software: software, Role: wire.RolePrimary, Volume: s.p.name})
	if err != nil {
		return nil, nil, err
	}
	if err := pass.enter(s.p.name, identity.AsMirror, hello.Node); err != nil {
		return nil, nil, err
	}
	pass.sit(s.config.Name)
	open := s.attachMessage()
	if err := conn.Send(open); err != nil {
		return nil, nil, err
	}
	msg, err := conn.Next()
	if err != nil {
		return nil, nil, err
	}
	answer, err := s.accept(open, msg)
	return hello, answer, err
}

// attachMessage says what the mirror has to know of us.
func (s *shipper) attachMessage() *wire.Attach {
	f := s.p.facts.get()
	m := s.p.facts.of(s.config.Name)
	open := &wire.Attach{Volume: s.p.name, VolumeID: f.UUID, Generation: wire.Generation(f.Generation), Incarnation: s.p.incarnation,
		Connection: s.connection.Add(1), Size: s.p.size, BlockSize: f.BlockSize, Committed: m.Committed, LastSent: max(m.Sent, m.Committed), Devices: s.p.devices}
	s.mu.Lock()
	if s.replace {
		open.Flags |= wire.AttachOverwrite
	}
	s.mu.Unlock()
	if f.Rebuilt {
		open.Flags |= wire.AttachRebuilt
	}
	return open
}

// accept takes the answer to an Attach.
func (s *shipper) accept(open *wire.Attach, msg wire.Message) (*wire.Attached, error) {
	switch msg := msg.(type) {
	case *wire.Attached:
		if msg.Size < s.p.size {
			return nil, protocolError("a mirror of %d bytes takes a volume of %d", msg.Size, s.p.size)
		}
		return msg, s.adopt(open, msg)
	case *wire.Refused:
		return nil, &wire.RemoteError{Code: msg.Code, Text: msg.Text}
	}
	return nil, unexpected(msg, "Attached")
}

// errAdopted ends a connection that brought a rebuilt volume its identity: the next one uses it.
var errAdopted = errors.New("the volume took its identity over from the mirror")

// adopt takes UUID and history over from a mirror where the journal was rebuilt: the volume goes on as a
// child of what the mirror holds, at no cut of it.
func (s *shipper) adopt(open *wire.Attach, a *wire.Attached) error {
	if open.Flags&wire.AttachRebuilt == 0 || a.VolumeID == [16]byte{} {
		return nil
	}
	err := s.p.facts.change(func(f *journal.VolumeFacts) {
		f.UUID, f.Rebuilt = a.VolumeID, false
		f.Generation.Counter, f.Generation.Parent, f.Generation.ParentCut = a.Generation.Counter+1, a.Generation.ID, 0
		f.Cut = max(f.Cut, a.LastCut, a.InPlace, a.StagedNumber)
	})
	if err != nil {
		s.p.fail("note identity", err)
		return err
	}
	g := wire.Generation(s.p.facts.get().Generation)
	for _, o := range s.p.shippers() {
		o.mu.Lock()
		o.core.Rename(g)
		o.mu.Unlock()
	}
	return errAdopted
}

// session1 runs a session from Attached on.
func (s *shipper) session1(ctx context.Context, conn *wire.Conn, hello *wire.Hello, a *wire.Attached) error {
	session := newShipSession(ctx, conn, a)
	session.flow = conn.Steer(session.window, s.flowOptions())
	err := s.attached(session, hello, a)
	if err == nil {
		err = s.greetMirror(session)
	}
	if err != nil {
		session.end(err)
		s.lost()
		return session.link.run(func(wire.Message) error { return nil }, func() error { return err })
	}
	err = session.link.run(s.handle, func() error { return s.run(session) })
	s.lost()
	return err
}

func newShipSession(ctx context.Context, conn Conn, a *wire.Attached) *shipSession {
	l := newLink(ctx, conn, new(Progress))
	session := &shipSession{link: l, window: wire.NewWindow(a.Window), work: make(chan offerJob, shipOffers), fetches: newFetching()}
	session.ship, session.noShip = context.WithCancelCause(l.ctx)
	return session
}

// run ends when the session has, with everything that it started.
func (s *shipper) run(session *shipSession) error {
	var routines sync.WaitGroup
	for range shipReaders {
		routines.Go(func() { s.routineRead(session) })
	}
	for range shipOffers {
		routines.Go(func() { s.routineOffer(session) })
	}
	routines.Go(func() { s.routineAnswer(session) })
	routines.Go(func() { s.routineDoor(session) })
	s.notify()
	<-session.ctx.Done()
	session.window.Close(context.Cause(session.ctx))
	routines.Wait()
	return context.Cause(session.ctx)
}

// attached takes what the mirror says up: facts first, then sets, then the session is the present one. Where
// everything is needed or in doubt it is the sets first: from those facts on the sets of the last checkpoint
// count for nothing (see facts.attached), and the next checkpoint must have these.
func (s *shipper) attached(session *shipSession, hello *wire.Hello, a *wire.Attached) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.carrying = session.conn
	s.p.facts.seen(max(a.LastCut, a.InPlace, a.StagedNumber))
	s.node = hello.Name
	v := s.core.Attached(a, s.replace)
	if v.Refused != "" {
		s.session = session
		s.p.log(fmt.Sprintf("mirror %s: %s", s.config.Name, v.Refused))
		s.notifyLocked()
		return nil
	}
	s.replace = false
	s.core.AllowOffers(int(min(a.MaxOffers, shipOffers)))
	st := s.core.State()
	sent := s.p.facts.of(s.config.Name).Sent
	anew := v.AllDirty || v.AllDoubt != ""
	if anew {
		s.apply(&v)
	}
	err := s.p.facts.attached(s.config.Name, hello.Node, st.Committed, max(sent, st.Committed), st.BulkBase, anew)
	if !anew { // also where the journal has failed, which holds nothing any more: the core has taken it up
		s.apply(&v)
	}
	if err != nil {
		s.p.fail("note mirror", err)
		return err
	}
	if a.Flags&wire.AttachedBlank != 0 {
		s.blank = a.DataEnd
	} else {
		s.blank = -1
	}
	s.offerSeq, s.doubtAt = 0, 0
	clear(s.offers)
	s.attachedReadOnly(a.Flags&wire.AttachedReadOnly != 0)
	s.session = session
	return nil
}

// apply makes the sets what the core found. s.mu is held.
func (s *shipper) apply(v *ship.Attachment) {
	t := s.p.tracker
	if v.Committed || v.Flushed {
		t.Committed(s.sets)
	}
	for _, r := range runsOf(v.Unsure) {
		t.Dirty(s.sets, r.First, r.Count)
	}
	if v.Uncommit {
		t.Uncommit(s.sets)
	}
	if v.AllDirty || v.AllDoubt != "" || v.Restart {
		t.DropEpoch(s.sets)
		s.forgetKept()
		s.voids = nil
	}
	switch {
	case v.AllDirty:
		t.Dirty(s.sets, 0, t.Pages())
	case v.AllDoubt != "":
		t.DoubtAll(s.sets)
		s.p.log(fmt.Sprintf("mirror %s: everything is compared: %s", s.config.Name, v.AllDoubt))
	}
	if v.Uncommit {
		s.forgetKept()
		s.voids = nil
	}
	if len(v.NotStaged) > 0 {
		t.GiveUp(s.sets, runsOf(v.NotStaged))
	}
	s.reship(v)
}

// reship brings back what was sent and is not staged: from its kept copy, or to be read again where the
// page was not written since the cut. Everything else that was kept is staged. s.mu is held.
func (s *shipper) reship(v *ship.Attachment) {
	var missing []track.Run
	var again []item
	for i, r := range v.Lost {
		if it, ok := s.kept[r.Seq]; ok && !v.Answered[i] {
			delete(s.kept, r.Seq)
			it.follow = 0
			again = append(again, it)
			continue
		}
		missing = append(missing, runsOf([]wire.Extent{{Offset: r.Offset, Length: r.Length}})...)
	}
	for _, it := range s.kept {
		it.buf.release()
	}
	clear(s.kept)
	s.again = append(again, s.again...)
	if len(missing) > 0 && !s.p.tracker.WantAgain(s.sets, missing) {
		s.core.Spoil()
	}
}

// forgetKept drops every copy: what they were for is to be read anew. s.mu is held.
func (s *shipper) forgetKept() {
	for _, it := range s.kept {
		it.buf.release()
	}
	clear(s.kept)
	for _, it := range s.again {
		it.buf.release()
	}
	s.again, s.refused = nil, nil
	s.full = false
}

// lost notes that the connection is gone. What was sent and not acknowledged is kept for the next one.
func (s *shipper) lost() {
	s.mu.Lock()
	s.session = nil
	s.dropChecksLocked()
	s.core.Lost(s.p.now())
	s.notifyLocked()
	s.mu.Unlock()
	s.poke()
}

// carried counts what went over a connection that is closed. In one step, so that the sum never goes back: who
// watches a counter would take that for a new process.
func (s *shipper) carried(conn Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.wire.Add(conn.Sent() + conn.Received())
	s.carrying = nil
}

// runsOf turns extents of whole records into runs of pages.
func runsOf(extents []wire.Extent) []track.Run {
	runs := make([]track.Run, 0, len(extents))
	for _, e := range extents {
		first := uint64(e.Offset) / blockdev.PageSize
		runs = append(runs, track.Run{First: first, Count: pagesOf(e.Offset+e.Length) - first})
	}
	return runs
}
