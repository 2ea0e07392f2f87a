package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// errands are what a person at a mirror's node wants of this primary: a verify or a repair of that mirror (Ask,
// docs/FAILSAFE.md). A mirror has one at a time. routineErrands carries them out; the link's reader only notes what the
// mirror says.
type errands struct {
	wake chan struct{} // one token: there is something to look at

	mu   sync.Mutex
	last *errand // that is wanted, under way or over; nil: none
}

// errand is one of them.
type errand struct {
	ask wire.Ask

	// Under errands.mu.
	session  *shipSession // with which it was said last
	begun    bool
	wanted   time.Time     // when it was last known that somebody waits for it
	progress CheckProgress // the newest
	ended    *wire.Ended
	due      bool // there is something to tell
}

// errandKept is how long a job goes on, and its end is kept, for a mirror whose connection was lost.
const errandKept = 2 * time.Minute

var errNobodyWaits = errors.New("nobody at the mirror's node waits for it any more")

// takeAsk notes what a mirror wants, in the link's reader.
func (s *shipper) takeAsk(session *shipSession, m *wire.Ask) error {
	x := &s.errands
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.last
	known := e != nil && e.ask.ID == m.ID
	switch {
	case m.Job == wire.JobEnd && known:
		x.last = nil
	case m.Job == wire.JobEnd: // it has come to its end meanwhile, and was forgotten
	case !known:
		x.last = &errand{ask: *m, session: session, wanted: time.Now(), due: true}
	case e.ask != *m:
		return protocolError("an Ask for something else, with the id of one before")
	default:
		e.session, e.wanted, e.due = session, time.Now(), true
	}
	select {
	case x.wake <- struct{}{}:
	default:
	}
	return nil
}

// next is the errand that is to be begun; nil: there is none.
func (x *errands) next() *errand {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.last == nil || x.last.begun {
		return nil
	}
	x.last.begun = true
	return x.last
}

// look tells whether an errand is still wanted, and what is to be told of it with which session.
func (x *errands) look(e *errand) (wanted bool, session *shipSession, words []wire.Message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	here := e.session.ctx.Err() == nil
	if here && e.ended == nil {
		e.wanted = time.Now()
	}
	if x.last == e && time.Since(e.wanted) > errandKept {
		x.last = nil
	}
	if x.last != e {
		return false, nil, nil
	}
	if here && e.due {
		e.due = false
		words = append(words, &wire.Told{ID: e.ask.ID, Done: e.progress.Done, Total: e.progress.Total, Mirror: wire.CleanText(e.progress.Mirror)})
		if e.ended != nil {
			words = append(words, e.ended.Frames()...)
		}
	}
	return true, e.session, words
}

// note keeps the newest progress. It is told at the next tick.
func (x *errands) note(e *errand, p CheckProgress) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e.due = e.due || e.progress != p
	e.progress = p
}

// routineErrands carries out what the mirror's node asks for, one after the other.
func (s *shipper) routineErrands(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.errands.wake:
		}
		for e := s.errands.next(); e != nil && ctx.Err() == nil; e = s.errands.next() {
			s.carryOutErrand(ctx, e)
		}
	}
}

// carryOutErrand does one, tells how far it is, and what it came to as often as that is asked for. It returns when nobody
// wants it any more and nothing of it is under way.
func (s *shipper) carryOutErrand(ctx context.Context, e *errand) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan *wire.Ended, 1)
	go func() { done <- s.errand(ctx, e) }()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for running := true; ; {
		wanted, session, words := s.errands.look(e)
		if !wanted {
			cancel(errNobodyWaits)
		}
		if !running && ctx.Err() != nil {
			return
		}
		for _, m := range words { // one by one: what is urgent goes between
			if err := session.conn.Send(m); err != nil {
				break // the mirror says its Ask again with the next session
			}
		}
		var over <-chan struct{}
		if !running {
			over = ctx.Done()
		}
		select {
		case ended := <-done:
			running = false
			if ended == nil {
				return
			}
			s.errands.mu.Lock()
			e.ended, e.due, e.wanted = ended, true, time.Now()
			s.errands.mu.Unlock()
		case <-s.errands.wake:
		case <-tick.C:
		case <-over:
		}
	}
}

// errand does the job that a person could have said here. nil: it was cut off, and the mirror is not told: either it does
// not want to know, or it asks this primary's next process.
func (s *shipper) errand(ctx context.Context, e *errand) *wire.Ended {
	m, a := &wire.Ended{ID: e.ask.ID}, &e.ask
	note := func(p CheckProgress) { s.errands.note(e, p) }
	note(CheckProgress{Mirror: s.config.Name})
	var err error
	switch {
	case a.Mirror != "" && a.Mirror != s.config.Name:
		err = &Error{Kind: KindUsage, Op: jobNames[a.Job], On: s.p.name, Err: fmt.Errorf("this node is mirror %q to its primary, not %q", s.config.Name, a.Mirror),
			Next: "leave --mirror away, or name the other one at the primary"}
	case a.Job == wire.JobVerify:
		var results []VerifyResult
		results, err = s.p.verify(ctx, VerifyOptions{Mirror: s.config.Name, Rate: a.Rate}, note)
		for i := range results {
			results[i].put(m)
		}
	default:
		var results []RepairResult
		o := RepairOptions{Mirror: s.config.Name, All: a.Flags&wire.AskAll != 0, DryRun: a.Flags&wire.AskDryRun != 0, From: fromNames[a.From]}
		results, err = s.p.repair(ctx, o, note)
		for i := range results {
			results[i].put(m)
		}
	}
	if ctx.Err() != nil || errors.Is(err, errDaemonStops) || errors.Is(err, wire.ErrStopped) {
		return nil
	}
	putError(m, bounded(m, err))
	return m
}

// jobNames and fromNames are what a person says.
var (
	jobNames  = map[wire.Job]string{wire.JobVerify: "verify", wire.JobRepair: "repair"}
	fromNames = [...]string{wire.FromNobody: "", wire.FromPrimary: "primary", wire.FromMirror: "mirror"}
)
