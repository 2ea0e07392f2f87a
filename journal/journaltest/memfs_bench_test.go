package journaltest_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

func tenFiles(b *testing.B, m *journaltest.MemFS, sync bool) (files []journal.File) {
	for i := range 10 {
		h, err := m.Create(fmt.Sprint("folder-", i))
		if err != nil {
			b.Fatal(err)
		}
		h.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 0)
		if sync {
			h.Sync()
		}
		files = append(files, h)
	}
	if sync {
		m.SyncDir(".")
	}
	return files
}

func BenchmarkMemFS(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	synced, dirty := journaltest.New(), journaltest.New()
	files := tenFiles(b, synced, true)
	tenFiles(b, dirty, false)
	b.Run("append 200 and sync", func(b *testing.B) {
		p := make([]byte, 200)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			files[0].WriteAt(p, int64(i%320)*200)
			files[0].Sync()
		}
	})
	b.Run("write 4096 and sync", func(b *testing.B) {
		p := make([]byte, 4096)
		for i := 0; b.Loop(); i++ {
			files[0].WriteAt(p, int64(i%16)*4096)
			files[0].Sync()
		}
	})
	b.Run("create, allocate 64K, remove", func(b *testing.B) {
		for b.Loop() {
			h, _ := synced.Create("new")
			h.(journal.Allocator).Allocate(64 << 10)
			h.Sync()
			synced.Remove("new")
			synced.SyncDir(".")
		}
	})
	for name, do := range map[string]func(*journaltest.MemFS){
		"crash": func(m *journaltest.MemFS) { m.Crash(2) }, "power cut": func(m *journaltest.MemFS) { m.PowerCut(rng) },
		"killed": func(m *journaltest.MemFS) { m.Killed() }, "clone": func(m *journaltest.MemFS) { m.Clone() },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				do(synced)
			}
		})
		b.Run(name+", 640K unsynced", func(b *testing.B) {
			for b.Loop() {
				do(dirty)
			}
		})
	}
}
