package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/blkmirror/blkmirror/engine"
)

type object = map[string]any

// sayingDaemon answers each request with these lines, and tells what it was asked.
func sayingDaemon(t *testing.T, all ...any) (control string, asked chan string) {
	asked = make(chan string, 9)
	return fakeDaemon(t, func(r *http.Request) (int, any) {
		asked <- r.Method + " " + r.URL.Path + "?" + r.URL.Query().Encode()
		return http.StatusOK, lines(all)
	}), asked
}

func extents(n int) []engine.CheckedExtent {
	all := []engine.CheckedExtent{}
	for i := range n {
		all = append(all, engine.CheckedExtent{Offset: int64(i) << 17, Length: 65536})
	}
	return all
}

func TestVerifyAsks(t *testing.T) {
	control, asked := sayingDaemon(t, object{"results": []any{}})
	for args, want := range map[string]string{
		"verify db": "POST /verify?volume=db",
		"verify --rate 100MiB db --mirror h:1 --json": "POST /verify?mirror=h%3A1&rate=104857600&volume=db",
		"repair db":                                  "POST /repair?volume=db",
		"repair --all db --mirror east":              "POST /repair?all=1&mirror=east&volume=db",
		"repair db --dry-run --json":                 "POST /repair?dry_run=1&volume=db",
		"repair db --from mirror":                    "POST /repair?from=mirror&volume=db",
		"repair db --all=false --dry-run --mirror x": "POST /repair?dry_run=1&mirror=x&volume=db",
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

func TestVerifyTellsPeople(t *testing.T) {
	progress := object{"progress": engine.CheckProgress{Mirror: "east", Done: 1, Total: 2}}
	same := engine.VerifyResult{Volume: "db", Mirror: "east", CheckedBytes: 5 << 30, Extents: extents(0), Seconds: 12.5}
	late := engine.VerifyResult{Volume: "db", Mirror: "west", CheckedBytes: 1 << 20, SkippedBytes: 4096, ResumedAt: 2 << 30, Extents: extents(0), Seconds: 1}
	other := engine.VerifyResult{Volume: "db", Mirror: "west", CheckedBytes: 1 << 20, Extents: extents(2), Seconds: 1}
	many := engine.VerifyResult{Volume: "db", Mirror: "far", CheckedBytes: 1 << 30, Extents: extents(extentsShown + 3), Seconds: 1}
	rotten := engine.VerifyResult{Volume: "db", Mirror: "east", CheckedBytes: 1 << 20, Extents: extents(0), Rot: extents(1), Seconds: 1}
	away := object{"kind": "network", "op": "verify", "on": "far", "error": "it is away", "next": "look there"}
	tests := []struct {
		name           string
		last           object
		code           int
		stdout, stderr []string
	}{
		{"the same", object{"results": []any{same}}, 0, []string{"db at east: compared 5.00 GiB in 12.5 s, no difference\n"}, nil},
		{"not everything", object{"results": []any{same, late}}, 0, []string{"db at east:", "db at west: compared 1.00 MiB in 1.0 s, no difference\n",
			"went on at 2.00 GiB", "4.00 KiB were not compared"}, nil},
		{"a difference", object{"results": []any{same, other}}, exitIntegrity, []string{"no difference\n", "ranges that differ: 2 (128 KiB)\n  at 0+65536\n  at 131072+65536\n"},
			[]string{"blkmirror: verify db: mirror west differs, and is read-only now\n  next: run `blkmirror repair db`"}},
		{"rot", object{"results": []any{rotten}}, exitIntegrity, []string{"no difference\n  rot of the primary's own disk, ranges: 1 (64.0 KiB)\n  at 0+65536\n"},
			[]string{"and the mirror does\n  next: check the primary's disk (smartctl), then `blkmirror repair db --from mirror`"}},
		{"many differences", object{"results": []any{other, many}}, exitIntegrity, []string{"ranges that differ: 23 (1.44 MiB)", "\n  and 3 more; --json lists all\n"},
			[]string{"mirrors west, far differ, and are read-only now"}},
		{"one is away", object{"results": []any{same}, "error": away}, exitNetwork, []string{"db at east:"}, []string{"it is away\n  next: look there"}},
		{"one is away, one differs", object{"results": []any{other}, "error": away}, exitIntegrity, []string{"db at west:"},
			[]string{"it is away\n  next: look there\nblkmirror: verify db: mirror west differs"}},
		{"refused", object{"error": object{"kind": "state", "op": "verify", "on": "db", "error": "no primary has attached yet", "next": "attach one first"}},
			exitState, nil, []string{"blkmirror: verify db: no primary has attached yet\n  next: attach one first\n"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			control, _ := sayingDaemon(t, progress, test.last)
			got := call(t, "verify", "db", "--control", control)
			if got.code != test.code || test.stdout == nil && got.stdout != "" || test.stderr == nil && got.stderr != "" {
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
}

func TestVerifyPrintsOneObjectAMirror(t *testing.T) {
	want := []engine.VerifyResult{
		{Volume: "db", Mirror: "east", CheckedBytes: 5, Extents: extents(0), Seconds: 1},
		{Volume: "db", Mirror: "<w>", CheckedBytes: 5, SkippedBytes: 1, Extents: extents(extentsShown + 3), Seconds: 1, ResumedAt: 2},
	}
	control, _ := sayingDaemon(t, object{"results": want})
	got := call(t, "verify", "db", "--json", "--control", control)
	if got.code != exitIntegrity || !strings.Contains(got.stderr, "blkmirror repair db") || strings.Count(got.stdout, "\n") != 2 || !strings.Contains(got.stdout, `"<w>"`) {
		t.Errorf("%+v", got)
	}
	var have []engine.VerifyResult
	for line := range strings.Lines(got.stdout) {
		var r engine.VerifyResult
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		have = append(have, r)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Error(diff)
	}
	first, _, _ := strings.Cut(got.stdout, "\n")
	if first != `{"volume":"db","mirror":"east","checked_bytes":5,"skipped_bytes":0,"extents":[],"seconds":1}` {
		t.Error(first)
	}
}

func TestVerifyWithoutAnEnd(t *testing.T) {
	control, _ := sayingDaemon(t, object{"progress": engine.CheckProgress{Mirror: "east"}})
	for _, command := range []string{"verify", "repair"} {
		if got := call(t, command, "db", "--control", control); got.code != exitNetwork || got.stdout != "" || !strings.Contains(got.stderr, "cut off") {
			t.Errorf("%s: %+v", command, got)
		}
	}
}

func TestInterruptedVerify(t *testing.T) {
	for _, command := range []string{"verify", "repair"} {
		ctx, cancel := context.WithCancel(t.Context())
		control := fakeDaemon(t, func(r *http.Request) (int, any) {
			cancel()
			<-r.Context().Done()
			return http.StatusOK, nil
		})
		var stdout, stderr bytes.Buffer
		code := Main(ctx, []string{command, "db", "--control", control}, strings.NewReader(""), &stdout, &stderr)
		if code != exitOther || !strings.Contains(stderr.String(), "interrupted") || stdout.Len() > 0 {
			t.Errorf("%s: exit %d, %s%s", command, code, &stdout, &stderr)
		}
	}
}

// Several mirrors are one piece of work, and what was done before does not count as speed.
func TestCheckFigures(t *testing.T) {
	v := checkView{first: map[string]engine.CheckProgress{}, last: map[string]engine.CheckProgress{}}
	for _, p := range []engine.CheckProgress{{Mirror: "east", Done: 50, Total: 100}, {Mirror: "west", Total: 90}, {Mirror: "east", Done: 60, Total: 110}, {Mirror: "west", Done: 5, Total: 90}} {
		v.note(p)
	}
	if got, want := v.figures(), (figures{size: 200, done: 65, moved: 15}); got != want {
		t.Errorf("%+v instead of %+v", got, want)
	}
}
