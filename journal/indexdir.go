package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

const removedSuffix = ".removed"

// RemoveIndex removes an index that nobody has open, durably and as a whole: a crash in between leaves
// all of it or nothing, never an older state. That there is none is no error.
func RemoveIndex(dir string) error {
	if err := finishRemoval(dir); err != nil {
		return fmt.Errorf("remove index %s: %w", dir, err)
	}
	err := os.Rename(dir, dir+removedSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(filepath.Dir(dir))
	}
	if err == nil {
		err = finishRemoval(dir)
	}
	if err != nil {
		return fmt.Errorf("remove index %s: %w", dir, err)
	}
	return nil
}

// finishRemoval clears away what an interrupted RemoveIndex has left.
func finishRemoval(dir string) error { return os.RemoveAll(dir + removedSuffix) }

// dropUnborn removes memory tables that a killed process had created and given no size yet. badger's own
// goroutines make them ahead of time, nothing was ever in them, and badger does not open a store that has one.
func dropUnborn(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".mem" {
			continue
		}
		st, err := f.Info()
		if err == nil && st.Size() == 0 {
			err = os.Remove(filepath.Join(dir, f.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// indexLogger keeps the last error that badger reports from its own goroutines; the rest is noise.
type indexLogger struct {
	mu   sync.Mutex
	text string
}

func (l *indexLogger) Errorf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = string(bytes.TrimSpace(fmt.Appendf(nil, format, args...)))
}
func (l *indexLogger) Warningf(string, ...any) {}
func (l *indexLogger) Infof(string, ...any)    {}
func (l *indexLogger) Debugf(string, ...any)   {}

func (l *indexLogger) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}
