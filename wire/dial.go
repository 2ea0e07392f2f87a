package wire

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// HandshakeTimeout limits connecting, and from there the time until Conn.Established.
const HandshakeTimeout = 10 * time.Second

// What Tune sets on a socket. A Conn watches its connection from the first byte to the last (live.go), waits for a
// minute of silence where the path is slow, and knows what the kernel does not: which path is slow. So the kernel's
// own limits are for what no Conn watches any more, and lie beyond all that a Conn waits for: with 30 s here the
// kernel would end a connection that a spike has stopped. A connection that is not established yet, or one-shot,
// needs none of them either: connecting and the handshake have HandshakeTimeout, and every session has a Conn.
const (
	userTimeout     = 5 * time.Minute
	keepAliveIdle   = time.Minute
	keepAliveEvery  = 30 * time.Second
	keepAliveProbes = 8 // with userTimeout set the kernel goes by that
	notSentLowat    = 1 << 20
)

// Of one Dial.
const (
	maxAddresses = 16
	headStart    = 250 * time.Millisecond // of each address before the next is tried beside it
)

// Dial connects to HOST:PORT within ctx and HandshakeTimeout, and tunes the connection. The name is resolved
// anew, and all its addresses are tried, IPv6 and IPv4 in turn: an address that does not answer costs the
// next one a quarter of a second. The error names each address and what came of it.
func Dial(ctx context.Context, addr string) (net.Conn, error) { return DialSegment(ctx, addr, 0) }

// DialSegment is Dial, with segments of at most so many bytes in both directions; 0: as the kernel likes.
func DialSegment(ctx context.Context, addr string, segment int) (net.Conn, error) {
	return DialBy(ctx, addr, func(netip.Addr) int { return segment })
}

// DialBy is DialSegment with a size for each address, which several goroutines ask for.
func DialBy(ctx context.Context, addr string, segmentTo func(netip.Addr) int) (net.Conn, error) {
	d := net.Dialer{Control: func(_, to string, c syscall.RawConn) error {
		ap, _ := netip.ParseAddrPort(to) // or none
		if segment := segmentTo(ap.Addr().Unmap()); segment > 0 {
			return limitSegment(c, segment)
		}
		return nil
	}}
	d.SetMultipathTCP(false) // what Tune sets is TCP's
	r := dialer{lookup: net.DefaultResolver.LookupNetIP, dial: d.DialContext}
	nc, err := r.connect(ctx, addr)
	if err != nil {
		return nil, err // it names the addresses
	}
	if err := Tune(nc); err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return nc, nil
}

// limitSegment is for a socket that is not connected: its SYN tells the peer.
func limitSegment(c syscall.RawConn, segment int) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = os.NewSyscallError("set TCP_MAXSEG", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, segment))
	})
	return cmp.Or(err, failed)
}

// SourceOf is the address that packets to another one leave from, by the routes of now; zero: there is no way. Nothing
// is sent.
func SourceOf(to netip.Addr) netip.Addr {
	const discard = 9
	if !to.IsValid() {
		return netip.Addr{}
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, discard)))
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return addrOf(c.LocalAddr())
}

// RemoteOf is the address of the other end; zero: it has none.
func RemoteOf(nc net.Conn) netip.Addr { return addrOf(nc.RemoteAddr()) }

func addrOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// dialer is what Dial needs of the system.
type dialer struct {
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
}

// connect returns the first connection that comes about. net.Dialer would try all addresses too, but within a
// share of the time each, and tell of the first alone.
func (d *dialer) connect(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	addrs, err := d.resolve(ctx, addr)
	if err != nil {
		return nil, err
	}
	type result struct {
		nc  net.Conn
		err error
	}
	results := make(chan result)
	begun, open := 0, 0
	begin := func() {
		to := addrs[begun]
		begun, open = begun+1, open+1
		go func() { // it ends with ctx at the latest, and below somebody takes what it says
			nc, err := d.dial(ctx, "tcp", to)
			results <- result{nc, err}
		}()
	}
	begin()
	next := time.NewTicker(headStart)
	defer next.Stop()
	var won net.Conn
	var failed []error
	for open > 0 {
		select {
		case r := <-results:
			open--
			switch {
			case r.err == nil && won == nil:
				won = r.nc
				cancel() // and wait for the others
			case r.err == nil:
				r.nc.Close()
			default:
				failed = append(failed, r.err) // it names the address
			}
			if r.err != nil && won == nil && open == 0 && begun < len(addrs) && ctx.Err() == nil {
				begin()
			}
		case <-next.C:
			if won == nil && begun < len(addrs) && ctx.Err() == nil {
				begin()
			}
		}
	}
	if won == nil {
		return nil, &dialError{failed}
	}
	return won, nil
}

// resolve returns the addresses of HOST:PORT, those of the two families in turn, the resolver's favourite first.
func (d *dialer) resolve(ctx context.Context, addr string) ([]string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if host == "" {
		host = "localhost"
	}
	ips, err := d.lookup(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var families [2][]string
	first := 0
	for i, ip := range ips {
		ip = ip.Unmap()
		family := 0
		if ip.Is4() {
			family = 1
		}
		if i == 0 {
			first = family
		}
		families[family] = append(families[family], net.JoinHostPort(ip.String(), port))
	}
	var all []string
	for i := range ips {
		for _, family := range [2]int{first, 1 - first} {
			if i < len(families[family]) {
				all = append(all, families[family][i])
			}
		}
	}
	if len(all) == 0 {
		return nil, &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}
	}
	return all[:min(len(all), maxAddresses)], nil
}

// dialError is what became of each address.
type dialError struct{ all []error }

func (e *dialError) Error() string {
	var texts []string
	for _, err := range e.all {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

func (e *dialError) Unwrap() []error { return e.all }

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
	// A peer whose machine died takes a connection with it that nobody watches: minutes, not two hours.
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
		if ip = ip.Unmap(); !ip.IsLoopback() {
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
