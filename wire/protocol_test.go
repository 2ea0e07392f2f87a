package wire

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

const protocolPage = "../docs/PROTOCOL.md"

// TestProtocolPage holds docs/PROTOCOL.md against the code: the hex example is what the encoder makes,
// each drawing in the code stands there, and so do types, limits and codes.
func TestProtocolPage(t *testing.T) {
	text, err := os.ReadFile(protocolPage)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	_, example, _ := strings.Cut(page, "## A frame in bytes")
	_, example, _ = strings.Cut(example, "```text\n")
	example, _, _ = strings.Cut(example, "```")
	if got, want := undump(t, example), frame(t, sample(TypeData)); !bytes.Equal(got, want) {
		t.Errorf("the example is %x, the encoder makes %x", got, want)
	}
	for _, row := range regexp.MustCompile("(?m)^\\| (\\d+) \\| `([0-9a-f ]+)` \\|").FindAllStringSubmatch(page, -1) {
		var at int
		fmt.Sscan(row[1], &at)
		want := fmt.Sprintf("% x", frame(t, sample(TypeData))[at:])
		if !strings.HasPrefix(want, row[2]) {
			t.Errorf("the example's row at %d is %s", at, row[2])
		}
	}
	for _, name := range []string{"frame.go", "encode.go", "encode_live.go", "encode_probe.go", "rollover.go", "codec.go"} {
		for _, d := range drawings(t, name) {
			if !strings.Contains(page, d) {
				t.Errorf("a drawing of %s is not on the page:\n%s", name, d)
			}
		}
	}
	for _, row := range append(append(typeRows(), limitRows()...), codeRows()...) {
		if !strings.Contains(page, row+"\n") {
			t.Errorf("not on the page: %s", row)
		}
	}
}

// drawings are the indented parts of the comments in a file.
func drawings(t *testing.T, name string) (all []string) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var d strings.Builder
	for line := range strings.Lines(string(text)) {
		if part, ok := strings.CutPrefix(line, "//\t"); ok {
			d.WriteString(part)
		} else if d.Len() > 0 {
			all = append(all, d.String())
			d.Reset()
		}
	}
	return all
}

func typeRows() (rows []string) {
	from := map[Type]string{
		TypeHello: "both", TypeOpen: "source", TypeOpened: "target", TypeRefused: "both", TypeOffer: "source", TypeWant: "target",
		TypeData: "source", TypeZero: "source", TypeAck: "target", TypeNak: "target", TypeFlush: "source", TypeFlushed: "target",
		TypeCommit: "source", TypeCommitted: "target", TypeDoubt: "target", TypePing: "both", TypePong: "both", TypeWindow: "target",
		TypeHalt: "both", TypeBye: "both", TypeRebase: "primary", TypeAttach: "primary", TypeAttached: "mirror",
		TypeSynced: "mirror", TypeBulk: "primary", TypeReport: "mirror", TypeSuspect: "primary",
		TypeQuarantine: "mirror", TypeRepair: "primary", TypeFetch: "both", TypeFetched: "both",
		TypeAsk: "mirror", TypeTold: "primary", TypeEnded: "primary", TypeDoor: "primary", TypeKnock: "mirror",
		TypeKeyNext: "both", TypeKeyAck: "both",
		TypeSurvey: "dialler", TypeSurveyed: "acceptor", TypeLoad: "dialler", TypeLoaded: "both", TypeBallast: "both",
	}
	for kind, s := range specs {
		length, payload := fmt.Sprint(s.min), "none"
		switch {
		case kind == 0 || s.name == "": // a number that nobody has
			continue
		case s.max == 0:
			rows = append(rows, fmt.Sprintf("| %d | %s | reserved | | |", kind, s.name))
			continue
		case s.max > s.min:
			length = fmt.Sprintf("%d to %d", s.min, s.max)
		}
		if s.payload > 0 {
			payload = fmt.Sprintf("1 to %d", s.payload)
		}
		if Type(kind) == TypeFetched {
			payload = "none, or " + payload
		}
		rows = append(rows, fmt.Sprintf("| %d | %s | %s | %s | %s |", kind, s.name, from[Type(kind)], length, payload))
	}
	return rows
}

func limitRows() (rows []string) {
	for _, l := range []struct {
		what  string
		limit int
	}{
		{"MaxName: a name of a volume, a node or its software", MaxName},
		{"MaxText: a text for a person", MaxText},
		{"MaxBlock: a block, and the raw payload of one Data", MaxBlock},
		{"MaxRun: a run of Data, raw", MaxRun},
		{"MaxOffer: hashes in one Offer", MaxOffer},
		{"MaxEntries: entries in one Ack or Nak, extents in one Doubt, Rebase, Quarantine or Ended", MaxEntries},
		{"MaxHoles: extents of holes in one Commit", MaxHoles},
		{"MaxDevices: devices in one Open or Attach", MaxDevices},
		{"MaxZeroExtent: bytes that one Zero covers, or one entry of a Suspect", MaxZeroExtent},
		{"MaxSuspects: entries in one Suspect", MaxSuspects},
		{"MaxTree: bytes under one hash of an Offer of trees", MaxTree},
		{"MaxListed: extents in all frames of one Ended", MaxListed},
		{"MaxState: a word for the state of a volume", MaxState},
		{"MaxVolumes: volumes in one Surveyed", MaxVolumes},
		{"MaxBallast: payload of one Ballast", MaxBallast},
		{"MaxLoadMillis: time of a load test, milliseconds", MaxLoadMillis},
		{"MaxLoadBytes: bytes of a load test", MaxLoadBytes},
		{"MaxUnsurveyed: Surveys without an answer", MaxUnsurveyed},
	} {
		rows = append(rows, fmt.Sprintf("| %s | %d |", l.what, l.limit))
	}
	return rows
}

func codeRows() (rows []string) {
	for _, r := range reasons {
		rows = append(rows, fmt.Sprintf("| %d | %v |", r.code, r.err))
	}
	return rows
}
