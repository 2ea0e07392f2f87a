package cli

import (
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/engine"
)

func TestScrubAsks(t *testing.T) {
	control, asked := sayingDaemon(t, object{"results": []any{}})
	for args, want := range map[string]string{
		"scrub db":                    "POST /scrub?volume=db",
		"scrub --rate 100MiB/s db":    "POST /scrub?rate=104857600&volume=db",
		"scrub db --json --rate=4096": "POST /scrub?rate=4096&volume=db",
	} {
		got := call(t, append(strings.Fields(args), "--control", control)...)
		if got.code != 0 || got.stdout+got.stderr != "" {
			t.Errorf("%s: %+v", args, got)
		}
		if request := <-asked; request != want {
			t.Errorf("%s asks %s", args, request)
		}
	}
}

func TestScrubTells(t *testing.T) {
	progress := object{"progress": engine.CheckProgress{Done: 1, Total: 2}}
	clean := engine.ScrubResult{Volume: "db", Role: "primary", CheckedBytes: 5 << 30, UnknownBytes: 1 << 20, SkippedBytes: 4096, Extents: extents(0), Seconds: 12.5}
	mine := engine.ScrubResult{Volume: "db", Role: "primary", CheckedBytes: 5 << 30, Extents: extents(1), Seconds: 1}
	mirror := engine.ScrubResult{Volume: "db", Role: "mirror", CheckedBytes: 5 << 30, Extents: extents(2), Seconds: 1}
	broken := object{"kind": "device", "op": "scrub", "on": "db", "error": "1 ranges cannot be read", "next": "check it"}
	for _, test := range []struct {
		name           string
		last           object
		code           int
		stdout, stderr []string
	}{
		{"no rot", object{"results": []any{clean}}, 0, []string{"db, primary here: compared 5.00 GiB in 12.5 s, no rot\n", "1.00 MiB had no checksum", "4.00 KiB were left out"}, nil},
		{"rot of a primary", object{"results": []any{mine}}, exitIntegrity, []string{"rot, ranges: 1 (64.0 KiB)\n  at 0+65536\n"}, []string{"scrub db: rot: its disk", "repair db --from mirror"}},
		{"rot of a mirror", object{"results": []any{mirror}}, exitIntegrity, []string{"rot, ranges: 2"}, []string{"the mirror is read-only", "`blkmirror repair db`"}},
		{"rot, and more", object{"results": []any{mirror}, "error": broken}, exitIntegrity, nil, []string{"cannot be read\n  next: check it\nblkmirror: scrub db: rot"}},
		{"unreadable", object{"results": []any{clean}, "error": broken}, exitDevice, []string{"no rot"}, []string{"cannot be read"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			control, _ := sayingDaemon(t, progress, test.last)
			got := call(t, "scrub", "db", "--control", control)
			if got.code != test.code || test.stderr == nil && got.stderr != "" {
				t.Errorf("%+v", got)
			}
			for _, text := range test.stdout {
				if !strings.Contains(got.stdout, text) {
					t.Errorf("%q is missing in\n%s", text, got.stdout)
				}
			}
			for _, text := range test.stderr {
				if !strings.Contains(got.stderr, text) {
					t.Errorf("%q is missing in\n%s", text, got.stderr)
				}
			}
		})
	}
	control, _ := sayingDaemon(t, object{"results": []any{mine}})
	got := call(t, "scrub", "db", "--json", "--control", control)
	const want = `{"volume":"db","role":"primary","checked_bytes":5368709120,"unknown_bytes":0,"skipped_bytes":0,"extents":[{"offset":0,"length":65536}],"seconds":1}` + "\n"
	if got.code != exitIntegrity || got.stdout != want {
		t.Errorf("%+v", got)
	}
}
