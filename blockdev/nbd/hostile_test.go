package nbd

import (
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

// Whatever a client says in the handshake, the server hangs up or answers, and serves the next one.
func TestHostileHandshake(t *testing.T) {
	d, _ := memory(4096)
	s := serve(t, Options{}, Export{Name: "a", Backend: d}, Export{Name: "b", Backend: d})
	for name, say := range map[string]func(c *client){
		"HTTP":               func(c *client) { c.write("GET / HTTP/1.1\r\n\r\n") },
		"unknown flags":      func(c *client) { c.write(uint32(1 << 2)) },
		"wrong magic":        func(c *client) { c.write(uint32(3), magicServer, optList, uint32(0)) },
		"no such export":     func(c *client) { c.write(uint32(3)); c.option(optExportName, "nope") },
		"no name":            func(c *client) { c.write(uint32(3)); c.option(optExportName, "") },
		"a name without end": func(c *client) { c.write(uint32(3), magicOption, optExportName, uint32(1<<32-1)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, s)
			c.read(greetingSize)
			say(c)
			c.mustEnd()
		})
	}
	for name, say := range map[string]func(c *client){
		"nothing":          func(*client) {},
		"half the flags":   func(c *client) { c.write(uint16(0)) },
		"half an option":   func(c *client) { c.write(uint32(3), magicOption) },
		"half of its data": func(c *client) { c.write(uint32(3), magicOption, optGo, uint32(100), "abc") },
		"endless data":     func(c *client) { c.write(uint32(3), magicOption, optGo, uint32(1<<32-1), "abc") },
	} {
		t.Run("ends after "+name, func(t *testing.T) {
			c := dial(t, s)
			c.read(greetingSize)
			say(c)
			c.nc.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, c.nc) // an answer may come before the end; the end must
		})
	}
	attach(t, s, "b")
}

// Malformed data of options is refused, and the negotiation goes on.
func TestMalformedOptions(t *testing.T) {
	d, _ := memory(4096)
	s := serve(t, Options{}, Export{Name: "vol", Backend: d})
	c := dial(t, s).hello().ask(optStructuredReply, "", repAck)
	long := strings.Repeat("x", maxString+1)
	for _, o := range []struct {
		option uint32
		data   string
		want   uint32
	}{
		{optGo, "", repErrInvalid},
		{optGo, "\x00\x00\x00", repErrInvalid},
		{optGo, text("vol"), repErrInvalid},
		{optGo, text("vol") + "\x00\x02\x00\x00", repErrInvalid},
		{optGo, infoFor("vol") + "x", repErrInvalid},
		{optGo, infoFor("v\x00l"), repErrInvalid},
		{optGo, infoFor("v\xffl"), repErrInvalid},
		{optGo, infoFor(long), repErrInvalid},
		{optGo, "\xff\xff\xff\xff" + "vol", repErrInvalid},
		{optGo, infoFor(long[1:]), repErrUnknown},
		{optSetMeta, text("vol") + "\xff\xff\xff\xff", repErrInvalid},
		{optSetMeta, metaFor("vol", long), repErrInvalid},
		{optSetMeta, metaFor("nope", metaAllocation), repErrUnknown},
		{optSetMeta, metaFor("vol", "x:y", "qemu:dirty-bitmap:z", ""), repAck},
		{optListMeta, metaFor("vol")[:9], repErrInvalid},
		{optStructuredReply, "x", repErrInvalid},
		{4, "", repErrUnsup},
		{11, "", repErrUnsup},
		{optInfo, infoFor("vol"), repAck},
	} {
		c.ask(o.option, o.data, o.want)
	}
}

// The context goes with the export that it was asked for, and a failed request forgets it.
func TestMetaContextIsOfOneExport(t *testing.T) {
	d, _ := memory(4096)
	s := serve(t, Options{}, Export{Name: "a", Backend: d}, Export{Name: "b", Backend: d})
	status := request{command: cmdBlockStatus, length: 4096}
	for _, c := range []struct {
		name string
		last string // data of a second SET_META_CONTEXT
		kind uint32
		to   string
		want Code
	}{
		{"same", metaFor("a", metaAllocation), repAck, "a", codeOK},
		{"other export", metaFor("b", metaAllocation), repAck, "a", codeInvalid},
		{"none", metaFor("a"), repAck, "a", codeInvalid},
		{"failed", "x", repErrInvalid, "a", codeInvalid},
	} {
		conn := dial(t, s).hello().ask(optStructuredReply, "", repAck).ask(optSetMeta, metaFor("a", metaAllocation), repAck).
			ask(optSetMeta, c.last, c.kind).ask(optGo, infoFor(c.to), repAck)
		if g := conn.do(status, ""); g.code != c.want {
			t.Errorf("%s: %+v, want %d", c.name, g, c.want)
		}
	}
}

func TestOptionFlood(t *testing.T) {
	d, _ := memory(4096)
	s := serve(t, Options{}, Export{Name: "vol", Backend: d})
	c := dial(t, s).hello()
	for range maxOptions {
		c.ask(optList, "", repAck)
	}
	c.mustEnd()
	await(t, "the log", func() bool { return strings.Contains(s.log.String(), errFlood.Error()) })
}

// Who trickles, or says nothing at all, has only so much time; who is through has all of it.
func TestSlowHandshakes(t *testing.T) {
	d, _ := memory(4096)
	s := serve(t, Options{HandshakeTimeout: 200 * time.Millisecond}, Export{Name: "vol", Backend: d})
	ready := attach(t, s, "vol")
	silent, trickling, endless := dial(t, s), dial(t, s), dial(t, s).hello()
	trickling.read(greetingSize)
	trickling.write(uint16(0))
	silent.read(greetingSize)
	endless.write(magicOption, uint32(77), uint32(1<<32-1))
	silent.mustEnd()
	trickling.mustEnd()
	endless.mustEnd()
	await(t, "the log", func() bool { return strings.Count(s.log.String(), "handshake took longer") == 3 })
	ready.must(request{command: cmdRead, length: 1}, "")
}

