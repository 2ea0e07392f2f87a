package blockdev_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestFlushFailureIsSticky(t *testing.T) {
	f := openNew(t, 8192)
	var calls atomic.Int64
	f.OnSync(func(int) error {
		if calls.Add(1) == 2 {
			return syscall.EIO
		}
		return nil // the kernel reports a failed write-back once, and then says that all is well
	})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	first := f.Flush()
	if !errors.Is(first, syscall.EIO) {
		t.Fatalf("failing flush: %v", first)
	}
	if again := f.Flush(); again != first {
		t.Errorf("the next flush: %v, want the same %v", again, first)
	}
	if calls.Load() != 2 {
		t.Errorf("%d syncs, want no more after the failed one", calls.Load())
	}
}

// Flushes that meet a failing one do not come back with success, whoever of them was told by the kernel.
func TestFlushFailureMeetsAllWhoWait(t *testing.T) {
	f := openNew(t, 8192)
	entered, fail := make(chan struct{}), make(chan struct{})
	var calls atomic.Int64
	f.OnSync(func(int) error {
		if calls.Add(1) > 1 {
			return nil
		}
		close(entered)
		<-fail
		return syscall.ENOSPC
	})
	errs := make([]error, 8)
	var wg sync.WaitGroup
	wg.Go(func() { errs[0] = f.Flush() })
	<-entered
	for i := range errs[1:] {
		wg.Go(func() { errs[i+1] = f.Flush() })
	}
	close(fail)
	wg.Wait()
	for i, err := range errs {
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("flush %d: %v, want ENOSPC", i, err)
		}
	}
	if calls.Load() != 1 {
		t.Errorf("%d syncs, want one", calls.Load())
	}
}

// A flush that runs already does not serve a caller who came later, for it may have begun before the
// caller's write; one that begins afterwards serves all who wait.
func TestFlushesShare(t *testing.T) {
	f := openNew(t, 8192)
	entered, proceed := make(chan struct{}, 100), make(chan struct{})
	var calls atomic.Int64
	f.OnSync(func(int) error {
		calls.Add(1)
		entered <- struct{}{}
		<-proceed
		return nil
	})
	var wg sync.WaitGroup
	flush := func() {
		if err := f.Flush(); err != nil {
			t.Error(err)
		}
	}
	wg.Go(flush)
	<-entered
	const late = 10
	for range late {
		wg.Go(flush)
	}
	waitFor(func() bool { return f.FlushesWaiting() == late })
	close(proceed)
	wg.Wait()
	if got := calls.Load(); got != 2 {
		t.Errorf("%d syncs for one flush and %d that came during it, want 2", got, late)
	}
}

func TestClaimsAreReleased(t *testing.T) {
	f := openNew(t, 1<<20)
	for i := range 50 {
		if _, err := f.WriteAt(fill(5000), int64(i*777)); err != nil {
			t.Fatal(err)
		}
		if err := f.Zero(int64(i*999), 7000, i%2 == 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Discard(int64(i*999), 7000); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.ClaimsHeld(); n != 0 {
		t.Errorf("%d claims are held with nobody at work", n)
	}
}
