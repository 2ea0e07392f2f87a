package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

const trustVersion = 1

// The file trusted.json: one line of JSON, and the SHA-256 of that line, without its end, in hex.
// FORMATS.md has an example.
func (t *trust) encode() ([]byte, error) {
	line, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("encode the trust: %w", err)
	}
	sum := sha256.Sum256(line)
	return append(append(line, '\n'), hex.EncodeToString(sum[:])+"\n"...), nil
}

func newTrust() *trust { return &trust{Version: trustVersion, Peers: []*peer{}, Revoked: []revoked{}} }

// decodeTrust reads what encode wrote, and nothing else.
func decodeTrust(text []byte) (*trust, error) {
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	sum := sha256.Sum256(line)
	if string(rest) != hex.EncodeToString(sum[:])+"\n" {
		return nil, errors.New("its second line is not the SHA-256 of its first: it is damaged, or was edited by hand")
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return nil, err
	}
	if head.Version != trustVersion {
		return nil, fmt.Errorf("it has version %d, this program knows version %d", head.Version, trustVersion)
	}
	t := newTrust()
	if err := json.Unmarshal(line, t); err != nil {
		return nil, err
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	again, err := t.encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, text) {
		return nil, errors.New("it holds what this program does not know")
	}
	return t, nil
}

// check says whether the rules hold by which everything else finds its way.
func (t *trust) check() error {
	last, keys, hosts := "", map[ID]bool{}, map[string]bool{}
	for _, p := range t.Peers {
		if p == nil {
			return errors.New("a peer is missing")
		}
		if err := CheckName(p.Name); err != nil {
			return err
		}
		if p.Name <= last {
			return fmt.Errorf("peer %s comes behind %s", p.Name, last)
		}
		last = p.Name
		if p.Host != "" {
			if err := checkHost(p.Host); err != nil {
				return err
			}
			if hosts[p.Host] {
				return fmt.Errorf("the name dns:%s is there twice", p.Host)
			}
			hosts[p.Host] = true
		}
		for _, k := range p.Keys {
			if k.ID == (ID{}) || keys[k.ID] {
				return fmt.Errorf("peer %s: the key %s is none, or there twice", p.Name, k.ID)
			}
			keys[k.ID] = true
		}
		for _, g := range p.Grants {
			if g.As == 0 {
				return fmt.Errorf("peer %s: a grant without a role", p.Name)
			}
		}
	}
	return nil
}
