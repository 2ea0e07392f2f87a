package campaign

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/blkmirror/blkmirror/campaign/daemon"
)

// trial is one flip and what became of it.
type trial struct {
	*pair
	ctx    context.Context
	number int

	before  int64 // what was noticed before it
	shipped int64 // likewise
	givenUp int64 // likewise
	brought int64 // what its own writes have to ship

	result
}

// result is how a trial ended.
type result struct {
	found       bool
	corrected   bool   // by itself
	readOnly    string // the class of the mirror's state
	other       string // any other way in which it was told
	harmless    bool   // all is well, without a word
	wronglyGood bool   // something wrong was counted as good
	equal       bool   // at the end, by cmp and by a verify
	cost        int64  // bytes that were shipped to make it good
	note        string // what a reader should know of it
}

// begin notes the counters.
func (t *trial) begin() error {
	n, err := t.noticed(t.ctx)
	if err != nil {
		return err
	}
	t.before, t.brought = n, 0
	p, err := t.peer(t.ctx)
	t.shipped, t.givenUp = p.Shipped, p.GivenUp
	return err
}

// writes does some.
func (t *trial) writes(packable bool) error {
	w, err := t.write(packable)
	t.brought += w.bytes()
	return err
}

// judge takes a cut and sees what was made of a flip on the way to the mirror.
func (t *trial) judge() error {
	at, err := t.cut(t.ctx)
	if err != nil {
		return err
	}
	return t.judgeAt(at)
}

func (t *trial) judgeAt(at where) error {
	after, err := t.noticed(t.ctx)
	if err != nil {
		return err
	}
	switch at {
	case isReadOnly:
		return t.tell()
	case mirrorFailed, primaryFailed:
		return t.tellFailed(at)
	case refused:
		return t.tellRefused()
	}
	same, err := sameFiles(t.src, t.dst)
	if err != nil {
		return err
	}
	t.wronglyGood = t.wronglyGood || !same
	if same && after > t.before {
		t.found, t.corrected = true, true
		p, err := t.peer(t.ctx)
		t.cost = max(0, p.Shipped-t.shipped-t.brought)
		if p.GivenUp > t.givenUp {
			t.also("its cut given up, and brought by the next")
		}
		return err
	}
	return nil
}

// tell notes why the mirror is read-only. Both sides have to say so, and name blocks.
func (t *trial) tell() error {
	m, err := t.mirror.Volume(t.ctx)
	if err != nil {
		return err
	}
	v, err := t.primary.Volume(t.ctx)
	if err != nil {
		return err
	}
	ro := m.ReadOnly
	if ro == nil || len(v.Mirrors) != 1 || v.Mirrors[0].ReadOnly == nil || v.Mirrors[0].ReadOnly.Class != ro.Class || len(ro.Blocks) == 0 {
		return fmt.Errorf("read-only, and no class or blocks: %+v; %+v", m, v)
	}
	if a := t.mirror.Ask(t.ctx, "status", "v"); a.Code != 0 || !strings.Contains(a.Stdout, "read-only") {
		return fmt.Errorf("status of a read-only mirror: %s", a)
	}
	t.found, t.readOnly = true, ro.Class
	return nil
}

// tellFailed notes why a volume failed: it has to say what to do.
func (t *trial) tellFailed(at where) error {
	n := t.mirror
	if at == primaryFailed {
		n = t.primary
	}
	v, err := n.Volume(t.ctx)
	if err != nil {
		return err
	}
	if v.State != "failed" || v.Error == "" || v.Next == "" {
		return fmt.Errorf("%s, and no cause or next step: %+v", at, v)
	}
	t.found = true
	t.also(string(at))
	if at == mirrorFailed {
		return nil
	}
	if a := t.primary.Ask(t.ctx, "verify", "v"); a.Code != 7 {
		return fmt.Errorf("verify of a volume that failed: %s", a)
	}
	return nil
}

// tellRefused: a primary that lost the end of its journal is older than what the mirror has of it.
func (t *trial) tellRefused() error {
	p, err := t.peer(t.ctx)
	if err != nil || !strings.Contains(p.Reason, "--overwrite-mirror") {
		return fmt.Errorf("refused, and no next step: %+v: %v", p, err)
	}
	t.found = true
	t.also(string(refused))
	return nil
}

func (t *trial) also(other string) {
	switch {
	case t.other == "":
		t.other = other
	case !strings.Contains(t.other, other):
		t.other += ", " + other
	}
}

// checked is what verify and repair print.
type checked struct {
	Skipped int64 `json:"skipped_bytes"`
	Shipped int64 `json:"shipped_bytes"`
	Blocks  int64
	Nothing bool
	Extents []extent
	Rot     []extent // of the primary
	Healed  []extent // by a scrub of the mirror
	Unknown int64    `json:"unknown_bytes"` // to a scrub
}

type extent struct{ Offset, Length int64 }

// holds tells that a list is of one block, which holds a bit.
func holds(list []extent, bit int64) bool {
	return len(list) == 1 && list[0].Offset <= bit/8 && bit/8 < list[0].Offset+list[0].Length
}

func readChecked(a daemon.Answer) (c checked, err error) {
	if err = json.Unmarshal([]byte(a.Stdout), &c); err != nil {
		err = fmt.Errorf("%w: %s", err, a)
	}
	return c, err
}

