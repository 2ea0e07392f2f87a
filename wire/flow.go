package wire

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// FlowOptions are what a person says of one connection's flow.
type FlowOptions struct {
	Limit      int64  // bytes a second; 0: none
	Congestion string // "auto" (also ""), "default", or a name
}

// FlowState is how the flow of a connection stands (docs/FLOW.md).
type FlowState struct {
	Limit, Pacing, Bandwidth      int64 // bytes a second; 0: none, none, not known
	Window, Outstanding           int64
	Run, Unsent                   int64
	RTT, MinRTT, SwellThreshold   time.Duration // 0: not known
	TCPRoundTrip, TCPMinRoundTrip time.Duration
	TCPDeliveryRate               int64
	Segment                       int64 // bytes of the largest segments to the peer
	Slowed                        bool
	Congestion, Refused           string
}

// Flow steers what a Conn sends in bulk: it looks at the connection some times a second, asks flowLaw, and sets
// what that says. Its goroutine, routineFlow, is one of the Conn's.
type Flow struct {
	conn   *Conn
	window *SendWindow
	socket flowSocket
	begun  time.Time

	limit atomic.Int64
	run   atomic.Int64
	wake  chan struct{} // one token: look now

	mu    sync.Mutex
	asked []time.Duration // when pings were sent, since the connection began, that are not answered
	pong  struct {        // the last one; took 0: was looked at
		asked, took time.Duration
	}
	state FlowState
}

// mostAsked bounds what is remembered of a peer that answers no ping; it is dead before long.
const mostAsked = 256

// Steer begins to steer what goes through w and then this connection, until that ends. It is called once, before
// anything is sent in bulk.
func (c *Conn) Steer(w *SendWindow, o FlowOptions) *Flow {
	f := &Flow{conn: c, window: w, socket: flowSocketOf(c.nc), begun: c.began, wake: make(chan struct{}, 1)}
	f.limit.Store(o.Limit)
	f.state.Limit, f.state.Pacing = o.Limit, o.Limit
	f.run.Store(startRun)
	f.socket.congest(o.Congestion, c.Loopback())
	f.state.Congestion = f.socket.congestion
	f.socket.set(startRun, o.Limit)
	w.Limit(int64(w.total()))
	c.flow.Store(f)
	c.routines.Go(f.routineFlow)
	return f
}

// SetLimit changes the limit, in bytes a second; 0: none.
func (f *Flow) SetLimit(bytesPerSecond int64) {
	if f.limit.Swap(bytesPerSecond) == bytesPerSecond {
		return
	}
	select {
	case f.wake <- struct{}{}:
	default: // a token is there
	}
}

// Run is how many bytes one Send of bulk should carry at most, where a single record is not larger.
func (f *Flow) Run() int64 { return f.run.Load() }

// State tells how it stood at the last look.
func (f *Flow) State() FlowState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// ponged takes a measured round trip: that of the ping which was sent at asked, since the connection began.
func (f *Flow) ponged(asked, took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pong.asked, f.pong.took = asked, took
	f.asked = slices.DeleteFunc(f.asked, func(t time.Duration) bool { return t <= asked })
}

// routineFlow looks, at first often: a new connection knows nothing.
func (f *Flow) routineFlow() {
	every := flowLook / 16
	timer := time.NewTimer(every)
	defer timer.Stop()
	l := looking{flow: f, law: flowLaw{most: int64(f.window.total())}}
	for {
		select {
		case <-f.conn.done:
			return
		case <-timer.C:
		case <-f.wake:
		}
		l.look(time.Since(f.begun))
		every = min(2*every, flowLook)
		timer.Reset(every)
	}
}

// looking is what routineFlow knows.
type looking struct {
	flow   *Flow
	law    flowLaw
	before struct {
		delivered int64
		held      uint64
		waits     bool
		limit     int64
	}
	record int64
	rtt    time.Duration // the last that was measured
}

// look takes one look, sets what the law says, and has a ping sent where that will be worth looking at. A connection
// on which nothing happens is left alone.
func (l *looking) look(now time.Duration) {
	f := l.flow
	u := f.window.underWay()
	s := flowSample{now: now, delivered: u.delivered, outstanding: u.outstanding, limit: f.limit.Load()}
	s.rtt, s.asked = l.roundTrip(now)
	if s.rtt == 0 && u.outstanding == 0 && u.delivered == l.before.delivered && s.limit == l.before.limit {
		l.before.waits = false
		return
	}
	view := f.socket.view()
	waits := u.waits || f.conn.live.writing.Load() && (view.unsent > 0 || !view.known)
	s.full, s.held = waits && l.before.waits, u.held != l.before.held
	l.record = max(u.largest, l.record-l.record/8)
	s.record = l.record
	l.before.delivered, l.before.held, l.before.waits, l.before.limit = u.delivered, u.held, waits, s.limit

	order := l.law.look(s)
	f.window.Limit(order.window)
	f.run.Store(order.run)
	f.socket.set(order.lowat, order.pacing)
	l.show(s, order, view)
	if u.outstanding > 0 {
		l.ping(now)
	}
}

// roundTrip is what was measured since the last look, or the age of a ping that waits longer than the last one did.
func (l *looking) roundTrip(now time.Duration) (took, asked time.Duration) {
	f := l.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	took, asked = f.pong.took, f.pong.asked
	f.pong.took = 0
	if took > 0 {
		l.rtt = took
	} else if len(f.asked) > 0 && now-f.asked[0] > l.rtt && l.rtt > 0 {
		return now - f.asked[0], f.asked[0]
	}
	return took, asked
}

func (l *looking) ping(now time.Duration) {
	f := l.flow
	f.mu.Lock()
	room := len(f.asked) < mostAsked
	if room {
		f.asked = append(f.asked, now)
	}
	f.mu.Unlock()
	if room {
		f.conn.live.pingDue.Store(true)
		f.conn.wakeControl()
	}
}

func (l *looking) show(s flowSample, o flowOrder, view kernelView) {
	f := l.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = FlowState{
		Limit: s.limit, Pacing: o.pacing, Window: o.window, Outstanding: s.outstanding, Run: o.run, Unsent: o.lowat,
		RTT: l.law.standing(), MinRTT: l.law.base, SwellThreshold: l.law.threshold, Slowed: l.law.slowed(s.now),
		TCPRoundTrip: view.rtt, TCPMinRoundTrip: view.minRTT, TCPDeliveryRate: view.rate, Segment: view.segment,
		Congestion: f.socket.congestion, Refused: strings.Join(f.socket.refused, "; "),
	}
	if l.law.proven {
		f.state.Bandwidth = int64(l.law.bandwidth)
	}
}
