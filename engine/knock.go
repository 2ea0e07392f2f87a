package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// A primary dials, so a mirror that comes back would have to wait for the next try. It knocks instead: at the
// address from which its primary came last, and the port that the primary told (Door). A knock gives no right: the
// primary dials the address that a person gave it, and no other.

const (
	doorFile   = "door.json"      // in a mirror's folder
	knocks     = 12               // until the primary comes
	knockMost  = 30 * time.Second // between two of them
	knockEvery = time.Second      // what a primary hears of one mirror
)

// doorRecord is the file. Nothing rests on it: without it the primary comes when it tries next.
type doorRecord struct {
	Address string `json:"address"`
}

// routineDoor tells the mirror where this node listens, once it does.
func (s *shipper) routineDoor(session *shipSession) {
	if s.p.door == nil {
		return
	}
	if port := s.p.door(session.ctx); port != 0 {
		_ = session.conn.Send(&wire.Door{Port: port}) // the reader learns of a connection that is lost
	}
}

// takeDoor notes where the primary can be knocked at. It is the reader's, which waits for no disk.
func (s *mirrorSession) takeDoor(m *wire.Door) error {
	if s.door {
		return protocolError("a second Door")
	}
	s.door = true
	host, _, err := net.SplitHostPort(s.peer)
	if err != nil || s.m.steps != nil {
		return nil // over no network
	}
	addr := net.JoinHostPort(host, strconv.Itoa(int(m.Port)))
	s.m.post(func() { s.m.noteDoor(addr) })
	return nil
}

// noteDoor keeps the primary's address. In the owner.
func (m *mirror) noteDoor(addr string) {
	if m.readDoor() == addr {
		return
	}
	blob, err := json.Marshal(doorRecord{addr})
	if err == nil {
		err = writeDurably(filepath.Join(m.dir, doorFile), append(blob, '\n'))
	}
	if err != nil {
		m.log(fmt.Sprintf("the address of the primary is not kept: %v", err))
	}
}

// readDoor is the address that was kept; "": there is none.
func (m *mirror) readDoor() string {
	var r doorRecord
	blob, err := os.ReadFile(filepath.Join(m.dir, doorFile))
	if err == nil {
		err = json.Unmarshal(blob, &r)
	}
	if err == nil {
		_, _, err = net.SplitHostPort(r.Address)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			m.log(fmt.Sprintf("the address of the primary is lost, until it comes again: %v", err))
		}
		return ""
	}
	return r.Address
}

// routineKnock has the primary of a mirror know that it should dial: at the start, and whenever trust is not what it was,
// since that may be what was missing: then once, for a primary that is away for another reason comes by itself.
func (s *server) routineKnock(ctx context.Context, v *volume) {
	for times := knocks; ctx.Err() == nil; times = 1 {
		s.knockFor(ctx, v, times)
		select {
		case <-ctx.Done():
		case <-v.anew:
		}
	}
}

// knockFor knocks so many times, with growing pauses, or until the primary came: it dials by itself too.
func (s *server) knockFor(ctx context.Context, v *volume, times int) {
	m, ok := v.getLive().(*mirror)
	if !ok {
		return
	}
	addr := m.readDoor()
	pause := backoffFirst
	for range times {
		id, wanted := m.missesPrimary()
		if addr == "" || !wanted {
			return
		}
		err := s.knockAt(ctx, addr, v.name, id)
		if _, said := errors.AsType[*wire.RemoteError](err); said {
			s.log(fmt.Sprintf("volume %s: knocked at the primary, %s: %v; it comes by itself if it is the right one", v.name, addr, err))
			return // whoever is there does not know us, and will not in a minute
		}
		pause = min(2*pause, knockMost)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

// tryAnew has everybody who waits for another try have it now.
func (s *server) tryAnew() {
	for _, name := range s.names {
		v := s.volumes[name]
		if p, ok := v.getLive().(*primary); ok {
			for _, m := range p.shippers() {
				m.redialUnlessConnected()
			}
		}
		select {
		case v.anew <- struct{}{}:
		default: // a token is there
		}
	}
}

// missesPrimary tells whether no primary is here, and whose mirror this is.
func (m *mirror) missesPrimary() (id [16]byte, missing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := &m.view.facts
	return f.UUID, m.view.held && m.view.session == nil && !f.Paused && f.UUID != [16]byte{}
}

// knockAt knocks once.
func (s *server) knockAt(ctx context.Context, addr, volume string, id [16]byte) error {
	nc, peer, err := s.gate.dial(ctx, addr, volume, identity.AsPrimary)
	if err != nil {
		return err
	}
	conn := wire.NewConn(nc, s.gate.options(peer)) // its handshake limits all of this
	release := context.AfterFunc(ctx, func() { conn.Close(context.Cause(ctx)) })
	defer release()
	err = knock(conn, &wire.Hello{Node: s.node(), Name: hostName(), Software: software, Role: wire.RoleMirror, Volume: volume}, id)
	conn.Close(err)
	s.gate.narrow.learn(addr, conn.Remote(), conn.Segment(), err)
	return err
}

func knock(conn *wire.Conn, hello *wire.Hello, id [16]byte) error {
	if _, err := greet(conn, hello); err != nil {
		return err
	}
	if err := conn.Send(&wire.Knock{VolumeID: id}); err != nil {
		return err
	}
	m, err := conn.Next()
	if err != nil {
		return err
	}
	if bye, ok := m.(*wire.Bye); ok && bye.Code == wire.CodeDone {
		return nil
	}
	return unexpected(m, "Bye")
}

// hearKnock is the primary's side, behind the Hellos. Whatever is not known is answered in the same way.
func (s *server) hearKnock(conn *wire.Conn, hello *wire.Hello, v *volume) error {
	m, err := conn.Next()
	if err != nil {
		return err
	}
	k, ok := m.(*wire.Knock)
	if !ok {
		return unexpected(m, "Knock")
	}
	p, ok := v.getLive().(*primary)
	if !ok || !p.knock(hello.Node, k.VolumeID) {
		return errNoVolume(v.name)
	}
	if err := conn.Send(&wire.Bye{Code: wire.CodeDone}); err != nil {
		return err
	}
	_, err = conn.Next() // until the mirror has read it and closed
	if wire.Classify(err) == wire.ClassReset {
		err = nil
	}
	return err
}

// knock has the mirrors dialled that are of a node; false: there are none.
func (p *primary) knock(node wire.Hash, id [16]byte) (known bool) {
	f := p.facts.get()
	if node == (wire.Hash{}) || id != f.UUID {
		return false
	}
	for _, s := range p.shippers() {
		for _, m := range f.Mirrors {
			if m.Name == s.config.Name && m.Node == node {
				known = true
				s.hear()
			}
		}
	}
	return known
}

// hear takes a knock of the mirror, at most once a second.
func (s *shipper) hear() {
	s.mu.Lock()
	now := time.Now()
	heard := now.Sub(s.knocked) >= knockEvery
	if heard {
		s.knocked = now
	}
	s.mu.Unlock()
	if heard {
		s.p.log("mirror " + s.config.Name + " knocks, and is dialled")
		s.redialNow()
	}
}
