package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew; the format is frozen, so look twice")

// TestGolden compares the bytes of one frame of each type with testdata, and reads them back.
func TestGolden(t *testing.T) {
	seen := map[Type]bool{}
	for _, m := range samples() {
		seen[m.Type()] = true
		t.Run(m.Type().String(), func(t *testing.T) {
			got := frame(t, m)
			path := filepath.Join("testdata", strings.ToLower(m.Type().String())+".hex")
			if *update {
				if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want := undump(t, string(text))
			if !bytes.Equal(got, want) {
				t.Errorf("frame:\n%swant:\n%s", hex.Dump(got), hex.Dump(want))
			}
			var parser Parser
			back, _, _, err := parser.Next(want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(received(m), back); diff != "" {
				t.Errorf("read back (-want +got):\n%s", diff)
			}
		})
	}
	for kind, s := range specs {
		if s.max > 0 && !seen[Type(kind)] {
			t.Errorf("no golden frame of %v", Type(kind))
		}
	}
}

// undump reads what hex.Dump wrote.
func undump(t testing.TB, text string) []byte {
	t.Helper()
	var b []byte
	for line := range strings.Lines(text) {
		digits, _, _ := strings.Cut(line, "|")
		fields := strings.Fields(digits)
		if len(fields) < 2 {
			continue
		}
		row, err := hex.DecodeString(strings.Join(fields[1:], ""))
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		b = append(b, row...)
	}
	return b
}

// TestTruncated cuts each golden frame at every byte: never a message, always a lost connection.
func TestTruncated(t *testing.T) {
	for _, m := range samples() {
		whole := frame(t, m)
		body, _ := payloadOf(m)
		payload := len(body)
		for n := range whole {
			ms, _, err := receiveAll(bareConn(whole[:n]))
			if !errors.Is(err, ErrReset) || Classify(err) != ClassReset {
				t.Errorf("%v cut to %d of %d bytes: %v", m.Type(), n, len(whole), err)
			}
			if len(ms) != 0 && n < len(whole)-payload {
				t.Errorf("%v cut to %d of %d bytes: is a message", m.Type(), n, len(whole))
			}
		}
	}
}

// TestBitFlips turns each bit of each golden frame: the frame is refused, or its payload does not have
// its hash. As the first frame and as a later one. The payload of a Ballast is thrown away by who gets it.
func TestBitFlips(t *testing.T) {
	before := frame(t, &Window{1})
	for _, m := range samples() {
		whole := frame(t, m)
		if b, ok := m.(*Ballast); ok {
			whole = whole[:len(whole)-len(b.Payload)]
		}
		for bit := range len(whole) * 8 {
			for _, lead := range [][]byte{nil, before} {
				b := append(bytes.Clone(lead), whole...)
				b[len(lead)+bit/8] ^= 1 << (bit % 8)
				ms, mismatches, err := receiveAll(bareConn(b))
				if len(lead) > 0 && len(ms) > 0 {
					ms = ms[1:]
				}
				if len(ms) > 0 && mismatches == 0 {
					t.Fatalf("%v with bit %d turned: accepted", m.Type(), bit)
				}
				if mismatches == 0 && !refusal(err, len(lead) > 0) {
					t.Fatalf("%v with bit %d turned, lead %d: %v", m.Type(), bit, len(lead), err)
				}
			}
		}
	}
}

// refusal: damage is told as damage, but for the first six bytes of a connection.
func refusal(err error, later bool) bool {
	if errors.Is(err, ErrCorrupt) && Classify(err) == ClassIntegrity {
		return true
	}
	return !later && (errors.Is(err, ErrNotBlkmirror) || errors.Is(err, ErrVersion))
}
