package sim

import (
	"time"

	"github.com/blkmirror/blkmirror/engine/ship"
)

// play begins, does the operations, and then all that is left to do.
func (s *script) play(ops []operation) (err error) {
	defer s.w.recovered(&err)
	defer s.w.explain()
	s.begin()
	for i, o := range ops {
		if s.gone || s.ends {
			break
		}
		s.asked = i + 1
		s.marks = [2]int{s.w.primary.fate.calls, s.w.mirrors[0].fate.calls}
		s.w.note("%v", o)
		s.w.step++
		s.do(o)
		s.w.after()
		if s.style.rounds == settling {
			s.settle()
		}
		for range s.style.rounds {
			if s.gone || s.ends {
				break
			}
			s.round()
		}
	}
	s.settle()
	return nil
}

// begin has both start, up to the situation in which the operations begin.
func (s *script) begin() {
	s.w.openPrimary()
	s.w.openMirror(s.w.mirrors[0])
	s.w.after()
	if s.style.begin != inBulk {
		s.settle()
		s.w.clock = s.w.clock.Add(ripe)
		return
	}
	for range manyRounds {
		if s.gone || s.ends || s.w.primary.volume != nil && s.w.primary.lines[0].shipper.State().Phase == ship.Bulk {
			return
		}
		s.round()
	}
	s.w.failf("no bulk begins: %s", s.w.lacking())
}

// ripe is after which time a checkpoint may follow the last one: a first write makes one due, and meets it.
const ripe = 6 * time.Second

// opened only begins.
func (s *script) opened() (err error) {
	defer s.w.recovered(&err)
	s.begin()
	return nil
}

// stopped plays nothing, and ends cleanly.
func (s *script) stopped() (err error) {
	if err := s.play(nil); err != nil {
		return err
	}
	defer s.w.recovered(&err)
	s.stops = true
	s.w.stopPrimary()
	for range manyRounds {
		if s.round(); s.w.primary.volume == nil {
			s.w.stopMirror()
		}
		if s.w.mirrors[0].m == nil {
			return nil
		}
	}
	s.w.failf("it does not stop: %s", s.w.lacking())
	return nil
}

// do begins an operation. What crashes is up again at once.
func (s *script) do(o operation) {
	w := s.w
	up := w.primary.volume != nil
	switch o {
	case opWrite:
		s.write(pageSize, 2*pageSize)
	case opOverlap:
		s.write(pageSize+pageSize/2, 2*pageSize)
	case opFlush:
		if up {
			w.ask(&clientOp{kind: "flush"})
		}
	case opCut:
		if up {
			w.primary.volume.Cut()
		}
	case opDisconnect:
		s.hangUp()
	case opCrashPrimary:
		if w.crash(&w.primary.node, s.style.power) {
			w.after()
			w.openPrimary()
		}
	case opCrashMirror:
		if w.crash(&w.mirrors[0].node, s.style.power) {
			w.after()
			w.openMirror(w.mirrors[0])
		}
	case opVerify:
		s.settle()
	}
}

func (s *script) write(off, n int64) {
	if s.w.primary.volume != nil {
		s.w.ask(&clientOp{kind: "write", off: off, n: n, data: s.w.fill(n)})
	}
}

// hangUp breaks all connections. What was on its way is lost.
func (s *script) hangUp() {
	for _, c := range s.w.conns {
		for _, t := range []*stream{&c.down, &c.up} {
			t.buf, t.end = nil, errReset
		}
		c.p.broken, c.m.broken = errReset, errReset
	}
}

// More than anybody needs who makes progress.
const (
	manyRounds = 3000
	manyWaits  = 200
)

// settle goes on until nobody has anything to do and the mirror is equal.
func (s *script) settle() {
	waits := 0
	for range manyRounds {
		switch {
		case s.round():
		case s.ends:
			return
		case s.leisure():
		case s.settled():
			return
		case waits == manyWaits:
			s.w.failf("liveness: the mirror is not equal: %s", s.w.lacking())
		default:
			waits++
			s.pass(waits)
		}
		if s.gone && s.settled() {
			return
		}
	}
	s.w.failf("liveness: no end in sight: %s", s.w.lacking())
}

// settled tells whether both sides are equal and all is done, the index as well where nobody died.
func (s *script) settled() bool {
	return s.w.settled() && len(s.w.primary.tasks)+len(s.w.mirrors[0].tasks) == 0 && (s.gone || s.w.primary.volume.NeedsIndex().Count() == 0)
}

// leisure is what the primary does when there is nothing else to do. Behind an enumerated crash it is left away.
func (s *script) leisure() bool {
	p := s.w.primary
	v := p.volume
	if v == nil || p.stops || s.gone {
		return false
	}
	defer s.w.after()
	s.w.step++
	s.used(sidePrimary)
	reason := tidied{s.w.writes, p.opens, v.NeedsIndex().Count(), s.w.clock}
	switch {
	case reason.unindexed > 0 && s.indexed != reason && !p.busy["index pass"]: // perhaps it may not be done yet
		s.indexed = reason
		return s.w.primaryTask("index pass", func() bool { return v.IndexPass() == nil })
	case v.HotRegions() > 0 && s.tidy != reason && !p.busy["checkpoint"]: // it may keep those that were used a moment ago
		s.tidy = reason
		return s.w.primaryTask("checkpoint", func() bool { return v.Checkpoint() == nil })
	}
	return false
}

// tidied is what there is to tidy up.
type tidied struct {
	writes    uint64
	opens     int
	unindexed uint64
	clock     time.Time
}

// pass lets time pass: first so much that the next cut is due, then that everybody has lost patience.
func (s *script) pass(waits int) {
	w := s.w
	d := 300 * time.Millisecond
	if waits > 20 {
		d = 70 * time.Second
	}
	w.clock = w.clock.Add(d)
	s.used(sideAny)
	if m := w.mirrors[0].m; m != nil {
		w.actTicks()
	}
	if p := w.primary; p.volume != nil && p.lines[0].shipper.State().Phase == ship.Refused {
		w.failf("nothing moves until a person decides, and no person has done anything: %s", p.lines[0].shipper.Status().Reason)
	}
}

// end kills everybody, so that no task stays behind.
func (s *script) end() (err error) {
	defer s.w.recovered(&err)
	for _, n := range s.w.nodes() {
		n.die()
	}
	if m := s.w.mirrors[0]; m.m != nil {
		m.m.Crash()
	}
	for _, n := range s.w.nodes() {
		s.w.drain(n)
	}
	return nil
}
