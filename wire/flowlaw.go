package wire

import "time"

// The numbers of the law (docs/FLOW.md). Nothing on the wire depends on them.
const (
	flowLook    = 250 * time.Millisecond // between two looks
	flowSpan    = time.Second            // that a rate is measured over, at least …
	flowRecords = 8                      // … and so many records, each of which is answered as a whole
	flowLeast   = 50 * time.Millisecond  // … and it is none over less than this
	flowPast    = 32                     // looks that are remembered
	flowPongs   = 4                      // of the last ones the smallest is what stands

	flowAllowed = 50 * time.Millisecond // of queue, or a quarter of the path's own round trip
	runTime     = 50 * time.Millisecond // one send
	lowatTime   = 25 * time.Millisecond // unsent in the kernel
	halving     = time.Second           // bandwidth falls by half in that time, not faster

	roomCut    = 0.5              // a cut leaves at least that much of it
	roomGrow   = 1.25             // it grows at most by that with one look
	probeEvery = 20 * time.Second // that the base was not seen, then half of the window is left free for a moment
	slowedPace = 1.25
	slowedFor  = 5 * time.Second // after the last swollen look

	startWindow = 256 << 10
	startRun    = 128 << 10
	leastWindow = 8 << 10
	leastRun    = 4 << 10 // less than any record: then one goes alone
	leastLowat  = 8 << 10
	mostLowat   = notSentLowat
)

// flowSample is one look at a connection.
type flowSample struct {
	now         time.Duration // of a clock that does not jump
	delivered   int64         // bytes that were answered, since the beginning
	outstanding int64         // bytes that are not
	rtt         time.Duration // of a control frame, or the age of one that is not answered; 0: nothing new
	asked       time.Duration // when that frame was sent
	full        bool          // somebody waited for room all the while
	held        bool          // … for room of the window of this law
	record      int64         // the largest that was sent lately
	limit       int64         // bytes a second that a person allows; 0: any
}

// flowOrder is what is to be done.
type flowOrder struct {
	window int64 // bytes that may be unanswered, and one send beyond
	run    int64 // bytes of one send, where a record is not larger
	lowat  int64 // bytes that may wait unsent in the kernel
	pacing int64 // bytes a second; 0: as fast as it goes
}

// flowLaw decides from looks at a connection how much may be under way on it. It knows no clock, no socket
// and no goroutine. Ready for use with most set.
type flowLaw struct {
	most int64 // the peer's grant: no window is larger

	past  []flowSample // the oldest first
	pongs []time.Duration

	bandwidth float64 // bytes a second; 0: not known
	proven    bool    // … by a look that was full
	base      time.Duration
	baseSeen  time.Duration // when a round trip was last about as short
	probing   time.Duration // until then
	room      float64       // 0: 1
	want      time.Duration // the queue that is aimed at
	swollen   bool
	// quiet is since when a swollen round trip cannot be blamed on what we have under way.
	quiet     time.Duration
	isQuiet   bool
	threshold time.Duration
	slowedAt  time.Duration // when it was swollen last; 0: never
	grown     time.Duration // when room grew last
	nextCut   time.Duration // not before
	order     flowOrder
}

// look takes a sample and says what to do until the next one.
func (l *flowLaw) look(s flowSample) flowOrder {
	if l.room == 0 {
		l.room = 1
		l.order = flowOrder{window: l.most, run: startRun, lowat: startRun}
	}
	l.measure(s)
	l.listen(s)
	l.steer(s)
	l.settle(s)
	return l.order
}

// measure brings the bandwidth up to date.
func (l *flowLaw) measure(s flowSample) {
	var elapsed time.Duration
	if n := len(l.past); n > 0 {
		elapsed = s.now - l.past[n-1].now
	}
	if len(l.past) == flowPast {
		l.past = append(l.past[:0], l.past[1:]...)
	}
	l.past = append(l.past, s)
	rate := l.rate()
	switch {
	case !s.full, l.proven && s.held && l.idle():
		// What was delivered is what there was to send, or what the window let pass: the path carries more.
		l.bandwidth = max(l.bandwidth, rate)
	case rate > 0:
		if l.proven { // a path that stands still for a moment is not a slow one
			rate = max(rate, l.bandwidth*(1-min(0.5, float64(elapsed)/float64(2*halving))))
		}
		l.bandwidth, l.proven = rate, true
	}
}

// rate is what was delivered a second, lately.
func (l *flowLaw) rate() float64 {
	last := l.past[len(l.past)-1]
	for i := len(l.past) - 2; i >= 0; i-- {
		from := l.past[i]
		n, span := last.delivered-from.delivered, last.now-from.now
		idle := last.full && !from.full // before it there was less to send than there was room for
		if i == 0 || idle || span >= flowSpan && n >= flowRecords*last.record {
			return float64(n) / max(span, flowLeast).Seconds()
		}
	}
	return 0
}

