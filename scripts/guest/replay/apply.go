package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// apply writes entries to a disk. What was discarded reads as zeroes.
func apply(l *log, r io.ReaderAt, from, to int, disk string) error {
	if from < 0 || to > len(l.entries) || from > to {
		return fmt.Errorf("the log has %d entries: %d to %d are not there", len(l.entries), from, to)
	}
	d, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	for i, e := range l.entries[from:to] {
		var src io.Reader = io.NewSectionReader(r, e.data, e.length)
		if e.flags&flagDiscard != 0 {
			src = io.LimitReader(zeroes{}, e.length)
		}
		if e.length == 0 || e.flags&flagMark != 0 {
			continue
		}
		if _, err := io.CopyN(io.NewOffsetWriter(d, e.offset), src, e.length); err != nil {
			return fmt.Errorf("entry %d (%v): %w", from+i, e, err)
		}
	}
	return errors.Join(d.Sync(), dropCache(d))
}

// dropCache lets the next reader see the disk, whichever way it reads.
func dropCache(d *os.File) error {
	return unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED)
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
