package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sample is a log of 512-byte sectors.
func sample() []byte {
	le := binary.LittleEndian
	b := make([]byte, 512)
	le.PutUint64(b, logMagic)
	le.PutUint64(b[8:], logVersion)
	le.PutUint32(b[24:], 512)
	n := 0
	add := func(sector, sectors, flags uint64, mark string, data []byte) {
		head := make([]byte, 512)
		le.PutUint64(head, sector)
		le.PutUint64(head[8:], sectors)
		le.PutUint64(head[16:], flags)
		le.PutUint64(head[24:], uint64(len(mark)))
		copy(head[headSize:], mark)
		b = append(append(b, head...), data...)
		n++
		le.PutUint64(b[16:], uint64(n))
	}
	page := func(c string, n int) []byte { return []byte(strings.Repeat(c, 512*n)) }
	add(0, 2, 0, "", page("a", 2))
	add(0, 0, flagFlush, "", nil)
	add(0, 0, flagMark, "begin", nil)
	add(1, 1, flagFUA, "", page("b", 1))
	add(0, 0, flagMark, "t17", nil)
	add(0, 1, flagDiscard, "", nil)
	add(3, 1, 0, "", page("c", 1))
	return b
}

func TestApply(t *testing.T) {
	raw := sample()
	l, err := readLog(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if l.find("begin") != 2 || l.find("t17") != 4 || l.find("none") != -1 {
		t.Errorf("marks at %d, %d, %d", l.find("begin"), l.find("t17"), l.find("none"))
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 2048), 0o644); err != nil {
		t.Fatal(err)
	}
	last := 0
	for to, want := range []string{"....", "aa..", "aa..", "aa..", "ab..", "ab..", ".b..", ".b.c"} {
		if err := apply(l, bytes.NewReader(raw), last, to, disk); err != nil {
			t.Fatal(err)
		}
		last = to
		got, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		var short []byte
		for i := 0; i < len(got); i += 512 {
			short = append(short, got[i])
		}
		if s := strings.ReplaceAll(string(short), "\x00", "."); s != want {
			t.Errorf("after %d entries %q, want %q", to, s, want)
		}
	}
	if err := apply(l, bytes.NewReader(raw), 0, 8, disk); err == nil {
		t.Error("entries that are not there")
	}
}

func TestPoints(t *testing.T) {
	l, err := readLog(bytes.NewReader(sample()))
	if err != nil {
		t.Fatal(err)
	}
	p := l.points(3, 30, 1)
	if !slices.IsSorted(p) || p[0] < 3 || p[len(p)-1] != 7 || !slices.Contains(p, 4) {
		t.Errorf("points %v", p)
	}
	if p := l.points(7, 30, 1); len(p) != 0 {
		t.Errorf("points %v behind the end", p)
	}
}

func TestNoLog(t *testing.T) {
	raw := sample()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty": nil, "zeroes": make([]byte, 4096), "cut": raw[:len(raw)-512], "wrong entry": func() []byte {
			b := bytes.Clone(raw)
			b[512+7] = 0xff
			return b
		}(),
	} {
		l, err := readLog(bytes.NewReader(b))
		if err == nil {
			// A log that lost its end is noticed where its data is missing.
			err = apply(l, bytes.NewReader(b), 0, len(l.entries), disk)
		}
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
