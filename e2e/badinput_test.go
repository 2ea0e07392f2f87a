package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// pair is a source and the place of a target, with a state directory.
type pair struct {
	dir, src, dst, state string
}

func newPair(t testing.TB, size int64) pair {
	t.Helper()
	dir := folder(t)
	p := pair{dir: dir, src: filepath.Join(dir, "src"), dst: filepath.Join(dir, "dst"), state: filepath.Join(dir, "state")}
	randomImage(t, p.src, size)
	return p
}

// sync runs a sync with the pair's state directory.
func (p pair) sync(t testing.TB, args ...string) result {
	t.Helper()
	return blkmirror(t, append([]string{"sync", "--json", "--state", p.state}, args...)...)
}

// completes is how each of these tests ends: the next sync makes the target equal.
func (p pair) completes(t testing.TB) {
	t.Helper()
	p.sync(t, p.src, p.dst).ok(t)
	equal(t, p.src, p.dst)
}

func TestSourceThatCannotBeRead(t *testing.T) {
	t.Parallel()
	p := newPair(t, 3*mib)
	write(t, filepath.Join(p.dir, "empty"), nil)
	os.Symlink("nowhere", filepath.Join(p.dir, "dangling"))
	for name, src := range map[string]string{
		"missing": filepath.Join(p.dir, "nothing"), "directory": p.dir, "character device": "/dev/zero",
		"dangling link": filepath.Join(p.dir, "dangling"), "path below a file": filepath.Join(p.src, "x"),
		"empty": filepath.Join(p.dir, "empty"),
	} {
		t.Run(name, func(t *testing.T) {
			p.sync(t, src, p.dst).fails(t, 6, src)
			absent(t, p.dst)
		})
	}
	p.completes(t)
}

func TestUnreadableByThisUser(t *testing.T) {
	t.Parallel()
	p := newPair(t, 3*mib)
	as := nobody(t, p.state)
	if err := os.Chmod(p.src, 0); err != nil {
		t.Fatal(err)
	}
	line := append(as, "sync", "--state", p.state, p.src, filepath.Join(p.state, "dst"))
	launch(t, nil, line...).wait().fails(t, 6, p.src, "permission denied")
	absent(t, filepath.Join(p.state, "dst"))

	if err := os.Chmod(p.src, 0o644); err != nil {
		t.Fatal(err)
	}
	launch(t, nil, append(as, "sync", "--state", p.state, p.src, p.dst)...).wait().fails(t, 6, p.dst, "permission denied")
	absent(t, p.dst)
	launch(t, nil, line...).wait().ok(t)
	equal(t, p.src, filepath.Join(p.state, "dst"))
}

func TestTargetThatCannotBe(t *testing.T) {
	t.Parallel()
	p := newPair(t, 3*mib)
	check := unchanged(t, p.src)
	for name, dst := range map[string]string{
		"directory": p.dir, "in no folder": filepath.Join(p.dir, "no", "dst"), "below a file": filepath.Join(p.src, "dst"),
		"character device": "/dev/null",
	} {
		t.Run(name, func(t *testing.T) {
			p.sync(t, p.src, dst).fails(t, 6, dst)
			check()
		})
	}
	absent(t, filepath.Join(p.dir, "no"))
	p.completes(t)
}

