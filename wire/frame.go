package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The frame header. Magic and version stand where they do in every version to come; all else may change
// with the version, so the version is looked at before the checksum is.
//
//	 0       1       2       3       4       5       6       7       8
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|  'B'     'L'     'K'     'M'  |    version    | type  | flags |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|          meta length          |        payload length         |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|      CRC32C of the meta       |  CRC32C of the 20 bytes above |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//
// Meta and payload follow in this order. Flags are reserved and zero.
const (
	magic      = "BLKM"
	Version    = 1 // of the protocol that this package speaks
	HeaderSize = 24

	preambleSize = 6 // magic and version: all that can be read of a foreign version
	headerCRCAt  = HeaderSize - 4
)

// Type is the number of a message. The numbers are frozen, in the order of a conversation; from 25 on
// follow those of live sessions alone. Zero is invalid, so that unwritten bytes are never a frame.
type Type uint8

const (
	TypeHello     Type = 1
	TypeOpen      Type = 2
	TypeOpened    Type = 3
	TypeRefused   Type = 4
	TypeOffer     Type = 5
	TypeWant      Type = 6
	TypeData      Type = 7
	TypeZero      Type = 8
	TypeWrite     Type = 9 // reserved: a write in sync mode
	TypeAck       Type = 10
	TypeNak       Type = 11
	TypeRebase    Type = 12
	TypeFlush     Type = 13
	TypeFlushed   Type = 14
	TypeInSync    Type = 15 // reserved: writes are applied in place from here on
	TypeCommit    Type = 16
	TypeCommitted Type = 17
	TypeDoubt     Type = 18
	TypePing      Type = 19
	TypePong      Type = 20
	TypeWindow    Type = 21
	TypeKeyNext   Type = 22
	TypeHalt      Type = 23
	TypeBye       Type = 24
	TypeAttach    Type = 25
	TypeAttached  Type = 26
	TypeSynced    Type = 27
	TypeBulk      Type = 28
	TypeReport    Type = 29

	TypeSuspect    Type = 30
	TypeQuarantine Type = 31
	TypeRepair     Type = 32
	TypeFetch      Type = 33
	TypeFetched    Type = 34
	TypeAsk        Type = 35
	TypeTold       Type = 36
	TypeEnded      Type = 37
	TypeDoor       Type = 38
	TypeKnock      Type = 39
	TypeKeyAck     Type = 40 // of every kind of session

	// Of probes; the numbers before are of others.
	TypeSurvey   Type = 41
	TypeSurveyed Type = 42
	TypeLoad     Type = 43
	TypeLoaded   Type = 44
	TypeBallast  Type = 45
)

// spec is what a header may say for one type.
type spec struct {
	name     string
	min, max uint32 // length of the meta
	payload  uint32 // largest payload
}

