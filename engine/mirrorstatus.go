package engine

import (
	"context"
	"encoding/hex"
	"errors"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// mirrorView is what a status tells.
type mirrorView struct {
	held      bool // there is a role
	facts     journal.VolumeFacts
	err       *Error
	staged    int64
	session   *mirrorSession
	last      *DisconnectCause
	node      string
	address   string
	compared  int64
	comparing bool
	why       string
	doubts    int64
	shipped   int64 // of ended sessions
	wire      int64
	sessions  int64
	done      int64 // of these: ended by the primary without anything being wrong
}

// update changes the view.
func (m *mirror) update(do func(*mirrorView)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	do(&m.view)
}

// show tells facts that are durable, before anybody else learns of them.
func (m *mirror) show(f journal.VolumeFacts) {
	m.update(func(v *mirrorView) {
		v.held, v.facts = true, f
		v.doubts = int64(m.core.DoubtPages()) * blockdev.PageSize
	})
}

// publish tells what staging holds, and what is in doubt.
func (m *mirror) publish() {
	if m.store == nil {
		return
	}
	held, doubts := m.store.held(), int64(m.core.DoubtPages())*blockdev.PageSize
	m.update(func(v *mirrorView) { v.staged, v.doubts = held, doubts })
}

// cut is a primary's.
func (m *mirror) cut(context.Context, bool) (uint64, error) {
	return 0, &Error{Kind: KindState, Op: "cut", On: m.name, Err: errors.New("this node is its mirror"), Next: "take it at the primary"}
}

func (m *mirror) pause() error { return m.setPaused(true) }

// resume also tries a failed mirror again at once.
func (m *mirror) resume(overwrite string) error {
	if overwrite != "" {
		return &Error{Kind: KindState, Op: "resume", On: m.name, Err: errors.New("this node is its mirror"),
			Next: "say --overwrite-mirror at the primary"}
	}
	return m.setPaused(false)
}

func (m *mirror) setPaused(paused bool) error {
	var err error
	ok := m.call(func() {
		if m.store == nil && !paused && !m.final {
			m.tryOpen()
		}
		if m.store == nil || m.store.log == nil || m.broken != nil {
			err = m.unusable("pause")
			return
		}
		m.step(&replica.Pause{Paused: paused}, nil)
		if m.broken != nil {
			err = m.broken
		} else if paused && m.current != nil {
			m.current.end(&Error{Kind: KindState, Op: "mirror", On: m.name, Err: wire.ErrPaused, code: wire.CodePaused})
		}
		m.publish()
	})
	if !ok {
		return errMirrorStopped(m.name)
	}
	return err
}

// unusable says why nothing can be done with the mirror now.
func (m *mirror) unusable(op string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.view.err != nil:
		return m.view.err
	case m.broken != nil:
		return m.broken
	}
	return &Error{Kind: KindState, Op: op, On: m.name, Err: errors.New("no primary has attached yet"), Next: "attach one first"}
}

func errMirrorStopped(name string) error {
	return &Error{Kind: KindState, Op: "use mirror", On: name, Err: wire.ErrStopped, code: wire.CodeStopped, Next: "start the node again"}
}

// fill tells the mirror's state.
func (m *mirror) fill(st *VolumeStatus) {
	m.mu.Lock()
	v := m.view
	m.mu.Unlock()
	if v.err != nil {
		st.Role, st.State, st.Error, st.Next = "mirror", "failed", v.err.Error(), v.err.Next
	}
	if !v.held {
		if v.facts.UUID != [16]byte{} {
			m.fillFacts(st, &v)
		}
		return
	}
	m.fillFacts(st, &v)
	f := &v.facts
	switch {
	case v.err != nil:
		return
	case st.ReadOnly != nil:
		st.State, st.Error, st.Next = "read-only", st.ReadOnly.Reason, "`blkmirror repair "+m.name+"` compares and brings what differs"
	case f.Paused:
		st.State = "paused"
	case v.comparing:
		st.State, st.Error, st.Compared = "comparing", v.why, v.compared
	case f.Mirror.Inconsistent:
		st.State, st.Error = "inconsistent", "no cut is complete here yet"
	default:
		st.State, st.Error = "ok", ""
	}
}

func (m *mirror) fillFacts(st *VolumeStatus, v *mirrorView) {
	f := &v.facts
	st.Role, st.Mode = "mirror", "async"
	st.Size, st.BlockSize = f.Size, int(f.BlockSize)
	st.UUID, st.Generation = hex.EncodeToString(f.UUID[:]), hex.EncodeToString(f.Generation.ID[:])
	st.Epoch = f.Mirror.Committed
	st.ReadOnly = readOnlyCause(&f.Mirror.ReadOnly, f.Mirror.Quarantine, int64(max(f.BlockSize, 1)))
	st.Unproven = f.Mirror.Unproven || v.comparing || v.doubts > 0
	p := &MirrorStatus{Node: v.node, Address: v.address, State: "connecting", CommittedEpoch: f.Mirror.Committed,
		AppliedEpoch: f.Mirror.Applied, StagedBytes: v.staged, NeedsBytes: v.doubts, ShippedBytes: v.shipped, WireBytes: v.wire,
		LastDisconnect: v.last, Reconnects: max(0, v.sessions-1-v.done)}
	for _, h := range f.Mirror.Holes {
		p.Holes += h.Length
	}
	p.Mismatches.Mirror = m.mismatches.Load()
	st.IndexDropped = m.indexDropped.Load()
	if f.Paused {
		p.State = "paused"
	}
	if s := v.session; s != nil {
		s.fill(p, f)
	}
	st.Primary = p
}

// claimed tells that a primary has attached once: the device is its mirror's alone.
func (m *mirror) claimed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.view.held || m.view.err != nil
}
