package cli

import (
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/engine"
)

func TestRepairTellsPeople(t *testing.T) {
	done := engine.RepairResult{Volume: "db", Mirror: "east", Blocks: 3, ComparedBytes: 192 << 10, ShippedBytes: 64 << 10, Extents: extents(1), Seconds: 2}
	equal := engine.RepairResult{Volume: "db", Mirror: "east", Blocks: 3, ComparedBytes: 192 << 10, Extents: extents(0), Seconds: 2}
	nothing := engine.RepairResult{Volume: "db", Mirror: "west", Nothing: true, Extents: extents(0)}
	tests := []struct {
		args           string
		result         engine.RepairResult
		code           int
		stdout, stderr string
	}{
		{"", done, 0, "db at east: repaired in 2.0 s: 3 blocks were in question, compared 192 KiB, shipped 64.0 KiB, ranges that differed: 1 (64.0 KiB)\n  at 0+65536\n", ""},
		{"", equal, 0, "db at east: repaired in 2.0 s: 3 blocks were in question, compared 192 KiB, shipped 0 B, nothing differed any more\n", ""},
		{"", nothing, 0, "db at west: nothing to repair: no block is in quarantine (--all compares every one)\n", ""},
		{"--all", nothing, 0, "db at west: nothing to repair\n", ""},
		{"--dry-run", done, exitIntegrity, "db at east: compared 192 KiB in 2.0 s, ranges that differ: 1 (64.0 KiB)\n  at 0+65536\n",
			"blkmirror: repair db: mirror east differs, and is left as it was\n  next: run `blkmirror repair db` without --dry-run\n"},
		{"--dry-run", equal, 0, "db at east: compared 192 KiB in 2.0 s, no difference\n", ""},
		{"--from mirror", done, 0, "db at east: 3 blocks of the primary were rotten, in 2.0 s, ranges taken from there: 1 (64.0 KiB)\n  at 0+65536\n", ""},
		{"--from mirror --dry-run", done, 0, "db at east: 3 blocks of the primary were rotten, in 2.0 s, ranges that it has: 1 (64.0 KiB)\n  at 0+65536\n", ""},
		{"--from mirror", nothing, 0, "db at west: nothing to repair: no block of the primary is known to be rotten (scrub looks for them)\n", ""},
		{"--json", done, 0, `{"volume":"db","mirror":"east","nothing":false,"blocks":3,"compared_bytes":196608,"shipped_bytes":65536,"extents":[{"offset":0,"length":65536}],"seconds":2}` + "\n", ""},
	}
	for _, test := range tests {
		control, _ := sayingDaemon(t, object{"progress": engine.CheckProgress{}}, object{"results": []any{test.result}})
		got := call(t, append(strings.Fields("repair db --control "+control), strings.Fields(test.args)...)...)
		if want := (outcome{test.code, test.stdout, test.stderr}); got != want {
			t.Errorf("%s: %+v instead of %+v", test.args, got, want)
		}
	}
}
