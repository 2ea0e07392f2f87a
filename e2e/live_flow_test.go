package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// A limit by the clock holds while it is its time, and SIGHUP takes up a schedule whose time is another.
func TestLiveRateSchedule(t *testing.T) {
	t.Parallel()
	const size, limit = 64 * mib, mib
	p := newLivePair(t, checked, size)
	randomImage(t, p.src, size)
	config := filepath.Join(p.dir, "config")
	schedule := func(from, to time.Duration) {
		now := time.Now()
		text := fmt.Sprintf("[volume.v]\npath = %q\nrate = [{from = %q, to = %q, limit = \"1MiB/s\"}]\n", p.src,
			now.Add(from).Format("15:04"), now.Add(to).Format("15:04"))
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	schedule(-time.Hour, 2*time.Hour)
	p.primary.line = append(p.primary.line, "--config", config)
	p.mirrorUp()
	began := time.Now()
	p.primary.up()
	until(t, "the limit", func() bool { f := p.primary.peer().Flow; return f != nil && f.Limit == limit && f.Pacing == limit })
	// Counted from before the first byte, so that no buffer on the way can hold some back for later. How long it takes is
	// the machine's affair; what is too fast is not.
	until(t, "some of it to pass", func() bool { return p.link.bytes.Load() > 6*limit })
	passed := p.link.bytes.Load()
	took := time.Since(began).Seconds()
	t.Logf("%.3f of the limit over %.1f s", float64(passed)/took/limit, took)
	if most := limit*took*1.1 + limit; float64(passed) > most {
		t.Errorf("%d bytes in %.1f s, at most %.0f", passed, took, most)
	}
	schedule(2*time.Hour, 3*time.Hour)
	p.primary.signal(syscall.SIGHUP)
	until(t, "no limit", func() bool { f := p.primary.peer().Flow; return f != nil && f.Limit == 0 })
	p.cut()
	p.same()
	if n := p.primary.peer().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}
	p.primary.down()
	p.mirror.down()
}

// Behind a link of 1 Mbit/s with buffers of megabytes, and more written than it carries: the session lives, pings
// come back, how far the mirror is behind is told, and when the link is better the mirror is a cut.
func TestLiveSlowLink(t *testing.T) {
	t.Parallel()
	const link = 1_000_000 / 8
	s := newStamped(t, 64*mib, stamp.Load{Depth: 4, Pause: 2 * time.Millisecond})
	s.written(100)
	s.link.speed.SetLimit(link)
	s.written(2000)
	var last livePeer
	worst, slowed := 0.0, false
	look := func() {
		t.Helper()
		m := s.primary.peer()
		if m.Disconnect != nil || m.Reconnects != 0 || m.Flow == nil {
			t.Fatalf("the session was lost: %+v", m)
		}
		worst, slowed, last = max(worst, m.Flow.RTT), slowed || m.Flow.Slowed, m
		s.healthy()
	}
	until(t, "the lag to be told", func() bool { look(); return last.LagSeconds > 8 && last.LagBytes > 0 })
	for range 3 { // behind all that waits in the buffers by now
		before := last.Flow.RTT
		until(t, "a ping to come back", func() bool { look(); return last.Flow.RTT != before })
	}
	t.Logf("state %s, lag %.1f s, %d bytes; round trip at most %.0f ms, slowed %v; %+v", last.State, last.LagSeconds, last.LagBytes, worst, slowed, *last.Flow)
	if worst > 60000 { // a window of 32 MiB would make it minutes
		t.Errorf("a round trip of %.0f ms", worst)
	}
	s.link.speed.SetLimit(rate.Inf)
	s.finish()
}
