package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/journal/journaltest"
	"github.com/blkmirror/blkmirror/wire"
)

// An epoch that the device does not take is lost to nobody: the volume says so, sends its primary away, and
// goes on when the device works again.
func TestMirrorDeviceFails(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.hangUp()
	w.stop()
	w.rules = []devtest.Rule{{Op: devtest.OpWrite, Effect: devtest.Fail(syscall.EIO)}}
	w.open()
	p.dial()
	p.change(0, 4*testBlock, 3)
	p.rebase(2, 0, 3)
	p.stage(3, 0, 4*testBlock)
	p.sendCommit(2, 3)
	expect[*wire.Committed](p)
	if code := p.lastWord(); code != wire.CodeDevice {
		t.Errorf("ended with %v", code)
	}
	p.hangUp()
	eventually(t, "the volume fails", func() bool { return w.status().State == "failed" })
	if st := w.status(); st.Error == "" || st.Next == "" || st.Epoch != 3 {
		t.Errorf("status %+v", st)
	}
	eventually(t, "its primary is sent away", func() bool {
		_, err := p.knock()
		p.hangUp()
		return isRefused(err, wire.CodeDevice)
	})
	w.m.call(func() { w.rules = nil })
	w.m.resume("")
	p.applied(3)
	w.mustHold(p.content)
	if st := w.status(); st.State != "ok" {
		t.Errorf("status %+v", st)
	}
}

// A disk error at any place in the state directory loses nothing: afterwards the mirror holds the cut before
// or this one, as it says.
func TestMirrorStateDirectoryFails(t *testing.T) {
	epoch := func(p *fakePrimary) (err error) {
		defer func() {
			if recover() != nil {
				err = errors.New("the session ended")
			}
		}()
		return tryEpoch(p)
	}
	probe := newMirrorWorld(t, mib)
	p := probe.synced()
	before := probe.fs.Count(journaltest.OpAny)
	if err := epoch(p); err != nil {
		t.Fatal(err)
	}
	p.applied(3)
	n := probe.fs.Count(journaltest.OpAny) - before
	t.Logf("an epoch takes %d operations", n)
	for i := range n {
		for _, seed := range []uint64{uint64(i) % 2, uint64(i) + 7} {
			w := newMirrorWorld(t, mib)
			p := w.synced()
			old := append([]byte(nil), p.content...)
			for k := range 400 { // the disk is gone from here on
				w.fs.Fail(journaltest.OpAny, w.fs.Count(journaltest.OpAny)+i+k, syscall.EIO)
			}
			epoch(p)
			eventually(t, "the disk fails", func() bool { return w.fs.Struck() > 0 || w.status().Primary.AppliedEpoch == 3 })
			c := w.crash(seed)
			w.kill()
			p.conn.Close(nil)
			p.routine.Wait()
			c.fs.Heal()
			c.open()
			p.moveTo(c)
			a := p.dial()
			want := old
			if a.LastCut == 3 {
				want = p.content
			}
			if a.LastCut != 2 && a.LastCut != 3 || a.Applied != a.LastCut || a.Flags != 0 {
				t.Fatalf("operation %d, seed %d: %+v", i, seed, a)
			}
			c.mustHold(want)
			c.mustIndex()
			p.hangUp()
			c.kill()
		}
	}
}

// tryEpoch brings epoch 3, as far as the mirror lets it.
func tryEpoch(p *fakePrimary) error {
	p.change(0, 3*testBlock, 9)
	p.seq++
	r := &wire.Rebase{Seq: p.seq, Base: 2, New: 3}
	p.chain, p.pages = wire.Chain{}, map[int64]bool{}
	p.chain.AddRebase(r)
	if err := p.conn.Send(r); err != nil {
		return err
	}
	for off := int64(0); off < 3*testBlock; off += testBlock {
		d := p.frame(3, off, testBlock)
		if off == testBlock { // only a part of the second
			copy(p.content[off+testBlock/2:off+testBlock], p.w.disk.Bytes()[off+testBlock/2:])
			p.seq--
			d = p.frame(3, off, testBlock/2)
		}
		p.chain.Add(d)
		for at := off; at < off+int64(d.RawLength); at += page {
			p.pages[at] = true
		}
		if err := p.conn.Send(d); err != nil {
			return err
		}
	}
	answered := 0
	for {
		m, err := p.conn.Next()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *wire.Ack:
			if answered += len(m.Entries); answered == 3 {
				err = p.conn.Send(&wire.Commit{Epoch: 3, Base: 2, Records: p.chain.Records(), Pages: uint64(len(p.pages)), Chain: p.chain.Sum()})
			}
		case *wire.Committed:
			return nil
		case *wire.Halt:
			return errors.New(m.Text)
		}
		if err != nil {
			return err
		}
	}
}

