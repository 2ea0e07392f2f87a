package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// A session goes on for weeks under keys, names and firewall rules that would not let it come about again. So
// beside each there is a probe every now and then, which finds that before the session falls.

// probeEvery is the time between two probes of a mirror, give or take a fifth: many mirrors are not probed in
// one moment.
const probeEvery = 5 * time.Minute

// ProbeStatus is the last probe beside the session that stands.
type ProbeStatus struct {
	OK    bool   `json:"ok"`
	Class string `json:"class,omitempty"`
	Error string `json:"error,omitempty"`
	Next  string `json:"next,omitempty"` // what a person can do
	At    string `json:"at"`             // RFC 3339
}

// probes is what a shipper knows of them; under its mu.
type probes struct {
	session *shipSession // beside which the last one was; another one proves more than it did
	last    *ProbeStatus
	failing bool
}

// routineProbe probes while there is a session. Without one the connection itself tells all.
func (s *shipper) routineProbe(ctx context.Context) {
	every := cmp.Or(s.p.probeEvery, probeEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every - every/5 + rand.N(2*every/5+1)):
		}
		s.mu.Lock()
		session := s.session
		s.mu.Unlock()
		if session == nil {
			continue
		}
		_, err := Probe(ctx, ProbeOptions{Target: s.config.Address, Volume: s.p.name, Identity: s.p.gate.id, segment: s.p.gate.narrow.segment(s.config.Address)})
		if ctx.Err() != nil {
			return
		}
		s.takeProbe(session, err)
	}
}

// takeProbe notes how a probe went, and logs a change. A mirror whose version has no probe answered as far as
// it can.
func (s *shipper) takeProbe(session *shipSession, err error) {
	if errors.Is(err, errNoProbe) {
		err = nil
	}
	status := &ProbeStatus{OK: err == nil, At: s.p.now().UTC().Format(time.RFC3339)}
	if told, ok := errors.AsType[*Error](err); ok {
		status.Class, status.Error, status.Next = string(classOf(err)), told.Err.Error(), told.Next
	}
	s.mu.Lock()
	stale := s.session != session // it was lost meanwhile: that is logged
	changed := s.probes.failing != (err != nil)
	if !stale {
		s.probes = probes{session: session, last: status, failing: err != nil}
	}
	s.mu.Unlock()
	switch {
	case stale || !changed:
	case err != nil:
		s.p.log(fmt.Sprintf("mirror %s: connected, but the next connection would fail: %s: %s; %s", s.config.Name, status.Class, status.Error, status.Next))
	default:
		s.p.log(fmt.Sprintf("mirror %s: the next connection would come about again", s.config.Name))
	}
}

// probedLocked is what the last probe said of the session that stands; nil: nothing yet, or there is none. s.mu
// is held.
func (s *shipper) probedLocked() *ProbeStatus {
	if s.session == nil || s.session != s.probes.session {
		return nil
	}
	return s.probes.last
}
