package paths

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Way is a direction through a Proxy.
type Way int

const (
	There Way = iota // what the dialling side sends
	Back
)

// Pace lets so many bytes through, and then none for a while: a slow line, or a reader that seldom reads. The zero value
// is no limit.
type Pace struct {
	Bytes int
	Every time.Duration
}

const (
	readBuffer = 256 << 10 // of the kernel, for each socket: a path must not hide how little it carries
	chunk      = 32 << 10
	inFlight   = 256 // chunks that are under way in one direction
)

// Proxy is the path between two nodes. It understands nothing of what passes, and keeps its address when the
// other side changes its own. What passed it stays in order, so that a connection that is not lost stays whole.
type Proxy struct {
	addr string
	work sync.WaitGroup
	ctx  context.Context
	end  context.CancelFunc

	mu      sync.Mutex
	l       net.Listener // nil: connections are refused
	backend string
	rules   [2]rules
	changed chan struct{} // closed and made anew with every change
	lines   map[*line]bool
}

// rules are those of one direction.
type rules struct {
	delay time.Duration
	held  bool
	pace  Pace
}

// NewProxy listens on a free port of this machine.
func NewProxy(backend string) (*Proxy, error) {
	p := &Proxy{addr: "127.0.0.1:0", backend: backend, changed: make(chan struct{}), lines: map[*line]bool{}}
	p.ctx, p.end = context.WithCancel(context.Background())
	return p, p.Refuse(false)
}

// Addr is what is dialled.
func (p *Proxy) Addr() string { return p.addr }

// To connects to another address from now on.
func (p *Proxy) To(backend string) { p.change(func() { p.backend = backend }) }

// Delay has every byte of a direction take so long. What is under way comes when it was due, and connecting takes the time
// as well.
func (p *Proxy) Delay(w Way, d time.Duration) { p.change(func() { p.rules[w].delay = d }) }

// Hold lets nothing through in a direction, nor the news of an end. Nobody is told; connections can be made, and nobody
// answers there. What is held comes through afterwards.
func (p *Proxy) Hold(w Way, on bool) { p.change(func() { p.rules[w].held = on }) }

// Pace limits a direction.
func (p *Proxy) Pace(w Way, to Pace) { p.change(func() { p.rules[w].pace = to }) }

func (p *Proxy) change(how func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	how()
	close(p.changed)
	p.changed = make(chan struct{})
}

// Reset breaks all connections, and tells both sides.
func (p *Proxy) Reset() {
	for _, l := range p.all() {
		l.reset(0)
		l.reset(1)
	}
}

// Lose has all that is sent one way vanish, on the connections that there are now: the kernel here takes it.
func (p *Proxy) Lose(w Way) {
	for _, l := range p.all() {
		l.lost[w].Store(true)
	}
}

// Forsake breaks the connections that there are now for the side that sends w, and the other side is not told: what that
// sends vanishes.
func (p *Proxy) Forsake(w Way) {
	p.Lose(There)
	p.Lose(Back)
	for _, l := range p.all() {
		l.reset(w)
	}
}

// Refuse has the kernel refuse new connections, or ends that.
func (p *Proxy) Refuse(on bool) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on == (p.l == nil) {
		return nil
	}
	if on {
		p.l.Close()
		p.l = nil
		return nil
	}
	c := net.ListenConfig{Control: smallBuffer}
	c.SetMultipathTCP(false)
	l, err := c.Listen(p.ctx, "tcp", p.addr)
	if err == nil {
		p.l, p.addr = l, l.Addr().String()
		p.work.Go(func() { p.routineAccept(l) })
	}
	return err
}

func smallBuffer(_, _ string, c syscall.RawConn) (err error) {
	return errors.Join(c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, readBuffer/2) // the kernel doubles it
	}), err)
}

// Close breaks all, and waits.
func (p *Proxy) Close() {
	p.Refuse(true)
	p.end()
	p.Reset()
	p.work.Wait()
}

func (p *Proxy) all() (lines []*line) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.lines {
		lines = append(lines, l)
	}
	return lines
}

