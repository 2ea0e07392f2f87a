package paths

import (
	"net/netip"
	"syscall"
	"time"
)

// scenario is one bad path.
type scenario struct {
	name, cause string
	moves       bool // between networks, under a name and without a proxy
	short       bool // is done within seconds, with Options.Short

	least, most int           // disconnects; each fault of a kind that repeats is one
	classes     []string      // that they may have
	toMirror    []string      // and at the mirror; nil: that is not asked
	limit       time.Duration // for the time to resume; 0: none
	run         func(*rig) error
}

var both = []Way{There, Back}

var scenarios = []*scenario{
	{name: "latency", cause: "latency 1 ms, 3 s, 1 ms, each way", limit: 5 * time.Second, run: latency},
	{name: "hold-5s", cause: "all bytes held back for 5 s", short: true, limit: 5 * time.Second, run: hold(5 * time.Second)},
	{name: "hold-30s", cause: "all bytes held back for 30 s", most: 1, classes: []string{"timeout"}, limit: 5 * time.Second, run: hold(30 * time.Second)},
	{name: "hold-120s", cause: "all bytes held back for 120 s", most: 1, classes: []string{"timeout"}, limit: 5 * time.Second, run: hold(120 * time.Second)},
	{name: "resets", cause: "a reset of each connection when it is 3 s old", short: true, least: 1, most: 1, classes: []string{"reset"}, run: resets},
	{name: "mirror-gone", cause: "half-open: reset for the mirror, the primary is not told", short: true, least: 1, most: 1, classes: []string{"timeout"},
		run: halfOpen(func(p *Proxy) { p.Forsake(Back) })},
	{name: "primary-gone", cause: "half-open: reset for the primary, the mirror is not told", short: true, least: 1, most: 1, classes: []string{"reset"},
		run: halfOpen(func(p *Proxy) { p.Forsake(There) })},
	// Who hears nothing ends it, and tells the other side.
	{name: "data-lost", cause: "half-open: what the primary sends vanishes", least: 1, most: 1, classes: []string{"timeout"}, toMirror: []string{"timeout"},
		run: halfOpen(func(p *Proxy) { p.Lose(There) })},
	{name: "answers-lost", cause: "half-open: what the mirror sends vanishes", least: 1, most: 1, classes: []string{"timeout"}, toMirror: []string{"timeout"},
		run: halfOpen(func(p *Proxy) { p.Lose(Back) })},
	{name: "refused", cause: "reset, and refused for 10 s", least: 1, most: 1, classes: []string{"reset"}, limit: 5 * time.Second, run: refused},
	{name: "slow-line", cause: "1 Mbit/s each way for 30 s, several times as much is written", limit: 5 * time.Second,
		run: slow(30*time.Second, Pace{12500, 100 * time.Millisecond}, both...)},
	{name: "slow-reader", cause: "a reader of 16 KiB every 2 s, for 30 s", limit: 5 * time.Second,
		run: slow(30*time.Second, Pace{16 << 10, 2 * time.Second}, There)},
	{name: "moved", cause: "mirror stopped (SIGTERM), started in another network, with another address behind the same name", moves: true, short: true,
		least: 1, most: 1, classes: []string{"peer-stopped"}, limit: 3 * time.Second, run: moved(0)},
	{name: "moved-later", cause: "the same, and 15 s between", moves: true,
		least: 1, most: 1, classes: []string{"peer-stopped"}, limit: 3 * time.Second, run: moved(15 * time.Second)},
}

// latency: what is under way for long is not dead.
func latency(r *rig) error {
	set := func(d time.Duration) {
		for _, w := range both {
			r.line.Delay(w, d)
		}
	}
	set(time.Millisecond)
	if err := r.sleep(5 * time.Second); err != nil {
		return err
	}
	r.fault(func() { set(3 * time.Second) })
	if err := r.sleep(30 * time.Second); err != nil {
		return err
	}
	set(time.Millisecond)
	back := time.Now()
	if err := r.resumed(back); err != nil {
		return err
	}
	return r.sleep(5 * time.Second)
}

// hold: the path is silent and comes back.
func hold(d time.Duration) func(*rig) error {
	return func(r *rig) error {
		set := func(on bool) {
			for _, w := range both {
				r.line.Hold(w, on)
			}
		}
		r.fault(func() { set(true) })
		if err := r.sleep(d); err != nil {
			return err
		}
		set(false)
		return r.resumed(time.Now())
	}
}

// resets: each time it is noticed at once, and everything goes on from where it was. (A connection that lives for less than
// two seconds would be no disconnect of its own.)
func resets(r *rig) error {
	r.times = 10
	if r.o.Short {
		r.times = 3
	}
	for range r.times {
		if err := r.sleep(3 * time.Second); err != nil {
			return err
		}
		if err := r.broken(r.line.Reset); err != nil {
			return err
		}
	}
	return nil
}

func halfOpen(how func(*Proxy)) func(*rig) error {
	return func(r *rig) error { return r.broken(func() { how(r.line) }) }
}

// broken ends the connections in some way; new ones can be made all the time.
func (r *rig) broken(how func()) error {
	r.fault(how)
	if err := r.lost(); err != nil {
		return err
	}
	return r.resumed(r.faulty)
}

// refused: nobody listens for a while.
func refused(r *rig) error {
	var err error
	r.fault(func() {
		err = r.line.Refuse(true)
		r.line.Reset()
	})
	if err == nil {
		err = r.sleep(10 * time.Second)
	}
	if err == nil {
		err = r.line.Refuse(false)
	}
	if err != nil {
		return err
	}
	return r.resumed(time.Now())
}

// slow: what moves slowly is alive, and a swollen queue is none.
func slow(d time.Duration, to Pace, ways ...Way) func(*rig) error {
	return func(r *rig) error {
		set := func(to Pace) {
			for _, w := range ways {
				r.line.Pace(w, to)
			}
		}
		r.fault(func() { set(to) })
		if err := r.sleep(d); err != nil {
			return err
		}
		set(Pace{})
		return r.resumed(time.Now())
	}
}

// moved: a clean stop, a container that comes back somewhere else.
func moved(after time.Duration) func(*rig) error {
	return func(r *rig) error {
		var err error
		r.fault(func() { err = r.mirror.End(syscall.SIGTERM) })
		if err == nil {
			err = r.isCut()
		}
		if err == nil {
			err = r.move()
		}
		if err == nil {
			err = r.sleep(after)
		}
		if err != nil {
			return err
		}
		started := time.Now()
		r.names.move(netip.MustParseAddr(RightAddr))
		if err := r.mirror.Up(r.ctx); err != nil {
			return err
		}
		return r.resumed(started)
	}
}
