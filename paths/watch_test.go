package paths

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/campaign/daemon"
)

// Lost connections are told from tries that failed, each once, and when they were first told.
func TestWatch(t *testing.T) {
	lost := func(class string, tries int64) daemon.Disconnect {
		return daemon.Disconnect{Class: class, Tries: tries, Role: "primary", Established: true}
	}
	failed := func(class string, tries int64) daemon.Disconnect {
		return daemon.Disconnect{Class: class, Tries: tries, Role: "primary"}
	}
	stranger := daemon.Disconnect{Class: "protocol", Tries: 3, Role: "acceptor", Established: true}
	w := new(watch)
	looks := [][]daemon.Disconnect{
		nil,
		{lost("timeout", 0)},
		{lost("timeout", 7), failed("refused", 0)},
		{lost("timeout", 7), failed("refused", 4), stranger, lost("reset", 0), lost("reset", 1)},
	}
	for i, history := range looks {
		w.note(history, time.Unix(int64(i), 0))
	}
	if want := []loss{{time.Unix(1, 0), "timeout"}, {time.Unix(3, 0), "reset"}, {time.Unix(3, 0), "reset"}}; !slices.Equal(w.losses, want) {
		t.Errorf("%v", w.losses)
	}
	if got := tries(looks[3]); !maps.Equal(got, map[string]int{"timeout": 7, "refused": 5, "reset": 1}) {
		t.Errorf("in vain: %v", got)
	}
	for _, c := range []struct {
		counted map[string]int64
		same    bool
	}{
		{map[string]int64{"timeout": 1, "refused": 1, "protocol": 1, "reset": 2, "dns": 0}, true},
		{map[string]int64{"timeout": 1, "refused": 5, "protocol": 1, "reset": 2}, false},
		{map[string]int64{"timeout": 1, "refused": 1, "reset": 2}, false},
		{map[string]int64{}, false},
	} {
		if tallies(looks[3], c.counted) != c.same {
			t.Errorf("%v tallies: %v", c.counted, !c.same)
		}
	}
}
