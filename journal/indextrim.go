package journal

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Badger keeps its tables mapped into memory, and each page that it ever touched there counts as ours
// until the kernel runs short: half a gibibyte for a fully indexed volume of 1 TiB, and more during
// compaction. So an index looks now and then how much of this process is file pages, and gives those of
// its tables back where it is too much.
const (
	indexMappedMax = 24 << 20
	indexTrimEvery = 100 * time.Millisecond
)

// runTrim is the index's only goroutine of its own. It is started by OpenIndex, and ends when stop is
// closed; done is closed then.
func runTrim(dir string, stop <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	tick := time.NewTicker(indexTrimEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		trimIfLarge(dir)
	}
}

// trimIfLarge is also called by who writes, so that nobody writes faster than pages are given back. An old
// kernel that refuses only keeps the pages until it wants them.
func trimIfLarge(dir string) {
	if mappedBytes() > indexMappedMax {
		_ = trimTables(dir)
	}
}

// mappedBytes is how much of the resident set is pages of files.
func mappedBytes() int64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident, shared int64
	if _, err := fmt.Sscan(string(data), &size, &resident, &shared); err != nil {
		return 0
	}
	return shared * int64(os.Getpagesize())
}

// trimTables asks the kernel to take the pages of the tables in a folder out of this process.
//
// MADV_PAGEOUT changes no content, whatever lies there: badger may unmap a table between our reading of
// the list and the call, and the runtime may have its heap there by then. (MADV_DONTNEED would be cheaper
// and would wipe that heap.)
func trimTables(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		line := s.Text()
		at := strings.Index(line, "/")
		if at < 0 || !strings.HasSuffix(line, ".sst") || filepath.Dir(line[at:]) != abs {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			return err
		}
		// ENOMEM: unmapped meanwhile.
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_PAGEOUT)
		if errno != 0 && errno != unix.ENOMEM {
			return errno
		}
	}
	return s.Err()
}
