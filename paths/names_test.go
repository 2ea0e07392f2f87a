package paths

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
)

// Go's resolver understands the name server, and learns of another address at once.
func TestNames(t *testing.T) {
	here := func(f func() error) error { return f() }
	n, err := newNames(t.TempDir(), netip.MustParseAddr("127.0.0.1"), here)
	if errors.Is(err, errNotHere) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", n.l.LocalAddr().String())
	}}
	for _, want := range []string{"127.0.0.1", "127.0.0.2"} {
		got, err := r.LookupNetIP(t.Context(), "ip", hostName)
		if err != nil || len(got) != 1 || got[0].Unmap() != netip.MustParseAddr(want) {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
		n.move(netip.MustParseAddr("127.0.0.2"))
	}
}

func TestAnswerNoQuestion(t *testing.T) {
	for _, q := range [][]byte{nil, make([]byte, 11), append(make([]byte, 12), 200), append(make([]byte, 12), 1, 'a', 0, 0)} {
		if b := answer(q, netip.MustParseAddr("127.0.0.1")); b != nil {
			t.Errorf("%x: %x", q, b)
		}
	}
}
