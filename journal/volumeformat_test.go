package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/google/go-cmp/cmp"
)

// bytesFile is a file in memory, without faults.
type bytesFile struct{ data []byte }

func (f *bytesFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.data).ReadAt(p, off)
}

func (f *bytesFile) WriteAt(p []byte, off int64) (int, error) {
	f.data = append(f.data[:off], p...)
	return len(p), nil
}

func (f *bytesFile) Truncate(int64) error { return nil }
func (f *bytesFile) Sync() error          { return nil }
func (f *bytesFile) Size() (int64, error) { return int64(len(f.data)), nil }
func (f *bytesFile) Close() error         { return nil }

// bytesFS opens one file, whatever the name.
type bytesFS struct {
	FS
	f *bytesFile
}

func (b bytesFS) Open(string, bool) (File, error) { return b.f, nil }

func goldenFacts() VolumeFacts {
	return VolumeFacts{
		UUID: [16]byte(testID), Size: 0x1122334455, BlockSize: 0x10000, Role: RoleMirror,
		Generation: Generation{ID: [16]byte{0xa0}, Counter: 0xa1, Parent: [16]byte{0xa2}, ParentCut: 0xa3},
		Parents:    []Generation{{ID: [16]byte{0xb0}, Counter: 0xb1}},
		Cut:        0x77,
		Mirrors: []MirrorFacts{{Name: "m1", Node: sequence(0x40), Committed: 5, Sent: 6, Bulk: true},
			{Name: "m2", Attached: true, ReadOnly: true}},
		BootID: "boot", Device: []byte("{}"), Clean: true, Rebuilt: true,
		Mirror: ReplicaFacts{Node: sequence(0), Incarnation: 0x99, Committed: 8, Applied: 7, Epochs: []uint64{8},
			Inconsistent: true, Unproven: true},
	}
}

// goldenReadOnly are the lists of a mirror that is read-only.
func goldenReadOnly() replicaLists {
	return replicaLists{
		doubts:     []blockdev.Extent{{Offset: 3, Length: 4}},
		quarantine: []blockdev.Extent{{Offset: 0x1000, Length: 0x2000}},
		readOnly: ReadOnly{Class: ClassVerify, Epoch: 9, Since: 0x0102030405060708, Reason: "reason",
			Blocks: []BadBlock{{Offset: 0x1000, Want: sequence(0x40), Got: sequence(0x80)}}},
	}
}

func ptr[T any](v T) *T { return &v }

func TestGoldenVolumeRecords(t *testing.T) {
	b := appendMark(nil, []uint64{5, 6, 4, 1000})
	golden(t, b, `0a0203c80f`)
	var regions []uint64
	if err := decodeMark(b, func(r uint64) { regions = append(regions, r) }); err != nil || !slices.Equal(regions, []uint64{5, 6, 4, 1000}) {
		t.Errorf("mark: %d, %v", regions, err)
	}
	f := goldenFacts()
	b = encodeFacts(&f, 0x0123)
	golden(t, b, `
		0100000002000000 5500000000000100 0102030405060708 090a0b0c0d0e0f10
		5544332211000000 7700000000000000 2301000000000000 a000000000000000
		0000000000000000 a100000000000000 a200000000000000 0000000000000000
		a300000000000000 0001020304050607 08090a0b0c0d0e0f 1011121314151617
		18191a1b1c1d1e1f 9900000000000000 0800000000000000 0700000000000000
		0102010402000000 0000000000000000
		b000000000000000 0000000000000000 b100000000000000 0000000000000000
		0000000000000000 0000000000000000
		0800000000000000
		4041424344454647 48494a4b4c4d4e4f 5051525354555657 58595a5b5c5d5e5f
		0500000000000000 0600000000000000 0102000000000000 6d31
		0000000000000000 0000000000000000 0000000000000000 0000000000000000
		0000000000000000 0000000000000000 0602000000000000 6d32
		626f6f74 7b7d`)
	back, lists, err := decodeFacts(b)
	if err != nil || lists != 0x0123 || !cmp.Equal(back, f) {
		t.Errorf("facts: %d, %v: %s", lists, err, cmp.Diff(f, back))
	}
	holes := []blockdev.Extent{{Offset: 0x1000, Length: 0x2000}}
	doubts := []blockdev.Extent{{Offset: 1, Length: 2}, {Offset: 3, Length: 4}}
	two := replicaLists{holes: holes, doubts: doubts}
	b = encodeLists(&two)
	golden(t, b, `
		0100000000000000 0100000002000000 0010000000000000 0020000000000000
		0100000000000000 0200000000000000 0300000000000000 0400000000000000`)
	if l, err := decodeLists(b); err != nil || !l.equal(&two) {
		t.Errorf("lists: %+v, %v", l, err)
	}
	cause := goldenReadOnly()
	b = encodeLists(&cause)
	golden(t, b, `
		0100000001000000 0000000001000000 0300000000000000 0400000000000000
		0010000000000000 0020000000000000
		0500060001000000 0900000000000000 0807060504030201
		0010000000000000
		4041424344454647 48494a4b4c4d4e4f 5051525354555657 58595a5b5c5d5e5f
		8081828384858687 88898a8b8c8d8e8f 9091929394959697 98999a9b9c9d9e9f
		726561736f6e`)
	if l, err := decodeLists(b); err != nil || !cmp.Equal(l.readOnly, cause.readOnly) || !l.equal(&cause) {
		t.Errorf("lists of a read-only mirror: %+v, %v", l, err)
	}
	r := checkpointRecord{number: 2, size: 3, sum: 0x04050607, segment: 8, first: 9}
	b = r.encode([]byte("facts"))
	golden(t, b, `
		0100000007060504 0200000000000000 0300000000000000 0800000000000000
		0900000000000000 0000000000000000 6661637473`)
	if back, facts, err := decodeCheckpointRecord(b); err != nil || back != r || string(facts) != "facts" {
		t.Errorf("checkpoint: %+v, %q, %v", back, facts, err)
	}
}

