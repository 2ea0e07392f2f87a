package nbd

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestListenRefuses(t *testing.T) {
	dir := socketDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for spec, want := range map[string]error{
		"":                     ErrAddress,
		"unix:":                ErrAddress,
		"tcp:":                 ErrAddress,
		"/run/x":               ErrAddress,
		"udp:127.0.0.1:1":      ErrAddress,
		"tcp:0.0.0.0:0":        ErrNotLoopback,
		"tcp::0":               ErrNotLoopback,
		"tcp:[::]:0":           ErrNotLoopback,
		"tcp:192.0.2.1:10809":  ErrNotLoopback,
		"unix:" + file:         ErrNotSocket,
		"unix:" + dir:          ErrNotSocket,
		"unix:" + dir + "/no/": fs.ErrNotExist,
	} {
		l, err := Listen(spec)
		if err == nil {
			l.Close()
		}
		if !errors.Is(err, want) || !strings.Contains(err.Error(), spec) {
			t.Errorf("listen on %q: %v, want %v", spec, err, want)
		}
	}
	if _, err := Listen("unix:" + dir + "/" + strings.Repeat("x", 120)); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("a path that is too long: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Error("a file was harmed")
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	if _, err := Listen("unix:" + path); !errors.Is(err, ErrInUse) {
		t.Errorf("a living socket: %v", err)
	}
	stale.Close() // what a killed process leaves

	old := syscall.Umask(0)
	l, err := Listen("unix:" + path)
	syscall.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("closed, and the socket is still there: %v", err)
	}
}

// A socket that somebody else has put in place is not removed.
func TestListenUnixLeavesOthersAlone(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the other one's socket: %v", err)
	}
}

// Of many who find a stale socket at once, one gets it.
func TestListenUnixRace(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	var group sync.WaitGroup
	got := make(chan net.Listener, 20)
	for range cap(got) {
		group.Go(func() {
			if l, err := Listen("unix:" + path); err == nil {
				got <- l
			} else if !errors.Is(err, ErrInUse) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(got) != 1 {
		t.Errorf("%d listeners", len(got))
	}
	for range len(got) {
		(<-got).Close()
	}
}

func TestListenTCP(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "localhost"} {
		l, err := Listen("tcp:" + host + ":0")
		if err != nil {
			t.Fatal(err)
		}
		d, _ := memory(4096)
		s := serve(t, Options{}, Export{Name: "vol", Backend: d})
		s.serveOn(t, l)
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		c := &client{t: t, nc: nc, want: map[uint64]int{}}
		c.hello().ask(optGo, infoFor("vol"), repAck)
		c.must(request{command: cmdWrite, cookie: 1, length: 3, flags: cmdFlagFUA}, "abc")
		if have := c.must(request{command: cmdRead, cookie: 2, length: 3}, ""); have != "abc" {
			t.Errorf("read %q", have)
		}
	}
}

// A server that is closed takes no more listeners.
func TestServeAfterClose(t *testing.T) {
	s := NewServer(Options{})
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
	l, err := Listen("tcp:127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is still open: %v", err)
	}
}
