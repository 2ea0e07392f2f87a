package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// SyncOptions say what one-shot sync copies, and how.
type SyncOptions struct {
	Source, Target Endpoint
	StateDir       string        // progress and index of local targets
	BlockSize      int           // bytes, power of two, 4 KiB..1 MiB; 0: DefaultBlockSize
	RateLimit      int64         // bytes of payload a second, 0: none
	Retry          time.Duration // how long a lost connection is tried again
	Verify         bool          // read back after writing
	DryRun         bool          // only say what would be shipped
	NoCompress     bool
	TrustIndex     bool           // skip by the target's index where its facts are as recorded
	GrowOK         bool           // a target larger than the source is no error
	Insecure       bool           // plain TCP, loopback only
	Identity       *identity.Node // who this node is and whom it trusts: of remote ends, without Insecure

	// Warn receives what a person should know though the sync goes on. May be nil. It is called from
	// several goroutines, one at a time.
	Warn func(text string)
	// Progress is filled while Sync runs, to be read at any time. May be nil.
	Progress *Progress

	// Tests: how often progress is made durable, when a connection is replaced, and how devices are opened.
	flushEvery             time.Duration
	renewAfter             int64 // bytes of a connection; 0: renewAfter
	openSource, openTarget openDevice
}

// Progress holds the live counters of one sync. All are bytes of the source, but RetriedBlocks.
type Progress struct {
	Size          atomic.Int64 // 0 until the session is open
	Scanned       atomic.Int64 // confirmed or on the way: shipped, skipped or zero
	Shipped       atomic.Int64 // raw payload acknowledged by the target; in a dry run: that would be shipped
	Wire          atomic.Int64 // sent and received, headers and all
	Skipped       atomic.Int64 // the target had it already
	Zero          atomic.Int64 // zeroes and holes
	Resumed       atomic.Int64 // confirmed by an earlier run, not looked at again
	RetriedBlocks atomic.Int64
	Reconnects    atomic.Int64
	Durable       atomic.Int64 // offset below which the target has all of it durably
	Created       atomic.Bool  // the target image did not exist

	sessions atomic.Int64
}

// Report is what a sync did. The JSON form is an interface: only ever added to.
type Report struct {
	Source        string  `json:"source"`
	Target        string  `json:"target"`
	Size          int64   `json:"size"`
	ScannedBytes  int64   `json:"scanned_bytes"`
	ShippedBytes  int64   `json:"shipped_bytes"`
	WireBytes     int64   `json:"wire_bytes"`
	SkippedBytes  int64   `json:"skipped_bytes"`
	ZeroBytes     int64   `json:"zero_bytes"`
	ResumedBytes  int64   `json:"resumed_bytes"`
	RetriedBlocks int64   `json:"retried_blocks"`
	Seconds       float64 `json:"seconds"`
	Reconnects    int64   `json:"reconnects"`
	SourceChanged bool    `json:"source_changed"` // written to while it was copied: the target may be a mixture
	DryRun        bool    `json:"dry_run"`
	Created       bool    `json:"created"` // the target image did not exist
}

// Sync makes the target's content equal to the source's. At least one end must be a local path. On
// return every goroutine that it started has ended. The report is valid also with an error: it then
// tells how far the sync came. Errors are *Error. A cancelled ctx ends with context.Canceled wrapped,
// after what is confirmed was made durable.
func Sync(ctx context.Context, o SyncOptions) (Report, error) {
	start := time.Now()
	if o.Progress == nil {
		o.Progress = new(Progress)
	}
	if o.flushEvery == 0 {
		o.flushEvery = flushEvery
	}
	if o.openSource == nil {
		o.openSource = openFile
	}
	if o.openTarget == nil {
		o.openTarget = openFile
	}
	c := &copier{SyncOptions: o}
	c.gate = newGate(o.Identity, o.StateDir, c.warn)
	err := c.check()
	if err == nil {
		err = c.run(ctx)
	}
	p := o.Progress
	return Report{
		Source: o.Source.String(), Target: o.Target.String(), Size: p.Size.Load(),
		ScannedBytes: p.Scanned.Load(), ShippedBytes: p.Shipped.Load(), WireBytes: p.Wire.Load(),
		SkippedBytes: p.Skipped.Load(), ZeroBytes: p.Zero.Load(), ResumedBytes: p.Resumed.Load(),
		RetriedBlocks: p.RetriedBlocks.Load(), Seconds: time.Since(start).Seconds(),
		Reconnects: p.Reconnects.Load(), SourceChanged: c.changed, DryRun: o.DryRun, Created: p.Created.Load(),
	}, err
}

// copier is one sync: any number of sessions, one after the other.
type copier struct {
	SyncOptions
	source *sourceEnd // nil: remote
	gate   *gate

	warning sync.Mutex // one warning at a time
	changed bool       // the source was written to meanwhile
}

// check refuses what can be refused before anything is opened.
func (c *copier) check() error {
	refuse := func(op, on, why, next string) error {
		return &Error{Kind: KindUsage, Op: op, On: on, Err: errors.New(why), Next: next}
	}
	if c.BlockSize == 0 {
		c.BlockSize = DefaultBlockSize
	}
	remote := c.Source
	if c.Target.Remote() {
		remote = c.Target
	}
	switch b := c.BlockSize; {
	case b < MinBlockSize || b > MaxBlockSize || b&(b-1) != 0:
		return refuse("use block size", fmt.Sprint(b), "it must be a power of two from 4 KiB to 1 MiB", "leave --block-size away for 64 KiB")
	case c.RateLimit < 0:
		return refuse("use rate", fmt.Sprint(c.RateLimit), "it must not be negative", "give bytes a second")
	case c.Source.Remote() && c.Target.Remote():
		return refuse("sync", c.Source.String(), "source and target are both remote", "run it on one of the two machines, with a path for its own end")
	case remote.Remote() && c.Insecure == (c.Identity != nil):
		return refuse("connect to", remote.Addr, "a node has an identity, or is insecure", "say --insecure (loopback addresses only), or do not")
	case remote.Remote() && c.Insecure:
		if err := wire.CheckPlain(remote.Addr); errors.Is(err, wire.ErrNotLoopback) {
			return refuse("connect to", remote.Addr, err.Error(), "plain text is for this machine only: leave --insecure away on both sides")
		} else if err != nil {
			return networkError(remote.Addr, err)
		}
	}
	return nil
}

func networkError(addr string, err error) error {
	e := &Error{Kind: KindNetwork, Op: "connect to", On: addr, Err: err, Next: nextByClass[wire.Classify(err)]}
	switch {
	case errors.Is(err, wire.ErrNotLoopback): // which no key changes
		e.Next = "plain text does not leave this machine: use a loopback address, or leave --insecure away on both sides"
	case isAuth(err):
		e.Kind, e.Next, e.code = KindAuth, "", wire.CodeAuth // see gate.explain
	}
	return e
}

func (c *copier) warn(text string) {
	if c.Warn != nil {
		c.warning.Lock()
		defer c.warning.Unlock()
		c.Warn(text)
	}
}

// run opens the local source and makes sessions until one is done, or fails for good.
func (c *copier) run(ctx context.Context) error {
	if !c.Source.Remote() {
		var err error
		if c.source, err = openSource(c.Source.Path, c.openSource, c.warn); err != nil {
			return err
		}
		defer c.source.dev.Close()
	}
	err := c.sessions(ctx)
	if c.source != nil && !c.changed {
		c.changed = c.source.changed()
	}
	if err == nil && c.changed {
		c.warn("the source was written to while it was copied: the target may be a mixture of states; run the sync again when the source is at rest")
	}
	return err
}

// sessions connects, and connects again when a session that was open is lost, as long as Retry allows.
// A first connection that fails ends it at once: then the address is more likely wrong than the network.
func (c *copier) sessions(ctx context.Context) error {
	if !c.Source.Remote() && !c.Target.Remote() {
		err := c.local(ctx)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx) // each half may have heard it from the other first
		}
		return sessionError(err, c.Target.String())
	}
	peer := c.Source.Addr
	if c.Target.Remote() {
		peer = c.Target.Addr
	}
	everOpen := false
	var backoff time.Duration
	var lost time.Time
	var before int64
	for {
		segment := c.gate.narrow.segment(peer)
		opened, err := c.remote(ctx, peer)
		everOpen = everOpen || opened
		narrower := c.gate.narrow.segment(peer) != segment // the next connection does better than this one could
		// A connection that brought nothing before it was lost is no reason to begin the wait anew.
		moved := c.Progress.Shipped.Load() + c.Progress.Durable.Load()
		further := moved > before
		if lost.IsZero() || further {
			before, backoff, lost = moved, backoffFirst, time.Now()
		}
		if further && errors.Is(err, errRenewed) {
			continue
		}
		if hopeless := !everOpen || !worthRetrying(err) || time.Since(lost) >= c.Retry; err == nil || ctx.Err() != nil || hopeless && !narrower {
			return err
		}
		c.warn(fmt.Sprintf("connection lost, trying again: %v", err))
		select {
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		case <-ctx.Done():
			return sessionError(context.Cause(ctx), peer)
		}
		backoff = min(2*backoff, backoffMax)
		c.Progress.Reconnects.Add(1)
	}
}

