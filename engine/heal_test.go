package engine

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// content is a part of an image.
func content(t *testing.T, path string, off, n int64) []byte {
	t.Helper()
	b := make([]byte, n)
	f, err := os.Open(path)
	if err == nil {
		_, err = f.ReadAt(b, off)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// keptRot is what a node has kept of rotten blocks.
func (n *liveNode) keptRot() (kept [][]byte) {
	n.t.Helper()
	dir := filepath.Join(n.state, "volumes", "v", rotFolder)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			n.t.Fatal(err)
		}
		kept = append(kept, b)
	}
	return kept
}

// A mirror heals what has rotted, where the primary has what was written, and keeps what the block held. Where the
// primary does not have it any more, it becomes read-only.
func TestScrubHealsMirror(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	m := p.mirrors[0]
	p.spoil(m.volume.Path, 3*scrubBlock+7)
	p.spoil(m.volume.Path, 40*scrubBlock+9)
	rotten := content(t, m.volume.Path, 3*scrubBlock, scrubBlock)
	if r := p.scrub(m); len(r.Extents) != 0 || !slices.Equal(r.Healed, blocksAt(3, 40)) {
		t.Fatalf("scrub %+v", r)
	}
	p.equal(0)
	kept := m.keptRot()
	if len(kept) != 2 || !slices.ContainsFunc(kept, func(b []byte) bool { return bytes.Equal(b, rotten) }) {
		t.Errorf("%d blocks are kept", len(kept))
	}
	if st := m.status(); st.State != "ok" || st.Primary.Mismatches.Mirror != 2 {
		t.Errorf("status %+v", st)
	}
	if r := p.scrub(m); len(r.Extents) != 0 || len(r.Healed) != 0 {
		t.Errorf("scrub after it %+v", r)
	}

	p.spoil(m.volume.Path, 5*scrubBlock)
	p.spoil(p.primary.volume.Path, 5*scrubBlock+1)
	if r := p.scrub(m); !slices.Equal(r.Extents, blocksAt(5)) || len(r.Healed) != 0 {
		t.Errorf("scrub of what nobody has %+v", r)
	}
	if st := m.status(); st.State != "read-only" || st.ReadOnly.Class != "rot" {
		t.Errorf("status %+v", st)
	}
}

