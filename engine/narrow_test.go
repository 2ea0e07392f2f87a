package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// What is learned of a way is told once, whoever learns it beside; goes down to the smallest; and is forgotten after an hour.
func TestNarrowLearns(t *testing.T) {
	var said []string
	n := newNarrow(func(text string) { said = append(said, text) })
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	n.source = func(netip.Addr) netip.Addr { return b }
	hole := fmt.Errorf("x: %w", wire.ErrBlackHole)
	for i, c := range []struct {
		lost int
		err  error
		want int
		told int
	}{
		{1448, wire.ErrSilent, 0, 0},
		{1448, hole, 1200, 1},
		{1448, hole, 1200, 1}, // another volume's connection to the same mirror
		{1188, &wire.RemoteError{Code: wire.CodeMTU}, 1000, 2},
		{988, hole, 536, 3},
		{524, hole, 536, 3}, // then it is something else
		{8948, hole, 536, 3},
	} {
		n.learn("a:1", a, c.lost, c.err)
		if got := n.forDial("a:1")(a); got != c.want || len(said) != c.told {
			t.Errorf("step %d: at most %d, told %d times", i, got, len(said))
		}
	}
	if n.forDial("b:1")(a) != 0 || !strings.Contains(said[0], "1448") || !strings.Contains(said[0], "1200") {
		t.Errorf("%q", said)
	}
	n.ways["a:1"] = way{segment: 536, until: time.Now().Add(-time.Second)}
	if n.segment("a:1") != 536 || n.forDial("a:1")(a) != 0 || n.segment("a:1") != 0 {
		t.Error("a way that was to be tried again is not")
	}
}

// What is known of a way holds between its two ends alone. Where it is not known between which, or there is no way now, it
// holds for all: better small than never.
func TestNarrowIsOfOneWay(t *testing.T) {
	addr := netip.MustParseAddr
	hole := fmt.Errorf("x: %w", wire.ErrBlackHole)
	for name, c := range map[string]struct {
		from, to netip.Addr // of the next connection
		other    bool
	}{
		"the same":           {addr("10.0.0.1"), addr("10.0.1.1"), false},
		"another way out":    {addr("10.9.0.1"), addr("10.0.1.1"), true},
		"another address":    {addr("10.0.0.1"), addr("10.0.1.2"), true},
		"no way at present":  {netip.Addr{}, addr("10.0.1.1"), false},
		"another family too": {addr("fd00::1"), addr("fd00::2"), true},
	} {
		var said []string
		n := newNarrow(func(text string) { said = append(said, text) })
		from := addr("10.0.0.1")
		n.source = func(netip.Addr) netip.Addr { return from }
		n.learn("a:1", addr("10.0.1.1"), 1448, hole)
		from = c.from
		want := 1200
		if c.other {
			want = 0
		}
		if got := n.forDial("a:1")(c.to); got != want || n.segment("a:1") != 1200 {
			t.Errorf("%s: at most %d, %d is known", name, got, n.segment("a:1"))
		}
		if n.reached("a:1", c.to); n.segment("a:1") != want || len(said) != 1 && !c.other || len(said) != 2 && c.other {
			t.Errorf("%s: once it stands %d is known; %q", name, n.segment("a:1"), said)
		}
		n.learn("a:1", c.to, 1448, hole) // the hole is there too
		if got := n.forDial("a:1")(c.to); got != 1200 {
			t.Errorf("%s: then at most %d", name, got)
		}
	}
	n := newNarrow(func(string) {})
	n.source = func(netip.Addr) netip.Addr { return netip.Addr{} }
	n.learn("a:1", addr("10.0.1.1"), 1448, hole)
	n.source = func(netip.Addr) netip.Addr { return addr("10.0.0.1") }
	if got := n.forDial("a:1")(addr("10.0.1.1")); got != 1200 {
		t.Errorf("learned nobody knows where: at most %d", got)
	}
}

// Who was dialled tells the other one when he comes again with segments that are too large: once, and with a code.
func TestNarrowTells(t *testing.T) {
	n := newNarrow(nil)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	n.untold[a] = 1448
	if err := n.tell(b, 1448); err != nil {
		t.Error(err)
	}
	err := n.tell(a, 1448)
	if codeOf(err) != wire.CodeMTU || !errors.Is(err, wire.ErrBlackHole) || nextStep(err) == "" {
		t.Errorf("%v", err)
	}
	if err := n.tell(a, 1448); err != nil {
		t.Errorf("a second time: %v", err)
	}
	n.untold[a] = 1448
	if err := n.tell(a, 1188); err != nil {
		t.Errorf("small segments: %v", err)
	}
	if len(n.untold) != 0 {
		t.Error("what needs no telling is kept")
	}
}
