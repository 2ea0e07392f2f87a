package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// livePair is a primary with mirrors in this process, on real files and loopback TCP.
type livePair struct {
	t       *testing.T
	dir     string
	primary *liveNode
	mirrors []*liveNode
}

// liveNode is one daemon that can be stopped and started again under the same state, address and images.
type liveNode struct {
	t      *testing.T
	state  string
	listen string
	volume VolumeConfig
	device openDevice     // nil: the real one
	id     *identity.Node // nil: insecure
	probe  time.Duration  // between probes of mirrors; 0: as always
	renew  int64          // bytes of a connection; 0: as always
	reload chan map[string]VolumeConfig
	stop   func()

	logging sync.Mutex
	lines   []string
}

func (n *liveNode) log(text string) {
	n.t.Log(filepath.Base(n.state)+":", text)
	n.logging.Lock()
	defer n.logging.Unlock()
	n.lines = append(n.lines, text)
}

// logged counts the lines that hold a text.
func (n *liveNode) logged(part string) (count int) {
	n.logging.Lock()
	defer n.logging.Unlock()
	for _, line := range n.lines {
		if strings.Contains(line, part) {
			count++
		}
	}
	return count
}

func (n *liveNode) control() string { return filepath.Join(n.state, "control.sock") }

func (n *liveNode) start() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var routine sync.WaitGroup
	var err error
	routine.Go(func() {
		err = Serve(ctx, ServerOptions{StateDir: n.state, Listen: n.listen, Volumes: map[string]VolumeConfig{"v": n.volume}, Insecure: n.id == nil, Identity: n.id,
			device: n.device, probeEvery: n.probe, renewAfter: n.renew, Reload: n.reload, Version: "test", Log: n.log})
	})
	n.stop = sync.OnceFunc(func() {
		cancel()
		routine.Wait()
		if err != nil {
			n.t.Errorf("serve: %v", err)
		}
	})
	n.t.Cleanup(n.stop)
	eventually(n.t, "the control socket appears", func() bool {
		st, err := FetchStatus(n.t.Context(), n.control())
		if err == nil {
			n.listen = st.Listen
		}
		return err == nil
	})
}

func (n *liveNode) status() VolumeStatus {
	n.t.Helper()
	st, err := FetchStatus(n.t.Context(), n.control())
	if err != nil {
		n.t.Fatal(err)
	}
	return st.Volumes[0]
}

const liveSize = 24 * mib

// newLivePair makes images of size bytes and starts all nodes. edit changes settings before that; i is -1
// for the primary.
func newLivePair(t *testing.T, mirrors int, edit func(i int, c *VolumeConfig)) *livePair {
	t.Helper()
	p := &livePair{t: t, dir: t.TempDir()}
	c := VolumeConfig{Path: filepath.Join(p.dir, "primary.img"), Export: "unix:" + filepath.Join(p.dir, "s"), Interval: 50 * time.Millisecond}
	if err := os.WriteFile(c.Path, make([]byte, liveSize), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range mirrors {
		name := "mirror" + string(rune('0'+i))
		m := &liveNode{t: t, state: filepath.Join(p.dir, name), listen: "127.0.0.1:0", volume: VolumeConfig{Path: filepath.Join(p.dir, name+".img")}}
		if edit != nil {
			edit(i, &m.volume)
		}
		m.start()
		p.mirrors = append(p.mirrors, m)
		c.Mirrors = append(c.Mirrors, MirrorConfig{Name: name, Address: m.listen})
	}
	if edit != nil {
		edit(-1, &c)
	}
	p.primary = &liveNode{t: t, state: filepath.Join(p.dir, "primary"), listen: "127.0.0.1:0", volume: c}
	p.primary.start()
	return p
}

// settle waits until every mirror has applied a cut that is later than this call.
func (p *livePair) settle() {
	p.t.Helper()
	if _, err := Cut(p.t.Context(), p.primary.control(), "v", true, 60*time.Second); err != nil {
		p.t.Fatal(err)
	}
}

func (p *livePair) equal(i int) {
	p.t.Helper()
	a, err := os.ReadFile(p.primary.volume.Path)
	if err != nil {
		p.t.Fatal(err)
	}
	b, err := os.ReadFile(p.mirrors[i].volume.Path)
	if err != nil {
		p.t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		p.t.Fatalf("mirror %d differs from the primary", i)
	}
}

func (p *livePair) client() *stamp.Client {
	p.t.Helper()
	c, err := stamp.Dial("unix", filepath.Join(p.dir, "s"), "v")
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.Close)
	return c
}

func (p *livePair) write(c *stamp.Client, off int64, n int) {
	p.t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	if err := c.Write(b, off, 0); err != nil {
		p.t.Fatal(err)
	}
}

func (p *livePair) mirrorStatus(i int) MirrorStatus { return p.primary.status().Mirrors[i] }

