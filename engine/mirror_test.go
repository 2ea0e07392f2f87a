package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
	"github.com/blkmirror/blkmirror/wire"
)

// mirrorWorld is what surrounds a mirror under test: a state directory and a disk in memory, which can crash.
type mirrorWorld struct {
	t     *testing.T
	fs    *journaltest.MemFS
	disk  *devtest.Mem
	made  atomic.Bool // it exists
	index *memIndex
	size  int64
	boot  string
	seen  uint64 // what the kernel has counted on the disk
	limit int64  // of staging
	rules []devtest.Rule
	free  func() int64 // room of the device for data; nil: enough

	flagged atomic.Bool // the kernel's read-only flag of the disk
	dense   bool        // the disk knows of no holes

	m     *mirror
	peers []*fakePrimary
	logs  logLines
}

type logLines struct {
	mu    sync.Mutex
	lines []string
}

const testBlock = 64 << 10

func newMirrorWorld(t *testing.T, size int64) *mirrorWorld {
	w := &mirrorWorld{t: t, fs: journaltest.New(), index: newMemIndex(), size: size, boot: "boot 1", limit: 1 << 30,
		disk: devtest.NewMem(size, 512, 1)}
	w.fs.Mkdir("/state")
	t.Cleanup(func() { w.kill() })
	return w
}

// memDevice is a Mem that is recognised again.
type memDevice struct {
	blockdev.Device
	w *mirrorWorld
}

func (d memDevice) Facts() (blockdev.Facts, error) {
	return blockdev.Facts{Block: true, Size: d.w.size, BootID: d.w.boot, DiskSeq: 7, Counted: true, SectorsWritten: d.w.seen}, nil
}

func (d memDevice) SetReadOnly(ro bool) error {
	d.w.flagged.Store(ro)
	return nil
}

func (d memDevice) WriteAt(p []byte, off int64) (int, error) {
	if d.w.flagged.Load() {
		return 0, &blockdev.Error{Op: "write", Path: "/memory", Err: syscall.EPERM}
	}
	return d.Device.WriteAt(p, off)
}

func (d memDevice) Zero(off, n int64, mayFree bool) error {
	if d.w.flagged.Load() {
		return &blockdev.Error{Op: "zero", Path: "/memory", Err: syscall.EPERM}
	}
	return d.Device.Zero(off, n, mayFree)
}

func (d memDevice) NextData(off int64) (blockdev.Extent, error) {
	if d.w.dense {
		return blockdev.Extent{Offset: off, Length: d.w.size - off}, nil
	}
	return d.Device.NextData(off)
}

func (d memDevice) Info() blockdev.Info {
	i := d.Device.Info()
	i.Block = d.w.free == nil
	i.CheapZero = i.CheapZero && !d.w.dense
	return i
}

func (d memDevice) Allocate(_, n int64) error {
	if d.w.free != nil && n > d.w.free() {
		return &blockdev.Error{Op: "allocate", Path: "memory", Err: syscall.ENOSPC}
	}
	return nil
}

func (w *mirrorWorld) options() mirrorOptions {
	return mirrorOptions{
		name: "v", dir: "/state/volumes/v", config: VolumeConfig{Path: "/memory", StagingLimit: w.limit},
		log: func(text string) {
			w.logs.mu.Lock()
			defer w.logs.mu.Unlock()
			w.logs.lines = append(w.logs.lines, text)
		},
		fs: w.fs,
		device: func(string, blockdev.Options) (device, error) {
			if !w.made.Load() {
				return nil, &blockdev.Error{Op: "open", Path: "/memory", Err: fs.ErrNotExist}
			}
			if w.flagged.Load() {
				return nil, &blockdev.Error{Op: "open", Path: "/memory", Err: blockdev.ErrReadOnly}
			}
			w.disk.Reopen()
			f := devtest.NewFaults(w.disk)
			for _, r := range w.rules {
				f.Inject(r)
			}
			return memDevice{f, w}, nil
		},
		prepare: func(string, int64) (bool, error) {
			return !w.made.Swap(true), nil
		},
		index:  func(string) (blockIndex, error) { return w.index, nil },
		room:   func(string) (int64, error) { return 1 << 30, nil },
		bootID: func() (string, error) { return w.boot, nil }, segment: 64 << 10,
		setReadOnly: func(_ string, ro bool) error {
			w.flagged.Store(ro)
			return nil
		},
	}
}

