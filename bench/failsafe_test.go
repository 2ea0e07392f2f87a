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

func TestRunFailsafeSmall(t *testing.T) {
	t.Setenv(mainEnv, "1")
	t.Setenv("TMPDIR", t.TempDir())
	dir, mirrorDir := t.TempDir(), t.TempDir()
	o := bench.FailsafeOptions{Binary: os.Args[0], Dir: dir, MirrorDir: mirrorDir, Size: 16 << 20, Rounds: 1, Seconds: 1, Tell: func(text string) { t.Log(text) }}
	result, err := bench.RunFailsafe(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Scenarios) != len(bench.FailsafeScenarioNames()) {
		t.Fatalf("%d scenarios", len(result.Scenarios))
	}
	for _, s := range result.Scenarios {
		if _, err := exec.LookPath("fio"); err != nil && s.Name == "latency" {
			continue
		}
		if len(s.Goals) == 0 || s.Skipped != "" {
			t.Errorf("%+v", s)
		}
		for _, r := range s.Rows {
			if len(r.Values) == 0 || r.Median < 0 || r.Median == 0 && !strings.Contains(r.Name, "memory") && !strings.Contains(r.Name, "CPU") {
				t.Errorf("%s: %+v", s.Name, r)
			}
		}
	}
	var table bytes.Buffer
	result.Print(&table)
	for _, text := range []string{"rates: verify and scrub", "scrub of the mirror", "goal at least", "KiB"} {
		if !strings.Contains(table.String(), text) {
			t.Errorf("%q is missing in\n%s", text, table.String())
		}
	}
	for _, folder := range []string{dir, mirrorDir, os.TempDir()} {
		if left, _ := filepath.Glob(filepath.Join(folder, "blkmirror*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if _, err := bench.RunFailsafe(t.Context(), bench.FailsafeOptions{Dir: dir, Scenarios: []string{"x"}}); err == nil {
		t.Error("a scenario that is not there")
	}
}
