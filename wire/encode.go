package wire

import (
	"encoding/binary"
	"fmt"
)

// The metas, one diagram and one append function each; decode.go holds the other half of each pair, and
// encode_live.go those of live sessions alone. One row is 8 bytes, little-endian; a span of many rows says
// its length. Reserved bytes are zero.

// Sizes of metas, and of the part of a meta that does not vary.
const (
	helloFixed    = 48
	openFixed     = 96
	openedSize    = 72
	endFixed      = 4
	offerFixed    = 32
	wantFixed     = 8
	dataSize      = 72
	zeroSize      = 40
	entrySize     = 56
	flushSize     = 48
	flushedSize   = 16
	commitFixed   = 72
	committedSize = 48
	doubtFixed    = 8
	extentSize    = 16
	pingSize      = 8
	windowSize    = 8
	keyNextSize   = 208
	keyAckSize    = 32
)

var le = binary.LittleEndian

// appendFrame appends header and meta of m to b, not its payload. Where m breaks a rule, b is returned
// as it was, with an error.
func appendFrame(b []byte, m Message) ([]byte, error) {
	payload, said := payloadOf(m)
	// A sender need not fill PayloadLength in, but it must not contradict the payload.
	if said != 0 && said != len(payload) {
		return b, broken("%v with PayloadLength %d and a payload of %d bytes", m.Type(), said, len(payload))
	}
	var err error
	switch m := m.(type) {
	case *Data:
		sent := *m
		sent.PayloadLength = len(payload)
		err = sent.check()
	case *Fetched:
		sent := *m
		sent.PayloadLength = len(payload)
		err = sent.check()
	case *Ballast:
		sent := *m
		sent.PayloadLength = len(payload)
		err = sent.check()
	default:
		err = check(m)
	}
	if err != nil {
		return b, err
	}
	start := len(b)
	var room [HeaderSize]byte
	b = appendMeta(append(b, room[:]...), m)
	meta := b[start+HeaderSize:]
	putHeader(b[start:], header{
		kind:    m.Type(),
		meta:    uint32(len(meta)),
		payload: uint32(len(payload)),
		metaCRC: checksum(meta),
	})
	return b, nil
}

// payloadOf is what follows the frame of a message, and the length that the message gives for it.
func payloadOf(m Message) (payload []byte, length int) {
	switch m := m.(type) {
	case *Data:
		return m.Payload, m.PayloadLength
	case *Fetched:
		return m.Payload, m.PayloadLength
	case *Ballast:
		return m.Payload, m.PayloadLength
	}
	return nil, 0
}

// appendMeta appends the meta of a message that was checked.
func appendMeta(b []byte, m Message) []byte {
	switch m := m.(type) {
	case *Hello:
		return appendHello(b, m)
	case *Open:
		return appendOpen(b, m)
	case *Opened:
		return appendOpened(b, m)
	case *Refused:
		return appendEnd(b, m.Code, m.Text)
	case *Offer:
		return appendOffer(b, m)
	case *Want:
		return appendWant(b, m)
	case *Data:
		return appendData(b, m)
	case *Zero:
		return appendZero(b, m)
	case *Ack:
		return appendAck(b, m)
	case *Nak:
		return appendNak(b, m)
	case *Flush:
		return appendFlush(b, m)
	case *Flushed:
		return appendFlushed(b, m)
	case *Commit:
		return appendCommit(b, m)
	case *Committed:
		return appendCommitted(b, m)
	case *Doubt:
		return appendDoubt(b, m)
	case *Ping:
		return le.AppendUint64(b, uint64(m.Sent))
	case *Pong:
		return le.AppendUint64(b, uint64(m.Sent))
	case *Window:
		return le.AppendUint64(b, m.Granted)
	case *Halt:
		return appendEnd(b, m.Code, m.Text)
	case *Bye:
		return appendEnd(b, m.Code, m.Text)
	case *Attach:
		return appendAttach(b, m)
	case *Attached:
		return appendAttached(b, m)
	case *Rebase:
		return appendRebase(b, m)
	case *Synced:
		return appendSynced(b, m)
	case *Bulk:
		return le.AppendUint64(le.AppendUint64(b, m.Base), m.Number)
	case *Report:
		return appendReport(b, m)
	case *Suspect:
		return appendSuspect(b, m)
	case *Quarantine:
		return appendQuarantine(b, m)
	case *Repair:
		return appendRepair(b, m)
	case *Fetch:
		return appendFetch(b, m.Offset, m.Length, m.Hash)
	case *Fetched:
		return appendFetch(b, m.Offset, m.Length, m.Hash)
	case *Ask:
		return appendAsk(b, m)
	case *Told:
		return appendTold(b, m)
	case *Ended:
		return appendEnded(b, m)
	case *Door:
		return appendDoor(b, m)
	case *Knock:
		return append(b, m.VolumeID[:]...)
	case *KeyNext:
		return appendKeyNext(b, m)
	case *KeyAck:
		return append(b, m.Key[:]...)
	}
	if b, ok := appendProbe(b, m); ok {
		return b
	}
	panic(fmt.Sprintf("wire: %T passed its check and has no encoder", m))
}

