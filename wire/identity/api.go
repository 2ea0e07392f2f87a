package identity

// This is the API that the rest is written against (docs/KEYS.md).

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// ID is a node's public key.
type ID [32]byte

func (ID) String() string { return "" }

// ParseID reads the text form. A *TypoError where it is one.
func ParseID(text string) (ID, error) { return ID{}, errors.New("stub") }

// TypoError tells in which groups (1 to 8) of an ID something is wrong.
type TypoError struct{ Groups []int }

func (*TypoError) Error() string { return "" }

// As is what a peer may be to a volume.
type As uint8

const (
	AsPrimary As = 1 << 0
	AsMirror  As = 1 << 1
)

// Options of a Node.
type Options struct {
	Dir           string            // keys, below the state directory; made where it is missing
	Lifetime      time.Duration     // 0: keys do not roll over by themselves
	Grace         time.Duration     // 0: 30 days
	Cert, Key, CA string            // PEM files; "": pinned keys only
	Now           func() time.Time  // nil: time.Now
	Log           func(text string) // may be nil
}

// Node is who we are and whom we trust, backed by its folder. Safe for concurrent use, and beside other
// processes that use the same folder.
type Node struct{}

// Open makes the node's first key where there is none.
func Open(o Options) (*Node, error) { return nil, errors.New("stub") }

// ID is that of the current key.
func (n *Node) ID() ID { return ID{} }

// Tick does what time and other processes bring: reads changed files again, makes and switches keys, drops
// old ones, warns. To be called once a second by a daemon. changed: trust is not what it was at the last
// Tick, so the standing sessions are to be checked with May.
func (n *Node) Tick() (changed bool) { return false }

// Peer is who is at the other end of a connection.
type Peer struct {
	Name string
	Key  ID     // by which it proved itself; zero with a CA's certificate
	Own  ID     // the key that we showed
	CA   string // DNS name, with a CA's certificate
}

// Dial and Accept make TLS of nc, within ctx. On an error nc is closed; it is of class auth or tls
// (wire.Classify), or the network's. Dial takes only a peer that may be `as` to the volume.
func (n *Node) Dial(ctx context.Context, nc net.Conn, volume string, as As) (net.Conn, Peer, error) {
	return nil, Peer{}, errors.New("stub")
}
func (n *Node) Accept(ctx context.Context, nc net.Conn) (net.Conn, Peer, error) {
	return nil, Peer{}, errors.New("stub")
}

// May returns nil where the peer, by the key by which it came, may now be `as` to the volume, else an error
// that wraps wire.ErrAuth. volume "": to any.
func (n *Node) May(p Peer, volume string, as As) error { return errors.New("stub") }

// Rollover is what a Conn asks for key frames (wire.ConnOptions.Keys).
func (n *Node) Rollover(p Peer) wire.Keys { return nil }

// The commands.

type Grant struct {
	Volume string // "": all
	As     As
	Until  time.Time // zero: no end
}

type KeyInfo struct {
	ID     ID
	State  string // "current", "next", "old"
	Made   time.Time
	Switch time.Time // of next
	Until  time.Time // of old; zero: no end
}

type PeerInfo struct {
	Name     string
	Keys     []KeyInfo // newest last
	CA       string
	Grants   []Grant
	Expires  time.Time // the nearest end of all; zero: none
	Warnings []string  // for a person
}

func (n *Node) Own() []KeyInfo                              { return nil }
func (n *Node) Peers() []PeerInfo                           { return nil }
func (n *Node) Trust(name, id string, grants []Grant) error { return nil } // id: an ID, or dns:HOST
func (n *Node) Revoke(name string) error                    { return nil }
func (n *Node) Rotate(in time.Duration) (KeyInfo, error)    { return KeyInfo{}, nil }

// CheckName says whether a peer can have the name.
func CheckName(name string) error { return nil }

// Refusals of the commands, by errors.Is.
var (
	ErrOtherKey  = errors.New("the name has another key")
	ErrOtherName = errors.New("the key has another name")
	ErrNoPeer    = errors.New("no such peer")
)
