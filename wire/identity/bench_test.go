package identity

import (
	"context"
	"crypto/rand"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/wire"
)

// both are the two ends of a connection over loopback, plain or with TLS.
func both(b *testing.B, secure bool) (from, to *wire.Conn) {
	x, y := tcp(b)
	if secure {
		clock := newClock()
		m, n := newNode(b, clock), newNode(b, clock)
		trustBoth(b, m, n)
		accepted := make(chan net.Conn, 1)
		go func() {
			c, _, err := n.Accept(context.Background(), y)
			if err != nil {
				b.Error(err)
			}
			accepted <- c
		}()
		var err error
		if x, _, err = m.Dial(b.Context(), x, "db", AsMirror); err != nil {
			b.Fatal(err)
		}
		y = <-accepted
	}
	o := wire.ConnOptions{DeadAfter: time.Minute}
	from, to = wire.NewConn(x, o), wire.NewConn(y, o)
	from.Established()
	to.Established()
	b.Cleanup(func() { from.Close(nil); to.Close(nil) })
	return from, to
}

// BenchmarkConn sends runs of 1 MiB in blocks of 64 KiB, as wire.BenchmarkConn does; bare, and with the SHA-256
// of each block that a session makes on both sides.
func BenchmarkConn(b *testing.B) {
	const block = 64 << 10
	for _, c := range []struct {
		name           string
		secure, hashed bool
	}{{"plain", false, false}, {"tls", true, false}, {"plain/hashed", false, true}, {"tls/hashed", true, true}} {
		b.Run(c.name, func(b *testing.B) {
			from, to := both(b, c.secure)
			go from.Next() // answers pings; ends with the connection
			payload := make([]byte, wire.MaxRun)
			rand.Read(payload)
			var run []wire.Message
			for at := 0; at < wire.MaxRun; at += block {
				run = append(run, &wire.Data{
					Offset: int64(at), RawLength: block, Follow: uint32(wire.MaxRun - at - block), Codec: wire.CodecRaw,
					Payload: payload[at : at+block],
				})
			}
			received := make(chan error, 1)
			go func() { received <- takeRuns(to, c.hashed) }()
			b.SetBytes(wire.MaxRun)
			b.ReportAllocs()
			before := processorTime(b)
			for b.Loop() {
				if c.hashed {
					for _, m := range run {
						d := m.(*wire.Data)
						d.Hash = wire.Sum(d.Payload)
					}
				}
				if err := from.Send(run...); err != nil {
					b.Fatal(err)
				}
			}
			must(b, from.Send(&wire.Bye{Code: wire.CodeDone}))
			must(b, <-received)
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// processorTime is that of this process: what a busy machine leaves as it is.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func takeRuns(c *wire.Conn, hashed bool) error {
	buf := make([]byte, wire.MaxRun)
	for {
		m, err := c.Next()
		if err != nil {
			return err
		}
		d, ok := m.(*wire.Data)
		if !ok {
			return nil
		}
		at := wire.MaxRun - int(d.Follow) - int(d.RawLength)
		payload := buf[at : at+d.PayloadLength]
		if err := c.ReadPayload(payload); err != nil {
			return err
		}
		if hashed && wire.Sum(payload) != d.Hash {
			return wire.ErrIntegrity
		}
	}
}

// BenchmarkRoundTrip is a small frame there and back.
func BenchmarkRoundTrip(b *testing.B) {
	for name, secure := range map[string]bool{"plain": false, "tls": true} {
		b.Run(name, func(b *testing.B) {
			x, y := both(b, secure)
			go func() {
				for {
					m, err := y.Next()
					if err != nil || y.Send(m) != nil {
						return
					}
				}
			}()
			m := &wire.Flushed{}
			b.ReportAllocs()
			for b.Loop() {
				must(b, x.Send(m))
				if _, err := x.Next(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHandshake is a whole one, over loopback.
func BenchmarkHandshake(b *testing.B) {
	clock := newClock()
	m, n := newNode(b, clock), newNode(b, clock)
	trustBoth(b, m, n)
	for b.Loop() {
		x, y := tcp(b)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, _, err := n.Accept(context.Background(), y); err == nil {
				c.Close()
			}
		}()
		c, _, err := m.Dial(b.Context(), x, "db", AsMirror)
		must(b, err)
		<-done
		c.Close()
	}
}
