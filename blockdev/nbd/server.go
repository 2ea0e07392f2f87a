package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// maxPayload is the longest read or write: what the protocol tells servers to support at least.
const maxPayload = 32 << 20

// Options are a server's. Zero values stand for the defaults.
type Options struct {
	// MaxConnections is how many clients may be connected at a time, in handshake or behind it: 64.
	// Others are hung up on at once.
	MaxConnections int

	// MaxInflight is how many bytes of payload may be in memory, over all connections: 64 MiB, and at
	// least one longest request of 32 MiB. Free buffers are kept for reuse and count as well.
	MaxInflight int64

	// BlockSize is the block size that clients are told to prefer, a power of two: 4096.
	BlockSize int

	// HandshakeTimeout is how long a client may take until it has chosen an export: 10 seconds.
	HandshakeTimeout time.Duration

	// Log takes one line without a newline; it may be called from many goroutines. A client cannot make
	// it many lines: see logBurst.
	Log func(text string)
}

func (o Options) withDefaults() Options {
	if o.MaxConnections <= 0 {
		o.MaxConnections = 64
	}
	if o.MaxInflight <= 0 {
		o.MaxInflight = 64 << 20
	}
	o.MaxInflight = max(o.MaxInflight, maxPayload)
	if o.BlockSize <= 0 {
		o.BlockSize = blockdev.Alignment
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	return o
}

// Server offers volumes to NBD clients.
type Server struct {
	o       Options
	exports []Export
	pool    *blockdev.Pool // of payloads
	log     limitedLog

	closing    chan struct{}  // closed when Close begins
	goroutines sync.WaitGroup // connections and the watchman; Add under mu while not closing
	clock      clock
	starving   atomic.Int32 // goroutines that wait for a buffer

	mu        sync.Mutex
	closed    bool
	watching  bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	gone      Stats // of connections that have ended
	refused   uint64
}

// NewServer makes a server. The names of the exports must differ. A client that names none gets the only
// one, where there is only one.
func NewServer(o Options, exports ...Export) *Server {
	o = o.withDefaults()
	s := &Server{
		o:         o,
		exports:   exports,
		pool:      blockdev.NewPool(o.MaxInflight),
		log:       limitedLog{to: o.Log},
		closing:   make(chan struct{}),
		listeners: map[net.Listener]struct{}{},
		conns:     map[*conn]struct{}{},
	}
	s.clock.ticks.Store(1)
	return s
}

// find returns the export of a name, or nil.
func (s *Server) find(name string) *Export {
	for i := range s.exports {
		if s.exports[i].Name == name {
			return &s.exports[i]
		}
	}
	if name == "" && len(s.exports) == 1 {
		return &s.exports[0]
	}
	return nil
}

func (s *Server) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// Serve accepts connections from l until Close, and then returns nil. It closes l. It may be called for
// several listeners.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if !s.addListener(l) {
		return nil
	}
	defer s.removeListener(l)
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			s.admit(nc)
		case s.isClosing():
			return nil
		case passing(err):
			s.logf("accept: %v", err)
			select {
			case <-time.After(100 * time.Millisecond): // what is short now may not be then
			case <-s.closing:
			}
		default:
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
	}
}

// passing tells an accept's failure that says nothing about the next one.
func passing(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[l] = struct{}{}
	if !s.watching {
		s.watching = true
		s.goroutines.Add(1)
		go s.routineWatch()
	}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// admit starts a connection, or hangs up where there are enough.
func (s *Server) admit(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= s.o.MaxConnections {
		s.refused++
		nc.Close()
		return
	}
	c := &conn{s: s, nc: nc, since: time.Now()}
	c.in = newReader(nc)
	c.out.init(c)
	c.ctx, c.stop = context.WithCancel(context.Background())
	s.conns[c] = struct{}{}
	s.goroutines.Add(1)
	go s.routineConn(c)
}

// routineConn is a client's life.
func (s *Server) routineConn(c *conn) {
	defer s.goroutines.Done()
	err := s.serve(c)
	c.cut()
	switch {
	case ordinary(err), s.isClosing():
	case c.stalled.Load():
		s.logf("connection from %s ended: %v", peer(c.nc), errStalled)
	default:
		s.logf("connection from %s ended: %v", peer(c.nc), err)
	}
	s.mu.Lock()
	delete(s.conns, c)
	c.stats.addTo(&s.gone)
	s.mu.Unlock()
}

func (s *Server) serve(c *conn) error {
	tune(c.nc)
	if err := c.nc.SetDeadline(time.Now().Add(s.o.HandshakeTimeout)); err != nil {
		return fmt.Errorf("set the handshake's deadline: %w", err)
	}
	h := handshake{s: s, in: c.in, out: c.nc}
	e, terms, err := h.run()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the handshake took longer than %v", s.o.HandshakeTimeout)
	}
	if err != nil {
		return err
	}
	if !s.begin(c, e, terms) {
		return nil
	}
	return c.transmit()
}

// begin takes a connection from the handshake to the transmission. From here on Close lets it finish.
func (s *Server) begin(c *conn, e *Export, t terms) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || c.nc.SetDeadline(time.Time{}) != nil {
		return false
	}
	c.export, c.terms, c.backend = e, t, e.Backend
	return true
}

// Close stops accepting and reading, lets the requests that were read finish and be answered, and hangs
// up. Where ctx ends before that, connections are cut, and its error is returned. Either way Close waits
// for every goroutine, that is also for the backend to return from what it was called for. It may be
// called again.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
		for l := range s.listeners {
			l.Close()
		}
		for c := range s.conns {
			if c.export == nil {
				c.cut()
			} else if c.nc.SetReadDeadline(time.Unix(1, 0)) != nil { // who reads stops reading
				c.cut()
			}
		}
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.goroutines.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.cut()
	}
	s.mu.Unlock()
	<-done
	return fmt.Errorf("connections were cut: %w", ctx.Err())
}

// tune asks the socket for speed. Where it refuses, nothing is lost but speed.
func tune(nc net.Conn) {
	if c, ok := nc.(*net.TCPConn); ok {
		_ = c.SetNoDelay(true)
	}
	if c, ok := nc.(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok {
		_ = c.SetReadBuffer(socketBuffer)
		_ = c.SetWriteBuffer(socketBuffer)
	}
}

// socketBuffer is what is asked for; the kernel gives no more than its own limit.
const socketBuffer = 1 << 20

// peer names a client in the log. Clients of a unix socket have no names.
func peer(nc net.Conn) string {
	a := nc.RemoteAddr()
	if a == nil || a.String() == "" || a.String() == "@" {
		return "a local client"
	}
	return a.String()
}
