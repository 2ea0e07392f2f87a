package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"
)

// TestCodes: code → error → code, for every code there is, bare and from a peer.
func TestCodes(t *testing.T) {
	seen := map[error]Code{}
	for code := CodeDone; code <= CodeMTU; code++ {
		err := code.Err()
		if err == errUnknownCode {
			t.Fatalf("code %d has no error", code)
		}
		if other, ok := seen[err]; ok {
			t.Errorf("codes %d and %d have one error", other, code)
		}
		seen[err] = code
		if got := CodeOf(fmt.Errorf("wrapped: %w", err)); got != code {
			t.Errorf("code %d comes back as %d", code, got)
		}
		remote := fmt.Errorf("wrapped: %w", &RemoteError{Code: code, Text: "text"})
		if got := CodeOf(remote); got != code {
			t.Errorf("code %d of a peer comes back as %d", code, got)
		}
		if !errors.Is(remote, err) {
			t.Errorf("%v is not %v", remote, err)
		}
	}
	if got := CodeOf(&RemoteError{Code: 999}); got != 999 {
		t.Errorf("code 999 comes back as %d", got)
	}
	if (CodeMTU + 1).Err() != errUnknownCode {
		t.Error("there is a code that is not tried here")
	}
	for err, want := range map[error]Code{
		errors.New("other"): CodeState, syscall.ENOSPC: CodeNoSpace, syscall.EIO: CodeDevice, ErrClosed: CodeStopped,
		context.Canceled: CodeStopped, ErrCodec: CodeIntegrity, ErrNotBlkmirror: CodeProtocol,
	} {
		if got := CodeOf(fmt.Errorf("wrapped: %w", err)); got != want {
			t.Errorf("CodeOf(%v) = %d, want %d", err, got, want)
		}
	}
}

func TestClassify(t *testing.T) {
	op := func(what string, errno syscall.Errno) error {
		return &net.OpError{Op: what, Net: "tcp", Err: os.NewSyscallError(what, errno)}
	}
	cases := []struct {
		err  error
		want Class
	}{
		{nil, ""},
		{op("read", syscall.ECONNRESET), ClassReset}, {op("write", syscall.EPIPE), ClassReset}, {io.EOF, ClassReset},
		{io.ErrUnexpectedEOF, ClassReset}, {ErrReset, ClassReset}, {op("read", syscall.ENOTCONN), ClassReset},
		{op("read", syscall.ETIMEDOUT), ClassTimeout}, {context.DeadlineExceeded, ClassTimeout},
		{os.ErrDeadlineExceeded, ClassTimeout}, {ErrSilent, ClassTimeout}, {&RemoteError{Code: CodeSilent}, ClassTimeout}, {ErrHandshakeTimeout, ClassTimeout},
		{op("dial", syscall.ECONNREFUSED), ClassRefused},
		{op("dial", syscall.EHOSTUNREACH), ClassUnreachable}, {op("dial", syscall.ENETUNREACH), ClassUnreachable},
		{op("dial", syscall.EACCES), ClassUnreachable},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", IsTimeout: true}}, ClassDNS},
		{tls.AlertError(40), ClassTLS}, {&net.OpError{Op: "remote error", Err: tls.AlertError(40)}, ClassTLS},
		{&net.OpError{Op: "remote error", Err: foreignAlert(40)}, ClassTLS}, {ErrTLS, ClassTLS},
		{&net.OpError{Op: "local error", Err: foreignAlert(20)}, ClassTLS},
		{&net.OpError{Op: "remote error", Err: errors.New("none of a number")}, ClassTLS},
		{tls.AlertError(42), ClassAuth}, {&net.OpError{Op: "remote error", Err: tls.AlertError(48)}, ClassAuth},
		{&net.OpError{Op: "remote error", Err: foreignAlert(116)}, ClassAuth},
		{ErrAuth, ClassAuth}, {ErrNotLoopback, ClassAuth}, {&RemoteError{Code: CodeAuth}, ClassAuth},
		{ErrVersion, ClassVersion}, {&RemoteError{Code: CodeVersion}, ClassVersion},
		{op("write", syscall.EMSGSIZE), ClassMTU}, {&RemoteError{Code: CodeMTU}, ClassMTU},
		{fmt.Errorf("%w: %w", ErrBlackHole, ErrSilent), ClassMTU}, {fmt.Errorf("%w: %w", ErrBlackHole, io.EOF), ClassMTU},
		{ErrCorrupt, ClassIntegrity}, {ErrCodec, ClassIntegrity}, {&RemoteError{Code: CodeIntegrity}, ClassIntegrity},
		{ErrIntegrity, ClassIntegrity}, {&RemoteError{Code: CodeDamaged}, ClassIntegrity},
		{ErrProtocol, ClassProtocol}, {ErrNotBlkmirror, ClassProtocol}, {&RemoteError{Code: CodeProtocol}, ClassProtocol},
		{&RemoteError{Code: CodeStopped}, ClassPeerStopped}, {&RemoteError{Code: CodeDevice}, ClassPeerStopped},
		{&RemoteError{Code: 999}, ClassPeerStopped},
		{&RemoteError{Code: CodeHistory}, ClassRefused}, {&RemoteError{Code: CodeOlder}, ClassRefused}, {&RemoteError{Code: CodeBusy}, ClassRefused},
		{&RemoteError{Code: CodeReplaced}, ClassPeerStopped}, {&RemoteError{Code: CodePaused}, ClassPeerStopped},
		{ErrHistory, ClassLocalStop}, {ErrOlder, ClassLocalStop}, {ErrReplaced, ClassLocalStop}, {ErrPaused, ClassLocalStop},
		{ErrClosed, ClassLocalStop}, {context.Canceled, ClassLocalStop}, {net.ErrClosed, ClassLocalStop},
		{syscall.EIO, ClassLocalStop}, {errors.New("anything"), ClassLocalStop},
	}
	known := map[Class]bool{"": true}
	for _, c := range Classes {
		known[c] = false
	}
	for _, c := range cases {
		err := c.err
		if err != nil {
			err = fmt.Errorf("wrapped: %w", err)
		}
		if got := Classify(err); got != c.want {
			t.Errorf("Classify(%v) = %q, want %q", err, got, c.want)
		}
		known[c.want] = true
	}
	for class, tried := range known {
		if !tried {
			t.Errorf("no case of class %q", class)
		}
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                        "plain",
		"two\nlines\tand\x1b[31m":      "two lines and [31m",
		"bad\xffbyte":                  "bad?byte",
		strings.Repeat("x", MaxText):   strings.Repeat("x", MaxText),
		strings.Repeat("x", MaxText+1): strings.Repeat("x", MaxText-3) + "...",
	} {
		if got := CleanText(in); got != want {
			t.Errorf("CleanText(%q) = %q, want %q", in, got, want)
		}
	}
	if got := CleanText(strings.Repeat("€", MaxText)); !utf8.ValidString(got) || checkString("text", got, MaxText) != nil {
		t.Errorf("cut within a character: %q", got)
	}
}

// foreignAlert stands for the type that crypto/tls does not export.
type foreignAlert uint8

func (foreignAlert) Error() string { return "an alert" }
