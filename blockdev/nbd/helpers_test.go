package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// patience is how long a test waits for what must come at once, on however slow a machine.
const patience = 20 * time.Second

// TestMain checks, behind all tests, that every server took its goroutines with it.
func TestMain(m *testing.M) {
	code := m.Run()
	deadline := time.Now().Add(patience)
	for left := routines(); left != ""; left = routines() {
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, "goroutines were left behind:\n"+left)
			os.Exit(1)
		}
		runtime.Gosched()
	}
	os.Exit(code)
}

// routines are the stacks of this package's goroutines.
func routines() string {
	stack := make([]byte, 1<<20)
	stack = stack[:runtime.Stack(stack, true)]
	var left []string
	for g := range strings.SplitSeq(string(stack), "\n\n") {
		if strings.Contains(g, ").routine") {
			left = append(left, g)
		}
	}
	return strings.Join(left, "\n\n")
}

// disk is a Backend on a Device.
type disk struct {
	blockdev.Device
	readOnly atomic.Bool
	dear     atomic.Bool // zeroing costs as much as writing
}

func (d *disk) Size() int64                       { return d.Info().Size }
func (d *disk) ReadOnly() bool                    { return d.readOnly.Load() }
func (d *disk) CheapZero() bool                   { return !d.dear.Load() }
func (d *disk) ReadAt(p []byte, off int64) error  { _, err := d.Device.ReadAt(p, off); return err }
func (d *disk) WriteAt(p []byte, off int64) error { _, err := d.Device.WriteAt(p, off); return err }
func (d *disk) Trim(off, n int64) error           { return d.Discard(off, n) }

// lines gathers a log.
type lines struct {
	mu   sync.Mutex
	text []string
}

func (l *lines) add(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, text)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.text, "\n")
}

// server is a Server behind a unix socket.
type server struct {
	*Server
	path    string
	log     *lines
	serving sync.WaitGroup
}

// serve starts a server that ends with the test.
func serve(t testing.TB, o Options, exports ...Export) *server {
	t.Helper()
	log := &lines{}
	o.Log = log.add
	s := &server{Server: NewServer(o, exports...), path: filepath.Join(socketDir(t), "s"), log: log}
	l, err := Listen("unix:" + s.path)
	if err != nil {
		t.Fatal(err)
	}
	s.serveOn(t, l)
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Errorf("close the server: %v", err)
		}
		s.serving.Wait()
	})
	return s
}

