package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// ServerOptions configure a node that offers volumes.
type ServerOptions struct {
	StateDir string
	Listen   string // HOST:PORT; loopback only as long as Insecure is needed
	Control  string // path of the control socket; empty: control.sock in StateDir
	Volumes  map[string]VolumeConfig
	Insecure bool // required: identity comes later
	Version  string
	Log      func(text string) // one line an event; may be nil

	// Guard locks the process's memory where a volume has an export: clients may be this machine's kernel.
	Guard bool

	// Reload brings what a user says of the volumes by now, all of them; may be nil.
	Reload <-chan map[string]VolumeConfig

	device openDevice       // of live volumes; nil: openFile
	clock  func() time.Time // that probes are told; nil: time.Now

	probeEvery time.Duration // of mirrors; 0: probeEvery
}

// maxConnections bounds what strangers can make the node hold: a goroutine and a handshake each.
const maxConnections = 128

// server is a running node.
type server struct {
	ServerOptions
	id       string
	listener net.Listener
	volumes  map[string]*volume
	names    []string // sorted

	logging sync.Mutex
	conns   sync.WaitGroup // one for each connection's goroutine
	tokens  chan struct{}  // one for each connection
	loaded  atomic.Bool    // a load test is under way
}

// Serve runs until ctx ends, then stops cleanly: sessions are told, progress is made durable, the
// control socket is removed. The control socket appears when the node is ready. Errors are *Error.
func Serve(ctx context.Context, o ServerOptions) error {
	s := &server{ServerOptions: o, volumes: make(map[string]*volume), tokens: make(chan struct{}, maxConnections)}
	if err := s.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return deviceError("make state directory", o.StateDir, err)
	}
	release, err := lockPatiently(ctx, o.StateDir)
	if err != nil {
		return deviceError("lock state directory", o.StateDir, err)
	}
	defer release()
	if s.id, err = nodeID(o.StateDir); err != nil {
		return deviceError("read node id", o.StateDir, err)
	}
	if s.Guard && s.exports() {
		guardMemory(s.log)
	}
	s.openVolumes(ctx)
	if s.listener, err = wire.Listen(o.Listen); err != nil {
		s.stopLive()
		return &Error{Kind: KindNetwork, Op: "listen on", On: o.Listen, Err: err, Next: "choose another address or port, or end what uses it"}
	}
	control, err := s.listenControl()
	if err != nil {
		s.listener.Close()
		s.stopLive()
		return err
	}
	return s.serve(ctx, control)
}

// exports tells whether clients may use a volume here as a disk.
func (s *server) exports() bool {
	for _, c := range s.Volumes {
		if c.Export != "" {
			return true
		}
	}
	return false
}

// lockPatiently waits a little for a daemon that was killed: its lock goes only when the kernel has let its
// last write end.
func lockPatiently(ctx context.Context, dir string) (release func(), err error) {
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for limit := time.Now().Add(lockTimeout); ; {
		release, err = journal.LockDir(dir)
		if !errors.Is(err, journal.ErrLocked) || time.Now().After(limit) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

const (
	lockTimeout = 3 * time.Second
	lockEvery   = 50 * time.Millisecond
)

// check refuses a configuration that cannot work, before anything is touched.
func (s *server) check() error {
	if !s.Insecure {
		return &Error{Kind: KindUsage, Op: "listen on", On: s.Listen, Err: errors.New("this version has no encryption yet"),
			Next: "say --insecure on both sides (loopback addresses only)"}
	}
	if err := wire.CheckPlain(s.Listen); err != nil {
		return &Error{Kind: KindUsage, Op: "listen on", On: s.Listen, Err: err,
			Next: "listen on 127.0.0.1 or ::1; plain text does not leave this machine"}
	}
	if len(s.Volumes) == 0 {
		return &Error{Kind: KindUsage, Op: "serve", On: "no volume", Err: errors.New("nothing is offered"), Next: "name at least one --volume NAME=PATH"}
	}
	for name := range s.Volumes {
		if err := CheckVolumeName(name); err != nil {
			return err
		}
	}
	if s.Control == "" {
		s.Control = filepath.Join(s.StateDir, "control.sock")
	}
	return nil
}

// serve accepts until ctx ends, and returns when every session has ended.
func (s *server) serve(ctx context.Context, control *controlSocket) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()
	s.log(fmt.Sprintf("ready: %d volume(s) on %s, control socket %s", len(s.names), s.listener.Addr(), s.Control))

	s.conns.Go(func() { s.routineReload(ctx) })
	var err error
	for {
		nc, acceptErr := s.listener.Accept()
		if acceptErr != nil {
			if ctx.Err() == nil && errors.Is(acceptErr, net.ErrClosed) {
				err = &Error{Kind: KindNetwork, Op: "accept on", On: s.Listen, Err: acceptErr}
			}
			if ctx.Err() != nil || err != nil {
				break
			}
			s.log(fmt.Sprintf("accept: %v", acceptErr)) // out of descriptors, or a peer that left at once
			select {
			case <-ctx.Done():
			case <-time.After(backoffFirst):
			}
			continue
		}
		select {
		case s.tokens <- struct{}{}:
			s.conns.Go(func() {
				defer func() { <-s.tokens }()
				s.session(ctx, nc)
			})
		default:
			nc.Close()
			s.log(fmt.Sprintf("%s: refused, %d connections are open", nc.RemoteAddr(), maxConnections))
		}
	}
	cancel(context.Canceled)
	s.conns.Wait()
	s.stopLive()
	control.close()
	s.log("stopped")
	return err
}

func (s *server) log(text string) {
	if s.Log != nil {
		s.logging.Lock()
		defer s.logging.Unlock()
		s.Log(text)
	}
}

// session is the life of one connection.
func (s *server) session(ctx context.Context, nc net.Conn) {
	conn := wire.NewConn(nc, wire.ConnOptions{})
	peer := nc.RemoteAddr().String()
	release := context.AfterFunc(ctx, func() { conn.Close(context.Cause(ctx)) })
	var hello *wire.Hello
	var v *volume
	err := wire.CheckPlainConn(nc)
	if err == nil {
		hello, v, err = s.welcome(conn)
	}
	if err != nil {
		refuse(conn, err)
	}
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		conn.Established()
		err = s.half(ctx, conn, hello, v, peer)
	}
	conn.Close(err)
	if err != nil {
		s.log(fmt.Sprintf("%s: ended: %v", peer, err))
	}
}

