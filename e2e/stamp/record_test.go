package stamp

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func loaded(t *testing.T, text string) (*History, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "history")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return LoadHistory(path)
}

func TestRecordIsReadAgain(t *testing.T) {
	const text = "blkmirror-history 1 pages 4 run 9\nissue 1 data 0+2\nissue 2 zero 3+1\nack 1\nflush 3\nlost 2 3\n" +
		"issue 3 data 1+1\nfound 3\nissue 4 data 2+1\nack 4\nrewind 3\nissue 5 da"
	h, err := loaded(t, text)
	if err != nil {
		t.Fatal(err)
	}
	if h.Pages() != 4 || h.Writes() != 4 || h.Now() != 8 || h.Flushed() != 3 || len(h.open()) != 0 {
		t.Errorf("%d pages, %d writes, now %d, flushed %d, open %v", h.Pages(), h.Writes(), h.Now(), h.Flushed(), h.open())
	}
	for words, want := range map[string]bool{"1 3 - -": true, "1 1 - -": true, "1 3 4 -": false, "- 3 - -": false} {
		if _, err := h.Check(image(words)); (err == nil) != want {
			t.Errorf("%s: %v", words, err)
		}
	}
}

func TestBadRecords(t *testing.T) {
	const head = "blkmirror-history 1 pages 4 run 9\n"
	for _, text := range []string{
		"", "garbage\n", "blkmirror-history 1 pages 0 run 9\n", "blkmirror-history 1 pages 99999999999999 run 9\n",
		head + "\n", head + "ack 1\n", head + "ack\n", head + "ack -1\n", head + "dance 1\n", head + "issue 2 data 0+1\n",
		head + "issue 1 data 4+1\n", head + "issue 1 data 0+5\n", head + "issue 1 data -1+1\n", head + "issue 1 data 0+0\n",
		head + "issue 1 data 1+9223372036854775807\n", head + "issue 1 blue 0+1\n", head + "issue 1\n",
		head + "issue 1 data 0+1\nlost 1 3\n", head + "issue 1 data 0+1\nlost 1 x\n", head + "issue 1 data 0+1\nlost 1 0 0\n",
		head + "rewind 1\n", head + "found 0\n",
	} {
		if _, err := loaded(t, text); err == nil {
			t.Errorf("taken: %q", text)
		}
	}
}

// A writer that was killed left a request without a reply, and half a line. The next one finds out and goes on.
func TestContinue(t *testing.T) {
	d := newDisk(16)
	path := filepath.Join(t.TempDir(), "history")
	text := "blkmirror-history 1 pages 16 run 9\nissue 1 data 0+2\nack 1\nissue 2 data 1+3\nissue 3 da"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	put(d.content, 9, 0, 1, 0)
	put(d.content[PageSize:], 9, 1, 1, 0)
	h, f, err := Continue(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := NewWriter(h, Load{Network: "unix", Address: d.listen(t), Longest: 2})
	w.Start()
	soon(t, "writes", func() bool { return h.Writes() > 50 || w.Err() != nil })
	if err := w.Stop(); err != nil {
		t.Fatal(err)
	}
	again, err := LoadHistory(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := checkBytes(t, again, d.copy()); err != nil || again.Now() != h.Now() {
		t.Errorf("at %d, not %d: %v", again.Now(), h.Now(), err)
	}
}

type fullDisk struct{ room int }

func (d *fullDisk) Write(b []byte) (int, error) {
	if d.room -= len(b); d.room < 0 {
		return 0, errors.New("full")
	}
	return len(b), nil
}

func TestRecordThatFails(t *testing.T) {
	h := NewHistory(4, 1)
	if err := h.LogTo(&fullDisk{60}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		h.ack(h.issue(0, 1, nil))
	}
	if h.LogErr() == nil {
		t.Error("no error")
	}
}

func TestJudge(t *testing.T) {
	cases := []struct {
		name, history, image string
		counts               [3]int // there, missing, torn
		why                  string // "": a cut
	}{
		{"a cut", "+0 !1 +1 !2 +2 !3", "1 2 -", [3]int{2, 1, 0}, ""},
		{"a lost write", "+0 !1 +1 !2 +2 !3", "1 - 3", [3]int{2, 1, 0}, "page 2 has write 3, which was issued at instant 5; page 1 lacks write 2, which was answered before, at instant 4"},
		{"torn request", "+0-2 !1", "1 - 1", [3]int{0, 0, 1}, "in part"},
		{"torn page", "+0 !1", "x - -", [3]int{0, 0, 1}, "page 0 holds what was never written there, whole: torn"},
		{"trim in part, under way", "+0-2 !1 t0-2", "- - 1", [3]int{1, 1, 0}, ""},
		{"unknown", "+0 !1", "7 - -", [3]int{0, 1, 0}, "write 7, and there were 1"},
		{"mixture", "+0 !1 +1 !2 +0 !3 +2 !4", "1 2 4", [3]int{3, 1, 0}, "page 2 has write 4, which was issued at instant 7; page 0 lacks write 3"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			v := script(t, 3, c.history).Judge(image(c.image))
			t.Log(v.Why)
			if (v.Wrong == nil) != (c.why == "") || !strings.Contains(v.Why, c.why) {
				t.Errorf("wrong: %v, why: %q", v.Wrong, v.Why)
			}
			if v.Counts != c.counts {
				t.Errorf("there, missing, torn: %v, want %v", v.Counts, c.counts)
			}
			if v.Fit+v.Older+v.Newer+v.Bad != v.Pages || v.Wrong == nil && v.Fit != v.Pages {
				t.Errorf("%+v", v)
			}
		})
	}
}

func TestRewind(t *testing.T) {
	h := script(t, 3, "+0 !1 +1 !2")
	h.Rewind(1)
	v := h.Judge(image("1 2 -"))
	if v.Wrong == nil || !strings.Contains(v.Why, "void") {
		t.Errorf("%v, %q", v.Wrong, v.Why)
	}
	h.ack(h.issue(2, 1, make([]byte, PageSize)))
	if v := h.Judge(image("1 - 3")); v.Wrong != nil || v.Counts != [3]int{2, 0, 0} {
		t.Errorf("%+v", v)
	}
}