// specs are indexed by type. A type without a maximum is not spoken in this version.
var specs = [...]spec{
	TypeHello:     {"Hello", helloFixed, helloFixed + 3*MaxName, 0},
	TypeOpen:      {"Open", openFixed, openFixed + MaxName + MaxDevices*HashSize, 0},
	TypeOpened:    {"Opened", openedSize, openedSize, 0},
	TypeRefused:   {"Refused", endFixed, endFixed + MaxText, 0},
	TypeOffer:     {"Offer", offerFixed + HashSize, offerFixed + MaxOffer*HashSize, 0},
	TypeWant:      {"Want", wantFixed + 1, wantFixed + MaxOffer/8, 0},
	TypeData:      {"Data", dataSize, dataSize, MaxBlock},
	TypeZero:      {"Zero", zeroSize, zeroSize, 0},
	TypeWrite:     {name: "Write"},
	TypeAck:       {"Ack", entrySize, MaxEntries * entrySize, 0},
	TypeNak:       {"Nak", entrySize, MaxEntries * entrySize, 0},
	TypeRebase:    {"Rebase", rebaseFixed, rebaseFixed + MaxEntries*extentSize, 0},
	TypeFlush:     {"Flush", flushSize, flushSize, 0},
	TypeFlushed:   {"Flushed", flushedSize, flushedSize, 0},
	TypeInSync:    {name: "InSync"},
	TypeCommit:    {"Commit", commitFixed, commitFixed + MaxHoles*extentSize, 0},
	TypeCommitted: {"Committed", committedSize, committedSize, 0},
	TypeDoubt:     {"Doubt", doubtFixed + extentSize, doubtFixed + MaxEntries*extentSize, 0},
	TypePing:      {"Ping", pingSize, pingSize, 0},
	TypePong:      {"Pong", pingSize, pingSize, 0},
	TypeWindow:    {"Window", windowSize, windowSize, 0},
	TypeKeyNext:   {"KeyNext", keyNextSize, keyNextSize, 0},
	TypeHalt:      {"Halt", endFixed, endFixed + MaxText, 0},
	TypeBye:       {"Bye", endFixed, endFixed + MaxText, 0},
	TypeAttach:    {"Attach", attachFixed, attachFixed + MaxName + MaxDevices*HashSize, 0},
	TypeAttached:  {"Attached", attachedSize, attachedSize, 0},
	TypeSynced:    {"Synced", syncedSize, syncedSize, 0},
	TypeBulk:      {"Bulk", bulkSize, bulkSize, 0},
	TypeReport:    {"Report", reportSize, reportSize, 0},

	TypeSuspect:    {"Suspect", suspectFixed + suspectSize, suspectFixed + MaxSuspects*suspectSize, 0},
	TypeQuarantine: {"Quarantine", quarantineFixed + extentSize, quarantineFixed + MaxText + MaxEntries*extentSize, 0},
	TypeRepair:     {"Repair", repairSize, repairSize, 0},
	TypeFetch:      {"Fetch", fetchSize, fetchSize, 0},
	TypeFetched:    {"Fetched", fetchSize, fetchSize, MaxBlock},
	TypeAsk:        {"Ask", askFixed, askFixed + MaxText, 0},
	TypeTold:       {"Told", toldFixed, toldFixed + MaxText, 0},
	TypeEnded:      {"Ended", endedFixed, endedFixed + 5*MaxText + MaxEntries*extentSize, 0},
	TypeDoor:       {"Door", doorSize, doorSize, 0},
	TypeKnock:      {"Knock", knockSize, knockSize, 0},
	TypeKeyAck:     {"KeyAck", keyAckSize, keyAckSize, 0},

	TypeSurvey:   {"Survey", surveySize, surveySize, 0},
	TypeSurveyed: {"Surveyed", surveyedFixed, surveyedFixed + MaxName + MaxState + MaxVolumes*(surveyedVolume+MaxName+MaxState), 0},
	TypeLoad:     {"Load", loadSize, loadSize, 0},
	TypeLoaded:   {"Loaded", loadedSize, loadedSize, 0},
	TypeBallast:  {"Ballast", ballastSize, ballastSize, MaxBallast},
}

// maxMeta is the largest meta of all: header and meta of any frame fit into a Conn's read buffer.
const maxMeta = MaxEntries * entrySize

