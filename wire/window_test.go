package wire

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
)

func TestCost(t *testing.T) {
	for _, c := range []struct {
		m    Message
		want int64
	}{
		{&Data{RawLength: 1}, 4096}, {&Data{RawLength: 4096}, 4096}, {&Data{RawLength: 4097}, 8192},
		{&Data{RawLength: MaxBlock}, MaxBlock}, {&Zero{Length: MaxZeroExtent}, 4096}, {&Ack{}, 0}, {&Flush{}, 0}, {&Rebase{}, 0}, {&Offer{}, 0},
	} {
		if got := Cost(c.m); got != c.want {
			t.Errorf("Cost(%+v) = %d, want %d", c.m, got, c.want)
		}
	}
}

// TestWindowModel runs sender and receiver halves against plain sums: the sender never passes its grant,
// the receiver never holds more than the window, and where all is done the sender is never stuck.
func TestWindowModel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // an Acquire that would wait fails
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		size := uint64(MaxRun + r.IntN(8*MaxRun))
		window, meter := NewWindow(size), NewMeter(size)
		var used, held int64
		var queue []int64 // taken, not done
		granted := int64(size)
		for range 2000 {
			if n := int64(1+r.IntN(256)) * costUnit; r.IntN(2) == 0 {
				err := window.Acquire(ctx, n)
				if fits := used+n <= granted; fits != (err == nil) {
					t.Fatalf("seed %d: acquire %d of %d left: %v", seed, n, granted-used, err)
				}
				if err != nil && len(queue) == 0 {
					t.Fatalf("seed %d: stuck, %d of %d used", seed, used, granted)
				}
				if err == nil {
					used += n
					held += n
					queue = append(queue, n)
					if err := meter.Take(n); err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
				}
			} else if len(queue) > 0 {
				held -= queue[0]
				meter.Done(queue[0])
				queue = queue[1:]
				if total, send := meter.Next(); send {
					if int64(total) <= granted {
						t.Fatalf("seed %d: grant of %d after %d", seed, total, granted)
					}
					granted = int64(total)
					if err := window.Grant(total); err != nil {
						t.Fatal(err)
					}
				}
			}
			if held > int64(size) || granted-used+held > int64(size) {
				t.Fatalf("seed %d: window of %d holds %d and grants %d more", seed, size, held, granted-used)
			}
		}
	}
}

func TestWindowProtocol(t *testing.T) {
	w := NewWindow(MaxRun)
	if err := w.Grant(MaxRun - 1); !errors.Is(err, ErrProtocol) {
		t.Errorf("grant that goes back: %v", err)
	}
	if err := w.Grant(MaxRun); err != nil {
		t.Errorf("the same grant again: %v", err)
	}
	for _, n := range []int64{-1, MaxRun + 1} {
		if err := w.Acquire(t.Context(), n); err == nil {
			t.Errorf("acquired %d", n)
		}
	}
	m := NewMeter(1)
	if err := m.Take(MaxRun + 1); !errors.Is(err, ErrProtocol) {
		t.Errorf("took more than was granted: %v", err)
	}
	if err := m.Take(-1); !errors.Is(err, ErrProtocol) {
		t.Errorf("took a negative cost: %v", err)
	}
	if err := m.Take(MaxRun); err != nil {
		t.Errorf("took what was granted: %v", err)
	}
	m.Done(2 * MaxRun)
	if total, send := m.Next(); !send || total != 2*MaxRun {
		t.Errorf("grants %d, %v after more was given back than taken", total, send)
	}
	if _, send := m.Next(); send {
		t.Error("grants the same twice")
	}
}

// waitFor yields until the window has n waiters.
func waitFor(w *SendWindow, n int) {
	for {
		w.mu.Lock()
		got := len(w.waiters)
		w.mu.Unlock()
		if got == n {
			return
		}
		yield()
	}
}

// TestWindowOrder: a small request does not pass a large one that waits, also where that gives up.
func TestWindowOrder(t *testing.T) {
	w := NewWindow(MaxRun)
	if err := w.Acquire(t.Context(), MaxRun); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	large, small := make(chan error, 1), make(chan error, 1)
	go func() { large <- w.Acquire(ctx, 8192) }()
	waitFor(w, 1)
	go func() { small <- w.Acquire(t.Context(), 4096) }()
	waitFor(w, 2)
	if err := w.Grant(MaxRun + 4096); err != nil {
		t.Fatal(err)
	}
	waitFor(w, 2) // neither was served
	gone := errors.New("gone")
	cancel(gone)
	if err := <-large; !errors.Is(err, gone) {
		t.Errorf("cancelled: %v", err)
	}
	if err := <-small; err != nil {
		t.Errorf("behind a cancelled one: %v", err)
	}
}

func TestWindowClose(t *testing.T) {
	w := NewWindow(0)
	why := errors.New("why")
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if err := w.Acquire(t.Context(), 4096); !errors.Is(err, why) {
				t.Errorf("released with %v", err)
			}
		})
	}
	waitFor(w, 10)
	w.Close(why)
	w.Close(nil)
	all.Wait()
	if err := w.Acquire(t.Context(), 4096); !errors.Is(err, why) {
		t.Errorf("after Close: %v", err)
	}
}
