package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// session runs a connection of a primary, behind the Hellos, until it has ended and nothing of it is left.
func (m *mirror) session(ctx context.Context, conn *wire.Conn, hello *wire.Hello, pass *pass) error {
	refused := func(err error) error {
		refuse(conn, err)
		m.disconnects.add(Disconnect{Role: roleAcceptor, Volume: m.name, Peer: pass.name, Address: pass.addr}, partingOf(conn, false, err))
		return err
	}
	attach, err := readAttach(ctx, conn, m.name)
	if err != nil {
		return refused(err)
	}
	pass.attached(attach.Incarnation)
	conn.Established() // opening the device may take longer than a handshake
	if answer := m.introduction(attach); answer != nil {
		return introduce(conn, answer)
	}
	s, err := m.admit(ctx, conn, hello, attach, pass)
	if err != nil {
		return refused(err)
	}
	err = s.run(s.handle, s.work)
	s.parted(err)
	return err
}

// admit begins a session, or says why there is none.
func (m *mirror) admit(ctx context.Context, conn Conn, hello *wire.Hello, attach *wire.Attach, pass *pass) (*mirrorSession, error) {
	s := m.newSession(ctx, conn, hello, attach, pass)
	err := m.enter(s)
	if err == nil {
		err = s.attach(attach, hello)
	}
	if err != nil {
		m.leave(s)
		s.cancel(nil)
		return nil, err
	}
	pass.sit("")
	m.log(fmt.Sprintf("%s: the primary %s is here", s.peer, s.name))
	return s, nil
}

// parted tells why a session has ended.
func (s *mirrorSession) parted(err error) {
	m := s.m
	if err == nil {
		m.log(fmt.Sprintf("%s: the primary %s is done", s.peer, s.name))
		m.update(func(v *mirrorView) { v.done++ })
		return
	}
	p := partingOf(s.conn, true, err)
	p.age = max(p.age, m.now().Sub(s.start))
	m.update(func(v *mirrorView) {
		v.last = &DisconnectCause{Class: string(classOf(p.err)), Error: p.err.Error(), At: m.now().UTC().Format(time.RFC3339), Next: nextStep(p.err)}
	})
	m.disconnects.add(Disconnect{Role: "mirror", Volume: m.name, Peer: s.name, Address: s.peer}, p)
}

// readAttach waits for Attach, which follows the Hellos at once.
func readAttach(ctx context.Context, conn *wire.Conn, volume string) (*wire.Attach, error) {
	waiting, stop := context.WithTimeoutCause(ctx, wire.HandshakeTimeout, fmt.Errorf("%w: no Attach in %v", wire.ErrSilent, wire.HandshakeTimeout))
	defer stop()
	release := context.AfterFunc(waiting, func() { conn.Close(context.Cause(waiting)) })
	defer release()
	msg, err := conn.Next()
	if err != nil {
		return nil, err
	}
	a, ok := msg.(*wire.Attach)
	if !ok {
		return nil, unexpected(msg, "Attach")
	}
	if a.Volume != volume {
		return nil, protocolError("Attach of volume %q behind a Hello for %q", a.Volume, volume)
	}
	return a, nil
}

func (m *mirror) newSession(ctx context.Context, conn Conn, hello *wire.Hello, a *wire.Attach, pass *pass) *mirrorSession {
	s := &mirrorSession{m: m, peer: pass.addr, node: hello.Name, name: cmp.Or(pass.name, hello.Name), incarnation: a.Incarnation, connection: a.Connection, start: m.now(),
		geometry: geometry{size: a.Size, blockSize: int64(a.BlockSize)},
		pool:     blockdev.NewPool(mirrorMemory), meter: wire.NewMeter(uint64(m.window)),
		scratch: blockdev.NewPool((mirrorWriters + mirrorOffers) * m.chunk),
		out:     newOutbox(),
		ordered: make(chan *arrival, m.open), checks: make(chan *arrival, m.open),
		direct: make(chan *run, m.open), offers: make(chan *wire.Offer, maxOffers+1),
		fetches: newFetching(),
	}
	s.placed.init()
	s.link = newLink(ctx, conn, &s.prog)
	s.doneByPeer = true
	return s
}

// enter admits one session at a time. A newer connection of the same process of the primary replaces an older
// one; anybody else waits a little, since a connection that was lost may not be over here yet.
func (m *mirror) enter(s *mirrorSession) error {
	if m.steps != nil {
		return m.steps.enter(s)
	}
	timeout := time.NewTimer(slotTimeout)
	defer timeout.Stop()
	for {
		in, free, err := m.tryEnter(s)
		if in || err != nil {
			return err
		}
		select {
		case <-free:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-timeout.C:
			return m.occupied()
		}
	}
}

// tryEnter admits a session, or says why it never will be; or what to wait for before the next try.
func (m *mirror) tryEnter(s *mirrorSession) (in bool, free <-chan struct{}, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	former := m.admitted
	if former == nil {
		m.admitted = s
		return true, nil, nil
	}
	if former.incarnation == s.incarnation {
		replaced := &Error{Kind: KindState, Op: "mirror", On: m.name, Err: wire.ErrReplaced, code: wire.CodeReplaced}
		if former.connection >= s.connection {
			return false, nil, replaced
		}
		former.cancel(replaced)
	}
	if m.free == nil {
		m.free = make(chan struct{})
	}
	return false, m.free, nil
}

