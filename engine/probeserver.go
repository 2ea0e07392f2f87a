package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/engine/doctor"
	"github.com/blkmirror/blkmirror/wire"
)

// The acceptor's half of a probe. The reader takes questions and throws ballast away; work, the one that sends,
// answers and makes ballast. Neither touches a volume.

const (
	probeLimit   = time.Minute            // of one probe: nobody keeps a connection by it
	loadGrace    = 3 * time.Second        // what ballast under way has to arrive
	loadedEvery  = 200 * time.Millisecond // what has come so far is told
	ballastLeast = 4 << 10                // bytes of one send, on a slow way …
	ballastMost  = 64 << 10               // … and on a fast one
)

// probed is one probe of this node.
type probed struct {
	*link
	s       *server
	conn    *wire.Conn
	sees    func(volume string) bool
	surveys chan *wire.Survey // that are not answered
	pours   chan *wire.Load   // towards the peer; at most one
	poured  chan struct{}     // one token: the peer's load is all here
	sink    atomic.Pointer[intake]
	loading bool        // the reader's: this connection has its load test, or had it
	holds   atomic.Bool // the node's one load test
	overdue *time.Timer // ends the probe where its load test has no end
}

// intake counts a load test towards us.
type intake struct {
	load  *wire.Load
	began time.Time
	bytes atomic.Uint64
	last  atomic.Int64 // ns since began, when the last of them came
}

func (k *intake) loaded() *wire.Loaded {
	return &wire.Loaded{Bytes: k.bytes.Load(), Nanos: uint64(k.last.Load())}
}

// asProbed answers a peer, of whose volumes it tells those that sees says yes to, and nothing of the others.
func (s *server) asProbed(ctx context.Context, conn *wire.Conn, sees func(volume string) bool) error {
	p := &probed{link: newLink(ctx, conn, new(Progress)), s: s, conn: conn, sees: sees, surveys: make(chan *wire.Survey, wire.MaxUnsurveyed),
		pours: make(chan *wire.Load, 1), poured: make(chan struct{}, 1)}
	p.doneByPeer = true
	defer p.unload()
	defer time.AfterFunc(probeLimit, func() { p.cancel(tooLong("probe", probeLimit)) }).Stop()
	return p.run(func(m wire.Message) error {
		err := p.handle(m)
		if err != nil {
			p.unload()
		}
		return err
	}, p.work)
}

// tooLong ends a probe, also where a send is stuck in it: the link closes what does not end by itself.
func tooLong(op string, limit time.Duration) error {
	return &Error{Kind: KindState, Op: op, On: "this node", Err: fmt.Errorf("no end of it after %v", limit)}
}

// unload lets others have a load test. It is done before the last word of ours, so that who has heard that can
// have the next one.
func (p *probed) unload() {
	if p.holds.CompareAndSwap(true, false) {
		p.overdue.Stop()
		p.s.loaded.Store(false)
	}
}

// handle takes one message; it never waits for the peer.
func (p *probed) handle(m wire.Message) error {
	switch m := m.(type) {
	case *wire.Survey:
		select {
		case p.surveys <- m:
			return nil
		default:
			return protocolError("more than %d Surveys without an answer", wire.MaxUnsurveyed)
		}
	case *wire.Load:
		return p.begin(m)
	case *wire.Ballast:
		k := p.sink.Load()
		if k == nil {
			return protocolError("Ballast without a Load")
		}
		if k.bytes.Add(uint64(m.PayloadLength)) > k.load.Bytes {
			return protocolError("Ballast beyond the %d bytes of its Load", k.load.Bytes)
		}
		k.last.Store(int64(time.Since(k.began)))
		return nil
	case *wire.Loaded:
		if p.sink.Load() == nil || m.Flags&wire.LoadedLast == 0 {
			return protocolError("Loaded, and nothing was")
		}
		select {
		case p.poured <- struct{}{}:
			return nil
		default:
			return protocolError("Loaded twice")
		}
	}
	return unexpected(m, "Survey or Load")
}

// begin takes the node's one load test. A connection has one.
func (p *probed) begin(m *wire.Load) error {
	if p.loading || !p.s.loaded.CompareAndSwap(false, true) {
		return &Error{Kind: KindState, Op: "run load test", On: "this node", Err: errors.New("another one is under way"), code: wire.CodeBusy}
	}
	p.loading = true
	limit := time.Duration(m.Millis)*time.Millisecond + loadGrace
	p.overdue = time.AfterFunc(limit, func() { p.cancel(tooLong("run load test", limit)) })
	p.holds.Store(true)
	if m.Direction == wire.LoadTo {
		p.sink.Store(&intake{load: m, began: time.Now()})
	} else {
		p.pours <- m // the first and only one
	}
	return nil
}

// work sends. It returns when the probe is over.
func (p *probed) work() error {
	tick := time.NewTicker(loadedEvery)
	defer tick.Stop()
	for {
		var m wire.Message
		select {
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		case q := <-p.surveys:
			m = p.s.surveyed(q.From, p.sees)
		case l := <-p.pours:
			if err := p.pour(l); err != nil {
				return err
			}
			continue
		case <-p.poured:
			last := p.sink.Load().loaded()
			last.Flags = wire.LoadedLast
			m = last
			p.sink.Store(nil)
			p.unload()
		case <-tick.C:
			k := p.sink.Load()
			if k == nil {
				continue
			}
			m = k.loaded()
		}
		if err := p.conn.Send(m); err != nil {
			return err
		}
	}
}

