package e2e

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// checkedJSON is what `verify --json` and `repair --json` print of one mirror.
type checkedJSON struct {
	Volume   string  `json:"volume"`
	Mirror   string  `json:"mirror"`
	Checked  int64   `json:"checked_bytes"`
	Compared int64   `json:"compared_bytes"`
	Shipped  int64   `json:"shipped_bytes"`
	Skipped  int64   `json:"skipped_bytes"`
	Blocks   int64   `json:"blocks"`
	Nothing  bool    `json:"nothing"`
	Seconds  float64 `json:"seconds"`
	Extents  []struct {
		Offset int64 `json:"offset"`
		Length int64 `json:"length"`
	} `json:"extents"`
}

// checkedOf reads the one line of a command, which has to have these keys, and `extents` as a list.
func checkedOf(t testing.TB, r result, keys ...string) (c checkedJSON) {
	t.Helper()
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(r.stdout), &raw); err != nil {
		t.Fatalf("%q: no JSON object on stdout: %v\n%s\n%s", r.args, err, r.stdout, r.stderr)
	}
	for _, k := range append(keys, "volume", "mirror", "extents", "seconds") {
		if _, ok := raw[k]; !ok {
			t.Errorf("%q: no %s: %s", r.args, k, r.stdout)
		}
	}
	if !strings.HasPrefix(string(raw["extents"]), "[") {
		t.Errorf("%q: extents are no list: %s", r.args, r.stdout)
	}
	if err := json.Unmarshal([]byte(r.stdout), &c); err != nil {
		t.Fatalf("%q: %v\n%s", r.args, err, r.stdout)
	}
	if c.Volume != "v" || c.Mirror == "" {
		t.Errorf("%q: volume or mirror: %s", r.args, r.stdout)
	}
	return c
}

// readOnlyState is what both nodes tell of a mirror's state. "" where it is not read-only.
func (p *livePair) readOnlyState() (class string, blocks []int64) {
	p.t.Helper()
	type cause struct {
		Class  string
		Blocks []int64
	}
	type told struct {
		State    string
		ReadOnly *cause `json:"read_only"`
		Mirrors  []struct {
			State    string
			ReadOnly *cause `json:"read_only"`
		}
	}
	of := func(n *node) told {
		var st struct{ Volumes []told }
		if err := json.Unmarshal([]byte(n.ask("status", "--json").ok(p.t).stdout), &st); err != nil || len(st.Volumes) != 1 {
			p.t.Fatalf("status --json: %v", err)
		}
		return st.Volumes[0]
	}
	v, m := of(p.primary), of(p.mirror)
	if m.ReadOnly == nil || len(v.Mirrors) != 1 || v.Mirrors[0].ReadOnly == nil {
		return "", nil
	}
	if m.State != "read-only" || v.Mirrors[0].State != "read-only" || v.State != "ok" {
		p.t.Errorf("states: primary %q, its mirror %q, mirror %q", v.State, v.Mirrors[0].State, m.State)
	}
	if v.Mirrors[0].ReadOnly.Class != m.ReadOnly.Class || !slices.Equal(v.Mirrors[0].ReadOnly.Blocks, m.ReadOnly.Blocks) {
		p.t.Errorf("the two tell different things: %+v, %+v", v.Mirrors[0].ReadOnly, m.ReadOnly)
	}
	return m.ReadOnly.Class, m.ReadOnly.Blocks
}

// dd overwrites a page of a device with random bytes, as an operator's slip does.
func dd(t testing.TB, path string, off int64) {
	t.Helper()
	tool(t, "dd", "if=/dev/urandom", "of="+path, "bs=4096", "count=1", "conv=notrunc,fsync", "status=none",
		"seek="+strconv.FormatInt(off/4096, 10))
}

// filled is a pair whose volume holds random bytes, and a client on its export.
func filled(t testing.TB, size int64) (*livePair, *stamp.Client) {
	t.Helper()
	p := newLivePair(t, checked, size)
	randomImage(t, p.src, size)
	p.mirrorUp()
	p.primary.up()
	p.cut()
	p.same()
	return p, p.client()
}

