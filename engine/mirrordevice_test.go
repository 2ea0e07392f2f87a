package engine

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// badPlace is a range of a disk that cannot be read until it is written.
type badPlace struct {
	off, n int64
	bad    atomic.Bool
	stays  atomic.Bool // also when it was written
}

func (b *badPlace) rules() []devtest.Rule {
	touches := devtest.Touches(b.off, b.n)
	heal := devtest.Hook(func(devtest.Call) {
		if !b.stays.Load() {
			b.bad.Store(false)
		}
	})
	return []devtest.Rule{
		{Op: devtest.OpRead, When: func(c devtest.Call) bool { return b.bad.Load() && touches(c) }, Effect: devtest.Fail(syscall.EIO)},
		{Op: devtest.OpWrite, When: touches, Effect: heal},
		{Op: devtest.OpZero, When: touches, Effect: heal},
	}
}

// badWorld is a mirror at cut 2 of which a page of block 3 cannot be read as soon as bad is set.
func badWorld(t *testing.T, edits ...func(*mirrorWorld)) (*mirrorWorld, *fakePrimary, *badPlace) {
	w, b := newMirrorWorld(t, mib), &badPlace{off: 3*testBlock + 2*page, n: page}
	w.rules = b.rules()
	for _, edit := range edits {
		edit(w)
	}
	p := w.synced()
	return w, p, b
}

// mustQuarantine checks that just block 3 is in quarantine because the device gives an error there, and that the kernel
// knows that nobody is to write; also in the next process.
func (w *mirrorWorld) mustQuarantine(p *fakePrimary) {
	w.t.Helper()
	for round := range 2 {
		eventually(w.t, "the mirror is read-only", func() bool { return w.status().State == "read-only" })
		st := w.status()
		if ro := st.ReadOnly; ro == nil || ro.Class != "mirror-device" || !slices.Equal(ro.Blocks, []int64{3}) {
			w.t.Fatalf("status %+v, read-only %+v", st, ro)
		}
		if round == 0 && st.Primary.Mismatches.Mirror == 0 {
			w.t.Error("it is not counted")
		}
		p.hangUp()
		eventually(w.t, "the device is read-only", w.flagged.Load)
		w.stop()
		w.open()
	}
}

// mustRepair has a primary repair it, by an epoch on a cut.
func (w *mirrorWorld) mustRepair(p *fakePrimary, cut uint64) {
	w.t.Helper()
	if a := p.dial(); a.Flags&wire.AttachedReadOnly == 0 {
		w.t.Fatalf("attached %+v", a)
	}
	p.send(&wire.Repair{})
	wanted := p.offer(0, w.size, testBlock)
	if !wanted[3] || w.flagged.Load() {
		w.t.Errorf("wanted %v, the device is read-only: %v", wanted, w.flagged.Load())
	}
	p.rebase(cut, 0, cut+1)
	for i, want := range wanted {
		if want {
			p.stage(cut+1, int64(i)*testBlock, testBlock)
		}
	}
	p.commit(cut, cut+1)
	p.applied(cut + 1)
	if st := w.status(); st.State != "ok" || st.ReadOnly != nil || w.flagged.Load() {
		w.t.Errorf("after the repair: %+v", st)
	}
	w.mustHold(p.content)
	w.mustIndex()
	p.hangUp()
	w.stop()
}

// What cannot be read for an offer is wanted, and in quarantine.
func TestMirrorUnreadableOffer(t *testing.T) {
	for _, flags := range []wire.OfferFlags{0, wire.OfferVerify, wire.OfferVerify | wire.OfferTree} {
		w, p, b := badWorld(t)
		b.bad.Store(true)
		m := &wire.Offer{Seq: 1, Length: uint32(w.size), Unit: testBlock, Flags: flags}
		for off := int64(0); off < w.size; off += testBlock {
			m.Hashes = append(m.Hashes, wire.Sum(p.content[off:off+testBlock]))
		}
		if flags&wire.OfferTree != 0 {
			m.Hashes, m.Unit = []wire.Hash{wire.TreeHash(m.Hashes)}, testBlock*treeBlocks
		}
		p.send(m)
		if end := p.lastWord(); end != wire.CodeReadOnly {
			t.Fatalf("flags %d: the session ends with %v", flags, end)
		}
		w.mustQuarantine(p)
		p.dial()
		if flags != 0 { // a verify is answered all the same, again and again
			p.send(m)
			if want := expect[*wire.Want](p); want.Bits[0]>>(3%len(m.Hashes))&1 == 0 {
				t.Errorf("flags %d: %b", flags, want.Bits)
			}
		}
		p.hangUp()
		w.mustRepair(p, 2)
	}
}

