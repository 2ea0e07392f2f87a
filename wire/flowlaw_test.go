package wire

import (
	"testing"
	"time"
)

const ms = time.Millisecond

// feed shows the law the same look for some time.
func feed(l *flowLaw, now *time.Duration, d time.Duration, rate int64, s flowSample) (o flowOrder) {
	for end := *now + d; *now < end; *now += flowLook {
		last := int64(0)
		if n := len(l.past); n > 0 {
			last = l.past[n-1].delivered
		}
		s.now, s.delivered, s.asked = *now, last+rate*int64(flowLook)/int64(time.Second), *now
		o = l.look(s)
	}
	return o
}

// TestFlowLawKnowsNothing: as long as nobody waited, and nothing is limited, nothing is held back.
func TestFlowLawKnowsNothing(t *testing.T) {
	l, now := flowLaw{most: 32 << 20}, time.Second
	o := feed(&l, &now, 10*time.Second, 100<<10, flowSample{rtt: 900 * ms, record: 64 << 10})
	if o.window != l.most || o.pacing != 0 || o.run != startRun || o.lowat != startRun || l.slowed(now) {
		t.Errorf("%+v", o)
	}
	// A fast rate that was seen in passing makes sends longer.
	if o = feed(&l, &now, 3*time.Second, 200<<20, flowSample{rtt: ms, record: 64 << 10}); o.window != l.most || o.run != MaxRun || o.lowat != mostLowat {
		t.Errorf("%+v", o)
	}
}

// TestFlowLawOrders: what is ordered on a path that is full and whose round trip stays as it is.
func TestFlowLawOrders(t *testing.T) {
	for _, c := range []struct {
		rate, limit      int64
		rtt              time.Duration
		run, lowat, pace int64
		window           int64
	}{
		{125 << 10, 0, ms, 6400, leastLowat, 0, leastWindow},
		{1 << 20, 0, 50 * ms, 52428, 26214, 0, 104857},
		{10 << 20, 0, 200 * ms, 524288, 262144, 0, 5 << 19},
		{1 << 30, 0, 100 * ms, MaxRun, mostLowat, 0, 32 << 20},
		{10 << 20, 10 << 20, 50 * ms, 524288, 262144, 10 << 20, 1 << 20},
		{10 << 20, 1 << 20, 50 * ms, 52428, 26214, 1 << 20, 104857}, // it is new: what is under way comes faster
	} {
		l, now := flowLaw{most: 32 << 20}, time.Second
		o := feed(&l, &now, 5*time.Second, c.rate, flowSample{rtt: c.rtt, full: true, record: 4 << 10, limit: c.limit})
		if o.run != c.run || o.lowat != c.lowat || o.pacing != c.pace || max(o.window-c.window, c.window-o.window) > c.window/50 {
			t.Errorf("%+v: %+v", c, o)
		}
		if l.slowed(now) || l.threshold < c.rtt+flowAllowed {
			t.Errorf("%+v: slowed %v, threshold %v", c, l.slowed(now), l.threshold)
		}
	}
}

// TestFlowLawLimitOfAnUnknownPath: a limit is kept, and sends made short, before anything was measured.
func TestFlowLawLimitOfAnUnknownPath(t *testing.T) {
	l := flowLaw{most: 32 << 20}
	if o := l.look(flowSample{now: time.Second, limit: 1 << 20}); o.pacing != 1<<20 || o.run != 52428 || o.lowat != 26214 {
		t.Errorf("%+v", o)
	}
}

// TestFlowLawSwells: a round trip that swells while we load the path makes the window smaller and is told; one that
// stays although next to nothing is under way becomes the path's own; one late pong is nothing.
func TestFlowLawSwells(t *testing.T) {
	l, now := flowLaw{most: 32 << 20}, time.Second
	calm := flowSample{rtt: 20 * ms, full: true, held: true, record: 4 << 10, outstanding: 64 << 10}
	before := feed(&l, &now, 5*time.Second, 10<<20, calm)

	late := calm
	late.rtt = 2 * time.Second
	feed(&l, &now, flowLook, 10<<20, late)
	if o := feed(&l, &now, flowLook, 10<<20, calm); l.slowed(now) || o.window < before.window {
		t.Errorf("after one late pong: %+v, before %+v", o, before)
	}

	swollen := calm
	swollen.rtt, swollen.outstanding = 400*ms, 8<<20
	o := feed(&l, &now, 3*time.Second, 10<<20, swollen)
	if !l.slowed(now) || o.window > before.window*3/4 || o.pacing <= 0 || o.pacing > 14<<20 || l.base != 20*ms {
		t.Errorf("swollen: %+v, before %+v, base %v", o, before, l.base)
	}
	if o := feed(&l, &now, 2*time.Second, 10<<20, calm); !l.slowed(now) || o.pacing != 0 {
		t.Errorf("calm for two seconds: told %v; what is paced on would keep the path slow: %+v", l.slowed(now), o)
	}
	if o := feed(&l, &now, 5*time.Second, 10<<20, calm); l.slowed(now) || o.pacing != 0 {
		t.Errorf("calm again: %+v", o)
	}

	longer := calm
	longer.rtt, longer.outstanding = 400*ms, 0
	if feed(&l, &now, 10*time.Second, 10<<20, longer); l.base != 400*ms || l.swollen {
		t.Errorf("a longer path: base %v, swollen %v", l.base, l.swollen)
	}
	if feed(&l, &now, flowLook, 10<<20, calm); l.base != 20*ms {
		t.Errorf("short again: base %v", l.base)
	}
}

// TestFlowLawSlowPath: what was sent into a path that became slow is not held back here: were the path fast again, nobody
// would learn it.
func TestFlowLawSlowPath(t *testing.T) {
	l, now := flowLaw{most: 32 << 20}, time.Second
	s := flowSample{rtt: 20 * ms, full: true, held: true, record: 4 << 10, outstanding: 8 << 20}
	feed(&l, &now, 5*time.Second, 10<<20, s)
	s.rtt = 20 * time.Second
	if o := feed(&l, &now, 30*time.Second, 8<<10, s); !l.slowed(now) || l.bandwidth > 16<<10 || o.pacing < s.outstanding {
		t.Errorf("%d bytes a second, %d under way: %+v", int64(l.bandwidth), s.outstanding, o)
	}
	s.outstanding = 0
	if o := feed(&l, &now, time.Second, 8<<10, s); o.pacing > 20<<10 {
		t.Errorf("nothing under way: %+v", o)
	}
}

// TestFlowLawStandstill: a path that stands still for a moment is not a slow one.
func TestFlowLawStandstill(t *testing.T) {
	l, now := flowLaw{most: 32 << 20}, time.Second
	s := flowSample{rtt: 20 * ms, full: true, record: 64 << 10}
	feed(&l, &now, 5*time.Second, 10<<20, s)
	before := l.bandwidth
	if feed(&l, &now, time.Second, 0, s); l.bandwidth < before/2 {
		t.Errorf("%.0f after a second, %.0f before", l.bandwidth, before)
	}
	if feed(&l, &now, 20*time.Second, 1<<20, s); l.bandwidth > 1.1*(1<<20) {
		t.Errorf("%.0f of a path that stays slow", l.bandwidth)
	}
}
