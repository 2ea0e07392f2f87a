package nbd

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

// nowhere takes everything and costs nothing, so that what is left is the server.
type nowhere struct{ *disk }

func (nowhere) ReadAt([]byte, int64) error  { return nil }
func (nowhere) WriteAt([]byte, int64) error { return nil }

// BenchmarkServer has a client keep depth requests in flight, on a volume that costs nothing and on an
// image with direct I/O. The client is part of what is measured.
func BenchmarkServer(b *testing.B) {
	const size = 256 << 20
	dir, err := os.MkdirTemp("/var/tmp", "nbd")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, noise(1, size), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := blockdev.Open(path, blockdev.Options{Write: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	for name, backend := range map[string]Backend{
		"nowhere": nowhere{&disk{Device: devtest.NewMem(size, 4096, 1)}},
		"file":    &disk{Device: f},
	} {
		s := serve(b, Options{}, Export{Name: "vol", Backend: backend})
		for _, c := range []struct {
			command uint16
			length  uint32
			depth   int
		}{{cmdWrite, 4096, 1}, {cmdWrite, 4096, 32}, {cmdRead, 4096, 1}, {cmdRead, 4096, 32}, {cmdWrite, 1 << 20, 8}, {cmdRead, 1 << 20, 8}} {
			r := request{command: c.command, length: c.length}
			b.Run(fmt.Sprintf("%s/%s/%d/depth=%d", name, r.name(), c.length, c.depth), func(b *testing.B) {
				b.SetBytes(int64(c.length))
				b.ReportAllocs()
				keepInFlight(b, attach(b, s, "vol"), r, c.depth, size)
			})
		}
	}
}

// keepInFlight sends b.N requests at random offsets, and one more for each reply.
func keepInFlight(b *testing.B, c *client, r request, depth int, size int64) {
	rnd := rand.New(rand.NewPCG(1, 1))
	head, reply := make([]byte, requestSize), make([]byte, replySize)
	if r.command == cmdRead {
		reply = make([]byte, replySize+int(r.length))
	} else {
		head = make([]byte, requestSize+int(r.length))
	}
	send := func() {
		be.PutUint32(head, magicRequest)
		be.PutUint16(head[6:], r.command)
		be.PutUint64(head[16:], uint64(rnd.Int64N(size/int64(r.length)))*uint64(r.length))
		be.PutUint32(head[24:], r.length)
		if _, err := c.nc.Write(head); err != nil {
			b.Fatal(err)
		}
	}
	sent := 0
	for ; sent < min(depth, b.N); sent++ {
		send()
	}
	for range b.N {
		if _, err := io.ReadFull(c.nc, reply); err != nil || be.Uint32(reply[4:]) != 0 {
			b.Fatalf("reply %x, %v", reply[:replySize], err)
		}
		if sent < b.N {
			send()
			sent++
		}
	}
}
