package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
)

// Options of a log. The zero value of a field stands for its default.
type Options struct {
	Kind Kind // what the log is for; no default

	// SegmentSize is the size in bytes at which a segment is full. A record that does not fit into an
	// empty segment gets one for itself. Default 16 MiB.
	SegmentSize int64

	// BufferSize is how many bytes of records wait in memory before Append writes them. Two buffers of
	// this size are held at most. Default 1 MiB.
	BufferSize int

	// Spares is how many further segments there is always room for, allocated ahead: see spare.go.
	// Default none.
	Spares int

	// Random fills a new log's identity. Default crypto/rand.
	Random func(b []byte)

	// lastRoom is how many bytes at the end of a segment stay free for appendLast, which gets them only
	// where no further segment can be had.
	lastRoom int64

	// verify is asked when everything was replayed and before anything is changed. It is given the header
	// of the oldest segment, zero where there is none.
	verify func(oldest segmentHeader) error
}

const (
	defaultSegmentSize = 16 << 20
	defaultBufferSize  = 1 << 20
)

func (o Options) withDefaults() Options {
	if o.SegmentSize == 0 {
		o.SegmentSize = defaultSegmentSize
	}
	if o.BufferSize == 0 {
		o.BufferSize = defaultBufferSize
	}
	if o.Random == nil {
		o.Random = func(b []byte) { rand.Read(b) } // which never fails
	}
	return o
}

// Log is an append-only record log in segments. All methods may be called concurrently.
//
// A log has no goroutine of its own. I/O is done by whichever caller holds the token `busy`, with the
// lock released, so that others go on appending meanwhile; what they append is written and synced
// together by whoever takes the token next. That is the group commit:
//
//	A: Sync(1) takes the token, writes 1, fdatasync ............ done: durable=1
//	B:   Append 2, Sync(2) waits for the token                   takes it, writes 2 and 3, fdatasync
//	C:     Append 3, Sync(3) waits                               ... finds durable=3, no I/O
//
// A write or sync that fails is sticky: what it left on disk is not known, and the kernel may have
// dropped the pages it could not write. From then on every call fails with that cause, until the log is
// opened anew and recovery has found out what is there.
type Log struct {
	fs   FS
	dir  string
	opts Options
	id   logID

	mu   sync.Mutex
	idle sync.Cond // signalled when busy or sealing falls

	// guarded by mu
	busy    bool // token: its holder alone does I/O on file
	sealing bool // a rotation is under way: nothing may be appended to the old segment
	closed  bool
	err     error // sticky
	next    LSN   // of the next record
	durable LSN   // every record up to here is durable
	tail    int64 // offset in the last segment of the next record
	buf     []byte
	spare   []byte        // the other buffer, while it is not being written
	segs    []SegmentInfo // ascending, never empty
	spares  []string      // paths of the spare segments
	noRoom  error         // why there are fewer than there should be

	file File // the last segment; changed only under both mu and the token
}

// Append adds a record behind all others and returns its LSN. It is durable only after Sync of that LSN
// or a later one. The body is copied. Append does I/O when its buffer or the segment is full.
func (l *Log) Append(t Type, body []byte) (LSN, error) { return l.append(t, body, l.opts.lastRoom) }

// appendLast is Append for a record that may take of the room that is kept for the last ones, and leaves so
// many bytes of it.
func (l *Log) appendLast(t Type, body []byte, leave int64) (LSN, error) {
	return l.append(t, body, leave)
}

func (l *Log) append(t Type, body []byte, leave int64) (LSN, error) {
	if t == 0 {
		return 0, fmt.Errorf("append to log %s: %w: 0", l.dir, ErrType)
	}
	if len(body) > MaxBody {
		return 0, fmt.Errorf("append to log %s: %w: %d bytes, at most %d", l.dir, ErrTooLarge, len(body), MaxBody)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.makeRoomLocked(frameSize(len(body)), leave); err != nil {
		return 0, err
	}
	lsn, before := l.next, len(l.buf)
	at := place{l.id, l.lastLocked().Number, l.tail}
	l.buf = appendFrame(l.buf, at, t, lsn, l.durable, body)
	l.tail += int64(len(l.buf) - before)
	l.next++
	return lsn, nil
}

// makeRoomLocked returns when a frame of n bytes may be put into the buffer.
func (l *Log) makeRoomLocked(n, leave int64) error {
	for {
		limit := l.opts.SegmentSize - l.opts.lastRoom
		if l.fullLocked() {
			limit = l.opts.SegmentSize - leave
		}
		switch {
		case l.err != nil:
			return l.err
		case l.closed:
			return l.closedError()
		case l.sealing:
			l.idle.Wait()
		case l.tail > segmentHeaderSize && l.tail+n > limit:
			err := l.rotateLocked()
			if err != nil && (!errors.Is(err, ErrNoRoom) || l.tail+n > l.opts.SegmentSize-leave) {
				return err
			}
		case len(l.buf) == 0 || int64(len(l.buf))+n <= int64(l.opts.BufferSize):
			return nil
		case l.busy:
			l.idle.Wait()
		default:
			l.busy = true
			l.flushLocked(false)
			l.releaseLocked()
		}
	}
}

// Sync returns when the record lsn, and with it every earlier one, is durable, or cannot be made so.
func (l *Log) Sync(lsn LSN) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lsn >= l.next {
		return fmt.Errorf("sync log %s up to %d: %w, the next is %d", l.dir, lsn, ErrNoRecord, l.next)
	}
	for {
		switch {
		case lsn <= l.durable:
			return nil
		case l.err != nil:
			return l.err
		case l.busy:
			l.idle.Wait()
		default:
			l.busy = true
			l.flushLocked(true)
			l.releaseLocked()
		}
	}
}

// AppendSync appends a record and makes it durable.
func (l *Log) AppendSync(t Type, body []byte) (LSN, error) {
	lsn, err := l.Append(t, body)
	if err != nil {
		return 0, err
	}
	return lsn, l.Sync(lsn)
}

// flushLocked writes what is buffered and, with sync, makes everything appended before the call durable.
// The caller holds the token. The lock is released during the I/O.
func (l *Log) flushLocked(sync bool) {
	batch, last, file := l.buf, l.next-1, l.file
	off := l.tail - int64(len(batch))
	l.buf, l.spare = l.spare[:0], nil

	l.mu.Unlock()
	err := writeAt(file, batch, off)
	if err == nil && sync {
		err = file.Sync()
	}
	l.mu.Lock()

	// A batch that one huge record has blown up is not kept.
	if cap(batch) <= 2*l.opts.BufferSize {
		l.spare = batch[:0]
	}
	if err != nil {
		l.failLocked(fmt.Errorf("write %s at %d: %w", l.lastLocked().Path, off, err))
	} else if sync {
		l.durable = last
	}
}

// releaseLocked gives the token back and wakes all who wait for it or for what its holder did.
func (l *Log) releaseLocked() {
	l.busy = false
	l.idle.Broadcast()
}

// failLocked makes the first failure the log's last word.
func (l *Log) failLocked(err error) {
	if l.err == nil {
		l.err = fmt.Errorf("log %s failed and must be opened anew: %w", l.dir, err)
	}
}

// Rotate starts a new segment and returns its number: every record that was appended before the call is
// durable and lies in an older one, every record appended after it returned in this one or a later one.
// Where the last segment is still empty it is that one.
func (l *Log) Rotate() (segment uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.sealing && l.err == nil {
		l.idle.Wait()
	}
	if l.err != nil {
		return 0, l.err
	}
	if l.closed {
		return 0, l.closedError()
	}
	if l.tail > segmentHeaderSize {
		if err := l.rotateLocked(); err != nil {
			return 0, err
		}
	}
	return l.lastLocked().Number, nil
}

