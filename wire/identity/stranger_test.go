package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// TestStrangers: who comes to a port with something else than a handshake of ours, and how that is told.
func TestStrangers(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	hello := recordHello(t, a)
	says := func(text string) func(net.Conn) { return func(nc net.Conn) { io.WriteString(nc, text); nc.Close() } }
	speaks := func(change func(*tls.Config)) func(net.Conn) {
		return func(nc net.Conn) {
			h := a.newHandshake()
			config := h.config(nil)
			config.Certificates = h.files.certificates
			change(config)
			c := tls.Client(nc, config)
			c.Handshake()
			io.Copy(io.Discard, c)
			nc.Close()
		}
	}
	cases := []struct {
		name string
		peer func(net.Conn)
		want wire.Class
		text string
	}{
		{"nothing", func(nc net.Conn) { nc.Close() }, wire.ClassReset, ""},
		{"HTTP", says("GET / HTTP/1.1\r\nHost: b\r\n\r\n"), wire.ClassTLS, "HTTP"},
		{"plain blkmirror", says("BLKM\x01\x00\x01\x00"), wire.ClassTLS, "--insecure"},
		{"SSH", says("SSH-2.0-OpenSSH_9.2\r\n"), wire.ClassTLS, "plain text"},
		{"zeroes", says(strings.Repeat("\x00", 100)), wire.ClassTLS, "plain text"},
		{"a huge record", says("\x16\x03\x01\xff\xff" + strings.Repeat("x", 1<<16)), wire.ClassTLS, ""},
		{"a record in a wrong place", says("\x17\x03\x03\x00\x05hello"), wire.ClassTLS, ""},
		{"half a hello", says(string(hello[:len(hello)/2])), wire.ClassReset, ""},
		{"a hello alone", says(string(hello)), wire.ClassReset, ""},
		{"a hello twice", says(string(hello) + string(hello)), wire.ClassTLS, ""},
		{"TLS 1.2", speaks(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), wire.ClassTLS, "version"},
		{"a negotiation down", speaks(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS12 }), wire.ClassTLS, "version"},
		{"another ALPN", speaks(func(c *tls.Config) { c.NextProtos = []string{"h2"} }), wire.ClassTLS, ""},
		{"an ALPN for a log", speaks(func(c *tls.Config) { c.NextProtos = slices.Repeat([]string{"\n\x1b[2Jready"}, 3000) }), wire.ClassTLS, "protocols"},
		{"no ALPN", speaks(func(c *tls.Config) { c.NextProtos = nil }), wire.ClassTLS, "no blkmirror"},
		{"no key", speaks(func(c *tls.Config) { c.Certificates = nil }), wire.ClassAuth, "shows no key"},
		{"who gives up", func(nc net.Conn) { nc.Write(hello); nc.(*net.TCPConn).SetLinger(0); nc.Close() }, wire.ClassReset, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			x, y := tcp(t)
			var wait sync.WaitGroup
			wait.Go(func() { c.peer(x) })
			_, _, err := b.Accept(t.Context(), y)
			wait.Wait()
			if got := wire.Classify(err); got != c.want || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("class %q of %v; want %q with %q", got, err, c.want, c.text)
			}
			if text := err.Error(); len(text) > maxStrange+100 || strings.ContainsAny(text, "\n\x1b") {
				t.Errorf("%d bytes of text: %.1000q", len(text), text)
			}
			if y.SetDeadline(time.Now()) == nil {
				t.Error("the connection is left open")
			}
		})
	}
}

