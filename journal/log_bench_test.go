package journal_test

import (
	"testing"

	"github.com/blkmirror/blkmirror/journal"
)

func benchLog(b *testing.B) *journal.Log {
	l, err := journal.Open(osIn(b.TempDir()), testDir, journal.Options{Kind: journal.KindVolume}, nil)
	must(b, err)
	b.Cleanup(func() { l.Close() })
	return l
}

func BenchmarkLogAppend(b *testing.B) {
	l := benchLog(b)
	body := make([]byte, 64)
	b.SetBytes(96)
	for b.Loop() {
		_, err := l.Append(1, body)
		must(b, err)
	}
}

func BenchmarkLogAppendSync(b *testing.B) {
	l := benchLog(b)
	for b.Loop() {
		_, err := l.AppendSync(1, make([]byte, 64))
		must(b, err)
	}
}

// 64 writers per processor share what one fdatasync costs.
func BenchmarkLogGroupCommit(b *testing.B) {
	l := benchLog(b)
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		body := make([]byte, 64)
		for pb.Next() {
			if _, err := l.AppendSync(1, body); err != nil {
				b.Error(err)
			}
		}
	})
}
