package campaign

import (
	"bytes"
	"io"
	"net"
	"slices"
	"testing"

	"github.com/blkmirror/blkmirror/campaign/daemon"
)

// The fault points follow the product's source, and only the places of the list use them.
func TestPoints(t *testing.T) {
	root, err := daemon.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := pointsOf(root)
	if err != nil {
		t.Fatal(err)
	}
	if files[faultPoint] == "" || len(files) < 4 {
		t.Errorf("%d files", len(files))
	}
}

func TestPointsOutOfPlace(t *testing.T) {
	for _, text := range []string{"", "--- old\nx\n--- new\ny\n--- end\n", "file: a\n--- old\nx\n", "file: a\n--- new\n"} {
		if edits, err := parsePoints(text); err == nil {
			t.Errorf("%q: %+v", text, edits)
		}
	}
}

func TestNames(t *testing.T) {
	names := Names()
	if sorted := slices.Compact(slices.Sorted(slices.Values(names))); len(sorted) != len(names) || len(names) < 10 {
		t.Errorf("%d names, %d of them different", len(names), len(sorted))
	}
}

// A frame passes as it came, or with the one bit turned over and right checksums.
func TestProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := newProxy()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	p.to(l.Addr().String())
	f := &frame{meta: make([]byte, 72), payload: []byte("payload")}
	copy(f.header[:], "BLKM\x01\x00\x07\x00\x48\x00\x00\x00\x07\x00\x00\x00")
	f.seal()
	for _, change := range []bool{false, true} {
		p.arm(nil)
		if change {
			p.arm(func(_ bool, f *frame) bool {
				_, hit := flipHash(nil, 5, true, f, anywhere)
				return hit
			})
		}
		nc, err := net.Dial("tcp", p.addr())
		if err != nil {
			t.Fatal(err)
		}
		if err := f.writeTo(nc); err != nil {
			t.Fatal(err)
		}
		nc.(*net.TCPConn).CloseWrite()
		got, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		there, err := readFrame(got)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readFrame(got); err != io.EOF {
			t.Errorf("the end of the stream is %v", err)
		}
		got.Close()
		nc.Close()
		if same := bytes.Equal(there.meta, f.meta) && there.header == f.header; same == change {
			t.Errorf("changed %v: %x %x", change, there.header, there.meta)
		}
		again := *there
		if again.seal(); again.header != there.header {
			t.Errorf("wrong checksums: %x", there.header)
		}
	}
}
