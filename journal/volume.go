package journal

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/blockdev"
)

// VolumeLog is the journal of a live volume, in its volume's folder:
//
//	DIR/lock                       held while it is in use (LockDir)
//	DIR/journal/                   a Log of kind KindVolume: marks, facts, records of checkpoints
//	DIR/journal/0000000007.ckpt    a checkpoint
//	DIR/journal/spare.1, reserve   room for a full disk
//
// Other files in the folder are the caller's. Methods may be called concurrently. What is appended is
// ordered, and durable after Sync.
//
// A checkpoint at an instant T makes everything before T superfluous:
//
//	BeginCheckpoint   T: a new segment. From here on marks go there
//	                  (the caller flushes the device and takes snapshots of its sets)
//	Finish            (1) the file, synced under its name, (2) the record that names it, synced,
//	                  (3) older segments and files go
//
// A crash before (2) leaves the former checkpoint and all marks since its T, a crash behind it the new one
// and all marks since this T.
type VolumeLog struct {
	fs   FS
	dir  string // of the segments
	opts VolumeOptions
	log  *Log

	regions  atomic.Uint64         // of the volume
	since    atomic.Int64          // bytes of marks and facts since the last T
	unmarked atomic.Pointer[error] // the first mark that could not be appended: sticky
	reserved atomic.Bool           // there is room for the next checkpoint, or one under way has it

	mu         sync.Mutex // also makes a lists record, its facts and a rotation one order
	encoded    []byte     // the facts appended last, since the start
	changes    uint64     // of facts
	size       int64      // of the volume
	lists      listsAt    // those of encoded
	checkpoint *Checkpoint
	named      uint64 // number of the last checkpoint
	reserve    int64  // bytes that the next one may take
}

// listsAt is what a lists record holds.
type listsAt struct {
	missing bool // the record is not there: what it held is not known
	lsn     LSN  // 0: no record, and all of it is empty
	stale   bool // the record may go with the next checkpoint
	replicaLists
}

// VolumeOptions of a volume's journal. The zero value of a field stands for its default.
type VolumeOptions struct {
	SegmentSize int64          // bytes; see Options. Default 16 MiB
	BufferSize  int            // bytes; see Options. Default 1 MiB
	Random      func(b []byte) // see Options

	// RegionSize is the unit of marks, in bytes: a power of two of at least a page, and always the same for
	// one journal, which does not know it. Default RegionSize.
	RegionSize int64

	// Spares is how many further segments there is always room for. Default 2.
	Spares int

	// ReserveMin and ReserveMax limit the room that is kept for the next checkpoint, in bytes. Between
	// them it is what the sets of the last one would take at most. Default 1 MiB and 256 MiB.
	ReserveMin, ReserveMax int64
}

const (
	defaultSpares     = 2
	defaultReserveMin = 1 << 20
	defaultReserveMax = 256 << 20

	// lastRoomMax is what is kept in every segment for facts, and the second half of it for the record of
	// a checkpoint, without which no room would ever come back.
	lastRoomMax = 128 << 10

	volumeLogDir = "journal"
)

func (o VolumeOptions) withDefaults() VolumeOptions {
	log := Options{SegmentSize: o.SegmentSize, BufferSize: o.BufferSize}.withDefaults()
	o.SegmentSize, o.BufferSize = log.SegmentSize, log.BufferSize
	if o.RegionSize == 0 {
		o.RegionSize = RegionSize
	}
	if o.Spares == 0 {
		o.Spares = defaultSpares
	}
	if o.ReserveMin == 0 {
		o.ReserveMin = defaultReserveMin
	}
	if o.ReserveMax == 0 {
		o.ReserveMax = defaultReserveMax
	}
	return o
}

// NamedSet is a set of pages or blocks in a checkpoint.
type NamedSet struct {
	Name  string
	Pages *blockdev.PageSet
}

// VolumeState is what a journal remembers.
type VolumeState struct {
	Found bool // false: the journal is new, or its first facts never became durable
	Facts VolumeFacts
	Sets  []NamedSet // of the last complete checkpoint, in its order
	Hot   []uint64   // regions that it lists or that were marked since its T; ascending, distinct
}

// OpenVolume opens the journal in a volume's folder, or makes one. The caller holds LockDir of the folder.
// ErrDamaged: what was durable is not there any more; nothing was changed. See SetAsideVolume.
func OpenVolume(fs FS, dir string, o VolumeOptions) (*VolumeLog, *VolumeState, error) {
	l := &VolumeLog{fs: fs, dir: filepath.Join(dir, volumeLogDir), opts: o.withDefaults()}
	state, err := l.open()
	if err != nil {
		return nil, nil, fmt.Errorf("journal of volume %s: %w", dir, err)
	}
	return l, state, nil
}

func (l *VolumeLog) open() (*VolumeState, error) {
	r := volumeReplay{fs: l.fs, dir: l.dir, regionSize: l.opts.RegionSize}
	var err error
	l.log, err = Open(l.fs, l.dir, Options{
		Kind:        KindVolume,
		SegmentSize: l.opts.SegmentSize,
		BufferSize:  l.opts.BufferSize,
		Random:      l.opts.Random,
		Spares:      l.opts.Spares,
		lastRoom:    min(lastRoomMax, l.opts.SegmentSize/8),
		verify:      r.verify,
	}, r.replay)
	if err != nil {
		return nil, err
	}
	l.named, l.lists = r.record.number, r.lists
	l.lists.replicaLists = r.lists.clone() // the caller gets the others
	if r.found {
		l.size = r.state.Facts.Size
		l.regions.Store(r.state.Facts.regions(l.opts.RegionSize))
	}
	l.since.Store(r.bytes)
	// What a crash has left between the record of a checkpoint and the end of Finish.
	if err := l.dropBefore(r.record); err != nil {
		return nil, errors.Join(err, l.log.Close())
	}
	l.wantReserve(r.state.Sets, r.state.Hot)
	l.Refill()
	state := r.state // and let go of the rest
	return &state, nil
}