func (w *mirrorWorld) open() *mirror {
	w.t.Helper()
	m, err := openMirror(w.options())
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = m
	return m
}

// stop ends the mirror cleanly.
func (w *mirrorWorld) stop() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := w.m.stop(ctx); err != nil {
		w.t.Fatal(err)
	}
	w.m = nil
}

// kill ends it as a test ends: nothing is waited for.
func (w *mirrorWorld) kill() {
	if w.m == nil {
		return
	}
	for _, p := range w.peers {
		if p.w == w && p.conn != nil {
			p.conn.Close(nil)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.m.stop(ctx)
	w.m = nil
}

// crash is the world as a power cut at this moment leaves it.
func (w *mirrorWorld) crash(seed uint64) *mirrorWorld {
	c := &mirrorWorld{t: w.t, fs: w.fs.Crash(seed), index: w.index.crash(), size: w.size, boot: w.boot, seen: w.seen, limit: w.limit}
	c.disk = w.disk.Crash(seed)
	c.made.Store(w.made.Load())
	w.t.Cleanup(func() { c.kill() })
	return c
}

func (w *mirrorWorld) status() VolumeStatus {
	var st VolumeStatus
	w.m.fill(&st)
	return st
}

func (w *mirrorWorld) mustHold(content []byte) {
	w.t.Helper()
	if at := differs(w.disk.Bytes(), content); at >= 0 {
		w.t.Fatalf("the mirror differs at %d", at)
	}
}

// mustIndex checks that no entry of the index is wrong.
func (w *mirrorWorld) mustIndex() {
	w.t.Helper()
	b := w.disk.Bytes()
	w.index.mu.Lock()
	defer w.index.mu.Unlock()
	for block, hash := range w.index.now {
		off := int64(block) * testBlock
		if wire.Sum(b[off:min(off+testBlock, w.size)]) != hash {
			w.t.Fatalf("the index is wrong about block %d", block)
		}
	}
}

func differs(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// memIndex is an index in memory that knows what is durable.
type memIndex struct {
	mu        sync.Mutex
	now, disk map[uint64][32]byte
}

func newMemIndex() *memIndex {
	return &memIndex{now: map[uint64][32]byte{}, disk: map[uint64][32]byte{}}
}

func (x *memIndex) crash() *memIndex {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := newMemIndex()
	for k, v := range x.disk {
		c.now[k], c.disk[k] = v, v
	}
	return c
}

func (x *memIndex) Get(first uint64, dst []journal.Entry) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range dst {
		h, ok := x.now[first+uint64(i)]
		dst[i] = journal.Entry{Known: ok, Hash: h}
	}
	return nil
}

func (x *memIndex) PutRun(first uint64, hashes [][32]byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, h := range hashes {
		x.now[first+uint64(i)] = h
	}
	return nil
}

func (x *memIndex) Delete(first, count uint64) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range count {
		delete(x.now, first+i)
	}
	return nil
}

func (x *memIndex) Sync() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.disk = map[uint64][32]byte{}
	for k, v := range x.now {
		x.disk[k] = v
	}
	return nil
}

func (x *memIndex) Reset() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.now, x.disk = map[uint64][32]byte{}, map[uint64][32]byte{}
	return nil
}

func (x *memIndex) Close() error { return x.Sync() }

// fakePrimary speaks a primary's part by hand.
type fakePrimary struct {
	t        *testing.T
	w        *mirrorWorld
	conn     *wire.Conn
	routine  sync.WaitGroup
	ended    error // of the mirror's session
	attached *wire.Attached
	content  []byte // of the primary's device

	incarnation, connection uint64
	generation              wire.Generation
	volume                  [16]byte

	seq   uint64
	chain wire.Chain
	pages map[int64]bool

	reports    []*wire.Report
	doubts     []wire.Extent
	quarantine *wire.Quarantine
	granted    uint64
}

