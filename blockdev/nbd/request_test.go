package nbd

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/google/go-cmp/cmp"
)

func TestErrorCodes(t *testing.T) {
	at := func(err error) error { return &blockdev.Error{Op: "write", Path: "x", Err: err} }
	for _, c := range []struct {
		err  error
		want Code
	}{
		{nil, 0},
		{errors.New("who knows"), 5},
		{at(syscall.EIO), 5},
		{blockdev.ErrShortIO, 5},
		{fmt.Errorf("not now: %w", ErrReadOnly), 1},
		{at(blockdev.ErrReadOnly), 1},
		{at(syscall.EPERM), 1},
		{at(syscall.EROFS), 1},
		{at(syscall.ENOSPC), 28},
		{at(syscall.EDQUOT), 28},
		{at(syscall.EFBIG), 28},
		{at(syscall.ENOMEM), 12},
		{at(syscall.EINVAL), 22},
		{at(syscall.EOPNOTSUPP), 95},
		{at(syscall.ESHUTDOWN), 108},
		{at(os.ErrClosed), 108},
		{at(syscall.EBADF), 5},
	} {
		if code := CodeOf(c.err); code != c.want {
			t.Errorf("%v: code %d, want %d", c.err, code, c.want)
		}
	}
}

// What is asked for in vain, with the code of its refusal; 0 is for what is allowed.
func TestRequestCheck(t *testing.T) {
	const size = 1 << 20
	all := terms{size: size, structured: true, allocation: true}
	for _, c := range []struct {
		name  string
		terms terms
		r     request
		want  Code
	}{
		{"read", all, request{command: cmdRead, length: size}, 0},
		{"read at the end", all, request{command: cmdRead, offset: size}, 0},
		{"read beyond the end", all, request{command: cmdRead, offset: size, length: 1}, 22},
		{"read over the end", all, request{command: cmdRead, offset: 1, length: size}, 22},
		{"read where the sum overflows", all, request{command: cmdRead, offset: 1<<64 - 1, length: 2}, 22},
		{"read from a negative offset", all, request{command: cmdRead, offset: 1 << 63}, 22},
		{"read too much", terms{size: 1 << 40}, request{command: cmdRead, length: maxPayload + 1}, 22},
		{"read as much as may be", terms{size: 1 << 40}, request{command: cmdRead, length: maxPayload}, 0},
		{"read, DF", all, request{command: cmdRead, flags: cmdFlagDF}, 0},
		{"read, DF, simple", terms{size: size}, request{command: cmdRead, flags: cmdFlagDF}, 22},
		{"read, FUA", all, request{command: cmdRead, flags: cmdFlagFUA}, 0},
		{"read, NO_HOLE", all, request{command: cmdRead, flags: cmdFlagNoHole}, 22},
		{"write", all, request{command: cmdWrite, flags: cmdFlagFUA, length: 5}, 0},
		{"write beyond the end", all, request{command: cmdWrite, offset: size - 1, length: 2}, 28},
		{"write too much", terms{size: 1 << 40}, request{command: cmdWrite, length: maxPayload + 1}, 22},
		{"write, REQ_ONE", all, request{command: cmdWrite, flags: cmdFlagReqOne, length: 5}, 22},
		{"trim", all, request{command: cmdTrim, flags: cmdFlagFUA, length: size}, 0},
		{"trim beyond the end", all, request{command: cmdTrim, length: size + 1}, 22},
		{"zeroes", terms{size: 1 << 33}, request{command: cmdWriteZeroes, length: 1<<32 - 1, flags: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero}, 0},
		{"zeroes beyond the end", all, request{command: cmdWriteZeroes, length: size + 1}, 28},
		{"zeroes, DF", all, request{command: cmdWriteZeroes, flags: cmdFlagDF, length: 1}, 22},
		{"flush", all, request{command: cmdFlush, flags: cmdFlagFUA}, 0},
		{"flush of a range", all, request{command: cmdFlush, length: 1}, 22},
		{"flush at an offset", all, request{command: cmdFlush, offset: 1}, 22},
		{"status", all, request{command: cmdBlockStatus, flags: cmdFlagReqOne, length: size}, 0},
		{"status of nothing", all, request{command: cmdBlockStatus}, 22},
		{"status beyond the end", all, request{command: cmdBlockStatus, offset: size, length: 1}, 22},
		{"status without a context", terms{size: size, structured: true}, request{command: cmdBlockStatus, length: 1}, 22},
		{"cache", all, request{command: 5, length: 1}, 22},
		{"resize", all, request{command: 8, length: 1}, 22},
		{"unknown", all, request{command: 65535}, 22},
		{"unknown flag", all, request{command: cmdRead, flags: 1 << 15}, 22},
	} {
		d := &disk{Device: devtest.NewMem(4096, 512, 1)}
		if f := c.terms.check(c.r, d); f.code != c.want || (f.text == "") != (c.want == 0) {
			t.Errorf("%s: %d %q, want %d", c.name, f.code, f.text, c.want)
		}
		d.readOnly.Store(true)
		want := c.want
		if want == 0 && c.r.changes() || want == 28 {
			want = codePerm
		}
		if f := c.terms.check(c.r, d); f.code != want && !(c.r.changes() && f.code == codePerm) {
			t.Errorf("%s, read-only: %d %q, want %d", c.name, f.code, f.text, want)
		}
	}
	dear := &disk{Device: devtest.NewMem(4096, 512, 1)}
	dear.dear.Store(true)
	if f := all.check(request{command: cmdWriteZeroes, flags: cmdFlagFastZero, length: 1}, dear); f.code != codeNotSup {
		t.Errorf("fast zero that is none: %d %q", f.code, f.text)
	}
	if f := all.check(request{command: cmdWriteZeroes, length: 1}, dear); f.code != codeOK {
		t.Errorf("zeroing that takes its time: %d %q", f.code, f.text)
	}
}

