package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// Either side may ask the other for a block that is rotten at itself, by the hash that its own index has (Fetch,
// docs/PROTOCOL.md). What has that hash is that block, whatever else the peer's state is: so the one that answers looks
// at nothing but its device, and the one that asked checks nothing but the hash.

// fetching is the Fetch of one connection, in both directions.
type fetching struct {
	turn     chan struct{}    // holds one token while nothing is asked
	requests chan *wire.Fetch // of the peer, to be answered

	mu    sync.Mutex
	asked *wire.Fetch // not answered yet
	got   chan []byte // has room for the answer
}

func newFetching() *fetching {
	f := &fetching{turn: make(chan struct{}, 1), requests: make(chan *wire.Fetch, 1)}
	f.turn <- struct{}{}
	return f
}

// fetch asks for a block and waits for the answer; nil: the peer does not have it. Its error is that of ctx or of the
// session.
func (f *fetching) fetch(ctx context.Context, l *link, send func(wire.Message) error, m *wire.Fetch) ([]byte, error) {
	select {
	case <-f.turn:
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	got := make(chan []byte, 1)
	f.mu.Lock()
	f.asked, f.got = m, got
	f.mu.Unlock()
	if err := send(m); err != nil {
		return nil, err
	}
	select {
	case b := <-got:
		return b, nil
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	case <-ctx.Done(): // the answer gives the turn back
		return nil, context.Cause(ctx)
	}
}

// fetched takes an answer, in the link's reader.
func (f *fetching) fetched(conn Conn, m *wire.Fetched) error {
	f.mu.Lock()
	asked, got := f.asked, f.got
	f.asked = nil
	f.mu.Unlock()
	if asked == nil || m.Offset != asked.Offset || m.Length != asked.Length || m.Hash != asked.Hash {
		return protocolError("Fetched at %d+%d answers no Fetch", m.Offset, m.Length)
	}
	var b []byte
	if m.PayloadLength > 0 {
		var err error
		if b, err = pageBuffer(int(m.Length)); err != nil {
			return err
		}
		if err := conn.ReadPayload(b); err != nil {
			return err
		}
		if sum := wire.Sum(b); sum != m.Hash {
			return fmt.Errorf("%w: the block fetched at %d has %x and must have %x", errMismatch, m.Offset, sum[:6], m.Hash[:6])
		}
	}
	got <- b
	f.turn <- struct{}{}
	return nil
}

// wanted takes a request, in the link's reader.
func (f *fetching) wanted(g geometry, m *wire.Fetch) error {
	if m.Offset%g.blockSize != 0 || m.Offset >= g.size || int64(m.Length) != min(g.blockSize, g.size-m.Offset) {
		return protocolError("Fetch of %d+%d, which is no block", m.Offset, m.Length)
	}
	select {
	case f.requests <- m:
		return nil
	default:
		return protocolError("a Fetch before the one before is answered")
	}
}

// routineAnswer answers requests until the session ends. What cannot be read is not had.
func (f *fetching) routineAnswer(ctx context.Context, read func(b []byte, off int64) error, send func(wire.Message) error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-f.requests:
			b, err := pageBuffer(int(m.Length))
			if err != nil {
				return err
			}
			answer := &wire.Fetched{Offset: m.Offset, Length: m.Length, Hash: m.Hash}
			if read(b, m.Offset) == nil && wire.Sum(b) == m.Hash {
				answer.Payload = b
			}
			if err := send(answer); err != nil {
				return err
			}
		}
	}
}

// pageBuffer is a buffer for direct I/O that nobody gives back.
func pageBuffer(n int) ([]byte, error) {
	return blockdev.NewPool(int64(n)).Get(context.Background(), n)
}

// What rotten blocks held before they were replaced is kept for a person to look at, one file a block.
const (
	rotFolder  = "rot"     // in the volume's folder
	maxRotKept = 256 << 20 // bytes; then no more blocks are replaced until a person has made room
)

// keepRot makes the content of a rotten block durable, in the state directory.
func keepRot(dir string, b []byte, off int64, now time.Time) error {
	dir = filepath.Join(dir, rotFolder)
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return deviceError("keep rot", dir, err)
	}
	held, err := bytesIn(dir)
	if err != nil {
		return deviceError("keep rot", dir, err)
	}
	if held+int64(len(b)) > maxRotKept {
		return &Error{Kind: KindState, Op: "keep rot", On: dir, Err: fmt.Errorf("it holds %d bytes of what rotten blocks held", held),
			Next: "move the files away that are not needed any more, and try again"}
	}
	path := filepath.Join(dir, strconv.FormatInt(off, 10)+"-"+now.UTC().Format("20060102T150405.000000000Z"))
	if err := writeDurably(path, b); err != nil {
		return deviceError("keep rot", path, err)
	}
	return deviceOr("keep rot", dir, journal.OS.SyncDir(filepath.Dir(dir)))
}

func bytesIn(dir string) (n int64, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
	}
	return n, err
}
