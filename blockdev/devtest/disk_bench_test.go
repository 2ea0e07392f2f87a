package devtest_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

func newPages(n int) (*devtest.Disk, []byte) {
	d := devtest.NewDisk(int64(n) * page)
	p := bytes.Repeat([]byte{1}, page)
	for i := range n {
		d.WriteAt(p, int64(i)*page)
	}
	d.Flush()
	return d, p
}

func BenchmarkDisk(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	b.Run("write page", func(b *testing.B) {
		d, p := newPages(128)
		d.Hook = func(devtest.Call) devtest.Effect { return devtest.Effect{} }
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if d.WriteAt(p, int64(i%128)*page); i%16 == 15 {
				d.Flush()
			}
		}
	})
	b.Run("write sector", func(b *testing.B) {
		d, p := newPages(128)
		for i := 0; b.Loop(); i++ {
			if d.WriteAt(p[:sector], int64(i%128)*page); i%16 == 15 {
				d.Flush()
			}
		}
	})
	b.Run("read page", func(b *testing.B) {
		d, p := newPages(128)
		for i := 0; b.Loop(); i++ {
			d.ReadAt(p, int64(i%128)*page)
		}
	})
	b.Run("id of a new page", func(b *testing.B) {
		d, p := newPages(128)
		for i := 0; b.Loop(); i++ {
			p[8] = byte(i)
			d.WriteAt(p, 0)
			d.Flush()
			d.PageID(0)
		}
	})
	d, p := newPages(128)
	for i := range 20 {
		d.WriteAt(p, int64(i)*page)
		d.WriteAt(p[:sector], int64(i)*page)
	}
	b.Run("power cut of 20 in 128 pages", func(b *testing.B) {
		for b.Loop() {
			d.PowerCut(rng)
		}
	})
	b.Run("killed with 20 in 128 pages", func(b *testing.B) {
		for b.Loop() {
			d.Killed()
		}
	})
	b.Run("clone of 128 pages", func(b *testing.B) {
		for b.Loop() {
			d.Clone()
		}
	})
}
