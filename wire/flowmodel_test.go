package wire

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// link is a bottleneck with a buffer without end, which is the worst that a router or a proxy can do, and a
// mirror behind it.
type link struct {
	rate   float64 // bytes a second
	delay  time.Duration
	mirror time.Duration // that an answer takes at the mirror
	record int64
	jitter time.Duration // a ping comes back by up to that later than it must
	rng    *rand.Rand

	now    time.Duration
	free   time.Duration // when the line has carried all that it was given
	sent   int64
	given  []given
	law    flowLaw
	order  flowOrder
	window *SendWindow
	limit  int64

	delivered  int64
	held       uint64
	pings      []ping
	last       time.Duration
	rtt, asked time.Duration // to be told
}

// given is a record, or several, on their way.
type given struct {
	back time.Duration
	n    int64
}

type ping struct{ asked, back time.Duration }

const tick = time.Millisecond

// never is for what is not to wait.
var never = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// run lets a greedy sender send for some time, and returns what it carried of what it could, and the queue
// that stood: the longest that was never shorter for a second.
func (l *link) run(d time.Duration) (share float64, stood time.Duration) {
	before, start := l.delivered, l.now
	least, since := time.Duration(1<<62), l.now
	for end := l.now + d; l.now < end; l.now += tick {
		for len(l.given) > 0 && l.given[0].back <= l.now {
			l.delivered += l.given[0].n
			l.window.Delivered(l.given[0].n)
			l.given = l.given[1:]
		}
		l.send()
		for len(l.pings) > 0 && l.pings[0].back <= l.now {
			l.asked = l.pings[0].asked
			l.rtt = l.pings[0].back - l.asked
			l.pings = l.pings[1:]
		}
		if l.now%flowLook == 0 {
			l.look()
		}
		least = min(least, max(0, l.free-l.now))
		if l.now-since >= time.Second {
			stood, least, since = max(stood, least), 1<<62, l.now
		}
	}
	could := l.rate
	if l.limit > 0 {
		could = min(could, float64(l.limit))
	}
	return float64(l.delivered-before) / (could * (l.now - start).Seconds()), stood
}

func (l *link) send() {
	for {
		n := max(l.record, l.order.run/l.record*l.record)
		if l.window.Admit(never, 1, n) != nil {
			return
		}
		l.free = max(l.free, l.now) + time.Duration(float64(n)/l.rate*1e9)
		l.sent += n
		l.given = append(l.given, given{l.free + l.delay + l.mirror, n})
	}
}

func (l *link) look() {
	held := l.window.underWay().held
	s := flowSample{now: l.now, delivered: l.delivered, outstanding: l.sent - l.delivered, rtt: l.rtt, asked: l.asked, full: true, held: held != l.held, record: l.record, limit: l.limit}
	if l.rtt > 0 {
		l.last = l.rtt
	} else if len(l.pings) > 0 && l.now-l.pings[0].asked > l.last {
		s.rtt = l.now - l.pings[0].asked
	}
	l.rtt, l.held = 0, held
	l.order = l.law.look(s)
	l.window.Limit(l.order.window)
	late := time.Duration(l.rng.Float64() * float64(l.jitter))
	l.pings = append(l.pings, ping{l.now, max(l.free, l.now) + l.delay + late})
}

func newLink(rate float64, delay, mirror time.Duration, record int64) *link {
	l := &link{rate: rate, delay: delay, mirror: mirror, record: record, now: tick, rng: rand.New(rand.NewPCG(1, 1)), law: flowLaw{most: 32 << 20}}
	l.order = flowOrder{window: startWindow, run: startRun, lowat: startRun}
	l.last = delay
	l.window = NewWindow(1 << 60)
	l.window.Limit(startWindow)
	l.law.look(flowSample{rtt: delay}) // before anything is sent
	return l
}

const mbit = 1e6 / 8

func (l *link) expect(t *testing.T, what string, settle, measure time.Duration) {
	t.Helper()
	l.run(settle)
	share, stood := l.run(measure)
	// What may stand before a control frame, on a path of that length: what is allowed, and our own sends.
	most := max(flowAllowed, l.delay/4) + max(runTime, l.law.takes(l.record, l.rate)) + max(lowatTime, l.law.takes(leastLowat, l.rate))
	t.Logf("%s: %.3f of the link, %v stood, at most %v; %v", what, share, stood.Round(tick), most.Round(tick), l.law.threshold.Round(tick))
	if share < 0.9 || share > 1.02 {
		t.Errorf("%s: %.3f of the link", what, share)
	}
	if stood > most {
		t.Errorf("%s: a queue of %v stands, at most %v may", what, stood, most)
	}
}

// TestFlowBottleneck: links of all kinds are used to nine tenths, and no queue stands for longer than is
// allowed.
func TestFlowBottleneck(t *testing.T) {
	for _, rate := range []float64{mbit, 10 * mbit, 100 * mbit, 1000 * mbit} {
		for _, delay := range []time.Duration{200 * time.Microsecond, 10 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond} {
			for _, record := range []int64{4 << 10, 64 << 10} {
				t.Run(fmt.Sprintf("%.0fMbit/%v/%dK", rate/mbit, delay, record>>10), func(t *testing.T) {
					if rate*delay.Seconds() > 16<<20 {
						t.Skip("the peer's grant is less than the link holds")
					}
					newLink(rate, delay, time.Millisecond, record).expect(t, "steady", 20*time.Second, 30*time.Second)
				})
			}
		}
	}
}

// TestFlowSlowMirror: answers that come late because the mirror's disk is slow cost no throughput.
func TestFlowSlowMirror(t *testing.T) {
	for _, mirror := range []time.Duration{20 * time.Millisecond, 200 * time.Millisecond} {
		newLink(200*mbit, time.Millisecond, mirror, 64<<10).expect(t, mirror.String(), 20*time.Second, 20*time.Second)
	}
}

// TestFlowJitter: nodes that have much else to do answer late, and still use the link.
func TestFlowJitter(t *testing.T) {
	for _, rate := range []float64{mbit, 10 * mbit, 100 * mbit, 1000 * mbit} {
		l := newLink(rate, 20*time.Millisecond, 20*time.Millisecond, 64<<10)
		l.jitter = 80 * time.Millisecond
		l.run(20 * time.Second)
		share, stood := l.run(30 * time.Second)
		t.Logf("%.0f Mbit: %.3f of the link, %v stood", rate/mbit, share, stood.Round(tick))
		if most := flowAllowed + l.jitter + 2*l.law.takes(l.record, rate); share < 0.75 || stood > most {
			t.Errorf("%.0f Mbit: %.3f of the link, a queue of %v stands, at most %v may", rate/mbit, share, stood, most)
		}
	}
}

// TestFlowSteps: the link becomes faster, slower, longer and shorter.
func TestFlowSteps(t *testing.T) {
	l := newLink(100*mbit, 20*time.Millisecond, time.Millisecond, 64<<10)
	l.expect(t, "at first", 10*time.Second, 10*time.Second)
	l.rate = 10 * mbit
	l.expect(t, "a tenth", 15*time.Second, 20*time.Second)
	l.rate = 500 * mbit
	l.expect(t, "fifty times", 15*time.Second, 20*time.Second)
	l.delay = 200 * time.Millisecond
	l.expect(t, "ten times as long", 20*time.Second, 20*time.Second)
	l.delay = 5 * time.Millisecond
	l.expect(t, "short", 60*time.Second, 20*time.Second)
	l.rate = 5 * mbit
	l.expect(t, "a hundredth", 60*time.Second, 20*time.Second)
}