func newPrimary(w *mirrorWorld) *fakePrimary {
	p := &fakePrimary{t: w.t, w: w, content: make([]byte, w.size), incarnation: 11, volume: [16]byte{1},
		generation: wire.Generation{ID: [16]byte{9}, Counter: 1}, pages: map[int64]bool{}}
	w.peers = append(w.peers, p)
	w.t.Cleanup(func() { p.hangUp() })
	return p
}

// moveTo has p speak with another world from here on.
func (p *fakePrimary) moveTo(w *mirrorWorld) {
	p.w = w
	w.peers = append(w.peers, p)
}

// dial attaches and returns what the mirror says.
func (p *fakePrimary) dial(edits ...func(*wire.Attach)) *wire.Attached {
	p.t.Helper()
	m, err := p.knock(edits...)
	if err != nil {
		p.t.Fatalf("attach: %v", err)
	}
	return m
}

func (p *fakePrimary) knock(edits ...func(*wire.Attach)) (*wire.Attached, error) {
	p.t.Helper()
	a, b := p.pipe()
	p.conn = wire.NewConn(a, wire.ConnOptions{})
	theirs := wire.NewConn(b, wire.ConnOptions{})
	p.conn.Established()
	m := p.w.m
	p.routine.Go(func() {
		p.ended = m.session(context.Background(), theirs, &wire.Hello{Name: "primary", Role: wire.RolePrimary, Node: wire.Hash{5}}, &pass{addr: "test"})
		theirs.Close(p.ended)
	})
	p.connection++
	at := &wire.Attach{Volume: "v", VolumeID: p.volume, Generation: p.generation, Incarnation: p.incarnation, Connection: p.connection,
		Size: p.w.size, BlockSize: testBlock}
	for _, edit := range edits {
		edit(at)
	}
	p.send(at)
	msg, err := p.conn.Next()
	if err != nil {
		return nil, err
	}
	answer, ok := msg.(*wire.Attached)
	if !ok {
		return nil, unexpected(msg, "Attached")
	}
	p.attached, p.reports, p.doubts, p.granted = answer, nil, nil, answer.Window
	p.quarantine = nil
	return answer, nil
}

// pipe is a connection with buffers, as real ones are.
func (p *fakePrimary) pipe() (a, b net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err == nil {
		b, err = l.Accept()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return a, b
}

// hangUp cuts the connection and waits until the mirror has noticed.
func (p *fakePrimary) hangUp() {
	if p.conn != nil {
		p.conn.Close(nil)
		p.routine.Wait()
		p.conn = nil
	}
}

func (p *fakePrimary) send(ms ...wire.Message) {
	p.t.Helper()
	if err := p.conn.Send(ms...); err != nil {
		p.t.Fatalf("send: %v", err)
	}
}

// next is the next message that matters; those that only tell are kept.
func (p *fakePrimary) next() wire.Message {
	p.t.Helper()
	for {
		m, err := p.conn.Next()
		if err != nil {
			p.t.Fatalf("receive: %v", err)
		}
		switch m := m.(type) {
		case *wire.Window:
			p.granted = m.Granted
		case *wire.Report:
			p.reports = append(p.reports, m)
		case *wire.Doubt:
			p.doubts = append(p.doubts, m.Extents...)
		case *wire.Quarantine:
			p.quarantine = m
		default:
			return m
		}
	}
}

func expect[T wire.Message](p *fakePrimary) T {
	p.t.Helper()
	m := p.next()
	got, ok := m.(T)
	if !ok {
		p.t.Fatalf("got %T %+v", m, m)
	}
	return got
}

// change writes random bytes to the primary's device and returns them.
func (p *fakePrimary) change(off, n int64, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 77))
	b := p.content[off : off+n]
	for i := range b {
		b[i] = byte(r.Uint32()) | 1
	}
	return b
}

// frame makes a Data of the primary's content.
func (p *fakePrimary) frame(epoch uint64, off, n int64) *wire.Data {
	p.seq++
	raw := slices.Clone(p.content[off : off+n])
	codec, payload := wire.NewPacker().Compress(nil, raw)
	return &wire.Data{Seq: p.seq, Epoch: epoch, Offset: off, RawLength: uint32(n), Codec: codec, Hash: wire.Sum(raw), Payload: payload}
}