// welcome is the acceptor's part of the handshake.
func (s *server) welcome(conn *wire.Conn) (*wire.Hello, *volume, error) {
	m, err := conn.Next()
	if err != nil {
		return nil, nil, err
	}
	hello, ok := m.(*wire.Hello)
	if !ok {
		return nil, nil, unexpected(m, "Hello")
	}
	if hello.Role == wire.RoleProbe {
		return hello, nil, conn.Send(&wire.Hello{Node: s.node(), Name: hostName(), Software: software, Role: wire.RoleProbe})
	}
	v := s.volumes[hello.Volume]
	if v == nil {
		return nil, nil, &Error{Kind: KindState, Op: "open volume", On: hello.Volume, Err: errors.New("no such volume here"), code: wire.CodeUnknown}
	}
	role := opposite[hello.Role]
	if role == wire.RolePrimary {
		return nil, nil, protocolError("a mirror does not dial")
	}
	return hello, v, conn.Send(&wire.Hello{Node: s.node(), Name: hostName(), Software: software, Role: role})
}

// half runs our half of a session on volume v.
func (s *server) half(ctx context.Context, conn *wire.Conn, hello *wire.Hello, v *volume, peer string) error {
	if hello.Role == wire.RoleProbe {
		return s.asProbed(ctx, conn, everyVolume)
	}
	warn := func(text string) { s.log(fmt.Sprintf("%s: volume %s: %s", peer, v.name, text)) }
	if hello.Role == wire.RolePrimary {
		return s.asMirror(ctx, conn, hello, v, peer)
	}
	live := &liveSession{peer: peer, start: time.Now()}
	if hello.Role == wire.RoleSource {
		live.role = "target"
	} else {
		live.role = "source"
	}
	if err := v.syncAllowed(live.role); err != nil {
		refuse(conn, err)
		return err
	}
	if hello.Role == wire.RoleSource {
		return s.asTarget(ctx, conn, v, live, warn)
	}
	return s.asSource(ctx, conn, hello, v, live, warn)
}

func (s *server) asTarget(ctx context.Context, conn *wire.Conn, v *volume, live *liveSession, warn func(string)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	live.cancel = cancel
	p := targetParams{path: v.path, stateDir: s.StateDir, device: openFile, openWait: wire.HandshakeTimeout, warn: warn}
	p.admit = func(open *wire.Open) (func(), error) {
		live.incarnation = open.Incarnation
		leave, err := v.enter(ctx, live)
		if err == nil {
			v.wanted(open.Size)
			s.log(fmt.Sprintf("%s: volume %s: a sync into it begins, %d bytes", live.peer, v.name, open.Size))
		}
		return leave, err
	}
	res, err := runTarget(ctx, conn, p, &live.prog)
	if res.opened {
		if res.committed {
			v.proven()
		}
		s.log(fmt.Sprintf("%s: volume %s: %s", live.peer, v.name, live.summary(res.committed)))
	}
	return err
}

func (s *server) asSource(ctx context.Context, conn *wire.Conn, hello *wire.Hello, v *volume, live *liveSession, warn func(string)) error {
	leave, err := v.enter(ctx, live)
	var end *sourceEnd
	if err == nil {
		defer leave()
		end, err = openSource(v.path, openFile, warn)
	}
	if err != nil {
		refuse(conn, err)
		return err
	}
	defer end.dev.Close()
	blockSize := int(hello.BlockSize)
	if blockSize == 0 {
		blockSize = DefaultBlockSize
	}
	s.log(fmt.Sprintf("%s: volume %s: a sync from it begins, %d bytes", live.peer, v.name, end.dev.Info().Size))
	_, err = runSource(ctx, conn, end, sourceParams{volume: v.name, blockSize: blockSize, flushEvery: flushEvery}, &live.prog)
	if err == nil {
		v.proven()
	}
	s.log(fmt.Sprintf("%s: volume %s: %s", live.peer, v.name, live.summary(err == nil)))
	return err
}

// openVolumes looks at every volume once. One that cannot be opened is told, and does not stop the others.
func (s *server) openVolumes(ctx context.Context) {
	for name, config := range s.Volumes {
		s.volumes[name] = &volume{name: name, path: config.Path, config: config}
		s.names = append(s.names, name)
	}
	slices.Sort(s.names)
	for _, name := range s.names {
		v := s.volumes[name]
		if v.measure(); ctx.Err() == nil {
			s.openLive(ctx, v)
		}
		if state := v.status(); state.State != "ok" {
			s.log(fmt.Sprintf("volume %s: %s: %s", name, state.State, state.Error))
		}
	}
}
