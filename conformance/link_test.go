package conformance

import (
	"io"
	"net"
	"testing"
	"time"
)

// echo answers every byte, behind a link.
func echo(t *testing.T) *link {
	t.Helper()
	k, err := newLink(1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", k.listens)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.close()
		l.Close()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return k
}

// ask sends bytes and reads what comes back.
func ask(c net.Conn, n int, limit time.Duration) ([]byte, error) {
	c.SetDeadline(time.Now().Add(limit))
	go c.Write(make([]byte, n))
	b := make([]byte, n)
	_, err := io.ReadFull(c, b)
	return b, err
}

func TestLink(t *testing.T) {
	k := echo(t)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", k.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	const long, short = 20 * time.Second, 200 * time.Millisecond
	c := dial()
	if _, err := ask(c, 100000, long); err != nil || k.carried.Load() != 200000 {
		t.Fatalf("%d bytes, %v", k.carried.Load(), err)
	}

	k.set(func() { k.frozen = true })
	if _, err := ask(c, 10, short); err == nil {
		t.Error("a frozen link lets through")
	}
	k.restore()
	if _, err := ask(c, 10, long); err != nil {
		t.Errorf("thawed: %v", err)
	}
	k.set(func() { k.deaf = true })
	c = dial()
	if _, err := ask(c, 10, short); err == nil {
		t.Error("answers come back")
	}

	back := k.aside()
	if _, err := ask(c, 10, long); err == nil {
		t.Error("a cut link lets through")
	}
	if c, err := net.Dial("tcp", k.addr); err == nil { // or it is reset at once
		if _, err := ask(c, 10, long); err == nil {
			t.Error("a cut link lets somebody in")
		}
		c.Close()
	}
	back()
	k.restore()
	c = dial()
	k.flip(1000)
	b, err := ask(c, 100000, long)
	flipped := 0
	for _, x := range b {
		if x != 0 {
			flipped++
		}
	}
	if err != nil || flipped < 100 || int64(flipped) > k.flips.Load() || k.flips.Load() > 400 {
		t.Errorf("%d bytes changed, %d flips, %v", flipped, k.flips.Load(), err)
	}
	k.reset()
	if _, err := ask(c, 10, long); err == nil {
		t.Error("a connection outlives its reset")
	}
}