// The comparison after a restart goes on behind what cannot be read.
func TestMirrorUnreadableAfterReboot(t *testing.T) {
	w, p, b := badWorld(t)
	p.hangUp()
	w.stop()
	b.bad.Store(true)
	w.boot = "boot 2"
	w.open()
	w.mustQuarantine(p)
	if st := w.status(); st.Primary.NeedsBytes != testBlock {
		t.Errorf("%d bytes are in doubt", st.Primary.NeedsBytes)
	}
	w.mustRepair(p, 2)
}

// What a scrub cannot read and nobody brings is in quarantine, with an entry in the index and without.
func TestMirrorUnreadableScrub(t *testing.T) {
	for _, indexed := range []bool{true, false} {
		w, p, b := badWorld(t)
		if !indexed {
			w.index.Delete(3, 1)
		}
		b.bad.Store(true)
		p.hangUp()
		r, err := w.m.scrub(t.Context(), ScrubOptions{Rate: 1 << 40}, nil)
		wantKind(t, err, KindDevice)
		if len(r) != 1 || !slices.Equal(r[0].Unreadable, blocksAt(3)) || len(r[0].Extents) != 0 {
			t.Errorf("scrub %+v", r)
		}
		w.mustQuarantine(p)
		w.mustRepair(p, 2)
	}
}

// A scrub heals what cannot be read where the index knows what the primary has; where writing it does not help, it is
// in quarantine.
func TestScrubHealsUnreadable(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	m := p.mirrors[0]
	b := &badPlace{off: 5*scrubBlock + page, n: page}
	p.faulty(m, b.rules())
	eventually(t, "the mirror is here", func() bool { return p.mirrorStatus(0).State == "connected" })
	b.bad.Store(true)
	if r := p.scrub(m); !slices.Equal(r.Healed, blocksAt(5)) || len(r.Unreadable) != 0 || b.bad.Load() {
		t.Errorf("scrub %+v", r)
	}
	if st := m.status(); st.State != "ok" || st.Primary.Mismatches.Mirror == 0 {
		t.Errorf("status %+v", st)
	}
	p.equal(0)

	b.stays.Store(true)
	b.bad.Store(true)
	_, err := Scrub(t.Context(), m.control(), "v", ScrubOptions{Rate: 1 << 40}, nil)
	wantKind(t, err, KindDevice)
	if ro := m.status().ReadOnly; ro == nil || ro.Class != "mirror-device" || !slices.Equal(ro.Blocks, []int64{5}) {
		t.Errorf("read-only %+v", ro)
	}
	b.stays.Store(false)
	p.repair(RepairOptions{})
	p.settle()
	p.equal(0)
}

// A block that cannot be read back is written again; where that does not help, just the page is in quarantine, and
// the rest of the epoch is there.
func TestMirrorUnreadableReadBack(t *testing.T) {
	for _, times := range []int{3, 1000} {
		w, p, b := badWorld(t)
		p.hangUp()
		w.stop()
		w.rules = []devtest.Rule{{Op: devtest.OpRead, When: devtest.Touches(b.off, b.n), Times: times, Effect: devtest.Fail(syscall.EIO)}}
		o := w.options()
		o.config.VerifyWrites = "readback"
		m, err := openMirror(o)
		if err != nil {
			t.Fatal(err)
		}
		w.m = m
		p.dial()
		p.change(2*testBlock, 3*testBlock, 5)
		p.rebase(2, 0, 3)
		p.stage(3, 2*testBlock, 3*testBlock)
		p.commit(2, 3)
		p.applied(3)
		w.mustHold(p.content)
		if st := w.status(); times == 3 {
			if st.State != "ok" || st.Primary.Mismatches.Mirror == 0 {
				t.Errorf("written again: %+v %+v", st, st.Primary)
			}
			continue
		}
		if end := p.lastWord(); end != wire.CodeReadOnly {
			t.Errorf("the session ends with %v", end)
		}
		w.mustQuarantine(p)
		p.dial()
		if q := expectQuarantine(p); len(q.Extents) != 1 || q.Extents[0] != (wire.Extent{Offset: b.off, Length: page}) {
			t.Errorf("quarantine %+v", q)
		}
		p.hangUp()
		w.stop()
		w.rules = nil
		w.open()
		if a := p.dial(); a.Applied != 3 {
			t.Errorf("attached %+v", a)
		}
		p.send(&wire.Repair{}) // it can be read by now, and is equal
		if got := p.offer(0, w.size, page); count(got) != 0 {
			t.Errorf("wanted %v", got)
		}
		eventually(t, "the mirror is repaired", func() bool { return w.status().State == "ok" })
	}
}