// pour sends the ballast of one Load and answers what is asked meanwhile.
func (p *probed) pour(l *wire.Load) error {
	stop := func() bool {
		select {
		case q := <-p.surveys:
			return p.conn.Send(p.s.surveyed(q.From, p.sees)) != nil
		default:
			return p.ctx.Err() != nil
		}
	}
	last, err := pour(p.conn, l, stop)
	if err != nil {
		return err
	}
	p.unload()
	return p.conn.Send(last)
}

// ballast is made once: what cannot be compressed on the way.
var ballast = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<20)
	rand.Read(b)
	return b
})

// pour sends ballast until the time of a Load or its bytes are over, or stop says so, and returns what is to be
// said then. A send carries so much that it takes about a millisecond: a small frame waits for no more than
// that, on any way.
func pour(conn *wire.Conn, l *wire.Load, stop func() bool) (*wire.Loaded, error) {
	conn.Shallow()
	before, _ := conn.Path()
	began, left := time.Now(), l.Bytes
	length := time.Duration(l.Millis) * time.Millisecond
	size, seq := ballastLeast, uint64(0)
	var frames []wire.Message
	for time.Since(began) < length && left > 0 && !stop() {
		frames = frames[:0]
		for n := min(uint64(size), left); n > 0; {
			from := int(seq%64) * wire.MaxBallast
			part := min(n, wire.MaxBallast)
			frames = append(frames, &wire.Ballast{Seq: seq, Payload: ballast()[from : from+int(part)]})
			n, left, seq = n-part, left-part, seq+1
		}
		sent := time.Now()
		if err := conn.Send(frames...); err != nil {
			return nil, err
		}
		if time.Since(sent) < time.Millisecond {
			size = min(2*size, ballastMost)
		} else {
			size = max(size/2, ballastLeast)
		}
	}
	after, _ := conn.Path()
	return &wire.Loaded{Bytes: l.Bytes - left, Nanos: uint64(time.Since(began)), Resent: uint64(max(0, after.Resent-before.Resent)),
		Flags: wire.LoadedLast}, nil
}

// surveyed tells of this node what a peer may know, and of its volumes those that it was given.
func (s *server) surveyed(from uint32, sees func(volume string) bool) *wire.Surveyed {
	here := kernelSockets()
	m := &wire.Surveyed{ReceiveMax: here.ReceiveMax, SendMax: here.SendMax, Congestion: here.Congestion,
		HashSpeed: int64(hashSpeed()), CPUs: uint16(min(runtime.NumCPU(), math.MaxUint16)), Version: clip(s.Version, wire.MaxName)}
	var names []string // counted alone, so that no number tells of the others
	for _, name := range s.names {
		if from != noVolumes && sees(name) {
			names = append(names, name)
		}
	}
	if int64(from) < int64(len(names)) {
		names = names[from:]
		m.More = len(names) > wire.MaxVolumes
		for _, name := range names[:min(len(names), wire.MaxVolumes)] {
			v := s.volumes[name].status()
			m.Volumes = append(m.Volumes, wire.SurveyedVolume{Size: max(v.Size, 0), Role: roleOfWord(v.Role), Name: name, State: clip(v.State, wire.MaxState)})
		}
	}
	now := time.Now
	if s.clock != nil {
		now = s.clock
	}
	m.Clock = now().UnixNano() // last: what came before took time
	return m
}

func roleOfWord(word string) wire.Role {
	for role, w := range roleWords {
		if w == word {
			return role
		}
	}
	return 0
}

// clip makes a text of our own fit into a field.
func clip(s string, limit int) string {
	s = wire.CleanText(s)
	return strings.ToValidUTF8(s[:min(len(s), limit)], "")
}

// hashSpeed of one processor, in bytes a second, measured once for some milliseconds.
var hashSpeed = sync.OnceValue(func() float64 { return hashFor(10 * time.Millisecond) })

func hashFor(d time.Duration) float64 {
	b := ballast()[:DefaultBlockSize]
	began, n := time.Now(), 0
	for n == 0 || time.Since(began) < d {
		wire.Sum(b)
		n += len(b)
	}
	return float64(n) / time.Since(began).Seconds()
}

// kernelSockets are the limits of this machine.
func kernelSockets() doctor.Sockets {
	last := func(name string) int64 {
		fields := strings.Fields(sysctl(name))
		if len(fields) == 0 {
			return 0
		}
		n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
		if err != nil {
			return 0
		}
		return max(n, 0)
	}
	return doctor.Sockets{ReceiveMax: last("tcp_rmem"), SendMax: last("tcp_wmem"), Congestion: clip(sysctl("tcp_congestion_control"), wire.MaxState)}
}

// sysctl reads a setting of TCP; "": there is none.
func sysctl(name string) string {
	text, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
