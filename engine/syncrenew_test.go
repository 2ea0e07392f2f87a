package engine

import (
	"path/filepath"
	"testing"

	"github.com/blkmirror/blkmirror/wire/identity"
)

// A one-shot sync of more than one connection's keys may carry goes over several: nothing is sent twice, and nobody calls
// that a disconnect, whichever side sends.
func TestSyncRenews(t *testing.T) {
	const size, most = 48 * mib, 6 * mib
	for name, push := range map[string]bool{"push": true, "fetch": false} {
		t.Run(name, func(t *testing.T) {
			local, remote := filepath.Join(t.TempDir(), "local"), denseImage(t, size, 41)
			if push {
				local, remote = remote, local
			}
			s := newSyncer(t)
			own := newIdentity(t, s.state)
			n := &liveNode{t: t, state: t.TempDir(), listen: "127.0.0.1:0", volume: VolumeConfig{Path: remote}, renew: most}
			n.id = newIdentity(t, n.state)
			trusts(t, n.id, "near", own, identity.Grant{Volume: "v", As: identity.AsPrimary | identity.AsMirror})
			trusts(t, own, "far", n.id)
			n.start()
			src, dst := "blk://"+n.listen+"/v", local
			if push {
				src, dst = dst, src
			}
			rep := s.run(src, dst, func(o *SyncOptions) {
				o.Insecure, o.Identity, o.renewAfter, o.Retry = false, own, most, 0
				o.Warn = func(text string) { t.Errorf("warning: %s", text) }
			})
			mustEqual(t, local, remote)
			if rep.ShippedBytes != size || rep.RetriedBlocks != 0 || rep.Reconnects != 0 || rep.ResumedBytes != 0 {
				t.Errorf("%+v", rep)
			}
			if got := n.logged("connection replaced"); got == 0 || int64(got) > size/most {
				t.Errorf("%d connections were replaced", got)
			}
			h, err := FetchHistory(t.Context(), n.control(), "")
			if err != nil || len(h.History) != 0 {
				t.Errorf("history %+v, %v", h, err)
			}
		})
	}
}