// Mark says that writes to these regions may be under way from the moment it is durable on: they are hot
// in what a recovery finds, until a checkpoint whose T comes later does not list them. It is appended and
// not durable. A mark that cannot be appended, or synced, is the last: Err is sticky from then on.
func (l *VolumeLog) Mark(regions []uint64) (LSN, error) {
	if err := l.unmarked.Load(); err != nil {
		return 0, *err
	}
	limit := l.regions.Load()
	for _, r := range regions {
		if r >= limit {
			return 0, fmt.Errorf("mark region %d of %d in %s: %w", r, limit, l.dir, ErrFacts)
		}
	}
	buf := markBuffers.Get().(*[]byte)
	defer markBuffers.Put(buf)
	var lsn LSN
	for len(regions) > 0 {
		n := min(len(regions), maxMarked)
		*buf = appendMark((*buf)[:0], regions[:n])
		var err error
		if lsn, err = l.log.Append(typeMark, *buf); err != nil {
			err = fmt.Errorf("mark: %w", err)
			l.unmarked.CompareAndSwap(nil, &err)
			return 0, err
		}
		l.since.Add(frameSize(len(*buf)))
		regions = regions[n:]
	}
	return lsn, nil
}

// markBuffers keeps Mark from allocating.
var markBuffers = sync.Pool{New: func() any { return new([]byte) }}

// Sync returns when a record, and with it every earlier one, is durable. Callers share one fdatasync.
func (l *VolumeLog) Sync(lsn LSN) error { return l.log.Sync(lsn) }

// SetFacts makes these the facts, durably.
func (l *VolumeLog) SetFacts(f VolumeFacts) error {
	lsn, err := l.AppendFacts(f)
	if err != nil {
		return err
	}
	return l.log.Sync(lsn)
}

// AppendFacts makes these the facts; they are durable after Sync. Facts may still be appended when the
// room for marks is used up.
func (l *VolumeLog) AppendFacts(f VolumeFacts) (LSN, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	encoded, err := l.encodeLocked(&f, l.log.opts.lastRoom/2)
	if err != nil {
		return 0, err
	}
	lsn, err := l.log.appendLast(typeFacts, encoded, l.log.opts.lastRoom/2)
	if err != nil {
		return 0, err
	}
	l.since.Add(frameSize(len(encoded)))
	l.adoptLocked(&f, encoded)
	return lsn, nil
}

// encodeLocked checks facts and encodes them. Where the lists have changed, or their record may go with
// older segments, it appends them first.
func (l *VolumeLog) encodeLocked(f *VolumeFacts, leave int64) ([]byte, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	if f.Size < l.size {
		return nil, fmt.Errorf("%w: size %d, and it was %d", ErrFacts, f.Size, l.size)
	}
	next := listsAt{replicaLists: f.Mirror.lists()}
	switch {
	case next.empty():
	case !l.lists.stale && next.equal(&l.lists.replicaLists):
		return encodeFacts(f, l.lists.lsn), nil
	default:
		body := encodeLists(&next.replicaLists)
		lsn, err := l.log.appendLast(typeLists, body, leave)
		if err != nil {
			return nil, err
		}
		l.since.Add(frameSize(len(body)))
		next = listsAt{lsn: lsn, replicaLists: next.clone()}
	}
	l.lists = next
	return encodeFacts(f, next.lsn), nil
}

// adoptLocked notes facts whose record has been appended.
func (l *VolumeLog) adoptLocked(f *VolumeFacts, encoded []byte) {
	l.encoded, l.size = encoded, f.Size
	l.changes++
	l.regions.Store(f.regions(l.opts.RegionSize))
}

// SinceCheckpoint is how many bytes of marks and facts there are since the T of the last checkpoint that
// was finished or is under way. A checkpoint is due at 16 MiB.
func (l *VolumeLog) SinceCheckpoint() int64 { return l.since.Load() }

// Low says that only the reserved room is left, or not even that. Cuts, spool and staging stop then, so
// that marks can go on. See Refill.
func (l *VolumeLog) Low() bool {
	return !l.reserved.Load() || l.log.low()
}

// Refill tries to get the reserved room that is missing, and reports whether all of it is there. While Low
// it is worth a try from time to time; checkpoints try it too.
func (l *VolumeLog) Refill() bool {
	l.log.refill()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.reserved.Load() && l.checkpoint == nil {
		l.allocateReserveLocked()
	}
	return !l.Low()
}

// Err is the sticky error: the journal takes no marks any more, and must be opened anew.
func (l *VolumeLog) Err() error {
	if err := l.unmarked.Load(); err != nil {
		return *err
	}
	return l.log.Err()
}

// Close makes everything appended durable and releases the files.
func (l *VolumeLog) Close() error { return l.log.Close() }

// SetAsideVolume gives the journal in a volume's folder another name, durably and as a whole, so that
// OpenVolume makes a new one. It returns that name, for the user to be told; none where there was no
// journal.
func SetAsideVolume(fs FS, dir string) (to string, err error) {
	return setAside(fs, dir, volumeLogDir)
}
