package engine

import (
	"fmt"
	"net"
	"testing"
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

// TestLobby: strangers hold what there is for them; who proved himself comes in all the same, and no more often than
// one address may.
func TestLobby(t *testing.T) {
	var d lobby
	var leave []func()
	enter := func(addr string) bool {
		l, ok := d.enter(from{addr: addr})
		if ok {
			leave = append(leave, l)
		}
		return ok
	}
	d.prove(from{addr: "192.0.2.200:1"})
	strangers := 0
	for i := range 10 * maxHandshakes {
		if enter(fmt.Sprintf("192.0.2.%d:%d", i%10, 1000+i)) {
			strangers++
		}
	}
	if strangers != maxHandshakes {
		t.Errorf("%d handshakes of strangers", strangers)
	}
	for i := range maxHandshakesOne + 1 {
		if enter("192.0.2.200:2") != (i < maxHandshakesOne) {
			t.Errorf("number %d of one who proved himself", i+1)
		}
	}
	if enter("198.51.100.1:1") {
		t.Error("there is room for one more stranger")
	}
	for _, l := range leave {
		l()
	}
	if d.count != 0 || len(d.from) != 0 {
		t.Errorf("left over: %d, %v", d.count, d.from)
	}
	// One is proven while it is under way, and forgotten while another is: the count stays right.
	l, _ := d.enter(from{addr: "198.51.100.1:1"})
	d.prove(from{addr: "198.51.100.1:1"})
	other, _ := d.enter(from{addr: "198.51.100.1:2"})
	for i := range 2 * maxProven {
		d.prove(from{addr: fmt.Sprintf("203.0.%d.%d:1", i/256, i%256)})
	}
	l()
	other()
	if d.count != 0 || len(d.from) != 0 || len(d.proven) > maxProven {
		t.Errorf("left over: %d, %v; %d are proven", d.count, d.from, len(d.proven))
	}
	for a, b := range map[string]string{"[2001:db8::1]:1": "[2001:db8::ffff]:2", "192.0.2.1:1": "[::ffff:192.0.2.1]:1"} {
		if origin(from{addr: a}) != origin(from{addr: b}) {
			t.Errorf("%s and %s are not the same", a, b)
		}
	}
}
