package journal

import (
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// golden compares an encoding with the bytes that it has had since version 1. A difference is another
// format: it needs another version number, not another golden value.
func golden(t *testing.T, got []byte, want string) {
	t.Helper()
	want = strings.Join(strings.Fields(want), "")
	if g := hex.EncodeToString(got); g != want {
		t.Errorf("encoding has changed:\ngot  %s\nwant %s", g, want)
	}
}

func sequence(from byte) (b [32]byte) {
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

var testID = logID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

func TestGoldenSegmentHeader(t *testing.T) {
	h := segmentHeader{KindSync, testID, 0x1122, 0x334455}
	b := h.encode()
	golden(t, b, `
		626c6b6d6a726e6c 0100000001000000 0102030405060708 090a0b0c0d0e0f10
		2211000000000000 5544330000000000 0000000000000000 0000000025ef7356`)
	back, err := decodeSegmentHeader(b)
	if err != nil || back != h {
		t.Errorf("decoded %+v, %v", back, err)
	}
}

func TestGoldenFrame(t *testing.T) {
	at := place{testID, 2, 64}
	b := appendFrame(nil, at, 5, 0x0102, 0x0100, []byte("hello"))
	golden(t, b, `
		0500000005000000 0201000000000000 0001000000000000 ffae486dba8f959c
		68656c6c6f000000`)
	f, ok := decodeFrame(b, at)
	if !ok || f.typ != 5 || f.lsn != 0x0102 || f.durable != 0x0100 || !f.bodyIs(b, []byte("hello")) {
		t.Errorf("decoded %+v, %v", f, ok)
	}
	// Nothing but its own place makes it a record, and every bit counts.
	for _, wrong := range []place{{testID, 3, 64}, {testID, 2, 72}, {logID{}, 2, 64}} {
		if _, ok := decodeFrame(b, wrong); ok {
			t.Errorf("taken for a record of %+v", wrong)
		}
	}
	for i := range (frameHeaderSize + 5) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if f, ok := decodeFrame(b, at); ok && f.bodyIs(b, b[frameHeaderSize:][:min(int(f.length), 8)]) {
			t.Errorf("bit %d does not count", i)
		}
		b[i/8] ^= 1 << (i % 8)
	}
}

func TestFrameLimits(t *testing.T) {
	at := place{testID, 1, 64}
	cases := map[string][]byte{
		"empty":                nil,
		"short":                make([]byte, frameHeaderSize-1),
		"zero":                 make([]byte, frameHeaderSize),
		"type 0":               appendFrame(nil, at, 0, 2, 1, nil),
		"LSN 0":                appendFrame(nil, at, 1, 0, 0, nil),
		"durable before it is": appendFrame(nil, at, 1, 2, 2, nil),
		"longer than allowed":  appendFrame(nil, at, 1, 2, 1, make([]byte, MaxBody+1)),
	}
	for name, b := range cases {
		if f, ok := decodeFrame(b, at); ok {
			t.Errorf("%s is a record: %+v", name, f)
		}
	}
}

func TestGoldenSyncRecords(t *testing.T) {
	s := SyncState{Source: sequence(0), LastHash: sequence(0x80), Size: 1 << 40, Position: 3 << 20, BlockSize: 64 << 10}
	b := encodeBegin(s)
	golden(t, b, `
		0001020304050607 08090a0b0c0d0e0f 1011121314151617 18191a1b1c1d1e1f
		8081828384858687 88898a8b8c8d8e8f 9091929394959697 98999a9b9c9d9e9f
		0000000000010000 0000300000000000 0000010000000000`)
	if back, err := decodeBegin(b); err != nil || !cmp.Equal(back, s) {
		t.Errorf("begin: %+v, %v", back, err)
	}
	b = encodeProgress(0x010203, sequence(7))
	golden(t, b, `
		0302010000000000 0708090a0b0c0d0e 0f10111213141516 1718191a1b1c1d1e
		1f20212223242526`)
	if p, h, err := decodeProgress(b); err != nil || p != 0x010203 || h != sequence(7) {
		t.Errorf("progress: %d, %x, %v", p, h, err)
	}
	b = encodeSettle([]byte("{}"), true)
	golden(t, b, `
		0100000000000000 7b7d`)
	if facts, complete, err := decodeSettle(b); err != nil || string(facts) != "{}" || !complete {
		t.Errorf("settle: %q, %t, %v", facts, complete, err)
	}
}

func TestSyncRecordsAreChecked(t *testing.T) {
	good := SyncState{Size: 100, Position: 50, BlockSize: 4096}
	bad := map[string]func(*SyncState){
		"block size 0":       func(s *SyncState) { s.BlockSize = 0 },
		"block size 3000":    func(s *SyncState) { s.BlockSize = 3000 },
		"block size 2 MiB":   func(s *SyncState) { s.BlockSize = 2 << 20 },
		"negative size":      func(s *SyncState) { s.Size = -1 },
		"negative position":  func(s *SyncState) { s.Position = -1 },
		"position behind it": func(s *SyncState) { s.Position = 101 },
	}
	for name, change := range bad {
		s := good
		change(&s)
		if _, err := decodeBegin(encodeBegin(s)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := decodeSettle(make([]byte, settleHead+MaxFacts+1)); !errors.Is(err, ErrDamaged) {
		t.Errorf("long facts: %v", err)
	}
}

func TestGoldenIndex(t *testing.T) {
	golden(t, pageKey(0x0102), `68 0000000000000102`)
	var p indexPage
	p.set(0, sequence(0))
	p.set(9, sequence(0x20))
	p.set(511, sequence(0x40))
	v := appendPage(nil, 0x0102, &p)
	golden(t, v, `
		010000005fd19418 0102000000000000 0000000000000000 0000000000000000
		0000000000000000 0000000000000000 0000000000000000 0000000000000000
		0000000000000080 0001020304050607 08090a0b0c0d0e0f 1011121314151617
		18191a1b1c1d1e1f 2021222324252627 28292a2b2c2d2e2f 3031323334353637
		38393a3b3c3d3e3f 4041424344454647 48494a4b4c4d4e4f 5051525354555657
		58595a5b5c5d5e5f`)
	var back indexPage
	if err := decodePage(v, 0x0102, &back); err != nil || back != p {
		t.Errorf("page: %v, %v", back.known, err)
	}
	if err := decodePage(v, 0x0103, &back); !errors.Is(err, ErrDamaged) {
		t.Errorf("page under another key: %v", err)
	}
	for i := range len(v) * 8 {
		v[i/8] ^= 1 << (i % 8)
		if decodePage(v, 0x0102, &back) == nil {
			t.Errorf("bit %d does not count", i)
		}
		v[i/8] ^= 1 << (i % 8)
	}
	m := appendMeta(nil, "name", []byte("blob"))
	golden(t, m, `
		0100000032cfa197 626c6f62`)
	if blob, err := decodeMeta(m, "name"); err != nil || string(blob) != "blob" {
		t.Errorf("meta: %q, %v", blob, err)
	}
	golden(t, encodeCount(0x0102), `010000000c645376 0201000000000000`)
	if n, err := decodeCount(encodeCount(7)); n != 7 || err != nil {
		t.Errorf("count: %d, %v", n, err)
	}
	for i := range indexCountSize * 8 {
		b := encodeCount(7)
		b[i/8] ^= 1 << (i % 8)
		if _, err := decodeCount(b); err == nil {
			t.Errorf("bit %d of the count does not count", i)
		}
	}
}

// docs/FORMATS.md draws what the code says: its diagrams are the ones in the comments.
func TestFormatsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/FORMATS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"format.go", "syncformat.go", "indexformat.go", "indexcheck.go",
		"volumeformat.go", "volumelists.go", "volumefile.go",
		"stagingformat.go"} {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(src)) {
			line, ok := strings.CutPrefix(line, "//\t")
			if ok && !strings.Contains(string(doc), strings.TrimSpace(line)) {
				t.Errorf("%s: not in FORMATS.md: %s", name, line)
			}
		}
	}
}