// acks reads until n records are answered, in order, and checks that the mirror saw what was sent.
func (p *fakePrimary) acks(level wire.Level, sent ...*wire.Data) {
	p.t.Helper()
	for len(sent) > 0 {
		for _, e := range expect[*wire.Ack](p).Entries {
			if e.Seq != sent[0].Seq || e.Offset != sent[0].Offset || e.Level != level || e.Hash != sent[0].Hash {
				p.t.Fatalf("ack %+v of record %d at %d", e, sent[0].Seq, sent[0].Offset)
			}
			sent = sent[1:]
		}
	}
}

// rebase begins an epoch, or carries one over.
func (p *fakePrimary) rebase(base, old, new uint64, voids ...wire.Extent) {
	p.t.Helper()
	p.seq++
	m := &wire.Rebase{Seq: p.seq, Base: base, Old: old, New: new, Voids: voids}
	if old == 0 {
		p.chain, p.pages = wire.Chain{}, map[int64]bool{}
	}
	for _, v := range voids {
		for at := v.Offset; at < v.Offset+v.Length; at += blockdev.PageSize {
			delete(p.pages, at)
		}
	}
	p.chain.AddRebase(m)
	p.send(m.Frames()...)
	if old != 0 && new != 0 {
		if s := expect[*wire.Synced](p); s.Epoch != new || s.Seq != p.seq || s.Chain != p.chain.Sum() || s.Records != p.chain.Records() {
			p.t.Fatalf("synced %+v", s)
		}
	}
}

// stage sends the pages of a range, cut at blocks, and waits until they are staged.
func (p *fakePrimary) stage(epoch uint64, off, n int64) {
	p.t.Helper()
	p.acks(wire.LevelStaged, p.ship(epoch, off, n)...)
}

// ship is stage without the wait.
func (p *fakePrimary) ship(epoch uint64, off, n int64) (sent []*wire.Data) {
	p.t.Helper()
	for end := off + n; off < end; {
		to := min(end, off-off%testBlock+testBlock)
		d := p.frame(epoch, off, to-off)
		p.send(d)
		p.chain.Add(d)
		for at := off; at < to; at += blockdev.PageSize {
			p.pages[at] = true
		}
		sent = append(sent, d)
		off = to
	}
	return sent
}

// zero stages zeroes.
func (p *fakePrimary) zero(epoch uint64, off, n int64) {
	p.t.Helper()
	clear(p.content[off : off+n])
	p.seq++
	z := &wire.Zero{Seq: p.seq, Epoch: epoch, Offset: off, Length: n, Flags: wire.ZeroMayFree}
	p.send(z)
	p.chain.AddZero(z)
	for at := off; at < off+n; at += blockdev.PageSize {
		p.pages[at] = true
	}
	level := wire.LevelStaged
	if epoch == 0 {
		level = wire.LevelWritten
	}
	if e := expect[*wire.Ack](p).Entries[0]; e.Seq != z.Seq || e.Hash != wire.ZeroHash(off, n) || e.Level != level {
		p.t.Fatalf("ack %+v of a zero", e)
	}
}

func (p *fakePrimary) sendCommit(base, epoch uint64, edits ...func(*wire.Commit)) *wire.Commit {
	p.t.Helper()
	m := &wire.Commit{Epoch: epoch, Base: base, Records: p.chain.Records(), Pages: uint64(len(p.pages)), Chain: p.chain.Sum()}
	for _, edit := range edits {
		edit(m)
	}
	p.send(m)
	return m
}

func (p *fakePrimary) commit(base, epoch uint64) {
	p.t.Helper()
	m := p.sendCommit(base, epoch)
	if c := expect[*wire.Committed](p); c.Epoch != epoch || c.Records != m.Records || c.Chain != m.Chain {
		p.t.Fatalf("committed %+v", c)
	}
}

// bulk brings everything into the device in place and flushes it under a number.
func (p *fakePrimary) bulk(base, number uint64) {
	p.t.Helper()
	p.send(&wire.Bulk{Base: base, Number: number})
	p.bulkRange(0, p.w.size)
	p.flush(number)
}