// TestOtherServers is the same for what a dialler finds.
func TestOtherServers(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	speaks := func(change func(*tls.Config)) func(net.Conn) {
		return func(nc net.Conn) {
			h := b.newHandshake()
			config := h.config(nil)
			config.Certificates = h.files.certificates
			change(config)
			c := tls.Server(nc, config)
			c.Handshake()
			io.Copy(io.Discard, c)
			nc.Close()
		}
	}
	answers := func(text string) func(net.Conn) {
		return func(nc net.Conn) {
			io.ReadFull(nc, make([]byte, 100))
			io.WriteString(nc, text)
			io.Copy(io.Discard, nc)
			nc.Close()
		}
	}
	cases := []struct {
		name string
		peer func(net.Conn)
		want wire.Class
		text string
	}{
		{"HTTP", answers("HTTP/1.1 400 Bad Request\r\n\r\n"), wire.ClassTLS, "HTTP"},
		{"blkmirror --insecure", func(nc net.Conn) {
			c := wire.NewConn(nc, wire.ConnOptions{})
			_, err := c.Next()
			c.Close(err)
		}, wire.ClassTLS, "--insecure"},
		{"TLS 1.2", speaks(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), wire.ClassTLS, ""},
		{"HTTPS", speaks(func(c *tls.Config) { c.NextProtos = nil }), wire.ClassTLS, "no blkmirror"},
		{"one that is closed", func(nc net.Conn) { nc.Close() }, wire.ClassReset, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			x, y := tcp(t)
			var wait sync.WaitGroup
			wait.Go(func() { c.peer(y) })
			_, _, err := a.Dial(t.Context(), x, "db", AsMirror)
			wait.Wait()
			if got := wire.Classify(err); got != c.want || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("class %q of %v; want %q with %q", got, err, c.want, c.text)
			}
		})
	}
}

