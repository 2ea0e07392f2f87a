package engine

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// probeServer is a node with two volumes, in this process, until the test ends.
func probeServer(t *testing.T, edit func(*ServerOptions)) (addr string) {
	t.Helper()
	dir := t.TempDir()
	o := ServerOptions{StateDir: dir, Listen: "127.0.0.1:0", Insecure: true, Version: "v1.2.3", Log: func(text string) { t.Log(text) },
		Volumes: map[string]VolumeConfig{"one": {Path: filepath.Join(dir, "one.img")}, "two": {Path: filepath.Join(dir, "two.img")}}}
	if edit != nil {
		edit(&o)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	for {
		st, err := FetchStatus(t.Context(), filepath.Join(dir, "control.sock"))
		if err == nil {
			return st.Listen
		}
		select {
		case err := <-done:
			done <- err
			t.Fatalf("serve ended: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestProbe(t *testing.T) {
	addr := probeServer(t, func(o *ServerOptions) { o.clock = func() time.Time { return time.Now().Add(time.Hour) } })
	r, err := Probe(t.Context(), ProbeOptions{Target: addr, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK || r.Address != addr || r.Version != "v1.2.3" || r.Node == "" || r.RTT <= 0 || len(r.Volumes) != 2 || r.Volumes[1].Name != "two" {
		t.Errorf("%+v", r)
	}
	if off := *r.ClockOffset/1000 - 3600; max(off, -off) > *r.ClockError/1000+1 {
		t.Errorf("the clock is told to be %v ms off, give or take %v", *r.ClockOffset, *r.ClockError)
	}
}

// TestProbeSeesEveryVolume, also where they do not fit into one answer.
func TestProbeSeesEveryVolume(t *testing.T) {
	s := &server{volumes: map[string]*volume{}}
	everyVolume := (&pass{gate: newGate(nil, "", nil)}).sees
	for i := range 2*wire.MaxVolumes + 3 {
		name := fmt.Sprintf("v%04d", i)
		s.volumes[name] = &volume{name: name, path: "/nowhere/at/all"}
		s.names = append(s.names, name)
	}
	var seen []string
	for {
		m := s.surveyed(uint32(len(seen)), everyVolume)
		if _, err := new(wire.Encoder).Append(nil, m); err != nil {
			t.Fatal(err)
		}
		for _, v := range m.Volumes {
			seen = append(seen, v.Name)
		}
		if !m.More {
			break
		}
	}
	if !slices.Equal(seen, s.names) {
		t.Errorf("%d of %d volumes are seen", len(seen), len(s.names))
	}
	only := func(name string) bool { return name == "v0007" || name == "v0200" }
	if m := s.surveyed(0, only); len(m.Volumes) != 2 || m.More || m.Volumes[1].Name != "v0200" {
		t.Errorf("a peer that was given two volumes sees %+v, more %v", m.Volumes, m.More)
	}
	if m := s.surveyed(1, only); len(m.Volumes) != 1 || m.More || m.Volumes[0].Name != "v0200" {
		t.Errorf("from the second on: %+v, more %v", m.Volumes, m.More)
	}
	if m := s.surveyed(noVolumes, everyVolume); len(m.Volumes) != 0 || m.More {
		t.Errorf("%d volumes where none was wanted", len(m.Volumes))
	}
}

// TestProbeTriesAddresses: a dead address costs its share of the time and no more.
func TestProbeTriesAddresses(t *testing.T) {
	addr := probeServer(t, nil)
	_, port, _ := net.SplitHostPort(addr)
	lookup := func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}, nil
	}
	r, err := Probe(t.Context(), ProbeOptions{Target: "mirror.test:" + port, Timeout: time.Minute, lookup: lookup})
	if err != nil || len(r.Addresses) != 2 || r.Addresses[0].Class != string(wire.ClassRefused) || r.Address != "127.0.0.1:"+port {
		t.Errorf("%+v, %v", r, err)
	}
	outside := func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1")}, nil
	}
	_, err = Probe(t.Context(), ProbeOptions{Target: "mirror.test:" + port, lookup: outside})
	if kindOf(err) != KindUsage {
		t.Errorf("plain text to another machine: %v", err)
	}
}

func kindOf(err error) Kind {
	if e, ok := err.(*Error); ok {
		return e.Kind
	}
	return -1
}

// strange answers one connection after the other with a function.
func strange(t *testing.T, answer func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			answer(nc)
			nc.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// TestProbeOfOthers: each cause has its class and its kind.
func TestProbeOfOthers(t *testing.T) {
	says := func(m wire.Message) func(net.Conn) {
		return func(nc net.Conn) {
			conn := wire.NewConn(nc, wire.ConnOptions{})
			conn.Next()
			conn.Send(m)
			conn.Next()
			conn.Close(nil)
		}
	}
	for name, c := range map[string]struct {
		answer  func(net.Conn)
		timeout time.Duration
		class   wire.Class
		kind    Kind
	}{
		"no probe":      {says(&wire.Refused{Code: wire.CodeProtocol, Text: "unknown role 5"}), time.Minute, wire.ClassVersion, KindState},
		"stops":         {says(&wire.Refused{Code: wire.CodeStopped}), time.Minute, wire.ClassPeerStopped, KindState},
		"no trust":      {says(&wire.Refused{Code: wire.CodeAuth}), time.Minute, wire.ClassAuth, KindAuth},
		"wrong role":    {says(&wire.Hello{Role: wire.RoleMirror}), time.Minute, wire.ClassProtocol, KindNetwork},
		"wrong message": {says(&wire.Ping{}), 100 * time.Millisecond, wire.ClassTimeout, KindNetwork},
		"web server":    {func(nc net.Conn) { nc.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, time.Minute, wire.ClassProtocol, KindNetwork},
		"hangs": {func(nc net.Conn) {
			nc.Read(make([]byte, 1))
			nc.SetDeadline(time.Now().Add(time.Second))
			nc.Read(make([]byte, 1<<16))
			nc.Read(make([]byte, 1))
		}, 100 * time.Millisecond, wire.ClassTimeout, KindNetwork},
		"closes at once": {func(nc net.Conn) { nc.(*net.TCPConn).SetLinger(0) }, time.Minute, wire.ClassReset, KindNetwork},
		"closed":         {nil, time.Minute, wire.ClassRefused, KindNetwork},
	} {
		t.Run(name, func(t *testing.T) {
			var addr string
			if c.answer != nil {
				addr = strange(t, c.answer)
			} else {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				addr = l.Addr().String()
				l.Close()
			}
			r, err := Probe(t.Context(), ProbeOptions{Target: addr, Timeout: c.timeout})
			if r.OK || r.Class != string(c.class) || kindOf(err) != c.kind || r.Error == "" {
				t.Errorf("class %q, kind %d, %v; want %q, %d", r.Class, kindOf(err), err, c.class, c.kind)
			}
		})
	}
	r, err := Probe(t.Context(), ProbeOptions{Target: "no-such-node.invalid:7417"})
	if r.Class != string(wire.ClassDNS) || kindOf(err) != KindNetwork {
		t.Errorf("a name that is none: %q, %v", r.Class, err)
	}
}

// turnstile passes connections on, and can be shut: those that stand go on.
type turnstile struct {
	t    *testing.T
	addr string
	to   string
	l    net.Listener
	all  sync.WaitGroup
	mu   sync.Mutex
	open []net.Conn
}

func newTurnstile(t *testing.T, to string) *turnstile {
	g := &turnstile{t: t, addr: "127.0.0.1:0", to: to}
	g.start()
	g.addr = g.l.Addr().String()
	t.Cleanup(func() {
		g.shut()
		g.mu.Lock()
		for _, nc := range g.open {
			nc.Close()
		}
		g.mu.Unlock()
		g.all.Wait()
	})
	return g
}

func (g *turnstile) shut() { g.l.Close() }

func (g *turnstile) start() {
	g.t.Helper()
	var err error
	if g.l, err = net.Listen("tcp", g.addr); err != nil {
		g.t.Fatal(err)
	}
	l := g.l
	g.all.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", g.to)
			if err != nil {
				from.Close()
				continue
			}
			g.mu.Lock()
			g.open = append(g.open, from, to)
			g.mu.Unlock()
			for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
				g.all.Go(func() {
					io.Copy(way[0], way[1])
					way[0].Close()
				})
			}
		}
	})
}

// TestProbeBesideASession: a mirror that could not be reached again is told while its session stands, and so is
// that it can be.
func TestProbeBesideASession(t *testing.T) {
	p := newLivePair(t, 1, nil)
	p.primary.stop()
	g := newTurnstile(t, p.mirrors[0].listen)
	p.primary.volume.Mirrors[0].Address = g.addr
	p.primary.probe = 10 * time.Millisecond
	p.primary.start()
	probed := func(ok bool) func() bool {
		return func() bool {
			m := p.mirrorStatus(0)
			return m.State == "connected" && m.Probe != nil && m.Probe.OK == ok
		}
	}
	eventually(t, "a probe is well", probed(true))
	g.shut()
	eventually(t, "a probe tells", probed(false))
	if m := p.mirrorStatus(0); m.Probe.Class != string(wire.ClassRefused) || m.Probe.Error == "" || m.LastDisconnect != nil {
		t.Errorf("%+v, %+v", m.Probe, m.LastDisconnect)
	}
	g.start()
	eventually(t, "a probe is well again", probed(true))
}
