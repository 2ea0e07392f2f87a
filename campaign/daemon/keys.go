package daemon

import (
	"context"
	"fmt"
	"strings"
)

// Pin has two nodes talk TLS and trust each other's key for a volume, by the commands that a person would give.
func Pin(ctx context.Context, volume string, primary, mirror *Node) error {
	for _, n := range []struct {
		here, peer *Node
		name, as   string
	}{{mirror, primary, "west", "primary"}, {primary, mirror, "east", "mirror"}} {
		a, err := n.peer.keys(ctx, "show")
		if err != nil {
			return err
		}
		id, _, _ := strings.Cut(a.Stdout, "\n")
		if _, err := n.here.keys(ctx, "trust", n.name, id, "--volume", volume, "--as", n.as); err != nil {
			return err
		}
		n.here.Secure = true
	}
	return nil
}

// keys runs a command about keys, which needs no daemon.
func (n *Node) keys(ctx context.Context, args ...string) (Answer, error) {
	a := n.client(ctx, append(append([]string{"keys"}, args...), "--state", n.State)...)
	if a.Code != 0 {
		return a, fmt.Errorf("keys %s: %s", args[0], a)
	}
	return a, nil
}
