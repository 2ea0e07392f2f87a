package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// Verify and repair at the mirror's node (docs/FAILSAFE.md): the primary is asked to do them, over whatever session there
// is, until it has said what they came to. shiperrand.go is the other side.

// request is a job that a person here wants of the primary.
type request struct {
	ask   *wire.Ask
	tell  func(CheckProgress)
	ended chan *wire.Ended // has room for it
	heard atomic.Bool      // the primary has taken it
}

// asking is what a session knows of it.
type asking struct {
	mu    sync.Mutex
	asked bool        // something was, ever
	now   *request    // nil: nothing any more
	part  *wire.Ended // whose frames are not all there
}

// verify has the primary compare this mirror with what it has.
func (m *mirror) verify(ctx context.Context, o VerifyOptions, tell func(CheckProgress)) ([]VerifyResult, error) {
	ended, err := m.askPrimary(ctx, &wire.Ask{Job: wire.JobVerify, Rate: o.Rate, Mirror: o.Mirror}, tell)
	if err != nil {
		return nil, err
	}
	var results []VerifyResult
	if ended.Flags&wire.EndedResult != 0 {
		results = append(results, verifyResultOf(m.name, ended))
	}
	return results, errorTold(ended)
}

// repair has the primary repair this mirror, or with From "mirror" take what is rotten there from here.
func (m *mirror) repair(ctx context.Context, o RepairOptions, tell func(CheckProgress)) ([]RepairResult, error) {
	ask := &wire.Ask{Job: wire.JobRepair, From: wire.AskFrom(slices.Index(fromNames[:], o.From)), Mirror: o.Mirror}
	if o.All {
		ask.Flags |= wire.AskAll
	}
	if o.DryRun {
		ask.Flags |= wire.AskDryRun
	}
	ended, err := m.askPrimary(ctx, ask, tell)
	if err != nil {
		return nil, err
	}
	var results []RepairResult
	if ended.Flags&wire.EndedResult != 0 {
		results = append(results, repairResultOf(m.name, ended))
	}
	return results, errorTold(ended)
}

// askPrimary asks with each session until one brings the end.
func (m *mirror) askPrimary(ctx context.Context, ask *wire.Ask, tell func(CheckProgress)) (*wire.Ended, error) {
	op := jobNames[ask.Job]
	if wire.CleanText(ask.Mirror) != ask.Mirror {
		return nil, &Error{Kind: KindUsage, Op: op, On: m.name, Err: errors.New("no mirror has such a name"), Next: "leave --mirror away: this node is the mirror"}
	}
	ctx, done, err := m.jobs.begin(ctx, m.name, op)
	if err != nil {
		return nil, err
	}
	defer done()
	rand.Read(ask.ID[:])
	r := &request{ask: ask, tell: tell, ended: make(chan *wire.Ended, 1)}
	for {
		s, err := m.awaitPrimary(ctx, op)
		if err != nil {
			return nil, err
		}
		ended := s.askFor(ctx, r)
		remote, ok := errors.AsType[*wire.RemoteError](context.Cause(s.ctx))
		switch {
		case ended != nil:
			return ended, nil
		case ok && remote.Code == wire.CodeProtocol && !r.heard.Load():
			return nil, &Error{Kind: KindState, Op: op, On: m.name, Err: fmt.Errorf("its primary does not know how to be asked: %w", remote),
				Next: "run it at the primary, or the same version on both sides"}
		}
	}
}

// awaitPrimary returns a session as soon as there is one. A primary that comes and goes is waited for; where a person has
// to do something first, that is told.
func (m *mirror) awaitPrimary(ctx context.Context, op string) (*mirrorSession, error) {
	tick := time.NewTicker(awakeEvery)
	defer tick.Stop()
	for {
		if ctx.Err() != nil {
			return nil, &Error{Kind: KindNetwork, Op: op, On: m.name, Err: fmt.Errorf("interrupted: %w", context.Cause(ctx)),
				Next: "run it again: it goes on with what is left"}
		}
		m.mu.Lock()
		v := m.view
		m.mu.Unlock()
		switch {
		case v.session != nil && v.session.ctx.Err() == nil:
			return v.session, nil
		case v.err != nil:
			return nil, v.err
		case !v.held:
			return nil, &Error{Kind: KindState, Op: op, On: m.name, Err: errors.New("no primary has attached yet"), Next: "attach one first"}
		case v.facts.Paused:
			return nil, &Error{Kind: KindState, Op: op, On: m.name, Err: wire.ErrPaused, Next: "say `blkmirror resume " + m.name + "` first"}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// askFor asks for a job and waits for its end; nil: the session ended before, or nobody wants it any more. Then the primary
// is told so, as far as the session still carries it.
func (s *mirrorSession) askFor(ctx context.Context, r *request) *wire.Ended {
	s.asking.begin(r)
	defer s.asking.end()
	s.say(r.ask)
	select {
	case ended := <-r.ended:
		return ended
	case <-s.ctx.Done():
	case <-ctx.Done():
		s.say(&wire.Ask{ID: r.ask.ID, Job: wire.JobEnd})
	}
	select {
	case ended := <-r.ended: // at the last moment
		return ended
	default:
		return nil
	}
}

// say sends what is no answer. The owner does it, so that it is behind Attached and what belongs to that.
func (s *mirrorSession) say(msg wire.Message) {
	s.m.post(func() {
		if s.m.current == s {
			s.send(msg)
		}
	})
}

func (a *asking) begin(r *request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked, a.now = true, r
}

func (a *asking) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now, a.part = nil, nil
}

// wanted is the request that an answer is for; nil: nobody waits for it any more. a.mu is held.
func (a *asking) wanted(id [16]byte) (*request, error) {
	switch {
	case !a.asked:
		return nil, protocolError("an answer to an Ask where none was said")
	case a.now == nil || a.now.ask.ID != id:
		return nil, nil
	}
	a.now.heard.Store(true)
	return a.now, nil
}

// takeTold and takeEnded take answers, in the link's reader.
func (s *mirrorSession) takeTold(m *wire.Told) error {
	a := &s.asking
	a.mu.Lock()
	defer a.mu.Unlock()
	r, err := a.wanted(m.ID)
	if r != nil {
		r.tell(CheckProgress{Mirror: m.Mirror, Done: m.Done, Total: m.Total})
	}
	return err
}

func (s *mirrorSession) takeEnded(m *wire.Ended) error {
	for _, list := range [][]wire.Extent{m.Differ, m.Rot} {
		if i := slices.IndexFunc(list, func(e wire.Extent) bool { return e.Offset > s.size-e.Length }); i >= 0 {
			return protocolError("Ended with %d+%d of a volume of %d", list[i].Offset, list[i].Length, s.size)
		}
	}
	a := &s.asking
	a.mu.Lock()
	defer a.mu.Unlock()
	r, err := a.wanted(m.ID)
	if r == nil {
		return err
	}
	if a.part == nil {
		a.part = m
	} else if err := a.part.Join(m); err != nil {
		return err
	}
	if a.part.Flags&wire.EndedMore == 0 {
		r.ended <- a.part // has room: it is the first
		a.now, a.part = nil, nil
	}
	return nil
}
