package wire

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// steered is a connection whose receiver answers every record, and whose sender is steered.
type steered struct {
	from, to *Conn
	window   *SendWindow
	flow     *Flow
}

func newSteered(t testing.TB, network string, o FlowOptions) *steered {
	t.Helper()
	s := newUnsteered(t, network)
	s.flow = s.from.Steer(s.window, o)
	return s
}

func newUnsteered(t testing.TB, network string) *steered {
	t.Helper()
	s := &steered{window: NewWindow(32 << 20)}
	s.from, s.to = pair(t, network, ConnOptions{DeadAfter: time.Minute})
	ended := make(chan struct{}, 2)
	go func() { // the receiver
		defer func() { ended <- struct{}{} }()
		buf, meter := make([]byte, MaxRun), NewMeter(32<<20)
		for {
			m, err := s.to.Next()
			if err != nil {
				return
			}
			if d, ok := m.(*Data); ok {
				if meter.Take(Cost(d)) != nil || s.to.ReadPayload(buf[:d.PayloadLength]) != nil {
					return
				}
				meter.Done(Cost(d))
				s.to.Send(&Ack{[]AckEntry{{d.Seq, d.Offset, LevelStaged, d.Hash}}})
				if total, due := meter.Next(); due {
					s.to.Send(&Window{total})
				}
			}
		}
	}()
	go func() { // the sender's reader
		defer func() { ended <- struct{}{} }()
		for {
			m, err := s.from.Next()
			if err != nil {
				return
			}
			switch m := m.(type) {
			case *Ack:
				s.window.Delivered(int64(len(m.Entries)) * (benchBlock + RecordOverhead))
			case *Window:
				s.window.Grant(m.Granted)
			}
		}
	}()
	t.Cleanup(func() {
		s.from.Close(nil)
		s.to.Close(nil)
		<-ended
		<-ended
	})
	return s
}

