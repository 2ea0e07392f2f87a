package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernelTells is one look at a connection whose oldest segment is not acknowledged: so many were sent, of which so
// many came in; what the peer said so far.
func kernelTells(resends uint8, unacked, sacked uint32, under, received uint64) unix.TCPInfo {
	return unix.TCPInfo{Retransmits: resends, Unacked: unacked, Sacked: sacked, Bytes_acked: 1000, Bytes_sent: 1000 + under + 1448*uint64(resends),
		Bytes_retrans: 1448 * uint64(resends), Bytes_received: received, Snd_mss: 1448, Advmss: 1448, Rtt: 20e3}
}

// TestHoleSigns: what is named a black hole, and what only looks like one.
func TestHoleSigns(t *testing.T) {
	const second = time.Second
	type look struct {
		at   time.Duration
		info unix.TCPInfo
	}
	tells := func(at time.Duration, resends uint8, unacked, sacked uint32, under, received uint64) look {
		return look{at, kernelTells(resends, unacked, sacked, under, received)}
	}
	first := func(at time.Duration, received uint64, ahead uint32) look {
		return look{at, unix.TCPInfo{Bytes_acked: 1600, Bytes_sent: 1600, Bytes_received: received, Rcv_ooopack: ahead, Snd_mss: 1448, Advmss: 1448}}
	}
	for name, c := range map[string]struct {
		established bool
		looks       []look
		named       bool
		certain     bool
	}{
		"handshake, the second segment arrived":         {false, []look{tells(0, 0, 2, 0, 1700, 0), tells(3*second, 4, 2, 1, 1700, 0)}, true, true},
		"the same, so far":                              {false, []look{tells(0, 0, 2, 0, 1700, 0), tells(second, 2, 2, 1, 1700, 0)}, true, false},
		"handshake, nothing arrived":                    {false, []look{tells(0, 0, 2, 0, 1700, 0), tells(9*second, 5, 2, 0, 1700, 0)}, false, false},
		"handshake, a small one is lost":                {false, []look{tells(0, 0, 2, 0, 500, 0), tells(9*second, 5, 2, 1, 500, 0)}, false, false},
		"handshake, the peer's first is lost":           {false, []look{first(0, 0, 0), first(second, 0, 1), first(4*second, 0, 1)}, true, true},
		"the same, so far ":                             {false, []look{first(0, 0, 0), first(second, 0, 1), first(2*second, 0, 1)}, true, false},
		"handshake, the peer's first came":              {false, []look{first(0, 0, 0), first(second, 0, 1), first(4*second, 1700, 1)}, false, false},
		"the peer goes on":                              {true, []look{tells(0, 0, 9, 0, 13000, 10), tells(2*second, 3, 9, 0, 13000, 50), tells(4*second, 4, 9, 0, 13000, 90)}, true, true},
		"the peer said two things at once":              {true, []look{tells(0, 0, 9, 0, 13000, 10), tells(second/2, 1, 9, 0, 13000, 50), tells(second, 2, 9, 0, 13000, 90), tells(9*second, 5, 9, 0, 13000, 90)}, false, false},
		"a segment behind it arrived, and then silence": {true, []look{tells(0, 0, 9, 3, 13000, 10), tells(9*second, 5, 9, 3, 13000, 10)}, false, false},
		"small ones are lost":                           {true, []look{tells(0, 0, 9, 0, 360, 10), tells(2*second, 3, 9, 0, 360, 50), tells(4*second, 4, 9, 0, 360, 90)}, false, false},
		"the peer goes on, and is slow":                 {true, []look{tells(0, 0, 9, 0, 13000, 10), tells(2*second, 0, 9, 0, 13000, 50), tells(4*second, 0, 9, 0, 13000, 90)}, false, false},
	} {
		var h holeWatch
		var saw holeSigns
		for _, l := range c.looks {
			saw = h.look(&l.info, l.at, c.established)
		}
		if named := saw.text != ""; named != c.named || saw.certain != c.certain {
			t.Errorf("%s: %+v", name, saw)
		}
	}
	// It moves again, and is stuck once more: what was before counts for nothing.
	var h holeWatch
	for i, l := range []look{tells(0, 0, 9, 0, 13000, 10), tells(2*second, 3, 9, 0, 13000, 50), tells(4*second, 3, 9, 0, 13000, 90)} {
		if i == 2 {
			l.info.Bytes_acked += 1448
		}
		if saw := h.look(&l.info, l.at, true); saw.text != "" {
			t.Errorf("look %d: %+v", i, saw)
		}
	}
}

