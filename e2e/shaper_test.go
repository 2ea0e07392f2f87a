package e2e

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// way is what one direction through a shaper is like. The zero value passes everything on.
type way struct {
	rate    int // bytes a second; 0: no limit
	queue   int // bytes that wait in front of the rate; 0: as little as can be
	resetAt int // bytes after which a connection is reset; 0: never
	hole    int // larger pieces vanish, and all that comes behind them; 0: none do
}

// shaper stands between a dialler and a node as a bad line does. It understands nothing.
type shaper struct {
	addr     string
	l        net.Listener
	to, from way          // towards the node, and back
	passed   atomic.Int64 // bytes, both ways
	deepest  atomic.Int64 // bytes that waited in a queue, at most

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
	all    sync.WaitGroup
}

func newShaper(t testing.TB, backend string, to, from way) *shaper {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &shaper{addr: l.Addr().String(), l: l, to: to, from: from, conns: map[net.Conn]bool{}}
	s.all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", backend)
			if err != nil {
				client.Close()
				continue
			}
			if s.track(client, server) {
				s.all.Go(func() { s.join(client, server) })
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		s.closed = true
		for c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		s.all.Wait()
	})
	return s
}

func (s *shaper) track(conns ...net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range conns {
		if s.closed {
			c.Close()
			continue
		}
		s.conns[c] = true
	}
	return !s.closed
}

func (s *shaper) join(client, server net.Conn) {
	var both sync.WaitGroup
	both.Go(func() { s.to.pump(server, client, s) })
	both.Go(func() { s.from.pump(client, server, s) })
	both.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range []net.Conn{client, server} {
		c.Close()
		delete(s.conns, c)
	}
}

// most raises what was the most so far.
func most(of *atomic.Int64, n int64) {
	for old := of.Load(); n > old && !of.CompareAndSwap(old, n); old = of.Load() {
	}
}

// piece of a stream; small, so that a slow way is smooth.
const piece = 4 << 10

// shaperSlack is how long a way that was idle, or woken late, may make up for it.
const shaperSlack = 20 * time.Millisecond

// pump passes on what comes, until either side ends. The queue is a channel of pieces.
func (w way) pump(to, from net.Conn, s *shaper) {
	if w.rate > 0 { // what waits is to wait here, and not in the kernel
		to.(*net.TCPConn).SetWriteBuffer(4 * piece)
		if w.queue == 0 {
			from.(*net.TCPConn).SetReadBuffer(4 * piece)
		}
	}
	queue := make(chan []byte, w.queue/piece)
	var waits atomic.Int64 // bytes in the queue
	var writer sync.WaitGroup
	writer.Go(func() {
		next := time.Now()
		for b := range queue {
			if w.rate > 0 {
				time.Sleep(time.Until(next))
				if late := time.Now().Add(-shaperSlack); next.Before(late) {
					next = late
				}
				next = next.Add(time.Duration(len(b)) * time.Second / time.Duration(w.rate))
			}
			waits.Add(-int64(len(b)))
			if _, err := to.Write(b); err != nil {
				from.Close()
				for range queue { // the reader must not wait for room
				}
				return
			}
		}
		to.(*net.TCPConn).CloseWrite()
	})
	passed, lost := 0, false
	for {
		b := make([]byte, piece)
		n, err := from.Read(b)
		s.passed.Add(int64(n))
		if passed += n; w.resetAt > 0 && passed > w.resetAt {
			reset(to)
			reset(from)
			break
		}
		if lost = lost || w.hole > 0 && n > w.hole; n > 0 && !lost {
			queue <- b[:n]
			waits.Add(int64(n))
			most(&s.deepest, waits.Load())
		}
		if err != nil {
			break
		}
	}
	close(queue)
	writer.Wait()
}
