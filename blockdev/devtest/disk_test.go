package devtest_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

const page, sector = blockdev.PageSize, devtest.SectorSize

// locked is a Disk for many goroutines.
type locked struct {
	mu sync.Mutex
	*devtest.Disk
}

func (l *locked) ReadAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Disk.ReadAt(p, off)
}

func (l *locked) WriteAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Disk.WriteAt(p, off)
}

func (l *locked) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Disk.Flush()
}

func (l *locked) Zero(off, n int64, mayFree bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Disk.Zero(off, n, mayFree)
}

func (l *locked) Discard(off, n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Disk.Discard(off, n)
}

func (l *locked) NextData(off int64) (blockdev.Extent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Disk.NextData(off)
}

func TestDiskConformance(t *testing.T) {
	for name, adjust := range map[string]func(*devtest.Disk){
		"plain": func(*devtest.Disk) {},
		"unkind": func(d *devtest.Disk) {
			d.Hook = func(devtest.Call) devtest.Effect { return devtest.Effect{} }
			d.Garbage = rand.New(rand.NewPCG(1, 1))
			info := d.Info()
			info.KnowsHoles = false
			d.SetInfo(info)
		},
	} {
		t.Run(name, func(t *testing.T) {
			devtest.Conformance(t, func(t *testing.T, size int64) blockdev.Device {
				d := devtest.NewDisk(size)
				adjust(d)
				return &locked{Disk: d}
			})
		})
	}
}

// TestPowerCutReach has three writes, two of them to the same sector: every state that may be is met, and no
// other.
func TestPowerCutReach(t *testing.T) {
	d := devtest.NewDisk(2 * page)
	write(t, d, 0, 1, 2*page)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, d, 0, 2, 2*sector)
	write(t, d, sector, 3, sector)
	write(t, d, page, 4, sector)
	seen := map[[3]byte]bool{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := content(d.PowerCut(rng))
		seen[[3]byte{b[0], b[sector], b[page]}] = true
		if !bytes.Equal(b[2*sector:page], bytes.Repeat([]byte{1}, page-2*sector)) {
			t.Fatal("a cut changed what was durable")
		}
	}
	if len(seen) != 2*3*2 {
		t.Errorf("%d states: %v", len(seen), seen)
	}
	writes := d.Unflushed()
	want := []struct{ off, n int64 }{{0, 2 * sector}, {sector, sector}, {page, sector}}
	if len(writes) != len(want) {
		t.Fatalf("unflushed: %+v", writes)
	}
	subsets := map[[3]byte]bool{}
	for set := range 8 {
		c := content(d.PowerCutWrites(func(w devtest.Write) bool {
			for i := range writes {
				if w == writes[i] {
					if w.Offset != want[i].off || w.Length != want[i].n {
						t.Fatalf("write %d: %+v", i, w)
					}
					return set>>i&1 == 1
				}
			}
			t.Fatalf("asked of %+v", w)
			return false
		}))
		state := [3]byte{c[0], c[sector], c[page]}
		expect := [3]byte{1, 1, 1}
		if set&1 != 0 {
			expect[0], expect[1] = 2, 2
		}
		if set&2 != 0 {
			expect[1] = 3
		}
		if set&4 != 0 {
			expect[2] = 4
		}
		if state != expect {
			t.Errorf("subset %03b: %v, want %v", set, state, expect)
		}
		subsets[state] = true
	}
	if len(subsets) != 8 {
		t.Errorf("%d subsets: %v", len(subsets), subsets)
	}
}

