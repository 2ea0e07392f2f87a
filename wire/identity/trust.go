package identity

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/blkmirror/blkmirror/wire"
)

// Refusals of the commands, by errors.Is.
var (
	ErrOtherKey  = errors.New("the name has another key")
	ErrOtherName = errors.New("the key has another name")
	ErrNoPeer    = errors.New("no such peer")
	ErrName      = errors.New("no name for a peer")
)

// As is what a peer may be to a volume.
type As uint8

const (
	AsPrimary As = 1 << 0
	AsMirror  As = 1 << 1
	asBoth       = AsPrimary | AsMirror
)

var asTexts = map[As]string{AsPrimary: "primary", AsMirror: "mirror", asBoth: "both"}

func (a As) String() string {
	if text, ok := asTexts[a]; ok {
		return text
	}
	return fmt.Sprintf("As(%d)", uint8(a))
}

// MarshalText and UnmarshalText are for JSON.
func (a As) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

func (a *As) UnmarshalText(text []byte) error {
	for v, t := range asTexts {
		if t == string(text) {
			*a = v
			return nil
		}
	}
	return fmt.Errorf("no role: %q", text)
}

// Grant is a right that a peer has.
type Grant struct {
	Volume string    `json:"volume,omitempty"` // "": all
	As     As        `json:"as"`
	Until  time.Time `json:"until,omitzero"` // zero: no end
}

func (g Grant) live(now time.Time) bool { return g.Until.IsZero() || now.Before(g.Until) }

// covers tells whether the grant is for all of `as`, to the volume; volume "" and as 0 are any.
func (g Grant) covers(volume string, as As) bool {
	return (volume == "" || g.Volume == "" || g.Volume == volume) && g.As&as == as
}

// trust is whom we trust: the content of trusted.json. Its methods are pure; what they find is not to be
// changed but by themselves.
type trust struct {
	Version int       `json:"version"`
	Peers   []*peer   `json:"peers"`   // by name
	Revoked []revoked `json:"revoked"` // in the order of their revocation
}

type peer struct {
	Name   string    `json:"name"`
	Host   string    `json:"dns,omitempty"`  // trusted by a CA's certificate for it
	Keys   []peerKey `json:"keys,omitempty"` // newest last
	Grants []Grant   `json:"grants"`
	Knows  ID        `json:"knows,omitzero"` // the newest of our own keys that it is known to have
	// The certificate by which it came last is good from and until then.
	CertificateFrom  time.Time `json:"certificate_from,omitzero"`
	CertificateUntil time.Time `json:"certificate_until,omitzero"`
	Alarms           []alarm   `json:"alarms,omitempty"`
}

type peerKey struct {
	ID     ID        `json:"id"`
	Added  time.Time `json:"added"`
	Person bool      `json:"person,omitempty"` // a person trusted it, not only its predecessor
	After  ID        `json:"after,omitzero"`   // its predecessor
	Switch time.Time `json:"switch,omitzero"`  // it is current from then on
	Until  time.Time `json:"until,omitzero"`   // it is good up to then
}

func (k peerKey) live(now time.Time) bool { return k.Until.IsZero() || now.Before(k.Until) }

// alarm is two successors of one key: somebody has a copy of it.
type alarm struct {
	Key   ID        `json:"key"`
	Nexts [2]ID     `json:"nexts"`
	At    time.Time `json:"at"`
}

type revoked struct {
	Key  ID        `json:"key"`
	Name string    `json:"name"`
	At   time.Time `json:"at"`
}

// CheckName says whether a peer can have the name.
func CheckName(name string) error {
	bad := func(r rune) bool {
		return r > unicode.MaxASCII || !(unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("._-", r))
	}
	if name == "" || len(name) > wire.MaxName || strings.IndexFunc(name, bad) >= 0 || strings.ContainsRune("._-", rune(name[0])) {
		return fmt.Errorf("%w: %q; it must be 1 to %d letters, digits, '.', '_' or '-', and begin with a letter or digit",
			ErrName, name, wire.MaxName)
	}
	return nil
}

