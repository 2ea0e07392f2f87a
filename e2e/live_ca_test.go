package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority is a CA as somebody may run one.
type authority struct {
	t           testing.TB
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	serial      int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, key: newECKey(t), serial: 1}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err == nil {
		a.certificate, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newECKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue puts a certificate for the host, its key, and the CA's certificate into the folder, each file replaced whole.
func (a *authority) issue(dir, host string, until time.Time) {
	a.t.Helper()
	key := newECKey(a.t)
	a.serial++
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(a.serial), DNSNames: []string{host},
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: until}, a.certificate, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{"cert.pem", "CERTIFICATE", der}, {"key.pem", "PRIVATE KEY", keyDER}, {"ca.pem", "CERTIFICATE", a.certificate.Raw}} {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			a.t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			a.t.Fatal(err)
		}
	}
}

// caPair is a pair whose nodes show certificates of one CA, west.example and east.example, and trust each other by these
// names. tls is where a node's files are.
func caPair(t testing.TB) (p *livePair, ca *authority, tls map[*node]string) {
	t.Helper()
	p = newKeyedPair(t, 16*mib)
	ca = newAuthority(t)
	tls = map[*node]string{}
	for n, host := range map[*node]string{p.primary: "west.example", p.mirror: "east.example"} {
		tls[n] = n.state + "-tls"
		if err := os.Mkdir(tls[n], 0o700); err != nil {
			t.Fatal(err)
		}
		ca.issue(tls[n], host, nextYear())
		n.configured("tls_cert = \"" + tls[n] + "/cert.pem\"\ntls_key = \"" + tls[n] + "/key.pem\"\ntls_ca = \"" + tls[n] + "/ca.pem\"\n")
	}
	keys(t, p.mirror.state, "trust", "west", "dns:west.example", "--volume", "v", "--as", "primary").ok(t)
	keys(t, p.primary.state, "trust", "east", "dns:EAST.example", "--volume", "v", "--as", "mirror").ok(t)
	p.mirrorUp()
	p.primary.up()
	p.cut()
	return p, ca, tls
}

func nextYear() time.Time { return time.Now().AddDate(1, 0, 0) }

// said waits until a daemon has logged a text.
func (n *node) said(text string) {
	n.t.Helper()
	until(n.t, "the log to say "+text, func() bool { return strings.Contains(n.err.String(), text) })
}

// Nodes of an existing CA replicate; a certificate that is replaced is taken up without a disconnect, garbage is not.
func TestKeysCA(t *testing.T) {
	t.Parallel()
	p, ca, tls := caPair(t)
	if m := p.primary.peer(); m.Peer != "east" || m.Key != "east.example" || m.DaysLeft == nil || *m.DaysLeft < 364 || *m.DaysLeft > 367 {
		t.Errorf("the primary sees %q by %q, %v days left", m.Peer, m.Key, m.DaysLeft)
	}
	// What the CA replaces is in use with the next connection.
	ca.issue(tls[p.primary], "west.example", time.Now().AddDate(0, 0, 100))
	until(t, "the other certificate to be taken up", func() bool { return *p.primary.peer().DaysLeft < 101 })
	cert := filepath.Join(tls[p.mirror], "cert.pem")
	good, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, []byte("garbage"))
	p.mirror.said("those in memory go on to count")
	until(t, "the garbage to be told by status", func() bool {
		return strings.Contains(p.mirror.ask("status").ok(t).stdout, "warning: the TLS files on disk")
	})
	if r := p.mirror.ask("status", "--check"); r.code != 7 || !strings.Contains(r.stdout, "keys: the TLS files on disk") {
		t.Errorf("status --check: %d, %s", r.code, r.stdout)
	}
	p.write(t, mib, "beside garbage")
	p.cut()
	if m := p.primary.peer(); m.Reconnects != 0 || m.Disconnect != nil {
		t.Errorf("disconnected: %d times, %+v", m.Reconnects, m.Disconnect)
	}
	p.link.cut() // both shake hands again: by the new certificate there, by the one in memory here
	p.write(t, 2*mib, "over a new connection")
	p.cut()
	if days := p.mirror.volume().Primary.DaysLeft; days == nil || *days > 101 {
		t.Errorf("the mirror counts %v days", days)
	}
	write(t, cert, good)
	until(t, "the file to be mended", func() bool { return p.mirror.ask("status", "--check").code == 0 })
	p.same()
}

// A certificate that is over, of another CA, or of another name, is refused with auth, and the right one let in again.
func TestKeysCARefused(t *testing.T) {
	t.Parallel()
	p, ca, tls := caPair(t)
	foreign := newAuthority(t)
	refused := func(what, log string, do func()) {
		t.Helper()
		do()
		p.write(t, mib, "tracked: "+what)
		until(t, what+" to be refused", func() bool {
			m := p.primary.peer()
			if m.State == "connected" {
				p.link.cut() // again and again, until the daemon has taken the file up
			}
			return m.State == "refused" && m.Disconnect != nil && m.Disconnect.Class == "auth"
		})
		p.mirror.said(log)
		ca.issue(tls[p.primary], "west.example", nextYear())
		p.cut()
		p.same()
	}
	west := tls[p.primary]
	refused("a certificate that is over", "expired", func() { ca.issue(west, "west.example", time.Now().Add(-time.Hour)) })
	refused("another name", "north.example", func() { ca.issue(west, "north.example", nextYear()) })
	refused("another CA", "unknown authority", func() {
		foreign.issue(west, "west.example", nextYear())
		if err := os.WriteFile(filepath.Join(west, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.certificate.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	})
}

// What ends soon is told while everything works: in status, to a monitor, in the log.
func TestKeysEndSoon(t *testing.T) {
	t.Parallel()
	p := startKeyedPair(t, 16*mib)
	if m := p.primary.peer(); m.DaysLeft != nil {
		t.Errorf("%v days are left of what has no end", *m.DaysLeft)
	}
	p.primary.ask("status", "--check").ok(t)
	day := time.Now().UTC().AddDate(0, 0, 12).Format(time.DateOnly)
	keys(t, p.primary.state, "trust", "east", idOf(t, p.mirror.state), "--volume", "v", "--as", "mirror", "--until", day).ok(t)
	const text = "the right of peer east to volume v as mirror ends in 12 days"
	p.primary.said(text)
	if m := p.primary.peer(); m.DaysLeft == nil || *m.DaysLeft < 12 || *m.DaysLeft > 13 || m.State != "connected" {
		t.Errorf("%v days are left, it is %s", m.DaysLeft, m.State)
	}
	if st := p.primary.live(); len(st.Node.Warnings) != 1 || !strings.HasPrefix(st.Node.Warnings[0], text) {
		t.Errorf("warnings: %q", st.Node.Warnings)
	}
	if r := p.primary.ask("status", "--check"); r.code != 7 || !strings.Contains(r.stdout, "keys: "+text) {
		t.Errorf("status --check: %d, %s", r.code, r.stdout)
	}
	if n := strings.Count(p.primary.err.String(), text); n != 1 {
		t.Errorf("logged %d times", n)
	}
	if m := p.primary.peer(); m.Reconnects != 0 || m.Disconnect != nil {
		t.Errorf("disconnected: %d times, %+v", m.Reconnects, m.Disconnect)
	}
}