// listen takes a round trip in.
func (l *flowLaw) listen(s flowSample) {
	if s.rtt <= 0 {
		return
	}
	if len(l.pongs) == flowPongs {
		l.pongs = append(l.pongs[:0], l.pongs[1:]...)
	}
	l.pongs = append(l.pongs, s.rtt)
	if l.base == 0 || s.rtt < l.base {
		l.base = s.rtt
	}
	// Under a load that never rests, a queue of ours stands in every round trip: a path that became shorter
	// would go unnoticed, and the queue be taken for a part of it.
	switch {
	case s.rtt <= l.base+l.base/16, s.outstanding == 0:
		l.baseSeen = s.now
	case s.now-l.baseSeen > probeEvery && s.now >= l.probing:
		l.baseSeen = s.now
		l.probing = s.now + s.rtt + 2*flowLook
	}
}

// standing is the round trip that does not go away; 0: too few are known.
func (l *flowLaw) standing() time.Duration {
	if len(l.pongs) < flowPongs {
		return 0
	}
	least := l.pongs[0]
	for _, p := range l.pongs {
		least = min(least, p)
	}
	return least
}

// idle says that no queue stands.
func (l *flowLaw) idle() bool { return l.standing() < l.base+l.want }

// allowed is how long a queue may stand.
func (l *flowLaw) allowed() time.Duration { return max(flowAllowed, l.base/4) }

// steer changes the room by what the round trip does, so that a queue of two thirds of what may stand is left at most:
// with less the path would be idle now and then.
func (l *flowLaw) steer(s flowSample) {
	own := time.Duration(0)
	if pace := l.pace(s); pace > 0 {
		own = l.takes(l.order.lowat+max(l.order.run, s.record), pace)
	}
	l.threshold = l.base + own + l.allowed()
	if !l.proven {
		return
	}
	standing := l.standing()
	l.want = max(l.allowed(), own) * 2 / 3
	if l.swollen = standing > l.threshold; l.swollen {
		l.slowedAt = s.now
	}
	if standing > l.base+l.want {
		if s.now >= l.nextCut { // what the last cut did is to be seen by now
			l.turn(l.want - (standing - l.base))
			l.nextCut = s.now + standing + flowLook
		}
		l.blame(s, standing)
		return
	}
	l.isQuiet = false
	if s.held && s.rtt > 0 && s.rtt < l.base+l.want && s.asked > l.grown && l.order.window < l.most {
		l.turn(l.want - (s.rtt - l.base))
		l.grown = s.now
	}
}

// turn makes room for the bytes of so much time, or takes it away.
func (l *flowLaw) turn(by time.Duration) {
	whole := (l.base + l.allowed()).Seconds() * l.room
	change := 1 + by.Seconds()/whole
	l.room = max(l.roomLeast(), l.room*min(max(change, roomCut), roomGrow))
}

// roomLeast leaves no queue, on a path that is as short as it is thought to be.
func (l *flowLaw) roomLeast() float64 {
	return max(roomCut, float64(l.base)/float64(l.base+l.allowed()))
}

// blame finds out whether a swollen round trip is of our making: it is not where we have made room, nothing
// beyond that is under way any more, and it stays.
func (l *flowLaw) blame(s flowSample, standing time.Duration) {
	if l.room > l.roomLeast() || s.outstanding > l.order.window+l.order.run+s.record {
		l.isQuiet = false
		return
	}
	if !l.isQuiet {
		l.isQuiet, l.quiet = true, s.now
	}
	if s.now-l.quiet > standing+flowPongs*flowLook {
		l.base, l.room, l.isQuiet = standing, 1, false
	}
}

// pace is what goes out a second as far as is known; 0: it is not.
func (l *flowLaw) pace(s flowSample) float64 {
	switch limit := float64(s.limit); {
	case limit > 0 && (!l.proven || limit < l.bandwidth):
		return limit
	case l.proven:
		return l.bandwidth
	}
	return 0
}

func (l *flowLaw) takes(n int64, pace float64) time.Duration {
	return time.Duration(min(float64(n)/pace, 3600) * float64(time.Second))
}

// settle makes an order of what is known.
func (l *flowLaw) settle(s flowSample) {
	pace := l.pace(s)
	seen, run, lowat := pace, int64(leastRun), int64(leastLowat)
	l.order.window = l.most
	if pace > 0 {
		l.order.window = min(max(int64(pace*(l.base+l.allowed()).Seconds()*l.room), leastWindow), l.most)
		if s.now < l.probing {
			l.order.window = max(l.order.window/2, leastWindow)
		}
	} else { // a rate that was seen in passing is reason for more, not for less
		seen, run, lowat = l.bandwidth, startRun, startRun
	}
	l.order.run = min(max(int64(seen*runTime.Seconds()), run), MaxRun)
	l.order.lowat = min(max(int64(seen*lowatTime.Seconds()), lowat), mostLowat)
	l.order.pacing = s.limit
	if l.swollen {
		// Only as long as it stands: what we pace waits in our own kernel, its round trips are of our own making,
		// and a path that has become fast would never be seen. For the same reason what is under way may leave
		// within a second: it waits no less in our kernel than on the path.
		l.order.pacing = max(int64(slowedPace*l.bandwidth), s.outstanding, leastWindow)
		if s.limit > 0 {
			l.order.pacing = min(l.order.pacing, s.limit)
		}
	}
}

// slowed says that room is made for others, and for our own control frames.
func (l *flowLaw) slowed(now time.Duration) bool {
	return l.slowedAt > 0 && now-l.slowedAt < slowedFor
}
