package engine

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// rounds plays attempts that each take a time and come to the same, and returns when they began.
func rounds(r *retry, n int, takes time.Duration, p parting) (began []time.Duration) {
	start := time.Unix(1000, 0)
	for now, i := start, 0; i < n; i++ {
		began = append(began, now.Sub(start))
		end := now.Add(takes)
		now = r.next(p, now, end)
		if now.Before(end) {
			now = end
		}
	}
	return began
}

func gaps(began []time.Duration) (all []time.Duration) {
	for i := range began[1:] {
		all = append(all, began[i+1]-began[i])
	}
	return all
}

// TestRetryNeverTight: a peer that accepts and drops at once, established or not, is not dialled in a loop; and
// while something may change within seconds, no pause is longer than the path's return allows.
func TestRetryNeverTight(t *testing.T) {
	lost := fmt.Errorf("gone: %w", wire.ErrReset)
	for name, p := range map[string]parting{
		"no session":           {err: lost},
		"dropped at once":      {err: lost, established: true, age: time.Millisecond},
		"dropped after a word": {err: lost, established: true, age: 1900 * time.Millisecond, received: 1 << 20},
		"refused":              {err: syscall.ECONNREFUSED},
		"busy":                 {err: &wire.RemoteError{Code: wire.CodeBusy}},
	} {
		var r retry
		for i, gap := range gaps(rounds(&r, 40, time.Millisecond, p)) {
			if least := min(backoffFirst/2<<min(i, 10), retryMost/2); gap < least || gap > retryMost+time.Second {
				t.Errorf("%s: pause %d is %v", name, i, gap)
			}
		}
	}
	// An attempt that hung is followed by the next one at once: its time counts.
	var r retry
	for i, gap := range gaps(rounds(&r, 10, wire.HandshakeTimeout, parting{err: wire.ErrHandshakeTimeout})) {
		if gap != wire.HandshakeTimeout {
			t.Errorf("attempt %d that hung %v was followed after %v", i, wire.HandshakeTimeout, gap)
		}
	}
}

// TestRetryLasting: what takes a person is tried ever more rarely.
func TestRetryLasting(t *testing.T) {
	for _, err := range []error{wire.ErrAuth, wire.ErrVersion, wire.ErrNotBlkmirror, &wire.RemoteError{Code: wire.CodeAuth},
		&wire.RemoteError{Code: wire.CodeHistory}, &wire.RemoteError{Code: wire.CodeOlder}, &wire.RemoteError{Code: wire.CodeUnknown}} {
		var r retry
		all := gaps(rounds(&r, 20, time.Millisecond, parting{err: err}))
		if last := all[len(all)-1]; last < retrySlow/2 || last > retrySlow {
			t.Errorf("%v: the last pause is %v", err, last)
		}
	}
}

// TestRetryAtOnce: the first loss of a connection that lived is followed by another one at once, whatever was before.
func TestRetryAtOnce(t *testing.T) {
	var r retry
	rounds(&r, 20, time.Millisecond, parting{err: wire.ErrAuth})
	now := time.Unix(1000, 0)
	if due := r.next(parting{err: wire.ErrReset, established: true, age: provenAfter}, now.Add(-time.Hour), now); !due.Equal(now) {
		t.Errorf("the next attempt is due after %v", due.Sub(now))
	}
	if due := r.next(parting{err: wire.ErrReset}, now, now); due.Sub(now) > backoffFirst {
		t.Errorf("the second attempt is due after %v", due.Sub(now))
	}
}

// TestRetryStopped: who said that it stops is tried every second for two minutes, and as everybody from then on.
func TestRetryStopped(t *testing.T) {
	var r retry
	start := time.Unix(1000, 0)
	bye := parting{err: &wire.RemoteError{Code: wire.CodeStopped}, established: true, age: time.Hour}
	now := r.next(bye, start.Add(-time.Hour), start)
	if now.Sub(start) != stoppedTry {
		t.Errorf("first try after %v", now.Sub(start))
	}
	for now.Before(start.Add(awaited)) {
		if r.limit(now) != stoppedLimit {
			t.Fatalf("an attempt may take %v", r.limit(now))
		}
		next := r.next(parting{err: syscall.ECONNREFUSED}, now, now)
		if next.Sub(now) != time.Second {
			t.Fatalf("%v after the stop the next try is due after %v", now.Sub(start), next.Sub(now))
		}
		now = next
	}
	if next := r.next(parting{err: syscall.ECONNREFUSED}, now, now); next.Sub(now) > retryMost || r.limit(now) != wire.HandshakeTimeout {
		t.Errorf("after two minutes the next try is due after %v", next.Sub(now))
	}
	r.next(parting{err: wire.ErrReset, established: true, age: time.Hour}, now, now)
	if r.limit(now) != wire.HandshakeTimeout {
		t.Error("a peer that is back is still awaited")
	}
}

// TestRetryStoppedFarAway: on a path of seconds a connection needs them, also with a peer that was stopped.
func TestRetryStoppedFarAway(t *testing.T) {
	now := time.Unix(1000, 0)
	for rtt, want := range map[time.Duration]time.Duration{
		0: stoppedLimit, 20 * time.Millisecond: stoppedLimit, time.Second: 6 * time.Second, time.Hour: wire.HandshakeTimeout,
	} {
		var r retry
		r.next(parting{err: &wire.RemoteError{Code: wire.CodeStopped}, established: true, age: time.Hour, rtt: rtt}, now, now)
		r.next(parting{err: wire.ErrHandshakeTimeout}, now, now)
		if got := r.limit(now); got != want {
			t.Errorf("behind a round trip of %v an attempt may take %v, want %v", rtt, got, want)
		}
	}
}
