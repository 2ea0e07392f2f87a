package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/wire"
)

var errBroken = errors.New("broken")

// offer offers a range in units and returns which of them are wanted.
func (p *fakePrimary) offer(off, n, unit int64) (wanted []bool) {
	p.t.Helper()
	m := &wire.Offer{Seq: 1, Offset: off, Length: uint32(n), Unit: uint32(unit)}
	for at := off; at < off+n; at += unit {
		m.Hashes = append(m.Hashes, wire.Sum(p.content[at:min(at+unit, off+n)]))
	}
	p.send(m)
	want := expect[*wire.Want](p)
	for i := range m.Hashes {
		wanted = append(wanted, want.Bits[i/8]>>(i%8)&1 == 1)
	}
	return wanted
}

func count(bits []bool) (n int) {
	for _, b := range bits {
		if b {
			n++
		}
	}
	return n
}

// Offers are answered from the device, by page or by block, when nothing is unapplied.
func TestMirrorOffers(t *testing.T) {
	w := newMirrorWorld(t, mib+5000)
	p := w.synced()
	p.change(3*testBlock+page, page, 2)
	p.change(mib+page, 904, 3)
	if got := p.offer(0, mib, testBlock); count(got) != 1 || !got[3] {
		t.Errorf("blocks wanted: %v", got)
	}
	if got := p.offer(mib, 5000, page); count(got) != 1 || !got[1] {
		t.Errorf("pages wanted: %v", got)
	}
	if got := p.offer(3*testBlock, testBlock, page); count(got) != 1 || !got[1] {
		t.Errorf("pages wanted: %v", got)
	}
	// One that comes while an epoch is applied waits, and is answered of what is there then.
	p.change(0, testBlock, 4)
	p.rebase(2, 0, 3)
	p.stage(3, 0, testBlock)
	p.stage(3, 3*testBlock, testBlock)
	p.stage(3, mib, 5000)
	p.commit(2, 3)
	if got := p.offer(0, mib, page); count(got) != 0 {
		t.Errorf("pages wanted: %v", got)
	}
	w.mustHold(p.content)
	w.mustIndex()
}

// A bulk that is interrupted goes on at its last number; a power cut loses at most what came behind it.
func TestMirrorBulkGoesOn(t *testing.T) {
	for seed := range uint64(8) {
		w := newMirrorWorld(t, mib)
		w.open()
		p := newPrimary(w)
		p.change(0, mib, 1)
		p.dial()
		p.send(&wire.Bulk{Number: 5})
		p.bulkRange(0, mib/2)
		p.flush(5)
		p.send(&wire.Bulk{Base: 5, Number: 6})
		p.bulkRange(mib/2, mib/4)
		c := w.crash(seed)
		p.hangUp()
		w.kill()
		c.open()
		p.moveTo(c)
		a := p.dial()
		if a.LastCut != 5 || a.InPlace != 6 || a.Flags != wire.AttachedBulk|wire.AttachedInconsistent {
			t.Fatalf("attached %+v", a)
		}
		if at := differs(c.disk.Bytes()[:mib/2], p.content[:mib/2]); at >= 0 {
			t.Fatalf("what was flushed differs at %d", at)
		}
		c.mustIndex()
		p.send(&wire.Bulk{Base: 5, Number: 7})
		p.bulkRange(mib/2, mib/2)
		p.flush(7)
		p.change(0, page, 2)
		p.rebase(7, 0, 8)
		p.stage(8, 0, page)
		p.commit(7, 8)
		p.applied(8)
		c.mustHold(p.content)
		c.mustIndex()
		if st := c.status(); st.State != "ok" {
			t.Errorf("status %+v", st)
		}
		p.hangUp()
		c.kill()
	}
}

