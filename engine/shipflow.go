package engine

import (
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// FlowStatus is how fast a primary may send to a mirror, and why (docs/FLOW.md). Only ever added to.
type FlowStatus struct {
	Limit       int64   `json:"limit_bytes_per_second"`  // in force now; 0: none
	Pacing      int64   `json:"pacing_bytes_per_second"` // that the kernel keeps; 0: none
	Delivery    int64   `json:"delivery_bytes_per_second"`
	Window      int64   `json:"window_bytes"`
	Outstanding int64   `json:"outstanding_bytes"`
	Run         int64   `json:"run_bytes"`
	Unsent      int64   `json:"unsent_bytes"`
	RTT         float64 `json:"rtt_ms"`
	MinRTT      float64 `json:"min_rtt_ms"`
	Threshold   float64 `json:"swell_threshold_ms"`
	Slowed      bool    `json:"slowed"`
	TCPRTT      float64 `json:"tcp_rtt_ms"`
	TCPMinRTT   float64 `json:"tcp_min_rtt_ms"`
	TCPDelivery int64   `json:"tcp_delivery_bytes_per_second"`
	Segment     int64   `json:"mss"`           // bytes of the largest segments to the mirror
	MTU         string  `json:"mtu,omitempty"` // why they are smaller than they could be
	Congestion  string  `json:"congestion"`
	Refused     string  `json:"refused,omitempty"` // what the kernel did not allow
}

// limit is what a person allows now, in bytes a second; 0: any.
func (s *shipper) limit() int64 { return s.p.config.Load().ratesOf(s.config.Name).At(s.p.now()) }

// keepLimit has the connection, where there is one, keep to the limit of now.
func (s *shipper) keepLimit() {
	s.mu.Lock()
	session := s.session
	s.mu.Unlock()
	if session != nil && session.flow != nil {
		session.flow.SetLimit(s.limit())
	}
}

func (s *shipper) flowOptions() wire.FlowOptions {
	return wire.FlowOptions{Limit: s.limit(), Congestion: s.p.config.Load().Congestion}
}

// runBytes is what one send may carry; nil: nobody steers.
func runBytes(f *wire.Flow) int64 {
	if f == nil {
		return wire.MaxRun
	}
	return f.Run()
}

// flowStatus is how a connection's flow stands.
func (s *shipper) flowStatus(f *wire.Flow) *FlowStatus {
	if f == nil {
		return nil
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	st := f.State()
	why := ""
	if segment := s.p.gate.narrow.segment(s.config.Address); segment > 0 {
		why = fmt.Sprintf("large packets vanish on the way: segments of at most %d bytes", segment)
	}
	return &FlowStatus{
		Limit: st.Limit, Pacing: st.Pacing, Delivery: st.Bandwidth, Window: st.Window, Outstanding: st.Outstanding, Run: st.Run,
		Unsent: st.Unsent, RTT: ms(st.RTT), MinRTT: ms(st.MinRTT), Threshold: ms(st.SwellThreshold), Slowed: st.Slowed,
		TCPRTT: ms(st.TCPRoundTrip), TCPMinRTT: ms(st.TCPMinRoundTrip), TCPDelivery: st.TCPDeliveryRate,
		Segment: st.Segment, MTU: why, Congestion: st.Congestion, Refused: st.Refused,
	}
}
