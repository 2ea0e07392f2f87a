package bench

import (
	"os"
	"path/filepath"

	"github.com/blkmirror/blkmirror/wire/identity"
)

// Introduce is `keys show` and `keys trust` on two nodes, by their state directories: one is the primary of the volume,
// or the source, the other its mirror, or the target. The keys are made where there are none.
func Introduce(primary, mirror, volume string) error {
	var nodes [2]*identity.Node
	for i, state := range []string{primary, mirror} {
		if err := os.MkdirAll(state, 0o700); err != nil {
			return err
		}
		var err error
		if nodes[i], err = identity.Open(identity.Options{Dir: filepath.Join(state, "keys")}); err != nil {
			return err
		}
	}
	if err := nodes[0].Trust("mirror", nodes[1].ID().String(), []identity.Grant{{Volume: volume, As: identity.AsMirror}}); err != nil {
		return err
	}
	return nodes[1].Trust("primary", nodes[0].ID().String(), []identity.Grant{{Volume: volume, As: identity.AsPrimary}})
}