// Connections beyond the limit are hung up on, and those within it do not notice.
func TestConnectionLimit(t *testing.T) {
	const limit, crowd = 4, 500
	d, _ := memory(4096)
	s := serve(t, Options{MaxConnections: limit}, Export{Name: "vol", Backend: d})
	first := attach(t, s, "vol")
	var others []*client
	for range limit - 1 {
		others = append(others, dial(t, s))
		others[len(others)-1].read(greetingSize)
	}
	for range crowd {
		dial(t, s).mustEnd()
	}
	first.must(request{command: cmdRead, length: 1}, "")
	if st := s.Stats(); st.Connections != limit || st.Refused != crowd {
		t.Errorf("stats: %+v", st)
	}
	names := 0
	for _, c := range s.Connections() {
		if c.Export == "vol" {
			names++
		}
	}
	if names != 1 {
		t.Errorf("%d connections are in transmission", names)
	}
	others[0].nc.Close()
	await(t, "room", func() bool { return s.Stats().Connections < limit })
	attach(t, s, "vol")
}

// What breaks the framing ends the connection: after what was asked before has been answered.
func TestBrokenTransmission(t *testing.T) {
	for name, say := range map[string]func(c *client){
		"wrong magic":   func(c *client) { c.write(magicReply, make([]byte, requestSize-4)) },
		"half a header": func(c *client) { c.write(magicRequest); c.nc.(*net.UnixConn).CloseWrite() },
		"half a payload": func(c *client) {
			c.send(request{command: cmdWrite, length: 4096}, "x")
			c.nc.(*net.UnixConn).CloseWrite()
		},
		"half of a refused": func(c *client) {
			c.send(request{command: cmdWrite, length: 1 << 31}, "x")
			c.nc.(*net.UnixConn).CloseWrite()
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, faults := memory(1 << 20)
			s := serve(t, Options{}, Export{Name: "vol", Backend: d})
			c := attach(t, s, "vol")
			c.send(request{command: cmdRead, cookie: 7, length: 10}, "")
			say(c)
			if g := c.recv(); g.cookie != 7 || g.code != codeOK {
				t.Errorf("the request before: %+v", g)
			}
			c.mustEnd()
			await(t, "the end", func() bool { return s.Stats().Connections == 0 })
			if faults.Calls(devtest.OpWrite) != 0 {
				t.Error("a broken write reached the backend")
			}
			if n := s.Stats().Inflight; n != 0 {
				t.Errorf("%d bytes in flight", n)
			}
			if !strings.Contains(s.log.String(), "ended: ") {
				t.Errorf("log: %s", s.log)
			}
		})
	}
}

// A client that goes while replies are on their way, or its requests are handled, leaves nothing behind.
func TestClientGoes(t *testing.T) {
	d, _ := memory(8 << 20)
	s := serve(t, Options{}, Export{Name: "vol", Backend: d})
	for range 5 {
		c := attach(t, s, "vol")
		for i := range uint64(40) {
			c.send(request{command: cmdRead, cookie: i, length: 1 << 20}, "")
		}
		c.read(1000)
		c.nc.Close()
	}
	await(t, "the end", func() bool { st := s.Stats(); return st.Connections == 0 && st.Inflight == 0 })
}

// A client that holds buffers and does not move is cut when another one needs memory, and not before.
func TestStalledClients(t *testing.T) {
	d, _ := memory(maxPayload)
	for name, stall := range map[string]func(c *client){
		"takes no replies":  func(c *client) { c.send(request{command: cmdRead, length: maxPayload}, "") },
		"sends no payload":  func(c *client) { c.send(request{command: cmdWrite, length: maxPayload}, "x") },
		"trickles requests": func(c *client) { c.send(request{command: cmdWrite, length: maxPayload - 4096}, "x") },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, Options{MaxInflight: maxPayload}, Export{Name: "vol", Backend: d})
			lazy, next := attach(t, s, "vol"), attach(t, s, "vol")
			stall(lazy)
			marked := func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				for c := range s.conns {
					if c.payload.since.Load()+c.out.mark.since.Load() != 0 {
						return true
					}
				}
				return false
			}
			await(t, "the stall", marked)
			for range 2 * stallTicks {
				s.watch()
			}
			if n := s.Stats().Connections; n != 2 {
				t.Fatalf("%d connections: a client was cut that was in nobody's way", n)
			}
			next.send(request{command: cmdRead, length: 4096}, "")
			await(t, "the other one waits", func() bool { return s.starving.Load() > 0 })
			s.watch()
			if g := next.recv(); g.code != codeOK {
				t.Errorf("the other one: %+v", g)
			}
			await(t, "the stalled one is cut", func() bool { return strings.Contains(s.log.String(), errStalled.Error()) })
		})
	}
}

// However often requests fail, the log stays short, and says what it left out.
func TestLogIsLimited(t *testing.T) {
	d, faults := memory(4096)
	faults.Inject(devtest.Rule{Op: devtest.OpRead, Effect: devtest.Fail(syscall.EIO)})
	s := NewServer(Options{}, Export{Name: "vol", Backend: d})
	var log lines
	s.log.to = log.add
	for range logBurst + 7 {
		s.logf("failed")
	}
	s.watch()
	s.logf("again")
	if have := log.String(); strings.Count(have, "failed") != logBurst || !strings.HasSuffix(have, "\n7 more lines like these were left out\nagain") {
		t.Error(have)
	}
}
