package engine

import (
	"cmp"
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
	"github.com/blkmirror/blkmirror/wire/identity"
)

// ServerOptions configure a node that offers volumes.
type ServerOptions struct {
	StateDir string
	Listen   string // HOST:PORT; with Insecure loopback only
	Control  string // path of the control socket; empty: control.sock in StateDir
	HTTP     string // HOST:PORT for metrics and health, where an empty host is all addresses; empty: none
	Volumes  map[string]VolumeConfig
	Identity *identity.Node // who this node is and whom it trusts; nil with Insecure
	Insecure bool           // plain TCP without identities, on loopback only
	Version  string
	Log      func(text string) // one line an event; may be nil

	// Guard locks the process's memory where a volume has an export: clients may be this machine's kernel.
	Guard bool

	// Reload brings what a user says of the volumes by now, all of them; may be nil.
	Reload <-chan map[string]VolumeConfig

	device openDevice       // of live volumes; nil: openFile
	clock  func() time.Time // that probes are told; nil: time.Now

	probeEvery time.Duration // of mirrors; 0: probeEvery
	renewAfter int64         // bytes of a connection to a mirror; 0: renewAfter
}

// server is a running node.
type server struct {
	ServerOptions
	id       string
	listener net.Listener
	volumes  map[string]*volume
	names    []string // sorted

	disconnects *disconnects
	listening   chan struct{} // closed when listener is there

	logging sync.Mutex
	conns   sync.WaitGroup // one for each connection's goroutine
	places  places         // one for each session

	gate                 *gate
	lobby                lobby
	strangers, untrusted murmur
	web                  *web        // nil: no metrics
	strange              murmur      // what goes wrong with those who ask for them
	probes               murmur      // that did not end well
	loaded               atomic.Bool // a load test is under way
}

