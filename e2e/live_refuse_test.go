package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// startRefused runs a daemon that must end at once.
func startRefused(t *testing.T, state string, args ...string) result {
	t.Helper()
	n := newNode(t, checked, state)
	n.line = append([]string{"serve", "--insecure", "--state", state}, args...)
	n.launch()
	until(t, "the daemon to end", func() bool {
		if n.ended() {
			return true
		}
		if r := n.ask("status", "--json"); r.code == 0 && !n.ended() {
			n.kill()
			t.Fatalf("%q: it came up: %s", n.line, r.stdout)
		}
		return false
	})
	return n.wait()
}

// startFailed runs a daemon whose volume v fails for a reason that names all words, and says what to do.
// The daemon itself stays, for the sake of other volumes.
func startFailed(t *testing.T, state string, args []string, words ...string) {
	t.Helper()
	n := newNode(t, checked, state)
	n.line = append([]string{"serve", "--insecure", "--state", state}, args...)
	n.launch()
	n.ready()
	v := n.volume()
	if v.State != "failed" || v.Next == "" {
		t.Errorf("%q: state %q, error %q, next %q", n.line, v.State, v.Error, v.Next)
	}
	for _, w := range words {
		if !strings.Contains(v.Error, w) {
			t.Errorf("%q: the error %q does not say %q", n.line, v.Error, w)
		}
	}
	n.down()
}

// Two daemons on one state directory, on one device, on one export: the second is refused and the first
// does not notice.
func TestLiveTwoDaemons(t *testing.T) {
	t.Parallel()
	p := startLivePair(t, checked, 16*mib)
	free := sized(t, p.dir, "free", 16*mib)
	for name, c := range map[string]struct{ state, device, export, word string }{
		"state directory":          {p.primary.state, free, p.sock + "2", p.primary.state},
		"mirror's state directory": {p.mirror.state, free, p.sock + "2", p.mirror.state},
		"device":                   {p.dir + "/x", p.src, p.sock + "2", p.src},
		"mirror's device":          {p.dir + "/x", p.dst, p.sock + "2", p.dst},
		"export":                   {p.dir + "/x", free, p.sock, p.sock},
	} {
		t.Run(name, func(t *testing.T) {
			line := []string{"serve", "--insecure", "--state", c.state, "--listen", "127.0.0.1:0",
				"--volume", "v=" + c.device, "--export", "v=unix:" + c.export}
			if strings.Contains(name, "state") { // where the control socket of the first one answers
				blkmirror(t, line...).fails(t, 7, c.word)
				return
			}
			startFailed(t, c.state, line[4:], c.word)
		})
	}
	p.write(t, mib, "still served")
	p.cut()
	p.same()
}

// A live volume is nobody else's: one-shot syncs from and to either side are refused.
func TestLiveVolumeIsNoSyncTarget(t *testing.T) {
	t.Parallel()
	p := startLivePair(t, checked, 16*mib)
	other := randomImage(t, filepath.Join(p.dir, "other"), 16*mib)
	state := filepath.Join(p.dir, "s")
	blkmirror(t, "sync", "--insecure", "--state", state, other, "blk://"+p.mirror.addr+"/v").fails(t, 7, "v")
	blkmirror(t, "sync", "--insecure", "--state", state, other, "blk://"+p.primary.addr+"/v").fails(t, 7, "v")
	blkmirror(t, "sync", "--state", state, other, p.dst).fails(t, 7, p.dst)
	blkmirror(t, "sync", "--state", state, other, p.src).fails(t, 7, p.src)
	p.write(t, mib, "still served")
	p.cut()
	p.same()
}

// write writes through the export.
func (p *livePair) write(t testing.TB, off int64, text string) {
	t.Helper()
	c, err := stamp.Dial("unix", p.sock, "v")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Write([]byte(text), off, stamp.FUA); err != nil {
		t.Fatal(err)
	}
}

