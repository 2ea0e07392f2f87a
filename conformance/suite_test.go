package conformance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const published = "../scripts/conformance/"

// judge runs published scenarios, by the beginnings of their names.
func judge(t *testing.T, adapter string, names ...string) []Result {
	t.Helper()
	path, err := filepath.Abs(adapter)
	if err != nil {
		t.Fatal(err)
	}
	all, err := Load(published + "scenarios")
	if err != nil {
		t.Fatal(err)
	}
	u := &Suite{Adapter: path, Seed: uint64(time.Now().UnixNano()), Dir: t.TempDir()}
	t.Logf("seed %d", u.Seed)
	var out []Result
	for _, s := range all {
		for _, name := range names {
			if !strings.HasPrefix(filepath.Base(s.Path), name) {
				continue
			}
			res, err := u.Run(context.Background(), s)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %s, line %d: %s: %s", s.Path, res.Outcome, res.Line, res.Step, res.Reason)
			out = append(out, res)
		}
	}
	left, err := os.ReadDir(u.Dir)
	if err != nil || len(left) > 0 || len(out) != len(names) {
		t.Errorf("%d of %d scenarios; left behind: %v, %v", len(out), len(names), left, err)
	}
	return out
}

func TestBlkmirrorPasses(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	bin := filepath.Join(t.TempDir(), "blkmirror")
	if out, err := exec.Command("go", "build", "-o", bin, "../cli/blkmirror").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Setenv("BLKMIRROR", bin)
	for _, res := range judge(t, published+"adapters/blkmirror", "03", "11", "14") {
		if res.Outcome != Passed {
			t.Errorf("%s: %s", res.Name, res.Outcome)
		}
	}
}

func TestRsyncFails(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	if _, err := exec.LookPath("rsync"); err != nil {
		t.Skip("rsync is not installed")
	}
	res := judge(t, published+"adapters/rsync", "03", "19")
	if res[0].Outcome != Failed || !strings.Contains(res[0].Reason, "the volume never was like this") {
		t.Errorf("%s: %s: %s", res[0].Name, res[0].Outcome, res[0].Reason)
	}
	if res[1].Outcome != NotApplicable {
		t.Errorf("%s: %s: %s", res[1].Name, res[1].Outcome, res[1].Reason)
	}
}

// still is the adapter of a tool whose mirror is the primary's image: it is always equal, and recovers at once.
const still = `#!/bin/sh
case $1 in
capabilities) echo $CAN ;;
serve) trap 'exit 0' TERM; while :; do sleep 0.05; done ;;
export | look) echo "$CONFORMANCE_PRIMARY_IMAGE" ;;
status) echo "$STATE" ;;
esac
`

func TestRunner(t *testing.T) {
	adapter := filepath.Join(t.TempDir(), "adapter")
	if err := os.WriteFile(adapter, []byte(still), 0o755); err != nil {
		t.Fatal(err)
	}
	const head = "name: x\nsize: 4MiB\nlimit: 1s\n"
	const up = "start primary\nstart mirror\n"
	cases := []struct {
		name, text, can string
		outcome         Outcome
		line            int
		reason          string
	}{
		{"passes", head + up + "write 50 requests\nkill mirror\nexpect mirror is-a-cut and equal\nexpect primary complete\n", "", Passed, 0, ""},
		{"lacks what it needs", "needs: status\n" + head + "expect status mirror away\n", "", NotApplicable, 0, `"status"`},
		{"lacks what is optional", "optional: status\n" + head + "expect status mirror away\n", "", NotApplicable, 0, "line 5: expect status mirror away"},
		{"fails, and lacks", "optional: status\n" + head + "expect status mirror away\nkill mirror\n", "", Failed, 6, "does not run"},
		{"state", "needs: status\n" + head + "expect status mirror holding or paused\n", "status", Passed, 0, ""},
		{"other state", "needs: status\n" + head + "wait status mirror away or behind\n", "status", Failed, 5, `waited 1s: not yet: the state of the mirror is "paused", not away or behind`},
		{"unknown state", "needs: status\n" + head + "expect status mirror away\n", "status odd", Failed, 5, `"odd" is no state`},
		{"repeated", head + up + "write 5 requests\nrepeat 3 times\nkill mirror\nend\nexpect mirror equal\n", "", Failed, 8, "mirror does not run"},
		{"foreign", head + up + "write 50 requests\nstop mirror\nwrite in background\nexpect mirror equal\n", "", Failed, 9, "does not rest"},
		{"put back", head + up + "write 50 requests\nstop primary\nsnapshot primary\nstart primary\nwrite 50 requests\nstop primary\n" +
			"expect mirror is-a-cut\nput back primary\nstart primary\nwrite 9 requests\nexpect mirror is-a-cut and equal\nexpect primary complete\n", "", Passed, 0, ""},
		{"no snapshot", head + "put back mirror\n", "", Failed, 4, "no snapshot"},
		{"too much", head + "expect link carried less than 1KiB\nremember mirror\nexpect mirror unchanged\n" + up + "write 9 requests\nexpect mirror unchanged\n", "", Failed, 10, "not what it was"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(c.text, "expect") {
				c.text += "expect primary complete\n"
			}
			s, err := Parse("f", c.text)
			if err != nil {
				t.Fatal(err)
			}
			can, state, _ := strings.Cut(c.can, " ")
			if state == "" {
				state = "paused"
			}
			t.Setenv("CAN", can)
			t.Setenv("STATE", state)
			u := &Suite{Adapter: adapter, Seed: 1, Dir: t.TempDir()}
			res, err := u.Run(context.Background(), s)
			if err != nil {
				t.Fatal(err)
			}
			if res.Outcome != c.outcome || res.Line != c.line || !strings.Contains(res.Reason, c.reason) {
				t.Errorf("%s, line %d: %s; want %s, line %d: %s", res.Outcome, res.Line, res.Reason, c.outcome, c.line, c.reason)
			}
		})
	}
}

// What a process leaves behind ends with it, and an adapter that hangs ends with the run.
func TestGroupsEnd(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\ncase $1 in\nserve) sleep 1000 & echo $! >" + dir + "/child; exit 0 ;;\nready) sleep 1000 ;;\nesac\n"
	adapter := filepath.Join(dir, "adapter")
	if err := os.WriteFile(adapter, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Parse("f", "name: x\nsize: 1MiB\nlaunch mirror\nwait 300ms\nstart primary\nexpect primary complete\n")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	u := &Suite{Adapter: adapter, Dir: t.TempDir()}
	if _, err := u.Run(ctx, s); err == nil {
		t.Error("no error though the run was ended")
	}
	child, err := os.ReadFile(filepath.Join(dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/stat")
	if err == nil && !strings.Contains(string(state), ") Z ") {
		t.Errorf("it lives: %s", state)
	}
}