func TestDescribe(t *testing.T) {
	data := []blockdev.Extent{{Offset: 10, Length: 10}, {Offset: 20, Length: 5}, {Offset: 50, Length: 50}}
	broken := errors.New("broken")
	next := func(off int64) (blockdev.Extent, error) {
		if off >= 60 {
			return blockdev.Extent{}, broken
		}
		for _, x := range data {
			if x.End() > off {
				start := max(x.Offset, off)
				return blockdev.Extent{Offset: start, Length: x.End() - start}, nil
			}
		}
		return blockdev.Extent{Offset: 100}, nil
	}
	for _, c := range []struct {
		off, n int64
		limit  int
		want   []uint32 // length, state
	}{
		{0, 100, 9, []uint32{10, 3, 15, 0, 25, 3, 50, 0}},
		{0, 100, 1, []uint32{10, 3}},
		{0, 5, 9, []uint32{5, 3}},
		{12, 3, 9, []uint32{3, 0}},
		{12, 100, 1, []uint32{8, 0}},
		{12, 30, 2, []uint32{13, 0}}, // asked twice; what is next is left to the next request
		{55, 45, 9, []uint32{45, 0}},
	} {
		b, err := describe(nil, next, c.off, c.n, c.limit)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		var have []uint32
		for ; len(b) > 0; b = b[4:] {
			have = append(have, be.Uint32(b))
		}
		if d := cmp.Diff(c.want, have); d != "" {
			t.Errorf("%d+%d, at most %d: %s", c.off, c.n, c.limit, d)
		}
	}
	if _, err := describe(nil, next, 60, 10, 9); !errors.Is(err, broken) {
		t.Errorf("an error at the first descriptor: %v", err)
	}
	none := func(int64) (blockdev.Extent, error) { return blockdev.Extent{}, nil }
	if b, err := describe(nil, none, 5, 10, 9); err != nil || len(b) != 8 || be.Uint32(b) != 10 || be.Uint32(b[4:]) != 0 {
		t.Errorf("an extent that is none: %x, %v", b, err)
	}
}
