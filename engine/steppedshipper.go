package engine

import (
	"context"

	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/wire"
)

// SteppedShipper is what a primary in steps does for one mirror, over any number of connections:
//
//	Attach ─ the mirror's answer ─> Begin ─ Handle, Read, Offer ─ Ended or the line broke ─> End ─> Lost
//
// and Drive, with a connection or without one. Drive may wait for a Read to end, a Read for another one, for a
// client's request or for room in the window; Read and Offer ask the device. All others are over at once.
type SteppedShipper struct {
	s       *shipper
	open    *wire.Attach // the last that was made
	session *shipSession // nil: there is none
	packer  *packing
}

// Name is what the mirror is called in the configuration.
func (s *SteppedShipper) Name() string { return s.s.config.Name }

// Drive does what the core says, one thing, and tells what that was; ship.Wait: nothing. It is to be asked again
// and again, at least every quarter of a second. One call at a time.
func (s *SteppedShipper) Drive() ship.Kind { return s.s.drive().Kind }

// Attach is what a new connection begins with, behind the Hellos; nil where none is to be made before a person
// says so. There is no session.
func (s *SteppedShipper) Attach() *wire.Attach {
	if !s.s.mayConnect() {
		return nil
	}
	s.open = s.s.attachMessage()
	return s.open
}

// Begin takes the answer to the last Attach: with an Attached a session begins. Where it returns an error there
// is none, and the connection is closed.
func (s *SteppedShipper) Begin(conn Conn, peer *wire.Hello, answer wire.Message) error {
	a, err := s.s.accept(s.open, answer)
	if err != nil {
		conn.Close(err)
		s.s.disconnected(parting{err: err})
		return err
	}
	conn.Established()
	session := newShipSession(context.Background(), conn, a)
	s.session, s.packer = session, newPacking(session)
	err = s.s.attached(session, peer, a)
	if err == nil {
		err = s.s.greetMirror(session)
	}
	if err != nil {
		s.Lost(err)
		return err
	}
	s.s.notify()
	return nil
}

// Handle takes a message of the mirror. With an error, which Ended tells as well, the session has to end.
func (s *SteppedShipper) Handle(m wire.Message) error {
	s.session.take(m, s.s.handle)
	return s.Ended()
}

// Read ships a batch. did: there was something to ship. Several may be under way.
func (s *SteppedShipper) Read() (did bool) {
	if !s.Readable() {
		return false
	}
	s.s.read(s.session, s.packer)
	return true
}

// Readable tells whether there is something for Read.
func (s *SteppedShipper) Readable() bool {
	if s.session == nil || s.session.ctx.Err() != nil {
		return false
	}
	s.s.mu.Lock()
	_, ok := s.s.core.MayShip()
	again := len(s.s.again) > 0
	s.s.mu.Unlock()
	return ok && (again || s.s.p.tracker.Readable(s.s.sets))
}

// Offer offers pages that are in doubt. did: there were some to offer. Several may be under way.
func (s *SteppedShipper) Offer() (did bool) {
	session := s.session
	if s.Offers() == 0 {
		return false
	}
	if err := s.s.offer(session, <-session.work); err != nil {
		session.end(err)
	}
	return true
}

// Offers is how much there is for Offer.
func (s *SteppedShipper) Offers() int {
	if s.session == nil || s.session.ctx.Err() != nil {
		return 0
	}
	return len(s.session.work)
}

// Ended is why the session has to end; nil: it goes on, or there is none.
func (s *SteppedShipper) Ended() error {
	if s.session == nil {
		return nil
	}
	return context.Cause(s.session.ctx)
}

// End has the session end, so that whatever is under way of it comes to its end. The first cause counts;
// context.Canceled is our own stop.
func (s *SteppedShipper) End(cause error) {
	if s.session != nil {
		s.session.end(cause)
		s.session.window.Close(context.Cause(s.session.ctx))
	}
}

// Lost is for when nothing of the session is under way any more: its last words are sent, the connection is
// closed, and what was not acknowledged waits for the next one. Without a session it notes why a connection
// could not be had.
func (s *SteppedShipper) Lost(cause error) {
	session := s.session
	if session == nil {
		s.s.disconnected(parting{err: cause})
		return
	}
	s.End(cause)
	err := session.part()
	session.conn.Close(err)
	s.session = nil
	s.s.lost()
	s.s.carried(session.conn)
	s.s.disconnected(partingOf(session.conn, true, session.verdict(err)))
}

// State is that of the core. Its Epoch grows with every cut that is taken for this mirror, in the turn of Drive
// in which the cut is.
func (s *SteppedShipper) State() ship.State {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	return s.s.core.State()
}

// Unanswered is how many records the mirror has not answered.
func (s *SteppedShipper) Unanswered() int {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	return s.s.core.Unanswered()
}

// ReadOnly tells that the mirror is read-only and has said why.
func (s *SteppedShipper) ReadOnly() bool {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	return s.s.mirrorCause != nil
}

func (s *SteppedShipper) Counts() track.Counts { return s.s.p.tracker.Counts(s.s.sets) }
func (s *SteppedShipper) Status() MirrorStatus { return s.s.status() }

// CaptureUsed tells how many bytes old contents take.
func (s *SteppedShipper) CaptureUsed() (memory, spool int64) { return s.s.capture.Used() }
