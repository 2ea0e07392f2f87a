package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// greeted dials a node as somebody and gets past the Hellos.
func greeted(t *testing.T, addr string, h *wire.Hello) (*wire.Conn, error) {
	t.Helper()
	nc, err := wire.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	c := wire.NewConn(nc, wire.ConnOptions{})
	t.Cleanup(func() { c.Close(nil) })
	_, err = greet(c, h)
	return c, err
}

// A mirror keeps the address of its primary, and its knock is heard. Whoever is not a mirror of the volume is
// refused, with one text whatever it was that is not known.
func TestKnock(t *testing.T) {
	p := newLivePair(t, 1, nil)
	p.settle()
	m := p.mirrors[0]
	door := filepath.Join(m.state, "volumes", "v", doorFile)
	eventually(t, "the mirror keeps the address of its primary", func() bool {
		blob, err := os.ReadFile(door)
		return err == nil && strings.Contains(string(blob), `"`+p.primary.listen+`"`)
	})
	id, err := nodeID(m.state)
	if err != nil {
		t.Fatal(err)
	}
	node := wire.Hash(sha256.Sum256([]byte(id)))
	var uuid, other [16]byte
	if _, err := hex.Decode(uuid[:], []byte(p.primary.status().UUID)); err != nil {
		t.Fatal(err)
	}
	other[0] = 1
	ask := func(addr, volume string, node wire.Hash, id [16]byte) error {
		c, err := greeted(t, addr, &wire.Hello{Node: node, Name: "m", Role: wire.RoleMirror, Volume: volume})
		if err != nil {
			return err
		}
		if err := c.Send(&wire.Knock{VolumeID: id}); err != nil {
			t.Fatal(err)
		}
		msg, err := c.Next()
		if err != nil {
			return err
		}
		if bye, ok := msg.(*wire.Bye); ok && bye.Code == wire.CodeDone {
			return nil
		}
		return unexpected(msg, "Bye")
	}
	if err := ask(p.primary.listen, "v", node, uuid); err != nil {
		t.Errorf("the mirror's knock: %v", err)
	}
	for name, err := range map[string]error{
		"another node":   ask(p.primary.listen, "v", wire.Hash{1}, uuid),
		"no node":        ask(p.primary.listen, "v", wire.Hash{}, uuid),
		"another volume": ask(p.primary.listen, "v", node, other),
		"at a mirror":    ask(m.listen, "v", node, uuid),
	} {
		var remote *wire.RemoteError
		if !errors.As(err, &remote) || remote.Code != wire.CodeUnknown || !strings.Contains(remote.Text, "open volume v: no such volume here") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ask(p.primary.listen, "w", node, uuid); !isRefused(err, wire.CodeUnknown) {
		t.Errorf("another name: %v", err)
	}
	c, err := greeted(t, p.primary.listen, &wire.Hello{Node: node, Role: wire.RoleMirror, Volume: "v"})
	if err == nil {
		err = c.Send(&wire.Window{Granted: 1})
	}
	if err == nil {
		var msg wire.Message
		if msg, err = c.Next(); err == nil {
			err = unexpected(msg, "")
		}
	}
	if !isRefused(err, wire.CodeProtocol) {
		t.Errorf("another word than Knock: %v", err)
	}
	p.settle() // none of it disturbs
}

// A mirror whose note of the address is damaged says so, and is found all the same.
func TestDoorDamaged(t *testing.T) {
	p := newLivePair(t, 1, nil)
	p.settle()
	m := p.mirrors[0]
	m.stop()
	if err := os.WriteFile(filepath.Join(m.state, "volumes", "v", doorFile), []byte(`{"address":"nowhere"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	p.settle()
	if err := os.WriteFile(filepath.Join(m.state, "volumes", "v", doorFile), []byte("\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.primary.stop()
	p.primary.start()
	p.settle()
	eventually(t, "the address is noted anew", func() bool {
		blob, err := os.ReadFile(filepath.Join(m.state, "volumes", "v", doorFile))
		return err == nil && strings.Contains(string(blob), p.primary.listen)
	})
}

// A knock ends an attempt that hangs, and is heard once a second.
func TestHear(t *testing.T) {
	token := func(s *shipper) bool {
		select {
		case <-s.redial:
			return true
		default:
			return false
		}
	}
	s := &shipper{p: &primary{log: func(string) {}}, redial: make(chan struct{}, 1)}
	ctx, end := context.WithCancelCause(t.Context())
	s.attempting(&attempt{began: time.Now().Add(-time.Minute), end: end})
	s.hear()
	if !token(s) || !errors.Is(context.Cause(ctx), errRedial) {
		t.Errorf("an attempt that hangs goes on: %v", context.Cause(ctx))
	}
	s.hear()
	if token(s) {
		t.Error("the second knock was heard at once")
	}
	s.knocked = time.Now().Add(-knockEvery)
	ctx, end = context.WithCancelCause(t.Context())
	s.attempting(&attempt{began: time.Now().Add(time.Hour), end: end})
	s.hear()
	if !token(s) || ctx.Err() != nil {
		t.Errorf("an attempt that has just begun: %v", context.Cause(ctx))
	}
}

// When trust is not what it was, a mirror that misses its primary knocks, and a primary dials the mirrors that it misses.
func TestTrustIsTriedAtOnce(t *testing.T) {
	p := newSecurePair(t)
	p.settle()
	m := p.mirrors[0]
	eventually(t, "the mirror keeps the address of its primary", func() bool {
		_, err := os.Stat(filepath.Join(m.state, "volumes", "v", doorFile))
		return err == nil
	})
	p.primary.stop()
	l, err := net.Listen("tcp", p.primary.listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute))
	trusts(t, m.id, "north", newIdentity(t, t.TempDir()))
	nc, err := l.Accept() // whoever comes is the mirror: nobody else has that address
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()

	away, here := &shipper{redial: make(chan struct{}, 1)}, &shipper{redial: make(chan struct{}, 1), session: &shipSession{}}
	q := &primary{}
	q.mirrors.list = []*shipper{away, here}
	s := &server{names: []string{"v"}, volumes: map[string]*volume{"v": {live: q, anew: make(chan struct{}, 1)}}}
	s.tryAnew()
	s.tryAnew() // waits for nobody
	if len(away.redial) != 1 || len(here.redial) != 0 {
		t.Errorf("%d tries of a mirror that is away, %d of one that is here", len(away.redial), len(here.redial))
	}
}
