package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// livePair is a primary with an export, and its mirror, with a relay between them.
type livePair struct {
	t               testing.TB
	dir             string
	src, dst        string // the devices
	sock            string // of the export
	primary, mirror *node
	link            *relay
	rng             *rand.Rand
}

// newLivePair prepares a volume v of zeroes. Nothing is started.
func newLivePair(t testing.TB, binary string, size int64) *livePair {
	t.Helper()
	dir := folder(t)
	p := &livePair{
		t: t, dir: dir, src: filepath.Join(dir, "src"), dst: filepath.Join(dir, "dst"), sock: filepath.Join(dir, "nbd"),
		link: newRelay(t), rng: rand.New(random(t)),
	}
	sized(t, dir, "src", size)
	p.primary = newNode(t, binary, filepath.Join(dir, "p"),
		"--volume", "v="+p.src, "--export", "v=unix:"+p.sock, "--mirror", "v="+p.link.addr, "--interval", "v=200ms")
	p.mirror = newNode(t, binary, filepath.Join(dir, "m"), "--volume", "v="+p.dst)
	return p
}

// startLivePair starts both and waits until the mirror holds a first cut.
func startLivePair(t testing.TB, binary string, size int64) *livePair {
	t.Helper()
	p := newLivePair(t, binary, size)
	p.mirrorUp()
	p.primary.up()
	p.cut()
	return p
}

// mirrorUp starts the mirror and connects it.
func (p *livePair) mirrorUp() {
	p.t.Helper()
	p.mirror.up()
	p.link.to(p.mirror.addr)
}

// cut takes a cut and waits until the mirror has applied it.
func (p *livePair) cut() {
	p.t.Helper()
	if r := p.primary.ask("cut", "v", "--wait", "--timeout", "170s"); r.code != 0 {
		p.t.Fatalf("%q: exit code %d: %s\nprimary: %+v\nmirror: %+v\nprimary's log: %.4000s\nmirror's log: %.4000s",
			r.args, r.code, r.stderr, p.primary.volume(), p.mirror.volume(), tail(p.primary.err.String()), tail(p.mirror.err.String()))
	}
}

// tail is the end of a log.
func tail(s string) string { return s[max(0, len(s)-4000):] }

// same compares the two devices.
func (p *livePair) same() {
	p.t.Helper()
	equal(p.t, p.src, p.dst)
}

// pause is a random moment.
func (p *livePair) pause(least, most time.Duration) {
	time.Sleep(least + time.Duration(p.rng.Int64N(int64(most-least))))
}

// uri is the export for libnbd; qemu takes the same.
func (p *livePair) uri() string { return "nbd+unix:///v?socket=" + p.sock }

// stamped is a pair with a stamping writer on its export.
type stamped struct {
	*livePair
	h     *stamp.History
	w     *stamp.Writer
	at    stamp.Cut  // that the mirror showed when it was last looked at
	least stamp.Tick // that the mirror must not be older than
	looks int
}

// history begins the record of what is written to the volume. It lies beside the images, for keep.
func (p *livePair) history(size int64) *stamp.History {
	p.t.Helper()
	f, err := os.Create(filepath.Join(p.dir, "history"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Close() })
	h := stamp.NewHistory(size/stamp.PageSize, *seed)
	if err := h.LogTo(f); err != nil {
		p.t.Fatal(err)
	}
	return h
}

func newStamped(t testing.TB, size int64, load stamp.Load) *stamped {
	t.Helper()
	return stampedOn(startLivePair(t, checked, size), size, load)
}

// stampedOn starts the writer on a pair that runs.
func stampedOn(p *livePair, size int64, load stamp.Load) *stamped {
	t := p.t
	t.Helper()
	s := &stamped{livePair: p}
	s.h = s.history(size)
	load.Network, load.Address, load.Export, load.Seed = "unix", s.sock, "v", *seed
	s.w = stamp.NewWriter(s.h, load)
	s.w.Start()
	t.Cleanup(func() { s.w.Stop() })
	return s
}

// written waits until n more requests were issued.
func (s *stamped) written(n int) {
	s.t.Helper()
	n += s.h.Writes()
	until(s.t, "writes", func() bool { return s.h.Writes() >= n || s.w.Err() != nil })
	s.healthy()
}

// healthy fails the test as soon as the export showed something wrong.
func (s *stamped) healthy() {
	s.t.Helper()
	if err := s.w.Err(); err != nil {
		s.t.Fatalf("seed %d: %v", *seed, err)
	}
}

// settled waits for a cut that holds all that is acknowledged now.
func (s *stamped) settled() {
	s.t.Helper()
	now := s.h.Now()
	s.cut()
	s.least = max(s.least, now)
}

// look lets the mirror, which is dead, recover alone, and holds its device against the history: it is one
// cut, not older than the one before, nor than what was reported committed. The mirror is stopped then.
// With again it is killed a few times while it recovers.
func (s *stamped) look(again int) {
	s.t.Helper()
	s.link.to("")
	for range again {
		s.mirror.launch()
		s.pause(0, 300*time.Millisecond)
		s.mirror.kill()
	}
	s.mirror.up()
	s.mirror.down()
	s.inspect()
}

// inspect holds the device of a mirror that is stopped against the history.
func (s *stamped) inspect() {
	s.t.Helper()
	cut, err := s.h.CheckFile(s.dst)
	if err == nil && s.looks > 0 {
		err = s.h.Forward(s.at, cut)
	}
	if err != nil {
		s.keep()
		s.t.Fatalf("seed %d, look %d: the mirror: %v\nmirror's log: %s", *seed, s.looks, err, tail(s.mirror.err.String()))
	}
	if cut.Last < s.least {
		s.keep()
		s.t.Fatalf("seed %d, look %d: the mirror is at [%d, %d], %d was committed", *seed, s.looks, cut.First, cut.Last, s.least)
	}
	s.at = cut
	s.looks++
}

// keep saves what a failed check looked at, where BLKMIRROR_E2E_KEEP names a folder.
func (s *stamped) keep() {
	to := os.Getenv("BLKMIRROR_E2E_KEEP")
	if to == "" {
		return
	}
	tool(s.t, "cp", "-a", "--sparse=always", s.dir, to)
	s.t.Logf("kept in %s", to)
}

// finish lets the writer rest and expects equal devices.
func (s *stamped) finish() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.w.Quiesce(ctx); err != nil {
		s.t.Fatalf("seed %d: no rest: %v", *seed, err)
	}
	s.settled()
	s.same()
	s.inspect()
	if err := s.w.Stop(); err != nil { // without another write, which might not be shipped any more
		s.t.Fatalf("seed %d: %v", *seed, err)
	}
	s.mirror.down()
	s.primary.down()
	s.same()
	s.inspect()
}