// A bulk that was cut off before its first number leaves a mirror that is neither blank nor consistent.
func TestMirrorBulkCutOffAtTheStart(t *testing.T) {
	w := newMirrorWorld(t, mib)
	w.open()
	p := newPrimary(w)
	p.change(0, mib, 1)
	p.dial()
	p.send(&wire.Bulk{Number: 1})
	p.bulkRange(0, testBlock)
	c := w.crash(1)
	p.hangUp()
	w.kill()
	c.open()
	p.moveTo(c)
	if a := p.dial(); a.LastCut != 0 || a.InPlace != 1 || a.Flags != wire.AttachedInconsistent || a.Generation != (wire.Generation{}) {
		t.Fatalf("attached %+v", a)
	}
	if got := p.offer(0, 2*testBlock, testBlock); !got[1] {
		t.Errorf("wanted %v", got)
	}
}

// In bulk, too, nothing is written that is not what it says.
func TestMirrorBulkRefusesDamage(t *testing.T) {
	w := newMirrorWorld(t, mib)
	w.open()
	p := newPrimary(w)
	p.change(0, mib, 1)
	p.dial()
	p.send(&wire.Bulk{Number: 3})
	var run []wire.Message
	for i := range int64(4) {
		d := p.frame(0, i*testBlock, testBlock)
		d.Follow = uint32((3 - i) * testBlock)
		if i == 2 {
			d.Hash[0] ^= 1
		}
		run = append(run, d)
	}
	p.send(run...)
	acks, naks := 0, 0
	for acks+naks < 4 {
		switch m := p.next().(type) {
		case *wire.Ack:
			acks += len(m.Entries)
		case *wire.Nak:
			naks += len(m.Entries)
			if m.Entries[0].Offset != 2*testBlock || m.Entries[0].Cause != wire.NakHash {
				t.Errorf("nak %+v", m.Entries)
			}
		}
	}
	if naks != 1 {
		t.Errorf("%d refused", naks)
	}
	p.zero(0, 3*testBlock, 2*testBlock)
	p.bulkRange(2*testBlock, testBlock)
	p.bulkRange(5*testBlock, mib-5*testBlock)
	p.flush(3)
	w.mustHold(p.content)
	w.mustIndex()
}

// Two runs for one page take effect in their order, however many are written at once.
func TestMirrorBulkKeepsOrder(t *testing.T) {
	w := newMirrorWorld(t, mib)
	first, leave := make(chan struct{}), make(chan struct{})
	w.rules = []devtest.Rule{{Op: devtest.OpWrite, When: devtest.Nth(1), Times: 1, Effect: devtest.Hook(func(devtest.Call) { close(first); <-leave })}}
	w.open()
	p := newPrimary(w)
	p.change(0, mib, 1)
	p.dial()
	p.send(&wire.Bulk{Number: 1})
	p.send(p.frame(0, 0, testBlock))
	<-first
	p.change(page, page, 2)
	p.send(p.frame(0, page, page))
	p.send(p.frame(0, 5*testBlock, testBlock))
	close(leave)
	for n := 0; n < 3; {
		n += len(expect[*wire.Ack](p).Entries)
	}
	if at := differs(w.disk.Bytes()[:testBlock], p.content[:testBlock]); at >= 0 {
		t.Errorf("it differs at %d", at)
	}
}

// After another boot the mirror compares its device with its index, and says what it can no longer vouch for
// until a commit or an equal comparison covers it.
func TestMirrorComparesAfterReboot(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.change(0, 4*testBlock, 2)
	p.rebase(2, 0, 3)
	p.stage(3, 0, 4*testBlock)
	p.commit(2, 3)
	p.applied(3)
	p.hangUp()
	w.stop()
	w.index.Delete(9, 1) // nothing is known of this one
	w.index.Sync()
	w.disk.Reopen()
	w.disk.WriteAt([]byte("stranger"), 2*testBlock+5)
	w.disk.Flush()
	w.boot = "boot 2"
	w.open()
	doubted := func() bool {
		st := w.status()
		return st.State == "ok" && st.Unproven && st.Primary.NeedsBytes == 2*testBlock
	}
	eventually(t, "the comparison ends", doubted)
	// It is durable, and not done again.
	w.stop()
	w.open()
	eventually(t, "the doubts are there", doubted)
	if a := p.dial(); a.Flags != wire.AttachedDoubts || a.LastCut != 3 {
		t.Errorf("attached %+v", a)
	}
	if got := p.offer(0, mib, testBlock); count(got) != 1 || !got[2] {
		t.Errorf("wanted %v", got)
	}
	if len(p.doubts) != 2 || p.doubts[0].Offset != 2*testBlock || p.doubts[1].Offset != 9*testBlock {
		t.Errorf("doubts %+v", p.doubts)
	}
	eventually(t, "what is equal is vouched for", func() bool { return w.status().Primary.NeedsBytes == testBlock })
	p.rebase(3, 0, 4)
	p.stage(4, 2*testBlock, testBlock)
	p.commit(3, 4)
	p.applied(4)
	w.mustHold(p.content)
	w.mustIndex()
	if st := w.status(); st.Unproven || st.Primary.NeedsBytes != 0 {
		t.Errorf("status %+v %+v", st, st.Primary)
	}
}