// goldenSets has every form of a chunk: none, runs, full, bitmap, and a short last one.
func goldenSets() []NamedSet {
	runs, mixed := blockdev.NewPageSet(3*chunkSize), blockdev.NewPageSet(70)
	runs.Add(5, 3)
	runs.Add(300, 1)
	runs.Add(2*chunkSize, chunkSize)
	for p := uint64(0); p < 70; p += 2 {
		mixed.Add(p, 1)
	}
	return []NamedSet{{"needs/m", runs}, {"none", blockdev.NewPageSet(0)}, {"index", mixed}}
}

func TestGoldenCheckpointFile(t *testing.T) {
	var f bytesFile
	h := checkpointFileHeader{testID, 7}
	size, sum, err := writeCheckpointFile(&f, h, goldenSets(), []uint64{0, 1, 300})
	if err != nil || size != int64(len(f.data)) {
		t.Fatalf("%d of %d bytes, %v", size, len(f.data), err)
	}
	golden(t, f.data, `
		626c6b6d636b7074 0100000000000000 0102030405060708 090a0b0c0d0e0f10
		0700000000000000 0000000000000000 0000000000000000 00000000d216f051
		1700000001000000 000000000b95c3b7 0000030000000000 0400010000000000 6e656564732f6d
		0f00000002000000 000000002b4c4437 0001020502a4020001010100ffff03
		1400000001000000 00000000853a4503 0000000000000000 0000000000000000 6e6f6e65
		1500000001000000 000000009221d138 4600000000000000 2300000000000000 696e646578
		0b00000002000000 00000000cf109b41 0002555555555555555515
		0400000003000000 000000005f42560e 0000aa02
		1000000004000000 00000000de0e835b 0300000000000000 0300000000000000`)
	record := checkpointRecord{number: 7, size: size, sum: sum}
	limits := checkpointLimits{pages: 3 * chunkSize, regions: 301}
	sets, hot, err := readCheckpointFile(bytesFS{f: &f}, "", testID, record, limits)
	if err != nil || !slices.Equal(hot, []uint64{0, 1, 300}) || !equalSets(sets, goldenSets()) {
		t.Errorf("read %v, hot %d, %v", sets, hot, err)
	}
	// Every byte counts, on its own and through the record.
	for i := range f.data {
		f.data[i] ^= 0x20
		if _, _, err := readCheckpointFile(bytesFS{f: &f}, "", testID, record, limits); err == nil {
			t.Errorf("byte %d does not count", i)
		}
		f.data[i] ^= 0x20
	}
	for what, change := range map[string]func(r *checkpointRecord, l *checkpointLimits, id *logID){
		"sum":     func(r *checkpointRecord, _ *checkpointLimits, _ *logID) { r.sum++ },
		"size":    func(r *checkpointRecord, _ *checkpointLimits, _ *logID) { r.size++ },
		"number":  func(r *checkpointRecord, _ *checkpointLimits, _ *logID) { r.number++ },
		"pages":   func(_ *checkpointRecord, l *checkpointLimits, _ *logID) { l.pages-- },
		"regions": func(_ *checkpointRecord, l *checkpointLimits, _ *logID) { l.regions-- },
		"log":     func(_ *checkpointRecord, _ *checkpointLimits, id *logID) { id[3]++ },
	} {
		r, l, id := record, limits, testID
		change(&r, &l, &id)
		if _, _, err := readCheckpointFile(bytesFS{f: &f}, "", id, r, l); !errors.Is(err, ErrDamaged) {
			t.Errorf("another %s: %v", what, err)
		}
	}
}