// A mirror's device that is smaller than the volume is refused and not touched; a larger one is used up to
// the volume's size.
func TestLiveMirrorSize(t *testing.T) {
	t.Parallel()
	t.Run("smaller", func(t *testing.T) {
		p := newLivePair(t, checked, 16*mib)
		randomImage(t, p.dst, 8*mib)
		check := unchanged(t, p.dst)
		p.mirrorUp()
		p.primary.up()
		p.primary.ask("cut", "v", "--wait", "--timeout", "2s").fails(t, 3, p.link.addr)
		p.write(t, 4096, "the primary serves on")
		until(t, "the refusal in the status", func() bool {
			r := p.primary.ask("status", "v").ok(t)
			return strings.Contains(r.stdout, "8388608")
		})
		check()
		// With a device that is large enough it goes on by itself.
		p.mirror.down()
		if err := os.Remove(p.dst); err != nil {
			t.Fatal(err)
		}
		p.mirrorUp()
		p.cut()
		p.same()
	})
	t.Run("larger", func(t *testing.T) {
		p := newLivePair(t, checked, 16*mib)
		randomImage(t, p.dst, 20*mib)
		rest := get(t, p.dst, 16*mib, 4*mib)
		p.mirrorUp()
		p.primary.up()
		p.cut()
		equalHead(t, p.src, p.dst, 16*mib)
		if string(get(t, p.dst, 16*mib, 4*mib)) != string(rest) {
			t.Error("what lies behind the volume was changed")
		}
	})
}

// A mirror whose state directory runs full while an epoch is staged keeps its last cut, says that it is
// holding, and goes on when there is room.
func TestLiveMirrorStateFull(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const size = 96 * mib
	p := newLivePair(t, checked, size)
	at, _ := smallDisk(t, p.dir, "600M")
	p.mirror = newNode(t, checked, filepath.Join(at, "m"), "--volume", "v="+p.dst)
	p.mirrorUp()
	p.primary.up()
	p.cut()
	s := &stamped{livePair: p, h: p.history(size)}
	s.w = stamp.NewWriter(s.h, stamp.Load{Network: "unix", Address: p.sock, Export: "v", Seed: *seed, Longest: 256})
	s.w.Start()
	t.Cleanup(func() { s.w.Stop() })
	s.written(50)
	s.settled()

	// Nothing is staged while the disk is filled: what is would give its room back later.
	s.w.Hold()
	p.cut()
	filler := filepath.Join(at, "filler")
	p.link.to("")                                                    // so that the next epoch is large
	exec.Command("dd", "if=/dev/zero", "of="+filler, "bs=64k").Run() // ends with: no space left
	tool(t, "truncate", "-s", "-12M", filler)
	s.w.Resume()
	s.written(400)
	p.link.to(p.mirror.addr)
	until(t, "the mirror to hold", func() bool { return p.primary.peer().State == "holding" })
	s.written(100)
	s.healthy()
	p.mirror.kill()
	s.look(0)
	p.mirrorUp()

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	p.primary.ask("resume", "v").ok(t)
	s.finish()
}

// A primary whose state directory is full may answer writes with an error; it loses none, and goes on when
// there is room.
func TestLivePrimaryStateFull(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const size = 256 * mib
	p := newLivePair(t, checked, size)
	at, _ := smallDisk(t, p.dir, "600M")
	p.primary = newNode(t, checked, filepath.Join(at, "p"), "--volume", "v="+p.src, "--export", "v=unix:"+p.sock,
		"--mirror", "v="+p.link.addr, "--interval", "v=50ms")
	p.mirrorUp()
	p.primary.up()
	p.cut()
	s := &stamped{livePair: p, h: p.history(size)}
	s.w = stamp.NewWriter(s.h, stamp.Load{Network: "unix", Address: p.sock, Export: "v", Seed: *seed, Longest: 4, NoTrim: true})
	filler := filepath.Join(at, "filler")
	exec.Command("dd", "if=/dev/zero", "of="+filler, "bs=64k").Run()
	exec.Command("dd", "if=/dev/zero", "of="+filler+"2", "bs=512").Run()
	s.w.Start()
	t.Cleanup(func() { s.w.Stop() })
	until(t, "writes, done or refused", func() bool { return s.w.Errors.Load() > 20 || s.h.Writes() > 1500 || s.w.Err() != nil })
	s.healthy()
	refused := s.w.Errors.Load()
	p.mirror.kill()
	s.look(0)
	p.mirrorUp()
	for _, f := range []string{filler, filler + "2"} {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	// What failed stays failed until it is opened anew; a restart with room goes on.
	p.primary.kill()
	p.primary.up()
	before := s.w.Errors.Load()
	s.written(200)
	if n := s.w.Errors.Load() - before; n > int64(s.w.Depth) {
		t.Errorf("%d writes were refused with room", n)
	}
	t.Logf("%d requests were refused while the disk was full", refused)
	s.finish()
}

// A damaged journal fails this volume alone, with the way out, and `rebuild` ends in equal devices without
// shipping what is equal.
func TestLiveRebuild(t *testing.T) {
	t.Parallel()
	p := newLivePair(t, checked, 32*mib)
	randomImage(t, p.src, 32*mib)
	p.mirrorUp()
	p.primary.up()
	p.cut()
	p.write(t, 5*mib, "written before")
	p.cut()
	p.primary.kill()
	damaged := 0
	filepath.WalkDir(p.primary.state, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "index") {
			return err
		}
		if strings.HasSuffix(path, ".seg") {
			put(t, path, 64, []byte(strings.Repeat("damage", 100)))
			damaged++
		}
		return nil
	})
	if damaged == 0 {
		t.Fatalf("no journal found:\n%s", tool(t, "find", p.primary.state, "-ls"))
	}
	p.primary.up()
	if v := p.primary.volume(); v.State != "failed" {
		t.Fatalf("state %q after damage", v.State)
	}
	r := p.primary.ask("status", "v")
	if !strings.Contains(r.stdout+r.stderr, "rebuild") {
		t.Errorf("status does not say what to do: %s%s", r.stdout, r.stderr)
	}
	p.primary.ask("rebuild", "v").ok(t)
	p.cut()
	p.same()
	p.write(t, 6*mib, "written after")
	p.cut()
	p.same()
	if got := p.primary.peer().Shipped; got > mib {
		t.Errorf("shipped %d bytes of a copy that was equal", got)
	}
}

