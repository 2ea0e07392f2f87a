package paths

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// connected is a connection through a proxy: its dialler, and who accepted it.
func connected(t *testing.T) (p *Proxy, dialler, acceptor net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if p, err = NewProxy(l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if dialler, err = net.Dial("tcp", p.Addr()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialler.Close() })
	if acceptor, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { acceptor.Close() })
	says(t, dialler, acceptor, "hello")
	says(t, acceptor, dialler, "hello yourself")
	return p, dialler, acceptor
}

func says(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(to, b); err != nil || string(b) != text {
		t.Fatalf("%q came as %q: %v", text, b, err)
	}
}

// silent expects that nothing comes, not even an end.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	defer c.SetReadDeadline(time.Time{})
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("something came: %d bytes, %v", n, err)
	}
}

func ended(t *testing.T, c net.Conn, with error) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, with) {
		t.Fatalf("it ended with %v, want %v", err, with)
	}
}

// What is held comes through later, whole, and the end behind it.
func TestHold(t *testing.T) {
	p, a, b := connected(t)
	p.Hold(There, true)
	a.Write([]byte("held"))
	a.Close()
	silent(t, b)
	p.Hold(There, false)
	got, err := io.ReadAll(b)
	if err != nil || string(got) != "held" {
		t.Fatalf("%q, %v", got, err)
	}
}

// A new connection is accepted, and nobody is there until the path is back.
func TestHoldNew(t *testing.T) {
	p, _, _ := connected(t)
	p.Hold(There, true)
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	silent(t, c)
}

func TestDelay(t *testing.T) {
	p, a, b := connected(t)
	p.Delay(There, 150*time.Millisecond)
	began := time.Now()
	says(t, b, a, "the other way")
	says(t, a, b, "late") // its reader knew the delay, or had begun to read before it: then the next one
	says(t, a, b, "late")
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}

func TestReset(t *testing.T) {
	p, a, b := connected(t)
	p.Reset()
	ended(t, a, syscall.ECONNRESET)
	ended(t, b, syscall.ECONNRESET)
}

// One direction vanishes, the other goes on; ends are heard of only in that one.
func TestLose(t *testing.T) {
	p, a, b := connected(t)
	p.Lose(There)
	if _, err := a.Write(make([]byte, 4<<20)); err != nil { // it is taken by the kernel here
		t.Fatal(err)
	}
	says(t, b, a, "still here")
	a.Close()
	silent(t, b)
}

func TestForsake(t *testing.T) {
	p, a, b := connected(t)
	p.Forsake(Back)
	ended(t, b, syscall.ECONNRESET)
	a.Write([]byte("hello?"))
	silent(t, a)
}

func TestRefuse(t *testing.T) {
	p, a, b := connected(t)
	if err := p.Refuse(true); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, %v", c, err)
	}
	says(t, a, b, "those that are there stay")
	if err := p.Refuse(false); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// A paced direction takes its time, and nothing is lost when it ends.
func TestPace(t *testing.T) {
	p, a, b := connected(t)
	p.Pace(There, Pace{Bytes: 1 << 10, Every: 10 * time.Millisecond})
	sent := bytes.Repeat([]byte("0123456789abcdef"), 4<<10) // one read may still be as large as without it
	began := time.Now()
	go func() {
		a.Write(sent)
		a.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(b)
	if took := time.Since(began); err != nil || !bytes.Equal(got, sent) || took < 200*time.Millisecond {
		t.Errorf("%d of %d bytes in %v: %v", len(got), len(sent), took, err)
	}
}
