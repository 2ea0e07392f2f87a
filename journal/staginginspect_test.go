package journal_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
)

func TestDumpStaging(t *testing.T) {
	root := t.TempDir()
	fsys := osIn(root)
	must(t, fsys.Mkdir(testDir))
	s, err := journal.CreateStaging(fsys, testDir, stagingHeader(7), journal.StagingOptions{})
	must(t, err)
	must(t, s.Append(journal.StagingRecord{Seq: 2, Kind: journal.StagingData, Codec: 1, Offset: page, Length: page,
		PayloadLength: 10}, make([]byte, 10)))
	must(t, s.Append(journal.StagingRecord{Seq: 3, Kind: journal.StagingZero, MayFree: true, Length: stagingSize}, nil))
	must(t, s.Sync(journal.StagingPoint{Seq: 3, Records: 2}))
	must(t, s.Rebase(4, 9, []blockdev.Extent{{Offset: 0, Length: page}, {Offset: page, Length: page}},
		journal.StagingPoint{Seq: 4, Records: 3}))
	must(t, s.Seal(5, stagingPages-2, journal.StagingPoint{Seq: 4, Records: 3}, []byte("holes")))
	must(t, s.Close())
	lost, err := journal.CreateStaging(fsys, testDir, stagingHeader(10), journal.StagingOptions{})
	must(t, err)
	defer lost.Close()

	dir := filepath.Join(root, testDir)
	before := tree(t, root)
	out, err := dumped(t, dir, dir)
	must(t, err)
	wantLines(t, out,
		`staging DIR/0000000009.staging: epoch 9 on base 5, made for epoch 7, file [0-9a-f]{32}, \d+ bytes`,
		`  volume 01[0]{30} of 164840 bytes, blocks of 16384, generation 02[0]{30}, incarnation 3`,
		`  records at 4096: 2, payloads of 10 bytes, durable below 0`,
		`    2: data 4096 at 4096, codec 1, payload 10 at 4304, hash [0-9a-f]{64}`,
		`    3: zero 164840 at 0, may be freed`,
		`  point at 8192: 2 records up to 3, chain [0-9a-f]{64}`,
		`  rebase at 12288: 4, epoch 7 to 9, 3 records up to 4, chain [0-9a-f]{64}`,
		`    void 8192 at 0`,
		`  footer at 16384: 3 records up to 4, chain [0-9a-f]{64}, base 5, 39 pages, extra of 5 bytes`,
		`staging: 2 records up to 4, 39 pages, sealed true`,
		`staging DIR/0000000010.staging.tmp: .*`, `  temporary: .*`)
	if after := tree(t, root); !mapsEqual(before, after) {
		t.Error("Dump changed something")
	}

	// A tail is shown and left; a file under any name is known by what it begins with.
	data := []byte(before[filepath.Join(dir, "0000000009.staging")])
	file := filepath.Join(root, "copy")
	must(t, os.WriteFile(file, data[:len(data)-1], 0o600))
	out, err = dumped(t, file, root)
	must(t, err)
	wantLines(t, out, `staging DIR/copy: epoch 9 .*`, `  rebase at 12288: .*`,
		`  tail at 12440: 4076 bytes that were never promised; .*`,
		`staging: 2 records up to 4, 39 pages, sealed false`)

	// Damage is shown and returned.
	data[4200] ^= 1
	must(t, os.WriteFile(file, data, 0o600))
	out, err = dumped(t, file, root)
	if !errors.Is(err, journal.ErrDamaged) {
		t.Errorf("got %v", err)
	}
	wantLines(t, out, `staging DIR/copy: .*`, `DAMAGED: DIR/copy is damaged at offset 4160: .*`)
	data[4200] ^= 1
	data[4100] ^= 1
	must(t, os.WriteFile(file, data, 0o600))
	out, err = dumped(t, file, root)
	if !errors.Is(err, journal.ErrDamaged) {
		t.Errorf("got %v", err)
	}
	wantLines(t, out,
		`DAMAGED: DIR/copy is damaged at offset 4096: no frame, but the one at offset 8192 says that it was durable`)
}
