package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"slices"
	"syscall"
)

// Before and while a connection comes about.
var (
	ErrNotLoopback      = errors.New("plain text is allowed on loopback only")
	ErrNotBlkmirror     = errors.New("the peer is not blkmirror")
	ErrVersion          = errors.New("no common protocol version")
	ErrHandshakeTimeout = errors.New("the handshake took too long")
	ErrAuth             = errors.New("not trusted")
	ErrTLS              = errors.New("no TLS connection comes about")
)

// While it stands.
var (
	ErrProtocol = errors.New("protocol broken")
	ErrCorrupt  = errors.New("a frame arrived damaged")            // its header or meta has another checksum than it says
	ErrCodec    = errors.New("payload cannot be unpacked")         // of one Data: answered by a Nak
	ErrReset    = errors.New("connection lost without a farewell") // the peer went without Refused, Halt or Bye
	ErrSilent   = errors.New("the peer shows no life")
	ErrClosed   = errors.New("connection closed on this side")
	// Also where it does not come about (blackhole.go).
	ErrBlackHole = errors.New("large packets vanish on the way, small ones pass")
)

// What a peer or this node gives as the reason in Refused, Halt and Bye; with ErrVersion, ErrProtocol,
// ErrCorrupt, ErrSilent, ErrAuth and ErrTLS from above there is one for every Code.
var (
	ErrDone        = errors.New("finished")
	ErrIntegrity   = errors.New("checksum mismatch")
	ErrStopped     = errors.New("is being stopped")
	ErrDevice      = errors.New("the device or state directory failed")
	ErrNoSpace     = errors.New("no space left")
	ErrUnknown     = errors.New("no such volume")
	ErrBusy        = errors.New("the volume is in use")
	ErrMounted     = errors.New("the device is mounted")
	ErrSmaller     = errors.New("the target is smaller than the source")
	ErrLarger      = errors.New("the target is larger than the source")
	ErrSame        = errors.New("source and target are the same device")
	ErrState       = errors.New("refused by state")
	ErrHistory     = errors.New("the mirror holds another volume or history")
	ErrOlder       = errors.New("the primary's generation is older than one that the mirror has seen")
	ErrReplaced    = errors.New("a newer connection took over")
	ErrPaused      = errors.New("the volume is paused")
	ErrReadOnly    = errors.New("the mirror is read-only")
	errUnknownCode = errors.New("a reason that this version does not know")
)

// reasons pairs codes with sentinels, one to one.
var reasons = [...]struct {
	code Code
	err  error
}{
	{CodeDone, ErrDone},
	{CodeStopped, ErrStopped},
	{CodeVersion, ErrVersion},
	{CodeProtocol, ErrProtocol},
	{CodeIntegrity, ErrIntegrity},
	{CodeDamaged, ErrCorrupt},
	{CodeDevice, ErrDevice},
	{CodeNoSpace, ErrNoSpace},
	{CodeUnknown, ErrUnknown},
	{CodeBusy, ErrBusy},
	{CodeMounted, ErrMounted},
	{CodeSmaller, ErrSmaller},
	{CodeLarger, ErrLarger},
	{CodeSame, ErrSame},
	{CodeState, ErrState},
	{CodeAuth, ErrAuth},
	{CodeHistory, ErrHistory},
	{CodeOlder, ErrOlder},
	{CodeReplaced, ErrReplaced},
	{CodePaused, ErrPaused},
	{CodeReadOnly, ErrReadOnly},
	{CodeSilent, ErrSilent},
	{CodeTLS, ErrTLS},
	{CodeMTU, ErrBlackHole},
}

// Err returns the sentinel of the code, which wraps nothing.
func (c Code) Err() error {
	for _, r := range reasons {
		if r.code == c {
			return r.err
		}
	}
	return errUnknownCode
}

func (c Code) String() string { return c.Err().Error() }

// CodeOf returns the code under which err is told to a peer: that of the sentinel that err wraps, else
// what its errno or context says, else CodeState.
func CodeOf(err error) Code {
	var remote *RemoteError
	if errors.As(err, &remote) {
		return remote.Code
	}
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.code
		}
	}
	switch {
	case errors.Is(err, ErrNotBlkmirror):
		return CodeProtocol
	case errors.Is(err, ErrCodec):
		return CodeIntegrity
	case errors.Is(err, context.Canceled), errors.Is(err, ErrClosed):
		return CodeStopped
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return CodeNoSpace
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EROFS):
		return CodeDevice
	}
	return CodeState
}

// RemoteError is the reason that the peer gave in Refused, Halt or Bye. It wraps the sentinel of its
// code: errors.Is(err, ErrBusy) holds for a volume that is busy over there.
type RemoteError struct {
	Code Code
	Text string
}

func (e *RemoteError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("the peer says: %v", e.Code)
	}
	return "the peer says: " + e.Text
}

func (e *RemoteError) Unwrap() error { return e.Code.Err() }

// Class says why a connection ended or did not come about.
type Class string

