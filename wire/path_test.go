package wire

import "testing"

// TestPath: the kernel tells of TCP connections, also below TLS, and of no others.
func TestPath(t *testing.T) {
	for _, network := range networks {
		a, _ := pair(t, network, ConnOptions{})
		a.Shallow()
		p, ok := a.Path()
		if ok != (network == "tcp" || network == "tls") {
			t.Errorf("%s: %+v, %v", network, p, ok)
		}
		if ok && (p.MTU <= 0 || p.SegmentSent <= 0 || p.Congestion == "") {
			t.Errorf("path over loopback: %+v", p)
		}
	}
}