func (p *Proxy) routineAccept(l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		p.work.Go(func() { p.join(nc.(*net.TCPConn)) })
	}
}

// join is the life of a connection.
func (p *Proxy) join(dialler *net.TCPConn) {
	defer dialler.Close()
	p.mu.Lock()
	due := time.Now().Add(p.rules[There].delay)
	p.mu.Unlock()
	if !p.wait(There, due) {
		return
	}
	p.mu.Lock()
	backend := p.backend
	p.mu.Unlock()
	d := net.Dialer{Control: smallBuffer}
	d.SetMultipathTCP(false)
	nc, err := d.DialContext(p.ctx, "tcp", backend)
	if err != nil {
		dialler.SetLinger(0)
		return
	}
	defer nc.Close()
	l := &line{p: p, ends: [2]*net.TCPConn{dialler, nc.(*net.TCPConn)}}
	p.mu.Lock()
	over := p.ctx.Err() != nil
	p.lines[l] = true
	p.mu.Unlock()
	if !over {
		var both sync.WaitGroup
		both.Go(func() { l.pass(There) })
		both.Go(func() { l.pass(Back) })
		both.Wait()
	}
	p.mu.Lock()
	delete(p.lines, l)
	p.mu.Unlock()
}

// wait returns when a direction lets through what is due at a time; false: the proxy is closed.
func (p *Proxy) wait(w Way, due time.Time) bool {
	for {
		p.mu.Lock()
		held, changed := p.rules[w].held, p.changed
		p.mu.Unlock()
		left := time.Until(due)
		if !held && left <= 0 {
			return p.ctx.Err() == nil
		}
		if held {
			left = time.Hour // a change comes first
		}
		select {
		case <-p.ctx.Done():
			return false
		case <-changed:
		case <-time.After(left):
		}
	}
}

// line is a connection from end to end.
type line struct {
	p    *Proxy
	ends [2]*net.TCPConn // the sender of There, of Back
	lost [2]atomic.Bool  // what is sent that way vanishes, also the news of an end
}

func (l *line) reset(end Way) {
	l.ends[end].SetLinger(0)
	l.ends[end].Close()
}

// parcel is what was read at once, or how the stream ended.
type parcel struct {
	b   []byte
	err error
	due time.Time
}

// pass carries one direction, until its sender has ended.
func (l *line) pass(w Way) {
	way := make(chan parcel, inFlight)
	l.p.work.Go(func() { l.collect(w, way) })
	to := l.ends[1-w]
	for c := range way {
		if l.lost[w].Load() || !l.p.wait(w, c.due) || l.lost[w].Load() {
			continue
		}
		if len(c.b) > 0 {
			if _, err := to.Write(c.b); err != nil && !l.lost[1-w].Load() {
				l.reset(w) // who is gone there answers with a reset, if that gets through
			}
		}
		switch c.err {
		case nil:
		case io.EOF:
			to.CloseWrite()
		default:
			l.reset(1 - w)
		}
	}
}

// collect reads as fast as the pace allows.
func (l *line) collect(w Way, way chan<- parcel) {
	defer close(way)
	for {
		l.p.mu.Lock()
		r := l.p.rules[w]
		l.p.mu.Unlock()
		size := chunk
		if r.pace.Bytes > 0 {
			size = min(size, r.pace.Bytes)
		}
		b := make([]byte, size)
		n, err := l.ends[w].Read(b)
		way <- parcel{b[:n], err, time.Now().Add(r.delay)}
		if err != nil {
			return
		}
		if r.pace.Bytes > 0 {
			l.rest(r.pace.Every * time.Duration(n) / time.Duration(r.pace.Bytes))
		}
	}
}

// rest waits, unless the rules change meanwhile.
func (l *line) rest(d time.Duration) {
	l.p.mu.Lock()
	changed := l.p.changed
	l.p.mu.Unlock()
	select {
	case <-l.p.ctx.Done():
	case <-changed:
	case <-time.After(d):
	}
}