// Hello
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                         node, 32 bytes                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|          block size           | role  |       reserved        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|  name length  |software length| volume length |   reserved    |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                    name, software, volume ...                 |
//	+---------------------------------------------------------------+
func appendHello(b []byte, m *Hello) []byte {
	b = append(b, m.Node[:]...)
	b = le.AppendUint32(b, m.BlockSize)
	b = append(b, byte(m.Role), 0, 0, 0)
	b = le.AppendUint16(b, uint16(len(m.Name)))
	b = le.AppendUint16(b, uint16(len(m.Software)))
	b = le.AppendUint16(b, uint16(len(m.Volume)))
	b = append(b, 0, 0)
	b = append(b, m.Name...)
	b = append(b, m.Software...)
	return append(b, m.Volume...)
}

// Open
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                      volume id, 16 bytes                      |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                      generation, 16 bytes                     |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          incarnation                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             size                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                     fingerprint, 32 bytes                     |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|          block size           |             flags             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| volume length |    devices    |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|        volume ..., then one hash of 32 bytes a device ...     |
//	+---------------------------------------------------------------+
func appendOpen(b []byte, m *Open) []byte {
	b = append(b, m.VolumeID[:]...)
	b = append(b, m.Generation[:]...)
	b = le.AppendUint64(b, m.Incarnation)
	b = le.AppendUint64(b, uint64(m.Size))
	b = append(b, m.Fingerprint[:]...)
	b = le.AppendUint32(b, m.BlockSize)
	b = le.AppendUint32(b, uint32(m.Flags))
	b = le.AppendUint16(b, uint16(len(m.Volume)))
	b = le.AppendUint16(b, uint16(len(m.Devices)))
	b = append(b, 0, 0, 0, 0)
	b = append(b, m.Volume...)
	return appendHashes(b, m.Devices)
}

// Opened
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             size                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           data end                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          resume from                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                     resume hash, 32 bytes                     |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            window                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|          max offers           |             flags             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendOpened(b []byte, m *Opened) []byte {
	b = le.AppendUint64(b, uint64(m.Size))
	b = le.AppendUint64(b, uint64(m.DataEnd))
	b = le.AppendUint64(b, uint64(m.ResumeFrom))
	b = append(b, m.ResumeHash[:]...)
	b = le.AppendUint64(b, m.Window)
	b = le.AppendUint32(b, m.MaxOffers)
	return le.AppendUint32(b, uint32(m.Flags))
}

// Refused, Halt, Bye
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|     code      |  text length  |            text ...
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendEnd(b []byte, code Code, text string) []byte {
	b = le.AppendUint16(b, uint16(code))
	b = le.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

// Offer. The count of hashes is what is left of the meta, divided by 32.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              seq                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            offset                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|            length             |             unit              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|             flags             |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                  one hash of 32 bytes a unit ...              |
//	+---------------------------------------------------------------+
func appendOffer(b []byte, m *Offer) []byte {
	b = le.AppendUint64(b, m.Seq)
	b = le.AppendUint64(b, uint64(m.Offset))
	b = le.AppendUint32(b, m.Length)
	b = le.AppendUint32(b, m.Unit)
	b = le.AppendUint32(b, uint32(m.Flags))
	b = append(b, 0, 0, 0, 0)
	return appendHashes(b, m.Hashes)
}

// Want. The bits are the rest of the meta.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              seq                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            bits ...                           |
//	+---------------------------------------------------------------+
func appendWant(b []byte, m *Want) []byte {
	b = le.AppendUint64(b, m.Seq)
	return append(b, m.Bits...)
}

// Data. The payload's length is in the frame's header.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              seq                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             epoch                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            offset                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|          raw length           |            follow             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| codec |                       reserved                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                SHA-256 of the raw bytes, 32 bytes             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendData(b []byte, m *Data) []byte {
	b = le.AppendUint64(b, m.Seq)
	b = le.AppendUint64(b, m.Epoch)
	b = le.AppendUint64(b, uint64(m.Offset))
	b = le.AppendUint32(b, m.RawLength)
	b = le.AppendUint32(b, m.Follow)
	b = append(b, byte(m.Codec), 0, 0, 0, 0, 0, 0, 0)
	return append(b, m.Hash[:]...)
}

