package nbd

import (
	"bytes"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

// sparse tells holes apart, which Mem does not.
type sparse struct{ *disk }

func (s sparse) NextData(off int64) (blockdev.Extent, error) {
	const unit = 4096
	p := make([]byte, unit)
	for at := off / unit * unit; at < s.Size(); at += unit {
		if err := s.ReadAt(p, at); err != nil {
			return blockdev.Extent{}, err
		}
		if !blockdev.IsZero(p) {
			return blockdev.Extent{Offset: max(at, off), Length: at + unit - max(at, off)}, nil
		}
	}
	return blockdev.Extent{Offset: s.Size()}, nil
}

// Every conversation in testdata passes byte for byte.
func TestGoldenConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			d := sparse{&disk{Device: devtest.NewMem(64<<10, 512, 1)}}
			if err := d.WriteAt([]byte("data"), 4096); err != nil {
				t.Fatal(err)
			}
			s := serve(t, Options{}, Export{Name: "vol", Description: "a volume", Backend: d})
			converse(t, dial(t, s), file)
		})
	}
}

// converse plays a conversation. A line is C or S, and what the client or the server says: bytes in hex,
// "text", N*hex, ........ for a length and a text of that length, or EOF.
func converse(t *testing.T, c *client, file string) {
	script, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile(`^("([^"\\]|\\.)*"|#.*|\S+)\s*`)
	for i, line := range strings.Split(string(script), "\n") {
		if len(line) < 2 || line[0] == '#' {
			continue
		}
		who, rest := line[0], strings.TrimSpace(line[1:])
		for rest != "" {
			m := word.FindString(rest)
			rest = rest[len(m):]
			if m[0] == '#' {
				break
			}
			if !c.say(who, strings.TrimSpace(m)) {
				t.Fatalf("%s:%d: at %s", file, i+1, m)
			}
		}
	}
}

func (c *client) say(who byte, word string) bool {
	switch {
	case word == "EOF" && who == 'S':
		rest, err := io.ReadAll(c.nc)
		return len(rest) == 0 && err == nil
	case word == "EOF":
		return c.nc.(interface{ CloseWrite() error }).CloseWrite() == nil
	case word == "........":
		c.read(int(be.Uint32(c.read(4))))
		return true
	}
	b := decodeWord(c.t, word)
	if who == 'C' {
		c.write(string(b))
		return true
	}
	have := c.read(len(b))
	if !bytes.Equal(have, b) {
		c.t.Errorf("the server says %x %q", have, have)
		return false
	}
	return true
}

func decodeWord(t testing.TB, word string) []byte {
	if word[0] == '"' {
		s, err := strconv.Unquote(word)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(s)
	}
	times := 1
	if n, unit, ok := strings.Cut(word, "*"); ok {
		times, _ = strconv.Atoi(n)
		word = unit
	}
	b, err := hex.DecodeString(word)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Repeat(b, times)
}
