package journal_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
)

func TestDumpVolume(t *testing.T) {
	root := t.TempDir()
	l, _ := openVolume(t, osIn(root), journal.VolumeOptions{SegmentSize: 64 << 10})
	must(t, l.SetFacts(factsOf(1)))
	c, err := l.BeginCheckpoint()
	must(t, err)
	must(t, c.Finish(factsOf(2), setsOf(5), []uint64{9, 10, 700}))
	lsn, err := l.Mark([]uint64{3, 11, 4})
	must(t, err)
	must(t, l.Sync(lsn))
	must(t, l.SetFacts(factsOf(6)))
	must(t, l.Close())

	dir := filepath.Join(root, volumeDir)
	before := tree(t, root)
	state := []string{`checkpoint 1: \d+ bytes, from segment 2, LSN 2`,
		`  set "needs/m": 15 of 4194304`, `  set "needs/index": 1 of 262144`,
		`state: volume 0102[0-9a-f]{28}, role primary, size 17179869184, block size 65536`,
		`state: clean false, paused false, rebuilt false, boot "boot"`,
		`state: generation 09[0-9a-f]{30}, counter 4, child of 08[0-9a-f]{30} at cut 77`,
		`state: parent 08.*`, `state: cut 6`,
		`state: mirror "m": node [0-9a-f]{64}, committed 6, sent 7, bulk false, attached true, read-only false`,
		`hot: 6 regions of 4096 3-4 9-11 700`}
	records := []string{`segment DIR/journal/0000000002.seg: number 2, kind volume, log [0-9a-f]{32}, first LSN 2, 65536 bytes`,
		`  2 at 64: lists holes 1 doubts 2`,
		`  3 at \d+: checkpoint 1 bytes \d+ checksum [0-9a-f]{8} from segment 2 LSN 2 facts role primary cut 2 mirrors 1 clean false`,
		`  4 at \d+: mark 3 11 4`, `  5 at \d+: facts role primary cut 6 mirrors 1 clean false`,
		`  room of \d+ bytes at \d+`}
	out, err := dumped(t, dir, dir)
	must(t, err)
	wantLines(t, out, append(append([]string{`volume folder DIR`}, records...), state...)...)
	out, err = dumped(t, filepath.Join(dir, "journal"), dir)
	must(t, err)
	wantLines(t, out, append(records, state...)...)
	file := filepath.Join(dir, "journal", "0000000001.ckpt")
	out, err = dumped(t, file, dir)
	must(t, err)
	wantLines(t, out, `checkpoint file DIR/journal/0000000001.ckpt: number 1, log [0-9a-f]{32}, \d+ bytes`,
		`  set "needs/m": 15 of 4194304`, `  set "needs/index": 1 of 262144`, `  hot: 3 regions 9-10 700`)
	if after := tree(t, root); !mapsEqual(before, after) {
		t.Error("Dump changed something")
	}

	data := []byte(before[file])
	data[200] ^= 1
	must(t, os.WriteFile(file, data, 0o600))
	for _, path := range []string{dir, file} {
		out, err = dumped(t, path, dir)
		if !errors.Is(err, journal.ErrDamaged) {
			t.Errorf("%s: got %v", path, err)
		}
		wantLines(t, out, `DAMAGED: DIR/journal/0000000001.ckpt is damaged at offset \d+: .*`)
	}
	must(t, os.Remove(file))
	to, err := journal.SetAsideVolume(osIn(root), volumeDir)
	must(t, err)
	openVolume(t, osIn(root), journal.VolumeOptions{SegmentSize: 64 << 10})
	out, err = dumped(t, dir, dir)
	must(t, err)
	wantLines(t, out, `checkpoint: none`, `state: nothing is known`, `set aside as damaged: DIR/`+filepath.Base(to))
}

func TestDumpVolumeOfAMirror(t *testing.T) {
	root := t.TempDir()
	l, _ := openVolume(t, osIn(root), journal.VolumeOptions{SegmentSize: 64 << 10})
	f := factsOf(0)
	f.Role, f.Mirrors, f.Device = journal.RoleMirror, nil, []byte("{}")
	f.Mirror = journal.ReplicaFacts{Incarnation: 0xabc, Committed: 9, Applied: 7, Epochs: []uint64{8, 9}, InPlace: true,
		Holes: []blockdev.Extent{{Offset: 4096, Length: 8192}}}
	must(t, l.SetFacts(f))
	f.Mirror.Quarantine = []blockdev.Extent{{Offset: 65536, Length: 4096}}
	f.Mirror.ReadOnly = journal.ReadOnly{Class: journal.ClassDevice, Epoch: 9, Since: 1785000000, Reason: "block 1 \x1b",
		Blocks: []journal.BadBlock{{Offset: 65536, Want: hashOf(1, 1), Got: hashOf(2, 1)}}}
	must(t, l.SetFacts(f))
	must(t, l.Close())
	dir := filepath.Join(root, volumeDir)
	out, err := dumped(t, dir, dir)
	must(t, err)
	wantLines(t, out, `  1 at 64: lists holes 1 doubts 0`,
		`  2 at \d+: facts role mirror committed 9 applied 7 clean false lists 1`,
		`  3 at \d+: lists holes 1 doubts 0 quarantine 1 read-only mirror-device`, `  4 at \d+: facts role mirror .* lists 3`,
		`checkpoint: none`,
		`state: primary 0{64}, incarnation abc`, `state: committed 9, applied 7, epochs \[8 9\]`,
		`state: bulk false, inconsistent false, in place true towards 0, unproven false`,
		`state: 1 holes`, `  8192 bytes at 4096`, `state: 0 doubts`,
		`state: read-only: mirror-device, epoch 9, since 2026-07-25T17:20:00Z: "block 1 \\x1b"`,
		`  block at 65536: want [0-9a-f]{64}, got [0-9a-f]{64}`, `state: 1 extents in quarantine`, `  4096 bytes at 65536`,
		`state: device "{}"`, `hot: 0 regions of 4096`)
}
