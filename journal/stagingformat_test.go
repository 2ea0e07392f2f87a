package journal

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/google/go-cmp/cmp"
)

var (
	testStagingID     = stagingID(testID)
	testStagingHeader = StagingHeader{
		Volume: [16]byte{0xa0, 0xa1}, Generation: [16]byte{0xb0, 0xb1}, Incarnation: 0xc0c1, Base: 6, Epoch: 7,
		BlockSize: 64 << 10, Size: 1<<20 + 100,
	}
	testPoint = StagingPoint{Seq: 0x0102, Records: 0x33, Chain: sequence(0x40)}
)

func TestGoldenStagingHeader(t *testing.T) {
	b := encodeStagingHeader(testStagingHeader, testStagingID)
	golden(t, b, `
		626c6b6d73746167 0100000000000100 0102030405060708 090a0b0c0d0e0f10
		a0a1000000000000 0000000000000000 b0b1000000000000 0000000000000000
		c1c0000000000000 0600000000000000 0700000000000000 6400100000000000
		0000000000000000 0000000000000000 0000000000000000 00000000bd18d317`)
	h, id, err := decodeStagingHeader(b)
	if err != nil || h != testStagingHeader || id != testStagingID {
		t.Errorf("decoded %+v, %v", h, err)
	}
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if _, _, err := decodeStagingHeader(b); !errors.Is(err, ErrDamaged) {
			t.Errorf("bit %d does not count: %v", i, err)
		}
		b[i/8] ^= 1 << (i % 8)
	}
}

