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
	p.primary.up()
	until(t, "the limit", func() bool { f := p.primary.peer().Flow; return f != nil && f.Limit == limit && f.Pacing == limit })
	until(t, "the first bytes", func() bool { return p.link.bytes.Load() > limit })
	begin, before := time.Now(), p.link.bytes.Load()
	time.Sleep(10 * time.Second)
	took := time.Since(begin).Seconds()
	got := float64(p.link.bytes.Load()-before) / took / limit
	t.Logf("%.3f of the limit over %.1f s", got, took)
	if got > 1.5 || got < 0.2 { // a busy machine is no reason to fail
		t.Errorf("%.3f of the limit", got)
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
// come back within seconds, how far the mirror is behind is told, and when the link is better the mirror is a cut.
func TestLiveSlowLink(t *testing.T) {
	const link = 1_000_000 / 8
	s := newStamped(t, 64*mib, stamp.Load{Depth: 4, Pause: 2 * time.Millisecond})
	s.written(100)
	s.link.speed.SetLimit(link)
	s.written(2000)
	worst, slowed := 0.0, false
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		m := s.primary.peer()
		if m.Disconnect != nil || m.Reconnects != 0 || m.Flow == nil {
			t.Fatalf("the session was lost: %+v", m)
		}
		worst, slowed = max(worst, m.Flow.RTT), slowed || m.Flow.Slowed
		s.healthy()
	}
	m := s.primary.peer()
	t.Logf("state %s, lag %.1f s, %d bytes; round trip at most %.0f ms, slowed %v; %+v", m.State, m.LagSeconds, m.LagBytes, worst, slowed, *m.Flow)
	if m.LagSeconds < 1 || m.LagBytes == 0 {
		t.Errorf("lag is not told: %+v", m)
	}
	// A window of 32 MiB would make it minutes.
	if worst > 15000 {
		t.Errorf("a round trip of %.0f ms", worst)
	}
	s.link.speed.SetLimit(rate.Inf)
	s.finish()
}
