package engine

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
	"github.com/blkmirror/blkmirror/wire"
)

// damaging makes a pair whose line damages the payload at an offset as often as was said.
func damaging(t *testing.T, off int64) (p *livePair, damage func(times int)) {
	var mu sync.Mutex
	left := 0
	p = newLivePair(t, 1, func(i int, c *VolumeConfig) {
		if i < 0 {
			c.Mirrors[0].Address = frameProxy(t, c.Mirrors[0].Address, func(d *wire.Data) bool {
				mu.Lock()
				defer mu.Unlock()
				if left > 0 && d.Offset <= off && off < d.Offset+int64(d.RawLength) {
					left--
					d.Payload[len(d.Payload)/2] ^= 4
				}
				return true
			})
		}
	})
	return p, func(times int) {
		mu.Lock()
		defer mu.Unlock()
		left = times
	}
}

func (p *livePair) repair(o RepairOptions) RepairResult {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	r, err := Repair(ctx, p.primary.control(), "v", o, func(CheckProgress) {})
	if err != nil || len(r) != 1 {
		p.t.Fatalf("repair %+v: %v", r, err)
	}
	return r[0]
}

func (p *livePair) verify() VerifyResult {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Minute)
	defer cancel()
	r, err := Verify(ctx, p.primary.control(), "v", VerifyOptions{}, func(CheckProgress) {})
	if err != nil || len(r) != 1 {
		p.t.Fatalf("verify %+v: %v", r, err)
	}
	return r[0]
}

// spoil changes a byte of a mirror's image behind its back.
func (p *livePair) spoil(path string, off int64) {
	p.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		p.t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, off); err != nil {
		p.t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		p.t.Fatal(err)
	}
}

// A block that stays damaged makes the mirror read-only, over restarts of both sides; writes go on, and a repair
// brings what is needed.
func TestMismatchRepair(t *testing.T) {
	const at = mib + 5*DefaultBlockSize
	p, damage := damaging(t, at)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	damage(4)
	p.write(c, at, DefaultBlockSize)
	eventually(t, "the mirror is read-only", func() bool { return p.mirrors[0].status().State == "read-only" })
	ro := p.mirrors[0].status().ReadOnly
	if ro == nil || ro.Class != "payload" || len(ro.Blocks) != 1 || ro.Blocks[0] != at/DefaultBlockSize {
		t.Fatalf("read-only %+v", ro)
	}
	eventually(t, "the primary knows", func() bool {
		m := p.mirrorStatus(0)
		return m.State == "read-only" && m.ReadOnly != nil && m.ReadOnly.Class == "payload"
	})
	cut := p.mirrors[0].status().Epoch
	p.write(c, 2*mib, mib)
	p.mirrors[0].stop()
	p.mirrors[0].start()
	if st := p.mirrors[0].status(); st.State != "read-only" || st.Epoch != cut {
		t.Errorf("after a restart %+v", st)
	}
	eventually(t, "the primary knows again", func() bool { m := p.mirrorStatus(0); return m.State == "read-only" && m.ReadOnly != nil })
	if dry := p.repair(RepairOptions{DryRun: true}); dry.Nothing || dry.Blocks != 1 || p.mirrors[0].status().State != "read-only" {
		t.Errorf("dry run %+v", dry)
	}
	r := p.repair(RepairOptions{})
	if r.Nothing || r.Blocks != 1 || r.ShippedBytes < DefaultBlockSize {
		t.Errorf("repair %+v", r)
	}
	p.settle()
	p.equal(0)
	if st := p.mirrors[0].status(); st.State != "ok" || st.ReadOnly != nil {
		t.Errorf("after the repair %+v", st)
	}
	if m := p.mirrorStatus(0); m.ReadOnly != nil || m.State == "read-only" {
		t.Errorf("after the repair %+v", m)
	}
	if r := p.repair(RepairOptions{}); !r.Nothing {
		t.Errorf("another repair %+v", r)
	}
}