// Serve runs until ctx ends, then stops cleanly: sessions are told, progress is made durable, the
// control socket is removed. The control socket appears when the node is ready. Errors are *Error.
func Serve(ctx context.Context, o ServerOptions) error {
	s := &server{ServerOptions: o, volumes: make(map[string]*volume), listening: make(chan struct{})}
	s.gate = newGate(o.Identity, o.StateDir, s.log)
	s.strangers.log, s.untrusted.log, s.probes.log = s.log, s.log, s.log
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
	s.disconnects = openDisconnects(filepath.Join(s.StateDir, disconnectsFile), s.log)
	defer s.disconnects.close()
	s.openVolumes(ctx)
	if s.listener, err = wire.Listen(o.Listen); err != nil {
		s.stopLive()
		return &Error{Kind: KindNetwork, Op: "listen on", On: o.Listen, Err: err, Next: "choose another address or port, or end what uses it"}
	}
	close(s.listening)
	if s.web, err = s.listenWeb(); err != nil {
		s.listener.Close()
		s.stopLive()
		return err
	}
	control, err := s.listenControl()
	if err != nil {
		if s.web != nil {
			s.web.listener.Close()
		}
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
	if s.Insecure == (s.Identity != nil) {
		return &Error{Kind: KindUsage, Op: "listen on", On: s.Listen, Err: errors.New("a node has an identity, or is insecure"),
			Next: "say --insecure (loopback addresses only), or do not"}
	}
	if s.Insecure {
		if err := s.checkPlain(); err != nil {
			return err
		}
	}
	if _, _, err := net.SplitHostPort(s.HTTP); s.HTTP != "" && err != nil {
		return &Error{Kind: KindUsage, Op: "serve metrics on", On: s.HTTP, Err: errors.New("is not HOST:PORT"), Next: "give an address such as 127.0.0.1:9117"}
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

// checkPlain keeps plain text on this machine.
func (s *server) checkPlain() error {
	if err := wire.CheckPlain(s.Listen); err != nil {
		return &Error{Kind: KindUsage, Op: "listen on", On: s.Listen, Err: err,
			Next: "listen on 127.0.0.1 or ::1, or leave --insecure away; plain text does not leave this machine"}
	}
	for name, c := range s.Volumes {
		for _, m := range c.Mirrors {
			// A name that cannot be resolved passes: it is looked up for every connection.
			if err := wire.CheckPlain(m.Address); errors.Is(err, wire.ErrNotLoopback) {
				return &Error{Kind: KindUsage, Op: "keep a mirror of " + name + " at", On: m.Address, Err: err,
					Next: "name a mirror at 127.0.0.1 or ::1, or leave --insecure away; plain text does not leave this machine"}
			}
		}
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
	if s.web != nil {
		s.conns.Go(func() { s.routineWeb(ctx) })
	}
	for _, name := range s.names {
		s.conns.Go(func() { s.routineKnock(ctx, s.volumes[name]) })
	}
	if s.Identity != nil {
		s.conns.Go(func() { s.routineTrust(ctx) })
	}
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
		s.receive(ctx, nc)
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

// routineTrust takes up what time and `blkmirror keys` change, and ends the sessions that are trusted no longer.
func (s *server) routineTrust(ctx context.Context) {
	tick := time.NewTicker(trustEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.Identity.Tick() {
			s.tryAnew()
		}
		s.gate.sweep() // not only when something was changed: grants end by themselves
	}
}

const trustEvery = time.Second

// session is the life of one connection. left is what its handshake may still take.
func (s *server) session(ctx context.Context, nc net.Conn, who identity.Peer, left time.Duration) {
	o := s.gate.options(who)
	o.HandshakeTimeout = left
	conn := wire.NewConn(nc, o)
	peer := nc.RemoteAddr().String()
	ctx, pass := s.gate.pass(ctx, conn, who, peer)
	pass.from = origin(nc)
	defer pass.leave()
	release := context.AfterFunc(ctx, func() { conn.Close(context.Cause(ctx)) })
	var hello *wire.Hello
	var v *volume
	var err error
	if s.Insecure {
		err = wire.CheckPlainConn(nc)
	}
	if err == nil {
		hello, v, err = s.welcome(conn, pass)
	}
	if err != nil {
		refuse(conn, err)
	}
	about := Disconnect{Role: roleAcceptor, Peer: who.Name, Address: peer}
	if err == nil && hello.Role == wire.RoleMirror {
		about.Volume = v.name
		if err = s.hearKnock(conn, hello, v); err != nil {
			refuse(conn, err)
		}
	}
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && hello.Role != wire.RoleMirror {
		conn.Established()
		s.half(ctx, conn, hello, v, pass)
		s.gate.narrow.owe(pass.from, conn)
	}
	conn.Close(err)
	if err != nil && ctx.Err() == nil {
		s.disconnects.add(about, partingOf(conn, false, err))
	}
}

// roleAcceptor is ours in the history where somebody dialled and there was no session.
const roleAcceptor = "acceptor"

// errNoVolume is told whoever asks for what he cannot have here.
func errNoVolume(name string) error {
	return &Error{Kind: KindState, Op: "open volume", On: name, Err: errors.New("no such volume here"), code: wire.CodeUnknown}
}

// welcome is the acceptor's part of the handshake. Nothing of a volume is told, nor whether there is one, before
// it is known that the peer may know it.
func (s *server) welcome(conn *wire.Conn, pass *pass) (*wire.Hello, *volume, error) {
	m, err := conn.Next()
	if err != nil {
		return nil, nil, err
	}
	hello, ok := m.(*wire.Hello)
	if !ok {
		return nil, nil, unexpected(m, "Hello")
	}
	if hello.Role == wire.RoleProbe {
		if err := pass.enter("", 0, hello.Node); err != nil {
			return nil, nil, err
		}
		return hello, nil, conn.Send(&wire.Hello{Node: s.node(), Name: hostName(), Software: software, Role: wire.RoleProbe})
	}
	role := opposite[hello.Role]
	if err := pass.enter(hello.Volume, asOf(hello.Role), hello.Node); err != nil {
		return nil, nil, err
	}
	v := s.volumes[hello.Volume]
	if v == nil {
		return nil, nil, errNoVolume(hello.Volume)
	}
	if hello.Role != wire.RoleMirror { // which says little
		if err := s.gate.narrow.tell(pass.from, conn.Segment()); err != nil {
			return nil, nil, err
		}
	}
	return hello, v, conn.Send(&wire.Hello{Node: s.node(), Name: hostName(), Software: software, Role: role})
}

// half runs our half of a session on volume v, and notes how it ended.
func (s *server) half(ctx context.Context, conn *wire.Conn, hello *wire.Hello, v *volume, pass *pass) {
	peer := pass.addr
	if hello.Role == wire.RoleProbe {
		if err := s.asProbed(ctx, conn, pass.sees); err != nil {
			s.probes.say(fmt.Sprintf("%s: a probe ended: %v", peer, err))
		}
		return
	}
	warn := func(text string) { s.log(fmt.Sprintf("%s: volume %s: %s", peer, v.name, text)) }
	about := Disconnect{Role: roleAcceptor, Volume: v.name, Peer: pass.name, Address: peer}
	var opened bool
	var err error
	live := &liveSession{peer: peer, start: time.Now(), role: "source"}
	switch hello.Role {
	case wire.RolePrimary:
		if m, ok := v.getLive().(*mirror); ok {
			_ = m.session(ctx, conn, hello, pass) // it is noted there
			return
		}
		err = &Error{Kind: KindState, Op: "attach to volume", On: v.name, Err: errors.New("this node is its primary, or it failed here"),
			Next: "see `blkmirror status` on that node", code: wire.CodeState}
		refuse(conn, err)
	case wire.RoleSource:
		live.role = "target"
		opened, err = s.asTarget(ctx, conn, v, live, warn)
	default:
		opened, err = s.asSource(ctx, conn, hello, v, live, warn)
	}
	if err == nil || errors.Is(err, errRenewed) {
		return
	}
	if opened {
		about.Role, about.Peer = live.role, cmp.Or(pass.name, hello.Name)
	}
	s.disconnects.add(about, partingOf(conn, opened, err))
}

func (s *server) asTarget(ctx context.Context, conn *wire.Conn, v *volume, live *liveSession, warn func(string)) (opened bool, err error) {
	if err := v.syncAllowed(live.role); err != nil {
		refuse(conn, err)
		return false, err
	}
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
		s.log(fmt.Sprintf("%s: volume %s: %s", live.peer, v.name, live.summary(res.committed, err)))
	}
	return res.opened, err
}

func (s *server) asSource(ctx context.Context, conn *wire.Conn, hello *wire.Hello, v *volume, live *liveSession, warn func(string)) (opened bool, err error) {
	err = v.syncAllowed(live.role)
	var end *sourceEnd
	if err == nil {
		var leave func()
		if leave, err = v.enter(ctx, live); err == nil {
			defer leave()
			end, err = openSource(v.path, openFile, warn)
		}
	}
	if err != nil {
		refuse(conn, err)
		return false, err
	}
	defer end.dev.Close()
	blockSize := int(hello.BlockSize)
	if blockSize == 0 {
		blockSize = DefaultBlockSize
	}
	s.log(fmt.Sprintf("%s: volume %s: a sync from it begins, %d bytes", live.peer, v.name, end.dev.Info().Size))
	opened, err = runSource(ctx, conn, end, sourceParams{volume: v.name, blockSize: blockSize, steer: true, flushEvery: flushEvery, renewAfter: s.gate.carries(s.renewAfter)}, &live.prog)
	if err == nil {
		v.proven()
	}
	s.log(fmt.Sprintf("%s: volume %s: %s", live.peer, v.name, live.summary(err == nil, err)))
	return opened, err
}

// openVolumes looks at every volume once. One that cannot be opened is told, and does not stop the others.
func (s *server) openVolumes(ctx context.Context) {
	for name, config := range s.Volumes {
		s.volumes[name] = &volume{name: name, path: config.Path, config: config, anew: make(chan struct{}, 1)}
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
