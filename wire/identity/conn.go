package identity

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/wire"
)

// conn is a connection with a peer that proved who it is.
type conn struct {
	*tls.Conn
	low   *gather
	node  *Node
	peer  Peer
	taken atomic.Bool // the peer has taken our key
}

// NetConn is the connection below.
func (c *conn) NetConn() net.Conn { return c.low.Conn }

// Read passes on what the peer says. The first bytes show a dialler that its key was taken; an alert in their
// place, that it was not.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.accepted()
	}
	if err != nil && wire.Classify(err) == wire.ClassAuth {
		if !c.taken.Load() {
			c.node.noteDeclined(c.peer)
		}
		shown := "the certificate"
		if c.peer.Own != (ID{}) {
			shown = "the key " + c.peer.Own.String()
		}
		err = fmt.Errorf("%w: the peer %s does not trust %s of this node: %w", wire.ErrAuth, c.peer.Name, shown, err)
	}
	return n, err
}

// accepted notes, once, that the peer took our key.
func (c *conn) accepted() {
	if !c.taken.Load() && !c.taken.Swap(true) {
		c.node.noteTaken(c.peer)
	}
}

// Close closes the connection below, at once. What TLS would say before that is for protocols that have no
// farewell of their own, and waits for seconds where nobody reads.
func (c *conn) Close() error { return c.low.Close() }

// WriteBuffers writes all of them with as few records and system calls as that takes.
func (c *conn) WriteBuffers(bufs *net.Buffers) (n int64, err error) {
	c.low.begin()
	for len(*bufs) > 0 && err == nil {
		var m int
		m, err = c.Conn.Write((*bufs)[0])
		n += int64(m)
		if (*bufs)[0] = (*bufs)[0][m:]; len((*bufs)[0]) == 0 {
			*bufs = (*bufs)[1:]
		}
	}
	if flushed := c.low.end(); err == nil {
		err = flushed
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	bufs := net.Buffers{p}
	n, err := c.WriteBuffers(&bufs)
	return int(n), err
}

// noteTaken notes what a connection that stands has shown.
func (n *Node) noteTaken(p Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.declined, p.Name)
	if n.knowsLocked(p.Name) != p.Own {
		n.knows[p.Name] = p.Own // the zero ID of a CA's certificate too: that goes first the next time
	}
}

// noteCertificate notes how long a peer's certificate is good; the zero value: it came with a key.
func (n *Node) noteCertificate(name string, s span) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.files.trust.byName(name); p != nil && !p.CertificateUntil.Equal(stamp(s.until)) {
		n.certs[name] = s
	}
}

func (n *Node) noteDeclined(p Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.declined[p.Name]++
}

// gatherSize is how many bytes one system call takes at most: a run of a mebibyte in a few of them.
const gatherSize = 256 << 10

// gather is the connection below TLS. Between begin and end it gathers what is written, as TLS writes each
// record of 16 KiB for itself; and it reads as much at once.
type gather struct {
	net.Conn
	in *bufio.Reader // nil while hands are shaken: a stranger gets no memory for it; of the reader

	mu        sync.Mutex
	shaking   bool // hands, over TCP
	gathering bool
	buf       []byte
}

// lastBytes of what is sent while hands are shaken go in a segment of their own. Where segments are so large that all of it
// would be one, and that vanishes, the small one that arrives tells a black hole from silence (wire/blackhole.go).
const lastBytes = 64

// shook ends that, before anybody else reads.
func (g *gather) shook() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shaking = false
	g.in = bufio.NewReaderSize(g.Conn, gatherSize)
}

// Read takes from the kernel what many records of TLS are in, of which each reads for itself as well.
func (g *gather) Read(p []byte) (int, error) {
	if g.in != nil {
		return g.in.Read(p)
	}
	return g.Conn.Read(p)
}

func (g *gather) NetConn() net.Conn { return g.Conn }

func (g *gather) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gathering = true
}

func (g *gather) end() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gathering = false
	return g.flushLocked()
}

func (g *gather) flushLocked() error {
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.Conn.Write(g.buf)
	g.buf = g.buf[:0]
	return err
}

func (g *gather) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(p) - lastBytes; g.shaking && n > lastBytes {
		if n, err := g.Conn.Write(p[:n]); err != nil {
			return n, err
		}
		_, _ = g.Conn.Write(p[n:]) // where the peer is gone by now, what it said is still to be read
		return len(p), nil
	}
	if !g.gathering {
		return g.Conn.Write(p)
	}
	if len(g.buf)+len(p) > gatherSize {
		if err := g.flushLocked(); err != nil {
			return 0, err
		}
	}
	g.buf = append(g.buf, p...)
	return len(p), nil
}
