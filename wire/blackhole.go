package wire

import (
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A path-MTU black hole: somewhere on the way packets above a size are dropped, and nobody is told. Connections come
// about, what is small passes, and the first large segment is sent again for ever. TCP cannot be made to use smaller
// segments on a connection that stands (but by a sysctl of the whole machine), so such a connection is ended, and
// whoever dials makes the next one with smaller segments (DialSegment), which bounds both directions.
//
// Segments are the sizes to go down by: the first is behind nearly every tunnel and within IPv6's least MTU.
var Segments = [...]int{1200, 1000, smallSegment}

// smallSegment passes everywhere, or nothing does.
const smallSegment = 536

// SmallerSegment is the next size below one that does not pass; 0: there is none.
func SmallerSegment(lost int) int {
	for _, s := range Segments {
		if s < lost {
			return s
		}
	}
	return 0
}

// What has to be seen before a connection is given up for a black hole. A line that loses a third of everything
// would lose the same segment that often once in a hundred times.
const (
	holeResends = 4 // that the oldest segment was sent again in vain
	holeNamed   = 2 // as often, where the connection has ended anyhow, to name the cause
	holeApart   = 1500 * time.Millisecond
	holeTrips   = 8               // round trips, where those take longer
	holeWaits   = 3 * time.Second // behind the first segment that came without the one before it
	holeLooks   = 250 * time.Millisecond
)

// holeWatch looks for the signs of a black hole in what the kernel tells of a connection. It is pure.
//
// Ours are lost: the oldest segment that is not acknowledged was sent again and again, what is under way is more
// than small segments, and small ones pass. The proof of the latter is, while hands are shaken, that the peer has a
// segment behind the lost one (SACK). A path that goes dead just behind a lost segment looks the same, so a
// connection that stands has to show more: the peer says new things, twice, with some round trips between. Did
// our acknowledgements, which are small, not arrive, it would only repeat the oldest of what it said.
//
// Theirs are lost: a segment came, and the first of all, before it, did not in some seconds. That is seen in a
// handshake alone; later the peer sees it better by itself, and tells us at the next one (CodeMTU).
type holeWatch struct {
	acked, received uint64
	heard           time.Duration // when the peer said something new first since ours are stuck; 0: not yet
	alive           bool          // it did so again
	ahead           time.Duration // when a segment was first seen to be ahead of the very first one; 0: none
	saw             holeSigns
}

// holeSigns is what was seen at the last look.
type holeSigns struct {
	text    string // "": nothing
	certain bool   // enough to end the connection
}

// look takes what the kernel tells at a time, which only grows. established: the handshake is behind us.
func (h *holeWatch) look(i *unix.TCPInfo, now time.Duration, established bool) holeSigns {
	if i.Bytes_acked != h.acked || i.Unacked == 0 {
		h.acked, h.received, h.heard, h.alive = i.Bytes_acked, i.Bytes_received, 0, false
	}
	if i.Bytes_received != h.received {
		h.received = i.Bytes_received
		apart := max(holeApart, holeTrips*time.Duration(i.Rtt)*time.Microsecond)
		if h.heard == 0 {
			h.heard = now
		} else if now-h.heard >= apart {
			h.alive = true
		}
	}
	if i.Bytes_received > 0 || i.Rcv_ooopack == 0 {
		h.ahead = 0
	} else if h.ahead == 0 {
		h.ahead = now
	}
	h.saw = holeSigns{}
	resends := int(i.Retransmits)
	under := int64(i.Bytes_sent) - int64(i.Bytes_retrans) - int64(i.Bytes_acked)
	large := under > smallSegment*max(1, int64(i.Unacked)-int64(i.Sacked))
	switch {
	case large && resends >= holeNamed && (h.alive || !established && i.Sacked > 0):
		h.saw.text = fmt.Sprintf("a segment of up to %d bytes was sent again %d times and did not arrive, small ones did", i.Snd_mss, resends)
		h.saw.certain = resends >= holeResends
	case !established && h.ahead > 0:
		h.saw.text = fmt.Sprintf("the peer's first segment, of up to %d bytes, does not arrive, a later one did", i.Advmss)
		h.saw.certain = now-h.ahead >= holeWaits
	}
	return h.saw
}

// lookForHole ends a connection on which what is large vanishes, without a farewell.
func (w *watch) lookForHole() error {
	if w.raw == nil {
		return nil
	}
	i := tcpInfo(w.raw)
	if i == nil {
		return nil
	}
	saw := w.hole.look(i, w.age, w.conn.live.established.Load())
	w.conn.hole.Store(&saw)
	if !saw.certain {
		return nil
	}
	abort(w.conn.nc)
	return fmt.Errorf("%w: %s", ErrBlackHole, saw.text)
}

// of is err with what was seen, if that explains it.
func (s holeSigns) of(err error) error {
	if s.text == "" {
		return err
	}
	if class := Classify(err); class != ClassReset && class != ClassTimeout {
		return err
	}
	return fmt.Errorf("%w: %s: %v", ErrBlackHole, s.text, err) // only its words: it may be the peer's, of another class
}

// tcpInfo asks the kernel; nil where it does not answer.
func tcpInfo(raw syscall.RawConn) (info *unix.TCPInfo) {
	_ = raw.Control(func(fd uintptr) { // it fails where the connection was closed
		if i, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			info = i
		}
	})
	return info
}

// abort has the close that follows send a reset. A farewell, and the end itself, would queue up behind what does not get
// through, and the peer would hear nothing; a reset is small.
func abort(nc net.Conn) {
	onSocket(nc, func(fd int) {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // else the peer finds out by itself
	})
}

// Handshake runs f, which speaks over nc before there is a Conn, and closes nc when nothing will come of it because of
// a black hole: the error is ErrBlackHole then. It looks at nothing where nc is no TCP connection.
func Handshake(nc net.Conn, f func() error) error {
	raw := socketOf(nc)
	if raw == nil {
		return f()
	}
	var h holeWatch
	over := make(chan struct{})
	var routine sync.WaitGroup
	routine.Go(func() {
		ticker := time.NewTicker(holeLooks)
		defer ticker.Stop()
		for began := time.Now(); ; {
			select {
			case <-over:
				return
			case <-ticker.C:
			}
			if i := tcpInfo(raw); i != nil && h.look(i, time.Since(began), false).certain {
				abort(nc)
				nc.Close()
				return
			}
		}
	})
	err := f()
	close(over)
	routine.Wait()
	switch {
	case err == nil:
		return nil
	case h.saw.certain: // which closed nc
		return fmt.Errorf("%w: %s", ErrBlackHole, h.saw.text)
	}
	return h.saw.of(err)
}

// SegmentOf is the size of the largest segments that this side sends on a TCP connection, and with that about of what
// comes, as the two sides agree on it; 0: it is none, or has ended.
func SegmentOf(nc net.Conn) int {
	raw := socketOf(nc)
	if raw == nil {
		return 0
	}
	i := tcpInfo(raw)
	if i == nil {
		return 0
	}
	return int(i.Snd_mss)
}