// Two mirrors follow a writer that never stops; one of them is taken away and comes back, again and again.
// Whenever a mirror is stopped its image is the primary at one cut, and cuts never go back.
func TestLiveMirrorsAlwaysShowACut(t *testing.T) {
	p := newLivePair(t, 2, nil)
	h := stamp.NewHistory(liveSize/stamp.PageSize, 7)
	w := stamp.NewWriter(h, stamp.Load{Network: "unix", Address: filepath.Join(p.dir, "s"), Export: "v", Seed: 7, Pause: time.Millisecond})
	w.Start()
	defer w.Stop()
	var last [2]stamp.Cut
	for round := range 6 {
		i := round % 2
		before := p.mirrorStatus(i).CommittedEpoch
		eventually(t, "the mirror commits", func() bool { return p.mirrorStatus(i).CommittedEpoch > before+2 && p.mirrorStatus(i).State != "bulk" })
		p.mirrors[i].stop()
		cut, err := h.CheckFile(p.mirrors[i].volume.Path)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if round >= 2 {
			if err := h.Forward(last[i], cut); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		last[i] = cut
		p.mirrors[i].start()
	}
	if err := w.Quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.settle()
	p.equal(0)
	p.equal(1)
}

// A primary that is stopped cleanly ships nothing when it starts again.
func TestLiveCleanRestart(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, mib)
	p.settle()
	c.Close()
	p.primary.stop()
	p.equal(0)
	p.primary.start()
	p.settle()
	if m := p.mirrorStatus(0); m.ShippedBytes != 0 || m.OfferedBytes != 0 {
		t.Errorf("shipped %d and offered %d bytes after a clean stop", m.ShippedBytes, m.OfferedBytes)
	}
}

// What somebody writes to the primary's image while it is stopped is found with the index and shipped.
func TestLiveForeignWrites(t *testing.T) {
	t.Parallel() // it waits most of the time
	for _, indexed := range []bool{false, true} {
		p := newLivePair(t, 1, nil)
		c := p.client()
		p.write(c, 0, 4*mib)
		p.settle()
		if indexed { // the indexer has been over all of it
			eventually(t, "the index is made", func() bool {
				v := p.primary.status()
				return v.IndexNeeds == 0
			})
		}
		c.Close()
		p.primary.stop()
		scribble(t, p.primary.volume.Path, 5, 3)
		p.primary.start()
		eventually(t, "the comparison is done", func() bool { return !p.primary.status().Unproven })
		p.settle()
		p.equal(0)
		m := p.mirrorStatus(0)
		if indexed && (m.OfferedBytes > liveSize/2 || m.ShippedBytes == 0) {
			t.Errorf("with an index %d bytes were offered and %d shipped", m.OfferedBytes, m.ShippedBytes)
		}
		p.primary.stop()
		p.mirrors[0].stop()
	}
}

// A primary whose state directory is gone is told by its mirror that it is a stranger; rebuild makes it the
// child of what the mirror holds, and nothing is copied twice.
func TestLiveRebuild(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 8*mib)
	p.settle()
	uuid := p.primary.status().UUID
	c.Close()
	p.primary.stop()
	if err := os.RemoveAll(p.primary.state); err != nil {
		t.Fatal(err)
	}
	p.primary.start()
	eventually(t, "the mirror refuses a stranger", func() bool {
		d := p.mirrorStatus(0).LastDisconnect
		return d != nil && strings.Contains(d.Error, "another volume")
	})
	if err := Rebuild(t.Context(), p.primary.control(), "v"); err != nil {
		t.Fatal(err)
	}
	p.settle()
	p.equal(0)
	m := p.mirrorStatus(0)
	if m.ShippedBytes != 0 || p.primary.status().UUID != uuid {
		t.Errorf("shipped %d bytes, UUID %s, want 0 and %s", m.ShippedBytes, p.primary.status().UUID, uuid)
	}
	wantKind(t, Rebuild(t.Context(), p.primary.control(), "v"), KindState)
}

