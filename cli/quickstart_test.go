package cli

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestQuickstart(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv(mainEnv, "1") // for the nodes
	got := call(t, "quickstart", "--size", "16M")
	if got.code != 0 || !strings.Contains(got.stdout, "   equal\n") || got.stderr != "" {
		t.Errorf("%+v", got)
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestQuickstartKeeps(t *testing.T) {
	t.Setenv(mainEnv, "1")
	dir := filepath.Join(t.TempDir(), "new", "demo")
	got := call(t, "quickstart", "--size", "16M", "--keep", dir)
	if got.code != 0 || !strings.Contains(got.stdout, "Kept in") {
		t.Errorf("%+v", got)
	}
	for _, image := range []string{"disk.img", "copy.img"} {
		if info, err := os.Stat(filepath.Join(dir, image)); err != nil || info.Size() != 16<<20 {
			t.Errorf("%s: %v", image, err)
		}
	}
	if again := call(t, "quickstart", "--size", "16M", "--keep", dir); again.code != exitDevice {
		t.Errorf("a folder that is not empty: %+v", again)
	}
}

// nbdServer speaks just enough of the protocol to hold our client against it, and answers each write
// with errno.
func nbdServer(t *testing.T, refuse bool, errno uint32) (socket string, writes <-chan string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	seen, ended := make(chan string, 10), make(chan struct{})
	t.Cleanup(func() { l.Close(); <-ended })
	be := binary.BigEndian
	go func() {
		defer close(ended)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		take := func(n int) []byte {
			b := make([]byte, n)
			io.ReadFull(c, b)
			return b
		}
		c.Write([]byte("NBDMAGICIHAVEOPT\x00\x03"))
		if got := string(take(12)); got != "\x00\x00\x00\x03IHAVEOPT" {
			t.Errorf("flags and option: %q", got)
		}
		if got := string(take(8 + 4 + 4 + 2)); got != "\x00\x00\x00\x07\x00\x00\x00\x0a\x00\x00\x00\x04disk\x00\x00" {
			t.Errorf("NBD_OPT_GO: %q", got)
		}
		reply := func(kind uint32, data string) {
			b := be.AppendUint64(nil, 0x3e889045565a9)
			b = be.AppendUint32(b, 7)
			b = be.AppendUint32(b, kind)
			c.Write(append(be.AppendUint32(b, uint32(len(data))), data...))
		}
		if refuse {
			reply(1<<31+6, "no such export")
			return
		}
		reply(3, "\x00\x03\x00\x00\x00\x01\x00\x00\x10\x00\x02\x00\x00\x00") // block sizes
		reply(3, "\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x01")         // size and flags
		reply(1, "")
		for {
			head := take(28)
			switch command := be.Uint16(head[6:]); {
			case be.Uint32(head) != 0x25609513 || command == 2:
				seen <- "bye"
				return
			case command == 1:
				seen <- string(take(int(be.Uint32(head[24:]))))
				b := be.AppendUint32(nil, 0x67446698)
				c.Write(append(be.AppendUint32(b, errno), head[8:16]...))
			}
		}
	}()
	return socket, seen
}

func TestNBDClient(t *testing.T) {
	socket, writes := nbdServer(t, false, 0)
	c, err := dialNBD(socket, "disk")
	if err != nil {
		t.Fatal(err)
	}
	if c.size != 1<<24 {
		t.Errorf("size %d", c.size)
	}
	if err := c.write([]byte("hello"), 4096); err != nil || <-writes != "hello" {
		t.Error(err)
	}
	c.close()
	if got := <-writes; got != "bye" {
		t.Error(got)
	}

	socket, _ = nbdServer(t, false, uint32(syscall.ENOSPC))
	if c, err = dialNBD(socket, "disk"); err != nil {
		t.Fatal(err)
	}
	if err := c.write([]byte("x"), 0); err != syscall.ENOSPC {
		t.Error(err)
	}
	c.close()

	socket, _ = nbdServer(t, true, 0)
	if _, err := dialNBD(socket, "disk"); err == nil || !strings.Contains(err.Error(), "no such export") {
		t.Error(err)
	}
	if _, err := dialNBD(filepath.Join(t.TempDir(), "none"), "disk"); err == nil {
		t.Error("a socket that is not there")
	}
}

func TestQuickWriterStopsWithItsExport(t *testing.T) {
	socket, _ := nbdServer(t, false, uint32(syscall.EIO))
	w, err := startWriter(t.Context(), socket, []int64{0, 5})
	if err != nil {
		t.Fatal(err)
	}
	<-w.ended
	if err := w.stop(); err != syscall.EIO {
		t.Error(err)
	}
	if _, err := startWriter(t.Context(), socket, nil); err == nil {
		t.Error("no pages")
	}
}
