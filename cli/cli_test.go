package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/blkmirror/blkmirror/engine"
)

// mainEnv makes the test binary behave as the program, for tests that need a process of its own.
const mainEnv = "BLKMIRROR_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		os.Exit(Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

type outcome struct {
	code           int
	stdout, stderr string
}

func call(t *testing.T, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := Main(t.Context(), args, strings.NewReader(""), &stdout, &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

func TestMisuseExitsWith2AndPointsAtHelp(t *testing.T) {
	tests := []struct{ args, says, next string }{
		{"", "no command given", "blkmirror --help"},
		{"snyc a b", `unknown command "snyc"; did you mean sync?`, "blkmirror --help"},
		{"zzzzzzzzz", `unknown command "zzzzzzzzz"`, "blkmirror --help"},
		{"--json status", "flags go behind it", "blkmirror --help"},
		{"sync", "SRC is missing", "sync --help"},
		{"sync a", "DST is missing", "sync --help"},
		{"sync a b c", `unexpected argument "c"`, "sync --help"},
		{"sync a b --jsno", "unknown flag --jsno; did you mean --json?", "sync --help"},
		{"sync -json a b", "unknown flag -json; did you mean --json?", "sync --help"},
		{"sync a b --state", "--state needs a value", "sync --help"},
		{"sync a b --state --json", "write --state=--json", "sync --help"},
		{"sync a b --state=", "needs a value that is not empty", "sync --help"},
		{"sync a b --json=maybe", "takes true or false", "sync --help"},
		{"sync a b --rate fast", `invalid value "fast" for flag --rate`, "sync --help"},
		{"sync a b --rate 0", "leave the flag away", "sync --help"},
		{"sync a b --block-size 5000", "power of two", "sync --help"},
		{"sync a b --block-size 2M", "power of two", "sync --help"},
		{"sync a b --retry soon", "--retry", "sync --help"},
		{"sync a b --retry -1s", "must not be negative", "sync --help"},
		{"sync a http://b/c", "blk://", ""},
		{"serve", "no volume given", "serve --help"},
		{"serve --volume a", "NAME=PATH", "serve --help"},
		{"serve --volume a=b --volume a=c", "given twice", "serve --help"},
		{"serve --volume a/b=c", "letters, digits", "serve --help"},
		{"serve --volume a=b --key-lifetime soon", "such as 60d", "serve --help"},
		{"serve --volume a=b --key-grace 0", "such as 60d", "serve --help"},
		{"keys", "no command given", "keys --help"},
		{"keys tell", "unknown command", "keys --help"},
		{"keys show x", "unexpected argument", "keys show --help"},
		{"keys trust", "NAME is missing", "keys trust --help"},
		{"keys trust pluto", "ID is missing", "keys trust --help"},
		{"keys trust pluto x --as both", "primary or mirror", "keys trust --help"},
		{"keys revoke", "NAME is missing", "keys revoke --help"},
		{"serve --insecure --volume a=b --export c=unix:x", "--export is given for volume c, which has no --volume c=PATH", "serve --help"},
		{"serve --insecure --volume a=b --mirror c=127.0.0.1:1", "--mirror is given for volume c", "serve --help"},
		{"serve --volume a=b --export a", "NAME=unix:PATH|tcp:ADDR", "serve --help"},
		{"serve --volume a=b --export a=/x", "unix:PATH or tcp:HOST:PORT", "serve --help"},
		{"serve --volume a=b --export a=tcp:192.0.2.1:1", "loopback only", "serve --help"},
		{"serve --volume a=b --export a=unix:x --export a=unix:y", "given twice", "serve --help"},
		{"serve --insecure --volume a=b --mirror a=192.0.2.1:1", "loopback only", ""},
		{"serve --volume a=b --mirror a=127.0.0.1", "HOST:PORT", "serve --help"},
		{"serve --volume a=b --mirror a=127.0.0.1:1 --mirror a=127.0.0.1:1", "given twice", "serve --help"},
		{"serve --volume a=b --mirror a/b=127.0.0.1:1", "letters, digits", "serve --help"},
		{"serve --volume a=b --interval a=9ms", "from 10ms to 24h", "serve --help"},
		{"serve --volume a=b --interval a=25h", "from 10ms to 24h", "serve --help"},
		{"serve --volume a=b --interval a=-1s", "from 10ms to 24h", "serve --help"},
		{"serve --volume a=b --interval 1s", "NAME=TIME", "serve --help"},
		{"serve --volume a=b --mode a=sync", "not built yet", "serve --help"},
		{"serve --volume a=b --mode a=fast", "give async", "serve --help"},
		{"serve --volume a=b --max-lag a=0", "such as 90s", "serve --help"},
		{"serve --volume a=b --block-size a=5000", "power of two", "serve --help"},
		{"serve --volume a=b --on-staging-full a=drop", "hold or bulk", "serve --help"},
		{"serve --volume a=b --on-reboot a=x", "compare or trust", "serve --help"},
		{"serve --volume a=b --verify-writes a=on", "off or readback", "serve --help"},
		{"serve --volume a=b --on-mismatch a=stop", "continue or freeze", "serve --help"},
		{"serve --volume a=b --on-mismatch freeze", "NAME=continue|freeze", "serve --help"},
		{"serve --volume a=b --role a=x", "primary or mirror", "serve --help"},
		{"serve --volume a=b --rate a/east=1M", "--rate a/east=1M: the volume has no mirror of that name", "serve --help"},
		{"serve --volume a=b --rate a/=1M", "NAME/MIRROR=BYTES", "serve --help"},
		{"serve --volume a=b --rate a/east=1K", "at least 16.0 KiB", "serve --help"},
		{"serve --volume a=b --rate a/x=1M --rate a/y=1M --rate a/x=1M", "given twice for volume a/x", "serve --help"},
		{"serve --volume a=b --staging-limit a=0", "leave it away", "serve --help"},
		{"cut", "VOLUME is missing", "cut --help"},
		{"cut a b", `unexpected argument "b"`, "cut --help"},
		{"cut a/b", "letters, digits", ""},
		{"cut a --timeout 0s", "more than 0", "cut --help"},
		{"cut a --timeout soon", "--timeout", "cut --help"},
		{"pause", "VOLUME is missing", "pause --help"},
		{"resume a --overwrite-mirror", "needs a value", "resume --help"},
		{"rebuild", "VOLUME is missing", "rebuild --help"},
		{"verify", "VOLUME is missing", "verify --help"},
		{"verify a b", `unexpected argument "b"`, "verify --help"},
		{"verify a/b", "letters, digits", ""},
		{"verify a --mirror", "needs a value", "verify --help"},
		{"verify a --rate fast", "bytes a second", "verify --help"},
		{"verify a --rate 0", "leave the flag away", "verify --help"},
		{"verify a --all", "unknown flag --all", "verify --help"},
		{"verfy a", "did you mean verify?", "blkmirror --help"},
		{"repair", "VOLUME is missing", "repair --help"},
		{"repair a b", `unexpected argument "b"`, "repair --help"},
		{"repair a/b", "letters, digits", ""},
		{"repair a --mirror=", "needs a value that is not empty", "repair --help"},
		{"repair a --rate 1M", "unknown flag --rate", "repair --help"},
		{"status --json --check", "only one of", "status --help"},
		{"status --max-lag 5s", "goes with --check", "status --help"},
		{"status --check --max-lag 0s", "more than 0", "status --help"},
		{"serve --volume a=b extra", `unexpected argument "extra"`, "serve --help"},
		{"status a b", `unexpected argument "b"`, "status --help"},
		{"inspect", "PATH is missing", "inspect --help"},
		{"completion", "is missing", "completion --help"},
		{"completion tcsh", `unknown shell "tcsh"`, "completion --help"},
		{"version now", `unexpected argument "now"`, "version --help"},
		{"bench", "no command given", "bench --help"},
		{"bench snyc", "did you mean sync?", "bench --help"},
		{"bench sync --pairs x", "--pairs", "bench sync --help"},
		{"bench sync --pairs 0", "at least 1", "bench sync --help"},
		{"bench sync --scenario delta-5k", "did you mean delta-4k?", "bench sync --help"},
		{"bench failsafe --rounds 0", "at least 1", "bench failsafe --help"},
		{"bench failsafe --size 1M", "at least", "bench failsafe --help"},
		{"bench failsafe --scenario rate", "did you mean rates?", "bench failsafe --help"},
		{"bench live --pairs 0", "at least 1", "bench live --help"},
		{"bench live --seconds 0", "at least 1", "bench live --help"},
		{"bench live --warm-up -1", "must not be negative", "bench live --help"},
		{"bench live --size 1M", "at least", "bench live --help"},
		{"bench live --size 16777217", "whole pages", "bench live --help"},
		{"bench live --scenario latencies", "did you mean latency?", "bench live --help"},
		{"quickstart --size 1", "at least", "quickstart --help"},
		{"probe", "HOST:PORT is missing", "probe --help"},
		{"probe --insecure --timeout 0s 127.0.0.1:1", "more than 0", "probe --help"},
		{"probe --insecure localhost", "is not HOST:PORT", "give HOST:PORT"},
		{"probe --insecure 192.0.2.1:7417", "loopback only", "leave --insecure away"},
		{"doctor", "HOST:PORT is missing", "doctor --help"},
		{"doctor --insecure nowhere", "is not HOST:PORT", "give HOST:PORT"},
		{"doctor --insecure --time 11s 127.0.0.1:1", "load test of 11s", "give a time from 1s to 10s"},
		{"doctor --insecure 192.0.2.1:7417", "loopback only", "leave --insecure away"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			got := call(t, strings.Fields(test.args)...)
			if got.code != exitUsage || got.stdout != "" {
				t.Errorf("exit %d with %q on standard output", got.code, got.stdout)
			}
			if !strings.Contains(got.stderr, test.says) || !strings.Contains(got.stderr, test.next) {
				t.Errorf("says %q, not %q and %q", got.stderr, test.says, test.next)
			}
			if lines := strings.Count(got.stderr, "\n"); lines != 2 {
				t.Errorf("%d lines instead of 2: %s", lines, got.stderr)
			}
		})
	}
}

func TestFlagsMayStandAnywhere(t *testing.T) {
	tests := []struct {
		args        []string
		flags, rest []string
	}{
		{[]string{"sync", "a", "b", "--json"}, []string{"--json"}, []string{"a", "b"}},
		{[]string{"sync", "--json", "a", "--state", "s", "b"}, []string{"--json", "--state=s"}, []string{"a", "b"}},
		{[]string{"sync", "--state=s", "a", "--json=false", "b"}, []string{"--state=s", "--json=false"}, []string{"a", "b"}},
		{[]string{"sync", "--json", "--", "--state", "-b"}, []string{"--json"}, []string{"--state", "-b"}},
		{[]string{"sync", "a", "--", "--json"}, nil, []string{"a", "--json"}},
		{[]string{"sync", "-", "json"}, nil, []string{"-", "json"}},
		{[]string{"sync", "--state", "a=b,c d", "help", "h"}, []string{"--state=a=b,c d"}, []string{"help", "h"}},
	}
	for _, test := range tests {
		got, err := parseArgs((&app{}).commands(), test.args)
		if err != nil {
			t.Errorf("%q: %v", test.args, err)
		}
		if diff := cmp.Diff(test.flags, got.flags) + cmp.Diff(test.rest, got.args); diff != "" {
			t.Errorf("%q: %s", test.args, diff)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range []string{"--help", "-h", "help", "sync --help", "help sync", "sync a b c d --help", "sync --nothing", "bench --help",
		"help bench sync", "bench live -h", "serve -h", "status -h", "inspect -h", "version -h", "completion -h", "quickstart -h", "cut -h", "pause -h", "resume -h", "rebuild -h",
		"verify -h", "help repair", "probe -h", "help doctor"} {
		got := call(t, strings.Fields(args)...)
		if args == "sync --nothing" {
			continue // no help, see above
		}
		if got.code != 0 || got.stderr != "" || !strings.Contains(got.stdout, "Usage:") {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

func TestExitCodes(t *testing.T) {
	of := func(kind engine.Kind) error {
		return fmt.Errorf("around: %w", &engine.Error{Kind: kind, Err: errors.New("x")})
	}
	tests := []struct {
		err  error
		code int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{of(engine.KindOther), 1},
		{of(engine.KindUsage), 2},
		{usageError{}, 2},
		{of(engine.KindNetwork), 3},
		{of(engine.KindAuth), 4},
		{of(engine.KindIntegrity), 5},
		{of(engine.KindDevice), 6},
		{of(engine.KindState), 7},
		{&attentionError{exitState}, 7},
		{&attentionError{exitNetwork}, 3},
		{&engine.Error{Kind: engine.KindNetwork, Err: context.Canceled}, 1},
		{&interruptedError{}, 1},
	}
	for _, test := range tests {
		if got := exitCode(test.err); got != test.code {
			t.Errorf("%v: exit %d instead of %d", test.err, got, test.code)
		}
	}
}

func TestErrorStyle(t *testing.T) {
	var b bytes.Buffer
	printError(&b, &engine.Error{Op: "open target", On: "/x", Err: errors.New("it is mounted"), Next: "unmount it"})
	if want := "blkmirror: open target /x: it is mounted\n  next: unmount it\n"; b.String() != want {
		t.Errorf("printed %q instead of %q", b.String(), want)
	}
}

// writeImage makes a small disk with something in it.
func writeImage(t *testing.T, path string, size int) {
	t.Helper()
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	clear(content[:size/4])
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSyncPrintsOneJSONObjectAlone(t *testing.T) {
	dir := t.TempDir()
	source, target := filepath.Join(dir, "a b"), filepath.Join(dir, "c,d")
	writeImage(t, source, 1<<20)
	got := call(t, "sync", source, "--json", target, "--state", filepath.Join(dir, "state"))
	if got.code != 0 {
		t.Fatalf("%+v", got)
	}
	var report map[string]any
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
		t.Fatalf("%v: %s", err, got.stdout)
	}
	for _, key := range []string{"source", "target", "size", "scanned_bytes", "shipped_bytes", "wire_bytes", "skipped_bytes",
		"zero_bytes", "resumed_bytes", "retried_blocks", "seconds"} {
		if _, ok := report[key]; !ok {
			t.Errorf("%s is missing in %s", key, got.stdout)
		}
	}
	if _, ok := report["error"]; ok || report["size"] != float64(1<<20) {
		t.Errorf("report %s", got.stdout)
	}
	want, _ := os.ReadFile(source)
	if have, err := os.ReadFile(target); err != nil || !bytes.Equal(want, have) {
		t.Errorf("target differs: %v", err)
	}
	human := call(t, "sync", source, target, "--state", filepath.Join(dir, "state"))
	if human.code != 0 || human.stderr != "" || !strings.HasPrefix(human.stdout, "synced 1.00 MiB") {
		t.Errorf("%+v", human)
	}
}

func TestSyncThatCannotOpenPrintsNothingOnStdout(t *testing.T) {
	dir := t.TempDir()
	got := call(t, "sync", "--json", filepath.Join(dir, "missing"), filepath.Join(dir, "b"), "--state", dir)
	if got.code != exitDevice || got.stdout != "" || !strings.Contains(got.stderr, "missing") {
		t.Errorf("%+v", got)
	}
}

func TestReportWithError(t *testing.T) {
	var b bytes.Buffer
	a := &app{stdout: &output{w: &b}}
	a.printReport(engine.Report{Size: 5}, errors.New("a <b> & c"))
	if !strings.Contains(b.String(), `"error":"a <b> & c"`) || strings.Count(b.String(), "\n") != 1 {
		t.Errorf("printed %s", b.String())
	}
}

func TestInterruptedSyncTellsHowFarItCame(t *testing.T) {
	o := engine.SyncOptions{Source: engine.Endpoint{Path: "a"}, Target: engine.Endpoint{Path: "b"}}
	var p engine.Progress
	p.Size.Store(4 << 20)
	p.Scanned.Store(1 << 20)
	p.Resumed.Store(1 << 20)
	var b bytes.Buffer
	printError(&b, interruptedSync(o, &p))
	want := "blkmirror: sync a to b: interrupted at 2.00 MiB of 4.00 MiB (50.0 %)\n  next: run the same command again: it goes on from there\n"
	if b.String() != want {
		t.Errorf("printed %q", b.String())
	}
}

func TestStdoutThatCannotBeWrittenIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	if code := Main(t.Context(), []string{"version"}, strings.NewReader(""), full, &bytes.Buffer{}); code != exitOther {
		t.Errorf("exit %d", code)
	}
}

func TestStatusWithoutDaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "no.sock")
	t.Setenv(controlEnv, socket)
	got := call(t, "status")
	if got.code != exitNetwork || !strings.Contains(got.stderr, socket) || !strings.Contains(got.stderr, "next:") {
		t.Errorf("%+v", got)
	}
}

// program starts this test binary as blkmirror.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), mainEnv+"=1")
	return cmd
}

func TestServeStatusSyncAndSIGTERM(t *testing.T) {
	dir := t.TempDir()
	source, target, control := filepath.Join(dir, "src"), filepath.Join(dir, "dst"), filepath.Join(dir, "c.sock")
	writeImage(t, source, 1<<20)
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("insecure = true\nlisten = '127.0.0.1:0'\ncontrol = '%s'\nstate = '%s'\n[volume.backup]\npath = '%s'\n",
		control, filepath.Join(dir, "node"), target)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	node := program(t, "serve", "--config", config)
	var log bytes.Buffer
	node.Stderr = &log
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- node.Wait() }()
	var status engine.Status
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if status, err = engine.FetchStatus(t.Context(), control); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	address := "blk://" + status.Listen + "/backup"
	if got := call(t, "sync", "--insecure", source, address, "--state", filepath.Join(dir, "state")); got.code != 0 {
		t.Errorf("%+v", got)
	}
	if got := call(t, "status", "backup", "--control", control); got.code != 0 || !strings.Contains(got.stdout, target) {
		t.Errorf("%+v", got)
	}
	if got := call(t, "status", "--json", "--control", control); !json.Valid([]byte(got.stdout)) {
		t.Errorf("%+v", got)
	}
	if got := call(t, "status", "nothing", "--control", control); got.code != exitState || !strings.Contains(got.stderr, "nothing") {
		t.Errorf("%+v", got)
	}
	node.Process.Signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, log.String())
	}
	want, _ := os.ReadFile(source)
	if have, err := os.ReadFile(target); err != nil || !bytes.Equal(want, have) {
		t.Errorf("target differs: %v", err)
	}
}
