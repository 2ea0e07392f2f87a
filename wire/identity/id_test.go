package identity

import (
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
)

func randomID() (id ID) {
	rand.Read(id[:])
	return id
}

// TestIDText holds the text form to what it was: people have it on paper.
func TestIDText(t *testing.T) {
	var id ID
	for i := range id {
		id[i] = byte(i)
	}
	const want = "AAAQEAY-EAUDAO5-CAJBIFQ-YDIOB4T-IBCEQTC-QKRMFYR-YDENBWH-A5DYPQE"
	if got := id.String(); got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	for _, text := range []string{
		id.String(), strings.ToLower(id.String()), id.chars(), " " + strings.ReplaceAll(id.String(), "-", " ") + "\n",
		strings.ReplaceAll(id.String(), "-", "–"), strings.ReplaceAll(id.String(), "-", ""),
		strings.NewReplacer("O", "0", "I", "1", "B", "8").Replace(id.String()),
	} {
		if got, err := ParseID(text); err != nil || got != id {
			t.Errorf("ParseID(%q) = %v, %v", text, got, err)
		}
	}
	for range 1000 {
		id := randomID()
		if got, err := ParseID(id.String()); err != nil || got != id {
			t.Fatalf("%v comes back as %v, %v", id, got, err)
		}
	}
}

// TestIDTypos: every wrong character and every two that changed places within a part are told, with groups
// among which the wrong ones are.
func TestIDTypos(t *testing.T) {
	for range 3 {
		id := randomID()
		right := []byte(id.chars())
		for at := range right {
			for _, c := range []byte(alphabet + "9!") {
				if c == right[at] {
					continue
				}
				wrong := slices.Clone(right)
				wrong[at] = c
				want := partGroups(at)
				if symbol(rune(c)) < 0 {
					want = []int{at/groupSize + 1}
				}
				wantTypo(t, grouped(wrong), want)
			}
			for other := at + 1; other < (at/partChars+1)*partChars; other++ {
				wrong := slices.Clone(right)
				wrong[at], wrong[other] = wrong[other], wrong[at]
				if wrong[at] != wrong[other] {
					wantTypo(t, grouped(wrong), partGroups(at))
				}
			}
			wantTypo(t, ungroup(id, at, ""), []int{at/groupSize + 1})   // left out
			wantTypo(t, ungroup(id, at, "AB"), []int{at/groupSize + 1}) // one too many
		}
		// Neighbours over the border of two parts: one wrong character in each.
		for at := partChars - 1; at < idChars-1; at += partChars {
			wrong := slices.Clone(right)
			wrong[at], wrong[at+1] = wrong[at+1], wrong[at]
			if wrong[at] != wrong[at+1] {
				wantTypo(t, grouped(wrong), append(partGroups(at), partGroups(at+1)...))
			}
		}
	}
}

// partGroups are the two groups of the part in which the character stands.
func partGroups(at int) []int { p := at / partChars; return []int{2*p + 1, 2*p + 2} }

func grouped(chars []byte) string {
	var groups []string
	for g := range slices.Chunk(chars, groupSize) {
		groups = append(groups, string(g))
	}
	return strings.Join(groups, "-")
}

// ungroup puts other text in the place of one character, hyphens staying where they are.
func ungroup(id ID, at int, other string) string {
	text := id.String()
	at += at / groupSize
	return text[:at] + other + text[at+1:]
}

func wantTypo(t *testing.T, text string, groups []int) {
	t.Helper()
	_, err := ParseID(text)
	typo, ok := errors.AsType[*TypoError](err)
	if !ok || !slices.Equal(typo.Groups, groups) {
		t.Fatalf("ParseID(%q): %v, want a typo in %v", text, err, groups)
	}
}

func TestIDNone(t *testing.T) {
	for _, text := range []string{"", "b", "dns:b.example.org", strings.Repeat("A", idChars), strings.Repeat("A", 1000), "ä"} {
		if _, err := ParseID(text); err == nil {
			t.Errorf("ParseID(%q) takes it", text)
		} else if _, typo := errors.AsType[*TypoError](err); typo {
			t.Errorf("ParseID(%q): %v, but it is none", text, err)
		}
	}
	for range 100 { // without groups, what is missing lies between the parts that are right
		id := randomID()
		text := id.chars()
		_, err := ParseID(text[:20] + text[21:])
		if typo, ok := errors.AsType[*TypoError](err); !ok || !slices.Contains(typo.Groups, 3) {
			t.Errorf("%v, want a typo in group 3", err)
		}
	}
}

// FuzzParseID: what is taken is the text of the ID, but for its form.
func FuzzParseID(f *testing.F) {
	f.Add(randomID().String())
	f.Add(strings.ToLower(randomID().chars()))
	f.Add("AAAAAAA-AAAAAAA")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseID(text)
		if err != nil {
			if typo, ok := errors.AsType[*TypoError](err); ok && (len(typo.Groups) == 0 || !slices.IsSorted(typo.Groups) ||
				typo.Groups[0] < 1 || typo.Groups[len(typo.Groups)-1] > idGroups) {
				t.Errorf("a typo in groups %v", typo.Groups)
			}
			_ = err.Error()
			return
		}
		if again, err := ParseID(id.String()); err != nil || again != id {
			t.Errorf("%q is %v, which comes back as %v, %v", text, id, again, err)
		}
	})
}
