package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDump: all that the files hold is shown, save the secrets.
func TestDump(t *testing.T) {
	var out bytes.Buffer
	if known, err := Dump(&out, "testdata"); !known || err != nil {
		t.Fatal(known, err)
	}
	for _, k := range sampleRing() {
		if !strings.Contains(out.String(), "key "+k.id.String()+": made ") {
			t.Errorf("%v is not shown", k.id)
		}
		seed := k.private.Seed()
		block, _ := pem.Decode(must1(t)(sampleRing().encode()))
		for _, secret := range []string{hex.EncodeToString(seed), base64.StdEncoding.EncodeToString(seed), base64.StdEncoding.EncodeToString(block.Bytes), string(seed)} {
			if strings.Contains(out.String(), secret) {
				t.Error("a secret is shown")
			}
		}
	}
	for _, text := range []string{"peer pluto", "trusted by a person", "dns:saturn.example.org", "may be mirror of db until -", "ALARM", "revoked on ", " of mars"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("%q is missing in\n%s", text, out.String())
		}
	}
	dir := t.TempDir()
	if known, _ := Dump(&out, dir); known {
		t.Error("any folder is one of keys")
	}
	if known, _ := Dump(&out, filepath.Join("testdata", trustFile)); !known {
		t.Error("a file alone is not known")
	}
	damaged := must1(t)(sampleRing().encode())
	damaged[len(damaged)/2] ^= 1
	must(t, os.WriteFile(filepath.Join(dir, ownFile), damaged, 0o600))
	out.Reset()
	if known, err := Dump(&out, dir); !known || err == nil || out.Len() > 0 {
		t.Errorf("a damaged file: %v, %v, %q", known, err, out.String())
	}
}

func must1(t *testing.T) func(text []byte, err error) []byte {
	return func(text []byte, err error) []byte {
		t.Helper()
		must(t, err)
		return text
	}
}