func (t *trust) byName(name string) *peer {
	for _, p := range t.Peers {
		if p.Name == name {
			return p
		}
	}
	return nil
}

func (t *trust) byKey(id ID) (*peer, *peerKey) {
	for _, p := range t.Peers {
		if k := p.key(id); k != nil {
			return p, k
		}
	}
	return nil, nil
}

func (t *trust) byHost(host string) *peer {
	for _, p := range t.Peers {
		if p.Host != "" && p.Host == host {
			return p
		}
	}
	return nil
}

func (p *peer) key(id ID) *peerKey {
	for i := range p.Keys {
		if p.Keys[i].ID == id {
			return &p.Keys[i]
		}
	}
	return nil
}

// anyKey tells whether one of the keys is good.
func (p *peer) anyKey(now time.Time) bool {
	return slices.ContainsFunc(p.Keys, func(k peerKey) bool { return k.live(now) })
}

// identify finds the peer that has the key, which has a right to anything at all, or says why there is none.
func (t *trust) identify(now time.Time, id ID) (*peer, error) {
	p, k := t.byKey(id)
	if p == nil {
		for _, r := range slices.Backward(t.Revoked) {
			if r.Key == id {
				return nil, fmt.Errorf("%w: the peer's key %s was revoked on %s, with the name %s", wire.ErrAuth, id, day(r.At), r.Name)
			}
		}
		return nil, fmt.Errorf("%w: nobody said so of the peer's key %s", wire.ErrAuth, id)
	}
	if !k.live(now) {
		return nil, fmt.Errorf("%w: the peer %s came with its old key %s, which was good until %s", wire.ErrAuth, p.Name, id, moment(k.Until))
	}
	if err := p.may(now, "", 0); err != nil {
		return nil, err
	}
	return p, nil
}

// may says whether the peer has a right. The text does not depend on whether there is such a volume.
func (p *peer) may(now time.Time, volume string, as As) error {
	var ended time.Time
	for _, g := range p.Grants {
		if !g.covers(volume, as) {
			continue
		}
		if g.live(now) {
			return nil
		}
		if g.Until.After(ended) {
			ended = g.Until
		}
	}
	right := "any volume"
	if volume != "" {
		right = "volume " + volume
	}
	if as != 0 {
		right = fmt.Sprintf("%s as %v", right, as)
	}
	if !ended.IsZero() {
		return fmt.Errorf("%w: the right of peer %s to %s ended on %s", wire.ErrAuth, p.Name, right, moment(ended))
	}
	return fmt.Errorf("%w: peer %s has no right to %s", wire.ErrAuth, p.Name, right)
}

// add is the command trust, for an ID or a host. Without grants, one who is known is only confirmed, and who
// is new gets everything.
func (t *trust) add(now time.Time, name string, id ID, host string, grants []Grant) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if other, _ := t.byKey(id); other != nil && other.Name != name {
		return fmt.Errorf("%w: %s is %s", ErrOtherName, id, other.Name)
	}
	if other := t.byHost(host); other != nil && other.Name != name {
		return fmt.Errorf("%w: dns:%s is %s", ErrOtherName, host, other.Name)
	}
	p := t.byName(name)
	switch {
	case p == nil:
		p = &peer{Name: name, Host: host}
		if len(grants) == 0 {
			grants = []Grant{{As: asBoth}}
		}
		at, _ := slices.BinarySearchFunc(t.Peers, name, func(p *peer, name string) int { return strings.Compare(p.Name, name) })
		t.Peers = slices.Insert(t.Peers, at, p)
	case host != p.Host || host == "" && !p.takes(now, id):
		return fmt.Errorf("%w: %s; revoke it first", ErrOtherKey, name)
	}
	if host == "" {
		t.decide(now, p, id)
		p.confirm(now, id)
		t.Revoked = slices.DeleteFunc(t.Revoked, func(r revoked) bool { return r.Key == id }) // a person's word is the last
	}
	p.grant(grants)
	return nil
}

