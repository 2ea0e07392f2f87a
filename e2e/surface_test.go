package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDryRun(t *testing.T) {
	t.Parallel()
	p := newPair(t, 6*mib)
	s := serve(t, p.state+"2", "v="+p.dst)
	first := p.sync(t, "--dry-run", p.src, p.dst).ok(t).report(t)
	absent(t, p.dst)
	over := syncJSON(t, "--dry-run", "--insecure", p.src, s.url("v"))
	absent(t, p.dst)
	if first.Shipped != 6*mib || over.Shipped != 6*mib {
		t.Errorf("would ship %d, over TCP %d, want all", first.Shipped, over.Shipped)
	}
	p.completes(t)
	put(t, p.src, 3*mib, []byte("changed"))
	put(t, p.src, 5*mib, zeroes[:])
	check := unchanged(t, p.dst)
	data, zero := changes(t, p.src, p.dst)
	for name, args := range map[string][]string{"path": {p.src, p.dst}, "TCP": {"--insecure", p.src, s.url("v")}} {
		rep := p.sync(t, append(args, "--dry-run")...).ok(t).report(t)
		check()
		if rep.Shipped != data || zero != block {
			t.Errorf("%s: would ship %d, changed are %d and %d zero", name, rep.Shipped, data, zero)
		}
	}
	p.completes(t)
}

// Every block size, and each way of working, ends with equal copies and ships what changed.
func TestWaysOfSyncing(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{
		{"--verify"}, {"--no-compress"}, {"--trust-index"}, {"--block-size", "4K"}, {"--block-size", "1M"},
		{"--verify", "--trust-index", "--block-size", "16K"},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			p := newPair(t, 5*mib+512) // the last block is short
			put(t, p.src, mib, make([]byte, mib))
			put(t, p.src, 2*mib, []byte(strings.Repeat("packs well ", 40000)))
			s := serve(t, p.state+"2", "v="+p.dst+"2")
			dsts := []struct {
				path string
				args []string
			}{{p.dst, []string{p.src, p.dst}}, {p.dst + "2", []string{"--insecure", p.src, s.url("v")}}}
			for _, to := range dsts {
				p.sync(t, append(to.args, flags...)...).ok(t)
				equal(t, p.src, to.path)
			}
			put(t, p.src, 4*mib+5, []byte("changed"))
			put(t, p.src, 5*mib+100, []byte("changed"))
			for _, to := range dsts {
				rep := p.sync(t, append(to.args, flags...)...).ok(t).report(t)
				equal(t, p.src, to.path)
				if most := int64(mib + 512); rep.Shipped == 0 || rep.Shipped > most {
					t.Errorf("shipped %d, want at most %d", rep.Shipped, most)
				}
			}
		})
	}
}

// --trust-index skips without reading, and is not fooled where somebody wrote to the target.
func TestTrustIndexIsNotFooled(t *testing.T) {
	t.Parallel()
	p := newPair(t, 8*mib)
	p.completes(t)
	put(t, p.dst, 2*mib, []byte("somebody was here"))
	rep := p.sync(t, "--trust-index", p.src, p.dst).ok(t).report(t)
	equal(t, p.src, p.dst)
	if rep.Shipped != block {
		t.Errorf("shipped %d, want %d", rep.Shipped, block)
	}
}

func TestStatusAndInspect(t *testing.T) {
	t.Parallel()
	p := newPair(t, 8*mib)
	s := serve(t, p.state, "v="+p.dst, "w="+p.src)
	st := s.status()
	if len(st.Volumes) != 2 || st.Volumes[0].State != "missing" || st.Volumes[1].State != "ok" || st.Volumes[1].Size != 8*mib {
		t.Errorf("status: %+v", st)
	}
	mustRun(t, "status", "--control", s.control)
	mustRun(t, "status", "--state", p.state, "v")
	mustRun(t, "sync", "--insecure", p.src, s.url("v"))
	dirs, _ := filepath.Glob(filepath.Join(p.state, "sync", "*"))
	if len(dirs) != 1 {
		t.Fatalf("sync folders: %v", dirs)
	}
	if r := mustRun(t, "inspect", dirs[0]); !strings.Contains(r.stdout, "complete true") || !strings.Contains(r.stdout, fmt.Sprint(8*mib)) {
		t.Errorf("inspect: %s", r.stdout)
	}
	blkmirror(t, "inspect", p.src).fails(t, 6, p.src)
	blkmirror(t, "inspect", filepath.Join(p.dir, "none")).fails(t, 6)
}

// Without a primary there is nobody who could compare and repair.
func TestVerifyAndRepairTakeAPrimary(t *testing.T) {
	t.Parallel()
	p := newPair(t, mib)
	s := serve(t, p.state, "v="+p.dst)
	for _, command := range []string{"verify", "repair"} {
		for _, flags := range [][]string{nil, {"--json"}, {"--mirror", "127.0.0.1:7418"}} {
			r := blkmirror(t, append([]string{command, "v", "--control", s.control}, flags...)...).fails(t, 7, "no primary")
			if r.stdout != "" {
				t.Errorf("stdout: %s", r.stdout)
			}
		}
		blkmirror(t, command, "w", "--control", s.control).fails(t, 7, "w")
	}
}

func TestQuickstart(t *testing.T) {
	before, err := filepath.Glob(filepath.Join(os.TempDir(), "blkmirror*"))
	if err != nil {
		t.Fatal(err)
	}
	r := mustRun(t, "quickstart", "--size", "64M")
	t.Logf("%s", r.stdout)
	if after, _ := filepath.Glob(filepath.Join(os.TempDir(), "blkmirror*")); len(after) > len(before) {
		t.Errorf("left behind: %v", after)
	}
	dir := filepath.Join(folder(t), "kept")
	mustRun(t, "quickstart", "--size", "32M", "--keep", dir)
	equal(t, filepath.Join(dir, "disk.img"), filepath.Join(dir, "copy.img"))
}

func TestQuickstartWithoutRoot(t *testing.T) {
	t.Parallel()
	home := filepath.Join(folder(t), "home")
	line := append(nobody(t, home), "quickstart", "--size", "64M")
	env := []string{"HOME=" + home, "XDG_STATE_HOME=" + filepath.Join(home, "state"), "TMPDIR=" + home}
	launch(t, env, line...).wait().ok(t)
	if left, _ := filepath.Glob(filepath.Join(home, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBashCompletion(t *testing.T) {
	t.Parallel()
	need(t, "bash")
	script := `source <("$1" completion bash)
complete -p blkmirror >/dev/null || exit 9
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _blkmirror; echo "${COMPREPLY[*]}"; }
try blkmirror sy
try blkmirror sync --dry
try blkmirror completion b`
	got := tool(t, "bash", "--norc", "-c", script, "bash", plain)
	if got != "sync\n--dry-run\nbash" {
		t.Errorf("completed to %q", got)
	}
}

func TestVersionAndHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"version"}, {"--version"}, {"help"}, {"--help"}, {"sync", "--help"}, {"help", "serve"}, {"verify", "--help"}, {"help", "repair"}} {
		if r := mustRun(t, args...); r.stdout == "" || r.stderr != "" {
			t.Errorf("%q: stdout %q, stderr %q", args, r.stdout, r.stderr)
		}
	}
}