// rotateLocked seals the last segment and starts the next one. Order: (1) appends wait, (2) the old
// segment is made durable as a whole, which lets recovery treat any hole in it as damage, (3) the new
// one is made with its header and name durable, (4) appends go on.
//
// Where a log that keeps spares has none left and can make none: ErrNoRoom, and the log is as before.
func (l *Log) rotateLocked() error {
	l.sealing = true
	for l.busy {
		l.idle.Wait()
	}
	l.busy = true
	if l.err == nil && len(l.spares) == 0 {
		l.refillLocked()
	}
	full := l.fullLocked()
	if l.err == nil && !full {
		l.flushLocked(true)
	}
	if l.err == nil && !full {
		l.startSegmentLocked()
	}
	l.sealing = false
	l.releaseLocked()
	if l.err == nil && full {
		return fmt.Errorf("log %s: %w: %w", l.dir, ErrNoRoom, l.noRoom)
	}
	return l.err
}

// startSegmentLocked makes the next segment the last one. The caller holds the token and is sealing.
func (l *Log) startSegmentLocked() {
	h := segmentHeader{kind: l.opts.Kind, id: l.id, number: l.lastLocked().Number + 1, first: l.next}
	old, spare := l.file, ""
	if len(l.spares) > 0 {
		spare, l.spares = l.spares[0], append(l.spares[:0:0], l.spares[1:]...)
	}

	l.mu.Unlock()
	file, err := createSegment(l.fs, l.dir, h, spare, 0)
	if err == nil {
		err = old.Close()
	}
	l.mu.Lock()

	if err != nil {
		l.failLocked(fmt.Errorf("start segment %d: %w", h.number, err))
		if file != nil {
			file.Close()
		}
		return
	}
	l.segs[len(l.segs)-1].Bytes = l.tail
	l.segs = append(l.segs, SegmentInfo{h.number, h.first, segmentHeaderSize, segmentPath(l.dir, h.number)})
	l.file, l.tail = file, segmentHeaderSize
	l.refillLocked()
}

// DropBefore removes every segment with a lower number, the last one excepted. They go one by one from
// the oldest on, each durably, so that what a crash leaves has no gap.
func (l *Log) DropBefore(segment uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.busy && l.err == nil {
		l.idle.Wait()
	}
	if l.err != nil {
		return l.err
	}
	if l.closed {
		return l.closedError()
	}
	l.busy = true
	defer l.releaseLocked()
	for len(l.segs) > 1 && l.segs[0].Number < segment {
		path := l.segs[0].Path
		l.mu.Unlock()
		err := l.fs.Remove(path)
		if err == nil {
			err = l.fs.SyncDir(l.dir)
		}
		l.mu.Lock()
		if err != nil {
			l.failLocked(fmt.Errorf("drop %s: %w", path, err))
			return l.err
		}
		l.segs = append(l.segs[:0:0], l.segs[1:]...)
	}
	l.refillLocked()
	return nil
}

// Segments lists the segments, the oldest first.
func (l *Log) Segments() []SegmentInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	segs := append([]SegmentInfo(nil), l.segs...)
	segs[len(segs)-1].Bytes = l.tail
	return segs
}

// Durable is the LSN up to which everything is durable.
func (l *Log) Durable() LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

// Err is the sticky error.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close makes everything appended durable and releases the files. It returns the sticky error, if there
// is one. A second call does nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	for l.busy || l.sealing {
		l.idle.Wait()
	}
	l.busy = true
	if l.err == nil && l.durable < l.next-1 {
		l.flushLocked(true)
	}
	err := errors.Join(l.err, l.file.Close())
	l.releaseLocked()
	return err
}

func (l *Log) lastLocked() SegmentInfo { return l.segs[len(l.segs)-1] }

func (l *Log) closedError() error { return fmt.Errorf("log %s %w", l.dir, ErrClosed) }
