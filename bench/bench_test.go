package bench_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/bench"
	"github.com/blkmirror/blkmirror/cli"
)

// mainEnv makes the test binary behave as blkmirror, which the harness starts.
const mainEnv = "BLKMIRROR_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestRunAllScenariosSmall(t *testing.T) {
	t.Setenv(mainEnv, "1")
	dir := t.TempDir()
	profiles := filepath.Join(dir, "profiles")
	var said []string
	result, err := bench.Run(t.Context(), bench.Options{Binary: os.Args[0], Dir: dir, Size: 4 << 20, Pairs: 2, WarmCaches: true, ProfileDir: profiles,
		Scenarios: []string{"tcp-sparse", "tcp-tls", "delta-4k"},
		Tell:      func(text string) { said = append(said, text) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Scenarios) != 3 || len(said) == 0 {
		t.Fatalf("%d scenarios, %d messages", len(result.Scenarios), len(said))
	}
	for _, s := range result.Scenarios {
		for _, c := range s.Contenders {
			if len(c.Runs) != 2 || !c.Runs[0].Compared || c.Runs[1].Compared || c.Median <= 0 || c.CPUSeconds <= 0 || c.PeakClient <= 0 {
				t.Errorf("%s, %s: %+v", s.Name, c.Name, c)
			}
			ours, server := strings.HasPrefix(c.Name, "blkmirror"), strings.Contains(s.Name, "tcp")
			if ours && (c.PeakServer > 0) != server {
				t.Errorf("%s, %s: server took %d", s.Name, c.Name, c.PeakServer)
			}
			if ours && c.Runs[0].Report == nil {
				t.Errorf("%s, %s: no report", s.Name, c.Name)
			}
		}
	}
	var table bytes.Buffer
	result.Print(&table)
	for _, text := range []string{"delta-4k: re-sync file to file", "blkmirror, TLS is ", "goal 0.80: "} {
		if !strings.Contains(table.String(), text) {
			t.Errorf("%q is missing in\n%s", text, table.String())
		}
	}
	if found, _ := filepath.Glob(filepath.Join(profiles, "*.pprof")); len(found) == 0 {
		t.Error("no profiles")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "blkmirror-bench-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]bench.Options{
		"unknown scenario": {Scenarios: []string{"x"}},
		"no device":        {TargetDevice: file},
		"missing device":   {SourceDevice: filepath.Join(dir, "none")},
	} {
		o.Dir, o.Size, o.Pairs = dir, 1<<20, 1
		if _, err := bench.Run(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if got, _ := os.ReadFile(file); len(got) != 1<<20 {
		t.Error("the file was changed")
	}
}

func TestImages(t *testing.T) {
	dir := t.TempDir()
	const size = 8 << 20
	content := func(c bench.Content, seed uint64) []byte {
		path := filepath.Join(dir, "image")
		if err := bench.WriteImage(t.Context(), path, size, c, seed); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) != size {
			t.Fatal(len(b), err)
		}
		return b
	}
	for _, c := range []bench.Content{bench.Random, bench.Text, bench.Sparse, bench.Mixed} {
		if !bytes.Equal(content(c, 1), content(c, 1)) {
			t.Errorf("content %d: one seed gave two images", c)
		}
	}
	before := content(bench.Random, 3)
	path := filepath.Join(dir, "image")
	if err := bench.Change(t.Context(), path, size, 4096, 0.01, 5); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(path)
	changed := 0
	for at := 0; at < size; at += 4096 {
		if !bytes.Equal(before[at:at+4096], after[at:at+4096]) {
			changed++
		}
	}
	if changed != size/4096/100 {
		t.Errorf("%d pages changed", changed)
	}
}