// Rot of the primary's own disk is told apart from a mirror's by a verify, and healed by what a mirror has, if a person
// says so: where the mirror has what was written, and only where nobody has written since.
func TestRepairFromMirror(t *testing.T) {
	t.Parallel() // it waits most of the time
	p := newLivePair(t, 2, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	tick := time.Tick(200 * time.Millisecond)
	eventually(t, "the primary's index has it", func() bool { <-tick; return p.scrub(p.primary).CheckedBytes >= 4*mib })
	path := p.primary.volume.Path
	if r := p.repair(RepairOptions{From: "mirror", Mirror: "mirror1"}); !r.Nothing {
		t.Errorf("without rot %+v", r)
	}
	was := content(t, path, 0, 4*mib)
	for _, b := range []int64{3, 20, 40} {
		p.spoil(path, b*scrubBlock+77)
	}
	p.spoil(p.mirrors[0].volume.Path, 20*scrubBlock) // as rotten as ours
	p.spoil(p.mirrors[1].volume.Path, 20*scrubBlock+1)
	rotten := content(t, path, 3*scrubBlock, scrubBlock)

	results, err := Verify(t.Context(), p.primary.control(), "v", VerifyOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if !slices.Equal(r.Rot, blocksAt(3, 20, 40)) || !slices.Equal(r.Extents, blocksAt(20)) {
			t.Errorf("verify of mirror %d: %+v", i, r)
		}
	}
	if st := p.primary.status(); !slices.Equal(st.Rot, []int64{3, 20, 40}) {
		t.Errorf("status %+v", st.Rot)
	}
	if st := p.mirrors[1].status(); st.State != "read-only" || !slices.Equal(st.ReadOnly.Blocks, []int64{20}) {
		t.Errorf("a mirror is read-only for what is wrong there: %+v", st.ReadOnly)
	}

	dry, err := Repair(t.Context(), p.primary.control(), "v", RepairOptions{From: "mirror", DryRun: true}, nil)
	wantKind(t, err, KindIntegrity)
	if len(dry) != 2 || !slices.Equal(dry[0].Extents, blocksAt(3, 40)) || bytes.Equal(content(t, path, 0, 4*mib), was) {
		t.Errorf("dry run %+v", dry)
	}
	_, err = Repair(t.Context(), p.primary.control(), "v", RepairOptions{From: "mirror"}, nil)
	wantKind(t, err, KindIntegrity) // nobody has block 20
	now := content(t, path, 0, 4*mib)
	if !bytes.Equal(now[:20*scrubBlock], was[:20*scrubBlock]) || !bytes.Equal(now[21*scrubBlock:], was[21*scrubBlock:]) {
		t.Error("it is not what was written")
	}
	kept := p.primary.keptRot()
	if len(kept) != 2 || !slices.ContainsFunc(kept, func(b []byte) bool { return bytes.Equal(b, rotten) }) {
		t.Errorf("%d blocks are kept", len(kept))
	}
	if st := p.primary.status(); !slices.Equal(st.Rot, []int64{20}) {
		t.Errorf("status after it %+v", st.Rot)
	}
	_, err = Repair(t.Context(), p.primary.control(), "v", RepairOptions{}, nil)
	wantKind(t, err, KindState) // who is right?
	p.write(c, 20*scrubBlock, scrubBlock)
	both, err := Repair(t.Context(), p.primary.control(), "v", RepairOptions{}, nil)
	if err != nil || len(both) != 2 || both[0].Blocks != 1 || both[1].Blocks != 1 {
		t.Errorf("repair of the mirrors %+v, %v", both, err)
	}
	p.settle()
	p.equal(0)
	p.equal(1)
}

// Bad peers and bad requests.
func TestFetching(t *testing.T) {
	g := geometry{size: 5 * DefaultBlockSize / 2, blockSize: DefaultBlockSize}
	f := newFetching()
	for _, m := range []*wire.Fetch{
		{Offset: 4096, Length: DefaultBlockSize}, {Offset: 3 * DefaultBlockSize, Length: DefaultBlockSize},
		{Offset: 2 * DefaultBlockSize, Length: DefaultBlockSize}, {Offset: 0, Length: 4096},
	} {
		if err := f.wanted(g, m); !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	last := &wire.Fetch{Offset: 2 * DefaultBlockSize, Length: DefaultBlockSize / 2}
	if err := f.wanted(g, last); err != nil {
		t.Error(err)
	}
	if err := f.wanted(g, last); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("a second one: %v", err)
	}
	if err := f.fetched(nil, &wire.Fetched{Length: 4096}); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("an answer to nothing: %v", err)
	}
	conn := &payloadConn{payload: bytes.Repeat([]byte{7}, 4096)}
	ask := func(hash wire.Hash, answer *wire.Fetched) ([]byte, error) {
		l := newLink(t.Context(), conn, new(Progress))
		defer l.cancel(nil)
		return f.fetch(t.Context(), l, func(wire.Message) error {
			err := f.fetched(conn, answer)
			if err != nil {
				l.cancel(err)
			}
			return err
		}, &wire.Fetch{Length: 4096, Hash: hash})
	}
	right := wire.Sum(conn.payload)
	if b, err := ask(right, &wire.Fetched{Length: 4096, Hash: right, PayloadLength: 4096}); err != nil || !bytes.Equal(b, conn.payload) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if b, err := ask(right, &wire.Fetched{Length: 4096, Hash: right}); err != nil || b != nil {
		t.Errorf("not there: %d bytes, %v", len(b), err)
	}
	if b, err := ask(wire.Hash{1}, &wire.Fetched{Length: 4096, Hash: wire.Hash{1}, PayloadLength: 4096}); !errors.Is(err, errMismatch) || b != nil {
		t.Errorf("another content: %d bytes, %v", len(b), err)
	}
}

type payloadConn struct {
	Conn
	payload []byte
}

func (c *payloadConn) ReadPayload(dst []byte) error {
	copy(dst, c.payload)
	return nil
}

// What rotten blocks held is kept up to a limit, and then nothing more is replaced.
func TestKeepRot(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, rotFolder), 0o700); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, rotFolder, "0-before")
	if err := errors.Join(os.WriteFile(big, nil, 0o600), os.Truncate(big, maxRotKept-blockdev.PageSize)); err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte{3}, blockdev.PageSize)
	now := time.Unix(1, 2)
	if err := keepRot(dir, page, 8192, now); err != nil {
		t.Fatal(err)
	}
	wantKind(t, keepRot(dir, page, 12288, now), KindState)
	if entries, err := os.ReadDir(filepath.Join(dir, rotFolder)); err != nil || len(entries) != 2 {
		t.Errorf("%d files, %v", len(entries), err)
	}
}