// What somebody changed in a mirror's image is found by verify, exactly, and repaired by bringing just that.
func TestVerifyAndRepair(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	if r := p.verify(); len(r.Extents) != 0 || r.CheckedBytes != liveSize || r.SkippedBytes != 0 {
		t.Fatalf("verify of what is equal: %+v", r)
	}
	image := p.mirrors[0].volume.Path
	for _, off := range []int64{3*DefaultBlockSize + 7, 40 * DefaultBlockSize} {
		p.spoil(image, off)
	}
	r := p.verify()
	if len(r.Extents) != 2 || r.Extents[0] != (CheckedExtent{3 * DefaultBlockSize, DefaultBlockSize}) || r.Extents[1].Offset != 40*DefaultBlockSize {
		t.Fatalf("verify: %+v", r)
	}
	if st := p.mirrors[0].status(); st.State != "read-only" || st.ReadOnly.Class != "verify" || len(st.ReadOnly.Blocks) != 2 {
		t.Errorf("status %+v %+v", st, st.ReadOnly)
	}
	if r := p.repair(RepairOptions{}); r.Blocks != 2 || r.ShippedBytes > 2*DefaultBlockSize || r.ShippedBytes == 0 {
		t.Errorf("repair %+v", r)
	}
	p.equal(0)
	if r := p.verify(); len(r.Extents) != 0 {
		t.Errorf("verify after the repair: %+v", r)
	}
	// Everything, of a mirror that knows of nothing.
	p.spoil(image, 17*DefaultBlockSize+99)
	if r := p.repair(RepairOptions{All: true}); r.ShippedBytes == 0 || r.ShippedBytes > DefaultBlockSize || r.ComparedBytes < liveSize {
		t.Errorf("repair of everything: %+v", r)
	}
	p.equal(0)
}

// Under a writer that never stops nothing is ever reported that is not so.
func TestVerifyUnderLoad(t *testing.T) {
	p := newLivePair(t, 1, nil)
	p.settle()
	h := stamp.NewHistory(liveSize/stamp.PageSize, 11)
	w := stamp.NewWriter(h, stamp.Load{Network: "unix", Address: filepath.Join(p.dir, "s"), Export: "v", Seed: 11, Pause: 20 * time.Millisecond})
	w.Start()
	defer w.Stop()
	if r := p.verify(); len(r.Extents) != 0 || r.CheckedBytes == 0 {
		t.Fatalf("verify under load: %+v", r)
	}
}

// While a mirror is read-only a frozen export refuses writes, also in the next process, and lets them in after the
// repair.
func TestFreeze(t *testing.T) {
	p := newLivePair(t, 1, func(i int, c *VolumeConfig) {
		if i < 0 {
			c.OnMismatch = "freeze"
		}
	})
	c := p.client()
	p.write(c, 0, mib)
	p.settle()
	p.spoil(p.mirrors[0].volume.Path, DefaultBlockSize)
	if r := p.verify(); len(r.Extents) != 1 {
		t.Fatalf("verify %+v", r)
	}
	eventually(t, "writes are refused", func() bool { return c.Write(make([]byte, 4096), 0, 0) != nil })
	if err := c.Read(make([]byte, 4096), 0); err != nil {
		t.Errorf("reads are refused: %v", err)
	}
	p.primary.stop()
	p.primary.start()
	c = p.client()
	if c.Write(make([]byte, 4096), 0, 0) == nil {
		t.Error("a write was let in after a restart")
	}
	p.repair(RepairOptions{})
	eventually(t, "writes are let in", func() bool { return c.Write(make([]byte, 4096), 0, 0) == nil })
	p.settle()
	p.equal(0)
}

// A mirror whose index is damaged says so, and where somebody may have written to its disk, all of it is compared:
// nothing is shipped again that is there.
func TestMirrorWithDamagedIndex(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 8*mib)
	p.settle()
	m := p.mirrors[0]
	m.stop()
	p.spoil(m.volume.Path, 3*DefaultBlockSize)
	index := filepath.Join(m.state, "volumes", "v", "index")
	entries, err := os.ReadDir(index)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.WriteFile(filepath.Join(index, e.Name()), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := p.mirrorStatus(0)
	m.start()
	eventually(t, "the mirror vouches for everything", func() bool {
		st := m.status()
		return st.State == "ok" && !st.Unproven
	})
	p.settle()
	p.equal(0)
	after := p.mirrorStatus(0)
	if shipped, offered := after.ShippedBytes-before.ShippedBytes, after.OfferedBytes-before.OfferedBytes; shipped == 0 || shipped > DefaultBlockSize || offered < liveSize {
		t.Errorf("%d bytes were shipped and %d compared", shipped, offered)
	}
	if n := m.status().IndexDropped; n != 1 {
		t.Errorf("the index was dropped %d times, want once", n)
	}
}
