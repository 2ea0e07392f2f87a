package identity

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// maxPeerKeys is how many keys one peer can have at a time: what we keep of our own.
const maxPeerKeys = maxOld + 2

// Rollover is what a Conn asks for key frames (wire.ConnOptions.Keys).
func (n *Node) Rollover(p Peer) wire.Keys { return &rollover{n, p} }

// rollover is the exchange of keys with one peer, over one connection.
type rollover struct {
	node *Node
	peer Peer
}

// Next is the successor of the newest own key that the peer has.
func (r *rollover) Next() *wire.KeyNext {
	n := r.node
	n.mu.Lock()
	f, knows := n.files, n.knowsLocked(r.peer.Name)
	n.mu.Unlock()
	i := max(f.own.index(knows), f.own.index(r.peer.Own))
	if i < 0 || i+1 >= len(f.own) || !f.own.good(i, n.now()) {
		return nil
	}
	return announce(f.own[i], f.own[i+1])
}

// knowsLocked is the newest own key that the peer is known to have.
func (n *Node) knowsLocked(name string) ID {
	if id, ok := n.knows[name]; ok {
		return id
	}
	if p := n.files.trust.byName(name); p != nil {
		return p.Knows
	}
	return ID{}
}

// Follow is the peer under the newest key that it has announced by now: by that a session goes on when the key with
// which it began is good no longer.
func (n *Node) Follow(p Peer) Peer {
	known := n.view().trust.byName(p.Name)
	if known == nil || p.CA != "" {
		return p
	}
	for range maxPeerKeys {
		next := known.successor(p.Key)
		if next == nil {
			break
		}
		p.Key = next.ID
	}
	return p
}

// TakeAck notes that the peer has a key of ours.
func (r *rollover) TakeAck(ack *wire.KeyAck) error {
	n, id := r.node, ID(ack.Key)
	n.mu.Lock()
	own, knows := n.files.own, n.knowsLocked(r.peer.Name)
	n.mu.Unlock()
	i := own.index(id)
	if i < 0 {
		return fmt.Errorf("%w: KeyAck of %s, which is no key of this node", wire.ErrProtocol, id)
	}
	if i <= own.index(knows) {
		return nil // one that was repeated
	}
	err := n.update(lockWait, func(f *files) error {
		p := f.trust.byName(r.peer.Name)
		if p == nil {
			return fmt.Errorf("%w: peer %s was revoked", wire.ErrAuth, r.peer.Name)
		}
		p.Knows = id
		n.mu.Lock()
		delete(n.knows, r.peer.Name)
		n.mu.Unlock()
		return nil
	})
	if err = n.bear(err); err == nil && n.knownTo(r.peer.Name) != id {
		n.mu.Lock()
		n.knows[r.peer.Name] = id // the next Tick tries again
		n.mu.Unlock()
	}
	return err
}

// knownTo is knowsLocked.
func (n *Node) knownTo(name string) ID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.knowsLocked(name)
}

