package engine

import (
	"context"

	"github.com/blkmirror/blkmirror/wire"
)

// SteppedSession is a session of a mirror in steps: a connection of its primary, from the answer to Attach on.
type SteppedSession struct {
	s       *mirrorSession
	checker checker
	next    *run // to be placed; the first of those that wait
	placing int  // runs that are being written
	offers  int  // that are being compared
}

// Handle is the reader's part: it takes a message of the primary. An error ends the session, and Ended says
// the same from then on; what comes later is left alone.
func (x *SteppedSession) Handle(m wire.Message) error {
	s := x.s
	s.prog.Wire.Store(s.before + s.conn.Sent() + s.conn.Received())
	s.take(m, s.handle)
	return x.Ended()
}

// Check checks what waits for it, one record or two.
func (x *SteppedSession) Check() (did bool) {
	if x.s.ctx.Err() != nil {
		return false
	}
	select {
	case a := <-x.s.checks:
		x.checker.check(x.s, a)
		return true
	default:
		return false
	}
}

// Place writes the next run in place, unless that has to wait for others that are being written. It asks the
// device for something.
func (x *SteppedSession) Place() (did bool) {
	s := x.s
	if s.ctx.Err() != nil || x.placing == mirrorWriters {
		return false
	}
	if x.next == nil {
		select {
		case x.next = <-s.direct:
		default:
			return false
		}
	}
	r := x.next
	if !s.placed.tryEnter(r.extent()) {
		return false
	}
	x.next = nil
	x.placing++
	err := s.place(s.ctx, r, make([]wire.Hash, 0, len(r.parts)))
	x.placing--
	if err != nil {
		s.cancel(err)
	}
	return true
}

// Offer compares the next offer with the device, which it asks for something.
func (x *SteppedSession) Offer() (did bool) {
	s := x.s
	if s.ctx.Err() != nil || x.offers == mirrorOffers {
		return false
	}
	var o *wire.Offer
	select {
	case o = <-s.offers:
	default:
		return false
	}
	x.offers++
	err := s.answerOffer(s.ctx, o)
	x.offers--
	if err != nil {
		s.cancel(err)
	}
	return true
}

// Out is what is to be sent next, with grants; nil: nothing. Whoever calls sends it, before the next call.
func (x *SteppedSession) Out() []wire.Message {
	if x.s.ctx.Err() != nil {
		return nil
	}
	return x.s.answers()
}

// Ended is why the session has to end; nil: it goes on.
func (x *SteppedSession) Ended() error { return context.Cause(x.s.ctx) }

// End ends it: its connection broke, say.
func (x *SteppedSession) End(cause error) { x.s.end(cause) }

// Busy says that something of it is under way: Lost has to wait.
func (x *SteppedSession) Busy() bool { return x.placing+x.offers > 0 }

// Lost is called when the session has ended and nothing of it runs any more. The primary is told why, as far as
// the connection still carries it, and the connection closed. It may wait.
func (x *SteppedSession) Lost() {
	s := x.s
	s.over(nil)
	err := s.part()
	s.conn.Close(err)
	s.parted(s.verdict(err))
}