// A damaged journal makes the volume failed, and rebuild goes on from the mirror.
func TestLiveDamagedJournal(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 8*mib)
	p.settle()
	c.Close()
	p.primary.stop()
	segments, err := filepath.Glob(filepath.Join(p.primary.state, "volumes/v/journal/*.ckpt"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no checkpoint found: %v", err)
	}
	if err := os.WriteFile(segments[0], []byte("rotten"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.primary.start()
	if v := p.primary.status(); v.State != "failed" || !strings.Contains(v.Next, "rebuild") {
		t.Fatalf("state %s, next %q", v.State, v.Next)
	}
	if err := Rebuild(t.Context(), p.primary.control(), "v"); err != nil {
		t.Fatal(err)
	}
	p.settle()
	p.equal(0)
}

// The journal of another version is not damage: rebuild leaves it alone and says so, at either end.
func TestLiveOtherVersion(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, mib)
	p.settle()
	c.Close()
	p.primary.stop()
	p.mirrors[0].stop()
	for _, n := range []*liveNode{p.primary, p.mirrors[0]} {
		paths, err := filepath.Glob(filepath.Join(n.state, "volumes/v/journal/*.seg"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no segment found: %v", err)
		}
		newer, err := os.ReadFile(paths[0])
		if err != nil {
			t.Fatal(err)
		}
		makeNewer(newer)
		if err := os.WriteFile(paths[0], newer, 0o600); err != nil {
			t.Fatal(err)
		}
		n.start()
		err = Rebuild(t.Context(), n.control(), "v")
		wantKind(t, err, KindState)
		if v := n.status(); v.State != "failed" || !strings.Contains(v.Next, "run the version") || !strings.Contains(err.Error(), "version") {
			t.Errorf("state %s, next %q, rebuild: %v", v.State, v.Next, err)
		}
		if now, err := os.ReadFile(paths[0]); err != nil || !bytes.Equal(now, newer) {
			t.Errorf("the journal was touched: %v", err)
		}
	}
}

// A mirror whose staging is too small for what comes keeps its cut and says what is missing; nothing is
// lost, and with room it goes on.
func TestLiveHolding(t *testing.T) {
	p := newLivePair(t, 1, func(i int, c *VolumeConfig) {
		if i == 0 {
			c.StagingLimit = 2 * mib
		}
	})
	c := p.client()
	p.settle()
	committed := p.mirrorStatus(0).CommittedEpoch
	p.write(c, 0, 8*mib)
	eventually(t, "the mirror holds", func() bool { return p.mirrorStatus(0).State == "holding" })
	if m := p.mirrorStatus(0); m.RoomMissing == 0 || m.NeedsBytes < 8*mib || p.mirrors[0].status().Epoch < committed {
		t.Errorf("holding: %+v", m)
	}
	p.mirrors[0].stop()
	p.mirrors[0].volume.StagingLimit = 0
	p.mirrors[0].start()
	if err := Resume(t.Context(), p.primary.control(), "v", ""); err != nil {
		t.Fatal(err)
	}
	p.settle()
	p.equal(0)
}

// With on_staging_full = "bulk" the same mirror is overwritten in place instead.
func TestLiveBulkWhenFull(t *testing.T) {
	p := newLivePair(t, 1, func(i int, c *VolumeConfig) {
		if i == 0 {
			c.StagingLimit = 2 * mib
		} else {
			c.OnStagingFull = "bulk"
		}
	})
	c := p.client()
	p.settle()
	p.write(c, 0, 8*mib)
	p.settle()
	p.equal(0)
	if m := p.mirrorStatus(0); m.GivenUp == 0 {
		t.Errorf("no cut was given up: %+v", m)
	}
}

// A mirror that was put back to an older state is compared as a whole; a primary that was put back moves
// nothing until a person says so.
func TestLivePutBack(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	c.Close()
	p.primary.stop()
	p.mirrors[0].stop()
	backup := t.TempDir()
	keep := func(n *liveNode, name string) {
		if err := os.CopyFS(filepath.Join(backup, name), os.DirFS(n.state)); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(filepath.Join(backup, name+"-image"), os.DirFS(p.dir)); err != nil && !errors.Is(err, os.ErrInvalid) {
			t.Log(err)
		}
	}
	restore := func(n *liveNode, name string) {
		if err := os.RemoveAll(n.state); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(n.state, os.DirFS(filepath.Join(backup, name))); err != nil {
			t.Fatal(err)
		}
	}
	os.Remove(filepath.Join(p.dir, "s"))
	keep(p.mirrors[0], "m")
	keep(p.primary, "p")
	p.mirrors[0].start()
	p.primary.start()
	c = p.client()
	p.write(c, mib, 4*mib)
	p.settle()
	p.write(c, 2*mib, 4*mib)
	p.settle()
	c.Close()

	p.mirrors[0].stop()
	restore(p.mirrors[0], "m") // its image is of today, which is the worse case
	p.mirrors[0].start()
	p.settle()
	p.equal(0)
	p.primary.stop()
	restore(p.primary, "p")
	p.primary.start()
	eventually(t, "the mirror is refused", func() bool { return p.mirrorStatus(0).State == "refused" })
	before := p.mirrors[0].status().Epoch
	if err := Resume(t.Context(), p.primary.control(), "v", p.primary.volume.Mirrors[0].Name); err != nil {
		t.Fatal(err)
	}
	p.settle()
	p.equal(0)
	if after := p.mirrors[0].status().Epoch; after <= before {
		t.Errorf("the mirror went from cut %d to %d", before, after)
	}
}

// A payload that is damaged on its way is never staged, and shipped again.
func TestLiveDamagedPayload(t *testing.T) {
	var mu sync.Mutex
	damage := 0
	p := newLivePair(t, 1, func(i int, c *VolumeConfig) {
		if i < 0 {
			c.Mirrors[0].Address = frameProxy(t, c.Mirrors[0].Address, func(d *wire.Data) bool {
				mu.Lock()
				defer mu.Unlock()
				if damage > 0 {
					damage--
					d.Payload[len(d.Payload)/2] ^= 4
				}
				return true
			})
		}
	})
	c := p.client()
	p.settle()
	mu.Lock()
	damage = 3
	mu.Unlock()
	p.write(c, 0, mib)
	p.settle()
	p.equal(0)
	if m := p.mirrorStatus(0); m.RetriedBlocks != 3 {
		t.Errorf("%d blocks were sent again, want 3", m.RetriedBlocks)
	}
}
