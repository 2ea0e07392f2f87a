package e2e

import (
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// pretender listens and does something else than blkmirror with each connection.
func pretender(t testing.TB, behave func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				behave(nc)
			}()
		}
	}()
	return l.Addr().String()
}

// says sends bytes after it read the peer's first frame, then reads on until the peer leaves.
func says(b []byte) func(net.Conn) {
	return func(nc net.Conn) {
		readFrame(nc)
		nc.Write(b)
		io.Copy(io.Discard, nc)
	}
}

// foreign is a frame of another protocol version, of which only magic and version mean anything.
func foreign(version uint16) []byte {
	b := append([]byte("BLKM\x00\x00"), strings.Repeat("\xa5", 40)...)
	binary.LittleEndian.PutUint16(b[4:], version)
	return b
}

// huge is a frame whose header is right but for lengths that no type has.
func huge(kind byte, meta, payload uint32) []byte {
	f := newFrame(kind, nil)
	binary.LittleEndian.PutUint32(f.header[8:], meta)
	binary.LittleEndian.PutUint32(f.header[12:], payload)
	binary.LittleEndian.PutUint32(f.header[16:], 0)
	f.sealHeader()
	return f.header[:]
}

var strangers = map[string]func(net.Conn){
	"web server": func(nc net.Conn) {
		nc.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 Bad Request"))
	},
	"ssh banner": func(nc net.Conn) {
		nc.Write([]byte("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"))
		io.Copy(io.Discard, nc)
	},
	"newer version":           says(foreign(2)),
	"version 0":               says(foreign(0)),
	"garbage":                 says([]byte(strings.Repeat("\x00\xff\x17garbage", 1000))),
	"zeroes":                  says(make([]byte, 4096)),
	"huge meta":               says(huge(typeHello, 1<<31, 0)),
	"huge payload":            says(huge(typeData, 72, 1<<32-1)),
	"unknown type":            says(newFrame(200, make([]byte, 8)).bytes()),
	"Data in place of Hello":  says(newFrame(typeData, make([]byte, 72)).bytes()),
	"closes at once":          func(nc net.Conn) {},
	"resets at once":          func(nc net.Conn) { reset(nc) },
	"resets within a header":  func(nc net.Conn) { readFrame(nc); nc.Write(hello("").bytes()[:11]); reset(nc) },
	"closes within a message": func(nc net.Conn) { readFrame(nc); nc.Write(hello("").bytes()[:30]) },
	"hangs":                   func(nc net.Conn) { io.Copy(io.Discard, nc) },
	"hangs after Hello":       says(helloOf(2).bytes()),
}

// A remote that is something else: exit code 3, whichever side is the source, and nothing is changed.
func TestRemoteThatIsNoBlkmirror(t *testing.T) {
	t.Parallel()
	p := newPair(t, 3*mib)
	for name, behave := range strangers {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of the time of "hangs" is waiting
			url := "blk://" + pretender(t, behave) + "/v"
			r := blkmirror(t, "sync", "--insecure", "--retry", "0s", p.src, url).fails(t, 3)
			t.Logf("%s", r.stderr)
			dst := filepath.Join(folder(t), "dst")
			blkmirror(t, "sync", "--insecure", "--retry", "0s", "--state", dst+".state", url, dst).fails(t, 3)
			absent(t, dst)
		})
	}
	t.Run("real web server", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		web := &http.Server{Handler: http.NotFoundHandler()}
		go web.Serve(l)
		defer web.Close()
		r := blkmirror(t, "sync", "--insecure", p.src, "blk://"+l.Addr().String()+"/v").fails(t, 3)
		t.Logf("%s", r.stderr)
	})
}

// What strangers say to a server does not stop it, and nobody else notices.
func TestServerSurvivesStrangers(t *testing.T) {
	t.Parallel()
	p := newPair(t, 16*mib)
	s := serve(t, p.state, "v="+p.dst, "w="+p.dst+"2")
	beside := start(t, "sync", "--insecure", "--rate", "4M", p.src, s.url("w"))
	until(t, "a sync beside", func() bool { return s.sessions() == 1 })
	dataFrame := newFrame(typeData, make([]byte, 72)).bytes()
	greeting := hello("v").bytes()
	for name, b := range map[string][]byte{
		"nothing": nil, "http": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "garbage": []byte(strings.Repeat("\xde\xad\xbe\xef", 4096)),
		"other version": foreign(2), "half a header": greeting[:13], "half a Hello": greeting[:40],
		"huge meta": huge(typeHello, 1<<31, 0), "huge payload": huge(typeData, 72, 1<<32-1),
		"Data first": dataFrame, "Data after Hello": append(append([]byte(nil), greeting...), dataFrame...),
		"Hello twice": append(append([]byte(nil), greeting...), greeting...), "Hello and silence": greeting,
	} {
		for _, leave := range []string{"closes", "resets", "stays"} {
			nc, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			nc.Write(b)
			switch leave {
			case "closes":
				nc.Close()
			case "resets":
				reset(nc)
			default:
				defer nc.Close() // the server has to live with it
			}
			if s.ended() {
				t.Fatalf("%s, %s: serve ended: %s", name, leave, s.err.String())
			}
		}
	}
	mustRun(t, "sync", "--insecure", p.src, s.url("v"))
	equal(t, p.src, p.dst)
	beside.wait().ok(t)
	equal(t, p.src, p.dst+"2")
}

// docs/PROTOCOL.md: frames of a version that a node does not speak are answered in its own version.
func TestServerAnswersOtherVersion(t *testing.T) {
	t.Parallel()
	p := newPair(t, mib)
	s := serve(t, p.state, "v="+p.dst)
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Write(foreign(2)); err != nil {
		t.Fatal(err)
	}
	f, err := readFrame(nc)
	if err != nil || f.kind() != typeRefused || binary.LittleEndian.Uint16(f.meta) != codeOther {
		t.Fatalf("the answer is %+v, %v, want Refused with code %d", f, err, codeOther)
	}
	t.Logf("answer: %s", f.meta[4:])
}

// A connection that is reset in the middle of a frame: exit code 3, and the next sync goes on.
func TestResetWithinFrame(t *testing.T) {
	t.Parallel()
	p := newPair(t, 16*mib)
	s := serve(t, p.state, "v="+p.dst)
	through := newProxy(t, s.addr)
	through.edit = func(f *frame) bool { return f.kind() != typeData || f.offset() < 8*mib }
	blkmirror(t, "sync", "--insecure", "--retry", "0s", p.src, through.url("v")).fails(t, 3)
	t.Run("retry", func(t *testing.T) {
		r := blkmirror(t, "sync", "--insecure", "--retry", "1s", p.src, through.url("v")).fails(t, 3)
		if !strings.Contains(r.stderr, "trying again") {
			t.Errorf("no second try is told: %s", r.stderr)
		}
	})
	rep := syncJSON(t, "--insecure", p.src, s.url("v"))
	equal(t, p.src, p.dst)
	if rep.Skipped+rep.Resumed == 0 {
		t.Error("all was shipped again")
	}
}