// The same boot and an unclean end are no suspicion; writes while it was closed are.
func TestMirrorSuspicion(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	c := w.crash(3)
	p.hangUp()
	w.stop()
	c.open()
	if st := c.status(); st.State != "ok" || st.Unproven {
		t.Errorf("after an unclean end: %+v", st)
	}
	c.kill()
	w.seen = 99
	w.open()
	if got := strings.Join(w.logs.lines, "\n"); !strings.Contains(got, "written to while it was closed") {
		t.Errorf("log: %s", got)
	}
	eventually(t, "the comparison ends", func() bool { return w.status().State == "ok" })
	if st := w.status(); st.Primary.NeedsBytes != 0 {
		t.Errorf("doubts %+v", st.Primary)
	}
}

// makeNewer makes a segment of a journal the next version's, with a header that is whole.
func makeNewer(segment []byte) {
	segment[8]++
	binary.LittleEndian.PutUint32(segment[60:], crc32.Checksum(segment[:60], crc32.MakeTable(crc32.Castagnoli)))
}

// What another version has written is not set aside: that version can go on with it.
func TestMirrorRebuildRefusesOtherVersion(t *testing.T) {
	w := newMirrorWorld(t, mib)
	w.synced().hangUp()
	w.stop()
	newer := map[string][]byte{}
	for _, path := range w.fs.Paths() {
		if strings.HasSuffix(path, ".seg") {
			b := w.fs.Read(path)
			makeNewer(b)
			w.fs.Write(path, b)
			newer[path] = b
		}
	}
	w.open()
	if st := w.status(); st.State != "failed" || !strings.Contains(st.Next, "run the version") {
		t.Fatalf("status %+v", st)
	}
	wantKind(t, w.m.rebuild(), KindState)
	for path, b := range newer {
		if !bytes.Equal(w.fs.Read(path), b) {
			t.Errorf("%s was touched", path)
		}
	}
}

// A journal that is damaged fails the volume until a person has it rebuilt; then everything is compared.
func TestMirrorRebuild(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.hangUp()
	w.stop()
	for _, path := range w.fs.Paths() {
		if strings.HasSuffix(path, ".seg") {
			b := w.fs.Read(path)
			b[80] ^= 0xff
			w.fs.Write(path, b)
		}
	}
	w.open()
	st := w.status()
	if st.State != "failed" || st.Role != "mirror" || !strings.Contains(st.Next, "rebuild") {
		t.Fatalf("status %+v", st)
	}
	if _, err := p.knock(); !isRefused(err, wire.CodeDevice) {
		t.Errorf("a primary was told %v", err)
	}
	p.hangUp()
	if err := w.m.rebuild(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, w.m.rebuild(), KindState)
	if a := p.dial(); a.Flags != wire.AttachedInconsistent || a.LastCut != 0 || a.VolumeID != [16]byte{} {
		t.Errorf("attached %+v", a)
	}
	p.change(0, testBlock, 3)
	if got := p.offer(0, mib, testBlock); count(got) != 1 {
		t.Errorf("wanted %v", got)
	}
	p.rebase(0, 0, 8)
	p.stage(8, 0, testBlock)
	p.commit(0, 8)
	p.applied(8)
	w.mustHold(p.content)
	if st := w.status(); st.State != "ok" || st.Epoch != 8 {
		t.Errorf("status %+v", st)
	}
}