// TestHoleExplains: signs explain an end that has no other cause, and nothing else.
func TestHoleExplains(t *testing.T) {
	signs := holeSigns{text: "signs"}
	for _, err := range []error{ErrSilent, ErrReset, ErrHandshakeTimeout, context.DeadlineExceeded, &RemoteError{Code: CodeSilent}} {
		if got := signs.of(err); Classify(got) != ClassMTU || !errors.Is(got, ErrBlackHole) || !strings.Contains(got.Error(), err.Error()) {
			t.Errorf("%v became %v", err, got)
		}
		if got := (holeSigns{}).of(err); got != err {
			t.Errorf("without signs %v became %v", err, got)
		}
	}
	for _, err := range []error{ErrClosed, context.Canceled, ErrAuth, ErrProtocol, &RemoteError{Code: CodeStopped}} {
		if got := signs.of(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	for lost, want := range map[int]int{8948: 1200, 1448: 1200, 1200: 1000, 1188: 1000, 988: 536, 536: 0, 524: 0, 0: 0} {
		if got := SmallerSegment(lost); got != want {
			t.Errorf("below %d: %d, want %d", lost, got, want)
		}
	}
}

// TestDialSegment: the limit of who dials holds on both sides.
func TestDialSegment(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, limit := range append(Segments[:], 0) {
		there, err := DialSegment(t.Context(), l.Addr().String(), limit)
		if err != nil {
			t.Fatal(err)
		}
		back, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for _, nc := range []net.Conn{there, back} {
			if got := SegmentOf(nc); (limit > 0) != (got <= 1200) || limit > 0 && got > limit || got == 0 {
				t.Errorf("limit %d: segments of %d", limit, got)
			}
			nc.Close()
		}
	}
	a, b := net.Pipe()
	defer b.Close()
	defer a.Close()
	if SegmentOf(a) != 0 {
		t.Error("a pipe has segments")
	}
	if err := Handshake(a, func() error { return ErrAuth }); err != ErrAuth {
		t.Error(err)
	}
}

// TestPingsOnEveryConnection: one that is established sends a ping at least every 30 s, whatever is sent and received,
// so that no firewall or NAT on the way forgets it: these wait for minutes.
func TestPingsOnEveryConnection(t *testing.T) {
	for _, o := range []ConnOptions{{}, {DeadAfter: time.Minute}} {
		for _, traffic := range []string{"none", "sent", "received", "both"} {
			c := bareConn(nil)
			c.options = o.withDefaults()
			c.live.established.Store(true)
			w := watch{conn: c, kernel: func() (int64, int64, bool) { return 0, 0, false }, records: c.records}
			var quiet time.Duration
			for range 1000 {
				if traffic == "sent" || traffic == "both" {
					c.sent.Add(100)
				}
				if traffic == "received" || traffic == "both" {
					c.received.Add(100)
				}
				quiet += time.Second / 2
				if err := w.look(time.Second / 2); err != nil {
					t.Fatal(fmt.Errorf("%s: %w", traffic, err))
				}
				if c.live.pingDue.Swap(false) {
					quiet = 0
				}
				if quiet > 30*time.Second {
					t.Fatalf("options %+v, traffic %s: no ping in %v", o, traffic, quiet)
				}
			}
		}
	}
}
