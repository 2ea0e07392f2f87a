package e2e

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands between a dialling source and a server. It understands the frames of both directions, holds
// them against docs/PROTOCOL.md, counts, and lets a test change or cut what the source sends.
type proxy struct {
	t       testing.TB
	l       net.Listener
	backend atomic.Value // string

	// edit sees every frame of the dialler before it goes on. False resets both connections.
	// It is set before the first connection.
	edit func(*frame) bool

	shipped  atomic.Int64 // raw bytes of all Data frames that were passed on
	toServer atomic.Int64 // bytes, headers and all
	naks     atomic.Int64
	flushed  atomic.Int64 // highest position in a Flushed
	resumes  atomic.Int64 // Opened frames that go on from a recorded point

	mu    sync.Mutex
	conns map[net.Conn]bool
	pumps sync.WaitGroup
}

func newProxy(t testing.TB, backend string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, l: l, conns: map[net.Conn]bool{}}
	p.backend.Store(backend)
	p.pumps.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for c := range p.conns {
			c.Close()
		}
		p.conns = nil
		p.mu.Unlock()
		p.pumps.Wait()
	})
	return p
}

func (p *proxy) url(volume string) string { return "blk://" + p.l.Addr().String() + "/" + volume }

func (p *proxy) accept() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.backend.Load().(string))
		if err != nil {
			client.Close() // the server is dead at the moment: the client finds a reset, and comes again
			continue
		}
		if !p.track(client) || !p.track(server) {
			client.Close()
			server.Close()
			return
		}
		var both sync.WaitGroup
		both.Go(func() { p.fromClient(client, server) })
		both.Go(func() { p.fromServer(server, client) })
		p.pumps.Go(func() {
			both.Wait()
			p.untrack(client)
			p.untrack(server)
		})
	}
}

func (p *proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) untrack(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// fromClient passes on what the dialler says.
func (p *proxy) fromClient(client, server net.Conn) {
	var said conversation
	r := bufio.NewReaderSize(client, mib)
	for {
		f, err := readFrame(r)
		if err != nil {
			p.end(server, err)
			return
		}
		if err := said.add(f); err != nil {
			p.t.Errorf("the source breaks docs/PROTOCOL.md: %v", err)
		}
		if p.edit != nil && !p.edit(f) {
			reset(client)
			reset(server)
			return
		}
		if _, err := server.Write(f.bytes()); err != nil {
			reset(client)
			return
		}
		p.toServer.Add(int64(headerSize + len(f.meta) + len(f.payload)))
		if f.kind() == typeData {
			p.shipped.Add(int64(f.rawLength()))
		}
	}
}

// fromServer passes on what the acceptor says.
func (p *proxy) fromServer(server, client net.Conn) {
	r := bufio.NewReaderSize(server, mib)
	for {
		f, err := readFrame(r)
		if err != nil {
			p.end(client, err)
			return
		}
		switch f.kind() {
		case typeOpened:
			if f.u64(16) > 0 {
				p.resumes.Add(1)
			}
		case typeNak:
			p.naks.Add(int64(len(f.meta) / 56))
		case typeFlushed:
			p.flushed.Store(max(p.flushed.Load(), f.position()))
		}
		if _, err := client.Write(f.bytes()); err != nil {
			return
		}
	}
}

// end tells the other side how a stream ended: in order, or by a process that died in the middle.
func (p *proxy) end(to net.Conn, err error) {
	var network net.Error
	switch {
	case errors.Is(err, io.EOF):
		to.(*net.TCPConn).CloseWrite()
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.As(err, &network):
		to.Close()
	default:
		p.t.Errorf("a frame breaks docs/PROTOCOL.md: %v", err)
		to.Close()
	}
}

// reset closes a connection so that the peer sees a reset.
func reset(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}
