package wire

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Path is what the kernel knows of the way to the peer.
type Path struct {
	RTT         time.Duration // of TCP, which does not see queues in front of the peer's program
	MTU         int           // bytes of a whole packet
	SegmentSent int           // bytes of payload of the largest segment to the peer
	SegmentWant int           // what this side told the peer that it takes
	Sent        int64         // bytes of payload, those that were sent again included
	Resent      int64         // of these
	Acked       int64         // bytes that the peer's kernel has
	Congestion  string
}

// Path asks the kernel; false where the connection is no TCP connection.
func (c *Conn) Path() (p Path, ok bool) {
	onSocket(c.nc, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		ok = true
		p = Path{
			RTT: time.Duration(info.Rtt) * time.Microsecond, MTU: int(info.Pmtu), SegmentSent: int(info.Snd_mss), SegmentWant: int(info.Advmss),
			Sent: int64(info.Bytes_sent), Resent: int64(info.Bytes_retrans), Acked: int64(info.Bytes_acked),
		}
		// Without its name the rest is worth as much.
		p.Congestion, _ = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	})
	return p, ok
}

// lowWater is what may wait unsent in the kernel where round trips are measured behind it.
const lowWater = 32 << 10

// Shallow keeps what the kernel holds back of ours small, so that a frame that is sent waits for the way
// and not for this machine: for measuring, at some cost in throughput.
func (c *Conn) Shallow() {
	onSocket(c.nc, func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, lowWater) // it only measures worse
	})
}

// onSocket runs a function on the socket of the TCP connection below nc; it is not run where there is none.
func onSocket(nc net.Conn, f func(fd int)) {
	if raw := socketOf(nc); raw != nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) }) // it fails where the connection was closed
	}
}

// socketOf finds the TCP socket below layers such as TLS; nil: there is none.
func socketOf(nc net.Conn) syscall.RawConn {
	for {
		layer, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = layer.NetConn()
	}
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
