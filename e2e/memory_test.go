package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

const memoryLimit = 256 * mib

func underLimit(t *testing.T, who string, bytes int64) {
	t.Helper()
	t.Logf("%s: peak memory %d MiB", who, bytes/mib)
	if bytes >= memoryLimit {
		t.Errorf("%s: peak memory of %d bytes, limit %d", who, bytes, memoryLimit)
	}
}

// Peak memory does not grow with the image.
func TestMemoryOfLargeImage(t *testing.T) {
	size := int64(1 << 30)
	if *long {
		size = 8 << 30
	}
	dir := folder(t)
	src, dst := randomImage(t, filepath.Join(dir, "src"), size), filepath.Join(dir, "dst")
	s := serveWith(t, plain, filepath.Join(dir, "state"), "v="+dst)
	for _, what := range []string{"first", "again"} {
		r := launch(t, nil, plain, "sync", "--json", "--insecure", src, s.url("v")).wait().ok(t)
		underLimit(t, what+", sync", r.maxRSS)
	}
	equal(t, src, dst)
	underLimit(t, "serve, both", s.highWater())
	s.kill()
	r := launch(t, nil, plain, "sync", "--json", "--state", filepath.Join(dir, "state"), src, dst).wait().ok(t)
	underLimit(t, "again on one machine, both halves in one process", r.maxRSS)
}

// A TiB of holes costs neither memory nor time.
func TestSparseTiB(t *testing.T) {
	const size, pieces = 1 << 40, 64
	dir := folder(t)
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	write(t, src, nil)
	if err := os.Truncate(src, size); err != nil {
		t.Skipf("no file of a TiB here: %v", err)
	}
	rng, b := random(t), make([]byte, mib)
	for i := range int64(pieces) {
		rng.Read(b)
		put(t, src, i*(size/pieces)+i*block, b)
	}
	state := filepath.Join(dir, "state")
	sync := func(what string, shipped int64, flags ...string) {
		t.Helper()
		r := launch(t, nil, append([]string{plain, "sync", "--json", "--state", state, src, dst}, flags...)...).wait().ok(t)
		rep := r.report(t)
		t.Logf("%s: shipped %d, skipped %d, zero %d bytes, %.2f s", what, rep.Shipped, rep.Skipped, rep.Zero, rep.Seconds)
		underLimit(t, what, r.maxRSS)
		sparseEqual(t, src, dst)
		if rep.Shipped != shipped {
			t.Errorf("%s: shipped %d bytes, want %d", what, rep.Shipped, shipped)
		}
	}
	sync("first", pieces*mib)
	sync("again", 0)
	put(t, src, size/2+100, []byte("changed"))
	sync("one block changed", block)
	put(t, src, size/4+100, []byte("changed"))
	sync("one block changed, by the index", block, "--trust-index")

	s := serveWith(t, plain, state+"2", "v="+dst+"2")
	r := launch(t, nil, plain, "sync", "--json", "--insecure", src, s.url("v")).wait().ok(t)
	sparseEqual(t, src, dst+"2")
	underLimit(t, "TCP, sync", r.maxRSS)
	underLimit(t, "TCP, serve", s.highWater())
}
