package identity

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// What both signatures of a KeyNext are over: no other text that a key signs begins like it.
//
//	 0       1       2       3       4       5       6       7
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| "blkmirror KeyNext 1" and 5 bytes of zero                     |   0
//	+---------------------------------------------------------------+
//	| key, 32 bytes                                                 |  24
//	+---------------------------------------------------------------+
//	| next, 32 bytes                                                |  56
//	+---------------------------------------------------------------+
//	| switch, Unix milliseconds, little-endian                      |  88
//	+---------------------------------------------------------------+
//	| until, Unix milliseconds, little-endian                       |  96
//	+---------------------------------------------------------------+
const (
	keyNextDomain = "blkmirror KeyNext 1\x00\x00\x00\x00\x00"
	keyNextSize   = len(keyNextDomain) + 2*32 + 2*8
)

func keyNextText(m *wire.KeyNext) []byte {
	b := make([]byte, 0, keyNextSize)
	b = append(b, keyNextDomain...)
	b = append(b, m.Key[:]...)
	b = append(b, m.Next[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Switch))
	return binary.LittleEndian.AppendUint64(b, uint64(m.Until))
}

// announce is the KeyNext of two own keys that follow each other.
func announce(key, next ownKey) *wire.KeyNext {
	m := &wire.KeyNext{Key: key.id, Next: next.id, Switch: next.from.UnixMilli(), Until: key.until.UnixMilli()}
	text := keyNextText(m)
	m.ByKey = [64]byte(ed25519.Sign(key.private, text))
	m.ByNext = [64]byte(ed25519.Sign(next.private, text))
	return m
}

// lastTime is the last that RFC 3339, and so the file, has a text for.
var lastTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// verify says whether both keys signed, and whether what they signed can be kept.
func verify(m *wire.KeyNext) error {
	text := keyNextText(m)
	switch {
	case m.Key == m.Next || ID(m.Next) == ID{}:
		return fmt.Errorf("%w: KeyNext names no successor", wire.ErrProtocol)
	case m.Switch < 0 || m.Switch > lastTime.UnixMilli() || m.Until < 0 || m.Until > lastTime.UnixMilli():
		return fmt.Errorf("%w: KeyNext with times that are none", wire.ErrProtocol)
	case !ed25519.Verify(m.Key[:], text, m.ByKey[:]):
		return fmt.Errorf("%w: KeyNext is not signed by its key %s", wire.ErrProtocol, ID(m.Key))
	case !ed25519.Verify(m.Next[:], text, m.ByNext[:]):
		return fmt.Errorf("%w: KeyNext is not signed by the successor %s", wire.ErrProtocol, ID(m.Next))
	}
	return nil
}