func (s *server) serveOn(t testing.TB, l net.Listener) {
	s.serving.Go(func() {
		if err := s.Serve(l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

// socketDir is a folder with a short name: a test's own may be too long for a socket's path.
func socketDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// client is one that does nothing by itself, so that it can do everything wrong.
type client struct {
	t    testing.TB
	nc   net.Conn
	want map[uint64]int // bytes behind a simple reply, by the cookies of reads
}

func dial(t testing.TB, s *server) *client {
	t.Helper()
	nc, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &client{t: t, nc: nc, want: map[uint64]int{}}
}

func (c *client) write(parts ...any) {
	c.t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		if s, ok := p.(string); ok {
			b.WriteString(s)
		} else if err := binary.Write(&b, be, p); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := c.nc.Write(b.Bytes()); err != nil {
		c.t.Fatalf("the client writes %d bytes: %v", b.Len(), err)
	}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.nc, b); err != nil {
		c.t.Fatalf("the client reads %d bytes: %v", n, err)
	}
	return b
}

// mustEnd checks that the server hangs up and has nothing more to say.
func (c *client) mustEnd() {
	c.t.Helper()
	b, err := io.ReadAll(c.nc)
	if errors.Is(err, os.ErrDeadlineExceeded) || len(b) > 0 {
		c.t.Errorf("the connection goes on: %x, %v", b, err)
	}
}

func (c *client) hello() *client {
	c.t.Helper()
	c.read(greetingSize)
	c.write(uint32(flagFixedNewstyle | flagNoZeroes))
	return c
}

func (c *client) option(option uint32, data string) {
	c.t.Helper()
	c.write(magicOption, option, uint32(len(data)), data)
}

// answer reads replies to an option until the last one, and returns its kind.
func (c *client) answer(option uint32) (last uint32, data string) {
	c.t.Helper()
	for {
		h := c.read(optReplySize)
		if be.Uint64(h) != magicOptReply || be.Uint32(h[8:]) != option {
			c.t.Fatalf("a reply to option %d: %x", option, h)
		}
		kind := be.Uint32(h[12:])
		data = string(c.read(int(be.Uint32(h[16:]))))
		if kind == repAck || kind>>31 == 1 {
			return kind, data
		}
	}
}

// ask sends an option that must be answered with want.
func (c *client) ask(option uint32, data string, want uint32) *client {
	c.t.Helper()
	c.option(option, data)
	if kind, text := c.answer(option); kind != want {
		c.t.Fatalf("option %d: reply %#x %q, want %#x", option, kind, text, want)
	}
	return c
}

func text(s string) string { return string(be.AppendUint32(nil, uint32(len(s)))) + s }

func infoFor(name string) string { return text(name) + "\x00\x00" }

func metaFor(name string, queries ...string) string {
	s := text(name) + string(be.AppendUint32(nil, uint32(len(queries))))
	for _, q := range queries {
		s += text(q)
	}
	return s
}

// attach is a client in transmission, with simple replies.
func attach(t testing.TB, s *server, name string) *client {
	t.Helper()
	return dial(t, s).hello().ask(optGo, infoFor(name), repAck)
}

// attachStructured is one with structured replies and base:allocation.
func attachStructured(t testing.TB, s *server, name string) *client {
	t.Helper()
	return dial(t, s).hello().ask(optStructuredReply, "", repAck).
		ask(optSetMeta, metaFor(name, metaAllocation), repAck).ask(optGo, infoFor(name), repAck)
}

func (c *client) send(r request, payload string) {
	c.t.Helper()
	if r.command == cmdRead {
		c.want[r.cookie] = int(r.length)
	}
	c.write(magicRequest, r.flags, r.command, r.cookie, r.offset, r.length, payload)
}

// got is a reply.
type got struct {
	cookie uint64
	code   Code
	kind   uint16 // of a structured one
	data   string // behind the heads; of an error, its text
}

func (c *client) recv() got {
	c.t.Helper()
	h := c.read(replySize)
	switch be.Uint32(h) {
	case magicReply:
		g := got{cookie: be.Uint64(h[8:]), code: Code(be.Uint32(h[4:]))}
		if g.code == codeOK {
			g.data = string(c.read(c.want[g.cookie]))
		}
		return g
	case magicStructured:
		g := got{cookie: be.Uint64(h[8:]), kind: be.Uint16(h[6:])}
		if be.Uint16(h[4:]) != chunkDone {
			c.t.Errorf("flags of a chunk: %x", h)
		}
		g.data = string(c.read(int(be.Uint32(c.read(4)))))
		if g.kind == chunkError {
			g.code, g.data = Code(be.Uint32([]byte(g.data))), g.data[6:]
		}
		return g
	}
	c.t.Fatalf("a reply that is none: %x", h)
	return got{}
}

// do sends a request and waits for its reply.
func (c *client) do(r request, payload string) got {
	c.t.Helper()
	c.send(r, payload)
	g := c.recv()
	if g.cookie != r.cookie {
		c.t.Fatalf("reply to %d, want %d", g.cookie, r.cookie)
	}
	return g
}

// must is do for what must succeed.
func (c *client) must(r request, payload string) string {
	c.t.Helper()
	g := c.do(r, payload)
	if g.code != codeOK {
		c.t.Fatalf("%s: error %d %q", r.name(), g.code, g.data)
	}
	return g.data
}

// await waits until a condition holds that others bring about.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
