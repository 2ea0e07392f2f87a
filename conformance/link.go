package conformance

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// link is the network between a primary and a mirror: whoever dials its address reaches another one. It
// understands nothing of what passes.
type link struct {
	addr    string // that is dialled
	listens string // where the other side listens
	l       net.Listener
	carried atomic.Int64  // bytes, both ways
	flips   atomic.Int64  // bits that were flipped
	speed   *rate.Limiter // of the dialling side, in bytes
	all     sync.WaitGroup

	mu     sync.Mutex
	change *sync.Cond
	conns  map[net.Conn]bool
	down   bool // nobody is reached
	frozen bool // nothing passes, and nobody is told
	deaf   bool // nothing comes back to who dialled
	closed bool
	every  int64 // bytes between two flips; 0: none
	next   int64 // bytes until the next flip
	rng    *rand.Rand
}

func newLink(seed uint64) (*link, error) {
	to, err := freeAddress()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("make a link: %w", err)
	}
	k := &link{
		addr: l.Addr().String(), listens: to, l: l, conns: map[net.Conn]bool{},
		speed: rate.NewLimiter(rate.Inf, 1<<16), rng: rand.New(rand.NewPCG(seed, 1)),
	}
	k.change = sync.NewCond(&k.mu)
	k.all.Go(k.accept)
	return k, nil
}

// freeAddress finds a port on which nobody listens now. It is free again at once, so that the tool can take
// it; somebody else could, too.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (k *link) close() {
	k.l.Close()
	k.set(func() { k.closed, k.down = true, true })
	k.reset()
	k.all.Wait()
}

// set changes how the link behaves.
func (k *link) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
	k.change.Broadcast()
}

// cut lets nobody pass, until restore. Both sides are told by resets.
func (k *link) cut() {
	k.set(func() { k.down = true })
	k.reset()
}

// restore ends whatever is wrong with the link.
func (k *link) restore() {
	k.speed.SetLimit(rate.Inf)
	k.set(func() { k.down, k.frozen, k.deaf, k.every = k.closed, false, false, 0 })
}

// aside cuts the link until the function is called that it returns, whatever its state was and is then.
func (k *link) aside() (back func()) {
	k.mu.Lock()
	was := k.down
	k.mu.Unlock()
	k.cut()
	return func() { k.set(func() { k.down = was }) }
}

// reset breaks all connections.
func (k *link) reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		hangUp(c)
	}
}

// hangUp closes a connection so that its peer sees a reset.
func hangUp(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// flip begins to flip a bit every so many bytes, at random places.
func (k *link) flip(every int64) {
	k.set(func() { k.every, k.next = every, k.rng.Int64N(every)+1 })
}

func (k *link) accept() {
	for {
		c, err := k.l.Accept()
		if err != nil {
			return
		}
		k.all.Go(func() { k.join(c) })
	}
}

func (k *link) join(dialler net.Conn) {
	defer dialler.Close()
	if !k.track(dialler) {
		return
	}
	defer k.forget(dialler)
	listener, err := net.Dial("tcp", k.listens)
	if err != nil {
		hangUp(dialler)
		return
	}
	defer listener.Close()
	if !k.track(listener) {
		hangUp(dialler)
		return
	}
	defer k.forget(listener)
	var both sync.WaitGroup
	both.Go(func() { k.pump(listener, dialler, false) })
	both.Go(func() { k.pump(dialler, listener, true) })
	both.Wait()
}

// track admits a connection, unless the link is cut. A frozen one is admitted: it hangs.
func (k *link) track(c net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.down {
		hangUp(c)
		return false
	}
	k.conns[c] = true
	return true
}

func (k *link) forget(c net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
}

// pump passes on what one side says.
func (k *link) pump(to, from net.Conn, answers bool) {
	b := make([]byte, 1<<16)
	for {
		n, err := from.Read(b)
		if !answers {
			k.speed.WaitN(context.Background(), n) // never more than its burst
		}
		if !k.gate(b[:n], answers) {
			hangUp(from)
			hangUp(to)
			return
		}
		if _, werr := to.Write(b[:n]); werr != nil {
			hangUp(from)
			return
		}
		switch err {
		case nil:
		case io.EOF:
			to.(*net.TCPConn).CloseWrite()
			return
		default:
			hangUp(to)
			return
		}
	}
}

// gate holds bytes back while the link is frozen, counts them, and damages them where that is wanted. It tells whether
// they may pass: what was held back when the link was cut does not slip through before the connections are reset.
func (k *link) gate(b []byte, answers bool) (pass bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for !k.down && (k.frozen || answers && k.deaf) {
		k.change.Wait()
	}
	if k.down {
		return false
	}
	k.carried.Add(int64(len(b)))
	if k.every == 0 {
		return true
	}
	at := int64(0)
	for at+k.next <= int64(len(b)) {
		at += k.next
		b[at-1] ^= 1 << k.rng.IntN(8)
		k.flips.Add(1)
		k.next = k.every/2 + k.rng.Int64N(k.every) + 1
	}
	k.next -= int64(len(b)) - at
	return true
}
