package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

const (
	protocol   = "blkmirror/1"    // ALPN
	hintPrefix = "blkmirror-key/" // ALPN: a key by which the dialler would know the peer
	hintChars  = 28
	maxHints   = 32

	refusalWait = time.Second // for a peer to take the alert in, before the connection is closed
)

// Peer is who is at the other end of a connection.
type Peer struct {
	Name string
	Key  ID     // by which it proved itself; zero with a CA's certificate
	Own  ID     // the key that we showed; zero with a CA's certificate
	CA   string // DNS name, with a CA's certificate
}

// selfSigned wraps a key as TLS wants it. Nothing in it counts but the key.
func selfSigned(k ownKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: lastTime, // RFC 5280: no end
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.private.Public(), k.private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate of the key %s: %w", k.id, err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.private}, nil
}

// handshake is one attempt, from one side. Its methods are called in turn.
type handshake struct {
	node  *Node
	files *files
	ca    caFiles
	now   time.Time

	accepts bool // this side was dialled
	peer    Peer
	cert    span // with a CA's certificate
}

func (n *Node) newHandshake() *handshake {
	return &handshake{node: n, files: n.view(), ca: n.ca.files(), now: n.now()}
}

// config is what both sides have in common. Who the other one is is found out by verify, not by TLS: there
// may be no authority.
func (h *handshake) config(verify func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protocol},
		InsecureSkipVerify:     true,
		ClientAuth:             tls.RequestClientCert, // one that shows none is refused by verify
		VerifyConnection:       verify,
		SessionTicketsDisabled: true,
		// Small first records would help a browser to its first lines.
		DynamicRecordSizingDisabled: true,
		Time:                        h.node.options.Now,
	}
}

// Dial makes TLS of nc, within ctx, with a peer that may be `as` to the volume. On an error nc is closed; the
// error is of class auth or tls (wire.Classify), or the network's. That the peer does not trust us comes, of
// class auth, from the first Read.
func (n *Node) Dial(ctx context.Context, nc net.Conn, volume string, as As) (net.Conn, Peer, error) {
	h := n.newHandshake()
	config := h.config(func(s tls.ConnectionState) error {
		if err := h.identify(s); err != nil {
			return err
		}
		return h.files.trust.byName(h.peer.Name).may(h.now, volume, as)
	})
	config.NextProtos = append(config.NextProtos, h.hints(volume, as)...)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return h.show(), nil }
	c, p, err := h.run(ctx, nc, func(nc net.Conn) *tls.Conn { return tls.Client(nc, config) })
	if err != nil {
		return nil, Peer{}, err
	}
	return c, p, nil
}

// Accept makes TLS of nc, within ctx, with any peer that has a right to anything. On an error nc is closed;
// the error is of class auth or tls (wire.Classify), or the network's.
func (n *Node) Accept(ctx context.Context, nc net.Conn) (net.Conn, Peer, error) {
	h := n.newHandshake()
	h.accepts = true
	config := h.config(h.identify)
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return h.answer(hello.SupportedProtos), nil
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 0 && slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
			return nil, errors.New("the peer speaks TLS, but is no blkmirror")
		}
		return nil, nil
	}
	c, p, err := h.run(ctx, nc, func(nc net.Conn) *tls.Conn { return tls.Server(nc, config) })
	if err != nil {
		return nil, Peer{}, err
	}
	c.accepted() // the dialler finished the handshake when it had seen our key
	return c, p, nil
}

// hints are the keys of those peers by which a Dial would take them: of each peer the newest, then of each
// the second.
func (h *handshake) hints(volume string, as As) (protos []string) {
	for age := range maxPeerKeys {
		for _, p := range h.files.trust.Peers {
			i := len(p.Keys) - 1 - age
			if i >= 0 && p.Keys[i].live(h.now) && p.may(h.now, volume, as) == nil && len(protos) < maxHints {
				protos = append(protos, hint(p.Keys[i].ID))
			}
		}
	}
	return protos
}

func hint(id ID) string { return hintPrefix + id.chars()[:hintChars] }

// answer is the certificate of the newest own key that is among the hints, else the current one.
func (h *handshake) answer(protos []string) *tls.Certificate {
	for i, k := range slices.Backward(h.files.own) {
		if slices.Contains(protos, hint(k.id)) && h.files.own.good(i, h.now) {
			return h.use(i)
		}
	}
	return h.use(h.current())
}

const certified = -1 // in place of the index of an own key: the CA's certificate

// current is what strangers see.
func (h *handshake) current() int {
	if h.ca.certificate != nil {
		return certified
	}
	return h.files.own.current(h.now)
}

// show is what the dialler proves himself by: the newest own key that the peer is known to have, else the
// current one. Where that was declined, the others in turn, each second time: in between the first again, as
// a person over there may have trusted it meanwhile.
func (h *handshake) show() *tls.Certificate {
	n := h.node
	n.mu.Lock()
	defer n.mu.Unlock()
	var row []int
	add := func(i int) {
		if !slices.Contains(row, i) && (i == certified || h.files.own.good(i, h.now)) {
			row = append(row, i)
		}
	}
	if i := h.files.own.index(n.knowsLocked(h.peer.Name)); i >= 0 {
		add(i)
	}
	add(h.current())
	for i := h.files.own.current(h.now); i >= 0; i-- {
		add(i)
	}
	tries := n.declined[h.peer.Name]
	if tries%2 == 0 || len(row) == 1 {
		return h.use(row[0])
	}
	return h.use(row[1+tries/2%(len(row)-1)])
}