// bear takes an error of an exchange of keys. A breach of the peer's ends the session; a folder that cannot be
// read or written just now is this node's own matter: it is told, and the peer, who gets no answer, says it again.
func (n *Node) bear(err error) error {
	if err == nil || errors.Is(err, wire.ErrProtocol) || errors.Is(err, wire.ErrAuth) {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.unkept = "what peers say of their keys cannot be kept; it is tried again: " + err.Error()
	return nil
}

// TakeNext keeps the peer's successor durably, or has it already. nil: it could not be kept now.
func (r *rollover) TakeNext(m *wire.KeyNext) (*wire.KeyAck, error) {
	n := r.node
	if err := verify(m); err != nil {
		return nil, err
	}
	ack := &wire.KeyAck{Key: m.Next}
	if n.view().trust.has(r.peer.Name, m) {
		return ack, nil
	}
	var refused error // beside what is to be written
	err := n.update(lockWait, func(f *files) error {
		if f.own.index(m.Next) >= 0 {
			return fmt.Errorf("%w: KeyNext of peer %s names a key of this node", wire.ErrProtocol, r.peer.Name)
		}
		var err error
		refused, err = f.trust.take(n.now(), r.peer.Name, m)
		return err
	})
	switch {
	case err != nil:
		return nil, n.bear(err)
	case refused != nil:
		return nil, refused
	}
	return ack, nil
}

// has tells whether what the KeyNext says is known, word for word.
func (t *trust) has(name string, m *wire.KeyNext) bool {
	p := t.byName(name)
	if p == nil {
		return false
	}
	key, next := p.key(m.Key), p.key(m.Next)
	return key != nil && next != nil && next.After == m.Key &&
		key.Until.Equal(time.UnixMilli(m.Until)) && next.Switch.Equal(time.UnixMilli(m.Switch))
}

// take takes the successor in. Where there is another one already, neither is good any more: that is refused,
// beside a change that is to be kept.
func (t *trust) take(now time.Time, name string, m *wire.KeyNext) (refused, err error) {
	p := t.byName(name)
	if p == nil {
		return nil, fmt.Errorf("%w: peer %s was revoked", wire.ErrAuth, name)
	}
	key := p.key(m.Key)
	if key == nil || !key.live(now) {
		return nil, fmt.Errorf("%w: KeyNext of %s, which is no key of peer %s", wire.ErrProtocol, ID(m.Key), name)
	}
	for _, a := range p.Alarms {
		if a.Key == m.Key {
			return nil, conflict(name, a)
		}
	}
	if slices.ContainsFunc(t.Revoked, func(r revoked) bool { return r.Key == m.Next }) {
		return nil, fmt.Errorf("%w: KeyNext of peer %s names the key %s, which was revoked", wire.ErrProtocol, name, ID(m.Next))
	}
	if other, _ := t.byKey(m.Next); other != nil && other != p {
		return nil, fmt.Errorf("%w: KeyNext of peer %s names a key of another peer", wire.ErrProtocol, name)
	}
	if rival := p.successor(m.Key); rival != nil && rival.ID != m.Next {
		a := alarm{Key: m.Key, Nexts: [2]ID{rival.ID, m.Next}, At: stamp(now)}
		p.Alarms = append(p.Alarms, a)
		p.disown(rival.ID)
		return conflict(name, a), nil
	}
	next := p.key(m.Next)
	if next == nil {
		if len(p.Keys) >= maxPeerKeys {
			p.Keys = slices.Delete(p.Keys, 0, 1)
		}
		p.Keys = append(p.Keys, peerKey{ID: m.Next, Added: stamp(now)})
		next = &p.Keys[len(p.Keys)-1]
	}
	next.After, next.Switch = m.Key, stamp(time.UnixMilli(m.Switch))
	if key = p.key(m.Key); key != nil { // it may have been the oldest
		key.Until = stamp(time.UnixMilli(m.Until))
	}
	return nil, nil
}

func conflict(name string, a alarm) error {
	return fmt.Errorf("%w: KeyNext of peer %s: its key %s has two successors, %s and %s: somebody has a copy of it; neither is taken",
		wire.ErrProtocol, name, a.Key, a.Nexts[0], a.Nexts[1])
}

func (p *peer) successor(id ID) *peerKey {
	for i := range p.Keys {
		if p.Keys[i].After == id {
			return &p.Keys[i]
		}
	}
	return nil
}

// disown takes a key back that only its predecessor vouched for, and all that it vouched for itself.
func (p *peer) disown(id ID) {
	for k := p.key(id); k != nil && !k.Person; k = p.key(id) {
		after := p.successor(id)
		var next ID
		if after != nil {
			next = after.ID
		}
		p.Keys = slices.DeleteFunc(p.Keys, func(k peerKey) bool { return k.ID == id })
		id = next
	}
}