func FuzzRecord(f *testing.F) {
	at := place{testID, 2, 64}
	f.Add(appendFrame(nil, at, 5, 3, 2, []byte("hello")))
	f.Add(appendFrame(nil, at, 255, 1, 0, nil))
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, ok := decodeFrame(b, at)
		if !ok || frameSize(int(fr.length)) > int64(len(b)) {
			return
		}
		body := b[frameHeaderSize:][:fr.length]
		if !fr.bodyIs(b, body) {
			return
		}
		again := appendFrame(nil, at, fr.typ, fr.lsn, fr.durable, body)
		if string(again[:frameHeaderSize]) != string(b[:frameHeaderSize]) {
			t.Errorf("decoded and encoded:\n%x\n%x", b, again)
		}
	})
}

func FuzzSegmentHeader(f *testing.F) {
	f.Add(segmentHeader{KindSync, testID, 1, 1}.encode())
	f.Add([]byte(segmentMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeSegmentHeader(b)
		if err != nil {
			return
		}
		if back, err := decodeSegmentHeader(h.encode()); err != nil || back != h {
			t.Errorf("%+v became %+v, %v", h, back, err)
		}
	})
}

// sealed gives a fuzzed value the checksum it needs to get past the check.
func sealed(v []byte, sum func(v []byte) uint32) []byte {
	if len(v) >= 8 {
		s := sum(v)
		v = append([]byte{indexVersion, v[1], v[2], v[3], byte(s), byte(s >> 8), byte(s >> 16), byte(s >> 24)}, v[8:]...)
	}
	return v
}

func FuzzIndexPage(f *testing.F) {
	var p indexPage
	p.set(3, sequence(1))
	f.Add(appendPage(nil, 7, &p), true)
	f.Add(appendPage(nil, 7, &indexPage{}), false)
	f.Fuzz(func(t *testing.T, v []byte, seal bool) {
		if seal && len(v) >= 8 {
			v = append([]byte{indexVersion}, v[1:]...)
			v = sealed(v, func(v []byte) uint32 { return valueSum(pageKey(7), v) })
		}
		var p, back indexPage
		if decodePage(v, 7, &p) != nil {
			return
		}
		if err := decodePage(appendPage(nil, 7, &p), 7, &back); err != nil || back != p {
			t.Errorf("%v became %v, %v", p.known, back.known, err)
		}
		blob, err := decodeMeta(appendMeta(nil, "n", v), "n")
		if err != nil || string(blob) != string(v) {
			t.Errorf("meta: %v", err)
		}
	})
}

func FuzzSyncRecord(f *testing.F) {
	s := SyncState{Size: 100, Position: 50, BlockSize: 4096}
	f.Add(byte(typeBegin), encodeBegin(s))
	f.Add(byte(typeProgress), encodeProgress(70, sequence(1)))
	f.Add(byte(typeSettle), encodeSettle([]byte("facts"), true))
	f.Fuzz(func(t *testing.T, typ byte, body []byte) {
		log := SyncLog{state: s, begun: true}
		if err := log.replay(1, Type(typ), body); err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("not marked as damage: %v", err)
			}
			return
		}
		if err := log.state.check(); err != nil {
			t.Errorf("accepted: %v", err)
		}
		describeRecord(KindSync, Type(typ), body)
	})
}
