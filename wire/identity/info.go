package identity

import (
	"fmt"
	"slices"
	"time"
)

const (
	warnAhead = 21 * 24 * time.Hour
	oneDay    = 24 * time.Hour
)

// KeyInfo tells of a key, our own or a peer's.
type KeyInfo struct {
	ID     ID
	State  string // "current", "next", "old"
	Made   time.Time
	Switch time.Time // of next
	Until  time.Time // of old; zero: no end
}

// PeerInfo tells of a peer.
type PeerInfo struct {
	Name     string
	Keys     []KeyInfo // newest last
	CA       string
	Grants   []Grant
	Expires  time.Time // the nearest end of all; zero: none
	Warnings []string  // a person has to do something
	Notes    []string  // what settles by itself
}

// DaysLeft is up to the nearest end; nil: there is none.
func (p PeerInfo) DaysLeft(now time.Time) *float64 {
	if p.Expires.IsZero() {
		return nil
	}
	days := p.Expires.Sub(now).Hours() / 24
	return &days
}

// Own lists the own keys, newest last.
func (n *Node) Own() []KeyInfo {
	now := n.now()
	own := n.view().own
	var infos []KeyInfo
	current := own.current(now)
	for i, k := range own {
		info := KeyInfo{ID: k.id, State: "old", Made: k.made, Until: k.until}
		switch {
		case i == current:
			info.State = "current"
		case i > current:
			info.State, info.Switch = "next", k.from
		}
		infos = append(infos, info)
	}
	return infos
}

// Warnings are those about this node itself, for a person.
func (n *Node) Warnings() []string {
	var texts []string
	n.mu.Lock()
	for _, text := range []string{n.broken, n.unkept} {
		if text != "" {
			texts = append(texts, text)
		}
	}
	n.mu.Unlock()
	broken, certificate := n.ca.state()
	if broken != "" {
		texts = append(texts, broken)
	}
	if text := certificate.ending("the certificate of this node", n.now()); text != "" {
		texts = append(texts, text+": have the CA make a new one")
	}
	if text := n.ca.authority(n.now()).ending("the certificate of the CA in "+n.options.CA, n.now()); text != "" {
		texts = append(texts, text+": put its successor beside it, and have new certificates made under that")
	}
	return texts
}

// The kinds of an End.
const (
	KindPeer        = "peer"        // what a peer may do, its certificate and ours
	KindCertificate = "certificate" // ours
	KindCA          = "ca"
	KindKey         = "key" // the present one of our own, whose successor takes over then
)

// End is when a credential ends.
type End struct {
	Kind string
	Name string    // of a peer
	At   time.Time // zero: it has no end
}

// Ends lists all credentials that there are.
func (n *Node) Ends() []End {
	now := n.now()
	own := n.view().own
	key := End{Kind: KindKey}
	switch i := own.current(now); {
	case i < len(own)-1:
		key.At = own[i+1].from
	case n.options.Lifetime > 0:
		key.At = own[i].from.Add(n.options.Lifetime)
	}
	ends := []End{key}
	if _, certificate := n.ca.state(); !certificate.until.IsZero() {
		ends = append(ends, End{Kind: KindCertificate, At: certificate.until})
	}
	if authority := n.ca.authority(now); !authority.until.IsZero() {
		ends = append(ends, End{Kind: KindCA, At: authority.until})
	}
	for _, p := range n.Peers() {
		ends = append(ends, End{KindPeer, p.Name, p.Expires})
	}
	return ends
}

// span is when something is good; from zero: nobody knows since when, until zero: it has no end.
type span struct{ from, until time.Time }

// near tells whether the end is to be announced. What is good for a short time only, and made anew all the time, is
// announced when its last third begins.
func (s span) near(now time.Time) bool {
	ahead := time.Duration(warnAhead)
	if !s.from.IsZero() {
		ahead = min(ahead, s.until.Sub(s.from)/3)
	}
	return !s.until.IsZero() && s.until.Sub(now) < ahead
}

