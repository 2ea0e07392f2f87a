package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
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
				{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 300_000},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 30},
				{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 8}, {unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 1 << 20},
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

// resolver answers with fixed addresses.
func resolver(addrs ...string) func(context.Context, string, string) ([]netip.Addr, error) {
	return func(context.Context, string, string) (ips []netip.Addr, err error) {
		for _, a := range addrs {
			ips = append(ips, netip.MustParseAddr(a))
		}
		return ips, nil
	}
}

// TestDialAll: every address of a name is tried, the families in turn; one that hangs stops no other, and who
// loses is closed.
func TestDialAll(t *testing.T) {
	var mu sync.Mutex
	var tried []string
	var late, other net.Conn
	d := dialer{lookup: resolver("192.0.2.1", "192.0.2.2", "::ffff:192.0.2.3", "2001:db8::1")}
	d.dial = func(ctx context.Context, _, addr string) (net.Conn, error) {
		mu.Lock()
		tried = append(tried, addr)
		mu.Unlock()
		switch addr {
		case "192.0.2.1:7": // hangs, and comes about when it is too late
			<-ctx.Done()
			late, other = net.Pipe()
			return late, nil
		case "192.0.2.3:7":
			a, _ := net.Pipe()
			return a, nil
		}
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("%s: %w", addr, syscall.ECONNREFUSED)}
	}
	nc, err := d.connect(t.Context(), "name:7")
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	want := []string{"192.0.2.1:7", "[2001:db8::1]:7", "192.0.2.2:7", "192.0.2.3:7"}
	if !slices.Equal(tried, want) {
		t.Errorf("tried %v, want %v", tried, want)
	}
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection that was not needed: %v", err)
	}
}

// TestDialNames: an error names each address and its cause, and has a class.
func TestDialNames(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	var system net.Dialer
	d := dialer{lookup: resolver("127.0.0.1", "127.0.0.2", "::1"), dial: system.DialContext}
	_, err = d.connect(t.Context(), "name:"+port)
	for _, a := range []string{"127.0.0.1:", "127.0.0.2:", "[::1]:"} {
		if err == nil || !strings.Contains(err.Error(), a+port) {
			t.Fatalf("the error does not name %s%s: %v", a, port, err)
		}
	}
	if Classify(err) != ClassRefused {
		t.Errorf("%v has class %s", err, Classify(err))
	}
	d.dial = func(ctx context.Context, _, addr string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	}
	if _, err := d.connect(t.Context(), "name:7"); Classify(err) != ClassTimeout {
		t.Errorf("%v has class %s", err, Classify(err))
	}
	for _, addr := range []string{"no-such-host.invalid:7", "no port"} {
		if _, err := Dial(t.Context(), addr); err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(addr, ":7")) {
			t.Errorf("dial %s: %v", addr, err)
		}
	}
	d.lookup = resolver()
	if _, err := d.connect(t.Context(), "name:7"); Classify(err) != ClassDNS {
		t.Errorf("a name without addresses: %v", err)
	}
}

// TestSourceOf: the way out is known for what can be reached, without anything sent there.
func TestSourceOf(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	for to, want := range map[netip.Addr]netip.Addr{loopback: loopback, {}: {}} {
		if got := SourceOf(to); got != want {
			t.Errorf("to %v from %v, want %v", to, got, want)
		}
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan netip.Addr, 1)
	nc, err := DialBy(t.Context(), l.Addr().String(), func(to netip.Addr) int { asked <- to; return 1000 })
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if to := <-asked; to != loopback || RemoteOf(nc) != loopback || SegmentOf(nc) > 1000 {
		t.Errorf("asked for %v, reached %v with segments of %d", to, RemoteOf(nc), SegmentOf(nc))
	}
}