func TestDiskEffects(t *testing.T) {
	for name, c := range map[string]struct {
		effect   devtest.Effect
		err      error
		zero, at byte // at 0 and at the second page, where 1 was and 2 is written to the first
	}{
		"pass":      {devtest.Effect{}, nil, 2, 1},
		"fail":      {devtest.Fail(syscall.EIO), syscall.EIO, 1, 1},
		"fail late": {devtest.FailLate(syscall.EIO), syscall.EIO, 2, 1},
		"lose":      {devtest.Lose(), nil, 1, 1},
		"misdirect": {devtest.Misdirect(page), nil, 1, 2},
		"flip":      {devtest.Flip(0), nil, 3, 1},
	} {
		d := devtest.NewDisk(3 * page)
		write(t, d, 0, 1, 2*page)
		d.Hook = func(call devtest.Call) devtest.Effect {
			if call != (devtest.Call{Op: devtest.OpWrite, Offset: 0, Length: page, Nth: 2}) {
				t.Errorf("%s: %+v", name, call)
			}
			return c.effect
		}
		if _, err := d.WriteAt(bytes.Repeat([]byte{2}, page), 0); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
		if zero, at := d.Page(0)[0], d.Page(1)[0]; zero != c.zero || at != c.at {
			t.Errorf("%s: %d and %d, want %d and %d", name, zero, at, c.zero, c.at)
		}
	}
	d := devtest.NewDisk(page)
	d.Hook = func(devtest.Call) devtest.Effect { return devtest.Flip(9) }
	p := make([]byte, 2)
	if d.ReadAt(p, 0); p[1] != 2 || d.PageID(0) != 0 {
		t.Errorf("a bit of what is read: %x, page %x", p, d.PageID(0))
	}
}

func TestDiskPartial(t *testing.T) {
	states := map[string]bool{}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		d := devtest.NewDisk(page)
		d.Hook = func(devtest.Call) devtest.Effect { return devtest.Partial(rng, syscall.EIO) }
		if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 2*sector), 700); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		b := d.Page(0)
		if b[699] != 0 || b[700+2*sector] != 0 || b[700] != b[2*sector-1] || b[2*sector] != b[3*sector-1] {
			t.Fatal("it wrote more, or less, than whole parts of sectors")
		}
		states[string([]byte{b[700], b[2*sector], b[3*sector]})] = true
	}
	if len(states) != 8 {
		t.Errorf("%d states of 8", len(states))
	}
}

func TestDiskKill(t *testing.T) {
	d := devtest.NewDisk(4 * page)
	write(t, d, 0, 1, page)
	var hook func(devtest.Call) devtest.Effect
	d.Hook = func(c devtest.Call) devtest.Effect { return hook(c) }
	hook = func(devtest.Call) devtest.Effect { // a flush amid a write amid a zero, and then the end
		hook = func(devtest.Call) devtest.Effect {
			hook = func(devtest.Call) devtest.Effect {
				if n := len(d.InFlight()); n != 3 {
					t.Errorf("%d in flight", n)
				}
				d.Kill()
				return devtest.Effect{}
			}
			if err := d.Flush(); !errors.Is(err, devtest.ErrDead) {
				t.Error(err)
			}
			return devtest.Lose()
		}
		if _, err := d.WriteAt(make([]byte, page), page); !errors.Is(err, devtest.ErrDead) {
			t.Error(err)
		}
		return devtest.Effect{}
	}
	if err := d.Zero(0, page, true); !errors.Is(err, devtest.ErrDead) {
		t.Error(err)
	}
	hook = func(devtest.Call) devtest.Effect { t.Error("the dead are asked"); return devtest.Effect{} }
	_, rerr := d.ReadAt(make([]byte, 1), 0)
	_, werr := d.WriteAt(make([]byte, 1), 0)
	_, merr := d.NextData(0)
	_, ferr := d.Facts()
	for _, err := range []error{rerr, werr, merr, ferr, d.Flush(), d.Zero(0, 1, true), d.Discard(0, 1)} {
		var e *blockdev.Error
		if !errors.Is(err, devtest.ErrDead) || !errors.As(err, &e) {
			t.Error(err)
		}
	}
	if d.Page(0)[0] != 1 || d.Settled(0) || len(d.InFlight()) != 0 {
		t.Error("what came after the end took place")
	}
	next := d.Killed()
	if next.Settled(0) || next.Flush() != nil || !next.Settled(0) || d.Settled(0) {
		t.Error("the next process shares too much, or too little")
	}
}

