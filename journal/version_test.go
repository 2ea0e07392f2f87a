package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
)

// versioned is a valid piece of a format that has a version under a checksum.
type versioned struct {
	valid   []byte
	version int // offset of the version's lowest byte
	seal    func(b []byte)
	decode  func(b []byte) error
}

func versionedFormats() map[string]versioned {
	le := binary.LittleEndian
	header := func(b []byte, decode func(b []byte) error) versioned {
		end := len(b) - 4
		return versioned{b, 8, func(b []byte) { le.PutUint32(b[end:], crc32.Checksum(b[:end], castagnoli)) }, decode}
	}
	at, lsn := place{testID, 2, 64}, LSN(9)
	record := func(typ Type, body []byte) versioned {
		frame := func(body []byte) []byte { return appendFrame(nil, at, typ, lsn, 1, body) }
		end := frameHeaderSize + len(body)
		seal := func(b []byte) { copy(b, frame(bytes.Clone(b[frameHeaderSize:end]))) }
		return versioned{frame(body)[:end], frameHeaderSize, seal, func(b []byte) error {
			f, ok := decodeFrame(b, at)
			if !ok || !f.bodyIs(b, b[frameHeaderSize:]) {
				return ErrDamaged // what readRecord takes for the end, and its callers for a hole or a torn tail
			}
			var r volumeReplay
			return r.replay(f.lsn, f.typ, b[frameHeaderSize:])
		}}
	}
	value := func(key, v []byte, decode func(b []byte) error) versioned {
		return versioned{v, 0, func(b []byte) { le.PutUint32(b[4:], valueSum(key, b)) }, decode}
	}
	var page indexPage
	page.set(9, sequence(1))
	golden := goldenFacts()
	facts := encodeFacts(&golden, 0)
	lists := replicaLists{holes: []blockdev.Extent{{Offset: 1, Length: 2}}}
	return map[string]versioned{
		"segment header": header(segmentHeader{KindSync, testID, 1, 1}.encode(), func(b []byte) error {
			_, err := decodeSegmentHeader(b)
			return err
		}),
		"checkpoint header": header(checkpointFileHeader{testID, 7}.encode(), func(b []byte) error {
			_, err := decodeCheckpointFileHeader(b)
			return err
		}),
		"staging header": header(encodeStagingHeader(testStagingHeader, testStagingID), func(b []byte) error {
			_, _, err := decodeStagingHeader(b)
			return err
		}),
		"facts":      record(typeFacts, facts),
		"lists":      record(typeLists, encodeLists(&lists)),
		"checkpoint": record(typeCheckpoint, checkpointRecord{number: 1, segment: 1, first: 1}.encode(facts)),
		"index page": value(pageKey(3), appendPage(nil, 3, &page), func(b []byte) error {
			return decodePage(b, 3, new(indexPage))
		}),
		"index blob": value(metaKey("name"), appendMeta(nil, "name", []byte("blob")), func(b []byte) error {
			_, err := decodeMeta(b, "name")
			return err
		}),
	}
}

// One bit of rot is damage wherever it is, in the version too: nobody repairs what another program has written.
func TestRotIsNoOtherVersion(t *testing.T) {
	for name, f := range versionedFormats() {
		if err := f.decode(f.valid); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for i := range len(f.valid) * 8 {
			b := bytes.Clone(f.valid)
			b[i/8] ^= 1 << (i % 8)
			if err := f.decode(b); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrVersion) {
				t.Errorf("%s, bit %d: %v", name, i, err)
			}
		}
	}
}

// What is whole and of another version is that, whatever else it holds.
func TestOtherVersionIsNoDamage(t *testing.T) {
	for name, f := range versionedFormats() {
		b := bytes.Clone(f.valid)
		b[f.version]++
		f.seal(b)
		if err := f.decode(b); !errors.Is(err, ErrVersion) || errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
