package e2e

import (
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"
)

// What a kill may cost: what the target had granted and not written. What was written and not yet recorded
// as progress is offered again by hash, which ships nothing.
const window = 24 * mib

// kills is how many kills a campaign has, and over how much data.
func kills() (n int, size int64) {
	if *long {
		return 300, 2048 * mib
	}
	return 30, 384 * mib
}

// kill -9 of the client and of the server in turn, at random moments of a push over TCP. In the end the
// copy is equal, and little more than one copy was shipped in all.
func TestKillEitherSide(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	n, size := kills()
	src, dst := randomImage(t, filepath.Join(dir, "src"), size), filepath.Join(dir, "dst")
	state := filepath.Join(dir, "state")
	s := serve(t, state, "v="+dst)
	p := newProxy(t, s.addr)
	rng := rand.New(random(t))
	client := func() *proc {
		return start(t, "sync", "--json", "--insecure", "--rate", "7M", src, p.url("v"))
	}

	c := client()
	inTheMiddle, resumed := 0, 0
	for i := range n {
		before := p.shipped.Load()
		// The random moment: of the clock, which may be before anything moves, or of the copy.
		if i%3 == 0 {
			time.Sleep(time.Duration(rng.Int64N(int64(2800 * time.Millisecond))))
		} else {
			enough := before + 1 + rng.Int64N(20*mib)
			until(t, "the copy to go on", func() bool { return p.shipped.Load() >= enough || c.ended() })
		}
		if moved := p.shipped.Load(); moved > before && moved < size {
			inTheMiddle++
		}
		if c.ended() {
			// The copy was complete, or the server died before a new client had opened its first session,
			// which ends it at once. Begin another one.
			if r := c.wait(); r.code != 0 {
				r.fails(t, 3)
			}
			c = client()
			continue
		}
		if i%2 == 0 {
			c.kill()
			c = client()
			continue
		}
		s.kill()
		s = serve(t, state, "v="+dst)
		p.backend.Store(s.addr)
	}
	c.kill()

	last := syncJSON(t, "--insecure", src, p.url("v"))
	equal(t, src, dst)
	if last.Resumed > 0 {
		resumed++
	}
	resumed += int(p.resumes.Load())
	shipped := p.shipped.Load()
	t.Logf("seed %d: %d kills, %d of them in the middle of shipping; %d sessions went on from a recorded point; shipped %d MiB in all, %.3f copies; last run: resumed %d, skipped %d, shipped %d",
		*seed, n, inTheMiddle, resumed, shipped/mib, float64(shipped)/float64(size), last.Resumed, last.Skipped, last.Shipped)
	switch bound := size + int64(n)*window; {
	case inTheMiddle < n/3:
		t.Errorf("only %d of %d kills fell into the middle", inTheMiddle, n)
	case resumed == 0:
		t.Error("no run went on from a recorded point")
	case shipped > bound || shipped > size*3/2:
		t.Errorf("shipped %d bytes for %d; at most one copy and a window for each kill, %d", shipped, size, bound)
	}
}

// The same on one machine: both halves die at once.
func TestKillLocalSync(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	n := 8
	if *long {
		n = 100
	}
	src, dst := randomImage(t, filepath.Join(dir, "src"), 256*mib), filepath.Join(dir, "dst")
	args := []string{"sync", "--json", "--state", filepath.Join(dir, "state"), src, dst}
	slow := append(append([]string(nil), args...), "--rate", "10M")
	rng := rand.New(random(t))
	running := 0
	for range n {
		c := start(t, slow...)
		time.Sleep(time.Second + time.Duration(rng.Int64N(int64(2500*time.Millisecond)))) // the random moment
		if !c.ended() {
			running++
		}
		c.kill()
	}
	rep := mustRun(t, args...).report(t)
	equal(t, src, dst)
	t.Logf("seed %d: %d kills, %d of a run under way; last run: resumed %d, skipped %d, shipped %d of %d bytes",
		*seed, n, running, rep.Resumed, rep.Skipped, rep.Shipped, rep.Size)
	if running < n/2 || rep.Resumed == 0 && rep.Scanned == rep.Shipped {
		t.Error("nothing was resumed")
	}
}

// Who writes to a half-made copy after its target was killed is found out, also below the confirmed point.
func TestForeignWritesAfterKill(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name       string
		killServer bool
		lastBlock  bool // that the confirmed point rests on
	}{
		{"server killed", true, false},
		{"server killed, last confirmed block changed", true, true},
		{"client killed", false, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := folder(t)
			src, dst := randomImage(t, filepath.Join(dir, "src"), 64*mib), filepath.Join(dir, "dst")
			state := filepath.Join(dir, "state")
			s := serve(t, state, "v="+dst)
			p := newProxy(t, s.addr)
			client := start(t, "sync", "--insecure", "--rate", "8M", src, p.url("v"))
			until(t, "durable progress", func() bool { return p.flushed.Load() > 6*mib })
			if c.killServer {
				s.kill()
				client.kill()
			} else {
				client.kill()
				until(t, "the end of the session", func() bool { return s.sessions() == 0 })
				s.kill()
			}
			confirmed := p.flushed.Load()
			places := []int64{100, 2*mib + 4096, 4*mib - 3, 60 * mib}
			if c.lastBlock {
				places = append(places, confirmed-block)
			}
			for _, at := range places {
				put(t, dst, at, []byte("somebody was here"))
			}
			s = serve(t, state, "v="+dst)
			p.backend.Store(s.addr)
			r := mustRun(t, "sync", "--json", "--insecure", src, p.url("v"))
			rep := r.report(t)
			equal(t, src, dst)
			t.Logf("confirmed %d; next run: %+v", confirmed, rep)
			if (rep.Resumed > 0) == c.lastBlock {
				t.Errorf("resumed %d: %s\nserver: %s", rep.Resumed, r.stderr, s.err.String())
			}
		})
	}
}