// Written in place it is no different: the index has nothing of what cannot be read back.
func TestMirrorUnreadableInPlace(t *testing.T) {
	w, p, b := badWorld(t)
	w.m.readBack.Store(true)
	b.stays.Store(true)
	b.bad.Store(true)
	p.send(&wire.Bulk{Base: 2, Number: 3})
	for _, block := range []int64{3, 5} {
		p.send(p.frame(0, block*testBlock, testBlock))
	}
	if end := p.lastWord(); end != wire.CodeReadOnly {
		t.Errorf("the session ends with %v", end)
	}
	w.mustQuarantine(p)
	var entry [1]journal.Entry
	if err := w.index.Get(3, entry[:]); err != nil || entry[0].Known {
		t.Errorf("the index has an entry: %v, %v", entry[0], err)
	}
	w.mustIndex()
	b.stays.Store(false)
	w.mustRepair(p, 2)
}

// expectQuarantine reads what the mirror says behind its Attached.
func expectQuarantine(p *fakePrimary) *wire.Quarantine {
	p.t.Helper()
	for {
		m, err := p.conn.Next()
		if err != nil {
			p.t.Fatal(err)
		}
		if q, ok := m.(*wire.Quarantine); ok {
			return q
		}
	}
}

// Zeroes are written where it cannot be read whether they are there, and are read back in a repair.
func TestMirrorUnreadableZero(t *testing.T) {
	w, p, b := badWorld(t, func(w *mirrorWorld) { w.dense = true })
	b.bad.Store(true)
	p.rebase(2, 0, 3)
	p.zero(3, 0, 8*testBlock)
	p.commit(2, 3)
	p.applied(3)
	if st := w.status(); st.State != "ok" || b.bad.Load() {
		t.Errorf("after the zeroes: %+v", st)
	}
	w.mustHold(p.content)
	b.stays.Store(true)
	b.bad.Store(true)
	p.send(&wire.Offer{Seq: 1, Offset: 3 * testBlock, Length: testBlock, Unit: testBlock, Hashes: make([]wire.Hash, 1)})
	p.lastWord()
	p.hangUp()
	p.dial()
	p.send(&wire.Repair{})
	p.rebase(3, 0, 4)
	p.zero(4, 3*testBlock, testBlock)
	p.commit(3, 4)
	p.lastWord() // it still cannot be read
	w.mustQuarantine(p)
	b.stays.Store(false)
	w.mustRepair(p, 4)
}

// A write that fails breaks the volume until the device is opened again, as does a device that cannot be read anywhere:
// nothing is in quarantine.
func TestMirrorBrokenDevice(t *testing.T) {
	for _, op := range []devtest.Op{devtest.OpWrite, devtest.OpRead} {
		w := newMirrorWorld(t, mib)
		var broken atomic.Bool
		w.rules = []devtest.Rule{{Op: op, When: func(devtest.Call) bool { return broken.Load() }, Effect: devtest.Fail(syscall.EIO)}}
		p := w.synced()
		broken.Store(true)
		if op == devtest.OpWrite {
			p.change(0, testBlock, 7)
			p.rebase(2, 0, 3)
			p.stage(3, 0, testBlock)
			p.sendCommit(2, 3)
		} else {
			p.send(&wire.Offer{Seq: 1, Length: testBlock, Unit: testBlock, Hashes: make([]wire.Hash, 1)})
		}
		if end := p.lastWord(); end != wire.CodeDevice {
			t.Errorf("%v: the session ends with %v", op, end)
		}
		p.hangUp()
		eventually(t, "the mirror has failed", func() bool { return w.status().State == "failed" })
		if st := w.status(); st.ReadOnly != nil || w.flagged.Load() {
			t.Errorf("%v: %+v", op, st)
		}
		broken.Store(false)
		eventually(t, "it goes on", func() bool { return w.status().State == "ok" })
		p.dial()
		if got := p.offer(0, w.size, testBlock); count(got) != 0 {
			t.Errorf("%v: wanted %v", op, got)
		}
	}
}

// faultyNode has rules in front of a node's device.
func (p *livePair) faulty(n *liveNode, rules []devtest.Rule) {
	p.t.Helper()
	n.stop()
	n.device = withFaults(rules...)
	n.start()
}

