package wire

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCheckPlain(t *testing.T) {
	for addr, plain := range map[string]bool{
		"127.0.0.1:1": true, "127.9.8.7:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true, "localhost:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "192.0.2.1:1": false, "[2001:db8::1]:1": false,
	} {
		if err := CheckPlain(addr); plain != (err == nil) || !plain && !errors.Is(err, ErrNotLoopback) {
			t.Errorf("CheckPlain(%q) = %v", addr, err)
		}
	}
	if err := CheckPlain("no port"); err == nil || errors.Is(err, ErrNotLoopback) {
		t.Errorf("address without a port: %v", err)
	}
	for _, network := range networks {
		a, b := ends(t, network)
		for _, nc := range []net.Conn{a, b} {
			if err := CheckPlainConn(nc); err != nil {
				t.Errorf("%s: %v", network, err)
			}
		}
	}
	if err := CheckPlainConn(elsewhere{}); !errors.Is(err, ErrNotLoopback) {
		t.Errorf("connection with another machine: %v", err)
	}
}

// elsewhere is a connection between two machines.
type elsewhere struct{ net.Conn }

func (elsewhere) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 2} }

func TestTune(t *testing.T) {
	a, b := ends(t, "tcp")
	for _, nc := range []net.Conn{a, b} {
		raw, err := nc.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			for _, o := range []struct{ level, name, want int }{
				{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 30000},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 10}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
				{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4}, {unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 1 << 20},
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			} {
				if got, err := unix.GetsockoptInt(int(fd), o.level, o.name); err != nil || got != o.want {
					t.Errorf("option %d is %d (%v), want %d", o.name, got, err, o.want)
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestDialRefused(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = Dial(t.Context(), l.Addr().String())
	if !errors.Is(err, syscall.ECONNREFUSED) || Classify(err) != ClassRefused {
		t.Errorf("dial a closed port: %v", err)
	}
	if _, err := l.Accept(); Classify(err) != ClassLocalStop {
		t.Errorf("accept on a closed listener: %v", err)
	}
}