func TestDiskLand(t *testing.T) {
	states := map[[4]byte]bool{}
	rng := rand.New(rand.NewPCG(5, 6))
	inFlight := func(then func(*devtest.Disk)) *devtest.Disk {
		d := devtest.NewDisk(2 * page)
		write(t, d, page, 7, page)
		d.Hook = func(c devtest.Call) devtest.Effect {
			if c.Op == devtest.OpWrite {
				d.Flush()
			} else {
				d.Kill()
				then(d)
			}
			return devtest.Effect{}
		}
		d.WriteAt(bytes.Repeat([]byte{1}, 3*sector), 0)
		return d
	}
	for range 500 {
		d := inFlight(func(d *devtest.Disk) { d.Land(rng) })
		b := d.Page(0)
		durable := byte(0)
		if d.Settled(1) {
			durable = 1
		}
		states[[4]byte{b[0], b[sector], b[2*sector], durable}] = true
		if b[0] == 1 && d.Settled(0) {
			t.Fatal("the flush had come before the write was done")
		}
	}
	if len(states) != 16 {
		t.Errorf("%d states of 16", len(states))
	}
	d := inFlight(func(d *devtest.Disk) {
		d.LandOnly(func(c devtest.Call) bool { return c.Op == devtest.OpWrite })
	})
	if d.Page(0)[2*sector] != 1 || d.Settled(1) {
		t.Error("LandOnly landed something else")
	}
}

// TestDiskHeirsGoOn writes to a disk and to one that came of it, in turns.
func TestDiskHeirsGoOn(t *testing.T) {
	d := devtest.NewDisk(page)
	write(t, d, 0, 1, page)
	d.Flush()
	for range 2 { // of a clean page, and of a dirty one
		k := d.Killed()
		write(t, d, 0, 1, page)
		write(t, k, 0, 2, page)
		write(t, d, 0, 3, sector)
		write(t, k, 0, 4, sector)
		for disk, want := range map[*devtest.Disk][2]byte{d: {3, 1}, k: {4, 2}} {
			b := content(disk.PowerCutWrites(func(devtest.Write) bool { return true }))
			if b[0] != want[0] || b[sector] != want[1] {
				t.Errorf("%d and %d, want %v", b[0], b[sector], want)
			}
		}
		write(t, d, 0, 5, sector)
	}
}

func TestDiskFacts(t *testing.T) {
	d := devtest.NewDisk(4 * page)
	d.SetIdentity("this boot", 5)
	facts := func(d *devtest.Disk) blockdev.Facts {
		f, err := d.Facts()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	write(t, d, 0, 1, page)
	d.Flush()
	before := facts(d)
	d.Rot(0, 3)
	if d.Page(0)[0] != 9 || !before.Unchanged(facts(d)) || !before.Unchanged(facts(d.Killed())) || !before.Unchanged(facts(d.Clone())) {
		t.Error("rot and the end of a process leave no trace")
	}
	if cut := facts(d.PowerCut(rand.New(rand.NewPCG(1, 1)))); before.SameDevice(cut) || cut.DiskSeq != 5 || cut.SectorsWritten != 0 {
		t.Errorf("after a power cut: %+v", cut)
	}
	k := d.Killed()
	k.Poke(1, bytes.Repeat([]byte{3}, page))
	if now := facts(k); before.Unchanged(now) || !before.SameDevice(now) || !k.Settled(1) || k.Page(1)[0] != 3 {
		t.Errorf("after a foreign write: %+v", now)
	}
	k.Poke(1, nil)
	if k.PageID(1) != 0 {
		t.Error("zeroes have an id")
	}
	d.Close()
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed disk was read: %v", err)
	}
	if _, err := d.Killed().ReadAt(make([]byte, 1), 0); err != nil {
		t.Errorf("it cannot be opened again: %v", err)
	}
}
