package devtest_test

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

func write(t *testing.T, dev blockdev.Device, off int64, b byte, n int) {
	t.Helper()
	if _, err := dev.WriteAt(bytes.Repeat([]byte{b}, n), off); err != nil {
		t.Fatal(err)
	}
}

// What was flushed survives every crash; of the rest each sector holds one of its versions, independently.
func TestCrash(t *testing.T) {
	m := devtest.NewMem(64*512, 512, 1)
	write(t, m, 0, 1, 64*512)
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, m, 0, 2, 32*512)
	write(t, m, 0, 3, 16*512)
	if m.Unflushed() != 32 {
		t.Errorf("%d sectors are not flushed, want 32", m.Unflushed())
	}
	before := m.Bytes()
	seen := map[int]map[byte]bool{}
	for seed := range uint64(60) {
		b := m.Crash(seed).Bytes()
		for s := range 64 {
			sector := b[s*512 : (s+1)*512]
			if !bytes.Equal(sector, bytes.Repeat(sector[:1], 512)) {
				t.Fatalf("seed %d: sector %d is torn within", seed, s)
			}
			if seen[s] == nil {
				seen[s] = map[byte]bool{}
			}
			seen[s][sector[0]] = true
		}
		if !bytes.Equal(b, m.Crash(seed).Bytes()) {
			t.Fatalf("seed %d gives two different crashes", seed)
		}
	}
	for s, want := range map[int]int{0: 3, 15: 3, 16: 2, 31: 2, 32: 1, 63: 1} {
		if len(seen[s]) != want {
			t.Errorf("sector %d was seen as %v, want %d versions", s, seen[s], want)
		}
	}
	if !bytes.Equal(before, m.Bytes()) {
		t.Error("a crash changed the original")
	}
	if b := m.CrashKeepNone().Bytes(); b[0] != 1 || b[20*512] != 1 {
		t.Error("CrashKeepNone kept something")
	}
	if !bytes.Equal(m.CrashKeepAll().Bytes(), before) {
		t.Error("CrashKeepAll lost something")
	}
	// A crashed device is durable as it is, and a flush ends all doubt.
	c := m.Crash(5)
	if c.Unflushed() != 0 || !bytes.Equal(c.Crash(1).Bytes(), c.Bytes()) {
		t.Error("a second crash changed what the first left")
	}
	if err := m.Flush(); err != nil || !bytes.Equal(m.CrashKeepNone().Bytes(), before) {
		t.Errorf("after a flush (%v) a crash still loses something", err)
	}
}

func TestClosedMem(t *testing.T) {
	m := devtest.NewMem(4096, 512, 1)
	write(t, m, 0, 7, 512)
	m.Close()
	if _, err := m.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("a closed device was read")
	}
	m.Reopen()
	p := make([]byte, 1)
	if _, err := m.ReadAt(p, 0); err != nil || p[0] != 7 {
		t.Errorf("reopened: %v, %v", p, err)
	}
}

func TestFaults(t *testing.T) {
	const n = 4096
	read := func(f *devtest.Faults, off int64) (byte, error) {
		p := []byte{0xee}
		_, err := f.ReadAt(p, off)
		return p[0], err
	}
	for _, c := range []struct {
		effect   devtest.Effect
		name     string
		err      error
		atZero   byte // what is there afterwards at 0, where 1 was and 2 is written
		atPage   byte // and at n, where 1 was
		returned int
	}{
		{devtest.Fail(syscall.EIO), "fail", syscall.EIO, 1, 1, 0},
		{devtest.FailLate(syscall.ENOSPC), "fail late", syscall.ENOSPC, 2, 1, 0},
		{devtest.Short(10), "short", blockdev.ErrShortIO, 2, 1, 10},
		{devtest.Flip(0), "flip", nil, 3, 1, n},
		{devtest.Misdirect(n), "misdirect", nil, 1, 2, n},
		{devtest.Lose(), "lose", nil, 1, 1, n},
		{devtest.Hook(func(devtest.Call) {}), "hook", nil, 2, 1, n},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := devtest.NewFaults(devtest.NewMem(4*n, 512, 1))
			write(t, f, 0, 1, 4*n)
			f.Inject(devtest.Rule{Op: devtest.OpWrite, When: devtest.Nth(2), Effect: c.effect})
			p := bytes.Repeat([]byte{2}, n)
			got, err := f.WriteAt(p, 0)
			if !errors.Is(err, c.err) || got != c.returned {
				t.Errorf("%d, %v; want %d, %v", got, err, c.returned, c.err)
			}
			var e *blockdev.Error
			if err != nil && !errors.As(err, &e) {
				t.Errorf("%v is no *blockdev.Error", err)
			}
			if p[0] != 2 {
				t.Error("the writer's buffer was changed")
			}
			zero, _ := read(f, 0)
			page, _ := read(f, n)
			if zero != c.atZero || page != c.atPage {
				t.Errorf("at 0 %d, at %d %d; want %d and %d", zero, n, page, c.atZero, c.atPage)
			}
			if f.Hits(c.name) != 1 || f.Calls(devtest.OpWrite) != 2 || f.Calls(devtest.OpRead) != 2 {
				t.Errorf("%d hits, %d writes, %d reads", f.Hits(c.name), f.Calls(devtest.OpWrite), f.Calls(devtest.OpRead))
			}
		})
	}
}

func TestFaultsOnEveryOperation(t *testing.T) {
	f := devtest.NewFaults(devtest.NewMem(8192, 512, 1))
	f.Inject(devtest.Rule{Effect: devtest.Fail(syscall.EIO)})
	_, rerr := f.ReadAt(make([]byte, 1), 0)
	_, werr := f.WriteAt(make([]byte, 1), 0)
	_, merr := f.NextData(0)
	for op, err := range map[string]error{
		"read": rerr, "write": werr, "map": merr, "zero": f.Zero(0, 1, true), "discard": f.Discard(0, 1), "flush": f.Flush(),
	} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v, want EIO", op, err)
		}
	}
	f.Clear()
	if err := f.Flush(); !errors.Is(err, syscall.EIO) {
		t.Errorf("a flush after a failed one: %v; it must be sticky", err)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); err != nil {
		t.Errorf("after Clear: %v", err)
	}
	if f.Hits("fail") != 6 {
		t.Errorf("%d hits, want 6", f.Hits("fail"))
	}
}

func TestRuleChoice(t *testing.T) {
	f := devtest.NewFaults(devtest.NewMem(8192, 512, 1))
	f.Inject(devtest.Rule{Op: devtest.OpRead, When: devtest.Touches(4096, 1), Times: 2, Effect: devtest.Fail(syscall.EIO)})
	p := make([]byte, 8)
	for i, c := range []struct {
		off  int64
		fail bool
	}{{0, false}, {4088, false}, {4089, true}, {4097, false}, {4096, true}, {4096, false}} {
		if _, err := f.ReadAt(p, c.off); (err != nil) != c.fail {
			t.Errorf("read %d at %d: %v, want failure %v", i, c.off, err, c.fail)
		}
	}
}
