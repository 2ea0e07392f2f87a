package cli

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/engine"
)

func TestParseSize(t *testing.T) {
	tests := []struct {
		text string
		want int64 // -1: refused
	}{
		{"0", 0}, {"4096", 4096}, {"64K", 64 << 10}, {"64k", 64 << 10}, {"64KiB", 64 << 10}, {"64KB", 64000}, {"1.5G", 3 << 29},
		{"2TiB", 2 << 40}, {"7B", 7}, {"10 MiB", 10 << 20},
		{"", -1}, {"K", -1}, {"1X", -1}, {"-1", -1}, {"1e3", -1}, {"0x10", -1}, {"1.5", -1}, {"1KK", -1}, {"1iB", -1}, {"99999999T", -1},
		{"NaN", -1}, {"Inf", -1}, {"1,5G", -1},
	}
	for _, test := range tests {
		got, err := parseSize(test.text)
		if err != nil {
			got = -1
		}
		if got != test.want {
			t.Errorf("%q: %d instead of %d", test.text, got, test.want)
		}
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]int64{"100M": 100 << 20, "20MiB/s": 20 << 20, "1/s": 1} {
		var r rate
		if err := r.Set(text); err != nil || int64(r.size) != want {
			t.Errorf("%q: %d, %v", text, r.size, err)
		}
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 10 << 20: "10.0 MiB", 1<<30 - 1: "1.00 GiB",
		100 << 30: "100 GiB", 1 << 62: "4096 PiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d: %s instead of %s", n, got, want)
		}
	}
	if got := percent(9999999, 10000000); got != "99.9 %" {
		t.Errorf("nearly all is told as %s", got)
	}
	s := size(4 << 30)
	if s.String() != "4G" {
		t.Errorf("4 GiB as a default is shown as %s", s.String())
	}
}

func TestStateDir(t *testing.T) {
	if got, err := stateDir("/given"); got != "/given" || err != nil {
		t.Error(got, err)
	}
	if os.Geteuid() == 0 {
		if got, err := stateDir(""); got != "/var/lib/blkmirror" || err != nil {
			t.Error(got, err)
		}
		return
	}
	t.Setenv("XDG_STATE_HOME", "/xdg")
	if got, err := stateDir(""); got != "/xdg/blkmirror" || err != nil {
		t.Error(got, err)
	}
}

func TestProgressLines(t *testing.T) {
	var p engine.Progress
	p.Size.Store(100 << 20)
	p.Resumed.Store(50 << 20)
	m := &meter{samples: []sample{{at: time.Unix(0, 0)}}}
	p.Scanned.Store(10 << 20)
	p.Shipped.Store(4 << 20)
	m.add(time.Unix(5, 0), p.Scanned.Load())
	if got, want := m.describe(syncFigures(&p)), "2.00 MiB/s, ETA 20s, shipped 4.00 MiB, skipped 0 B, zero 0 B"; got != want {
		t.Errorf("%q instead of %q", got, want)
	}
	if f := syncFigures(&p); f.done != 60<<20 {
		t.Errorf("done %d", f.done)
	}
	ticks, lines := make(chan time.Time), make(chan string)
	v := &progressView{end: make(chan struct{})}
	v.ended.Go(func() {
		v.showLines(writerFunc(func(b []byte) { lines <- string(b) }), func() figures { return syncFigures(&p) }, ticks)
	})
	ticks <- time.Now()
	if line := <-lines; !strings.HasPrefix(line, "blkmirror: 60.0 % of 100 MiB, ") {
		t.Errorf("line %q", line)
	}
	v.stop()
}

type writerFunc func(b []byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }
