package engine

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// A session over one connection:
//
//	dialler  → Hello (its role, the volume)
//	acceptor → Hello, or Refused
//	source   → Open (size, blocks, fingerprint, wishes), whoever dialled
//	target   → Opened (from where, up to where it has data), or Refused
//	then the two halves run: source.go and target.go

// incarnation names this process to the other side, so that a connection that replaces a lost one is
// told from a stranger's.
var incarnation = rand.Uint64()

// device is a disk that can be recognised again.
type device interface {
	blockdev.Device
	Facts() (blockdev.Facts, error)
}

// openDevice opens a device by its path. Tests put faults into what it returns.
type openDevice func(path string, o blockdev.Options) (device, error)

func openFile(path string, o blockdev.Options) (device, error) { return blockdev.Open(path, o) }

// sourceEnd is an open source.
type sourceEnd struct {
	dev         device
	facts       blockdev.Facts
	fingerprint wire.Hash
	devices     []wire.Hash
}

// openSource opens a path to be read.
func openSource(path string, open openDevice, warn func(string)) (*sourceEnd, error) {
	names, err := blockdev.Identities(path)
	if err != nil {
		return nil, deviceError("open source", path, err)
	}
	if len(names) > wire.MaxDevices {
		return nil, &Error{Kind: KindState, Op: "open source", On: path,
			Err:  fmt.Errorf("it shares its bytes with %d devices, and at most %d can be told to the other side", len(names), wire.MaxDevices),
			Next: "copy its partitions or volumes one by one"}
	}
	dev, err := open(path, blockdev.Options{Warn: warner(warn)})
	if err != nil {
		return nil, deviceError("open source", path, err)
	}
	if dev.Info().Size == 0 {
		dev.Close()
		return nil, deviceError("open source", path, blockdev.ErrEmpty)
	}
	end := &sourceEnd{dev: dev, devices: hashNames(names)}
	// What others wrote through the page cache counts as written once it is on the disk; let it get
	// there now, so that it is not taken for a write during the copy.
	if dev.Info().Block {
		err = dev.Flush()
	}
	if err == nil {
		end.facts, err = dev.Facts()
	}
	var blob []byte
	if err == nil {
		blob, err = json.Marshal(end.facts)
	}
	if err != nil {
		dev.Close()
		return nil, deviceError("open source", path, err)
	}
	if end.facts.Block && !end.facts.Counted {
		// Nobody counts its writes: whether it is still what an earlier run saw cannot be told, so it is
		// another source each time it is opened.
		blob = binary.LittleEndian.AppendUint64(blob, rand.Uint64())
	}
	end.fingerprint = sha256.Sum256(blob)
	return end, nil
}

// changed tells whether somebody wrote to the source since it was opened. Where writes are not counted it
// cannot be told, and nothing is said.
func (e *sourceEnd) changed() bool {
	if e.facts.Block {
		if !e.facts.Counted {
			return false
		}
		if e.dev.Flush() != nil { // what is in the page cache has not been counted yet
			return true
		}
	}
	now, err := e.dev.Facts()
	return err != nil || !now.Unchanged(e.facts)
}

func hashNames(names []string) []wire.Hash {
	hashes := make([]wire.Hash, 0, len(names))
	for _, n := range names {
		hashes = append(hashes, sha256.Sum256([]byte(n)))
	}
	return hashes
}

// sourceParams are what the user wants of a session that we are the source of.
type sourceParams struct {
	volume     string
	blockSize  int
	flags      wire.OpenFlags
	noCompress bool
	rateLimit  int64
	steer      bool // there is a wire, and what goes over it is steered (docs/FLOW.md)
	flushEvery time.Duration
	renewAfter int64        // bytes of a connection; 0: any
	warn       func(string) // of what the target tells; may be nil
}

// runSource is a session from Open on, with us as the source. It returns when the session has ended.
// opened tells whether the target had agreed.
func runSource(ctx context.Context, conn *wire.Conn, end *sourceEnd, p sourceParams, prog *Progress) (opened bool, err error) {
	g := geometry{size: end.dev.Info().Size, blockSize: int64(p.blockSize)}
	answer, err := openTargetSide(ctx, conn, &wire.Open{
		Volume: p.volume, Incarnation: incarnation, BlockSize: uint32(p.blockSize), Size: g.size,
		Fingerprint: end.fingerprint, Flags: p.flags, Devices: end.devices,
	}, g)
	if err != nil {
		return false, err
	}
	prog.begin(g.size, answer.ResumeFrom)
	prog.Created.Store(prog.Created.Load() || answer.Flags&wire.OpenedCreated != 0)
	if answer.Flags&wire.OpenedPageCache != 0 && p.warn != nil {
		p.warn("the target's file system refuses O_DIRECT: it is written through the page cache, and --verify reads from there")
	}
	s := newSource(newLink(ctx, conn, prog), g, end.dev, answer, sourceOptions{
		dryRun:     p.flags&wire.OpenDryRun != 0 || answer.Flags&wire.OpenedDryRun != 0,
		noCompress: p.noCompress || answer.Flags&wire.OpenedNoCompress != 0,
		flushEvery: p.flushEvery,
		changed:    end.changed,
	})
	if !s.options.dryRun { // which would begin anew, and sends hashes alone: 256 GiB of them are a disk of 512 TiB
		s.options.renewAfter = p.renewAfter
	}
	var flow wire.FlowOptions
	if p.rateLimit > 0 {
		s.limit = rate.NewLimiter(rate.Limit(p.rateLimit), wire.MaxRun)
		flow.Limit = max(p.rateLimit, leastPacing)
	}
	if p.steer {
		s.flow = conn.Steer(s.window, flow)
	}
	return true, s.run(s.handle, s.work)
}

// openTargetSide sends Open and waits for the answer.
func openTargetSide(ctx context.Context, conn *wire.Conn, open *wire.Open, g geometry) (*wire.Opened, error) {
	waiting, stop := context.WithTimeoutCause(ctx, openTimeout,
		fmt.Errorf("%w: no answer to Open in %v", wire.ErrSilent, openTimeout))
	defer stop()
	release := context.AfterFunc(waiting, func() { conn.Close(context.Cause(waiting)) })
	defer release()
	if err := conn.Send(open); err != nil {
		return nil, err
	}
	m, err := conn.Next()
	if err != nil {
		return nil, err
	}
	if m, ok := m.(*wire.Opened); ok {
		if m.DataEnd < 0 || m.DataEnd > g.size || m.ResumeFrom < 0 || m.ResumeFrom > g.size || m.Size < g.size ||
			(m.ResumeFrom%g.blockSize != 0 && m.ResumeFrom != g.size) || m.Window < wire.MaxRun || m.MaxOffers < 1 {
			return nil, protocolError("Opened does not fit a volume of %d bytes", g.size)
		}
		return m, nil
	}
	return nil, unexpected(m, "Opened")
}

// targetParams are what is known of a target before its session opens.
type targetParams struct {
	path     string
	stateDir string
	device   openDevice
	openWait time.Duration // for Open to come
	warn     func(string)

	// Wishes of our own user, added to the source's.
	flags      wire.OpenFlags
	noCompress bool
	rateLimit  int64

	// admit is called with Open before the device is touched; what it returns is called when the
	// session has ended. May be nil.
	admit func(*wire.Open) (leave func(), err error)
}

// targetResult is how a session with us as the target went.
type targetResult struct {
	opened, committed, sourceChanged bool
}

// runTarget is a session from Open on, with us as the target. It returns when the session has ended and
// nothing of it is still to be written.
func runTarget(ctx context.Context, conn *wire.Conn, p targetParams, prog *Progress) (res targetResult, err error) {
	waiting, stop := context.WithTimeoutCause(ctx, p.openWait,
		fmt.Errorf("%w: no Open in %v", wire.ErrSilent, p.openWait))
	release := context.AfterFunc(waiting, func() { conn.Close(context.Cause(waiting)) })
	m, err := conn.Next()
	release()
	stop()
	if err != nil {
		return res, err
	}
	open, ok := m.(*wire.Open)
	if !ok {
		return res, unexpected(m, "Open")
	}
	open.Flags |= p.flags
	store, answer, err := p.open(open)
	if err != nil {
		refuse(conn, err)
		return res, err
	}
	defer store.leave()
	prog.begin(open.Size, answer.ResumeFrom)
	prog.Created.Store(prog.Created.Load() || answer.Flags&wire.OpenedCreated != 0)
	t := newTarget(newLink(ctx, conn, prog), store, open.Flags, answer)
	if p.rateLimit > 0 {
		t.limit = rate.NewLimiter(rate.Limit(p.rateLimit), wire.MaxRun)
	}
	if err := conn.Send(answer); err != nil {
		return res, errors.Join(err, store.close())
	}
	res.opened = true
	err = t.run(t.handle, t.work)
	res.committed, res.sourceChanged = !store.dryRun && t.finished.Load(), t.changed
	if !res.committed && (t.recheck == nil || t.recheck.clean()) {
		store.interrupted(t.confirmed)
	}
	if err == nil {
		prog.Scanned.Store(open.Size - prog.Resumed.Load())
		prog.Zero.Store(max(0, prog.Scanned.Load()-prog.Shipped.Load()-prog.Skipped.Load()))
	}
	if cerr := store.close(); err == nil && cerr != nil {
		err = deviceError("close target", p.path, cerr)
	}
	return res, err
}

// refuse tells the peer why there will be no session, as far as it listens, and waits until it has read
// that and closed: closing first, with a Ping unread, would reset the connection and lose the answer.
func refuse(conn *wire.Conn, err error) {
	text := err.Error()
	if own, ok := errors.AsType[*Error](err); ok && own.told != nil {
		text = (&Error{Op: own.Op, On: own.On, Err: own.told}).Error()
	}
	if conn.Send(&wire.Refused{Code: codeOf(err), Text: wire.CleanText(text)}) != nil {
		return
	}
	limit := time.AfterFunc(byeTimeout, func() { conn.Close(err) })
	defer limit.Stop()
	for {
		if _, err := conn.Next(); err != nil {
			return
		}
	}
}

// unexpected explains a message that came in a handshake in place of another.
func unexpected(m wire.Message, want string) error {
	switch m := m.(type) {
	case *wire.Refused:
		return &wire.RemoteError{Code: m.Code, Text: m.Text}
	case *wire.Halt:
		return &wire.RemoteError{Code: m.Code, Text: m.Text}
	case *wire.Bye:
		return &wire.RemoteError{Code: m.Code, Text: m.Text}
	}
	return protocolError("type %d in place of %s", m.Type(), want)
}

// open checks that the source may be copied here, opens everything, and decides where to go on.
func (p targetParams) open(open *wire.Open) (store *targetStore, answer *wire.Opened, err error) {
	if open.Size <= 0 || open.BlockSize < MinBlockSize || open.BlockSize > MaxBlockSize || open.BlockSize&(open.BlockSize-1) != 0 {
		return nil, nil, protocolError("Open with size %d and block size %d", open.Size, open.BlockSize)
	}
	store = &targetStore{
		geometry: geometry{size: open.Size, blockSize: int64(open.BlockSize)},
		dryRun:   open.Flags&wire.OpenDryRun != 0,
		warn:     p.warn,
		leave:    func() {},
	}
	if p.admit != nil {
		if store.leave, err = p.admit(open); err != nil {
			return nil, nil, err
		}
	}
	answer = &wire.Opened{Window: windowBytes, MaxOffers: maxOffers}
	if p.rateLimit > 0 {
		answer.Window = slowWindow
	}
	if store.dryRun {
		answer.Flags |= wire.OpenedDryRun
	}
	if p.noCompress {
		answer.Flags |= wire.OpenedNoCompress
	}
	if err := p.openInto(store, open, answer); err != nil {
		closeErr := store.close()
		store.leave()
		return nil, nil, errors.Join(err, closeErr)
	}
	return store, answer, nil
}

func (p targetParams) openInto(store *targetStore, open *wire.Open, answer *wire.Opened) error {
	if err := p.refuseSame(open); err != nil {
		return err
	}
	if store.dryRun {
		fi, err := os.Stat(p.path)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && isEmptyImage(fi)) {
			answer.Size, answer.DataEnd = open.Size, open.Size
			return nil
		}
	} else {
		created, err := prepareImage(p.path, open.Size)
		if err != nil {
			return err
		}
		if created {
			answer.Flags |= wire.OpenedCreated
		}
	}
	dev, err := p.device(p.path, blockdev.Options{Write: !store.dryRun, Warn: warner(p.warn)})
	if err != nil {
		return deviceError("open target", p.path, err)
	}
	store.dev = dev
	if err := p.checkSize(dev.Info(), open); err != nil {
		return err
	}
	answer.Size, answer.DataEnd = dev.Info().Size, open.Size
	if !dev.Info().Direct {
		answer.Flags |= wire.OpenedPageCache
	}
	if store.dryRun {
		return nil
	}
	return p.openProgress(store, open, answer)
}

