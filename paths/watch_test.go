package paths

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/campaign/daemon"
)

// What is told one after the other is taken apart: the cause of a lost connection from tries that failed.
func TestWatch(t *testing.T) {
	told := func(class, at string) *daemon.Disconnect { return &daemon.Disconnect{Class: class, At: at} }
	type look struct {
		lost int64
		last *daemon.Disconnect
	}
	for name, c := range map[string]struct {
		looks  []look
		losses []string
		vain   map[string]int
	}{
		"nothing":                     {[]look{{0, nil}, {0, nil}}, nil, nil},
		"what was before":             {[]look{{3, told("reset", "1")}, {3, told("reset", "1")}}, nil, nil},
		"cause and loss at once":      {[]look{{0, nil}, {1, told("reset", "1")}}, []string{"reset"}, nil},
		"first the cause":             {[]look{{0, nil}, {0, told("timeout", "1")}, {1, told("timeout", "1")}}, []string{"timeout"}, nil},
		"the next try failed already": {[]look{{0, nil}, {0, told("reset", "1")}, {1, told("refused", "1")}}, []string{"reset"}, nil},
		"tries in vain": {[]look{{0, nil}, {1, told("reset", "1")}, {1, told("refused", "1")}, {1, told("refused", "2")}, {1, told("timeout", "9")}},
			[]string{"reset"}, map[string]int{"refused": 2}}, // and one that may still turn out to be a loss
		"the same words within a second": {[]look{{0, nil}, {1, told("reset", "1")}, {2, told("reset", "1")}}, []string{"reset", "reset"}, nil},
	} {
		w := &watch{vain: map[string]int{}, states: map[string]bool{}}
		for _, l := range c.looks {
			w.note(daemon.Peer{Reconnects: l.lost, Last: l.last}, time.Now())
		}
		var classes []string
		for _, l := range w.losses {
			classes = append(classes, l.class)
		}
		if !slices.Equal(classes, c.losses) || !maps.Equal(w.vain, c.vain) {
			t.Errorf("%s: lost %v, in vain %v", name, classes, w.vain)
		}
	}
}
