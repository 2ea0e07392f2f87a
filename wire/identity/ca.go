package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// ca is the certificate that is shown in place of the own key's, and the authority by which peers are known
// by name; from files that others write. The zero value has neither.
type ca struct {
	certFile, keyFile, caFile string
	now                       func() time.Time

	reading sync.Mutex // held while the files are read; before mu
	texts   [3][]byte  // of the files, as tried last; under reading

	mu     sync.Mutex // is never held over the disk: a status asks for what it guards
	broken string     // what is wrong with the files
	loaded caFiles
}

// caFiles is what the files hold, as far as they could be used.
type caFiles struct {
	certificate *tls.Certificate // nil: none
	pool        *x509.CertPool   // nil: none
	authorities []span           // of each certificate in pool
}

func openCA(o Options) (*ca, error) {
	c := &ca{certFile: o.Cert, keyFile: o.Key, caFile: o.CA, now: o.Now}
	if (o.Cert == "") != (o.Key == "") {
		return nil, errors.New("tls_cert and tls_key go together: one of them is not set")
	}
	texts, err := c.read()
	if err == nil {
		c.texts = texts
		c.loaded, err = c.load(texts)
	}
	if err != nil {
		return nil, fmt.Errorf("the TLS files: %w", err)
	}
	return c, nil
}

// read reads the files that are set.
func (c *ca) read() (texts [3][]byte, err error) {
	for i, path := range []string{c.certFile, c.keyFile, c.caFile} {
		if path == "" {
			continue
		}
		text, mode, err := readFile(path)
		if err != nil {
			return texts, err
		}
		if path == c.keyFile && mode.Perm()&0o077 != 0 {
			return texts, fmt.Errorf("%w: %s has mode %#o: chmod 0600 %s", ErrExposed, path, mode.Perm(), path)
		}
		texts[i] = text
	}
	return texts, nil
}

func (c *ca) load(texts [3][]byte) (f caFiles, err error) {
	if c.certFile != "" {
		certificate, err := tls.X509KeyPair(texts[0], texts[1])
		if err != nil {
			return f, fmt.Errorf("%w: %s with %s: %w", ErrDamaged, c.certFile, c.keyFile, err)
		}
		f.certificate = &certificate
	}
	if c.caFile != "" {
		f.pool = x509.NewCertPool()
		if !f.pool.AppendCertsFromPEM(texts[2]) {
			return f, fmt.Errorf("%w: %s holds no certificate", ErrDamaged, c.caFile)
		}
		f.authorities = spansOf(texts[2])
	}
	return f, nil
}

// spansOf tells how long each certificate in a PEM file is good; those that cannot be read are in no pool either.
func spansOf(text []byte) (spans []span) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			spans = append(spans, span{certificate.NotBefore, certificate.NotAfter})
		}
	}
	return spans
}

// authority is the one that ends next, since one that has ended may stay in the file beside its successor; where
// all have ended, the last that did. Zero: there is none.
func (c *ca) authority(now time.Time) (next span) {
	for _, s := range c.files().authorities {
		over, nextOver := !s.until.After(now), !next.until.After(now)
		switch {
		case next.until.IsZero(), nextOver && !over, nextOver && s.until.After(next.until), !over && s.until.Before(next.until):
			next = s
		}
	}
	return next
}

// reload takes the files where they changed. What cannot be used changes nothing and is told.
func (c *ca) reload() (changed bool) {
	c.reading.Lock()
	defer c.reading.Unlock()
	texts, err := c.read()
	if err == nil && slices.EqualFunc(texts[:], c.texts[:], bytes.Equal) {
		return false // also where they are broken, which is told already
	}
	var f caFiles
	if err == nil {
		c.texts = texts
		f, err = c.load(texts)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.broken = "the TLS files on disk cannot be used, those in memory go on to count: " + err.Error()
		return false
	}
	c.loaded, c.broken = f, ""
	return true
}

func (c *ca) files() caFiles {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loaded
}

// state is what is wrong with the files, and how long the certificate is good.
func (c *ca) state() (broken string, certificate span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loaded.certificate != nil {
		certificate = span{c.loaded.certificate.Leaf.NotBefore, c.loaded.certificate.Leaf.NotAfter}
	}
	return c.broken, certificate
}

// verify says whether the authority vouches for the chain now.
func (f caFiles) verify(now time.Time, chain []*x509.Certificate) error {
	if f.pool == nil {
		return fmt.Errorf("%w: the peer shows a certificate that is no blkmirror key, and no tls_ca is set", wire.ErrAuth)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: f.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("%w: the peer's certificate: %w", wire.ErrAuth, err)
	}
	return nil
}

// checkHost takes a DNS name as it stands in a certificate, in lower case. Wildcards are none: a peer is one.
func checkHost(host string) error {
	bad := func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.') }
	if host == "" || len(host) > 253 || strings.IndexFunc(host, bad) >= 0 || strings.HasPrefix(host, ".") ||
		strings.Contains(host, "..") || net.ParseIP(host) != nil {
		return fmt.Errorf("%w: dns:%q is no DNS name in lower case", ErrName, host)
	}
	return nil
}
