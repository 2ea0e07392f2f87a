package bench

import (
	"context"
	"time"
)

// Lag is how far a mirror was behind during a run. What grows is more in the last quarter of the run than
// in the one before.
type Lag struct {
	ThirdSeconds float64 `json:"third_quarter_seconds"` // means
	LastSeconds  float64 `json:"last_quarter_seconds"`
	ThirdBytes   float64 `json:"third_quarter_bytes"`
	LastBytes    float64 `json:"last_quarter_bytes"`
	MaxSeconds   float64 `json:"max_seconds"`
	MaxBytes     int64   `json:"max_bytes"`
	Grows        bool    `json:"grows"`
	GivenUp      int64   `json:"given_up"` // cuts

	ShippedBytes int64   `json:"shipped_bytes"` // from the beginning of the run until the mirror had everything
	WireBytes    int64   `json:"wire_bytes"`
	WrittenBytes int64   `json:"written_bytes"` // by the client, warm-up included
	DrainSeconds float64 `json:"drain_seconds"` // from the last write until the mirror had everything
	ShippedShare float64 `json:"shipped_share"` // of what was written

	began counters
}

// counters are those of a primary at a moment.
type counters struct{ shipped, wire, written, givenUp int64 }

const lagPoll = 250 * time.Millisecond

// lagSample is the lag at a moment.
type lagSample struct {
	at      time.Time
	seconds float64
	bytes   int64
}

// lagWatch asks the primary for the lag as long as a run takes.
type lagWatch struct {
	lag     Lag
	samples []lagSample
	seconds int
	cancel  context.CancelFunc
	ended   chan struct{}
}

func startLagWatch(ctx context.Context, primary *Node, seconds int) *lagWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &lagWatch{seconds: seconds, cancel: cancel, ended: make(chan struct{})}
	if v, err := primary.Volume(ctx, benchVolume); err == nil && len(v.Mirrors) == 1 {
		m := v.Mirrors[0]
		w.lag.began = counters{m.ShippedBytes, m.WireBytes, v.WrittenBytes, m.GivenUp}
	}
	go func() {
		defer close(w.ended)
		w.routineSample(ctx, primary)
	}()
	return w
}

func (w *lagWatch) routineSample(ctx context.Context, primary *Node) {
	tick := time.NewTicker(lagPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if v, err := primary.Volume(ctx, benchVolume); err == nil && len(v.Mirrors) == 1 {
			w.samples = append(w.samples, lagSample{time.Now(), v.Mirrors[0].LagSeconds, v.Mirrors[0].LagBytes})
		}
	}
}

// stop is called at the end of the run: it counts back from there.
func (w *lagWatch) stop() *Lag {
	w.cancel()
	<-w.ended
	w.lag.summarise(w.samples, time.Now(), time.Duration(w.seconds)*time.Second)
	return &w.lag
}

func (l *Lag) summarise(samples []lagSample, end time.Time, run time.Duration) {
	var third, last []lagSample
	for _, s := range samples {
		switch before := end.Sub(s.at); {
		case before <= run/4:
			last = append(last, s)
		case before <= run/2:
			third = append(third, s)
		}
		l.MaxSeconds, l.MaxBytes = max(l.MaxSeconds, s.seconds), max(l.MaxBytes, s.bytes)
	}
	l.ThirdSeconds, l.ThirdBytes = meanLag(third)
	l.LastSeconds, l.LastBytes = meanLag(last)
	// The lag of a mirror that follows is a saw with teeth of an epoch: a little more is none.
	l.Grows = l.LastSeconds > 1.1*l.ThirdSeconds+0.5
}

func meanLag(samples []lagSample) (seconds, bytes float64) {
	for _, s := range samples {
		seconds += s.seconds / float64(len(samples))
		bytes += float64(s.bytes) / float64(len(samples))
	}
	return seconds, bytes
}

// settle waits until the mirror has everything and counts what that took.
func (s *LiveSample) settle(ctx context.Context, o *opened) error {
	began := time.Now()
	if _, err := o.primary.Cut(ctx, benchVolume); err != nil {
		return err
	}
	v, err := o.primary.Volume(ctx, benchVolume)
	if err != nil || len(v.Mirrors) != 1 {
		return err
	}
	m, l := v.Mirrors[0], s.Lag
	l.DrainSeconds = time.Since(began).Seconds()
	l.ShippedBytes, l.WireBytes = m.ShippedBytes-l.began.shipped, m.WireBytes-l.began.wire
	l.WrittenBytes, l.GivenUp = v.WrittenBytes-l.began.written, m.GivenUp-l.began.givenUp
	if l.WrittenBytes > 0 {
		l.ShippedShare = float64(l.ShippedBytes) / float64(l.WrittenBytes)
	}
	return nil
}