// decide takes a person's word for one of two successors. Whoever made the other one has all that came before them: of the
// peer's keys only the one that was named stays.
func (t *trust) decide(now time.Time, p *peer, id ID) {
	if !slices.ContainsFunc(p.Alarms, func(a alarm) bool { return slices.Contains(a.Nexts[:], id) }) {
		return
	}
	t.revoke(now, p, func(other ID) bool { return other != id })
	p.Keys = slices.DeleteFunc(p.Keys, func(k peerKey) bool { return k.ID != id })
}

// takes tells whether a person may say of the key that it is this peer's: it is already, or one of two that
// claim it, or there is no good key any more.
func (p *peer) takes(now time.Time, id ID) bool {
	return p.key(id) != nil || !p.anyKey(now) ||
		slices.ContainsFunc(p.Alarms, func(a alarm) bool { return slices.Contains(a.Nexts[:], id) })
}

// confirm notes that a person trusts the key, and looked at the alarms.
func (p *peer) confirm(now time.Time, id ID) {
	k := p.key(id)
	if k == nil {
		added := peerKey{ID: id, Added: stamp(now)}
		for _, a := range p.Alarms {
			if slices.Contains(a.Nexts[:], id) {
				added.After = a.Key
			}
		}
		p.Keys = append(p.Keys, added)
		k = &p.Keys[len(p.Keys)-1]
	}
	k.Person = true
	p.Alarms = nil
}

func (p *peer) grant(grants []Grant) {
	for _, g := range grants {
		if g.As == 0 {
			g.As = asBoth
		}
		if !g.Until.IsZero() {
			g.Until = stamp(g.Until)
		}
		i := slices.IndexFunc(p.Grants, func(old Grant) bool { return old.Volume == g.Volume && old.As == g.As })
		if i >= 0 {
			p.Grants[i].Until = g.Until
		} else {
			p.Grants = append(p.Grants, g)
		}
	}
}

// remove is the command revoke.
func (t *trust) remove(now time.Time, name string) error {
	p := t.byName(name)
	if p == nil {
		return fmt.Errorf("%w: %s", ErrNoPeer, name)
	}
	t.revoke(now, p, func(ID) bool { return true })
	t.Peers = slices.DeleteFunc(t.Peers, func(other *peer) bool { return other == p })
	return nil
}

// revoke remembers keys of the peer, and those that claimed to be, as revoked.
func (t *trust) revoke(now time.Time, p *peer, which func(ID) bool) {
	var keys []ID
	for _, k := range p.Keys {
		keys = append(keys, k.ID)
	}
	for _, a := range p.Alarms {
		keys = append(keys, a.Key, a.Nexts[0], a.Nexts[1])
	}
	for _, id := range keys {
		if which(id) {
			t.Revoked = slices.DeleteFunc(t.Revoked, func(r revoked) bool { return r.Key == id })
			t.Revoked = append(t.Revoked, revoked{Key: id, Name: p.Name, At: stamp(now)})
		}
	}
}

// expire drops keys that are no longer good, where that is sure.
func (t *trust) expire(now time.Time, sure func(ID) bool) {
	for _, p := range t.Peers {
		p.Keys = p.kept(now, sure)
	}
}

// kept are the keys that are remembered: those that are good, the successor of one that is, so that it has no
// second one, and the last, so that a refusal can say what it was.
func (p *peer) kept(now time.Time, sure func(ID) bool) []peerKey {
	last := len(p.Keys) - 1
	kept := p.Keys[:0:0]
	for i, k := range p.Keys {
		before := p.key(k.After)
		if i == last || k.live(now) || !sure(k.ID) || before != nil && before.live(now) {
			kept = append(kept, k)
		}
	}
	return kept
}

func day(t time.Time) string    { return t.UTC().Format(time.DateOnly) }
func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
