package e2e

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// scrubbedJSON is what `scrub --json` prints.
type scrubbedJSON struct {
	Role    string `json:"role"`
	Checked int64  `json:"checked_bytes"`
	Unknown int64  `json:"unknown_bytes"`
	Skipped int64  `json:"skipped_bytes"`
	Extents []extentJSON
	Healed  []extentJSON
}

type extentJSON struct{ Offset, Length int64 }

func scrubbed(t testing.TB, r result) (c scrubbedJSON) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), &c); err != nil {
		t.Fatalf("%q: %v\n%s\n%s", r.args, err, r.stdout, r.stderr)
	}
	return c
}

func blocksAt(offsets ...int64) (list []extentJSON) {
	for _, off := range offsets {
		list = append(list, extentJSON{off / block * block, block})
	}
	return list
}

// A mirror that somebody writes over heals itself in a scrub while its primary is here; without the primary it
// becomes read-only, and is repaired later.
func TestScrubOfAMirror(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	const at, other = 5*mib + 3*4096, 9 * mib
	p, _ := filled(t, size)
	all := []string{"scrub", "v", "--rate", "10GiB", "--json"}
	if c := scrubbed(t, p.mirror.ask(all...).ok(t)); c.Role != "mirror" || c.Checked != size || c.Skipped != 0 || len(c.Extents) != 0 {
		t.Errorf("scrub: %+v", c)
	}
	dd(t, p.dst, at)
	dd(t, p.dst, other)
	if c := scrubbed(t, p.mirror.ask(all...).ok(t)); !slices.Equal(c.Healed, blocksAt(at, other)) || len(c.Extents) != 0 {
		t.Errorf("scrub: %+v", c)
	}
	p.same()
	p.primary.ask("verify", "v").ok(t)
	if kept, err := filepath.Glob(filepath.Join(p.mirror.state, "volumes", "v", "rot", "*")); err != nil || len(kept) != 2 {
		t.Errorf("kept %q, %v", kept, err)
	}

	p.primary.down()
	dd(t, p.dst, at)
	r := p.mirror.ask("scrub", "v", "--rate", "10GiB").fails(t, 5, "rot", "read-only", "repair v")
	if !strings.Contains(r.stdout, "rot, ranges: 1") {
		t.Errorf("scrub: %s", r.stdout)
	}
	p.primary.up()
	until(t, "both to tell the same", func() bool { class, _ := p.readOnlyState(); return class == "rot" })
	done := checkedOf(t, p.primary.ask("repair", "v", "--json").ok(t))
	if done.Blocks != 1 || done.Shipped == 0 || done.Shipped > block {
		t.Errorf("repair: %+v", done)
	}
	p.cut()
	p.same()
	p.mirror.ask(all...).ok(t)
}

// The primary's own disk rots: nobody takes it for the mirror's fault, it is not brought to the mirror, and what was
// written comes back from there when a person says so.
func TestRotOfThePrimary(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	const at = 5*mib + 3*4096
	p, _ := filled(t, size)
	until(t, "the primary's index to know everything", func() bool { return p.primary.volume().IndexNeeds == 0 })
	dd(t, p.src, at)
	all := []string{"scrub", "v", "--rate", "10GiB", "--json"}
	r := p.primary.ask(all...).fails(t, 5, "rot", "--from mirror")
	if c := scrubbed(t, r); c.Role != "primary" || !slices.Equal(c.Extents, blocksAt(at)) || c.Checked != size {
		t.Errorf("scrub: %+v", c)
	}
	r = p.primary.ask("verify", "v", "--json").fails(t, 5, "rot", "--from mirror")
	if c := checkedOf(t, r, "rot"); len(c.Extents) != 0 {
		t.Errorf("verify: %+v", c)
	}
	if class, _ := p.readOnlyState(); class != "" {
		t.Errorf("the mirror is read-only for it: %s", class)
	}
	if r := p.primary.ask("status", "v", "--check"); r.code == 0 || !strings.Contains(r.stdout+r.stderr, "rot") {
		t.Errorf("status --check: %d %s%s", r.code, r.stdout, r.stderr)
	}
	p.primary.ask("repair", "v").ok(t) // the mirror has nothing in quarantine
	done := checkedOf(t, p.primary.ask("repair", "v", "--from", "mirror", "--json").ok(t))
	if done.Blocks != 1 || len(done.Extents) != 1 || done.Extents[0].Offset != at/block*block {
		t.Errorf("repair: %+v", done)
	}
	p.same()
	p.cut()
	p.same()
	if kept, err := os.ReadDir(filepath.Join(p.primary.state, "volumes", "v", "rot")); err != nil || len(kept) != 1 {
		t.Errorf("kept %d, %v", len(kept), err)
	}
	p.primary.ask("verify", "v").ok(t)
	p.primary.ask("status", "v", "--check").ok(t)
	p.primary.ask("repair", "v", "--from", "elsewhere").fails(t, 2)
	p.primary.ask("repair", "v", "--from", "mirror", "--all").fails(t, 2, "--all")
}

// Thousands of blocks differ. The repair goes on beside a writer that never stops, while either side is killed, and is
// run again until it is through; at the end everything is equal.
func TestRepairOfThousandsIsInterrupted(t *testing.T) {
	t.Parallel()
	const size, damaged = 64 * mib, 3000
	p := newLivePair(t, checked, size)
	p.primary.line = append(p.primary.line, "--block-size", "v=4096")
	randomImage(t, p.src, size)
	p.mirrorUp()
	p.primary.up()
	p.cut()
	r := rand.New(random(t))
	f, err := os.OpenFile(p.dst, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, page := range r.Perm(size / 4096)[:damaged] {
		if _, err := f.WriteAt([]byte{byte(r.Uint32())}, int64(page)*4096+r.Int64N(4096)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	found := checkedOf(t, p.primary.ask("verify", "v", "--json").fails(t, 5))
	blocks := int64(0)
	for _, e := range found.Extents {
		blocks += e.Length / 4096
	}
	if blocks < damaged*9/10 || blocks > damaged { // some bytes were what they are
		t.Errorf("%d blocks differ", blocks)
	}
	if class, _ := p.readOnlyState(); class != "verify" {
		t.Fatalf("read-only by %q", class)
	}
	history := p.history(size)
	w := stamp.NewWriter(history, stamp.Load{Network: "unix", Address: p.sock, Export: "v", Seed: r.Uint64(), Pause: time.Millisecond})
	w.Start()
	defer w.Stop()
	for _, side := range []*node{p.mirror, p.primary, p.mirror} {
		repair := launch(t, nil, plain, "repair", "v", "--control", p.primary.control)
		p.pause(20*time.Millisecond, 150*time.Millisecond)
		side.kill()
		if side == p.mirror {
			p.mirrorUp()
		} else {
			p.primary.up()
		}
		repair.wait() // through, or not
	}
	until(t, "a repair that comes to its end", func() bool { return p.primary.ask("repair", "v").code == 0 })
	if class, _ := p.readOnlyState(); class != "" {
		t.Errorf("still read-only: %s", class)
	}
	w.Stop()
	p.cut()
	p.same()
	p.primary.ask("verify", "v").ok(t)
}
