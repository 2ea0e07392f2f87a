package engine

import (
	"context"
	"errors"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// SteppedMirror is a mirror in steps. Whoever calls takes the place of its owner, one at a time: while that one's
// request to the device is under way, others leave what they have for the owner in a queue.
//
// Methods that say so may wait, or ask the device for something: they belong into a coroutine.
type SteppedMirror struct {
	m     *mirror
	wait  func(try func() bool)
	spawn func(do func())

	queue    []func() // posted to the owner
	owning   bool     // somebody is the owner
	over     bool     // stopped, or crashed
	stopping bool
	measures bool // one is in the queue
}

// What a mirror in steps has less of.
const (
	steppedOpen   = 1024 // messages open: more than the smallest window lets in
	steppedRecord = 64   // records of a frame of staging
)

// OpenSteppedMirror opens a volume as a mirror, as the daemon does, but does not wait until what was committed
// before is applied: Attach does. spawn takes what runs beside the owner, an apply or a comparison, for a
// coroutine of its own; it need not begin at once.
func OpenSteppedMirror(name string, c VolumeConfig, dir string, s Surroundings, spawn func(do func())) (*SteppedMirror, error) {
	chunk := s.Sizes.Chunk
	if chunk == 0 {
		chunk = chunkSize
	}
	remove := s.RemoveIndex
	if remove == nil {
		remove = func(string) error { return nil }
	}
	m := newMirror(mirrorOptions{
		name: name, dir: dir, config: c, log: s.Log, now: s.Now,
		fs:     s.FS,
		device: func(string, blockdev.Options) (device, error) { return s.Device() },
		index:  s.Index, removeIndex: remove,
		room:       func(string) (int64, error) { return s.Room() },
		deviceRoom: func(string) (int64, error) { return 0, nil }, // always asked for
		bootID:     s.BootID,
		window:     s.Sizes.Window, segment: s.Sizes.Segment, volumeLog: s.journal(),
		staging: journal.StagingOptions{BufferSize: int(chunk), FrameRecords: steppedRecord, Random: s.Random},
		limits:  replica.Limits{SyncEvery: s.Sizes.StagingSync},
		chunk:   chunk, open: steppedOpen, writers: 1,
	})
	x := &SteppedMirror{m: m, wait: s.Wait, spawn: spawn}
	m.steps = x
	x.own(m.tryOpen)
	return x, nil
}

// own does something as the owner, and what the owner does behind everything. Nobody else is it.
func (x *SteppedMirror) own(do func()) {
	x.owning = true
	do()
	if x.m.settle() && !x.over {
		x.end()
	}
	x.owning = false
}

// end leaves nothing that anybody could wait for.
func (x *SteppedMirror) end() {
	x.over, x.queue = true, nil
	close(x.m.ended)
	x.m.abort()
}

// Own is one turn of the owner, where there is something to do: what was posted to it, or the next message of
// the primary. It may ask the device for something.
func (x *SteppedMirror) Own() (did bool) {
	if x.owning || x.over {
		return false
	}
	if x.ownPosted() {
		return true
	}
	a := x.arrival()
	if a == nil {
		return false
	}
	x.own(func() { x.m.arrive(a) })
	return true
}

func (x *SteppedMirror) ownPosted() (did bool) {
	if len(x.queue) == 0 {
		return false
	}
	do := x.queue[0]
	x.queue = x.queue[1:]
	x.own(do)
	return true
}

// arrival takes the next message of the primary, if it is to be taken now and is checked.
func (x *SteppedMirror) arrival() *arrival {
	from := x.m.arrivals()
	if from == nil {
		return nil
	}
	s := x.m.current
	if s.ahead == nil {
		select {
		case s.ahead = <-from:
		default:
			return nil
		}
	}
	a := s.ahead
	if a.ready != nil && s.ctx.Err() == nil {
		select {
		case <-a.ready:
		default:
			return nil
		}
	}
	s.ahead = nil
	return a
}

// post leaves something for the owner.
func (x *SteppedMirror) post(do func()) {
	if !x.over {
		x.queue = append(x.queue, do)
	}
}

// call has something done in its turn, by whoever is the owner then.
func (x *SteppedMirror) call(do func()) (ok bool) {
	done := false
	x.post(func() { do(); done = true })
	for !done && !x.over {
		if !x.owning {
			x.ownPosted()
			continue
		}
		x.wait(func() bool { return done || x.over || !x.owning })
	}
	return done
}

// enter is mirror.enter by the node's own clock.
func (x *SteppedMirror) enter(s *mirrorSession) error {
	m := x.m
	limit := m.now().Add(slotTimeout)
	in, _, err := m.tryEnter(s)
	if in || err != nil {
		return err
	}
	x.wait(func() bool {
		in, _, err = m.tryEnter(s)
		return in || err != nil || s.ctx.Err() != nil || m.now().After(limit)
	})
	switch {
	case in || err != nil:
		return err
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	}
	return m.occupied()
}

// Measure tells the owner to look at its room, as the daemon does every second.
func (x *SteppedMirror) Measure() {
	if x.measures {
		return
	}
	x.measures = true
	x.post(func() {
		x.measures = false
		x.m.measure()
	})
}

// Retry has a mirror opened again that has failed and that may be tried again, as the daemon does some time
// after it.
func (x *SteppedMirror) Retry() {
	x.post(func() {
		if x.m.view.err != nil && !x.m.final {
			x.m.tryOpen()
		}
	})
}

// Attach takes a primary up whose Attach came behind the Hellos. It may wait: until what was committed before
// the mirror was opened is applied, and until a former session is over.
//
// An error says why there is no session; the primary was told. Without either, a primary that lost its journal
// has got its answer. In both cases nothing else is expected from the connection.
func (x *SteppedMirror) Attach(conn Conn, hello *wire.Hello, a *wire.Attach, peer string) (*SteppedSession, error) {
	x.wait(func() bool { return x.over || x.Replayed() })
	conn.Established()
	if answer := x.m.introduction(a); answer != nil {
		return nil, conn.Send(answer)
	}
	s, err := x.m.admit(x.m.aborted, conn, hello, a, &pass{addr: peer})
	if err != nil {
		_ = conn.Send(&wire.Refused{Code: codeOf(err), Text: wire.CleanText(err.Error())})
		return nil, err
	}
	return &SteppedSession{s: s}, nil
}

// Replayed says that nothing is left to be applied that was committed before the mirror was opened, or that this
// failed. The daemon takes nobody up before.
func (x *SteppedMirror) Replayed() bool {
	select {
	case <-x.m.replayed:
		return true
	default:
		return false
	}
}

// Stop begins a clean stop, and tells whether it has come to its end. The rest is Own's, and that of the
// session, which has to end.
func (x *SteppedMirror) Stop() (stopped bool) {
	if !x.stopping {
		x.stopping = true
		x.post(x.m.beginStop)
	}
	return x.over
}

// Crash is the end of the process: whoever waits returns, and nothing more is done. Files and devices are as
// they are.
func (x *SteppedMirror) Crash() {
	if !x.over {
		x.end()
	}
}

// Pause, Resume and Rebuild are a person's. They may wait.
func (x *SteppedMirror) Pause() error   { return x.m.pause() }
func (x *SteppedMirror) Resume() error  { return x.m.resume("") }
func (x *SteppedMirror) Rebuild() error { return x.m.rebuild() }

// Failed is why the mirror cannot be used; once it has stopped, what went wrong with that.
func (x *SteppedMirror) Failed() error {
	if x.m.settled != nil {
		return x.m.settled
	}
	return asError(x.m.view.err)
}

// Facts are those that are durable; the zero value where it has no role yet.
func (x *SteppedMirror) Facts() journal.VolumeFacts { return x.m.view.facts }

// Status is what the daemon would tell.
func (x *SteppedMirror) Status() (st VolumeStatus) {
	x.m.fill(&st)
	return st
}

// DoubtPages is how many pages the mirror cannot vouch for; while it is open.
func (x *SteppedMirror) DoubtPages() uint64 {
	if x.m.store == nil {
		return 0
	}
	return x.m.core.DoubtPages()
}

// Staged is what is staged and not committed.
func (x *SteppedMirror) Staged() (s replica.Staged, ok bool) {
	if x.m.store == nil {
		return s, false
	}
	return x.m.core.Staged()
}

// Busy says that an apply or a comparison is under way.
func (x *SteppedMirror) Busy() bool { return x.m.store != nil && x.m.store.busy > 0 }

// StagedPayload is where a payload lies that is committed and not applied: in which file, at which offset, and how
// many bytes; 0: there is none. nth chooses one of the first.
func (x *SteppedMirror) StagedPayload(nth int) (path string, at int64, n int) {
	s := x.m.store
	if s == nil || len(s.sealed) == 0 {
		return "", 0, 0
	}
	st := s.sealed[0]
	_ = st.Plan(func(p journal.StagingPiece) error { // what it cannot read is no payload
		if p.Record.Kind == journal.StagingData && (n == 0 || nth > 0) {
			at, n = p.At, p.Record.PayloadLength
			nth--
		}
		return nil
	})
	return st.Path(), at, n
}

// Overlay changes the device's content to that of the last committed cut: it puts over it what is committed and
// not applied. It reads staging only.
func (x *SteppedMirror) Overlay(content []byte) error {
	s := x.m.store
	if s == nil {
		return errors.New("the mirror is not open")
	}
	for _, st := range s.sealed {
		a := &applier{mirrorStore: s, st: st, whole: make([]byte, s.blockSize)}
		err := st.Plan(func(p journal.StagingPiece) error {
			dst := content[p.Offset:][:p.Length]
			if p.Record.Kind == journal.StagingZero {
				clear(dst)
				return nil
			}
			good, _, err := a.read([]journal.StagingPiece{p}, dst)
			if err == nil && !good[0] {
				err = journal.ErrDamaged
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