func equalSets(a, b []NamedSet) bool {
	return slices.EqualFunc(a, b, func(x, y NamedSet) bool {
		if x.Name != y.Name || x.Pages.Len() != y.Pages.Len() || x.Pages.Count() != y.Pages.Count() {
			return false
		}
		d := x.Pages.Clone()
		d.Subtract(y.Pages)
		return d.Count() == 0
	})
}

// What the writer promises about size holds for the worst sets, over many pieces.
func TestCheckpointFileIsBounded(t *testing.T) {
	worst := blockdev.NewPageSet(40*chunkSize + 77)
	for p := uint64(0); p < worst.Len(); p += 2 {
		worst.Add(p, 1)
	}
	runs := blockdev.NewPageSet(40 * chunkSize)
	for p := uint64(0); p < runs.Len(); p += 20 {
		runs.Add(p, 9)
	}
	sets := []NamedSet{{"worst", worst}, {"runs", runs}}
	var hot []uint64
	for r := uint64(0); r < 1<<18; r += 3 {
		hot = append(hot, r)
	}
	var f bytesFile
	size, sum, err := writeCheckpointFile(&f, checkpointFileHeader{testID, 1}, sets, hot)
	if limit := maxCheckpointBytes(sets, len(hot)); err != nil || size > limit {
		t.Errorf("%d bytes, at most %d, %v", size, limit, err)
	}
	back, hotBack, err := readCheckpointFile(bytesFS{f: &f}, "", testID, checkpointRecord{number: 1, size: size, sum: sum},
		checkpointLimits{pages: worst.Len(), regions: 1 << 18})
	if err != nil || !equalSets(back, sets) || !slices.Equal(hot, hotBack) {
		t.Errorf("read back: %v", err)
	}
}

// The longest facts fit into the room that is kept for the last ones.
func TestVolumeFactsAreBounded(t *testing.T) {
	f := VolumeFacts{Role: RolePrimary, Parents: make([]Generation, MaxParents), BootID: string(make([]byte, MaxBootID)),
		Device: make([]byte, MaxDeviceFacts), Mirror: ReplicaFacts{Epochs: []uint64{1, 2, 3, 4, 5, 6, 7, 8}}}
	for i := range MaxMirrors {
		name := bytes.Repeat([]byte{'m'}, MaxMirrorName)
		name[0] = byte(i)
		f.Mirrors = append(f.Mirrors, MirrorFacts{Name: string(name)})
	}
	b := encodeFacts(&f, math.MaxUint64)
	back, lists, err := decodeFacts(b)
	if err != nil || lists != math.MaxUint64 || !cmp.Equal(f, back) {
		t.Errorf("%v: %s", err, cmp.Diff(f, back))
	}
	if frameSize(checkpointHead+len(b)) > lastRoomMax/2 {
		t.Errorf("facts of %d bytes", len(b))
	}
	long := make([]blockdev.Extent, MaxListed)
	for i := range long {
		long[i] = blockdev.Extent{Offset: int64(i), Length: 1}
	}
	all := replicaLists{long, long, long, ReadOnly{ClassRot, 1, 2, string(make([]byte, MaxReason)), make([]BadBlock, MaxBadBlocks)}}
	b = encodeLists(&all)
	if l, err := decodeLists(b); err != nil || !l.equal(&all) || len(b) > MaxBody {
		t.Errorf("lists of %d bytes: %v", len(b), err)
	}
}

