package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// locked tells whether somebody holds an exclusive flock on a file.
func locked(t testing.TB, path string) bool {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		return false
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	inode := fmt.Sprintf(":%d ", fi.Sys().(*syscall.Stat_t).Ino)
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
		if strings.Contains(line, "FLOCK") && strings.Contains(line, "WRITE") && strings.Contains(line, inode) {
			return true
		}
	}
	return false
}
