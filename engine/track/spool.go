package track

import (
	"fmt"
	"io"
	"sync"

	"github.com/blkmirror/blkmirror/journal"
)

// spool is the file of a Capture. It is made when it is first written to, and has no name from then on:
// whatever ends the process gives its space back. Nothing in it is ever synced, for nothing in it outlives
// the process.
type spool struct {
	fs   journal.FS
	path string

	mu   sync.Mutex // one writer at a time, as journal.File asks
	file journal.File
	size int64 // how far it was written
}

// unlink removes what has the spool's name. That there is nothing is no error, and any other error shows
// again where the file is created.
func (s *spool) unlink() { _ = s.fs.Remove(s.path) }

func (s *spool) write(p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		s.unlink()
		f, err := s.fs.Create(s.path)
		if err != nil {
			return fmt.Errorf("create spool file %s: %w", s.path, err)
		}
		s.unlink()
		s.file = f
	}
	// Also a write that fails may have taken space.
	s.size = max(s.size, off+int64(len(p)))
	n, err := s.file.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("write spool file %s at %d+%d: %w", s.path, off, len(p), err)
	}
	return nil
}

func (s *spool) read(p []byte, off int64) error {
	s.mu.Lock()
	f := s.file
	s.mu.Unlock()
	if n, err := f.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("read spool file %s at %d+%d: %w", s.path, off, len(p), err)
	}
	return nil
}

// shrink empties the file if nothing in it is in use. Who reserves room after idle was asked writes after
// the file was emptied, because writing needs mu. A truncation that fails is tried again the next time.
func (s *spool) shrink(idle func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.size > 0 && idle() && s.file.Truncate(0) == nil {
		s.size = 0
	}
}

func (s *spool) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file, s.size = nil, 0
	return err
}