func TestVolumeRecordsAreChecked(t *testing.T) {
	f := goldenFacts()
	facts := encodeFacts(&f, 1)
	changed := func(b []byte, at int, to byte) []byte {
		b = bytes.Clone(b)
		b[at] = to
		return b
	}
	lists := encodeLists(&replicaLists{holes: []blockdev.Extent{{Offset: 1, Length: 2}}})
	readOnly := encodeLists(ptr(goldenReadOnly())) // 2 extents, the cause at 48, a block at 72, the reason at 144
	for name, c := range map[string]struct {
		t    Type
		body []byte
		want error
	}{
		"empty mark":          {typeMark, nil, ErrDamaged},
		"mark behind all":     {typeMark, appendMark(nil, []uint64{maxRegion}), ErrDamaged},
		"negative mark":       {typeMark, []byte{1}, ErrDamaged},
		"unfinished mark":     {typeMark, []byte{0x80}, ErrDamaged},
		"long mark":           {typeMark, appendMark(nil, make([]uint64, maxMarked+1)), ErrDamaged},
		"short facts":         {typeFacts, facts[:factsHead-1], ErrDamaged},
		"cut facts":           {typeFacts, facts[:len(facts)-1], ErrDamaged},
		"long facts":          {typeFacts, append(bytes.Clone(facts), 0), ErrDamaged},
		"version of facts":    {typeFacts, changed(facts, 0, 2), ErrVersion},
		"role":                {typeFacts, changed(facts, 4, 0), ErrDamaged},
		"reserved":            {typeFacts, changed(facts, 5, 1), ErrDamaged},
		"flags":               {typeFacts, changed(facts, 8, 0x80), ErrDamaged},
		"block size":          {typeFacts, changed(facts, 12, 1), ErrDamaged},
		"huge size":           {typeFacts, changed(facts, 39, 1), ErrDamaged},
		"parents":             {typeFacts, changed(facts, 160, MaxParents+1), ErrDamaged},
		"mirrors":             {typeFacts, changed(facts, 161, 3), ErrDamaged},
		"flags of a mirror":   {typeFacts, changed(facts, factsHead+48+8+48, 8), ErrDamaged},
		"zero of a mirror":    {typeFacts, changed(facts, factsHead+48+8+55, 4), ErrDamaged},
		"short lists":         {typeLists, lists[:15], ErrDamaged},
		"cut lists":           {typeLists, lists[:len(lists)-1], ErrDamaged},
		"version of lists":    {typeLists, changed(lists, 0, 2), ErrVersion},
		"quarantine missing":  {typeLists, changed(lists, 4, 2), ErrDamaged},
		"quarantine alone":    {typeLists, changed(changed(lists, 4, 1), 8, 0), ErrDamaged},
		"long quarantine":     {typeLists, changed(readOnly, 7, 0xff), ErrDamaged},
		"empty quarantine":    {typeLists, changed(readOnly, 41, 0), ErrDamaged},
		"no class":            {typeLists, changed(readOnly, 48, 0), ErrDamaged},
		"class":               {typeLists, changed(readOnly, 48, 7), ErrDamaged},
		"zero of a cause":     {typeLists, changed(readOnly, 49, 1), ErrDamaged},
		"long reason":         {typeLists, changed(readOnly, 50, 9), ErrDamaged},
		"longest reason":      {typeLists, changed(readOnly, 51, 0xff), ErrDamaged},
		"bad blocks missing":  {typeLists, changed(readOnly, 52, 2), ErrDamaged},
		"many bad blocks":     {typeLists, changed(readOnly, 55, 0xff), ErrDamaged},
		"negative bad block":  {typeLists, changed(readOnly, 79, 0x80), ErrDamaged},
		"cut cause":           {typeLists, readOnly[:60], ErrDamaged},
		"cut reason":          {typeLists, readOnly[:len(readOnly)-1], ErrDamaged},
		"too many lists":      {typeLists, changed(lists, 11, 0xff), ErrDamaged},
		"empty extent":        {typeLists, changed(lists, 24, 0), ErrDamaged},
		"negative extent":     {typeLists, changed(lists, 23, 0x80), ErrDamaged},
		"short checkpoint":    {typeCheckpoint, make([]byte, checkpointHead-1), ErrDamaged},
		"checkpoint 0":        {typeCheckpoint, checkpointRecord{segment: 1, first: 1}.encode(facts), ErrDamaged},
		"checkpoint ahead":    {typeCheckpoint, checkpointRecord{number: 1, segment: 1, first: 3}.encode(facts), ErrDamaged},
		"bare checkpoint":     {typeCheckpoint, checkpointRecord{number: 1, segment: 1, first: 1}.encode(nil), ErrDamaged},
		"record of no volume": {9, nil, ErrDamaged},
	} {
		var r volumeReplay
		if err := r.replay(2, c.t, c.body); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Lists of a read-only mirror that facts of a primary name make no sense, though each record does.
func TestVolumeReadOnlyIsAMirrors(t *testing.T) {
	for role, want := range map[uint8]error{RoleMirror: nil, RolePrimary: ErrDamaged} {
		var r volumeReplay
		f := goldenFacts()
		f.Role = role
		if err := r.replay(1, typeLists, encodeLists(ptr(goldenReadOnly()))); err != nil {
			t.Fatal(err)
		}
		if err := r.replay(2, typeFacts, encodeFacts(&f, 1)); !errors.Is(err, want) {
			t.Errorf("role %d: %v", role, err)
		}
	}
}

func TestClassNames(t *testing.T) {
	for c, want := range []string{"none", "payload", "ack", "staging", "mirror-device", "verify", "rot", "class 7"} {
		if got := Class(c).String(); got != want {
			t.Errorf("class %d is %q, want %q", c, got, want)
		}
	}
}

func FuzzVolumeRecord(f *testing.F) {
	facts := goldenFacts()
	f.Add(byte(typeMark), appendMark(nil, []uint64{3, 1, 4}))
	f.Add(byte(typeFacts), encodeFacts(&facts, 0))
	f.Add(byte(typeLists), encodeLists(&replicaLists{holes: []blockdev.Extent{{Offset: 1, Length: 2}}}))
	f.Add(byte(typeLists), encodeLists(ptr(goldenReadOnly())))
	f.Add(byte(typeCheckpoint), checkpointRecord{number: 1, segment: 1, first: 1}.encode(encodeFacts(&facts, 7)))
	f.Fuzz(func(t *testing.T, typ byte, body []byte) {
		describeRecord(KindVolume, Type(typ), body)
		var r, again volumeReplay
		if err := r.replay(9, Type(typ), body); err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Errorf("not marked as damage: %v", err)
			}
			return
		}
		var back []byte
		switch Type(typ) {
		case typeMark:
			return // one region can be told in several ways
		case typeFacts:
			back = encodeFacts(&r.state.Facts, r.lists.lsn)
		case typeLists:
			back = encodeLists(&r.newest.replicaLists)
		case typeCheckpoint:
			back = r.record.encode(encodeFacts(&r.state.Facts, r.lists.lsn))
		}
		if !bytes.Equal(back, body) {
			t.Errorf("decoded and encoded:\n%x\n%x", body, back)
		}
		if err := again.replay(9, Type(typ), back); err != nil || !cmp.Equal(r.state.Facts, again.state.Facts) {
			t.Errorf("again: %v", err)
		}
	})
}

