package e2e

import (
	"path/filepath"
	"testing"
)

// Behind a slow link with a buffer that takes everything, a one-shot sync leaves little in there, whichever side sends:
// what is urgent would wait for it. Without steering it would be the whole window.
func TestSyncSlowLink(t *testing.T) {
	const link, queue, allowed = 3e6, 64 * mib, 6 * mib
	for name, push := range map[string]bool{"push": true, "fetch": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := folder(t)
			local, remote := filepath.Join(dir, "local"), filepath.Join(dir, "remote")
			src, dst := remote, local
			if push {
				src, dst = local, remote
			}
			randomImage(t, src, 24*mib)
			s := serve(t, filepath.Join(dir, "n"), "v="+remote)
			slow := way{rate: link, queue: queue}
			line := newShaper(t, s.addr, slow, slow)
			src, dst = filepath.Join(dir, "local"), "blk://"+line.addr+"/v"
			if !push {
				src, dst = dst, src
			}
			r := syncJSON(t, "--insecure", "--no-compress", "--state", filepath.Join(dir, "s"), src, dst)
			equal(t, local, remote)
			t.Logf("%d bytes waited at most; %+v", line.deepest.Load(), r)
			if n := line.deepest.Load(); n > allowed {
				t.Errorf("%d bytes stood in the link's buffer", n)
			}
			if r.Reconnects != 0 {
				t.Errorf("%d reconnects", r.Reconnects)
			}
		})
	}
}
