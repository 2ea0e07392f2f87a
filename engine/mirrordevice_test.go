package engine

import (
	"slices"
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
