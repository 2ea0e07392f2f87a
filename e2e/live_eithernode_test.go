package e2e

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// Verify and repair at the mirror's node: under a writer that never stops, over a line that is cut and over the deaths of
// both daemons, they come to what they come to at the primary's, and end with the same exit codes.
func TestVerifyAndRepairAtTheMirror(t *testing.T) {
	t.Parallel()
	const size = 32 * mib
	p := newLivePair(t, checked, size)
	randomImage(t, p.src, size)
	zeroes, err := os.OpenFile(p.src, os.O_WRONLY, 0)
	if err == nil {
		_, err = zeroes.WriteAt(make([]byte, size/2), 0) // the writer's half
		zeroes.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	p.mirrorUp()
	p.primary.up()
	p.cut()
	w := stamp.NewWriter(p.history(size), stamp.Load{Network: "unix", Address: p.sock, Export: "v", Seed: random(t).Uint64(), Pause: 20 * time.Millisecond, Longest: 4,
		To: size / 2 / stamp.PageSize}) // what is damaged below stays damaged
	w.Start()
	defer w.Stop()

	c := checkedOf(t, p.mirror.ask("verify", "v", "--json").ok(t), "checked_bytes", "skipped_bytes")
	if c.Mirror != p.link.addr || c.Checked < size/2 || len(c.Extents) != 0 {
		t.Errorf("verify: %+v", c)
	}
	if r := p.mirror.ask("repair", "v").ok(t); !strings.Contains(r.stdout, "nothing to repair") {
		t.Errorf("repair: %s", r.stdout)
	}

	begin := func(args ...string) *proc {
		return launch(t, nil, append(append([]string{plain}, args...), "--control", p.mirror.control)...)
	}
	const at, other = 20*mib + 3*4096, 30 * mib
	dd(t, p.dst, at)
	dd(t, p.dst, other)
	slow := begin("verify", "v", "--rate", "8MiB", "--json")
	for !slow.ended() {
		p.pause(300*time.Millisecond, time.Second)
		p.link.cut()
	}
	r := slow.wait().fails(t, 5, "repair v", "read-only")
	damaged := blocksAt(at, other)
	if c := checkedOf(t, r); len(c.Extents) != 2 || c.Extents[0].Offset != damaged[0].Offset || c.Extents[1].Offset != damaged[1].Offset {
		t.Errorf("verify found %+v", c)
	}
	if class, _ := p.readOnlyState(); class != "verify" {
		t.Errorf("read-only by %q", class)
	}
	p.mirror.ask("repair", "v", "--dry-run").fails(t, 5, "without --dry-run")
	done := checkedOf(t, p.mirror.ask("repair", "v", "--json").ok(t), "blocks", "compared_bytes", "shipped_bytes")
	if done.Blocks != 2 || len(done.Extents) != 2 || done.Nothing || done.Shipped == 0 {
		t.Errorf("repair: %+v", done)
	}
	if class, _ := p.readOnlyState(); class != "" {
		t.Errorf("still read-only: %s", class)
	}

	dd(t, p.dst, other)
	p.link.speed.SetLimit(1 << 20) // a repair that takes a while
	all := begin("repair", "v", "--all", "--json")
	p.pause(300*time.Millisecond, time.Second)
	p.link.cut()
	p.pause(100*time.Millisecond, 500*time.Millisecond)
	p.primary.kill()
	p.link.speed.SetLimit(1 << 30)
	p.primary.up()
	if done := checkedOf(t, all.wait().ok(t)); done.Compared == 0 || done.Shipped == 0 {
		t.Errorf("repair --all: %+v", done)
	}

	// Who goes away leaves nothing under way: a client at once, a daemon as soon as the next one asks.
	free := func(n *node) {
		t.Helper()
		until(t, "the primary to have nothing under way", func() bool {
			r := n.ask("verify", "v")
			if r.code != 0 {
				r.fails(t, 7, "a verify is under way")
			}
			return r.code == 0
		})
	}
	underWay := func() (slow *proc) {
		t.Helper()
		slow = begin("verify", "v", "--rate", "256K")
		until(t, "it to be under way", func() bool {
			if slow.ended() {
				slow.wait().fails(t, 7, "is under way") // the one that looks was the first
				slow = begin("verify", "v", "--rate", "256K")
			}
			r := p.primary.ask("repair", "v") // nothing to repair: over at once
			return r.code == 7 && strings.Contains(r.stderr, "a verify is under way")
		})
		return slow
	}
	slow = underWay()
	p.mirror.ask("repair", "v").fails(t, 7, "a verify is under way")
	slow.signal(syscall.SIGINT)
	if r := slow.wait(); r.code != 1 {
		t.Errorf("interrupted: exit code %d: %s", r.code, r.stderr)
	}
	free(p.primary)
	slow = underWay()
	p.mirror.kill()
	if r := slow.wait(); r.code != 3 {
		t.Errorf("without its daemon: exit code %d: %s", r.code, r.stderr)
	}
	p.mirrorUp()
	p.mirror.ask("verify", "v").ok(t)
	free(p.primary)

	if err := w.Stop(); err != nil {
		t.Error(err)
	}
	p.cut()
	p.same()
	p.mirror.ask("verify", "v").ok(t)
}

// What is refused at the primary is refused at the mirror's node, with the same words.
func TestRefusedAtTheMirror(t *testing.T) {
	t.Parallel()
	const size, at = 16 * mib, 5*mib + 3*4096
	p, _ := filled(t, size)
	until(t, "the primary's index to know everything", func() bool { return p.primary.volume().IndexNeeds == 0 })
	dd(t, p.src, at)
	p.primary.ask("scrub", "v", "--rate", "10GiB").fails(t, 5, "rot")
	alike := func(code int, words []string, args ...string) {
		t.Helper()
		here, there := p.primary.ask(args...).fails(t, code, words...), p.mirror.ask(args...).fails(t, code, words...)
		if here.stderr != there.stderr {
			t.Errorf("%q says two things:\n%s\n%s", args, here.stderr, there.stderr)
		}
	}
	alike(7, []string{"rotten at the primary", "--from"}, "repair", "v", "--all")
	alike(5, []string{"rot: the primary's disk", "--from mirror"}, "verify", "v")
	alike(2, []string{"--all"}, "repair", "v", "--all", "--from", "mirror")
	alike(2, nil, "repair", "v", "--from", "elsewhere")
	alike(7, nil, "verify", "w")
	p.mirror.ask("verify", "v", "--mirror", "nowhere").fails(t, 2, "nowhere")
	p.mirror.ask("verify", "v", "--mirror", p.link.addr).fails(t, 5, "rot")
	done := checkedOf(t, p.mirror.ask("repair", "v", "--from", "mirror", "--json").ok(t))
	if done.Blocks != 1 || len(done.Extents) != 1 || done.Extents[0].Offset != at/block*block {
		t.Errorf("repair: %+v", done)
	}
	p.same()
	p.mirror.ask("verify", "v").ok(t)

	p.mirror.ask("pause", "v").ok(t)
	p.mirror.ask("verify", "v").fails(t, 7, "paused", "resume v")
	p.mirror.ask("resume", "v").ok(t)
	p.primary.down()
	waiting := launch(t, nil, plain, "verify", "v", "--control", p.mirror.control)
	p.pause(500*time.Millisecond, time.Second)
	if waiting.ended() {
		t.Errorf("it does not wait for its primary: %+v", waiting.wait())
	}
	p.primary.up()
	if r := waiting.wait().ok(t); !slices.Contains(strings.Fields(r.stdout), "difference") {
		t.Errorf("verify: %s", r.stdout)
	}
}
