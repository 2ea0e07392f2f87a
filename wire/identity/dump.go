package identity

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Dump prints what the file at path holds, own.pem or trusted.json, or both of a folder of keys; known: it is one of
// these. Secrets are never printed. It changes nothing, and takes no lock: files are replaced whole.
func Dump(w io.Writer, path string) (known bool, err error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if _, err := os.Stat(filepath.Join(path, ownFile)); err != nil {
			return false, nil // of another kind, or nothing was begun in it
		}
		err = dumpFile(w, filepath.Join(path, ownFile))
		if trusted := dumpFile(w, filepath.Join(path, trustFile)); !errors.Is(trusted, fs.ErrNotExist) {
			err = errors.Join(err, trusted) // until somebody is trusted there is none
		}
		return true, err
	}
	if name := filepath.Base(path); name != ownFile && name != trustFile {
		return false, nil
	}
	return true, dumpFile(w, path)
}

func dumpFile(w io.Writer, path string) error {
	text, _, err := readFile(path)
	if err != nil {
		return err
	}
	if filepath.Base(path) == ownFile {
		var own ring
		if own, err = decodeRing(text); err == nil {
			dumpRing(w, path, own)
		}
	} else {
		var t *trust
		if t, err = decodeTrust(text); err == nil {
			dumpTrust(w, path, t)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	return nil
}

func dumpRing(w io.Writer, path string, own ring) {
	fmt.Fprintf(w, "own keys %s: %d, oldest first; the secrets are not shown\n", path, len(own))
	for _, k := range own {
		fmt.Fprintf(w, "key %v: made %s, current from %s, good until %s\n", k.id, exact(k.made), exact(k.from), exact(k.until))
	}
}

func dumpTrust(w io.Writer, path string, t *trust) {
	fmt.Fprintf(w, "peers %s: %d, and %d revoked keys\n", path, len(t.Peers), len(t.Revoked))
	for _, p := range t.Peers {
		fmt.Fprintf(w, "peer %s\n", p.Name)
		if p.Host != "" {
			fmt.Fprintf(w, "  dns:%s, its certificate good from %s until %s\n", p.Host, exact(p.CertificateFrom), exact(p.CertificateUntil))
		}
		for _, k := range p.Keys {
			by := "after " + k.After.String()
			if k.Person {
				by = "trusted by a person"
			}
			fmt.Fprintf(w, "  key %v: since %s, %s, current from %s, good until %s\n", k.ID, exact(k.Added), by, exact(k.Switch), exact(k.Until))
		}
		for _, g := range p.Grants {
			fmt.Fprintf(w, "  may be %v of %s until %s\n", g.As, cmp.Or(g.Volume, "all volumes"), exact(g.Until))
		}
		if p.Knows != (ID{}) {
			fmt.Fprintf(w, "  knows our key %v\n", p.Knows)
		}
		for _, a := range p.Alarms {
			fmt.Fprintf(w, "  ALARM of %s: key %v has two successors, %v and %v\n", exact(a.At), a.Key, a.Nexts[0], a.Nexts[1])
		}
	}
	for _, r := range t.Revoked {
		fmt.Fprintf(w, "revoked on %s: key %v of %s\n", exact(r.At), r.Key, r.Name)
	}
}

// exact is a time as the files have it.
func exact(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339Nano)
}
