package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Why Listen refused.
var (
	ErrAddress     = errors.New("neither unix:PATH nor tcp:HOST:PORT")
	ErrNotLoopback = errors.New("the export has no encryption: plain TCP is allowed on loopback only")
	ErrInUse       = errors.New("somebody listens there already")
	ErrNotSocket   = errors.New("is there and no socket")
)

// maxSocketPath is what fits into a sockaddr_un, with the NUL behind it.
const maxSocketPath = 107

// Listen listens at "unix:PATH" or "tcp:HOST:PORT".
//
// A unix socket is the owner's alone (mode 0600). The socket of a process that is gone is replaced, that
// of a living one is not, and closing the listener removes it. TCP is for loopback addresses.
func Listen(spec string) (net.Listener, error) {
	kind, addr, _ := strings.Cut(spec, ":")
	var l net.Listener
	err := error(ErrAddress)
	switch {
	case addr == "":
	case kind == "unix":
		l, err = listenUnix(addr)
	case kind == "tcp":
		l, err = listenTCP(addr)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", spec, err)
	}
	return l, nil
}

func listenTCP(addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	if host == "" || !a.IP.IsLoopback() {
		return nil, ErrNotLoopback
	}
	l, err := net.ListenTCP("tcp", a) // the address, not the name: it may change what it stands for
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, ErrInUse
	}
	return l, err
}

// listenUnix binds the socket while it holds a lock on its folder: of two processes that find a stale
// socket, one could otherwise remove what the other has just bound.
func listenUnix(path string) (net.Listener, error) {
	if !strings.HasPrefix(path, "/") {
		path = "./" + path // an @ in front would be a name that has no permissions
	}
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path has %d bytes, a socket's may have %d", len(path), maxSocketPath)
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock the folder: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	c := net.ListenConfig{Control: ownersOnly}
	l, err := c.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return &unixListener{UnixListener: u, path: path, made: made}, nil
}

// ownersOnly gives the socket its mode before it has a name: the file is made with it.
func ownersOnly(_, _ string, raw syscall.RawConn) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
		return cerr
	}
	return err
}

// removeStale removes a socket that nobody listens at.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return ErrNotSocket
	}
	nc, err := net.Dial("unix", path)
	if err == nil {
		nc.Close()
		return ErrInUse
	}
	if !errors.Is(err, syscall.ECONNREFUSED) { // a full backlog is somebody, too
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return os.Remove(path)
}

// unixListener removes its socket, and no other that stands at its path by now.
type unixListener struct {
	*net.UnixListener
	path   string
	made   fs.FileInfo
	remove sync.Once
}

func (l *unixListener) Close() error {
	l.remove.Do(func() {
		if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.made) {
			_ = os.Remove(l.path) // what is left is found stale
		}
	})
	return l.UnixListener.Close()
}
