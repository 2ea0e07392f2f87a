package stamp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// script builds a history from words: "+3" issues a write to page 3, "+3-5" one to the pages 3 to 5, "z3"
// writes zeroes, "t3" trims, "!1" acknowledges request 1.
func script(t *testing.T, pages int64, words string) *History {
	t.Helper()
	h := NewHistory(pages, 7)
	for word := range strings.FieldsSeq(words) {
		var from, to int64
		switch word[0] {
		case '!':
			var seq Seq
			fmt.Sscanf(word[1:], "%d", &seq)
			h.ack(seq)
		default:
			if n, _ := fmt.Sscanf(word[1:], "%d-%d", &from, &to); n == 1 {
				to = from
			}
			var b []byte
			if word[0] == '+' {
				b = make([]byte, (to-from+1)*PageSize)
			}
			if word[0] == 't' {
				h.trim(from, to-from+1)
			} else {
				h.issue(from, to-from+1, b)
			}
		}
	}
	return h
}

// image is what pages show: a sequence number, "-" for zeroes, "x" for garbage.
func image(words string) []Shown {
	var shown []Shown
	for word := range strings.FieldsSeq(words) {
		var s Shown
		switch word {
		case "-":
			s.Zero = true
		case "x":
			s.Bad = "torn"
		default:
			fmt.Sscanf(word, "%d", &s.Seq)
		}
		shown = append(shown, s)
	}
	return shown
}

func TestCheck(t *testing.T) {
	cases := []struct {
		name, history, image string
		first, last          Tick // -1: no cut
	}{
		{"nothing written", "", "- - -", 0, 0},
		{"nothing there yet", "+0 !1 +1 !2", "- - -", 0, 1},
		{"first is there", "+0 !1 +1 !2", "1 - -", 1, 3},
		{"all there", "+0 !1 +1 !2", "1 2 -", 3, 4},
		{"later without earlier", "+0 !1 +1 !2", "- 2 -", -1, -1},
		{"two under way, either order", "+0 +1 !1 !2", "- 2 -", 2, 2},
		{"two under way, other order", "+0 +1 !1 !2", "1 - -", 1, 3},
		{"old page beside a newer one", "+0 !1 +0 !2 +1 !3", "1 3 -", -1, -1},
		{"newest", "+0 !1 +0 !2 +1 !3", "2 3 -", 5, 6},
		{"torn page", "+0 !1", "x - -", -1, -1},
		{"unknown number", "+0 !1", "9 - -", -1, -1},
		{"number of another page", "+0 !1", "1 1 -", -1, -1},
		{"zeroes where nothing can be zero any more", "+0 !1 +1 !2", "- 2 -", -1, -1},
		{"zeroed again", "+0 !1 z0 !2 +1 !3", "- 3 -", 5, 6},
		{"zeroes of either time", "+0 !1 z0 !2", "- - -", 0, 4},
		{"never answered, there", "+0 +1 !2", "1 2 -", 2, 3},
		{"never answered, not there", "+0 +1 !2", "- 2 -", 2, 3},
		{"a request in part", "+0-2 !1", "1 - 1", -1, -1},
		{"a request in part, never answered", "+0-2", "1 - 1", -1, -1},
		{"a request in whole", "+0-2 !1", "1 1 1", 1, 2},
		{"a request in whole, written over", "+0-2 !1 +1 !2", "1 2 1", 3, 4},
		{"written over, what is below is missing", "+0-2 !1 +1 !2", "- 2 -", -1, -1},
		{"zeroes over zeroes in part cannot be told", "z0-1 !1", "- - -", 0, 2},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := script(t, 3, c.history)
			cut, err := h.Check(image(c.image))
			if c.first < 0 {
				if !errors.Is(err, ErrNoCut) {
					t.Fatalf("cut %+v, %v", cut, err)
				}
				t.Log(err)
				return
			}
			if err != nil || cut.First != c.first || cut.Last != c.last {
				t.Fatalf("cut %+v, %v, want %d to %d", cut, err, c.first, c.last)
			}
		})
	}
}

