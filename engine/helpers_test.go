package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

const mib = 1 << 20

// image makes a file of size bytes with extents of random data, text-like data, written zeroes and holes.
func image(t *testing.T, name string, size int64, seed uint64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for off := int64(0); off < size; {
		n := min(int64(4096+r.IntN(3*mib)), size-off)
		buf := make([]byte, n)
		switch r.IntN(4) {
		case 0: // a hole
			off += n
			continue
		case 1: // zeroes that are allocated
		case 2:
			for i := range buf {
				buf[i] = "the quick brown fox "[(i+int(seed))%20]
			}
		default:
			fill(r, buf)
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			t.Fatal(err)
		}
		off += n
	}
	return path
}

// denseImage makes a file of random data, with no zero block in it.
func denseImage(t *testing.T, size int64, seed uint64) string {
	t.Helper()
	buf := make([]byte, size)
	fill(rand.New(rand.NewPCG(seed, 3)), buf)
	path := filepath.Join(t.TempDir(), "src")
	if err := os.WriteFile(path, buf, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fill takes eight bytes at a time: under the race detector each step costs.
func fill(r *rand.Rand, buf []byte) {
	for ; len(buf) >= 8; buf = buf[8:] {
		binary.LittleEndian.PutUint64(buf, r.Uint64())
	}
	for i := range buf {
		buf[i] = byte(r.Uint32())
	}
}

// scribble overwrites n blocks of 4 KiB at random places and returns how many 64 KiB blocks that touched.
func scribble(t *testing.T, path string, n int, seed uint64) int {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, _ := f.Stat()
	r := rand.New(rand.NewPCG(seed, 2))
	touched := map[int64]bool{}
	buf := make([]byte, 4096)
	for range n {
		off := r.Int64N(fi.Size()/4096) * 4096
		fill(r, buf)
		if _, err := f.WriteAt(buf, off); err != nil {
			t.Fatal(err)
		}
		touched[off/DefaultBlockSize] = true
	}
	return len(touched)
}

func mustEqual(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(x) != len(y) {
		t.Fatalf("%s has %d bytes, %s has %d", a, len(x), b, len(y))
	}
	if !bytes.Equal(x, y) {
		for i := range x {
			if x[i] != y[i] {
				t.Fatalf("%s and %s differ at %d", a, b, i)
			}
		}
	}
}

// syncer runs syncs with one state directory.
type syncer struct {
	t     *testing.T
	state string
	edit  func(*SyncOptions)
}

func newSyncer(t *testing.T) *syncer { return &syncer{t: t, state: t.TempDir()} }

func (s *syncer) try(ctx context.Context, src, dst string, edits ...func(*SyncOptions)) (Report, error) {
	s.t.Helper()
	from, err := ParseEndpoint(src)
	if err != nil {
		s.t.Fatal(err)
	}
	to, err := ParseEndpoint(dst)
	if err != nil {
		s.t.Fatal(err)
	}
	o := SyncOptions{Source: from, Target: to, StateDir: s.state, Insecure: true, Retry: 20 * time.Second,
		Warn: func(text string) { s.t.Log("warning:", text) }}
	for _, e := range append([]func(*SyncOptions){s.edit}, edits...) {
		if e != nil {
			e(&o)
		}
	}
	return Sync(ctx, o)
}

func (s *syncer) run(src, dst string, edits ...func(*SyncOptions)) Report {
	s.t.Helper()
	rep, err := s.try(s.t.Context(), src, dst, edits...)
	if err != nil {
		s.t.Fatalf("sync %s %s: %v", src, dst, err)
	}
	return rep
}

func wantKind(t *testing.T, err error, kind Kind) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got error %v, want an *Error of kind %d", err, kind)
	}
	if e.Kind != kind {
		t.Fatalf("got kind %d (%v), want %d", e.Kind, err, kind)
	}
	if e.Next == "" {
		t.Errorf("error %q has no next step", err)
	}
}

// node is a server in this process.
type node struct {
	addr    string
	control string
	stop    func()
}

func startNode(t *testing.T, volumes map[string]string) *node {
	t.Helper()
	state := t.TempDir()
	configs := map[string]VolumeConfig{}
	for name, path := range volumes {
		configs[name] = VolumeConfig{Path: path}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var routine sync.WaitGroup
	var serveErr error
	routine.Go(func() {
		serveErr = Serve(ctx, ServerOptions{StateDir: state, Listen: "127.0.0.1:0", Volumes: configs, Insecure: true,
			Version: "test", Log: func(text string) { t.Log("node:", text) }})
	})
	n := &node{control: filepath.Join(state, "control.sock")}
	n.stop = sync.OnceFunc(func() {
		cancel()
		routine.Wait()
		if serveErr != nil {
			t.Errorf("serve: %v", serveErr)
		}
	})
	t.Cleanup(n.stop)
	eventually(t, "the control socket appears", func() bool {
		st, err := FetchStatus(t.Context(), n.control)
		n.addr = st.Listen
		return err == nil
	})
	return n
}

// eventually polls a condition, with a limit that only a broken program reaches.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("it did not happen: %s", what)
		case <-tick.C:
		}
	}
}

// frameProxy stands between a client and addr, and hands every Data of the client to tamper, which may
// change it or its payload. With tamper returning false the connection is cut there, mid-frame.
func frameProxy(t *testing.T, addr string, tamper func(d *wire.Data) bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var routines sync.WaitGroup
	t.Cleanup(func() { l.Close(); routines.Wait() })
	routines.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", addr)
			if err != nil {
				client.Close()
				continue
			}
			a, b := wire.NewConn(client, wire.ConnOptions{}), wire.NewConn(server, wire.ConnOptions{})
			a.Established()
			b.Established()
			forward := func(from, to *wire.Conn, tamper func(*wire.Data) bool) {
				defer from.Close(io.EOF)
				defer to.Close(io.EOF)
				var run []wire.Message // is sent as a whole
				for {
					m, err := from.Next()
					if err != nil {
						return
					}
					run = append(run, m)
					if d, ok := m.(*wire.Data); ok {
						d.Payload = make([]byte, d.PayloadLength)
						if from.ReadPayload(d.Payload) != nil || !tamper(d) {
							return
						}
						if d.Follow > 0 {
							continue
						}
					}
					if to.Send(run...) != nil {
						return
					}
					run = nil
				}
			}
			routines.Go(func() { forward(a, b, tamper) })
			routines.Go(func() { forward(b, a, tamper) })
		}
	})
	return l.Addr().String()
}
