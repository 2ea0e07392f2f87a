package engine

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// retry says when a mirror is dialled again, and for how long. A connection that has lived proves that the way is
// good: the first loss is followed by another one at once. Where that is not so, pauses grow; they count from the
// beginning of the attempt before, so that one that hung for long is followed at once by one with a fresh chance.
type retry struct {
	pause   time.Duration // the last; 0: none
	awaited time.Time     // until then a peer is awaited that said it stops
	rtt     time.Duration // of the last session; 0: not known
}

const (
	// A path that comes back is used within five seconds: pauses stay below that, with an attempt of its own.
	retryMost = 3 * time.Second
	// What a person has to change does not change within seconds.
	retrySlow  = backoffMax
	stoppedTry = time.Second
	// An attempt towards a peer that was stopped: it may come back elsewhere under its name, so none waits long
	// for an address where nobody is any more. On a path on which that is no more than a few round trips, those.
	stoppedLimit = 3 * time.Second
	stoppedTrips = 6
)

// limit bounds an attempt's connecting.
func (r *retry) limit(now time.Time) time.Duration {
	if now.Before(r.awaited) {
		return min(max(stoppedLimit, stoppedTrips*r.rtt), wire.HandshakeTimeout)
	}
	return wire.HandshakeTimeout
}

// next is when the next attempt is due, behind one that began and has come to this.
func (r *retry) next(p parting, began, now time.Time) time.Time {
	if p.established {
		began = now
		if p.rtt > 0 {
			r.rtt = p.rtt
		}
	}
	if errors.Is(p.err, errRenewed) {
		return now
	}
	if remote, ok := errors.AsType[*wire.RemoteError](p.err); ok && remote.Code == wire.CodeStopped {
		r.pause, r.awaited = backoffFirst, now.Add(awaited)
		return began.Add(stoppedTry)
	}
	switch {
	case !p.brief():
		r.pause, r.awaited = 0, time.Time{}
		return now
	case now.Before(r.awaited):
		return began.Add(stoppedTry)
	}
	most := retryMost
	if lasting(p.err) {
		most = retrySlow
	}
	r.pause = min(max(2*r.pause, backoffFirst), most)
	return began.Add(r.pause/2 + rand.N(r.pause/2))
}

// lasting tells whether what kept a connection from coming about needs a person to change it.
func lasting(err error) bool {
	switch classOf(err) {
	case wire.ClassAuth, wire.ClassTLS, wire.ClassVersion, wire.ClassProtocol:
		return true
	}
	remote, ok := errors.AsType[*wire.RemoteError](err)
	return ok && remote.Code != wire.CodeBusy && classOf(err) == wire.ClassRefused
}