func (p *fakePrimary) flush(number uint64) {
	p.t.Helper()
	p.send(&wire.Flush{Number: number})
	if f := expect[*wire.Flushed](p); f.Number != number {
		p.t.Fatalf("flushed %d", f.Number)
	}
}

// bulkRange ships a range in runs, for bulk.
func (p *fakePrimary) bulkRange(off, n int64) {
	p.t.Helper()
	for end := off + n; off < end; {
		var run []wire.Message
		var sent []*wire.Data
		to := min(end, off+4*testBlock)
		for at := off; at < to; {
			d := p.frame(0, at, min(to, at-at%testBlock+testBlock)-at)
			at += int64(d.RawLength)
			d.Follow = uint32(to - at)
			run, sent = append(run, d), append(sent, d)
		}
		p.send(run...)
		p.acks(wire.LevelWritten, sent...)
		off = to
	}
}

// applied waits until the mirror says that its device alone holds a cut.
func (p *fakePrimary) applied(cut uint64) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("cut %d is applied", cut), func() bool { return p.w.status().Primary.AppliedEpoch >= cut })
}

// lastWord reads until the mirror ends the session, and returns its reason.
func (p *fakePrimary) lastWord() wire.Code {
	p.t.Helper()
	for {
		m, err := p.conn.Next()
		if err != nil {
			var remote *wire.RemoteError
			if errors.As(err, &remote) {
				return remote.Code
			}
			p.t.Fatalf("the mirror hung up without a word: %v", err)
		}
		switch m := m.(type) {
		case *wire.Halt:
			return m.Code
		case *wire.Bye:
			return m.Code
		}
	}
}

// synced is a mirror at cut 2, with the primary attached.
func (w *mirrorWorld) synced() *fakePrimary {
	w.t.Helper()
	w.open()
	p := newPrimary(w)
	p.change(0, w.size, 1)
	p.dial()
	p.bulk(0, 1)
	p.rebase(1, 0, 2)
	p.commit(1, 2)
	p.applied(2)
	w.mustHold(p.content)
	return p
}

func TestMirrorFirstSync(t *testing.T) {
	w := newMirrorWorld(t, 3*mib+5000)
	w.open()
	if st := w.status(); st.Role == "mirror" || w.m.claimed() {
		t.Errorf("a volume without a role says %+v", st)
	}
	p := newPrimary(w)
	p.change(0, 2*mib, 1)
	a := p.dial()
	if a.Flags != wire.AttachedBlank|wire.AttachedInconsistent || a.VolumeID != [16]byte{} || a.DataEnd != 0 || a.LastCut != 0 || a.Size != w.size {
		t.Errorf("a blank mirror says %+v", a)
	}
	p.send(&wire.Bulk{Number: 3})
	p.bulkRange(0, 2*mib)
	p.flush(3)
	if st := w.status(); st.State != "inconsistent" || st.Epoch != 3 || st.Primary.State != "bulk" {
		t.Errorf("in bulk: %+v %+v", st, st.Primary)
	}
	p.change(mib, 3*blockdev.PageSize, 2)
	p.change(w.size-904-blockdev.PageSize, 904+blockdev.PageSize, 3)
	p.rebase(3, 0, 4)
	p.stage(4, mib, 3*blockdev.PageSize)
	p.stage(4, w.size-904-blockdev.PageSize, 904+blockdev.PageSize)
	p.zero(4, 0, testBlock+blockdev.PageSize)
	p.commit(3, 4)
	p.applied(4)
	w.mustHold(p.content)
	w.mustIndex()
	st := w.status()
	if st.State != "ok" || st.Role != "mirror" || st.Epoch != 4 || st.Primary.State != "connected" || st.Primary.Node != "primary" || st.Unproven {
		t.Errorf("at the end: %+v %+v", st, st.Primary)
	}
	p.hangUp()
	w.stop()
	w.open()
	if a := p.dial(); a.Flags != 0 || a.LastCut != 4 || a.Applied != 4 || a.VolumeID != p.volume || a.Generation != p.generation {
		t.Errorf("after a restart: %+v", a)
	}
}
