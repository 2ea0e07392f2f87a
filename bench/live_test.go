package bench_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/bench"
)

func TestRunLiveSmall(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio is not installed")
	}
	t.Setenv(mainEnv, "1")
	t.Setenv("TMPDIR", t.TempDir())
	dir := t.TempDir()
	result, err := bench.RunLive(t.Context(), bench.LiveOptions{Binary: os.Args[0], Dir: dir, Size: 16 << 20, Seconds: 1, Pairs: 1,
		Scenarios: []string{"randwrite-d32", "latency", "hot-set", "first-copy"}, Tell: func(text string) { t.Log(text) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Scenarios) != 4 {
		t.Fatalf("%d scenarios", len(result.Scenarios))
	}
	for _, s := range result.Scenarios {
		if s.Name == "first-copy" {
			if len(s.Goals) != 1 || len(s.Contenders) != 2 || s.Contenders[0].Median <= 0 || !s.Contenders[0].Runs[0].Compared {
				t.Errorf("%+v", s)
			}
			continue
		}
		for _, c := range s.Contenders {
			if len(c.Runs) != 1 || c.Median <= 0 || c.P99 <= 0 || c.CPU <= 0 || c.Peak <= 0 {
				t.Errorf("%s, %s: %+v", s.Name, c.Name, c)
			}
			if mirrored := strings.Contains(c.Name, "+ mirror"); mirrored != (c.Mirror > 0) || mirrored && (!c.Runs[0].Compared ||
				c.Runs[0].Lag.WrittenBytes == 0 || c.Runs[0].Lag.ShippedBytes == 0) {
				t.Errorf("%s, %s: mirror: %+v, %+v", s.Name, c.Name, c, c.Runs[0].Lag)
			}
		}
		if s.Name == "latency" && (s.Rate == 0 || len(s.Goals) != 1) {
			t.Errorf("%+v", s)
		}
	}
	var table bytes.Buffer
	result.Print(&table)
	for _, text := range []string{"randwrite-d32: 4 KiB random writes", "goal", "lag in the third quarter", "shipped", "first copy, TLS: "} {
		if !strings.Contains(table.String(), text) {
			t.Errorf("%q is missing in\n%s", text, table.String())
		}
	}
	for _, folder := range []string{dir, os.TempDir()} {
		if left, _ := filepath.Glob(filepath.Join(folder, "blkmirror*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if _, err := bench.RunLive(t.Context(), bench.LiveOptions{Dir: dir, Scenarios: []string{"x"}}); err == nil {
		t.Error("a scenario that is not there")
	}
}