const (
	ClassReset       Class = "reset"
	ClassTimeout     Class = "timeout"
	ClassRefused     Class = "refused"
	ClassUnreachable Class = "unreachable"
	ClassDNS         Class = "dns"
	ClassTLS         Class = "tls"
	ClassAuth        Class = "auth"
	ClassVersion     Class = "version"
	ClassMTU         Class = "mtu"
	ClassIntegrity   Class = "integrity"
	ClassProtocol    Class = "protocol"
	ClassPeerStopped Class = "peer-stopped"
	ClassLocalStop   Class = "local-stop"
)

// Classes are all there are, for counters that begin at 0.
var Classes = [...]Class{
	ClassReset, ClassTimeout, ClassRefused, ClassUnreachable, ClassDNS, ClassTLS, ClassAuth, ClassVersion,
	ClassMTU, ClassIntegrity, ClassProtocol, ClassPeerStopped, ClassLocalStop,
}

// classes are tried in order. What the peer said is settled before, by its code.
var classes = [...]struct {
	class Class
	errs  []error
}{
	{ClassVersion, []error{ErrVersion}},
	{ClassIntegrity, []error{ErrIntegrity, ErrCorrupt, ErrCodec, ErrReadOnly}},
	{ClassProtocol, []error{ErrProtocol, ErrNotBlkmirror}},
	{ClassAuth, []error{ErrAuth, ErrNotLoopback}},
	{ClassTLS, []error{ErrTLS}},
	{ClassMTU, []error{ErrBlackHole}}, // which also says what came of it
	{ClassTimeout, []error{ErrSilent, ErrHandshakeTimeout}},
	{ClassLocalStop, []error{ErrClosed, context.Canceled, net.ErrClosed}},
	{ClassReset, []error{ErrReset, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, io.EOF,
		io.ErrUnexpectedEOF, io.ErrClosedPipe}},
	{ClassRefused, []error{syscall.ECONNREFUSED}},
	{ClassUnreachable, []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN,
		syscall.EADDRNOTAVAIL}},
	{ClassMTU, []error{syscall.EMSGSIZE}},
	{ClassTimeout, []error{syscall.ETIMEDOUT, context.DeadlineExceeded, os.ErrDeadlineExceeded}},
}

// Classify says which class a disconnect has, by the errors that err wraps and never by their text. An
// error that is none of the network's (a disk's, say) ended the session from this side: local-stop. It
// returns "" for nil.
func Classify(err error) Class {
	if err == nil {
		return ""
	}
	var remote *RemoteError
	if errors.As(err, &remote) {
		return classOfCode(remote.Code)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return ClassDNS
	}
	for _, c := range classes {
		for _, e := range c.errs {
			if errors.Is(err, e) {
				return c.class
			}
		}
	}
	if alert, ok := alertOf(err); ok {
		if slices.Contains(authAlerts, alert) {
			return ClassAuth
		}
		return ClassTLS
	}
	if isTLS(err) {
		return ClassTLS
	}
	var op *net.OpError
	switch {
	case !errors.As(err, &op):
		return ClassLocalStop
	case op.Timeout():
		return ClassTimeout
	case op.Op == "dial": // EACCES and EPERM: a firewall of this machine
		return ClassUnreachable
	}
	return ClassReset
}

func classOfCode(code Code) Class {
	switch code {
	case CodeVersion:
		return ClassVersion
	case CodeProtocol:
		return ClassProtocol
	case CodeIntegrity, CodeDamaged, CodeReadOnly:
		return ClassIntegrity
	case CodeAuth:
		return ClassAuth
	case CodeSilent:
		return ClassTimeout
	case CodeTLS:
		return ClassTLS
	case CodeMTU:
		return ClassMTU
	case CodeUnknown, CodeBusy, CodeMounted, CodeSmaller, CodeLarger, CodeSame, CodeState, CodeHistory, CodeOlder:
		return ClassRefused
	}
	return ClassPeerStopped
}

// authAlerts are the alerts by which a peer says that it does not trust the key that it was shown.
var authAlerts = []tls.AlertError{
	42,  // bad_certificate
	43,  // unsupported_certificate
	44,  // certificate_revoked
	45,  // certificate_expired
	46,  // certificate_unknown
	48,  // unknown_ca
	49,  // access_denied
	116, // certificate_required
}

// alertOf finds the alert of TLS that the peer sent. crypto/tls has a type of its own for it, which it does
// not export, but for its number.
func alertOf(err error) (tls.AlertError, bool) {
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return alert, true
	}
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return 0, false
	}
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 {
		return 0, false
	}
	return tls.AlertError(v.Uint()), true
}

func isTLS(err error) bool {
	var (
		record    tls.RecordHeaderError
		verify    *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		host      x509.HostnameError
		op        *net.OpError
	)
	return errors.As(err, &record) || errors.As(err, &verify) || errors.As(err, &authority) ||
		errors.As(err, &invalid) || errors.As(err, &host) ||
		errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error")
}
