package journal_test

import (
	"fmt"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

// A write may end anywhere, also in the padding of the last record: the log is opened all the same.
func TestLogTornInItsPadding(t *testing.T) {
	for n := 1; n <= 8; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			fsys := journaltest.New()
			l, err := journal.Open(fsys, testDir, journal.Options{Kind: journal.KindVolume}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := l.Append(1, []byte{1}); err != nil { // 7 bytes of padding
					t.Fatal(err)
				}
			}
			l.Close()
			path := testDir + "/0000000001.seg"
			b := fsys.Read(path)
			fsys.Write(path, b[:len(b)-n])
			l, err = journal.Open(fsys, testDir, journal.Options{Kind: journal.KindVolume}, nil)
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		})
	}
}