// TestPlainIsToldWhy: a blkmirror without TLS learns from a port with TLS that it has one, and nothing else.
func TestPlainIsToldWhy(t *testing.T) {
	b := newNode(t, newClock())
	x, y := tcp(t)
	var wait sync.WaitGroup
	wait.Go(func() {
		if _, _, err := b.Accept(t.Context(), y); wire.Classify(err) != wire.ClassTLS {
			t.Errorf("the acceptor: %v", err)
		}
	})
	c := wire.NewConn(x, wire.ConnOptions{})
	must(t, c.Send(&wire.Hello{Role: wire.RolePrimary, Volume: "db"}))
	m, err := c.Next()
	if refused, ok := m.(*wire.Refused); !ok || refused.Code != wire.CodeTLS || !strings.Contains(refused.Text, "--insecure") || strings.Contains(refused.Text, "db") {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err = c.Next(); wire.Classify(err) != wire.ClassTLS {
		t.Errorf("behind that: %v", err)
	}
	c.Close(nil)
	wait.Wait()
}

// recordHello is what a sends first.
func recordHello(t *testing.T, a *testNode) []byte {
	t.Helper()
	x, y := net.Pipe()
	var wait sync.WaitGroup
	wait.Go(func() { a.Dial(t.Context(), x, "db", AsMirror) })
	b := make([]byte, 1<<16)
	n, err := y.Read(b)
	must(t, err)
	y.Close()
	wait.Wait()
	return b[:n]
}

// tap is a net.Conn whose writes a test keeps, or changes.
type tap struct {
	net.Conn
	write func(nc net.Conn, p []byte) (int, error)
}

func (c tap) Write(p []byte) (int, error) { return c.write(c.Conn, p) }

// TestReplay: all that a dialler sent once opens nothing a second time.
func TestReplay(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	x, y := tcp(t)
	var sent bytes.Buffer
	var wait sync.WaitGroup
	wait.Go(func() { b.Accept(t.Context(), y) })
	_, _, err := a.Dial(t.Context(), tap{x, func(nc net.Conn, p []byte) (int, error) { sent.Write(p); return nc.Write(p) }}, "db", AsMirror)
	must(t, err)
	wait.Wait()
	x, y = tcp(t)
	wait.Go(func() { x.Write(sent.Bytes()); io.Copy(io.Discard, x) })
	if _, _, err := b.Accept(t.Context(), y); wire.Classify(err) != wire.ClassTLS {
		t.Errorf("a replayed handshake: %v", err)
	}
	y.Close()
	wait.Wait()
}

// TestReordered: two writes of the dialler in the other order, in the handshake and behind it.
func TestReordered(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	for from := range 3 {
		x, y := tcp(t)
		var held []byte
		n := 0
		swap := tap{x, func(nc net.Conn, p []byte) (int, error) {
			n++
			switch n - 1 {
			case from:
				held = bytes.Clone(p)
				return len(p), nil
			case from + 1:
				if _, err := nc.Write(p); err != nil {
					return 0, err
				}
				_, err := nc.Write(held)
				return len(p), err
			}
			return nc.Write(p)
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // a hello that is held back is waited for
		var wait sync.WaitGroup
		var got error
		wait.Go(func() {
			c, _, err := b.Accept(ctx, y)
			if got = err; err == nil {
				_, got = c.Read(make([]byte, 100))
			}
			y.Close()
		})
		if c, _, err := a.Dial(ctx, swap, "db", AsMirror); err == nil {
			c.Write([]byte("one"))
			c.Write([]byte("two"))
		}
		wait.Wait()
		cancel()
		x.Close()
		if class := wire.Classify(got); class != wire.ClassTLS && (from > 0 || class != wire.ClassReset && class != wire.ClassTimeout) {
			t.Errorf("writes %d and %d swapped: %v", from, from+1, got)
		}
	}
}

// TestSlow: a peer that says nothing, or a byte now and then, holds a handshake no longer than its time.
func TestSlow(t *testing.T) {
	clock := newClock()
	a := newNode(t, clock)
	for _, text := range []string{"", "\x16", "\x16\x03\x01\x02"} {
		for _, accept := range []bool{true, false} {
			x, y := tcp(t)
			io.WriteString(x, text)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			var err error
			if accept {
				_, _, err = a.Accept(ctx, y)
			} else {
				_, _, err = a.Dial(ctx, y, "db", AsMirror)
			}
			cancel()
			if !errors.Is(err, wire.ErrHandshakeTimeout) || y.SetDeadline(time.Now()) == nil {
				t.Errorf("accept %v, %q: %v", accept, text, err)
			}
		}
	}
	x, y := tcp(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if _, _, err := a.Accept(ctx, y); wire.Classify(err) != wire.ClassLocalStop {
		t.Errorf("cancelled: %v", err)
	}
	x.Close()
}

// TestPipe: a handshake and its refusals over a connection that has no buffer at all.
func TestPipe(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	must(t, a.Trust("b", b.ID().String(), nil))
	for _, trusted := range []bool{false, true} {
		if trusted {
			must(t, b.Trust("a", a.ID().String(), nil))
		}
		x, y := wire.Pipe()
		var wait sync.WaitGroup
		var got error
		wait.Go(func() {
			c, _, err := b.Accept(t.Context(), y)
			if got = err; err == nil {
				_, got = io.ReadFull(c, make([]byte, 1<<20))
				c.Close()
			}
		})
		c, _, err := a.Dial(t.Context(), x, "db", AsMirror)
		must(t, err)
		if trusted {
			if n, err := c.Write(make([]byte, 1<<20)); n != 1<<20 {
				t.Error(n, err)
			}
		} else if _, err := c.Read(make([]byte, 1)); wire.Classify(err) != wire.ClassAuth {
			t.Errorf("the dialler hears %v", err)
		}
		c.Close()
		wait.Wait()
		if trusted != (got == nil) {
			t.Errorf("trusted %v: %v", trusted, got)
		}
	}
}

// TestBuffers: every byte arrives in order, whatever the sizes, and in few records and writes.
func TestBuffers(t *testing.T) {
	clock := newClock()
	a, b := newNode(t, clock), newNode(t, clock)
	trustBoth(t, a, b)
	x, y := tcp(t)
	var writes int
	counted := tap{x, func(nc net.Conn, p []byte) (int, error) { writes++; return nc.Write(p) }}
	var want bytes.Buffer
	var bufs net.Buffers
	for i, size := range []int{0, 1, 96, 64 << 10, 96, 64 << 10, 1 << 20, 3} {
		buf := bytes.Repeat([]byte{byte(i + 1)}, size)
		want.Write(buf)
		bufs = append(bufs, buf)
	}
	got := make([]byte, want.Len())
	var wait sync.WaitGroup
	wait.Go(func() {
		c, _, err := b.Accept(t.Context(), y)
		if err == nil {
			_, err = io.ReadFull(c, got)
		}
		if err != nil {
			t.Error(err)
		}
	})
	c, _, err := a.Dial(t.Context(), counted, "db", AsMirror)
	must(t, err)
	writes = 0
	n, err := c.(*conn).WriteBuffers(&bufs)
	wait.Wait()
	if err != nil || n != int64(want.Len()) || len(bufs) != 0 || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes of %d, %d buffers left, equal %v, %v", n, want.Len(), len(bufs), bytes.Equal(got, want.Bytes()), err)
	}
	if writes > want.Len()/gatherSize+2 {
		t.Errorf("%d writes", writes)
	}
	below, ok := c.(interface{ NetConn() net.Conn })
	if !ok {
		t.Fatal("the connection below cannot be asked for")
	}
	if under, ok := below.NetConn().(tap); !ok || under.Conn != x {
		t.Error("the connection below is another one")
	}
}
