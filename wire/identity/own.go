package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxOld is how many own keys are kept behind the current one.
const maxOld = 16

// ownKey is one of our own.
type ownKey struct {
	private ed25519.PrivateKey
	id      ID
	made    time.Time
	from    time.Time // is current from then on, until its successor is
	until   time.Time // is good up to then; zero: has no successor yet
}

func makeKey(now, from time.Time) (ownKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return ownKey{}, fmt.Errorf("make a key: %w", err)
	}
	return ownKey{private: private, id: ID(public), made: stamp(now), from: stamp(from)}, nil
}

// stamp is a time as it is kept in files and frames: in milliseconds, UTC.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// ring is all own keys, oldest first: old ones, the current one, at most one next. It is never empty, and
// never changed in place. What each key is follows from the time alone.
type ring []ownKey

// current is the index of the last key whose time has come. Before them all, of a clock that went back, it
// is the first.
func (r ring) current(now time.Time) int {
	for i := len(r) - 1; i > 0; i-- {
		if !r[i].from.After(now) {
			return i
		}
	}
	return 0
}

// index finds a key, -1 where there is none.
func (r ring) index(id ID) int {
	for i := range r {
		if r[i].id == id {
			return i
		}
	}
	return -1
}

// rotate has the current key's successor take over at the time given: it makes one where there is none. The
// predecessor stays good for the grace behind that, and no shorter than it or one before it was told to be: where a
// key were gone before its predecessor, nobody could tell a second successor of that from the first.
func (r ring) rotate(now, at time.Time, grace time.Duration) (ring, error) {
	at = stamp(at)
	now = stamp(now)
	out := append(ring(nil), r...)
	last := out.current(now)
	if last == len(out)-1 {
		next, err := makeKey(now, at)
		if err != nil {
			return nil, err
		}
		out = append(out, next)
	} else {
		out[last+1].from = at
	}
	until := at.Add(grace)
	for _, k := range out[:last+1] {
		until = later(until, k.until)
	}
	out[last].until = until
	return out[max(0, len(out)-maxOld-2):], nil
}

// stretch gives old keys the grace that the settings say, where a command, which does not know them, gave them less:
// the one whose successor is current or will be.
func (r ring) stretch(now time.Time, grace time.Duration) ring {
	out := append(ring(nil), r...)
	current := out.current(now)
	for i := max(0, current-1); i <= current && i+1 < len(out); i++ {
		out[i].until = later(out[i].until, stamp(out[i+1].from.Add(grace)))
	}
	return out
}

func (r ring) equal(other ring) bool {
	return slices.EqualFunc(r, other, func(a, b ownKey) bool { return a.id == b.id && a.from.Equal(b.from) && a.until.Equal(b.until) })
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// due tells whether the next key is to be made, and when it takes over: at the end of the lifetime, and not
// before peers had a third of it to learn of it.
func (r ring) due(now time.Time, lifetime time.Duration) (at time.Time, due bool) {
	i := r.current(now)
	if lifetime <= 0 || i < len(r)-1 {
		return time.Time{}, false
	}
	end := r[i].from.Add(lifetime)
	if now.Before(end.Add(-lifetime / 3)) {
		return time.Time{}, false
	}
	if at = now.Add(lifetime / 3); at.Before(end) {
		at = end
	}
	return at, true
}

// good tells whether a key may be used: its grace is not over.
func (r ring) good(i int, now time.Time) bool { return i >= r.current(now) || r[i].until.After(now) }

// expire drops old keys that are good no longer, where that is sure.
func (r ring) expire(now time.Time, sure func(ID) bool) ring {
	var out ring
	for i, k := range r {
		if r.good(i, now) || !sure(k.id) {
			out = append(out, k)
		}
	}
	return out
}

// The file own.pem: a PEM block for each key, oldest first. FORMATS.md has an example.
const (
	pemType      = "PRIVATE KEY"
	headerID     = "ID" // of the key below: a wrong bit in the key shows
	headerMade   = "Made"
	headerSwitch = "Switch"
	headerUntil  = "Until"
)

func (r ring) encode() ([]byte, error) {
	var b bytes.Buffer
	for _, k := range r {
		der, err := x509.MarshalPKCS8PrivateKey(k.private)
		if err != nil {
			return nil, fmt.Errorf("encode the key %s: %w", k.id, err)
		}
		headers := map[string]string{
			headerID: k.id.String(), headerMade: k.made.Format(time.RFC3339Nano), headerSwitch: k.from.Format(time.RFC3339Nano),
		}
		if !k.until.IsZero() {
			headers[headerUntil] = k.until.Format(time.RFC3339Nano)
		}
		if err := pem.Encode(&b, &pem.Block{Type: pemType, Headers: headers, Bytes: der}); err != nil {
			return nil, fmt.Errorf("encode the key %s: %w", k.id, err)
		}
	}
	return b.Bytes(), nil
}

// decodeRing reads what encode wrote, and nothing else: pem skips what it does not understand, and a key that
// is skipped would be a key that is lost.
func decodeRing(text []byte) (ring, error) {
	var r ring
	for rest := text; len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, fmt.Errorf("no key begins where one must, behind %d", len(r))
		}
		k, err := decodeKey(block)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", len(r)+1, err)
		}
		if r.index(k.id) >= 0 {
			return nil, fmt.Errorf("key %d: %s is there twice", len(r)+1, k.id)
		}
		r = append(r, k)
	}
	if len(r) == 0 || len(r) > maxOld+2 {
		return nil, fmt.Errorf("it holds %d keys, must be 1 to %d", len(r), maxOld+2)
	}
	again, err := r.encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, text) {
		return nil, errors.New("it holds more than its keys")
	}
	return r, nil
}

func decodeKey(block *pem.Block) (k ownKey, err error) {
	if block.Type != pemType {
		return k, fmt.Errorf("a block of type %q, want %q", block.Type, pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return k, err
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return k, fmt.Errorf("a key of type %T, want ed25519", parsed)
	}
	k.private, k.id = private, ID(private.Public().(ed25519.PublicKey))
	says, err := ParseID(block.Headers[headerID])
	if err != nil {
		return k, err
	}
	if says != k.id {
		return k, fmt.Errorf("the key is %s, its header says %s", k.id, says)
	}
	for header, t := range map[string]*time.Time{headerMade: &k.made, headerSwitch: &k.from, headerUntil: &k.until} {
		text, there := block.Headers[header]
		if !there && header == headerUntil {
			continue
		}
		if *t, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return k, fmt.Errorf("header %s: %w", header, err)
		}
	}
	return k, nil
}