// send sends blocks for some time and returns how many bytes went out.
func (s *steered) send(t *testing.T, d time.Duration) int64 {
	t.Helper()
	payload, before := contents(benchBlock)["random"], s.from.Sent()
	for end, seq := time.Now().Add(d), uint64(1); time.Now().Before(end); seq++ {
		err := s.window.Admit(t.Context(), benchBlock, benchBlock+RecordOverhead)
		if err == nil {
			err = s.from.Send(&Data{Seq: seq, RawLength: benchBlock, Codec: CodecRaw, Payload: payload})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return s.from.Sent() - before
}

// TestFlowLimit: a limit is about what goes out, is taken up while it runs, and taken away.
func TestFlowLimit(t *testing.T) {
	const limit = 4 << 20
	s := newSteered(t, "tcp", FlowOptions{Limit: limit})
	s.send(t, time.Second) // the kernel's buffer fills
	if got := s.send(t, 2*time.Second) / 2; got > 2*limit {
		t.Errorf("%d bytes a second, %d are allowed", got, limit)
	}
	if st := s.flow.State(); st.Limit != limit || st.Pacing != limit || st.Refused != "" || st.Congestion == "" {
		t.Errorf("%+v", st)
	}
	s.flow.SetLimit(0)
	for s.flow.State().Limit != 0 {
		s.send(t, 10*time.Millisecond)
	}
	for s.flow.State().Pacing != 0 {
		s.send(t, 10*time.Millisecond)
	}
	s.flow.SetLimit(limit)
	for s.flow.State().Pacing == 0 {
		s.send(t, 10*time.Millisecond)
	}
}

// TestFlowFast: nothing is held back where there is nothing to hold back for, over whatever the connection goes.
func TestFlowFast(t *testing.T) {
	for _, network := range networks {
		s := newSteered(t, network, FlowOptions{})
		sent := s.send(t, 2*time.Second)
		st := s.flow.State()
		if st.Limit != 0 || st.Window <= 0 || st.Run <= 0 || st.MinRTT <= 0 {
			t.Errorf("%s: %+v after %d bytes", network, st, sent)
		}
		if tcp := network == "tcp" || network == "tls"; tcp != (st.TCPMinRoundTrip > 0) || tcp != (st.Congestion != "") {
			t.Errorf("%s: %+v", network, st)
		}
	}
}

// TestFlowRefused: an algorithm that the kernel does not have is told, and the default stays.
func TestFlowRefused(t *testing.T) {
	for name, refused := range map[string]bool{"no_such_thing": true, "auto": false, "default": false, "reno": false} {
		s := newSteered(t, "tcp", FlowOptions{Congestion: name})
		s.send(t, 100*time.Millisecond)
		var st FlowState
		for st = s.flow.State(); st.Window == 0; st = s.flow.State() {
			yield()
		}
		if (st.Refused != "") != refused || st.Congestion == "" || name == "reno" && st.Congestion != "reno" {
			t.Errorf("%s: %q, refused %q", name, st.Congestion, st.Refused)
		}
	}
}

// TestWindowLimit: as much as the limit says may be under way, and one send beyond; more with what is delivered.
func TestWindowLimit(t *testing.T) {
	w := NewWindow(1 << 40)
	try := func(bytes int64) bool { return w.Admit(never, 4096, bytes) == nil }
	if !try(100 << 20) {
		t.Error("without a limit something is held back")
	}
	w.Delivered(100 << 20)
	w.underWay()
	w.Limit(1 << 20)
	if !try(startWindow-1) || !try(1<<20) || try(1) {
		t.Error("another begin than startWindow")
	}
	w.Delivered(startWindow - 1 + 1<<20)
	if !try(startWindow) || !try(MaxRun) || try(1) {
		t.Error("it did not grow up to the limit")
	}
	if u := w.underWay(); u.outstanding != startWindow+MaxRun || u.held != 2 || u.largest != 1<<20 || u.waits {
		t.Errorf("%+v", u)
	}
	done := make(chan error, 1)
	go func() { done <- w.Admit(t.Context(), 4096, 1) }()
	waitFor(w, 1)
	if !w.underWay().waits {
		t.Error("nobody waits")
	}
	w.Limit(2 << 20)
	w.Delivered(MaxRun)
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.Limit(1)
	if try(1) {
		t.Error("more than a smaller limit")
	}
	why := errors.New("why")
	go func() { done <- w.Admit(t.Context(), 4096, 1) }()
	waitFor(w, 1)
	w.Close(why)
	if err := <-done; !errors.Is(err, why) {
		t.Error(err)
	}
}

// BenchmarkSteered is what steering costs where there is nothing to steer: runs of 1 MiB over loopback, each of its
// blocks answered, the peer's window kept. Compare the two, and the CPU time, in one run.
func BenchmarkSteered(b *testing.B) {
	payload := contents(benchBlock)["random"]
	for _, c := range []struct {
		name string
		make func() *steered
	}{
		{"without", func() *steered { return newUnsteered(b, "tcp") }},
		{"with", func() *steered { return newSteered(b, "tcp", FlowOptions{}) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := c.make()
			var run []Message
			for at := 0; at < MaxRun; at += benchBlock {
				run = append(run, &Data{Offset: int64(at), RawLength: benchBlock, Follow: uint32(MaxRun - at - benchBlock), Codec: CodecRaw, Payload: payload})
			}
			b.SetBytes(MaxRun)
			before := cpuTime()
			for b.Loop() {
				for left := run; len(left) > 0; {
					n := len(left)
					if s.flow != nil {
						n = min(n, int(max(s.flow.Run()/benchBlock, 1)))
					}
					for i := range left[:n] {
						left[i].(*Data).Follow = uint32((n - i - 1) * benchBlock)
					}
					err := s.window.Admit(b.Context(), int64(n)*benchBlock, int64(n)*(benchBlock+RecordOverhead))
					if err == nil {
						err = s.from.Send(left[:n]...)
					}
					if err != nil {
						b.Fatal(err)
					}
					left = left[n:]
				}
			}
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
