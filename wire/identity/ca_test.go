package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// authority is a CA of a test.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	serial      int64
}

func newAuthority(t *testing.T, clock *clock) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: clock.now().Add(-days), NotAfter: clock.now().Add(1000 * days), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	certificate, err := x509.ParseCertificate(der)
	must(t, err)
	return &authority{certificate: certificate, key: key, serial: 1}
}

// issue writes a certificate for the host, its key and the authority's own certificate into the folder.
func (a *authority) issue(t *testing.T, dir, host string, until time.Time) func(*Options) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), DNSNames: []string{"other.example.org", host}, NotBefore: a.certificate.NotBefore, NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	cert, keyPath := write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", keyDER)
	ca := write("ca.pem", "CERTIFICATE", a.certificate.Raw)
	return func(o *Options) { o.Cert, o.Key, o.CA = cert, keyPath, ca }
}

// TestCA: peers by name, their certificates' ends, files that change while all runs.
func TestCA(t *testing.T) {
	clock := newClock()
	authority := newAuthority(t, clock)
	dirs := [2]string{t.TempDir(), t.TempDir()}
	end := clock.now().Add(60 * days)
	a := newNode(t, clock, authority.issue(t, dirs[0], "a.example.org", end))
	b := newNode(t, clock, authority.issue(t, dirs[1], "b.example.org", end.Add(days)))
	try := func(what string, want wire.Class) (dialler, acceptor met) {
		t.Helper()
		if dialler, acceptor = meet(t, a, b, "db", AsMirror); dialler.err != nil { // the second try is by the other key
			dialler, acceptor = meet(t, a, b, "db", AsMirror)
		}
		if got := classes(dialler, acceptor); got != [2]wire.Class{want, want} {
			t.Fatalf("%s: dialler %v, acceptor %v", what, dialler.err, acceptor.err)
		}
		return dialler, acceptor
	}
	try("nobody is trusted", wire.ClassAuth)
	must(t, a.Trust("b", "dns:b.example.org", nil))
	try("one is trusted", wire.ClassAuth)
	must(t, b.Trust("a", "dns:A.example.org", []Grant{{As: AsPrimary}}))
	dialler, acceptor := try("both are trusted", "")
	if dialler.peer != (Peer{Name: "b", CA: "b.example.org"}) || acceptor.peer != (Peer{Name: "a", CA: "a.example.org"}) {
		t.Errorf("dialler met %+v, acceptor %+v", dialler.peer, acceptor.peer)
	}
	a.Tick()
	if p := a.Peers()[0]; !p.Expires.Equal(end) || !a.view().trust.Peers[0].CertificateUntil.Equal(end.Add(days)) {
		t.Errorf("%+v", p)
	}
	if a.Rollover(dialler.peer).Next() != nil {
		t.Error("a key is told that was not shown")
	}
	clock.pass(50 * days)
	if len(a.Warnings()) != 1 || len(a.Peers()[0].Warnings) != 1 {
		t.Errorf("own warnings %q, of the peer %q", a.Warnings(), a.Peers()[0].Warnings)
	}
	clock.pass(10*days + time.Second)
	try("a's certificate ended", wire.ClassAuth)
	authority.issue(t, dirs[0], "a.example.org", end.Add(1000*days))
	if !a.Tick() {
		t.Error("the new certificate is no change")
	}
	try("a has a new one", "")

	right, err := os.ReadFile(a.options.Cert)
	must(t, err)
	must(t, os.WriteFile(a.options.Cert, []byte("garbage"), 0o600))
	for range 3 {
		a.Tick()
	}
	if !a.logged("go on to count") {
		t.Error("garbage is not told")
	}
	try("there is garbage on disk", "")
	must(t, os.WriteFile(a.options.Cert, right, 0o600))
	if a.Tick(); len(a.Warnings()) != 0 {
		t.Errorf("mended: %q", a.Warnings())
	}

	foreign := newAuthority(t, clock)
	foreign.issue(t, dirs[0], "a.example.org", end.Add(1000*days))
	a.Tick()
	try("another CA", wire.ClassAuth)
	authority.issue(t, dirs[0], "c.example.org", end.Add(1000*days))
	a.Tick()
	try("another name", wire.ClassAuth)
	authority.issue(t, dirs[0], "\n\x1b[2J"+strings.Repeat("long.", 1000), end.Add(1000*days))
	a.Tick()
	if _, acceptor = try("a name for a log", wire.ClassAuth); len(acceptor.err.Error()) > maxStrange+100 || strings.ContainsAny(acceptor.err.Error(), "\n\x1b") {
		t.Errorf("%.1000q", acceptor.err.Error())
	}
	authority.issue(t, dirs[0], "a.example.org", end.Add(1000*days))
	a.Tick()
	_, acceptor = try("the right one again", "")
	must(t, b.Revoke("a"))
	if wire.Classify(b.May(acceptor.peer, "db", AsPrimary)) != wire.ClassAuth {
		t.Error("a revoked peer may go on")
	}
	try("revoked", wire.ClassAuth)
}

