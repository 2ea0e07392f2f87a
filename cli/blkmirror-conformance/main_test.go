package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cli runs one command line.
func cli(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = Main(context.Background(), args, &out, &err)
	return code, out.String(), err.String()
}

func TestUsage(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.scenario")
	if err := os.WriteFile(bad, []byte("name: x\ndance\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const scenarios = "../../scripts/conformance/scenarios"
	for _, c := range []struct {
		line string
		code int
		says string
	}{
		{"", 2, "no command"},
		{"dance", 2, "unknown command"},
		{"run", 2, "0 arguments"},
		{"run --speed 7 x", 2, "-speed"},
		{"run " + bad, 2, bad + ":2:1: "},
		{"list " + bad, 2, "docs/CONFORMANCE.md"},
		{"run --adapter nobody " + scenarios, 2, "nobody"},
		{"run --adapter ./main.go " + scenarios, 2, "not executable"},
		{"list /nowhere", 1, "/nowhere"},
		{"check-image x", 2, "--history"},
		{"check-image --history /nowhere x", 1, "/nowhere"},
		{"write --to ftp://x --history x", 2, "nbd+unix"},
		{"write --to /nowhere --history x", 1, "/nowhere"},
		{"write", 2, "--to"},
	} {
		code, _, stderr := cli(t, strings.Fields(c.line)...)
		if code != c.code || !strings.Contains(stderr, c.says) {
			t.Errorf("%q: exit code %d, want %d: %s", c.line, code, c.code, stderr)
		}
	}
	if code, out, _ := cli(t, "run", "--help"); code != 0 || !strings.Contains(out, "-seed") {
		t.Errorf("help: %d, %s", code, out)
	}
	if code, out, stderr := cli(t, "list", scenarios, "--json"); code != 0 || !json.Valid([]byte(out)) {
		t.Errorf("list: %d, %s%s", code, out, stderr)
	}
}

// images of a disk that was written to in three parts, one request at a time: with the same seed they are the same,
// whatever the scheduler does.
type images struct {
	dir, history  string
	first, second []byte // after the first part, and after the second
}

func written(t *testing.T) images {
	t.Helper()
	dir := t.TempDir()
	m := images{dir: dir, history: filepath.Join(dir, "history")}
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 2<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	part := func(extra ...string) []byte {
		args := append([]string{"write", "--to", disk, "--history", m.history, "--seed", "5", "--writes", "300", "--depth", "1"}, extra...)
		if code, out, stderr := cli(t, args...); code != 0 {
			t.Fatalf("write: %d: %s%s", code, out, stderr)
		}
		b, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	m.first = part()
	m.second = part("--continue", "--seed", "6")
	part("--continue", "--seed", "7")
	return m
}

func TestCheckImage(t *testing.T) {
	m := written(t)
	mixed := append(bytes.Clone(m.second[:1<<20]), m.first[1<<20:]...)
	torn, lost := bytes.Clone(m.second), bytes.Clone(m.second)
	for at := 0; ; at += 4096 {
		if !bytes.Equal(m.first[at:at+4096], m.second[at:at+4096]) {
			copy(torn[at:at+2048], m.first[at:]) // half a page
			torn[at+100] ^= 1
			copy(lost[at:at+4096], m.first[at:]) // a page that was not taken along
			break
		}
	}
	for _, c := range []struct {
		name  string
		image []byte
		flags string
		code  int
		says  string
	}{
		{"a cut", m.second, "", 0, "a cut: the volume as it was between"},
		{"an older cut", m.first, "", 0, "a cut"},
		{"what was flushed is missing", m.first, "--not-older-than flushed", 5, "too old"},
		{"what was answered is missing", m.first, "--not-older-than 900", 5, "must not be older"},
		{"not older than that", m.first, "--not-older-than 100", 0, "a cut"},
		{"no such instant", m.first, "--not-older-than 99999", 2, "instants 0 to"},
		{"mixed", mixed, "", 5, "a mix of two times"},
		{"torn", torn, "", 5, "what was never written there, whole"},
		{"a lost write", lost, "", 5, "a mix of two times"},
		{"a disk, mixed but new enough", mixed, "--disk --not-older-than 100", 0, "no cut"},
		{"a disk that lost something", lost, "--disk --not-older-than 1000", 5, "too old"},
		{"each write", m.second, "--list", 0, "missing  seq"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(image, c.image, 0o644); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"check-image", "--history", m.history, image}, strings.Fields(c.flags)...)
			code, out, stderr := cli(t, args...)
			if code != c.code || !strings.Contains(out+stderr, c.says) {
				t.Errorf("exit code %d, want %d with %q: %.2000s%s", code, c.code, c.says, out, stderr)
			}
			code, out, _ = cli(t, append(args, "--json")...)
			var v verdict
			if code != 2 && (json.Unmarshal([]byte(out), &v) != nil || v.Pages != 512 || v.There+v.Missing+v.Torn == 0) {
				t.Errorf("--json: %s", out)
			}
		})
	}
}
