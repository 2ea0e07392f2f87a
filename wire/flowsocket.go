package wire

import (
	"fmt"
	"math"
	"net"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// flowSocket is the TCP socket below a connection, where there is one, and what was set on it.
type flowSocket struct {
	raw           syscall.RawConn // nil: none
	lowat, pacing int64
	congestion    string   // the algorithm in use
	refused       []string // what the kernel did not let us set
}

// kernelView is what TCP_INFO tells.
type kernelView struct {
	known       bool
	unsent      int64
	rtt, minRTT time.Duration
	rate        int64 // delivered, bytes a second
	segment     int64
}

// flowSocketOf finds the socket below layers such as TLS.
func flowSocketOf(nc net.Conn) flowSocket {
	if raw := socketOf(nc); raw != nil {
		return flowSocket{raw: raw, lowat: notSentLowat}
	}
	return flowSocket{}
}

// congest chooses the algorithm: BBR where the kernel lets us, the kernel's own, or the one of that name. Within one
// machine there is no queue to spare, and BBR's pacing costs CPU.
func (s *flowSocket) congest(name string, loopback bool) {
	auto := name == "" || name == "auto"
	if auto {
		name = "bbr"
	}
	s.do(func(fd int) {
		if name != "default" && !(auto && loopback) {
			err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
			if err != nil && !auto {
				s.refuse("congestion control "+name, err)
			}
		}
		if now, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil {
			s.congestion = now
		}
	})
}

// set has at most so much wait unsent in the kernel, and has it send so many bytes a second; 0: as fast as it goes.
// Small changes are not worth a system call.
func (s *flowSocket) set(lowat, pacing int64) {
	s.do(func(fd int) {
		if differs(s.lowat, lowat) {
			s.lowat = lowat
			err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, int(lowat))
			s.refuse("TCP_NOTSENT_LOWAT", err)
		}
		if differs(s.pacing, pacing) {
			s.pacing = pacing
			rate := uint64(pacing)
			if pacing == 0 {
				rate = math.MaxUint64
			}
			s.refuse("pacing", unix.SetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate))
		}
	})
}

// differs tells whether two values are a sixteenth apart, or one of them is 0.
func differs(old, value int64) bool {
	return old != value && (old == 0 || value == 0 || max(old-value, value-old) > old/16)
}

// refuse notes what cannot be had, once.
func (s *flowSocket) refuse(what string, err error) {
	if err == nil {
		return
	}
	if text := fmt.Sprintf("%s: %v", what, err); !slices.Contains(s.refused, text) {
		s.refused = append(s.refused, text)
	}
}

func (s *flowSocket) view() (v kernelView) {
	s.do(func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		v = kernelView{known: true, unsent: int64(info.Notsent_bytes), rate: int64(info.Delivery_rate), segment: int64(info.Snd_mss),
			rtt: time.Duration(info.Rtt) * time.Microsecond}
		if info.Min_rtt != math.MaxUint32 {
			v.minRTT = time.Duration(info.Min_rtt) * time.Microsecond
		}
	})
	return v
}

func (s *flowSocket) do(f func(fd int)) {
	if s.raw != nil {
		_ = s.raw.Control(func(fd uintptr) { f(int(fd)) }) // fails where the connection has ended
	}
}