func (p *livePair) client() *stamp.Client {
	p.t.Helper()
	c, err := stamp.Dial("unix", p.sock, "v")
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.Close)
	return c
}

// writes that clients issue while a mirror is read-only are taken.
func writes(t testing.TB, c *stamp.Client, off int64) {
	t.Helper()
	b := make([]byte, block)
	random(t).Read(b)
	if err := c.Write(b, off, stamp.FUA); err != nil {
		t.Fatalf("write at %d: %v", off, err)
	}
}

// The commands on a pair that is in order: exit codes, and the shape of what they print.
func TestVerifyAndRepairInOrder(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	p, _ := filled(t, size)
	c := checkedOf(t, p.primary.ask("verify", "v", "--json").ok(t), "checked_bytes", "skipped_bytes")
	if c.Checked != size || c.Skipped != 0 || len(c.Extents) != 0 {
		t.Errorf("verify: %+v", c)
	}
	if r := p.primary.ask("verify", "v").ok(t); !strings.Contains(r.stdout, "no difference") {
		t.Errorf("verify: %s", r.stdout)
	}
	if r := p.primary.ask("repair", "v").ok(t); !strings.Contains(r.stdout, "nothing to repair") || !strings.Contains(r.stdout, "--all") {
		t.Errorf("repair: %s", r.stdout)
	}
	if c := checkedOf(t, p.primary.ask("repair", "v", "--json").ok(t), "nothing", "blocks", "compared_bytes", "shipped_bytes"); !c.Nothing || c.Shipped != 0 {
		t.Errorf("repair: %+v", c)
	}
	if c := checkedOf(t, p.primary.ask("repair", "v", "--all", "--json").ok(t)); c.Nothing || c.Blocks != size/block || c.Compared < size || c.Shipped != 0 {
		t.Errorf("repair --all of equal devices: %+v", c)
	}
	for _, command := range []string{"verify", "repair"} {
		p.primary.ask(command, "v", "--mirror", "nowhere").fails(t, 2, "nowhere")
		p.primary.ask(command, "w").fails(t, 7)
		p.mirror.ask(command, "v").ok(t)
	}

	begin := func() *proc {
		return launch(t, nil, plain, "verify", "v", "--rate", "256K", "--control", p.primary.control)
	}
	slow := begin()
	for _, command := range []string{"verify", "repair"} {
		var r result
		until(t, "the first one to be under way", func() bool {
			if slow.ended() {
				slow.wait().fails(t, 7, "is under way") // the one that looks was the first
				slow = begin()
			}
			r = p.primary.ask(command, "v")
			return r.code != 0
		})
		r.fails(t, 7, "a verify is under way")
	}
	slow.signal(syscall.SIGINT)
	if r := slow.wait(); r.code != 1 || !strings.Contains(r.stderr, "next: ") {
		t.Errorf("an interrupted verify: exit code %d: %s", r.code, r.stderr)
	}
	until(t, "a verify after the one that was interrupted", func() bool { return p.primary.ask("verify", "v").code == 0 })
}