func (h *handshake) id(i int) ID {
	if i == certified {
		return ID{}
	}
	return h.files.own[i].id
}

func (h *handshake) use(i int) *tls.Certificate {
	h.peer.Own = h.id(i)
	if i == certified {
		return h.ca.certificate
	}
	return &h.files.certificates[i]
}

// identify finds out who showed these certificates.
func (h *handshake) identify(s tls.ConnectionState) error {
	if s.NegotiatedProtocol != protocol {
		return errors.New("the peer speaks TLS, but is no blkmirror")
	}
	if len(s.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the peer shows no key", wire.ErrAuth)
	}
	leaf := s.PeerCertificates[0]
	if public, ok := leaf.PublicKey.(ed25519.PublicKey); ok {
		p, err := h.files.trust.identify(h.now, ID(public))
		if err == nil {
			h.peer.Name, h.peer.Key = p.Name, ID(public)
			return nil
		}
		if h.ca.pool == nil || bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
			return err
		}
	}
	if err := h.ca.verify(h.now, s.PeerCertificates); err != nil {
		return err
	}
	for _, name := range leaf.DNSNames {
		name = strings.ToLower(name)
		if p := h.files.trust.byHost(name); p != nil {
			h.peer.Name, h.peer.CA, h.cert = p.Name, name, span{leaf.NotBefore, leaf.NotAfter}
			return p.may(h.now, "", 0)
		}
	}
	return fmt.Errorf("%w: nobody said so of a certificate for %q", wire.ErrAuth, leaf.DNSNames)
}

// run does the handshake.
func (h *handshake) run(ctx context.Context, nc net.Conn, layer func(net.Conn) *tls.Conn) (*conn, Peer, error) {
	_, segments := nc.(*net.TCPConn)
	low := &gather{Conn: nc, shaking: segments}
	c := &conn{Conn: layer(low), low: low, node: h.node, peer: h.peer}
	if err := wire.Handshake(nc, func() error { return c.HandshakeContext(ctx) }); err != nil {
		record, alien := errors.AsType[tls.RecordHeaderError](err)
		err = &strange{explain(err)}
		if errors.Is(err, wire.ErrAuth) || h.accepts && alien && wire.Plain(record.RecordHeader[:]) && refusePlain(ctx, nc) {
			linger(ctx, nc)
		}
		nc.Close()
		return nil, Peer{}, err
	}
	low.shook()
	c.peer = h.peer
	h.node.noteCertificate(h.peer.Name, h.cert)
	return c, h.peer, nil
}

// refusePlain tells a blkmirror without TLS, which knows no alerts, why there will be no session.
func refusePlain(ctx context.Context, nc net.Conn) bool {
	if ctx.Err() != nil || nc.SetWriteDeadline(time.Now().Add(refusalWait)) != nil {
		return false
	}
	_, err := nc.Write(wire.PlainRefusal())
	return err == nil
}

// linger gives the peer a moment to read the alert that tells why: closing with bytes unread would reset the
// connection, and destroy the alert on its way.
func linger(ctx context.Context, nc net.Conn) {
	half, ok := nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	until := time.Now().Add(refusalWait)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	if nc.SetReadDeadline(until) == nil {
		stop := context.AfterFunc(ctx, func() { nc.Close() })
		defer stop()
		io.CopyN(io.Discard, nc, 1<<16)
	}
}

// strange is what came of a handshake. Certificates, names and offers of somebody who has proven nothing may be part of its
// text, which is on one line, and of a bounded length: it goes to logs and terminals.
type strange struct{ error }

const maxStrange = 400

func (e *strange) Error() string {
	text := wire.CleanText(e.error.Error())
	if len(text) <= maxStrange {
		return text
	}
	return strings.ToValidUTF8(text[:maxStrange], "") + " ..."
}

func (e *strange) Unwrap() error { return e.error }

// explain makes every error of a handshake one of class auth or tls, or the network's.
func explain(err error) error {
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("%w: %s: %w", wire.ErrTLS, plain(record.RecordHeader[:]), err)
	}
	switch {
	case errors.Is(err, wire.ErrAuth), errors.Is(err, wire.ErrBlackHole):
		return err
	case wire.Classify(err) == wire.ClassAuth:
		return fmt.Errorf("%w: the peer does not trust the key of this node: %w", wire.ErrAuth, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", wire.ErrHandshakeTimeout, err)
	case errors.Is(err, context.Canceled), wire.Classify(err) == wire.ClassTLS:
		return err
	case ofNetwork(err):
		return err
	}
	return fmt.Errorf("%w: %w", wire.ErrTLS, err)
}

func ofNetwork(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Op != "remote error" && op.Op != "local error"
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, os.ErrDeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// plain names what the peer speaks, by the first five bytes of a record that is none.
func plain(head []byte) string {
	begins := func(text string) bool { return bytes.HasPrefix(head, []byte(text)) }
	switch {
	case head[0] >= 20 && head[0] <= 24 && head[1] == 3:
		return "the peer sent a record of TLS in a place where none can be"
	case wire.Plain(head):
		return "the peer speaks plain text: it is a blkmirror that was started with --insecure"
	case slices.ContainsFunc([]string{"GET ", "HEAD ", "POST ", "PUT ", "HTTP/", "OPTIO", "CONNE", "DELET"}, begins):
		return fmt.Sprintf("the peer speaks plain HTTP: %q", head)
	}
	return fmt.Sprintf("the peer speaks plain text: %q", head)
}
