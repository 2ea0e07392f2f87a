package engine

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

// faulty has rules in front of a node's device.
func (p *livePair) faulty(n *liveNode, rules []devtest.Rule) {
	p.t.Helper()
	n.stop()
	n.device = withFaults(rules...)
	n.start()
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