// ending says that something ends soon, or has; "" where it does not.
func (s span) ending(what string, now time.Time) string {
	left := s.until.Sub(now)
	switch {
	case !s.near(now):
		return ""
	case left <= 0:
		return fmt.Sprintf("%s ended on %s", what, moment(s.until))
	case left < oneDay:
		return fmt.Sprintf("%s ends within a day, %s", what, moment(s.until))
	}
	return fmt.Sprintf("%s ends in %d days, %s", what, left/oneDay, moment(s.until))
}

// Peers lists the peers by name.
func (n *Node) Peers() []PeerInfo {
	now := n.now()
	_, own := n.ca.state()
	n.mu.Lock()
	defer n.mu.Unlock()
	var infos []PeerInfo
	for _, p := range n.files.trust.Peers {
		info := PeerInfo{Name: p.Name, Keys: p.infos(now), CA: p.Host, Grants: slices.Clone(p.Grants)}
		certificate := span{p.CertificateFrom, p.CertificateUntil}
		if seen, ok := n.certs[p.Name]; ok {
			certificate = seen
		}
		if p.Host == "" {
			certificate = span{}
		}
		nearest := func(t time.Time) {
			if !t.IsZero() && (info.Expires.IsZero() || t.Before(info.Expires)) {
				info.Expires = t
			}
		}
		nearest(own.until)
		nearest(certificate.until)
		warn := func(text string) {
			if text != "" {
				info.Warnings = append(info.Warnings, text)
			}
		}
		warn(certificate.ending("the certificate of peer "+p.Name, now))
		for _, g := range p.Grants {
			nearest(g.Until)
			right := "the right of peer " + p.Name
			if g.Volume != "" {
				right += " to volume " + g.Volume
			}
			warn(span{until: g.Until}.ending(fmt.Sprintf("%s as %v", right, g.As), now))
		}
		if last := len(p.Keys) - 1; last >= 0 {
			nearest(p.Keys[last].Until) // it has no successor here: there was an alarm
		}
		for _, a := range p.Alarms {
			warn(fmt.Sprintf("ALARM: the key %s of peer %s has two successors, %s and %s: somebody has a copy of it; neither is taken. "+
				"On the node that is the right one run `blkmirror keys rotate --in 0s` and `keys show`, and trust that ID here; or revoke %s", a.Key, p.Name, a.Nexts[0], a.Nexts[1], p.Name))
		}
		if text, urgent := n.staleLocked(p, now); urgent {
			warn(text)
		} else if text != "" {
			info.Notes = append(info.Notes, text)
		}
		infos = append(infos, info)
	}
	return infos
}

// staleLocked tells of a peer that missed a switch of our keys. It is urgent when the grace is nearly over.
func (n *Node) staleLocked(p *peer, now time.Time) (text string, urgent bool) {
	own, knows := n.files.own, n.knowsLocked(p.Name)
	i, current := own.index(knows), own.current(now)
	switch {
	case knows == (ID{}) || i >= current:
		return "", false
	case i < 0 || !own.good(i, now):
		return fmt.Sprintf("peer %s knows no key of this node that is good by now, since it was away for too long: have it trust %s", p.Name, own[current].id), true
	}
	return fmt.Sprintf("peer %s still uses the old key %s of this node, good until %s; it is told of the new one as soon as it is connected",
		p.Name, own[i].id, moment(own[i].until)), span{own[i+1].from, own[i].until}.near(now)
}

// infos are the peer's keys as they are seen from here.
func (p *peer) infos(now time.Time) []KeyInfo {
	current := 0
	for i, k := range p.Keys {
		if !k.Switch.After(now) {
			current = i
		}
	}
	var infos []KeyInfo
	for i, k := range p.Keys {
		info := KeyInfo{ID: k.ID, State: "old", Made: k.Added, Until: k.Until}
		switch {
		case i == current:
			info.State = "current"
		case i > current:
			info.State, info.Switch = "next", k.Switch
		}
		infos = append(infos, info)
	}
	return infos
}