// A power cut at any moment of applying leaves a device that the next start brings to the cut.
func TestMirrorPowerCutWhileApplying(t *testing.T) {
	for _, at := range []struct {
		op  devtest.Op
		nth int
	}{{devtest.OpWrite, 1}, {devtest.OpWrite, 2}, {devtest.OpWrite, 3}, {devtest.OpFlush, 1}} {
		for seed := range uint64(6) {
			w := newMirrorWorld(t, mib)
			p := w.synced()
			p.hangUp()
			w.stop()
			reached, leave := make(chan struct{}), make(chan struct{})
			w.rules = []devtest.Rule{{Op: at.op, When: devtest.Nth(at.nth), Times: 1, Effect: devtest.Hook(func(devtest.Call) { close(reached); <-leave })}}
			w.open()
			p.dial()
			p.change(0, 2*testBlock, 4)
			p.change(4*testBlock+page, 3*page, 5)
			p.change(12*testBlock, testBlock, 6)
			p.rebase(2, 0, 3)
			p.stage(3, 12*testBlock, testBlock)
			p.stage(3, 4*testBlock+page, 3*page)
			p.stage(3, 0, 2*testBlock)
			p.commit(2, 3)
			<-reached
			c := w.crash(seed)
			close(leave)
			p.hangUp()
			w.kill()
			c.open()
			c.mustHold(p.content)
			c.mustIndex()
			if st := c.status(); st.Epoch != 3 || st.Primary.AppliedEpoch != 3 || st.State != "ok" {
				t.Errorf("status %+v %+v", st, st.Primary)
			}
			c.kill()
		}
	}
}

// A clean stop leaves no epoch half applied.
func TestMirrorStopsClean(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.change(0, mib, 3)
	p.rebase(2, 0, 3)
	p.stage(3, 0, mib)
	p.commit(2, 3)
	w.stop()
	w.mustHold(p.content)
	if n := w.disk.Unflushed(); n != 0 {
		t.Errorf("%d sectors are not flushed", n)
	}
	if code := p.lastWord(); code != wire.CodeStopped {
		t.Errorf("the primary was told %v", code)
	}
	for _, path := range w.fs.Paths() {
		if strings.HasSuffix(path, ".staging") {
			t.Errorf("%s is left", path)
		}
	}
	w.open()
	if st := w.status(); st.State != "ok" || st.Unproven {
		t.Errorf("status %+v", st)
	}
}

// A state directory that fills up ends the session and loses nothing that was acknowledged as durable.
func TestMirrorStateDirectoryFull(t *testing.T) {
	w := newMirrorWorld(t, 4*mib)
	p := w.synced()
	p.change(0, 4*mib, 2)
	p.rebase(2, 0, 3)
	w.fs.Limit(w.fs.Used() + 100<<10)
	for off := int64(0); off < 4*mib; off += testBlock {
		if p.conn.Send(p.frame(3, off, testBlock)) != nil {
			break
		}
	}
	if code := p.lastWord(); code != wire.CodeNoSpace {
		t.Errorf("ended with %v", code)
	}
	p.hangUp()
	w.fs.Limit(0)
	eventually(t, "it is opened again", func() bool {
		_, err := p.knock()
		if err != nil {
			p.hangUp()
		}
		return err == nil
	})
	if p.attached.LastCut != 2 {
		t.Errorf("attached %+v", p.attached)
	}
	p.rebase(2, 0, 4)
	p.stage(4, 0, 4*mib)
	p.commit(2, 4)
	p.applied(4)
	w.mustHold(p.content)
	w.mustIndex()
}

// The same with real files: an image that does not exist yet, a state directory, an index in badger.
func TestMirrorOnFiles(t *testing.T) {
	const size = 40*mib + 5000
	dir := t.TempDir()
	w := &mirrorWorld{t: t, size: size}
	path := filepath.Join(dir, "image")
	open := func() {
		m, err := openMirror(mirrorOptions{name: "v", dir: filepath.Join(dir, "state", "volumes", "v"), config: VolumeConfig{Path: path},
			log: func(text string) { t.Log(text) }})
		if err != nil {
			t.Fatal(err)
		}
		w.m = m
	}
	open()
	t.Cleanup(w.kill)
	p := newPrimary(w)
	p.change(0, size/2, 1)
	if a := p.dial(); a.Flags&wire.AttachedBlank == 0 || a.Size != size {
		t.Fatalf("attached %+v", a)
	}
	p.send(&wire.Bulk{Number: 1})
	p.bulkRange(0, size/2/page*page)
	p.flush(1)
	p.change(size/2/page*page, 3*mib, 2)
	p.rebase(1, 0, 2)
	p.stage(2, size/2/page*page, 3*mib)
	p.zero(2, mib, 3*testBlock)
	p.commit(1, 2)
	p.applied(2)
	p.hangUp()
	w.stop()
	mustHold := func() {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if at := differs(b, p.content); at >= 0 {
			t.Fatalf("the image differs at %d", at)
		}
	}
	mustHold()
	open()
	if st := w.status(); st.State != "ok" || st.Unproven {
		t.Fatalf("status %+v", st)
	}
	p.dial()
	if got := p.offer(0, 16*mib, testBlock); count(got) != 0 {
		t.Errorf("wanted %v", got)
	}
	p.change(size-904, 904, 3)
	p.rebase(2, 0, 3)
	p.stage(3, size-904, 904)
	p.commit(2, 3)
	w.kill() // not even a clean stop
	open()
	mustHold()
	if st := w.status(); st.State != "ok" || st.Epoch != 3 || st.Unproven {
		t.Errorf("status %+v", st)
	}
}
