package track

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// stored fills a room with the contents and enters them.
func stored(c *Capture, contents ...content) error {
	var n int64
	for _, x := range contents {
		n += int64(len(x.data))
	}
	r, ok := c.reserve(n)
	if !ok {
		return errNoRoom
	}
	var entries []entry
	for _, x := range contents {
		e, err := c.store(&r, x)
		if err != nil {
			c.drop(r)
			return err
		}
		entries = append(entries, e)
	}
	c.put(r, entries)
	return nil
}

func TestCaptureLikeModel(t *testing.T) {
	const pages, block = 400, 8
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 5))
		fs := journaltest.New()
		c := NewCapture(CaptureConfig{Pages: pages, BlockPages: block, Memory: 30 * page, Spool: 60 * page, FS: fs, Path: "spool"})
		model := map[uint64][]byte{} // by page; an empty slice: zeroes
		for range 300 {
			switch rng.IntN(8) {
			case 0, 1, 2, 3:
				var contents []content
				for first := rng.Uint64N(pages); first < pages && len(contents) < 4; {
					r := Run{first, 1}
					for r.End()%block != 0 && rng.IntN(3) != 0 {
						r.Count++
					}
					x := content{Run: r}
					free := true
					for p := r.First; p < r.End(); p++ {
						_, taken := model[p]
						free = free && !taken
					}
					if !free {
						break
					}
					if rng.IntN(3) != 0 {
						x.data = bytes.Repeat([]byte{byte(rng.Uint32()) | 1}, int(r.Count)*page)
					}
					contents = append(contents, x)
					first = r.End() + rng.Uint64N(3)
				}
				memory, spool := c.Used()
				before := c.free()
				switch err := stored(c, contents...); {
				case err == nil:
					for _, x := range contents {
						for i := range x.Count {
							model[x.First+i] = nil
							if x.data != nil {
								model[x.First+i] = x.data[i*page:][:page]
							}
						}
					}
				case before >= 60*page || memory == 0 && spool == 0:
					t.Fatalf("%v with %d free", err, before)
				}
			case 4, 5, 6:
				checkPop(t, c, model, rng.IntN(block*page)+page)
			case 7:
				if rng.IntN(6) == 0 {
					got := c.empty()
					if got != nil && got.Count() != uint64(len(model)) || got == nil && len(model) > 0 {
						t.Fatal("empty returned other pages than there were")
					}
					clear(model)
				}
			}
			if memory, spool := c.Used(); memory > 30*page || spool > 60*page || c.Pages() != uint64(len(model)) {
				t.Fatalf("%d in memory, %d in the spool, %d pages, want %d", memory, spool, c.Pages(), len(model))
			}
		}
		for len(model) > 0 {
			checkPop(t, c, model, 1<<20)
		}
		c.shrink()
		if memory, spool := c.Used(); memory+spool != 0 || c.users != 0 || c.spool.size != 0 || len(fs.Paths()) != 0 {
			t.Fatalf("empty, but %d and %d are used by %d, names %v", memory, spool, c.users, fs.Paths())
		}
	}
}

// checkPop pops one run and compares.
func checkPop(t *testing.T, c *Capture, model map[uint64][]byte, limit int) {
	t.Helper()
	f, ok := c.pop(limit)
	if n, some := c.peek(); !ok && some && n > limit {
		return // the first does not fit
	}
	if ok != (len(model) > 0) {
		t.Fatalf("pop: %v, the model has %d pages", ok, len(model))
	}
	if !ok {
		return
	}
	for p := range model {
		if p < f.First {
			t.Fatalf("popped %d before %d", f.First, p)
		}
	}
	if f.First/8 != (f.End()-1)/8 || f.bytes > limit {
		t.Fatalf("popped %+v of at most %d bytes", f.Run, limit)
	}
	buf := make([]byte, f.bytes)
	if err := c.load(f, buf); err != nil {
		t.Fatal(err)
	}
	for i := range f.Count {
		want, ok := model[f.First+i]
		if !ok || f.zero != (want == nil) || !f.zero && !bytes.Equal(buf[i*page:][:page], want) {
			t.Fatalf("page %d came back wrong", f.First+i)
		}
		delete(model, f.First+i)
	}
}

func TestSpoolFaultIsFull(t *testing.T) {
	for _, op := range []journaltest.Op{journaltest.OpCreate, journaltest.OpWrite} {
		fs := journaltest.New()
		fs.Write("spool", []byte("of an earlier process"))
		g := newRig(t, 100*page, CaptureConfig{Memory: 2 * page, Spool: 50 * page, FS: fs, Path: "spool"})
		if len(fs.Paths()) != 0 {
			t.Error("the old spool is still there")
		}
		g.write(0, 100, 1)
		g.tr.CutStep(g.m.Epoch())
		fs.Fail(op, fs.Count(op), syscall.ENOSPC)
		g.write(10, 10, 2)
		g.counts(Counts{Open: 10, Todo: 100})
		if len(g.gaveUp) != 1 || fs.Struck() == 0 {
			t.Errorf("%v: gave up %d times", op, len(g.gaveUp))
		}
		if memory, spool := g.m.capture.Used(); memory+spool != 0 || g.m.capture.users != 0 {
			t.Error("room is lost")
		}
	}
}

func TestSpoolReadFaultGivesUp(t *testing.T) {
	fs := journaltest.New()
	g := newRig(t, 100*page, CaptureConfig{Memory: page, Spool: 50 * page, FS: fs, Path: "spool"})
	g.write(0, 100, 1)
	g.tr.CutStep(g.m.Epoch())
	g.write(10, 10, 2)
	g.counts(Counts{Open: 10, Todo: 90, Staged: 10, Captured: 10})
	fs.Fail(journaltest.OpRead, fs.Count(journaltest.OpRead), syscall.EIO)
	if _, _, err := g.path.ReadClosed(t.Context(), g.m, 1<<20, heap{}); !errors.Is(err, ErrGivenUp) || !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	g.counts(Counts{Open: 10, Todo: 100})
	if len(g.gaveUp) != 1 {
		t.Error("the engine is not told")
	}
}

// TestSharedContent: what two consumers want is read once, and is in memory once.
func TestSharedContent(t *testing.T) {
	g := newRig(t, 100*page, inMemory)
	b := g.tr.AddConsumer("b", NewCapture(CaptureConfig{Pages: 100, BlockPages: 16, Memory: 1 << 20}))
	g.write(0, 20, 1)
	g.tr.CutStep(g.m.Epoch())
	g.write(18, 12, 2) // 18 and 19 are captured for m
	g.tr.CutStep(b.Epoch())
	g.write(0, 40, 3)
	g.counts(Counts{Open: 40, Waiting: 12, Staged: 20, Captured: 20})
	if n := b.capture.Pages(); n != 30 {
		t.Errorf("%d pages are captured for b", n)
	}
	shared := 0
	for first, k := range g.m.capture.kept {
		if o, ok := b.capture.kept[first]; ok && &k.data[0] == &o.data[0] {
			shared += int(k.count)
		}
	}
	if shared != 18 {
		t.Errorf("%d pages are shared, want 18", shared)
	}
}