// openProgress decides what an earlier run is worth, and makes durable that this one has begun.
func (p targetParams) openProgress(store *targetStore, open *wire.Open, answer *wire.Opened) error {
	facts, err := store.dev.Facts()
	if err != nil {
		return deviceError("look at target", p.path, err)
	}
	if err := store.openState(p.stateDir, facts); err != nil {
		return err
	}
	if answer.DataEnd, err = dataEnd(store.dev, open.Size); err != nil {
		return deviceError("map target", p.path, err)
	}
	f, err := store.resume(open, facts)
	if err != nil {
		return err
	}
	answer.ResumeFrom, answer.ResumeHash = f.from, f.last
	if f.recheck {
		answer.Flags |= wire.OpenedRecheck
	}
	if f.trusted && open.Flags&wire.OpenTrustIndex != 0 {
		answer.Flags |= wire.OpenedIndexed
	}
	return store.begin(open, f, answer.DataEnd)
}

// dataEnd finds the end of the last data of a target. Behind it nothing needs to be offered or zeroed.
func dataEnd(dev blockdev.Device, size int64) (int64, error) {
	if !dev.Info().KnowsHoles {
		return size, nil
	}
	var end int64
	for range maxExtentsRead {
		data, err := dev.NextData(end)
		if err != nil {
			return 0, err
		}
		if data.Length == 0 || data.Offset >= size {
			return end, nil
		}
		if end = data.End(); end >= size {
			return size, nil
		}
	}
	return size, nil
}

// refuseSame refuses a target that consists of the same bytes as the source.
func (p targetParams) refuseSame(open *wire.Open) error {
	names, err := blockdev.Identities(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return deviceError("open target", p.path, err)
	}
	for _, own := range hashNames(names) {
		for _, theirs := range open.Devices {
			if own == theirs {
				return &Error{Kind: KindState, Op: "open target", On: p.path, code: wire.CodeSame,
					Err: errors.New("it is the same device as the source"), Next: nextByCode[wire.CodeSame]}
			}
		}
	}
	return nil
}

func (p targetParams) checkSize(info blockdev.Info, open *wire.Open) error {
	sizes := fmt.Errorf("it has %d bytes, the source has %d", info.Size, open.Size)
	switch {
	case info.Size < open.Size:
		return &Error{Kind: KindState, Op: "open target", On: p.path, code: wire.CodeSmaller, Err: sizes, Next: nextByCode[wire.CodeSmaller]}
	case info.Size > open.Size && open.Flags&wire.OpenGrowOK == 0:
		return &Error{Kind: KindState, Op: "open target", On: p.path, code: wire.CodeLarger, Err: sizes, Next: nextByCode[wire.CodeLarger]}
	case info.Size > open.Size:
		p.warn(fmt.Sprintf("%s is larger than the source: the last %d bytes stay as they are", p.path, info.Size-open.Size))
	}
	return nil
}

// begin resets the counters that tell how far a connection is; those that count work go on.
func (p *Progress) begin(size, from int64) {
	p.Size.Store(size)
	if p.sessions.Add(1) == 1 || from < p.Resumed.Load() {
		p.Resumed.Store(from)
	}
	p.Scanned.Store(from - p.Resumed.Load())
}

func warner(warn func(string)) func(string, ...any) {
	return func(format string, args ...any) { warn(fmt.Sprintf(format, args...)) }
}

// opposite is the other role of a session.
var opposite = map[wire.Role]wire.Role{
	wire.RoleSource: wire.RoleTarget, wire.RoleTarget: wire.RoleSource,
	wire.RolePrimary: wire.RoleMirror, wire.RoleMirror: wire.RolePrimary,
	wire.RoleProbe: wire.RoleProbe,
}

// greet is the dialler's part of the handshake. A peer that is no blkmirror, or hangs, ends it in the
// connection's handshake time.
func greet(conn *wire.Conn, h *wire.Hello) (*wire.Hello, error) {
	if err := conn.Send(h); err != nil {
		return nil, err
	}
	m, err := conn.Next()
	if err != nil {
		return nil, err
	}
	hello, ok := m.(*wire.Hello)
	if !ok {
		return nil, unexpected(m, "Hello")
	}
	if want := opposite[h.Role]; hello.Role != want {
		return nil, protocolError("the other side wants to be role %d, where role %d is due", hello.Role, want)
	}
	return hello, nil
}
