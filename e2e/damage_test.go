package e2e

import (
	"bytes"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// A bit that flips on the way is noticed, told, and never written. Payloads are tried packed and raw.
func TestFlippedBitIsShippedAgain(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"raw", "packed"} {
		t.Run(content, func(t *testing.T) {
			dir := folder(t)
			src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
			randomImage(t, src, 8*mib)
			if content == "packed" {
				put(t, src, 3*mib, bytes.Repeat([]byte("a line that packs well\n"), 40000))
			}
			s := serve(t, filepath.Join(dir, "state"), "v="+dst)
			p := newProxy(t, s.addr)
			var flips atomic.Int64
			p.edit = func(f *frame) bool {
				if f.kind() == typeData && f.offset() == 3*mib && flips.CompareAndSwap(0, 1) {
					f.payload[len(f.payload)/2] ^= 0x10
				}
				return true
			}
			rep := syncJSON(t, "--insecure", src, p.url("v"))
			equal(t, src, dst)
			if flips.Load() != 1 || rep.Retried < 1 || p.naks.Load() != 1 {
				t.Fatalf("%d flips, %d Naks, retried_blocks %d", flips.Load(), p.naks.Load(), rep.Retried)
			}
			t.Logf("1 flip: %d Nak, retried_blocks %d, exit 0, equal", p.naks.Load(), rep.Retried)
		})
	}
}

// A block that is damaged every time ends the sync with exit code 5, and what the target held there stays.
func TestBlockThatIsAlwaysDamaged(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	randomImage(t, src, 8*mib)
	const at = 5*mib + block
	old := bytes.Repeat([]byte("old content "), 8*mib/12+1)[:8*mib]
	write(t, dst, old)
	s := serve(t, filepath.Join(dir, "state"), "v="+dst)
	p := newProxy(t, s.addr)
	var flips atomic.Int64
	p.edit = func(f *frame) bool {
		if f.kind() == typeData && f.offset() == at {
			f.payload[7] ^= 1
			flips.Add(1)
		}
		return true
	}
	blkmirror(t, "sync", "--insecure", src, p.url("v")).fails(t, 5)
	if got := get(t, dst, at, block); !bytes.Equal(got, old[at:at+block]) {
		t.Errorf("the damaged block was written")
	}
	if flips.Load() != 4 {
		t.Errorf("shipped %d times, want once and three times more", flips.Load())
	}
	mustRun(t, "sync", "--insecure", src, s.url("v"))
	equal(t, src, dst)
}

// Damage to a frame's own fields is no Nak: nothing in it can be believed. A new connection clears it.
func TestDamagedHeader(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	randomImage(t, src, 8*mib)
	s := serve(t, filepath.Join(dir, "state"), "v="+dst)
	p := newProxy(t, s.addr)
	var flips atomic.Int64
	p.edit = func(f *frame) bool {
		if f.kind() == typeData && f.offset() == 4*mib && flips.CompareAndSwap(0, 1) {
			f.meta[16] ^= 1 // the offset
		}
		return true
	}
	r := mustRun(t, "sync", "--insecure", "--json", src, p.url("v"))
	if flips.Load() != 1 || !strings.Contains(r.stdout, `"reconnects":1,`) {
		t.Errorf("%d frames damaged, and not one connection more: %s", flips.Load(), r.stdout)
	}
	equal(t, src, dst)
}
