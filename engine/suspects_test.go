package engine

import (
	"slices"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// However many blocks differ, what a mirror is told covers them all, in not too many entries that are disjoint.
func TestSuspectsCoverEverything(t *testing.T) {
	const blocks = 200_000
	v := &verification{g: geometry{size: blocks*4096 - 100, blockSize: 4096}, wrong: blockdev.NewPageSet(blocks), found: map[uint64]wire.Hash{}}
	for _, b := range []uint64{0, 1, 2, 7, 8, 4096, blocks - 1} {
		v.wrong.Add(b, 1)
		v.found[b] = wire.Hash{byte(b), 1}
	}
	for unit, want := range map[uint64][]int64{1: {0, 1, 2, 7, 8, 4096, blocks - 1}, 2: {0, 2, 7, 8, 4096, blocks - 1}, 8: {0, 8, 4096, blocks - 1}, 1 << 17: {0, blocks - 1}} {
		var got []int64
		end := int64(0)
		covered := blockdev.NewPageSet(blocks)
		for _, e := range v.suspects(unit) {
			got = append(got, e.Offset/4096)
			if e.Offset < end || e.Want != v.found[uint64(e.Offset/4096)] || e.Offset+int64(e.Length) > v.g.size {
				t.Errorf("unit %d: %+v", unit, e)
			}
			end = e.Offset + int64(e.Length)
			covered.Add(uint64(e.Offset/4096), (uint64(e.Length)+4095)/4096)
		}
		if !slices.Equal(got, want) {
			t.Errorf("unit %d: %v, want %v", unit, got, want)
		}
		missing := v.wrong.Clone()
		missing.Subtract(covered)
		if missing.Count() > 0 {
			t.Errorf("unit %d: %d are left out", unit, missing.Count())
		}
	}
	for b := uint64(1); b < blocks; b += 2 {
		v.wrong.Add(b, 1)
	}
	if n := len(v.suspects(8)); n != blocks/8 {
		t.Errorf("%d entries", n)
	}
}
