package e2e

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// dialExport opens a bare connection to the export, until the end of the (sub)test.
func (p *livePair) dialExport(t *testing.T) net.Conn {
	t.Helper()
	var nc net.Conn
	until(t, "the export", func() (ok bool) {
		var err error
		nc, err = net.Dial("unix", p.sock) // the queue of those who wait for it may be full
		return err == nil
	})
	t.Cleanup(func() { nc.Close() })
	return nc
}

// opened is a bare connection on which the export v was opened.
func (p *livePair) opened(t *testing.T) net.Conn {
	t.Helper()
	nc := p.dialExport(t)
	nc.Write(nbdOption(3, 7, append(append(binary.BigEndian.AppendUint32(nil, 1), 'v'), 0, 0)))
	nc.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.CopyN(io.Discard, nc, 18); err != nil {
		t.Fatal(err)
	}
	for {
		var reply struct {
			Magic             uint64
			Option, Type, Len uint32
		}
		if err := binary.Read(nc, binary.BigEndian, &reply); err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, nc, int64(reply.Len))
		if reply.Type == 1 { // acknowledged
			nc.SetReadDeadline(time.Time{})
			return nc
		}
	}
}

// nbdOption is what a client says first: its flags and one option.
func nbdOption(flags, option uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, flags)
	b = binary.BigEndian.AppendUint64(b, 0x49484156454F5054)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// nbdRequest is the head of a request.
func nbdRequest(magic uint32, flags, command uint16, off uint64, n uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, magic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, 77)
	b = binary.BigEndian.AppendUint64(b, off)
	return binary.BigEndian.AppendUint32(b, n)
}

const nbdMagic = 0x25609513

// Whatever strangers say to the export, and whenever they leave: others do not notice, and the memory stays
// bounded.
func TestLiveBadNBD(t *testing.T) {
	t.Parallel()
	const size = 64 * mib
	s := &stamped{livePair: startLivePair(t, plain, size)}
	s.h = s.history(size)
	s.w = stamp.NewWriter(s.h, stamp.Load{Network: "unix", Address: s.sock, Export: "v", Seed: *seed, Depth: 2})
	s.w.Start()
	t.Cleanup(func() { s.w.Stop() })
	t.Run("handshake", func(t *testing.T) { badHandshakes(t, s.livePair) })
	s.written(100)
	t.Run("requests", func(t *testing.T) { badRequests(t, s.livePair) })
	s.written(100)
	t.Run("many", func(t *testing.T) { manyConnections(t, s.livePair) })
	s.written(100)
	t.Run("half-open", func(t *testing.T) { halfOpen(t, s.livePair) })
	s.written(100)
	if got := s.primary.highWater(); got > 256*mib {
		t.Errorf("the primary's memory reached %d MiB", got/mib)
	}
	if n := s.w.Lost.Load() + s.w.Errors.Load(); n > 0 {
		t.Errorf("%d requests of a client beside them failed", n)
	}
	s.finish()
}

func badHandshakes(t *testing.T, p *livePair) {
	rng := rand.New(random(t))
	junk := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	huge := nbdOption(3, 7, nil)
	binary.BigEndian.PutUint32(huge[16:], 1<<31)
	name := append(binary.BigEndian.AppendUint32(nil, 1<<30), 'v')
	infos := append(binary.BigEndian.AppendUint32(nil, 1), 'v', 0xff, 0xff)
	for what, b := range map[string][]byte{
		"nothing": nil, "http": []byte("GET / HTTP/1.1\r\n\r\n"), "zeroes": make([]byte, 70000), "junk": junk(70000),
		"unknown flags": nbdOption(0xffffffff, 7, nil), "no flags": nbdOption(0, 7, nil), "half an option": nbdOption(3, 7, []byte("abcdef"))[:19],
		"junk behind flags": append([]byte{0, 0, 0, 3}, junk(5000)...), "huge option": huge, "name too long": nbdOption(3, 7, name),
		"more infos than there are": nbdOption(3, 7, infos), "empty go": nbdOption(3, 7, nil), "starttls": nbdOption(3, 5, nil),
		"list with data": nbdOption(3, 3, []byte("x")), "old export name": nbdOption(3, 1, []byte("nothing")), "unknown option": nbdOption(3, 99, junk(100)),
		"meta context, cut": nbdOption(3, 10, []byte{0, 0, 0, 1, 'v', 0, 0, 0, 9, 0, 0, 0, 200}),
	} {
		for _, leave := range []string{"closes", "stays", "reads"} {
			nc := p.dialExport(t)
			nc.Write(b)
			switch leave {
			case "closes":
				nc.Close()
			case "reads":
				nc.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				io.Copy(io.Discard, nc)
			}
			if p.primary.ended() {
				t.Fatalf("%s, %s: the primary ended: %s", what, leave, p.primary.err.String())
			}
		}
	}
}

