package identity

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/wire"
)

// TestKeyNextBytes holds what is signed to the drawing in KEYS.md: peers of other versions sign, and check, just that.
func TestKeyNextBytes(t *testing.T) {
	m := &wire.KeyNext{Switch: 0x0102030405, Until: 0x1112131415}
	for i := range m.Key {
		m.Key[i], m.Next[i] = 0xaa, 0xbb
	}
	want := hex.EncodeToString([]byte("blkmirror KeyNext 1")) + "0000000000" + strings.Repeat("aa", 32) + strings.Repeat("bb", 32) +
		"0504030201000000" + "1514131211000000"
	if got := keyNextText(m); hex.EncodeToString(got) != want || len(got) != 104 {
		t.Errorf("%d bytes: %x", len(got), got)
	}
}