// occupied says that the session before has not ended in time.
func (m *mirror) occupied() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	by := "somebody"
	if m.admitted != nil {
		by = m.admitted.peer
	}
	return &Error{Kind: KindState, Op: "mirror", On: m.name, code: wire.CodeBusy, Next: nextByCode[wire.CodeBusy],
		Err: fmt.Errorf("the session with %s is not over yet", by)}
}

func (m *mirror) leave(s *mirrorSession) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.admitted != s {
		return
	}
	m.admitted = nil
	if m.free != nil {
		close(m.free)
		m.free = nil
	}
}

// attach has the owner take the primary up, and leaves its answer in the outbox.
func (s *mirrorSession) attach(a *wire.Attach, hello *wire.Hello) error {
	var err error
	if !s.m.call(func() { err = s.m.attach(s, a, hello) }) {
		return errMirrorStopped(s.m.name)
	}
	return err
}

// attach is the owner's part of it.
func (m *mirror) attach(s *mirrorSession, a *wire.Attach, hello *wire.Hello) error {
	if m.stopping {
		return errMirrorStopped(m.name)
	}
	if m.store == nil || m.broken != nil {
		m.mu.Lock()
		failed := m.view.err
		m.mu.Unlock()
		if failed != nil || m.broken != nil {
			return &Error{Kind: KindDevice, Op: "mirror", On: m.name, code: wire.CodeDevice, Err: fmt.Errorf("it has failed: %w", errors.Join(asError(failed), m.broken)),
				Next: "see the mirror's status"}
		}
	}
	core := m.core
	if m.store == nil {
		core = replica.New(journal.VolumeFacts{}, nil)
	}
	if no := core.Admit(a); no != nil {
		return &Error{Kind: KindState, Op: "mirror", On: m.name, Err: no, Next: no.Next, code: no.Code}
	}
	if err := m.refuseSame(a); err != nil {
		return err
	}
	if m.store == nil {
		store, err := m.createStore(a)
		if err != nil {
			return err
		}
		facts := journal.VolumeFacts{Size: a.Size, BlockSize: a.BlockSize, Role: journal.RoleMirror}
		if err := store.begin(&facts); err != nil {
			store.close()
			return err
		}
		m.adoptStore(store, openedState{facts: facts})
	}
	if own := m.store.dev.Info().Size; own < a.Size {
		return &Error{Kind: KindState, Op: "mirror", On: m.config.Path, code: wire.CodeSmaller,
			Err: fmt.Errorf("it has %d bytes, the volume has %d", own, a.Size), Next: nextByCode[wire.CodeSmaller]}
	}
	return m.begin(s, a, hello)
}

func asError(e *Error) error {
	if e == nil {
		return nil
	}
	return e
}

// begin makes s the session.
func (m *mirror) begin(s *mirrorSession, a *wire.Attach, hello *wire.Hello) error {
	fresh, err := m.store.fresh(a.Size)
	if err != nil {
		return deviceError("map mirror", m.config.Path, err)
	}
	if m.store.geometry != s.geometry { // another volume replaces the one that was here
		if m.store.busy > 0 {
			return &Error{Kind: KindState, Op: "mirror", On: m.name, Err: errors.New("it is still being compared"),
				code: wire.CodeBusy, Next: "try again later"}
		}
		m.store.geometry, m.store.index.geometry, m.store.appliers = s.geometry, s.geometry, nil
	}
	m.current, s.store = s, m.store
	m.measure()
	m.step(&replica.Attach{Message: a, Node: hello.Node, Fresh: fresh}, nil)
	if m.broken != nil {
		m.current = nil
		return m.broken
	}
	m.publish()
	m.update(func(v *mirrorView) {
		v.session, v.node, v.address = s, s.node, s.peer
		v.sessions++
	})
	return nil
}

// refuseSame refuses a device that consists of the same bytes as the primary's.
func (m *mirror) refuseSame(a *wire.Attach) error {
	if m.identities == nil {
		return nil
	}
	p := targetParams{path: m.config.Path}
	return p.refuseSame(&wire.Open{Devices: a.Devices})
}

// lost is called when nothing of s is under way any more.
func (m *mirror) lost(s *mirrorSession) {
	if m.current != s {
		return
	}
	s.waiting = nil
	m.step(&replica.Lost{}, nil)
	m.current = nil
	m.publish()
	m.update(func(v *mirrorView) {
		v.session = nil
		v.shipped += s.prog.Shipped.Load()
		v.wire += s.prog.Wire.Load()
	})
}

// fill tells how the session goes.
func (s *mirrorSession) fill(p *MirrorStatus, f *journal.VolumeFacts) {
	p.State = "connected"
	switch {
	case f.Mirror.Inconsistent && f.Mirror.InPlace:
		p.State = "bulk"
	case f.Mirror.Inconsistent:
		p.State = "reconciling"
	}
	p.RTTMillis = float64(s.conn.RTT().Microseconds()) / 1000
	p.ShippedBytes += s.prog.Shipped.Load()
	p.WireBytes += s.prog.Wire.Load()
	p.OfferedBytes += s.offered.Load()
	p.RetriedBlocks += s.prog.RetriedBlocks.Load()
}
