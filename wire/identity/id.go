package identity

import (
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// ID is a node's public key. The zero ID is nobody's.
//
// Its text is the 256 bits in base32, 52 characters, in four parts of 13 with a check character behind each,
// shown in eight groups of seven:
//
//	AAAAAAA-AAAAAAC-BBBBBBB-BBBBBBC-CCCCCCC-CCCCCCC-DDDDDDD-DDDDDDC
//	|---- part 1 -----|  two groups each; its last character checks the 13 before it
type ID [32]byte

const (
	idParts   = 4
	partChars = 14 // 13 and the check
	idChars   = idParts * partChars
	idGroups  = 8
	groupSize = idChars / idGroups
)

// TypoError tells in which groups (1 to 8) of an ID something is wrong.
type TypoError struct{ Groups []int }

func (e *TypoError) Error() string {
	return fmt.Sprintf("there is a typo in the ID, in %s of its eight groups", enumerate(e.Groups))
}

func enumerate(groups []int) string {
	words := make([]string, len(groups))
	for i, g := range groups {
		words[i] = fmt.Sprint(g)
	}
	if len(words) == 1 {
		return "number " + words[0]
	}
	return "numbers " + strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

func (id ID) String() string {
	chars := id.chars()
	var b strings.Builder
	for at := 0; at < idChars; at += groupSize {
		if at > 0 {
			b.WriteByte('-')
		}
		b.WriteString(chars[at : at+groupSize])
	}
	return b.String()
}

// chars is the text without hyphens.
func (id ID) chars() string {
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(id[:])
	var b strings.Builder
	for part := range slices.Chunk([]byte(text), partChars-1) {
		b.Write(part)
		values := make([]int, len(part))
		for i, c := range part {
			values[i] = symbol(rune(c))
		}
		b.WriteByte(alphabet[weigh(values)])
	}
	return b.String()
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

// symbol is the value of a character, -1 of one that no ID has. 0, 1 and 8 are not in base32: they are what
// they look like.
func symbol(r rune) int {
	switch r {
	case '0':
		r = 'O'
	case '1':
		r = 'I'
	case '8':
		r = 'B'
	}
	if r > unicode.MaxASCII {
		return -1
	}
	return strings.IndexRune(alphabet, unicode.ToUpper(r))
}

// weigh is the sum in GF(32) of the values, the i-th multiplied by g to the power of i+1. All the powers
// differ, and none is that of the check itself (1): neither one wrong value nor two that changed places leave
// the sum as it was.
func weigh(values []int) int {
	sum := 0
	for _, v := range slices.Backward(values) {
		sum = (sum ^ v) << 1
		if sum&32 != 0 {
			sum ^= 0b100101 // x^5 + x^2 + 1, of which x, the generator, is a root
		}
	}
	return sum
}

// checks tells whether a part has the right check character.
func checks(part []int) bool {
	return !slices.Contains(part, -1) && weigh(part[:partChars-1]) == part[partChars-1]
}

// ParseID reads the text form, in upper or lower case, with or without its hyphens. The error is a *TypoError
// where the text is an ID but for a few characters.
func ParseID(text string) (ID, error) {
	fields := strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.Is(unicode.Pd, r) })
	var values []int
	for _, f := range fields {
		for _, r := range f {
			values = append(values, symbol(r))
		}
	}
	if len(values) < idChars/2 || len(values) > 2*idChars {
		return ID{}, fmt.Errorf("this is no ID: it has %d characters, an ID has %d", len(values), idChars)
	}
	if len(values) != idChars {
		return ID{}, &TypoError{wrongLength(fields, values)}
	}
	if groups := wrongGroups(values); len(groups) > 0 {
		return ID{}, &TypoError{groups}
	}
	var b strings.Builder
	for i, v := range values {
		if i%partChars < partChars-1 {
			b.WriteByte(alphabet[v])
		}
	}
	var id ID
	if _, err := base32.StdEncoding.WithPadding(base32.NoPadding).Decode(id[:], []byte(b.String())); err != nil {
		return ID{}, fmt.Errorf("this is no ID: %w", err)
	}
	if id == (ID{}) {
		return ID{}, errors.New("this is no ID: it is all zeroes")
	}
	if values[idChars-2]&15 != 0 { // bits behind the 256th
		return ID{}, &TypoError{[]int{idGroups - 1, idGroups}}
	}
	return id, nil
}

// wrongGroups are those with a character that no ID has, and both of a part whose check is wrong.
func wrongGroups(values []int) (groups []int) {
	for part := range idParts {
		at := part * partChars
		before := len(groups)
		for g := 2 * part; g < 2*part+2; g++ {
			if slices.Contains(values[g*groupSize:(g+1)*groupSize], -1) {
				groups = append(groups, g+1)
			}
		}
		if len(groups) == before && !checks(values[at:at+partChars]) {
			groups = append(groups, 2*part+1, 2*part+2)
		}
	}
	return groups
}

// wrongLength finds where characters are missing or too many: in a group that is not of the right length,
// or, without groups, between the parts that are right from the front and those that are from the back.
func wrongLength(fields []string, values []int) (groups []int) {
	if len(fields) == idGroups {
		for i, f := range fields {
			if len([]rune(f)) != groupSize {
				groups = append(groups, i+1)
			}
		}
		return groups
	}
	front, back := 0, 0 // how many parts are right from there
	for front < idParts-1 && len(values) >= (front+1)*partChars && checks(values[front*partChars:][:partChars]) {
		front++
	}
	for back < idParts-1 && len(values) >= (back+1)*partChars && checks(values[len(values)-(back+1)*partChars:][:partChars]) {
		back++
	}
	// The wrong part is the one behind those of the front, and before those of the back; where one is right by
	// chance, any between.
	one, other := front, idParts-1-back
	for g := 2*min(one, other) + 1; g <= 2*max(one, other)+2; g++ {
		groups = append(groups, g)
	}
	return groups
}

// MarshalText and UnmarshalText make it the text form in JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseID(string(text))
	return err
}
