package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// volume is one named device that is offered, and the sessions on it.
type volume struct {
	name, path string
	config     VolumeConfig
	inquiry    inquiry
	anew       chan struct{} // one token: trust is not what it was

	mu       sync.Mutex
	sessions []*liveSession
	free     chan struct{} // closed when a session leaves; nil while nobody waits
	size     int64
	state    string
	err      string
	live     liveVolume // nil: no role, one-shot syncs only
}

// liveSession is a session under way.
type liveSession struct {
	peer, role  string
	incarnation uint64
	start       time.Time
	cancel      context.CancelCauseFunc
	prog        Progress
}

func (l *liveSession) summary(done bool, err error) string {
	how := "interrupted"
	switch {
	case done:
		how = "complete"
	case errors.Is(err, errRenewed):
		how = "connection replaced"
	}
	p := &l.prog
	return fmt.Sprintf("%s as %s after %.1f s: shipped %d, skipped %d, zero %d, wire %d bytes, %d blocks retried", how, l.role,
		time.Since(l.start).Seconds(), p.Shipped.Load(), p.Skipped.Load(), p.Zero.Load(), p.Wire.Load(), p.RetriedBlocks.Load())
}

// enter admits a session: one target alone, or any number of sources. A former session of the same
// process of the peer is replaced; for any other it waits a little, since a connection that the peer has
// lost may not be over here yet.
func (v *volume) enter(ctx context.Context, l *liveSession) (leave func(), err error) {
	timeout := time.NewTimer(slotTimeout)
	defer timeout.Stop()
	for {
		v.mu.Lock()
		former := v.conflict(l)
		if former == nil {
			v.sessions = append(v.sessions, l)
			v.mu.Unlock()
			return func() { v.leave(l) }, nil
		}
		if former.cancel != nil && former.incarnation == l.incarnation && l.role == "target" {
			former.cancel(&wire.RemoteError{Code: wire.CodeBusy, Text: "replaced by a new connection of the same session"})
		}
		if v.free == nil {
			v.free = make(chan struct{})
		}
		free := v.free
		v.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timeout.C:
			return nil, &Error{Kind: KindState, Op: "open volume", On: v.name, code: wire.CodeBusy,
				Err:  fmt.Errorf("a sync with %s is under way, this volume is its %s", former.peer, former.role),
				Next: nextByCode[wire.CodeBusy]}
		}
	}
}

// conflict returns a session that must end before l may begin. v.mu is held.
func (v *volume) conflict(l *liveSession) *liveSession {
	for _, other := range v.sessions {
		if l.role == "target" || other.role == "target" {
			return other
		}
	}
	return nil
}

func (v *volume) leave(l *liveSession) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, other := range v.sessions {
		if other == l {
			v.sessions = append(v.sessions[:i:i], v.sessions[i+1:]...)
			break
		}
	}
	if v.free != nil {
		close(v.free)
		v.free = nil
	}
}

// measure looks at the device. It takes the shared lock of an image for a moment, so it must not run
// beside sessions.
func (v *volume) measure() {
	size, state, text := int64(0), "ok", ""
	dev, err := blockdev.Open(v.path, blockdev.Options{})
	switch {
	case err == nil:
		size = dev.Info().Size
		dev.Close() // it was only read
	case errors.Is(err, os.ErrNotExist):
		state, text = "missing", "does not exist yet: the first primary or sync that comes creates it"
	case errors.Is(err, blockdev.ErrBusy):
		text = err.Error()
	default:
		state, text = "failed", err.Error()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.size, v.state, v.err = size, state, text
}

// wanted notes the size of a sync that begins: a target that is missing is made with it.
func (v *volume) wanted(size int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.state == "missing" {
		v.size, v.state, v.err = size, "ok", ""
	}
}

// proven notes that a session on the volume was completed, whatever it looked like at the start.
func (v *volume) proven() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state, v.err = "ok", ""
}

func (v *volume) status() VolumeStatus {
	st, live := v.ownStatus()
	if live != nil {
		live.fill(&st) // it has locks of its own
	}
	return st
}

// ownStatus is what is known of the device and of one-shot syncs, beside the live volume, if it is one.
func (v *volume) ownStatus() (VolumeStatus, liveVolume) {
	v.mu.Lock()
	defer v.mu.Unlock()
	st := VolumeStatus{Name: v.name, Device: v.path, Size: v.size, Role: "idle", State: v.state, Error: v.err,
		Sessions: []SessionStatus{}}
	for _, l := range v.sessions {
		st.Role = l.role
		p := &l.prog
		st.Sessions = append(st.Sessions, SessionStatus{
			Peer: l.peer, Role: l.role, Seconds: time.Since(l.start).Seconds(),
			ScannedBytes: p.Scanned.Load(), ShippedBytes: p.Shipped.Load(), SkippedBytes: p.Skipped.Load(),
			ZeroBytes: p.Zero.Load(), WireBytes: p.Wire.Load(), RetriedBlocks: p.RetriedBlocks.Load(),
		})
	}
	return st, v.live
}