// Zero
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              seq                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             epoch                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            offset                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            length                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|             flags             |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendZero(b []byte, m *Zero) []byte {
	b = le.AppendUint64(b, m.Seq)
	b = le.AppendUint64(b, m.Epoch)
	b = le.AppendUint64(b, uint64(m.Offset))
	b = le.AppendUint64(b, uint64(m.Length))
	b = le.AppendUint32(b, m.Flags)
	return append(b, 0, 0, 0, 0)
}

// Ack and Nak: entries until the meta ends. An Ack's entry has a level, a Nak's a cause.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              seq                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            offset                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| level |                       reserved                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|              checksum of the receiver, 32 bytes               |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendAck(b []byte, m *Ack) []byte {
	for i := range m.Entries {
		e := &m.Entries[i]
		b = appendEntry(b, e.Seq, e.Offset, byte(e.Level), &e.Hash)
	}
	return b
}

func appendNak(b []byte, m *Nak) []byte {
	for i := range m.Entries {
		e := &m.Entries[i]
		b = appendEntry(b, e.Seq, e.Offset, byte(e.Cause), &e.Hash)
	}
	return b
}

func appendEntry(b []byte, seq uint64, offset int64, verdict byte, hash *Hash) []byte {
	b = le.AppendUint64(b, seq)
	b = le.AppendUint64(b, uint64(offset))
	b = append(b, verdict, 0, 0, 0, 0, 0, 0, 0)
	return append(b, hash[:]...)
}

// Flush
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            number                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           position                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|         SHA-256 of the block before position, 32 bytes        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendFlush(b []byte, m *Flush) []byte {
	b = le.AppendUint64(b, m.Number)
	b = le.AppendUint64(b, uint64(m.Position))
	return append(b, m.LastHash[:]...)
}

// Flushed
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            number                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           position                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendFlushed(b []byte, m *Flushed) []byte {
	b = le.AppendUint64(b, m.Number)
	return le.AppendUint64(b, uint64(m.Position))
}

// Commit: holes until the meta ends, each as an extent of offset and length.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             epoch                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             base                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            records                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             pages                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                        chain, 32 bytes                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|             flags             |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                one extent of 16 bytes a hole ...              |
//	+---------------------------------------------------------------+
func appendCommit(b []byte, m *Commit) []byte {
	b = le.AppendUint64(b, m.Epoch)
	b = le.AppendUint64(b, m.Base)
	b = le.AppendUint64(b, m.Records)
	b = le.AppendUint64(b, m.Pages)
	b = append(b, m.Chain[:]...)
	b = le.AppendUint32(b, uint32(m.Flags))
	b = append(b, 0, 0, 0, 0)
	return appendExtents(b, m.Holes)
}

// Committed
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             epoch                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            records                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                        chain, 32 bytes                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendCommitted(b []byte, m *Committed) []byte {
	b = le.AppendUint64(b, m.Epoch)
	b = le.AppendUint64(b, m.Records)
	return append(b, m.Chain[:]...)
}

// Doubt: extents until the meta ends.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| more  |                       reserved                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            offset                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            length                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendDoubt(b []byte, m *Doubt) []byte {
	b = append(b, bit(m.More), 0, 0, 0, 0, 0, 0, 0)
	return appendExtents(b, m.Extents)
}

func appendExtents(b []byte, extents []Extent) []byte {
	for _, e := range extents {
		b = le.AppendUint64(b, uint64(e.Offset))
		b = le.AppendUint64(b, uint64(e.Length))
	}
	return b
}

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func appendHashes(b []byte, hashes []Hash) []byte {
	for i := range hashes {
		b = append(b, hashes[i][:]...)
	}
	return b
}
