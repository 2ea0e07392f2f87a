package paths

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hop is three namespaces, or the end of the test where there can be none.
func hop(t *testing.T, mtu int) *Hop {
	t.Helper()
	h, err := NewHop(t.Context(), mtu)
	if errors.Is(err, errNotHere) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// across is a connection between the ends of a hop; with mss, its segments are no larger than that.
func across(t *testing.T, h *Hop, mss int) (left, right net.Conn) {
	t.Helper()
	limit := func(_, _ string, c syscall.RawConn) (err error) {
		if mss > 0 {
			c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, mss) })
		}
		return err
	}
	var l net.Listener
	err := h.In(Right, func() (err error) {
		l, err = (&net.ListenConfig{Control: limit}).Listen(context.Background(), "tcp", RightAddr+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = h.In(Left, func() (err error) {
		left, err = (&net.Dialer{Control: limit}).Dial("tcp", l.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { left.Close() })
	if right, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { right.Close() })
	return left, right
}

// passes tells whether bytes come across within a while, whole.
func passes(t *testing.T, from, to net.Conn, b []byte, within time.Duration) bool {
	t.Helper()
	go from.Write(b)
	to.SetReadDeadline(time.Now().Add(within))
	got := make([]byte, len(b))
	n, err := io.ReadFull(to, got)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) || !bytes.Equal(got[:n], b[:n]) {
		t.Fatalf("%d of %d bytes: %v", n, len(b), err)
	}
	return n == len(b)
}

var (
	small = []byte("a small one")
	large = bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
)

// The black hole is one, in both directions: connections are made, what is small passes, what is large vanishes, and
// nobody learns why; smaller segments pass.
func TestBlackHole(t *testing.T) {
	h := hop(t, 1280)
	for _, back := range []bool{false, true} {
		from, to := across(t, h, 0)
		if back {
			from, to = to, from
		}
		if !passes(t, from, to, small, time.Minute) {
			t.Fatal("nothing passes")
		}
		if passes(t, from, to, large, 2*time.Second) {
			t.Errorf("back %v: large segments pass", back)
		}
		if mtu := pathMTU(t, from); mtu != 1500 {
			t.Errorf("back %v: the sender knows of a path MTU of %d", back, mtu)
		}
		if from, to = across(t, h, 1000); back {
			from, to = to, from
		}
		if !passes(t, from, to, large, time.Minute) {
			t.Errorf("back %v: small segments do not pass", back)
		}
	}
}

// Without the small hop everything passes: it is that which makes the difference.
func TestHopWithRoom(t *testing.T) {
	h := hop(t, 1500)
	left, right := across(t, h, 0)
	if !passes(t, left, right, large, time.Minute) || !passes(t, right, left, large, time.Minute) {
		t.Error("large segments do not pass")
	}
}

func pathMTU(t *testing.T, c net.Conn) (mtu uint32) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			mtu = info.Pmtu
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return mtu
}
