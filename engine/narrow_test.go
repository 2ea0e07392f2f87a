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
		n.learn("a:1", c.lost, c.err)
		if got := n.forDial("a:1"); got != c.want || len(said) != c.told {
			t.Errorf("step %d: at most %d, told %d times", i, got, len(said))
		}
	}
	if n.forDial("b:1") != 0 || !strings.Contains(said[0], "1448") || !strings.Contains(said[0], "1200") {
		t.Errorf("%q", said)
	}
	n.ways["a:1"] = way{536, time.Now().Add(-time.Second)}
	if n.segment("a:1") != 536 || n.forDial("a:1") != 0 || n.segment("a:1") != 0 {
		t.Error("a way that was to be tried again is not")
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
