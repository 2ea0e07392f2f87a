package engine

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/blkmirror/blkmirror/wire"
)

// from is a connection that comes from an address.
type from struct {
	net.Conn
	addr string
}

func (f from) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", f.addr)
	if err != nil {
		panic(err)
	}
	return a
}

func (f from) Close() error { return nil }

// TestLobby: strangers hold what there is for them and no more; who proved himself comes in all the same, and holds no more than one
// address may.
func TestLobby(t *testing.T) {
	var d lobby
	var in []*guest
	enter := func(addr string) *guest {
		g, ok := d.enter(from{addr: addr})
		if ok {
			in = append(in, g)
		}
		return g
	}
	prove := func(addr string) {
		g, _ := d.enter(from{addr: addr})
		d.prove(g)
		d.leave(g)
	}
	prove("192.0.2.200:1")
	for i := range 10 * maxHandshakes {
		enter(fmt.Sprintf("192.0.2.%d:%d", i%10, 1000+i))
	}
	if d.count != maxHandshakes || len(d.silent) != maxHandshakes || len(in) != maxHandshakes+maxLeaving || d.leaving != maxLeaving {
		t.Errorf("%d handshakes of strangers, %d of them silent; %d in all", d.count, len(d.silent), len(in))
	}
	for i := range 2 * maxHandshakesOne {
		if enter("192.0.2.200:2") == nil || d.from[origin(from{addr: "192.0.2.200:3"})] != min(i+1, maxHandshakesOne) || d.count != maxHandshakes {
			t.Errorf("number %d of one who proved himself", i+1)
		}
		for _, g := range in {
			if g.putOut && g.nc != nil {
				d.leave(g)
				g.nc = nil
			}
		}
	}
	for _, g := range in {
		if g.nc != nil {
			d.leave(g)
		}
	}
	if d.count != 0 || d.leaving != 0 || len(d.silent) != 0 || len(d.from) != 0 {
		t.Errorf("left over: %d, %d, %v, %v", d.count, d.leaving, d.silent, d.from)
	}
	// One is proven while it is under way, and forgotten while another is: the count stays right.
	one, _ := d.enter(from{addr: "198.51.100.1:1"})
	d.prove(one)
	other, _ := d.enter(from{addr: "198.51.100.1:2"})
	for i := range 2 * maxProven {
		prove(fmt.Sprintf("203.0.%d.%d:1", i/256, i%256))
	}
	d.leave(one)
	d.leave(other)
	if d.count != 0 || len(d.from) != 0 || len(d.proven) > maxProven {
		t.Errorf("left over: %d, %v; %d are proven", d.count, d.from, len(d.proven))
	}
	for a, b := range map[string]string{"[2001:db8::1]:1": "[2001:db8::ffff]:2", "192.0.2.1:1": "[::ffff:192.0.2.1]:1"} {
		if origin(from{addr: a}) != origin(from{addr: b}) {
			t.Errorf("%s and %s are not the same", a, b)
		}
	}
}

// TestLobbyMakesRoom: who comes last gets in, for the oldest of the address that has most; who has proven himself stays,
// and who is out cannot prove himself any more.
func TestLobbyMakesRoom(t *testing.T) {
	var d lobby
	enter := func(addr string) *guest {
		t.Helper()
		g, ok := d.enter(from{addr: addr})
		if !ok {
			t.Fatalf("%s does not get in", addr)
		}
		return g
	}
	proven, lone := enter("192.0.2.1:1"), enter("192.0.2.2:1")
	if !d.prove(proven) {
		t.Error("there was room")
	}
	var crowd []*guest
	for i := range maxHandshakes - 2 {
		crowd = append(crowd, enter(fmt.Sprintf("198.51.100.%d:1", i%7)))
	}
	for i := range maxHandshakes - 2 - 7 { // the strangers at seven addresses make room, each in its turn, down to the last of each
		last := enter(fmt.Sprintf("203.0.113.%d:1", i))
		if last.putOut || proven.putOut || lone.putOut {
			t.Fatalf("number %d: the wrong one is out", i)
		}
		if i == 0 && (!crowd[0].putOut || d.prove(crowd[0])) {
			t.Error("the oldest of them is not out")
		}
		for _, g := range crowd {
			if g.putOut && g.nc != nil {
				d.leave(g)
				g.nc = nil
			}
		}
	}
	// Those that were put out and do not go are not without number either.
	for i := range maxLeaving + 2*maxHandshakes {
		d.enter(from{addr: fmt.Sprintf("100.%d.%d.1:1", 64+i/256, i%256)})
	}
	if d.leaving != maxLeaving || len(d.silent) > maxHandshakes {
		t.Errorf("%d are to leave, %d are silent", d.leaving, len(d.silent))
	}
}

// Strangers at several addresses who hold every place, and take each that gets free, keep a trusted peer out neither the first
// time he comes nor later.
func TestKeysLockout(t *testing.T) {
	dir := t.TempDir()
	own, peer := newIdentity(t, filepath.Join(dir, "own")), newIdentity(t, filepath.Join(dir, "peer"))
	addr := probeServer(t, func(o *ServerOptions) { o.Insecure, o.Identity = false, own })
	trusts(t, own, "peer", peer)
	trusts(t, peer, "m", own)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	in := make(chan struct{}, 2*maxHandshakes)
	for i := range 2 * maxHandshakes {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%8))}}
		all.Go(func() {
			for first := true; ctx.Err() == nil; first = false {
				nc, err := d.DialContext(ctx, "tcp", addr)
				if first {
					in <- struct{}{}
				}
				if err != nil {
					continue
				}
				release := context.AfterFunc(ctx, func() { nc.Close() })
				nc.Read(make([]byte, 1)) // says nothing until it is thrown out
				release()
				nc.Close()
			}
		})
	}
	for range cap(in) {
		<-in
	}
	for i := range 5 {
		var err error
		for range 5 { // as a primary does: so many strangers may be leaving that for a moment nobody gets in
			if _, err = dialAs(t, peer, addr, &wire.Hello{Role: wire.RoleProbe}); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("time %d: %v", i, err)
		}
	}
	stop()
	all.Wait()
	// Nor do those who share his address, as behind a proxy.
	for range 2 * maxHandshakesOne {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
	}
	if _, err := dialAs(t, peer, addr, &wire.Hello{Role: wire.RoleProbe}); err != nil {
		t.Errorf("behind a crowd at its own address: %v", err)
	}
}
