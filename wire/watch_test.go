package wire

import (
	"errors"
	"testing"
	"time"
)

// far is what a watch is told of the other side.
type far struct {
	conn                  *Conn
	acked, queued         int64
	answered, outstanding int64
	last                  int64 // when the last ping was sent
}

// watched is the watch of a connection that has no other goroutine: what happens is what the test says.
func watched() (*watch, *far) {
	c := bareConn(nil)
	c.options = ConnOptions{}.withDefaults()
	c.live.established.Store(true)
	f := &far{conn: c}
	return &watch{
		conn: c, kernel: func() (int64, int64, bool) { return f.acked, f.queued, true },
		records: func() (int64, int64) { return f.answered, f.outstanding },
	}, f
}

// blind is the kernel of a connection that is none of TCP.
func blind() (acked, queued int64, ok bool) { return 0, 0, false }

// send sends bytes, and has that many acknowledged, of what was sent before them too.
func (f *far) send(n, acked int64) {
	f.conn.sent.Add(n)
	f.acked += acked
	f.queued += n - acked
}

// ping does so with a ping.
func (f *far) ping(acked int64) {
	f.last++
	f.conn.control.Add(HeaderSize + pingSize)
	f.send(HeaderSize+pingSize, acked)
	f.conn.live.asked.Store(f.last)
}

func (f *far) pong() {
	f.conn.received.Add(HeaderSize + pingSize)
	f.conn.live.answered.Store(f.last)
}

// outlives is for how many seconds a watch sees life, while this happens before each look.
func (w *watch) outlives(t *testing.T, most int, each func(second int)) (seconds int) {
	t.Helper()
	for i := range most {
		each(i)
		if err := w.look(time.Second); err != nil {
			if !errors.Is(err, ErrSilent) {
				t.Fatal(err)
			}
			return i
		}
	}
	return most
}

// TestTakenByAProxy: what a kernel goes on to acknowledge proves no life once it has a ping that nobody answers.
func TestTakenByAProxy(t *testing.T) {
	w, f := watched()
	f.conn.live.reading.Store(true)
	report := func(int) {
		f.send(100, 100)
		f.ping(HeaderSize + pingSize)
	}
	if n := w.outlives(t, 100, report); n != 10 {
		t.Errorf("found after %d s", n)
	}
	w, f = watched() // it lived before
	f.conn.live.reading.Store(true)
	n := w.outlives(t, 100, func(i int) {
		report(i)
		if i < 50 {
			f.pong()
		}
	})
	if n < 59 || n > 61 {
		t.Errorf("found after %d s, of which it answered 50", n)
	}
	// Whatever comes is life, for as long as it comes: this is not yet the peer's silence.
	w, f = watched()
	f.conn.live.reading.Store(true)
	if n := w.outlives(t, 100, func(i int) { report(i); f.conn.received.Add(1) }); n != 100 {
		t.Errorf("given up after %d s, though bytes came", n)
	}
	// Who does not read cannot hear an answer.
	w, f = watched()
	f.conn.live.writing.Store(true)
	if n := w.outlives(t, 100, report); n != 100 {
		t.Errorf("given up after %d s by a side that is busy", n)
	}
}

// TestPingBehindData: on a slow line a ping waits behind what the kernel here still holds; what moves is life until it is
// over there.
func TestPingBehindData(t *testing.T) {
	w, f := watched()
	f.conn.live.reading.Store(true)
	f.send(100_000, 0)
	n := w.outlives(t, 200, func(i int) {
		if f.queued >= 1000 {
			f.send(0, 1000)
		}
		if i%2 == 0 && i < 90 {
			f.ping(0)
		}
	})
	if n < 100 || n > 112 {
		t.Errorf("found after %d s, and the first ping arrived after 100", n)
	}
}

// TestDeaf: a peer whose bytes come but who answers nothing that has reached it is given up as well, later; not
// while it answers anything, while nothing but pings is asked, or while this side does not read.
func TestDeaf(t *testing.T) {
	for name, c := range map[string]struct {
		each  func(i int, f *far)
		found int // 0: never
	}{
		"answers nothing": {func(int, *far) {}, 30},
		"answers a ping": {func(i int, f *far) {
			if i%20 == 0 {
				f.conn.live.answered.Store(f.last)
			}
		}, 0},
		"answers records":     {func(i int, f *far) { f.answered = int64(i / 20) }, 0},
		"has nothing to do":   {func(_ int, f *far) { f.outstanding = 0 }, 0},
		"is not heard here":   {func(_ int, f *far) { f.conn.live.reading.Store(false) }, 0},
		"was not reached yet": {func(_ int, f *far) { f.acked, f.queued = 0, 1000 }, 0},
		"answers no more":     {func(i int, f *far) { f.answered = int64(min(i, 50)) }, 80},
	} {
		w, f := watched()
		f.conn.live.reading.Store(true)
		n := w.outlives(t, 200, func(i int) {
			f.outstanding = 4096
			f.conn.received.Add(1)
			f.ping(HeaderSize + pingSize)
			c.each(i, f)
		})
		if c.found == 0 && n != 200 || c.found > 0 && (n < c.found-1 || n > c.found+2) {
			t.Errorf("%s: given up after %d s, want %d", name, n, c.found)
		}
	}
}

// TestKernelCounts: what the peer's kernel has and what ours still holds are together all that was written.
func TestKernelCounts(t *testing.T) {
	x, _ := ends(t, "tcp")
	counts := kernelOf(x)
	before, queued, ok := counts()
	if !ok || queued != 0 {
		t.Fatalf("%d bytes wait before any was written, %v", queued, ok)
	}
	written := int64(0)
	for full := 0; full < 3; { // nobody reads: until both kernels hold all they can
		x.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		n, _ := x.Write(make([]byte, 1<<20))
		if written += int64(n); n == 0 {
			full++
		}
	}
	var acked int64
	for range 1000 { // until nothing moves between the two questions
		if acked, queued, _ = counts(); acked-before+queued == written && queued > 0 {
			return
		}
		yield()
	}
	t.Errorf("%d acknowledged, %d queued, of %d", acked-before, queued, written)
}

// TestSilenceTold: a peer that says nothing but still listens learns why the connection ends.
func TestSilenceTold(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			x, y := ends(t, network)
			conn := NewConn(x, brisk)
			defer conn.Close(nil)
			conn.Established()
			go conn.Next() // ends with the connection
			peer := NewConn(y, ConnOptions{DeadAfter: time.Minute})
			defer peer.Close(nil)
			peer.out.take(true) // it cannot say anything
			m, err := peer.Next()
			halt, ok := m.(*Halt)
			if !ok || halt.Code != CodeSilent {
				t.Fatalf("the peer heard %v, %v", m, err)
			}
			peer.out.give()
			peer.Close(nil)
			<-conn.Done()
			if !errors.Is(conn.Err(), ErrSilent) {
				t.Errorf("it ended with %v", conn.Err())
			}
		})
	}
}