// TestCABeside: pinned keys go on to count beside an authority, from either side.
func TestCABeside(t *testing.T) {
	clock := newClock()
	authority := newAuthority(t, clock)
	a := newNode(t, clock, authority.issue(t, t.TempDir(), "a.example.org", clock.now().Add(60*days)))
	b := newNode(t, clock)
	trustBoth(t, a, b)
	if dialler, _ := meet(t, b, a, "db", AsMirror); dialler.err != nil { // by the hints
		t.Errorf("b dials: %v", dialler.err)
	}
	for try := range 3 {
		dialler, _ := meet(t, a, b, "db", AsMirror)
		if dialler.err != nil {
			t.Errorf("a dials, try %d: %v", try, dialler.err)
		}
	}
}

// TestCAShort: who makes a new certificate each day is not warned all the time, but when that was forgotten.
func TestCAShort(t *testing.T) {
	clock := newClock()
	authority := newAuthority(t, clock) // its certificates are good from a day ago
	a := newNode(t, clock, authority.issue(t, t.TempDir(), "a.example.org", clock.now().Add(2*days)))
	b := newNode(t, clock, authority.issue(t, t.TempDir(), "b.example.org", clock.now().Add(2*days)))
	must(t, a.Trust("b", "dns:b.example.org", nil))
	must(t, b.Trust("a", "dns:a.example.org", nil))
	for _, c := range []struct {
		pass time.Duration
		want int
	}{{0, 0}, {days - time.Minute, 0}, {2 * time.Minute, 1}} {
		clock.pass(c.pass)
		if dialler, _ := meet(t, a, b, "db", AsMirror); dialler.err != nil {
			t.Fatal(dialler.err)
		}
		a.Tick()
		p := a.Peers()[0]
		if len(a.Warnings()) != c.want || len(p.Warnings) != c.want || *p.DaysLeft(clock.now()) > 2 {
			t.Errorf("%v on: own %q, of the peer %q, %v days left", c.pass, a.Warnings(), p.Warnings, *p.DaysLeft(clock.now()))
		}
	}
}

func TestCAFiles(t *testing.T) {
	clock := newClock()
	authority := newAuthority(t, clock)
	cases := map[string]struct {
		prep func(*Options) error
		want error
		text string
	}{
		"exposed":   {func(o *Options) error { return os.Chmod(o.Key, 0o644) }, ErrExposed, "chmod 0600"},
		"garbage":   {func(o *Options) error { return os.WriteFile(o.Cert, []byte("garbage"), 0o600) }, ErrDamaged, "cert.pem"},
		"no CA":     {func(o *Options) error { return os.WriteFile(o.CA, nil, 0o600) }, ErrDamaged, "ca.pem"},
		"missing":   {func(o *Options) error { return os.Remove(o.Key) }, os.ErrNotExist, "key.pem"},
		"other key": {func(o *Options) error { return os.Rename(o.Key, o.Cert) }, os.ErrNotExist, ""},
		"no key":    {func(o *Options) error { o.Key = ""; return nil }, nil, "go together"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := openNode(clock, func(o *Options) { o.Dir = t.TempDir() },
				authority.issue(t, t.TempDir(), "a.example.org", clock.now().Add(days)), func(o *Options) { must(t, c.prep(o)) })
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Error(err)
			}
		})
	}
}