// FuzzCheckpointFile gives any pieces the checksums they need, and wants what is accepted to survive
// another writing.
func FuzzCheckpointFile(f *testing.F) {
	limits := checkpointLimits{pages: 3*chunkSize + 99, regions: 1000}
	h := checkpointFileHeader{testID, 7}
	var good bytesFile
	_, _, err := writeCheckpointFile(&good, h, goldenSets(), []uint64{0, 1, 300})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.data[checkpointFileHead:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, pieces []byte) {
		file := &bytesFile{h.encode()}
		for len(pieces) >= pieceHead {
			n := min(int(binary.LittleEndian.Uint32(pieces)%(maxPiece+1)), len(pieces)-pieceHead)
			b := bytes.Clone(pieces[:pieceHead+n])
			sealPiece(b, pieces[4], place{h.id, h.number, int64(len(file.data))})
			file.data = append(file.data, b...)
			pieces = pieces[pieceHead+n:]
		}
		file.data = append(file.data, pieces...)
		read := func(file *bytesFile) (*checkpointReader, error) {
			c := &checkpointReader{limits: limits}
			err := eachPiece(file, int64(len(file.data)), h, func(off int64, b []byte) error {
				if off == 0 {
					return nil
				}
				return c.piece(b[4], b[pieceHead:])
			})
			if err == nil {
				err = c.complete()
			}
			return c, err
		}
		c, err := read(file)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("not marked as damage: %v", err)
			}
			return
		}
		var again bytesFile
		if _, _, err := writeCheckpointFile(&again, h, c.sets, c.hot); err != nil {
			t.Fatal(err)
		}
		back, err := read(&again)
		if err != nil || !equalSets(c.sets, back.sets) || !slices.Equal(c.hot, back.hot) {
			t.Errorf("written again: %v", err)
		}
	})
}
