package e2e

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// differing counts the bytes, in whole pages and in whole blocks, that are not the same in two images.
func differing(t testing.TB, a, b string) (pages, blocks int64) {
	t.Helper()
	walk(t, a, b, length(t, a), func(_ int64, x, y []byte) {
		if bytes.Equal(x, y) {
			return
		}
		blocks += int64(len(x))
		for at := 0; at < len(x); at += stamp.PageSize {
			if !bytes.Equal(x[at:at+stamp.PageSize], y[at:at+stamp.PageSize]) {
				pages += stamp.PageSize
			}
		}
	})
	return pages, blocks
}

// After kill -9 of the primary under load every region of the disk is in doubt, and little is shipped: about
// what differs.
func TestLiveRestartShipsLittle(t *testing.T) {
	t.Parallel()
	const size = 256 * mib // 64 regions, all of them hot
	rounds := 2
	if *long {
		rounds = 20
	}
	s := newStamped(t, size, stamp.Load{Depth: 4, Pause: 8 * time.Millisecond, Longest: 4, NoTrim: true})
	for range rounds {
		s.written(700)
		s.pause(0, time.Second)
		s.primary.kill()
		s.mirror.down()
		s.inspect()
		pages, blocks := differing(t, s.src, s.dst)

		s.w.Hold() // the primary is down: until it is back only what was lost is read
		s.mirrorUp()
		s.primary.up()
		s.cut()
		s.same()
		shipped := s.primary.peer().Shipped
		t.Logf("seed %d: %d bytes of pages differed (%d of blocks); shipped %d of %d", *seed, pages, blocks, shipped, int64(size))
		if bound := 2*pages + mib; shipped > bound || shipped > size/8 {
			t.Errorf("shipped %d, at most %d", shipped, bound)
		}
		s.w.Resume()
	}
	s.finish()
}

// A clean restart of either side, or of both, ships nothing.
func TestLiveCleanRestartShipsNothing(t *testing.T) {
	t.Parallel()
	s := newStamped(t, 64*mib, stamp.Load{Pause: time.Millisecond})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, c := range []struct {
		name            string
		primary, mirror bool
	}{{"primary", true, false}, {"mirror", false, true}, {"both", true, true}} {
		s.written(1000)
		if err := s.w.Quiesce(ctx); err != nil {
			t.Fatal(err)
		}
		s.settled()
		before := s.primary.peer().Shipped
		if c.primary {
			s.primary.down()
			before = 0 // it counts anew
		}
		if c.mirror {
			s.mirror.down()
			s.inspect()
			s.mirrorUp()
		}
		if c.primary {
			s.primary.up()
		}
		s.settled()
		s.same()
		if after := s.primary.peer().Shipped; after != before {
			t.Errorf("restart of %s: shipped %d bytes", c.name, after-before)
		}
		s.w.Resume()
	}
	s.finish()
}

// A clean stop under load leaves the mirror alone at a cut, and the next start ships what differs.
func TestLiveStopUnderLoad(t *testing.T) {
	t.Parallel()
	s := newStamped(t, 64*mib, stamp.Load{Pause: time.Millisecond})
	for range 2 {
		s.written(800)
		s.primary.down()
		s.mirror.down()
		s.inspect()
		pages, blocks := differing(t, s.src, s.dst)
		s.w.Hold() // the primary is down: until it is back only what was lost is read
		s.mirrorUp()
		s.primary.up()
		s.cut()
		s.same()
		shipped := s.primary.peer().Shipped
		t.Logf("%d bytes of pages differed (%d of blocks), shipped %d", pages, blocks, shipped)
		if shipped > pages+mib {
			t.Errorf("shipped %d, %d differed", shipped, pages)
		}
		s.w.Resume()
	}
	s.finish()
}
