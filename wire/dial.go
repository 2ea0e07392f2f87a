package wire

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// HandshakeTimeout limits connecting, and from there the time until Conn.Established.
const HandshakeTimeout = 10 * time.Second

// What Tune sets on a socket.
const (
	userTimeout     = 30 * time.Second
	keepAliveIdle   = 10 * time.Second
	keepAliveEvery  = 5 * time.Second
	keepAliveProbes = 4
	notSentLowat    = 1 << 20
)

// Dial connects to HOST:PORT, resolving the name anew, within ctx and HandshakeTimeout, and tunes the
// connection.
func Dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: HandshakeTimeout}
	d.SetMultipathTCP(false) // what Tune sets is TCP's
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err // it names the address
	}
	if err := Tune(nc); err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return nc, nil
}

// Listen waits for connections at HOST:PORT; those that it accepts are tuned.
func Listen(addr string) (net.Listener, error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	l, err := c.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return listener{l}, nil
}

type listener struct{ net.Listener }

// Accept skips connections that cannot be tuned: they ended between the kernel's accept and ours.
func (l listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		if err := Tune(nc); err == nil {
			return nc, nil
		}
		nc.Close()
	}
}

// Tune sets what a long-lived bulk connection needs. It does nothing to what is no TCP connection.
func Tune(nc net.Conn) error {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	// Frames are complete when they are written: waiting for more would only delay an Ack.
	if err := tcp.SetNoDelay(true); err != nil {
		return err
	}
	// A peer whose machine died takes an idle connection with it: half a minute, not two hours. Conn's
	// own pings are faster; this is for connections that nobody pings (yet, or any more).
	err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveEvery, Count: keepAliveProbes,
	})
	if err != nil {
		return err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		// The same limit for sent bytes that nobody acknowledges; the kernel's own is a quarter of an hour.
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
		if failed != nil {
			failed = os.NewSyscallError("set TCP_USER_TIMEOUT", failed)
			return
		}
		// Not more than this waits unsent in the kernel, however large its buffer has grown: a Pong or a
		// Halt stands behind a megabyte at most, and a write moves on in steps that liveness can see.
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat)
		failed = os.NewSyscallError("set TCP_NOTSENT_LOWAT", failed)
	})
	if err != nil {
		return err
	}
	return failed
}

// CheckPlain returns ErrNotLoopback unless every address that the host of HOST:PORT resolves to is
// loopback. An empty host, which means all addresses to a listener, is none. As names can change
// between two look-ups, CheckPlainConn is to be asked about the connection as well.
func CheckPlain(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q: %w", addr, err)
	}
	if host == "" {
		return fmt.Errorf("%w: %q means every address of this machine; name 127.0.0.1 or ::1", ErrNotLoopback, addr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), HandshakeTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", addr, err)
	}
	for _, ip := range ips {
		if !ip.Unmap().IsLoopback() {
			return fmt.Errorf("%w: %s is %s", ErrNotLoopback, addr, ip)
		}
	}
	return nil
}

// CheckPlainConn returns ErrNotLoopback unless both ends of an established connection are loopback, or it
// never leaves this machine by its nature (Pipe, a Unix socket).
func CheckPlainConn(nc net.Conn) error {
	switch nc.RemoteAddr().Network() {
	case "pipe", "unix":
		return nil
	}
	for _, a := range []net.Addr{nc.RemoteAddr(), nc.LocalAddr()} {
		ap, err := netip.ParseAddrPort(a.String())
		if err != nil || !ap.Addr().Unmap().IsLoopback() {
			return fmt.Errorf("%w: connection from %s to %s", ErrNotLoopback, nc.LocalAddr(), nc.RemoteAddr())
		}
	}
	return nil
}

// Pipe connects two halves within this process, with no kernel between them: net.Pipe hands a payload
// over with a single copy, from where it lies to where ReadPayload wants it, in a third of the time that a
// pair of Unix sockets takes (BenchmarkConn). The price: it has no buffer, so that a Send ends only when
// the other half has read all of it. A Conn's contract, that somebody always reads, is all it needs.
func Pipe() (a, b net.Conn) { return net.Pipe() }
