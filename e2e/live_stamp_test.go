package e2e

import (
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
	"golang.org/x/time/rate"
)

// blow is something bad that happens to a pair. It leaves both running and connected.
type blow struct {
	name string
	hit  func(s *stamped)
}

var blows = []blow{
	{"mirror killed", func(s *stamped) {
		s.mirror.kill()
		s.look(0)
		s.mirrorUp()
	}},
	{"primary killed", func(s *stamped) {
		s.primary.kill()
		s.primary.up()
	}},
	{"connections cut", func(s *stamped) {
		for range 4 {
			s.link.cut()
			s.pause(0, 400*time.Millisecond)
		}
	}},
	{"both killed", func(s *stamped) {
		s.primary.kill()
		s.mirror.kill()
		s.look(0)
		s.mirrorUp()
		s.primary.up()
	}},
	{"mirror killed, and in its recovery", func(s *stamped) {
		s.mirror.kill()
		s.look(2)
		s.mirrorUp()
	}},
	{"mirror stopped", func(s *stamped) {
		s.mirror.down()
		s.inspect()
		s.mirrorUp()
	}},
	{"mirror away", func(s *stamped) {
		s.mirror.kill()
		s.written(500)
		s.look(0)
		s.mirrorUp()
	}},
	{"primary killed while nobody is reached, and again in its recovery", func(s *stamped) {
		s.link.to("")
		s.written(200)
		s.primary.kill()
		for range 2 {
			s.primary.launch()
			s.pause(0, 300*time.Millisecond)
			s.primary.kill()
		}
		s.primary.up()
		s.link.to(s.mirror.addr)
	}},
}

// A stamping writer runs all the time, everything is killed and cut at random moments, and the mirror is
// always exactly one cut that never goes back.
func TestLiveStamp(t *testing.T) {
	t.Parallel()
	s := newStamped(t, 64*mib, stamp.Load{Pause: time.Millisecond})
	rounds := 1
	if *long {
		rounds = 12
	}
	count := 0
	for range rounds {
		for _, i := range s.rng.Perm(len(blows)) {
			s.pause(100*time.Millisecond, 1500*time.Millisecond)
			if s.rng.IntN(3) == 0 {
				s.settled()
			}
			t.Logf("at %d: %s", s.h.Now(), blows[i].name)
			blows[i].hit(s)
			s.healthy()
			count++
		}
	}
	s.finish()
	t.Logf("seed %d: %d blows, %d looks at the mirror; %d writes, %d without a reply, %d reconnects",
		*seed, count, s.looks, s.h.Writes(), s.w.Lost.Load(), s.w.Reconnects.Load())
	if s.w.Reconnects.Load() == 0 || s.looks < rounds*3 {
		t.Error("too little has happened")
	}
}

// The same while a large resync is under way over a link that is slow: before it ends the mirror shows the
// cut that it began with.
func TestLiveStampDuringResync(t *testing.T) {
	t.Parallel()
	const size = 128 * mib
	rounds := 1
	if *long {
		rounds = 10
	}
	s := newStamped(t, size, stamp.Load{Longest: 128})
	within := 0
	for range rounds {
		for _, b := range []string{"mirror", "primary", "both", "connections"} {
			// Much is written while the mirror is away.
			s.link.to("")
			s.written(800)
			s.link.speed.SetLimit(rate.Limit(12 * mib))
			s.link.to(s.mirror.addr)
			s.pause(100*time.Millisecond, 2500*time.Millisecond)
			t.Logf("at %d, resync under way: %s", s.h.Now(), b)
			if s.primary.peer().Needs > 8*mib {
				within++
			}
			switch b {
			case "mirror":
				s.mirror.kill()
				s.look(1)
				s.mirrorUp()
			case "primary":
				s.primary.kill()
				s.primary.up()
				s.pause(100*time.Millisecond, time.Second)
				s.mirror.kill() // while it is reconciled
				s.look(0)
				s.mirrorUp()
			case "both":
				s.primary.kill()
				s.mirror.kill()
				s.look(0)
				s.primary.up()
				s.mirrorUp()
			case "connections":
				for range 3 {
					s.link.cut()
					s.pause(0, 700*time.Millisecond)
				}
				s.mirror.kill()
				s.look(0)
				s.mirrorUp()
			}
			s.healthy()
			s.link.speed.SetLimit(rate.Inf)
			s.settled()
		}
	}
	s.finish()
	t.Logf("seed %d: %d of %d blows fell into a resync; %d looks; %d writes", *seed, within, 4*rounds, s.looks, s.h.Writes())
	if within == 0 {
		t.Error("no blow fell into a resync")
	}
}
