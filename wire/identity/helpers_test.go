package identity

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// clock is a time that a test moves.
type clock struct {
	mu     sync.Mutex
	t      time.Time
	passed time.Duration
}

func newClock() *clock { return &clock{t: time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
	c.passed += max(d, 0)
}

// set is what a person or a time server does.
func (c *clock) set(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (c *clock) elapsed() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passed
}

const days = 24 * time.Hour

// testNode is a Node with a clock and a log of its own.
type testNode struct {
	*Node
	clock *clock
	mu    sync.Mutex
	log   []string
}

// sure looks until the node is sure of the time.
func (n *testNode) sure() (changed bool) {
	changed = n.Tick()
	n.clock.pass(certain)
	return n.Tick() || changed
}

func (n *testNode) logged(part string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.log, func(text string) bool { return strings.Contains(text, part) })
}

func newNode(t testing.TB, c *clock, change ...func(*Options)) *testNode {
	t.Helper()
	n, err := openNode(c, append([]func(*Options){func(o *Options) { o.Dir = filepath.Join(t.TempDir(), "keys") }}, change...)...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func openNode(c *clock, change ...func(*Options)) (*testNode, error) {
	n := &testNode{clock: c}
	o := Options{Now: c.now, Elapsed: c.elapsed, Log: func(text string) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.log = append(n.log, text)
	}}
	for _, f := range change {
		f(&o)
	}
	var err error
	n.Node, err = Open(o)
	return n, err
}

func trustBoth(t testing.TB, a, b *testNode) {
	t.Helper()
	must(t, a.Trust("b", b.ID().String(), nil))
	must(t, b.Trust("a", a.ID().String(), nil))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// met is what one side has of a handshake, and of the first bytes behind it.
type met struct {
	conn net.Conn
	peer Peer
	err  error
}

// tcp is a connection over loopback.
func tcp(t testing.TB) (dialler, acceptor net.Conn) {
	t.Helper()
	l, err := wire.Listen("127.0.0.1:0")
	must(t, err)
	defer l.Close()
	dialler, err = wire.Dial(t.Context(), l.Addr().String())
	must(t, err)
	acceptor, err = l.Accept()
	must(t, err)
	t.Cleanup(func() { dialler.Close(); acceptor.Close() })
	return dialler, acceptor
}

// meet has a dial b for the volume, and each say a word to the other.
func meet(t testing.TB, a, b *testNode, volume string, as As) (dialler, acceptor met) {
	t.Helper()
	x, y := tcp(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wait sync.WaitGroup
	wait.Go(func() {
		acceptor.conn, acceptor.peer, acceptor.err = b.Accept(ctx, y)
		acceptor.greet()
	})
	dialler.conn, dialler.peer, dialler.err = a.Dial(ctx, x, volume, as)
	dialler.greet()
	wait.Wait()
	return dialler, acceptor
}

func (m *met) greet() {
	if m.err != nil {
		return
	}
	if _, m.err = m.conn.Write([]byte("hello")); m.err != nil {
		return
	}
	b := make([]byte, 5)
	n, err := m.conn.Read(b)
	if m.err = err; err == nil && string(b[:n]) != "hello" {
		m.err = errors.New("other bytes came")
	}
	if m.err != nil {
		m.conn.Close()
	}
}

// classes are what the two errors are.
func classes(dialler, acceptor met) [2]wire.Class {
	return [2]wire.Class{wire.Classify(dialler.err), wire.Classify(acceptor.err)}
}