// A verify tells a block of the mirror that cannot be read, on both sides; a repair writes it. One that cannot be read
// after that either ends the repair, and no block is wrong.
func TestUnreadableBlockOfMirror(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	b := &badPlace{off: 5*DefaultBlockSize + page, n: page}
	p.faulty(p.mirrors[0], b.rules())
	for _, stays := range []bool{false, true} {
		eventually(t, "the mirror is here", func() bool { return p.mirrorStatus(0).State == "connected" })
		b.stays.Store(stays)
		b.bad.Store(true)
		if r := p.verify(); !slices.Equal(r.Extents, blocksAt(5)) {
			t.Fatalf("verify %+v", r)
		}
		for _, ro := range []*ReadOnlyCause{p.mirrors[0].status().ReadOnly, p.mirrorStatus(0).ReadOnly} {
			if ro == nil || ro.Class != "mirror-device" || !slices.Equal(ro.Blocks, []int64{5}) {
				t.Errorf("read-only %+v", ro)
			}
		}
		if m := p.mirrorStatus(0).Mismatches; m.Mirror == 0 || m.Source+m.Wire != 0 {
			t.Errorf("mismatches %+v", m)
		}
		p.write(c, 5*DefaultBlockSize, 2*DefaultBlockSize)
		if stays {
			_, err := Repair(t.Context(), p.primary.control(), "v", RepairOptions{}, func(CheckProgress) {})
			wantKind(t, err, KindIntegrity)
			b.stays.Store(false)
		}
		if r := p.repair(RepairOptions{}); r.ShippedBytes == 0 {
			t.Errorf("repair %+v", r)
		}
		p.settle()
		p.equal(0)
	}
	b.stays.Store(true)
	b.bad.Store(true)
	_, err := Repair(t.Context(), p.primary.control(), "v", RepairOptions{All: true}, func(CheckProgress) {})
	wantKind(t, err, KindIntegrity)
	b.stays.Store(false)
	p.repair(RepairOptions{All: true})
	p.settle()
	p.equal(0)
}

// What the primary cannot read is told with its range and stays needed; everything else is shipped, and that as soon
// as it is written anew.
func TestUnreadablePageOfSource(t *testing.T) {
	p := newLivePair(t, 1, nil)
	b := &badPlace{off: 7 * page, n: page}
	b.stays.Store(true)
	p.faulty(p.primary, b.rules())
	c := p.client()
	p.write(c, 0, mib)
	p.settle()
	b.bad.Store(true)
	p.write(c, 0, 2*mib)
	p.write(c, mib, mib)
	eventually(t, "the rest is there", func() bool {
		m := p.mirrorStatus(0)
		return m.Holes == 1 && m.NeedsBytes == page
	})
	st := p.primary.status()
	if want := "at 28672+4096"; st.State != "ok" || !strings.Contains(st.Error, want) || st.DeviceErrors == 0 || st.Mismatches == nil || st.Mismatches.Source == 0 {
		t.Errorf("status %+v", st)
	}
	if m := p.mirrors[0].status(); m.State != "ok" || m.Primary.Holes != page {
		t.Errorf("the mirror: %+v %+v", m, m.Primary)
	}
	b.stays.Store(false)
	p.write(c, b.off, page) // which heals it; otherwise it is tried again every minute
	p.settle()
	if m := p.mirrorStatus(0); m.Holes != 0 {
		t.Errorf("%d holes are left", m.Holes)
	}
	p.equal(0)
}

// loopDevice attaches a loop device to a file until the end of the test.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	for _, tool := range []string{"losetup", "blockdev"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices here: ", err)
	}
	dev := output(t, "losetup", "--find", "--show", file)
	output(t, "blockdev", "--setrw", dev) // the flag outlives an attachment
	t.Cleanup(func() {
		output(t, "blockdev", "--setrw", dev)
		output(t, "losetup", "--detach", dev)
	})
	return dev
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// While a mirror is read-only so is its block device, over restarts, save while the mirror itself writes to it.
func TestReadOnlyBlockDevice(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, liveSize)); err != nil {
		t.Fatal(err)
	}
	dev := loopDevice(t, image)
	p := newLivePair(t, 1, func(i int, c *VolumeConfig) {
		if i == 0 {
			c.Path = dev
		}
	})
	flag := func() string { return output(t, "blockdev", "--getro", dev) }
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	p.spoil(dev, 3*DefaultBlockSize)
	if got := flag(); got != "0" {
		t.Errorf("the flag is %s before anything happened", got)
	}
	if r := p.verify(); !slices.Equal(r.Extents, blocksAt(3)) {
		t.Fatalf("verify %+v", r)
	}
	m := p.mirrors[0]
	for range 2 {
		eventually(t, "the device is read-only", func() bool { return m.status().State == "read-only" && flag() == "1" })
		m.stop()
		if got := flag(); got != "1" {
			t.Errorf("the flag is %s while the mirror is stopped", got)
		}
		m.start()
	}
	p.write(c, 4*mib, mib)
	eventually(t, "the mirror is here", func() bool { return p.mirrorStatus(0).ReadOnly != nil })
	p.repair(RepairOptions{})
	p.settle()
	p.equal(0)
	if got := flag(); got != "0" {
		t.Errorf("the flag is %s after the repair", got)
	}
}