// badRequests expects of each request either an error or the end of the connection, and that nothing is
// changed.
func badRequests(t *testing.T, p *livePair) {
	const size = 64 * mib
	for what, c := range map[string]struct {
		head    []byte
		payload int
		ends    bool // the connection may end
	}{
		"read behind the end":        {nbdRequest(nbdMagic, 0, 0, size, 512), 0, false},
		"read across the end":        {nbdRequest(nbdMagic, 0, 0, size-512, 1024), 0, false},
		"read at the top":            {nbdRequest(nbdMagic, 0, 0, 1<<64-512, 1024), 0, false},
		"write behind the end":       {nbdRequest(nbdMagic, 0, 1, size, 512), 512, false},
		"write across the end":       {nbdRequest(nbdMagic, 0, 1, size-512, 1024), 1024, false},
		"write at the top":           {nbdRequest(nbdMagic, 0, 1, 1<<64-512, 1024), 1024, false},
		"zeroes across the end":      {nbdRequest(nbdMagic, 0, 6, size-512, 1024), 0, false},
		"zeroes, 4 GiB":              {nbdRequest(nbdMagic, 0, 6, 0, 1<<32-1), 0, false},
		"trim across the end":        {nbdRequest(nbdMagic, 0, 4, size-512, 1024), 0, false},
		"read of 4 GiB":              {nbdRequest(nbdMagic, 0, 0, 0, 1<<32-1), 0, true},
		"write of 4 GiB":             {nbdRequest(nbdMagic, 0, 1, 0, 1<<32-1), 0, true},
		"unknown command":            {nbdRequest(nbdMagic, 0, 55, 0, 512), 0, true},
		"unknown flags":              {nbdRequest(nbdMagic, 0xffff, 0, 0, 512), 0, true},
		"wrong magic":                {nbdRequest(nbdMagic+1, 0, 0, 0, 512), 0, true},
		"structured block status":    {nbdRequest(nbdMagic, 0, 7, 0, 512), 0, true},
		"junk in place of a request": {[]byte("GET / HTTP/1.1\r\nHost: nobody at all\r\n\r\n"), 0, true},
	} {
		nc := p.opened(t)
		nc.Write(c.head)
		nc.Write(make([]byte, c.payload))
		var reply struct {
			Magic, Error uint32
			Handle       uint64
		}
		nc.SetReadDeadline(time.Now().Add(patience))
		if what == "write of 4 GiB" { // it may wait for the payload
			nc.(*net.UnixConn).CloseWrite()
		}
		err := binary.Read(nc, binary.BigEndian, &reply)
		switch {
		case err == nil && (reply.Magic != 0x67446698 || reply.Handle != 77 || reply.Error == 0):
			t.Errorf("%s: the answer is %+v", what, reply)
		case err == nil:
			t.Logf("%s: %v", what, syscall.Errno(reply.Error))
		case !c.ends:
			t.Errorf("%s: %v", what, err)
		}
		if err == nil && !c.ends { // it serves on
			nc.Write(nbdRequest(nbdMagic, 0, 3, 0, 0))
			if err := binary.Read(nc, binary.BigEndian, &reply); err != nil || reply.Error != 0 {
				t.Errorf("%s: flush afterwards: %+v, %v", what, reply, err)
			}
		}
		nc.Close()
	}
}

// manyConnections opens more than a server may want to serve; when they are gone it takes new ones.
func manyConnections(t *testing.T, p *livePair) {
	var all []net.Conn
	for range 3000 {
		nc, err := net.Dial("unix", p.sock)
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, nc)
	}
	t.Logf("%d connections at once", len(all))
	for _, nc := range all {
		nc.Close()
	}
	until(t, "a new connection to be served", func() bool {
		c, err := stamp.Dial("unix", p.sock, "v")
		if err != nil {
			return false
		}
		defer c.Close()
		return c.Flush() == nil
	})
}

// halfOpen leaves many requests half said and many replies unread.
func halfOpen(t *testing.T, p *livePair) {
	for i := range 42 { // a server may limit the connections that it serves
		nc := p.dialExport(t)
		nc.Write(nbdOption(3, 7, append(append(binary.BigEndian.AppendUint32(nil, 1), 'v'), 0, 0)))
		switch i % 3 {
		case 0: // a write whose payload does not come
			nc.Write(nbdRequest(nbdMagic, 0, 1, 0, 32*mib))
			nc.Write(make([]byte, 1000))
		case 1: // reads whose replies nobody fetches
			nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			for range 200 {
				if _, err := nc.Write(nbdRequest(nbdMagic, 0, 0, 0, 32*mib)); err != nil {
					break
				}
			}
		case 2: // half a head
			nc.Write(nbdRequest(nbdMagic, 0, 1, 0, 4096)[:15])
		}
	}
	until(t, "a good client beside them to be served", func() bool {
		c, err := stamp.Dial("unix", p.sock, "v")
		if err != nil {
			return false
		}
		defer c.Close()
		return c.Flush() == nil
	})
}
