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

// caPair is two nodes with certificates of one authority, for a.example.org and b.example.org.
type caPair struct {
	clock     *clock
	authority *authority
	dir       string    // of the files of a
	end       time.Time // of the certificate of a; that of b ends a day later
	a, b      *testNode
}

func newCAPair(t *testing.T) *caPair {
	t.Helper()
	p := &caPair{clock: newClock(), dir: t.TempDir()}
	p.authority, p.end = newAuthority(t, p.clock), p.clock.now().Add(60*days)
	p.a = newNode(t, p.clock, p.authority.issue(t, p.dir, "a.example.org", p.end))
	p.b = newNode(t, p.clock, p.authority.issue(t, t.TempDir(), "b.example.org", p.end.Add(days)))
	return p
}

// try has a dial b, which has to end the same way on both sides; "" is well.
func (p *caPair) try(t *testing.T, what string, want wire.Class) (dialler, acceptor met) {
	t.Helper()
	if dialler, acceptor = meet(t, p.a, p.b, "db", AsMirror); dialler.err != nil { // the second try is by the other key
		dialler, acceptor = meet(t, p.a, p.b, "db", AsMirror)
	}
	if got := classes(dialler, acceptor); got != [2]wire.Class{want, want} {
		t.Fatalf("%s: dialler %v, acceptor %v", what, dialler.err, acceptor.err)
	}
	return dialler, acceptor
}

// TestCA: peers by name, and their certificates' ends.
func TestCA(t *testing.T) {
	p := newCAPair(t)
	a, b, clock := p.a, p.b, p.clock
	p.try(t, "nobody is trusted", wire.ClassAuth)
	must(t, a.Trust("b", "dns:b.example.org", nil))
	p.try(t, "one is trusted", wire.ClassAuth)
	must(t, b.Trust("a", "dns:A.example.org", []Grant{{As: AsPrimary}}))
	dialler, acceptor := p.try(t, "both are trusted", "")
	if dialler.peer != (Peer{Name: "b", CA: "b.example.org"}) || acceptor.peer != (Peer{Name: "a", CA: "a.example.org"}) {
		t.Errorf("dialler met %+v, acceptor %+v", dialler.peer, acceptor.peer)
	}
	a.Tick()
	if q := a.Peers()[0]; !q.Expires.Equal(p.end) || !a.view().trust.Peers[0].CertificateUntil.Equal(p.end.Add(days)) {
		t.Errorf("%+v", q)
	}
	if a.Rollover(dialler.peer).Next() != nil {
		t.Error("a key is told that was not shown")
	}
	clock.pass(50 * days)
	if len(a.Warnings()) != 1 || len(a.Peers()[0].Warnings) != 1 {
		t.Errorf("own warnings %q, of the peer %q", a.Warnings(), a.Peers()[0].Warnings)
	}
	clock.pass(10*days + time.Second)
	p.try(t, "a's certificate ended", wire.ClassAuth)
	p.authority.issue(t, p.dir, "a.example.org", p.end.Add(1000*days))
	if !a.Tick() {
		t.Error("the new certificate is no change")
	}
	_, acceptor = p.try(t, "a has a new one", "")
	must(t, b.Revoke("a"))
	if wire.Classify(b.May(acceptor.peer, "db", AsPrimary)) != wire.ClassAuth {
		t.Error("a revoked peer may go on")
	}
	p.try(t, "revoked", wire.ClassAuth)
}

// TestCAReplaced: files that change while all runs, to what is no good and back.
func TestCAReplaced(t *testing.T) {
	p := newCAPair(t)
	a, until := p.a, p.end.Add(days)
	must(t, a.Trust("b", "dns:b.example.org", nil))
	must(t, p.b.Trust("a", "dns:a.example.org", []Grant{{As: AsPrimary}}))
	p.try(t, "both are trusted", "")

	right, err := os.ReadFile(a.options.Cert)
	must(t, err)
	must(t, os.WriteFile(a.options.Cert, []byte("garbage"), 0o600))
	for range 3 {
		a.Tick()
	}
	if !a.logged("go on to count") {
		t.Error("garbage is not told")
	}
	p.try(t, "there is garbage on disk", "")
	must(t, os.WriteFile(a.options.Cert, right, 0o600))
	if a.Tick(); len(a.Warnings()) != 0 {
		t.Errorf("mended: %q", a.Warnings())
	}

	newAuthority(t, p.clock).issue(t, p.dir, "a.example.org", until)
	a.Tick()
	p.try(t, "another CA", wire.ClassAuth)
	p.authority.issue(t, p.dir, "c.example.org", until)
	a.Tick()
	p.try(t, "another name", wire.ClassAuth)
	p.authority.issue(t, p.dir, "\n\x1b[2J"+strings.Repeat("long.", 1000), until)
	a.Tick()
	if _, acceptor := p.try(t, "a name for a log", wire.ClassAuth); len(acceptor.err.Error()) > maxStrange+100 || strings.ContainsAny(acceptor.err.Error(), "\n\x1b") {
		t.Errorf("%.1000q", acceptor.err.Error())
	}
	p.authority.issue(t, p.dir, "a.example.org", until)
	a.Tick()
	p.try(t, "the right one again", "")
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