func (t Type) String() string {
	if int(t) < len(specs) && specs[t].name != "" {
		return specs[t].name
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Type returns the number under which the message travels.
func (*Hello) Type() Type     { return TypeHello }
func (*Open) Type() Type      { return TypeOpen }
func (*Opened) Type() Type    { return TypeOpened }
func (*Refused) Type() Type   { return TypeRefused }
func (*Offer) Type() Type     { return TypeOffer }
func (*Want) Type() Type      { return TypeWant }
func (*Data) Type() Type      { return TypeData }
func (*Zero) Type() Type      { return TypeZero }
func (*Ack) Type() Type       { return TypeAck }
func (*Nak) Type() Type       { return TypeNak }
func (*Rebase) Type() Type    { return TypeRebase }
func (*Flush) Type() Type     { return TypeFlush }
func (*Flushed) Type() Type   { return TypeFlushed }
func (*Commit) Type() Type    { return TypeCommit }
func (*Committed) Type() Type { return TypeCommitted }
func (*Doubt) Type() Type     { return TypeDoubt }
func (*Ping) Type() Type      { return TypePing }
func (*Pong) Type() Type      { return TypePong }
func (*Window) Type() Type    { return TypeWindow }
func (*Halt) Type() Type      { return TypeHalt }
func (*Bye) Type() Type       { return TypeBye }
func (*Attach) Type() Type    { return TypeAttach }
func (*Attached) Type() Type  { return TypeAttached }
func (*Synced) Type() Type    { return TypeSynced }
func (*Bulk) Type() Type      { return TypeBulk }
func (*Report) Type() Type    { return TypeReport }

func (*Suspect) Type() Type    { return TypeSuspect }
func (*Quarantine) Type() Type { return TypeQuarantine }
func (*Repair) Type() Type     { return TypeRepair }
func (*Fetch) Type() Type      { return TypeFetch }
func (*Fetched) Type() Type    { return TypeFetched }
func (*Ask) Type() Type        { return TypeAsk }
func (*Told) Type() Type       { return TypeTold }
func (*Ended) Type() Type      { return TypeEnded }
func (*Door) Type() Type       { return TypeDoor }
func (*Knock) Type() Type      { return TypeKnock }

func (*KeyNext) Type() Type { return TypeKeyNext }
func (*KeyAck) Type() Type  { return TypeKeyAck }

// header is what a frame's first bytes say.
type header struct {
	kind    Type
	meta    uint32 // lengths, bytes
	payload uint32
	metaCRC uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// putHeader fills b[:HeaderSize].
func putHeader(b []byte, h header) {
	b = b[:HeaderSize]
	copy(b, magic)
	binary.LittleEndian.PutUint16(b[4:], Version)
	b[6] = byte(h.kind)
	b[7] = 0
	binary.LittleEndian.PutUint32(b[8:], h.meta)
	binary.LittleEndian.PutUint32(b[12:], h.payload)
	binary.LittleEndian.PutUint32(b[16:], h.metaCRC)
	binary.LittleEndian.PutUint32(b[headerCRCAt:], checksum(b[:headerCRCAt]))
}

// errSpeaksTLS is told to the peer in plain text, which a blkmirror knows how to take.
var errSpeaksTLS = errors.New("it speaks TLS, and this side was started with --insecure")

// Plain tells whether a connection that begins like that is a blkmirror's, without TLS.
func Plain(head []byte) bool { return bytes.HasPrefix(head, []byte(magic)) }

// PlainRefusal is the answer to that of a port that speaks TLS: a whole frame, the same for everybody.
func PlainRefusal() []byte {
	frame, err := appendFrame(nil, &Refused{Code: CodeTLS, Text: "this port speaks TLS: leave --insecure away"})
	if err != nil {
		panic(err) // the message is a constant
	}
	return frame
}

// checkPreamble looks at as much of magic and version as b holds. b may be longer: what is there of it
// is shown where it is not ours.
func checkPreamble(b []byte) error {
	if n := min(len(b), len(magic)); !bytes.Equal(b[:n], []byte(magic)[:n]) {
		if len(b) >= 2 && b[0] >= 20 && b[0] <= 23 && b[1] == 3 { // the head of a record
			return fmt.Errorf("%w in plain text: %w", ErrNotBlkmirror, errSpeaksTLS)
		}
		return fmt.Errorf("%w: it begins with %q", ErrNotBlkmirror, b[:min(len(b), 40)])
	}
	if len(b) < preambleSize {
		return nil
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != Version {
		return fmt.Errorf("%w: the peer speaks version %d, this node version %d", ErrVersion, v, Version)
	}
	return nil
}

// parseHeader reads a header of HeaderSize bytes. Nothing in it is believed before its checksum was
// right, and no length is returned that its type does not allow: a caller may allocate by it.
func parseHeader(b []byte) (header, error) {
	if err := checkPreamble(b); err != nil {
		return header{}, err
	}
	if len(b) != HeaderSize {
		return header{}, fmt.Errorf("%w: header of %d bytes, want %d", ErrProtocol, len(b), HeaderSize)
	}
	got, want := checksum(b[:headerCRCAt]), binary.LittleEndian.Uint32(b[headerCRCAt:])
	if got != want {
		return header{}, fmt.Errorf("%w: frame header has CRC32C %08x, says %08x", ErrCorrupt, got, want)
	}
	h := header{
		kind:    Type(b[6]),
		meta:    binary.LittleEndian.Uint32(b[8:]),
		payload: binary.LittleEndian.Uint32(b[12:]),
		metaCRC: binary.LittleEndian.Uint32(b[16:]),
	}
	if int(h.kind) >= len(specs) || specs[h.kind].max == 0 {
		return header{}, fmt.Errorf("%w: frame of %v, which version %d does not have", ErrProtocol, h.kind, Version)
	}
	s := &specs[h.kind]
	switch {
	case b[7] != 0:
		return header{}, fmt.Errorf("%w: %v with flags %#x, want 0", ErrProtocol, h.kind, b[7])
	case h.meta < s.min || h.meta > s.max:
		return header{}, fmt.Errorf("%w: %v with a meta of %d bytes, want %d to %d", ErrProtocol, h.kind, h.meta, s.min, s.max)
	case h.payload > s.payload:
		return header{}, fmt.Errorf("%w: %v with a payload of %d bytes, limit %d", ErrProtocol, h.kind, h.payload, s.payload)
	}
	return h, nil
}

// checkMeta compares a meta with the checksum in its header.
func checkMeta(h header, meta []byte) error {
	if got := checksum(meta); got != h.metaCRC {
		return fmt.Errorf("%w: meta of %v has CRC32C %08x, says %08x", ErrCorrupt, h.kind, got, h.metaCRC)
	}
	return nil
}