// A mirror that somebody writes over is found by verify, keeps what it has, and is repaired.
func TestMirrorWrittenOver(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	const at, other = 5*mib + 3*4096, 9 * mib
	p, c := filled(t, size)
	for _, how := range []string{"running", "killed"} {
		if how == "killed" {
			p.mirror.kill()
		}
		dd(t, p.dst, at)
		dd(t, p.dst, other)
		if how == "killed" {
			p.mirrorUp()
			p.cut()
		}
		r := p.primary.ask("verify", "v", "--json")
		r.fails(t, 5, "repair v", "read-only")
		found := checkedOf(t, r, "checked_bytes", "skipped_bytes")
		if len(found.Extents) != 2 || found.Extents[0].Offset != at/block*block || found.Extents[1].Offset != other || found.Extents[0].Length != block {
			t.Errorf("%s: verify found %+v", how, found)
		}
		class, blocks := p.readOnlyState()
		if class != "verify" || !slices.Equal(blocks, []int64{at / block, other / block}) {
			t.Errorf("%s: read-only by %q, blocks %v", how, class, blocks)
		}
		before := get(t, p.dst, 0, size)
		writes(t, c, 2*mib)
		if r := p.primary.ask("cut", "v", "--wait", "--timeout", "1s"); r.code == 0 {
			t.Errorf("%s: a cut reached a mirror that is read-only", how)
		}
		if string(before) != string(get(t, p.dst, 0, size)) {
			t.Errorf("%s: a mirror that is read-only was written", how)
		}
		p.primary.ask("repair", "v", "--dry-run").fails(t, 5, "without --dry-run")
		if class, _ := p.readOnlyState(); class == "" {
			t.Errorf("%s: a dry run ended the state", how)
		}
		done := checkedOf(t, p.primary.ask("repair", "v", "--json").ok(t), "blocks", "compared_bytes", "shipped_bytes")
		if done.Blocks != 2 || len(done.Extents) != 2 || done.Nothing || done.Shipped == 0 || done.Shipped > 3*block {
			t.Errorf("%s: repair: %+v", how, done)
		}
		if class, _ := p.readOnlyState(); class != "" {
			t.Errorf("%s: still read-only after the repair: %s", how, class)
		}
		p.cut()
		p.same()
		p.primary.ask("verify", "v").ok(t)
	}
	p.mirror.down()
	dd(t, p.dst, at)
	p.mirrorUp()
	until(t, "the comparison with the index", func() bool {
		v := p.mirror.volume()
		p.cut()
		return v.State == "ok" && !v.Unproven && p.primary.peer().Needs == 0
	})
	p.same()
	p.primary.ask("verify", "v").ok(t)
}

// PostgreSQL goes on under load and sees nothing while its mirror is driven into read-only and repaired; the
// mirror is a database in order afterwards.
func TestPostgresWhileMirrorIsRepaired(t *testing.T) {
	t.Parallel()
	needRoot(t)
	need(t, "nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "setpriv", "dd", filepath.Join(postgresBin, "postgres"))
	if exec.Command("id", "postgres").Run() != nil {
		t.Skip("needs the user postgres")
	}
	d := startDatabase(t)
	for range 2 {
		d.cut()
		for range 8 {
			dd(t, d.dst, d.rng.Int64N(512*mib/4096)*4096)
		}
		d.primary.ask("verify", "v").fails(t, 5, "repair v")
		if class, blocks := d.readOnlyState(); class != "verify" || len(blocks) == 0 {
			t.Errorf("read-only by %q, blocks %v", class, blocks)
		}
		last := d.last.Load()
		until(t, "transactions while the mirror is read-only", func() bool { return d.last.Load() > last+20 })
		done := checkedOf(t, d.primary.ask("repair", "v", "--json").ok(t))
		t.Logf("%d blocks were in question, %d ranges differed, %d bytes shipped in %.1f s", done.Blocks, len(done.Extents), done.Shipped, done.Seconds)
		last = d.last.Load()
		until(t, "transactions after the repair", func() bool { return d.last.Load() > last+20 })
	}
	if d.bench.ended() {
		t.Errorf("pgbench ended: %s", d.bench.err.String())
	}
	for _, log := range []string{d.bench.err.String(), d.pg.err.String()} {
		for line := range strings.Lines(log) {
			if strings.Contains(line, "error") || strings.Contains(line, "ERROR") || strings.Contains(line, "PANIC") || strings.Contains(line, "I/O") {
				t.Errorf("the database saw something: %s", line)
			}
		}
	}
	least := d.last.Load()
	d.cut()
	d.mirror.kill()
	d.look(least)
	d.end()
	d.cut()
	d.same()
	d.primary.ask("verify", "v").ok(t)
}