func TestStagingHeaderIsChecked(t *testing.T) {
	for name, change := range map[string]func(*StagingHeader){
		"epoch 0":          func(h *StagingHeader) { h.Epoch, h.Base = 0, 0 },
		"base above epoch": func(h *StagingHeader) { h.Base = 7 },
		"size 0":           func(h *StagingHeader) { h.Size = 0 },
		"negative size":    func(h *StagingHeader) { h.Size = -1 },
		"2 PiB":            func(h *StagingHeader) { h.Size = 2 << 50 },
		"block of 0":       func(h *StagingHeader) { h.BlockSize = 0 },
		"block of 512":     func(h *StagingHeader) { h.BlockSize = 512 },
		"block of 12 KiB":  func(h *StagingHeader) { h.BlockSize = 12 << 10 },
		"block of 2 MiB":   func(h *StagingHeader) { h.BlockSize = 2 << 20 },
	} {
		h := testStagingHeader
		change(&h)
		if _, _, err := decodeStagingHeader(encodeStagingHeader(h, testStagingID)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testHead() stagingHead {
	return stagingHead{kind: frameRecords, count: 3, body: 3 * stagingEntrySize, payload: 0x1234, prev: 4096,
		durable: 8192, low: 0x10000, high: 0x30000, seq: 0x0102}
}

func TestGoldenStagingHead(t *testing.T) {
	b := make([]byte, stagingHeadSize)
	f := testHead()
	f.encode(b, &testStagingID, 0x5000)
	golden(t, b, `
		0100000003000000 d800000034120000 0010000000000000 0020000000000000
		0000010000000000 0000030000000000 0201000000000000 00000000c24dddb5`)
	if back, ok := decodeStagingHead(b, &testStagingID, 0x5000); !ok || back != f {
		t.Errorf("decoded %+v, %t", back, ok)
	}
	if _, ok := decodeStagingHead(b, &testStagingID, 0x6000); ok {
		t.Error("taken for a frame of another place")
	}
	if _, ok := decodeStagingHead(b, &stagingID{}, 0x5000); ok {
		t.Error("taken for a frame of another file")
	}
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if _, ok := decodeStagingHead(b, &testStagingID, 0x5000); ok {
			t.Errorf("bit %d does not count", i)
		}
		b[i/8] ^= 1 << (i % 8)
	}
}

func TestStagingHeadLimits(t *testing.T) {
	mark := func(kind frameKind, body uint32) func(*stagingHead) {
		return func(f *stagingHead) { *f = stagingHead{kind: kind, body: body, durable: 0x5000} }
	}
	good := map[string]func(*stagingHead){
		"records":     func(*stagingHead) {},
		"point":       mark(framePoint, stagingPointSize),
		"rebase":      mark(frameRebase, rebaseHead),
		"long rebase": mark(frameRebase, rebaseHead+MaxStagingVoids*stagingVoidSize),
		"footer":      mark(frameFooter, footerHead),
		"long footer": mark(frameFooter, footerHead+MaxStagingExtra),
	}
	bad := map[string]func(*stagingHead){
		"kind 0":                func(f *stagingHead) { f.kind = 0 },
		"kind 5":                mark(5, 48),
		"no records":            func(f *stagingHead) { f.count, f.body = 0, 0 },
		"too many":              func(f *stagingHead) { f.count, f.body = 1025, 1025*stagingEntrySize },
		"another body":          func(f *stagingHead) { f.body++ },
		"wide payload":          func(f *stagingHead) { f.payload = maxStagingFrame + 1 },
		"empty range":           func(f *stagingHead) { f.high = f.low },
		"negative range":        func(f *stagingHead) { f.low = -4096 },
		"before itself":         func(f *stagingHead) { f.prev = 0x5000 },
		"before anything":       func(f *stagingHead) { f.prev = -4096 },
		"crooked":               func(f *stagingHead) { f.prev = 4097 },
		"durable too early":     func(f *stagingHead) { f.durable = 0x5001 },
		"long point":            mark(framePoint, stagingPointSize+1),
		"short rebase":          mark(frameRebase, rebaseHead-stagingVoidSize),
		"crooked rebase":        mark(frameRebase, rebaseHead+1),
		"too long a rebase":     mark(frameRebase, rebaseHead+(MaxStagingVoids+1)*stagingVoidSize),
		"short footer":          mark(frameFooter, footerHead-1),
		"too long a footer":     mark(frameFooter, footerHead+MaxStagingExtra+1),
		"point, not durable":    func(f *stagingHead) { mark(framePoint, 48)(f); f.durable-- },
		"point with a payload":  func(f *stagingHead) { mark(framePoint, 48)(f); f.payload = 1 },
		"point with a count":    func(f *stagingHead) { mark(framePoint, 48)(f); f.count = 1 },
		"records with a sum":    func(f *stagingHead) { f.bodySum = 1 },
		"point with a range":    func(f *stagingHead) { mark(framePoint, 48)(f); f.high = 1 },
		"point that is records": func(f *stagingHead) { f.kind = framePoint },
	}
	try := func(change func(*stagingHead)) bool {
		b := make([]byte, stagingHeadSize)
		f := testHead()
		change(&f)
		f.encode(b, &testStagingID, 0x5000)
		_, ok := decodeStagingHead(b, &testStagingID, 0x5000)
		return ok
	}
	for name, change := range good {
		if !try(change) {
			t.Errorf("%s is no frame", name)
		}
	}
	for name, change := range bad {
		if try(change) {
			t.Errorf("%s is a frame", name)
		}
	}
}

func TestGoldenStagingEntry(t *testing.T) {
	data := StagingRecord{Seq: 0x0102, Kind: StagingData, Codec: 1, Offset: 0x20000, Length: 0x3000,
		Hash: sequence(0x60), PayloadLength: 0x456}
	zero := StagingRecord{Seq: 0x0103, Kind: StagingZero, MayFree: true, Offset: 0x100000, Length: 100}
	b := make([]byte, stagingEntrySize)
	for _, c := range []struct {
		rec  StagingRecord
		at   int64
		want string
	}{
		{data, 0x5555, `
		0201000000000000 0000020000000000 0030000056040000 5555000000000000
		6061626364656667 68696a6b6c6d6e6f 7071727374757677 78797a7b7c7d7e7f
		010100001a727ab8`},
		{zero, 0, `
		0301000000000000 0000100000000000 6400000000000000 0000000000000000
		0000000000000000 0000000000000000 0000000000000000 0000000000000000
		02000100b2764466`},
	} {
		encodeEntry(b, &c.rec, c.at, &testStagingID, 0x5040)
		golden(t, b, c.want)
		rec, at, ok := decodeEntry(b, &testStagingHeader, &testStagingID, 0x5040)
		if !ok || rec != c.rec || at != c.at {
			t.Errorf("decoded %+v at %d, %t", rec, at, ok)
		}
		if _, _, ok := decodeEntry(b, &testStagingHeader, &testStagingID, 0x5088); ok {
			t.Error("taken for an entry of another place")
		}
		for i := range len(b) * 8 {
			b[i/8] ^= 1 << (i % 8)
			if _, _, ok := decodeEntry(b, &testStagingHeader, &testStagingID, 0x5040); ok {
				t.Errorf("bit %d does not count", i)
			}
			b[i/8] ^= 1 << (i % 8)
		}
	}
}

func TestGoldenStagingMarks(t *testing.T) {
	b := appendPoint(nil, testPoint)
	golden(t, b, `
		0201000000000000 3300000000000000 4041424344454647 48494a4b4c4d4e4f
		5051525354555657 58595a5b5c5d5e5f`)
	if p := decodePoint(b); p != testPoint {
		t.Errorf("point: %+v", p)
	}
	voids := []blockdev.Extent{{Offset: 4096, Length: 8192}, {Offset: 1 << 20, Length: 100}}
	rb := stagingRebase{testPoint, 0x0101, 7, 9, voids}
	b = rb.encode()
	golden(t, b, `
		0201000000000000 3300000000000000 4041424344454647 48494a4b4c4d4e4f
		5051525354555657 58595a5b5c5d5e5f 0101000000000000 0700000000000000
		0900000000000000 0010000000000000 0020000000000000 0000100000000000
		6400000000000000`)
	if back, err := decodeRebase(b, &testStagingHeader); err != nil || !cmp.Equal(back, rb, cmp.AllowUnexported(rb)) {
		t.Errorf("rebase: %+v, %v", back, err)
	}
	foot := stagingFooter{testPoint, 6, 0x77, []byte("extra")}
	b = foot.encode()
	golden(t, b, `
		0201000000000000 3300000000000000 4041424344454647 48494a4b4c4d4e4f
		5051525354555657 58595a5b5c5d5e5f 0600000000000000 7700000000000000
		6578747261`)
	if back := decodeFooter(b); !cmp.Equal(back, foot, cmp.AllowUnexported(foot)) {
		t.Errorf("footer: %+v", back)
	}
}

func TestRebaseIsChecked(t *testing.T) {
	for name, rb := range map[string]stagingRebase{
		"going back":    {testPoint, 1, 7, 7, nil},
		"behind":        {testPoint, 0x0103, 7, 8, nil},
		"not pages":     {testPoint, 1, 7, 8, []blockdev.Extent{{Offset: 4096, Length: 100}}},
		"outside":       {testPoint, 1, 7, 8, []blockdev.Extent{{Offset: 2 << 20, Length: 4096}}},
		"wrapping":      {testPoint, 1, 7, 8, []blockdev.Extent{{Offset: 1<<63 - 4096, Length: 4096}}},
		"empty":         {testPoint, 1, 7, 8, []blockdev.Extent{{Offset: 4096, Length: 0}}},
		"not ascending": {testPoint, 1, 7, 8, []blockdev.Extent{{Offset: 4096, Length: 4096}, {Offset: 0, Length: 4096}}},
		"overlapping":   {testPoint, 1, 7, 8, []blockdev.Extent{{Offset: 0, Length: 8192}, {Offset: 4096, Length: 4096}}},
	} {
		if _, err := decodeRebase(rb.encode(), &testStagingHeader); !errors.Is(err, ErrStaging) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A table whose checksums are right must hold together too.
func TestStagingTableIsChecked(t *testing.T) {
	for name, change := range map[string]func(e *stagingEntry){
		"nothing":                 func(*stagingEntry) {},
		"payload elsewhere":       func(e *stagingEntry) { e.at++ },
		"payload of another size": func(e *stagingEntry) { e.rec.PayloadLength++ },
		"below the frame's range": func(e *stagingEntry) { e.rec.Offset -= 4096 },
		"above the frame's range": func(e *stagingEntry) { e.rec.Offset += 4096 },
		"another sequence":        func(e *stagingEntry) { e.rec.Seq++ },
		"sequence 0":              func(e *stagingEntry) { e.rec.Seq = 0 },
	} {
		dir := t.TempDir()
		s, err := CreateStaging(OS, dir, testStagingHeader, StagingOptions{})
		if err != nil {
			t.Fatal(err)
		}
		rec := StagingRecord{Seq: 1, Kind: StagingData, Offset: 8192, Length: 4096, PayloadLength: 10}
		if err := errors.Join(s.Append(rec, make([]byte, 10)), s.Sync(StagingPoint{Seq: 9})); err != nil {
			t.Fatal(err)
		}
		e := stagingEntry{rec: rec, at: stagingAlign + stagingHeadSize + stagingEntrySize, off: stagingAlign + stagingHeadSize}
		change(&e)
		b := make([]byte, stagingEntrySize)
		encodeEntry(b, &e.rec, e.at, &s.id, e.off)
		if err := errors.Join(writeAt(s.file, b, e.off), s.Close()); err != nil {
			t.Fatal(err)
		}
		s, err = OpenStaging(OS, dir, 7, StagingOptions{})
		if name == "nothing" {
			if err == nil {
				err = s.Close()
			}
			if err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever stands in a frame, with a checksum that is right, is refused or means the same when written again.
func FuzzStagingFrame(f *testing.F) {
	head := make([]byte, stagingHeadSize)
	h := testHead()
	h.encode(head, &testStagingID, 0x5000)
	f.Add(head)
	entry := make([]byte, stagingEntrySize)
	encodeEntry(entry, &StagingRecord{Seq: 1, Kind: StagingZero, Offset: 0, Length: 4096}, 0, &testStagingID, 0x5000)
	f.Add(entry)
	data := StagingRecord{Seq: 1, Kind: StagingData, Length: 4096, PayloadLength: 9}
	encodeEntry(entry, &data, 0x7000, &testStagingID, 0x5000)
	f.Add(entry)
	f.Add((&stagingRebase{testPoint, 1, 7, 9, []blockdev.Extent{{Offset: 4096, Length: 8192}}}).encode())
	f.Add(encodeStagingHeader(testStagingHeader, testStagingID))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := append(make([]byte, 0, stagingHeaderSize), in...)
		for len(b) < stagingHeaderSize {
			b = append(b, 0)
		}
		seed := stagingSeed(&testStagingID, 0x5000)
		seal := func(at int, seed uint32) {
			binary.LittleEndian.PutUint32(b[at:], crc32.Update(seed, castagnoli, b[:at]))
		}
		seal(60, seed)
		if f, ok := decodeStagingHead(b, &testStagingID, 0x5000); ok {
			again := make([]byte, stagingHeadSize)
			f.encode(again, &testStagingID, 0x5000)
			if string(again) != string(b[:stagingHeadSize]) {
				t.Errorf("head:\n%x\n%x", b, again)
			}
			if f.end(0x5000) <= 0x5000 || f.next(0x5000) > 0x5000+(80<<20) {
				t.Errorf("head ends at %d", f.end(0x5000))
			}
		}
		seal(68, seed)
		if r, at, ok := decodeEntry(b, &testStagingHeader, &testStagingID, 0x5000); ok {
			again := make([]byte, stagingEntrySize)
			encodeEntry(again, &r, at, &testStagingID, 0x5000)
			if string(again) != string(b[:stagingEntrySize]) {
				t.Errorf("entry:\n%x\n%x", b, again)
			}
		}
		copy(b, stagingMagic)
		b[8], b[9], b[10], b[11] = stagingVersion, 0, 0, 0
		seal(124, 0)
		if h, id, err := decodeStagingHeader(b); err == nil {
			if h2, id2, err := decodeStagingHeader(encodeStagingHeader(h, id)); err != nil || h2 != h || id2 != id {
				t.Errorf("header %+v became %+v, %v", h, h2, err)
			}
		}
		if n := len(in); n >= rebaseHead && (n-rebaseHead)%stagingVoidSize == 0 {
			if r, err := decodeRebase(in, &testStagingHeader); err == nil && string(r.encode()) != string(in) {
				t.Errorf("rebase:\n%x\n%x", in, r.encode())
			}
		}
	})
}
