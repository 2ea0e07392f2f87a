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
	backend string            // "": nobody is reached
	conns   map[net.Conn]bool // true: that the primary dialled
	kept    map[net.Conn]bool // whose other half is gone, and who is not told
	gate    chan struct{}     // nothing passes before it is closed; nil: it is open
	closed  bool
	all     sync.WaitGroup
}

func newRelay(t testing.TB) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String(), conns: map[net.Conn]bool{}, kept: map[net.Conn]bool{}, speed: rate.NewLimiter(rate.Inf, 1<<16)}
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
		r.pass()
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

// hold keeps every byte back, of connections that are there and of new ones, until pass.
func (r *relay) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate = make(chan struct{})
}

func (r *relay) pass() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gate != nil {
		close(r.gate)
		r.gate = nil
	}
}

// wait returns when bytes may pass.
func (r *relay) wait() {
	r.mu.Lock()
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
}

// halve resets every connection on one side, that of the primary or that of the mirror, and leaves the other half open:
// it is never told, and nothing answers it any more.
func (r *relay) halve(primary bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for nc, accepted := range r.conns {
		if accepted == primary {
			defer reset(nc)
		} else {
			r.kept[nc] = true
		}
	}
}

func (r *relay) keeps(nc net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept[nc]
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
	r.conns[from], r.conns[to] = true, false
	r.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { r.pump(to, from, true) })
	both.Go(func() { r.pump(from, to, false) })
	both.Wait()
	r.mu.Lock()
	for _, nc := range []net.Conn{from, to} {
		delete(r.conns, nc)
		delete(r.kept, nc)
	}
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
		r.wait()
		if _, werr := to.Write(b[:n]); werr != nil && !r.keeps(from) {
			reset(from)
			return
		}
		switch {
		case err == nil:
		case r.keeps(to):
			return
		case err == io.EOF:
			to.(*net.TCPConn).CloseWrite()
			return
		default:
			reset(to)
			return
		}
	}
}
