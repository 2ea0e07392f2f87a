package engine

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// errDone ends a session that has done all it was for.
var errDone = errors.New("session done")

// link runs one half of a session over one connection: a reader that hands each message to the half, and
// the half's own work. It ends both, tells the peer why, and waits.
type link struct {
	conn   Conn
	ctx    context.Context // ends with the session; its cause says why
	cancel context.CancelCauseFunc
	reader sync.WaitGroup
	prog   *Progress
	before int64 // bytes on the wire before this connection

	// finished is set by the half when the session has done all that it was for.
	finished atomic.Bool
	// doneByPeer says that the peer's Bye(done) finishes the session: a dry run has no Commit.
	doneByPeer bool
	// renewedByPeer says that it means another connection before that: the keys of this one have carried enough.
	renewedByPeer bool

	// parting makes what is sent before the farewell of a session that is not done. May be nil.
	parting func() []wire.Message
	// late takes what arrives after the session has ended here. May be nil.
	late func(wire.Message)

	// Written by the reader, read after it has ended: what the peer said last (Halt, Bye or Refused).
	remote error
}

func newLink(ctx context.Context, conn Conn, prog *Progress) *link {
	l := &link{conn: conn, prog: prog, before: prog.Wire.Load()}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	return l
}

// run starts the reader, calls work, and ends the session when work returns. work must return soon after
// l.ctx ends, with everything it started ended. The result is nil where the half says that it finished,
// else the reason: our own stop, the peer's word where it gave one, or what came first.
func (l *link) run(handle func(wire.Message) error, work func() error) error {
	// Whatever hangs in the connection, a peer that does not read or a reader without data, is released
	// some seconds after the session has ended.
	limit := time.AfterFunc(math.MaxInt64, func() { l.conn.Close(context.Cause(l.ctx)) })
	defer limit.Stop()
	unlimited := context.AfterFunc(l.ctx, func() { limit.Reset(byeTimeout) })
	defer unlimited()

	l.reader.Go(func() { l.read(handle) })
	if err := work(); err != nil {
		l.cancel(err)
	} else {
		l.cancel(errDone)
	}
	err := l.part()
	l.reader.Wait()
	l.conn.Close(err)
	return l.verdict(err)
}

// part says the last words of a session that is over, and why it is.
func (l *link) part() error {
	err := context.Cause(l.ctx)
	if l.finished.Load() {
		err = errDone // whatever happened to the connection meanwhile
	}
	var words []wire.Message
	if l.parting != nil && !errors.Is(err, errDone) {
		words = l.parting() // also for a peer that stops or fails: it still listens
	}
	last := farewell(err)
	if last != nil {
		words = append(words, last)
	}
	// Best effort: the peer may be gone. It closes when it has read a farewell, and our reader sees that;
	// closing first could destroy the farewell in the peer's receive queue.
	if len(words) > 0 && l.conn.Send(words...) != nil || last == nil {
		l.conn.Close(err)
	}
	return err
}

// verdict is what run returns, once the reader has ended.
func (l *link) verdict(err error) error {
	switch {
	case l.finished.Load():
		return nil
	case errors.Is(err, context.Canceled):
		return err // our own stop, whatever the peer says to it
	case l.remote != nil:
		return l.remote
	case errors.Is(err, errDone) && l.doneByPeer:
		return nil
	case errors.Is(err, errDone) && l.renewedByPeer:
		return errRenewed
	case errors.Is(err, errDone):
		return protocolError("the peer ended the session before it was done")
	}
	return err
}

// read hands messages to the half until the connection ends. When the session is over it goes on
// reading, so that the peer can finish its sends and read our farewell.
func (l *link) read(handle func(wire.Message) error) {
	for {
		m, err := l.conn.Next()
		l.prog.Wire.Store(l.before + l.conn.Sent() + l.conn.Received())
		if err != nil {
			l.cancel(err)
			return
		}
		if last := l.take(m, handle); last {
			return
		}
	}
}

// take hands one message to the half, unless it is about the session itself, or too late.
func (l *link) take(m wire.Message, handle func(wire.Message) error) (last bool) {
	switch m := m.(type) {
	case *wire.Halt:
		l.remote = &wire.RemoteError{Code: m.Code, Text: m.Text}
		l.cancel(l.remote)
		return true
	case *wire.Bye:
		if m.Code == wire.CodeDone {
			l.cancel(errDone)
		} else {
			l.remote = &wire.RemoteError{Code: m.Code, Text: m.Text}
			l.cancel(l.remote)
		}
		return true
	}
	if l.ctx.Err() != nil {
		if l.late != nil {
			l.late(m)
		}
		return false
	}
	if err := handle(m); err != nil {
		l.cancel(err)
	}
	return false
}

// farewell is the last message for a session that ends with err, nil where the connection itself failed
// or the peer has spoken the last word.
func farewell(err error) wire.Message {
	var own *Error
	var remote *wire.RemoteError
	switch {
	case errors.Is(err, errDone), errors.Is(err, errRenewed):
		return &wire.Bye{Code: wire.CodeDone}
	case errors.As(err, &remote):
		return nil
	case errors.Is(err, context.Canceled):
		return &wire.Bye{Code: wire.CodeStopped, Text: "stopped"}
	case errors.As(err, &own) && (own.code == wire.CodeReplaced || own.code == wire.CodePaused):
		return &wire.Bye{Code: own.code, Text: wire.CleanText(err.Error())}
	case errors.As(err, &own), errors.Is(err, errMismatch), errors.Is(err, wire.ErrProtocol):
		return &wire.Halt{Code: codeOf(err), Text: wire.CleanText(err.Error())}
	}
	return nil
}