// pause stops the following, resume goes on; nothing is lost between.
func TestLivePauseResume(t *testing.T) {
	t.Parallel()
	p := startLivePair(t, checked, 16*mib)
	p.primary.ask("pause", "v").ok(t)
	until(t, "paused", func() bool { return p.primary.peer().State == "paused" })
	p.write(t, 0, "while paused")
	p.primary.ask("cut", "v", "--wait", "--timeout", "1s").fails(t, 3)
	p.primary.kill()
	p.primary.up()
	if st := p.primary.peer().State; st != "paused" {
		t.Errorf("state %q after a restart, want paused", st)
	}
	p.primary.ask("resume", "v").ok(t)
	p.cut()
	p.same()
}

// Bad command lines and configurations of live volumes.
func TestLiveUsage(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	img := sized(t, dir, "img", mib)
	base := []string{"--listen", "127.0.0.1:0", "--volume", "v=" + img}
	for name, c := range map[string]struct {
		code int
		args []string
		word string
	}{
		"export of an unknown volume":   {2, []string{"--export", "w=unix:" + dir + "/x"}, "w"},
		"mirror of an unknown volume":   {2, []string{"--mirror", "w=127.0.0.1:1"}, "w"},
		"interval of an unknown volume": {2, []string{"--interval", "w=1s"}, "w"},
		"export without a kind":         {2, []string{"--export", "v=" + dir + "/x"}, "unix:"},
		"export on a foreign address":   {2, []string{"--export", "v=tcp:0.0.0.0:0"}, "loopback"},
		"export in no folder":           {0, []string{"--export", "v=unix:" + dir + "/none/x"}, "none"},
		"export over a file":            {0, []string{"--export", "v=unix:" + img}, img},
		"mirror without a port":         {2, []string{"--mirror", "v=127.0.0.1"}, "127.0.0.1"},
		"interval that is none":         {2, []string{"--interval", "v=soon"}, "soon"},
		"interval too short":            {2, []string{"--interval", "v=1ms"}, "1ms"},
		"two exports":                   {2, []string{"--export", "v=unix:" + dir + "/x", "--export", "v=unix:" + dir + "/y"}, "v"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append(append([]string(nil), base...), c.args...)
			if c.code == 0 { // the volume's trouble, not the daemon's
				startFailed(t, filepath.Join(folder(t), "s"), args, c.word)
				return
			}
			startRefused(t, filepath.Join(folder(t), "s"), args...).fails(t, c.code, c.word)
		})
	}
	for name, text := range map[string]string{
		"truncated":      "state = \"" + dir + "/s2\"\n[volume.v]\npath = \"" + img,
		"unknown key":    "[volume.v]\npath = \"" + img + "\"\nexprot = \"unix:/x\"\n",
		"wrong type":     "[volume.v]\npath = 7\n",
		"unknown role":   "[volume.v]\npath = \"" + img + "\"\nrole = \"boss\"\n",
		"garbage":        "\x00\x01\x02",
		"bad table":      "[volume\n",
		"negative limit": "[volume.v]\npath = \"" + img + "\"\ninterval = \"-1s\"\n",
	} {
		t.Run("config "+name, func(t *testing.T) {
			config := filepath.Join(dir, "config")
			write(t, config, []byte(text))
			startRefused(t, filepath.Join(folder(t), "s"), "--listen", "127.0.0.1:0", "--config", config).fails(t, 2, config)
		})
	}
}