// A staged payload that rots between commit and apply is not written: the block is left out and asked for.
func TestMirrorRotInStaging(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.hangUp()
	w.stop()
	w.rules = []devtest.Rule{{Op: devtest.OpWrite, Times: 1, Effect: devtest.Fail(errBroken)}}
	w.open()
	p.dial()
	old := append([]byte(nil), p.content...)
	p.change(0, 2*testBlock, 3)
	p.rebase(2, 0, 3)
	p.stage(3, 0, 2*testBlock)
	p.sendCommit(2, 3)
	p.lastWord()
	p.hangUp()
	for _, path := range w.fs.Paths() {
		if strings.HasSuffix(path, ".staging") {
			b := w.fs.Read(path)
			b[len(b)/2] ^= 1
			w.fs.Write(path, b)
		}
	}
	w.kill()
	w.rules = nil
	w.open()
	st := w.status()
	if st.Epoch != 3 || st.Primary.NeedsBytes != testBlock || !st.Unproven {
		t.Fatalf("status %+v %+v", st, st.Primary)
	}
	if ro := st.ReadOnly; st.State != "read-only" || ro == nil || ro.Class != "staging" || len(ro.Blocks) != 1 {
		t.Fatalf("status %+v: read-only %+v", st, ro)
	}
	got := w.disk.Bytes()
	for block := range int64(2) {
		at := block * testBlock
		if differs(got[at:at+testBlock], p.content[at:at+testBlock]) >= 0 && differs(got[at:at+testBlock], old[at:at+testBlock]) >= 0 {
			t.Errorf("block %d is neither the old nor the new one", block)
		}
	}
	// Nothing is taken before a repair, which compares and brings it, is read back, and ends the state.
	if a := p.dial(); a.Flags&wire.AttachedReadOnly == 0 {
		t.Errorf("attached %+v", a)
	}
	p.send(&wire.Rebase{Seq: 1000, Base: 3, New: 4})
	if end := p.lastWord(); end != wire.CodeReadOnly {
		t.Errorf("a Rebase is answered by %v", end)
	}
	p.hangUp()
	p.dial()
	p.send(&wire.Repair{})
	got2 := p.offer(0, mib, testBlock)
	if q := p.quarantine; q == nil || len(q.Extents) != 1 || q.Extents[0].Length != testBlock {
		t.Errorf("quarantine %+v", q)
	}
	if len(p.doubts) != 1 {
		t.Errorf("doubts %v", p.doubts)
	}
	if count(got2) != 1 {
		t.Errorf("wanted %v", got2)
	}
	p.rebase(3, 0, 4)
	for i, wanted := range got2 {
		if wanted {
			p.stage(4, int64(i)*testBlock, testBlock)
		}
	}
	p.commit(3, 4)
	p.applied(4)
	if st := w.status(); st.State != "ok" || st.ReadOnly != nil {
		t.Errorf("after the repair: %+v", st)
	}
	w.mustHold(p.content)
}

// A pause is a person's and durable.
func TestMirrorPause(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	if err := w.m.pause(); err != nil {
		t.Fatal(err)
	}
	if code := p.lastWord(); code != wire.CodePaused {
		t.Errorf("the primary was told %v", code)
	}
	p.hangUp()
	w.stop()
	w.open()
	if st := w.status(); st.State != "paused" || st.Primary.State != "paused" {
		t.Errorf("status %+v", st)
	}
	if _, err := p.knock(); !isRefused(err, wire.CodePaused) {
		t.Errorf("attach: %v", err)
	}
	p.hangUp()
	if err := w.m.resume(""); err != nil {
		t.Fatal(err)
	}
	p.dial()
	_, err := w.m.cut(t.Context(), false)
	wantKind(t, err, KindState)
	wantKind(t, w.m.resume("b"), KindState)
}