// verify compares both sides by the product's own means. different: it says so, in every way that it has to.
func (t *trial) verify() (different bool, c checked, err error) {
	a := t.primary.Ask(t.ctx, "verify", "v", "--json")
	if a.Code != 0 && a.Code != 5 {
		return false, c, fmt.Errorf("verify: %s", a)
	}
	if c, err = readChecked(a); err != nil {
		return false, c, err
	}
	different = len(c.Extents)+len(c.Rot) > 0
	if different != (a.Code == 5) || c.Skipped != 0 {
		return false, c, fmt.Errorf("verify: %s", a)
	}
	if !different {
		same, err := sameFiles(t.src, t.dst)
		t.wronglyGood = t.wronglyGood || !same
		return false, c, err
	}
	if len(c.Extents) == 0 {
		return true, c, nil
	}
	at, err := t.await(t.ctx, func(_, _ *daemon.Volume, _ *daemon.Peer) bool { return false })
	if err == nil && at != isReadOnly {
		err = fmt.Errorf("%s after a verify that found something", at)
	}
	return different, c, err
}

// foundByVerify expects that a verify finds a flip of the bit in the volume, and nothing else.
func (t *trial) foundByVerify(bit int64) error {
	different, c, err := t.verify()
	if err != nil || !different {
		return err
	}
	return t.foundAtMirror(c, bit)
}

func (t *trial) foundAtMirror(c checked, bit int64) error {
	at := bit / 8
	if !holds(c.Extents, bit) || len(c.Rot) > 0 {
		return fmt.Errorf("a bit at %d was turned over, and verify says %+v", at, c)
	}
	if err := t.tell(); err != nil {
		return err
	}
	m, err := t.mirror.Volume(t.ctx)
	if err == nil && (len(m.ReadOnly.Blocks) != 1 || m.ReadOnly.Blocks[0] != at/blockSize) {
		err = fmt.Errorf("a bit at %d was turned over, and in quarantine are %v", at, m.ReadOnly.Blocks)
	}
	return err
}

// recover does what the documents say for each state, until all is well.
func (t *trial) recover() error {
	for range 4 {
		at, err := t.cut(t.ctx)
		if err != nil {
			return err
		}
		switch at {
		case good:
			return nil
		case isReadOnly:
			err = t.repair()
		case refused:
			err = t.overwrite()
		case mirrorFailed:
			err = t.rebuild(t.mirror)
		case primaryFailed:
			if err = t.rebuild(t.primary); err == nil {
				err = t.dial(t.ctx)
			}
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("it does not recover: %s", t.other)
}

func (t *trial) repair() error {
	a := t.primary.Ask(t.ctx, "repair", "v", "--json")
	if a.Code != 0 {
		return fmt.Errorf("repair: %s\nprimary's log: %s\nmirror's log: %s", a, t.primary.Log.Tail(), t.mirror.Log.Tail())
	}
	c, err := readChecked(a)
	t.cost += c.Shipped
	if err == nil && (c.Nothing || c.Blocks == 0) {
		err = fmt.Errorf("repair of a read-only mirror found nothing to do: %s", a)
	}
	return err
}

func (t *trial) rebuild(n *daemon.Node) error {
	before, err := t.peer(t.ctx)
	if err != nil {
		return err
	}
	if a := n.Ask(t.ctx, "rebuild", "v"); a.Code != 0 {
		return fmt.Errorf("rebuild: %s", a)
	}
	at, err := t.await(t.ctx, func(_, m *daemon.Volume, peer *daemon.Peer) bool {
		return peer.State != "connecting" && peer.State != "disconnected" && peer.Needs == 0
	})
	if err != nil {
		return err
	}
	if now, err := t.peer(t.ctx); err == nil && at == good {
		if n == t.primary {
			before.Shipped = 0
		}
		t.cost += max(0, now.Shipped-before.Shipped)
	}
	return nil
}

// overwrite has a mirror take a primary that is older than what it holds.
func (t *trial) overwrite() error {
	p, err := t.peer(t.ctx)
	if err != nil {
		return err
	}
	if a := t.primary.Ask(t.ctx, "resume", "v", "--overwrite-mirror", p.Name); a.Code != 0 {
		return fmt.Errorf("resume --overwrite-mirror: %s", a)
	}
	return daemon.Until(t.ctx, "the mirror to be taken", func() (bool, error) {
		p, err := t.peer(t.ctx)
		return p.State != "refused" && p.State != "connecting", err
	})
}

// finish brings the pair into order by the documented means, and then both sides have to be equal.
func (t *trial) finish() error {
	if err := t.recover(); err != nil {
		return err
	}
	different, _, err := t.verify()
	if err != nil {
		return err
	}
	if different { // that is told now, and was not before
		t.also("by a verify")
		if err := t.recover(); err != nil {
			return err
		}
		if different, _, err = t.verify(); err != nil {
			return err
		}
	}
	same, err := sameFiles(t.src, t.dst)
	t.equal = same && !different
	return err
}

// sameFiles is cmp.
func sameFiles(a, b string) (bool, error) {
	x, err := os.ReadFile(a)
	if err != nil {
		return false, err
	}
	y, err := os.ReadFile(b)
	return bytes.Equal(x, y), err
}
