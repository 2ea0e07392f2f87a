package e2e

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/time/rate"
)

// relay stands between a primary and its mirror and understands nothing. It keeps its address while the
// mirror changes its own, and breaks connections.
type relay struct {
	addr  string
	bytes atomic.Int64  // to the mirror
	speed *rate.Limiter // to the mirror, in bytes

	mu      sync.Mutex
	backend string // "": nobody is reached
	conns   map[net.Conn]bool
	closed  bool
	all     sync.WaitGroup
}

func newRelay(t testing.TB) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String(), conns: map[net.Conn]bool{}, speed: rate.NewLimiter(rate.Inf, 1<<16)}
	r.all.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			r.all.Go(func() { r.join(nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		r.closed = true
		r.mu.Unlock()
		r.cut()
		r.all.Wait()
	})
	return r
}

// to connects from now on to an address, or with "" to nobody. What is connected now is reset.
func (r *relay) to(addr string) {
	r.mu.Lock()
	r.backend = addr
	r.mu.Unlock()
	r.cut()
}

// cut resets all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for nc := range r.conns {
		reset(nc)
	}
}

func (r *relay) join(from net.Conn) {
	defer from.Close()
	r.mu.Lock()
	addr := r.backend
	r.mu.Unlock()
	if addr == "" {
		reset(from)
		return
	}
	to, err := net.Dial("tcp", addr)
	if err != nil {
		reset(from)
		return
	}
	defer to.Close()
	r.mu.Lock()
	if r.closed || r.backend != addr {
		r.mu.Unlock()
		return
	}
	r.conns[from], r.conns[to] = true, true
	r.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { r.pump(to, from, true) })
	both.Go(func() { r.pump(from, to, false) })
	both.Wait()
	r.mu.Lock()
	delete(r.conns, from)
	delete(r.conns, to)
	r.mu.Unlock()
}

func (r *relay) pump(to, from net.Conn, limited bool) {
	b := make([]byte, 1<<16)
	for {
		n, err := from.Read(b)
		if limited {
			r.bytes.Add(int64(n))
			r.speed.WaitN(context.Background(), n)
		}
		if _, werr := to.Write(b[:n]); werr != nil {
			reset(from)
			return
		}
		switch err {
		case nil:
		case io.EOF:
			to.(*net.TCPConn).CloseWrite()
			return
		default:
			reset(to)
			return
		}
	}
}