// worthRetrying tells whether a new connection may do better: the network failed or damaged a frame, on either side, or
// the other side is still busy with the connection that was lost, or being restarted.
func worthRetrying(err error) bool {
	var remote *wire.RemoteError
	if errors.As(err, &remote) {
		switch remote.Code {
		case wire.CodeBusy, wire.CodeStopped, wire.CodeDamaged, wire.CodeSilent, wire.CodeMTU:
			return true
		}
		return false
	}
	var own *Error
	return errors.As(err, &own) && own.Kind == KindNetwork
}

func (c *copier) flags() wire.OpenFlags {
	var f wire.OpenFlags
	for _, o := range []struct {
		set  bool
		flag wire.OpenFlags
	}{{c.DryRun, wire.OpenDryRun}, {c.Verify, wire.OpenVerify}, {c.TrustIndex, wire.OpenTrustIndex}, {c.GrowOK, wire.OpenGrowOK}} {
		if o.set {
			f |= o.flag
		}
	}
	return f
}

func (c *copier) sourceParams() sourceParams {
	return sourceParams{volume: c.Target.Volume, blockSize: c.BlockSize, flags: c.flags(),
		noCompress: c.NoCompress, rateLimit: c.RateLimit, steer: c.Target.Remote(), flushEvery: c.flushEvery,
		renewAfter: c.gate.carries(c.renewAfter)}
}

func (c *copier) targetParams() targetParams {
	return targetParams{path: c.Target.Path, stateDir: c.StateDir, device: c.openTarget, openWait: openTimeout, flags: c.flags(),
		noCompress: c.NoCompress, rateLimit: c.RateLimit, warn: c.warn}
}

// local runs both halves in this process, over a pipe: the same frames, hashes and acknowledgements.
func (c *copier) local(ctx context.Context) error {
	a, b := wire.Pipe()
	toTarget, toSource := wire.NewConn(a, wire.ConnOptions{}), wire.NewConn(b, wire.ConnOptions{})
	toTarget.Established()
	toSource.Established()
	var targetErr error
	var target sync.WaitGroup
	target.Go(func() {
		p := c.targetParams()
		p.rateLimit = 0 // the source keeps it
		_, targetErr = runTarget(ctx, toSource, p, new(Progress))
		toSource.Close(targetErr)
	})
	p := c.sourceParams()
	p.noCompress = true // there is no wire to spare
	_, err := runSource(ctx, toTarget, c.source, p, c.Progress)
	toTarget.Close(err)
	target.Wait()
	// The half that failed says more than the one that was told.
	var own *Error
	if err == nil || errors.As(targetErr, &own) {
		err = targetErr
	}
	return err
}

// remote is one session over one TCP connection. Its error is an *Error.
func (c *copier) remote(ctx context.Context, addr string) (opened bool, err error) {
	volume, as := c.Target.Volume, identity.AsMirror
	if c.Source.Remote() {
		volume, as = c.Source.Volume, identity.AsPrimary
	}
	nc, peer, err := c.gate.dial(ctx, addr, volume, as)
	if err != nil {
		if ctx.Err() != nil {
			return false, sessionError(context.Cause(ctx), addr)
		}
		return false, err
	}
	conn := wire.NewConn(nc, c.gate.options(peer))
	release := context.AfterFunc(ctx, func() { conn.Close(context.Cause(ctx)) })
	hello := &wire.Hello{Name: hostName(), Software: software, Role: wire.RoleSource, Volume: volume, BlockSize: uint32(c.BlockSize)}
	if c.Source.Remote() {
		hello.Role = wire.RoleTarget
	}
	_, err = greet(conn, hello)
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close(err)
		c.gate.narrow.learn(addr, conn.Remote(), conn.Segment(), err)
		return false, sessionError(c.gate.explain(err, addr, volume, as, false), addr)
	}
	conn.Established()

	if c.Source.Remote() {
		var res targetResult
		res, err = runTarget(ctx, conn, c.targetParams(), c.Progress)
		opened, c.changed = res.opened, res.sourceChanged
	} else {
		p := c.sourceParams()
		p.warn = c.warn // a local target has a voice of its own
		opened, err = runSource(ctx, conn, c.source, p, c.Progress)
	}
	conn.Close(err)
	c.gate.narrow.learn(addr, conn.Remote(), conn.Segment(), err)
	return opened, sessionError(c.gate.explain(err, addr, volume, as, false), addr)
}