// An image that went back is a cut as well; that it is older shows by its instants, or where the two may lie
// at the same one by what was under way then.
func TestCutGoneBack(t *testing.T) {
	h := script(t, 3, "+0 !1 +1 !2 +0 !3 +2 !4")
	cut := func(words string) Cut {
		c, err := h.Check(image(words))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	order := []string{"- - -", "1 - -", "1 2 -", "3 2 -", "3 2 4"}
	for i, before := range order {
		for k, after := range order {
			if err := h.Forward(cut(before), cut(after)); (err == nil) != (k >= i) {
				t.Errorf("from %q to %q: %v", before, after, err)
			}
		}
	}
}

func TestBrought(t *testing.T) {
	h := script(t, 4, "+0 !1 +1-2 !2 +1 !3 z2 !4")
	for behind, want := range [][2]int64{{4, 2}, {3, 1}, {1, 1}, {0, 0}, {0, 0}} {
		every, left, until := h.Brought(behind)
		if every != want[0]*PageSize || left != want[1]*PageSize || until != 4 {
			t.Errorf("behind %d: %d, %d, %d", behind, every, left, until)
		}
	}
}

func TestDurable(t *testing.T) {
	h := script(t, 3, "+0 !1 +0 !2 +1 !3 +0 z2 !5")
	for words, want := range map[string]bool{
		"2 3 -": true, "4 3 -": true, "1 3 -": false, "2 - -": false, "- 3 -": false, "2 x -": false,
	} {
		if err := h.Durable(image(words), 6); (err == nil) != want {
			t.Errorf("%s: %v", words, err)
		}
	}
}

// slow decides a question by trying each instant with each outcome of what was under way.
func slow(h *History, shown []Shown) (fits []Tick) {
	for now := Tick(0); now <= h.clock; now++ {
		var open []Seq
		in := map[Seq]bool{0: true}
		for i, w := range h.writes {
			switch {
			case w.Acked <= now:
				in[Seq(i+1)] = true
			case w.Issued <= now:
				open = append(open, Seq(i+1))
			}
		}
		for set := range 1 << len(open) {
			for i, seq := range open {
				in[seq] = set>>i&1 == 1
			}
			if agrees(h, shown, in) {
				fits = append(fits, now)
				break
			}
		}
	}
	return fits
}

func agrees(h *History, shown []Shown, in map[Seq]bool) bool {
	for page, s := range shown {
		var last Seq
		for _, v := range h.versions[page] {
			if in[v] {
				last = v
			}
		}
		if !h.shows(s, last) {
			return false
		}
	}
	return true
}

// Small random histories and images, right and wrong, against the slow decision.
func TestCheckAgainstTryingAll(t *testing.T) {
	const pages = 4
	rng := rand.New(rand.NewPCG(1, 2))
	accepted, refused := 0, 0
	for range 20000 {
		h := NewHistory(pages, 7)
		var open []Seq
		for range rng.IntN(12) {
			page, n := rng.Int64N(pages), int64(1)
			if rng.IntN(3) == 0 {
				n += rng.Int64N(pages - page)
			}
			if len(open) < 4 && rng.IntN(2) == 0 && h.reserve(page, n) {
				var b []byte
				if rng.IntN(4) > 0 {
					b = make([]byte, n*PageSize)
				}
				open = append(open, h.issue(page, n, b))
			} else if len(open) > 0 {
				i := rng.IntN(len(open))
				w := h.writes[open[i]-1]
				h.ack(open[i])
				h.release(w.Page, w.Pages)
				open = append(open[:i], open[i+1:]...)
			}
		}
		shown := make([]Shown, pages)
		for page := range shown {
			v := append([]Seq{0}, h.versions[page]...)
			if at := v[max(0, len(v)-1-rng.IntN(3))]; at == 0 || h.writes[at-1].Zero {
				shown[page].Zero = true
			} else {
				shown[page].Seq = at
			}
		}
		want := slow(h, shown)
		cut, err := h.Check(shown)
		if (err == nil) != (len(want) > 0) || err == nil && (cut.First != want[0] || cut.Last != want[len(want)-1]) {
			t.Fatalf("%+v %v\nshown %v: cut %+v, %v, want %v", h.writes, h.versions, shown, cut, err, want)
		}
		if err == nil {
			accepted++
		} else {
			refused++
		}
	}
	if accepted < 1000 || refused < 1000 {
		t.Errorf("%d accepted, %d refused: too few of one kind", accepted, refused)
	}
}

func TestPage(t *testing.T) {
	b := make([]byte, PageSize)
	put(b, 7, 3, 11, 9)
	if s := parse(b, 7, 3); s != (Shown{Seq: 11}) {
		t.Errorf("%+v", s)
	}
	other := make([]byte, PageSize)
	put(other, 7, 3, 12, 11)
	for at := 512; at < PageSize; at += 512 {
		torn := append(append([]byte(nil), b[:at]...), other[at:]...)
		if s := parse(torn, 7, 3); !strings.Contains(s.Bad, "torn") {
			t.Errorf("torn at %d: %+v", at, s)
		}
	}
	for name, s := range map[string]Shown{"other run": parse(b, 8, 3), "other page": parse(b, 7, 4), "no stamp": parse(other[8:], 7, 3)} {
		if s.Bad == "" {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if s := parse(make([]byte, PageSize), 7, 3); !s.Zero || s.Bad != "" {
		t.Errorf("zeroes: %+v", s)
	}
}