func TestTargetOfAnotherSize(t *testing.T) {
	t.Parallel()
	p := newPair(t, 3*mib)
	old := bytes.Repeat([]byte("old."), mib+1024)
	t.Run("smaller", func(t *testing.T) {
		write(t, p.dst, old[:2*mib])
		check := unchanged(t, p.dst)
		p.sync(t, p.src, p.dst).fails(t, 7, p.dst, "2097152", "3145728")
		check()
		p.sync(t, "--grow-ok", p.src, p.dst).fails(t, 7, p.dst)
		check()
	})
	t.Run("larger", func(t *testing.T) {
		write(t, p.dst, old)
		check := unchanged(t, p.dst)
		p.sync(t, p.src, p.dst).fails(t, 7, p.dst, "--grow-ok")
		check()
		r := p.sync(t, "--grow-ok", p.src, p.dst).ok(t)
		equalHead(t, p.src, p.dst, 3*mib)
		if got := get(t, p.dst, 3*mib, len(old)-3*mib); !bytes.Equal(got, old[3*mib:]) {
			t.Error("the tail was touched")
		}
		t.Logf("warned: %s", r.stderr)
	})
	if err := os.Remove(p.dst); err != nil {
		t.Fatal(err)
	}
	p.completes(t)
}

func TestSameDevice(t *testing.T) {
	t.Parallel()
	p := newPair(t, 3*mib)
	check := unchanged(t, p.src)
	link, hard := filepath.Join(p.dir, "link"), filepath.Join(p.dir, "hard")
	if err := os.Symlink(p.src, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(p.src, hard); err != nil {
		t.Fatal(err)
	}
	for name, dst := range map[string]string{"path": p.src, "symlink": link, "hard link": hard, "other spelling": p.dir + "/./src"} {
		t.Run(name, func(t *testing.T) {
			p.sync(t, p.src, dst).fails(t, 7, "same")
			check()
		})
		t.Run(name+" over TCP", func(t *testing.T) {
			s := serve(t, filepath.Join(folder(t), "s"), "v="+dst)
			blkmirror(t, "sync", "--insecure", p.src, s.url("v")).fails(t, 7, "same")
			check()
		})
	}
	p.completes(t)
}

func TestTwoSyncsIntoOneTarget(t *testing.T) {
	t.Parallel()
	p := newPair(t, 24*mib)
	first := start(t, "sync", "--json", "--state", p.state, "--rate", "4M", p.src, p.dst)
	until(t, "the first sync's lock", func() bool { return locked(t, p.dst) })
	p.sync(t, p.src, p.dst).fails(t, 7, p.dst)
	blkmirror(t, "sync", "--state", p.state+"2", p.src, p.dst).fails(t, 7, p.dst)
	if first.ended() {
		t.Fatal("the first sync ended too early for this test")
	}
	first.wait().ok(t)
	equal(t, p.src, p.dst)
	p.completes(t)
}

func TestTwoSyncsIntoOneVolume(t *testing.T) {
	t.Parallel()
	p := newPair(t, 56*mib)
	s := serve(t, p.state, "v="+p.dst)
	first := start(t, "sync", "--json", "--insecure", "--rate", "4M", p.src, s.url("v"))
	until(t, "the first session", func() bool { return s.sessions() == 1 })
	blkmirror(t, "sync", "--insecure", p.src, s.url("v")).fails(t, 7, "v")
	blkmirror(t, "sync", "--insecure", "--state", p.state+"2", s.url("v"), p.dst+"2").fails(t, 7, "v") // its source is half-made
	absent(t, p.dst+"2")
	blkmirror(t, "sync", "--state", p.state+"2", p.src, p.dst).fails(t, 7, p.dst)
	if first.ended() {
		t.Fatal("the first sync ended too early for this test")
	}
	first.wait().ok(t)
	equal(t, p.src, p.dst)
}

func TestUnknownVolume(t *testing.T) {
	t.Parallel()
	p := newPair(t, mib)
	s := serve(t, p.state, "v="+p.dst)
	blkmirror(t, "sync", "--insecure", p.src, s.url("w")).fails(t, 7, "w")
	blkmirror(t, "sync", "--insecure", "--state", p.state+"2", s.url("w"), p.dst).fails(t, 7, "w")
	blkmirror(t, "status", "--control", s.control, "w").fails(t, 7, "w")
	absent(t, p.dst)
	mustRun(t, "sync", "--insecure", p.src, s.url("v"))
	equal(t, p.src, p.dst)
}
