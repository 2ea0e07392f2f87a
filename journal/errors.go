package journal

import (
	"errors"
	"fmt"
)

// What can be found when something is opened.
var (
	// ErrDamaged marks bytes that were durable and are not what was written. Nothing was repaired.
	ErrDamaged = errors.New("is damaged")
	// ErrVersion marks a format of another version of blkmirror. It is not damage.
	ErrVersion = errors.New("has another format version")
	// ErrKind marks a log that serves another purpose.
	ErrKind = errors.New("is a log of another kind")
	// ErrLocked marks a folder that another process uses.
	ErrLocked = errors.New("is in use by another process")
	// ErrIndexDamaged marks an index that cannot be opened. RemoveIndex and a new one are the remedy.
	ErrIndexDamaged = errors.New("index is damaged")
	// ErrIndexUnclean marks an index whose user was killed: the next one to open it recovers it, which
	// writes, so that Dump does not.
	ErrIndexUnclean = errors.New("was not closed cleanly and can be shown only after its next use")
	// ErrUnknownPath marks a path that holds nothing that this package writes.
	ErrUnknownPath = errors.New("is neither a log, a segment, a sync or volume folder, a checkpoint, an index nor staging")
)

// What a caller can do wrong.
var (
	ErrClosed   = errors.New("is closed")
	ErrTooLarge = errors.New("record is too large")
	ErrType     = errors.New("record type is not allowed")
	ErrNoRecord = errors.New("no such record was appended")
	ErrState    = errors.New("sync state does not hold together")
	ErrNotBegun = errors.New("no run was begun")
)

// What staging can say no to.
var (
	// ErrStaging marks a record, point or footer that cannot be one of this staging.
	ErrStaging = errors.New("does not fit the staging")
	// ErrSealed marks staging that has its footer and takes nothing more.
	ErrSealed = errors.New("is sealed")
)

// What a volume's journal can say no to.
var (
	// ErrNoRoom marks a log that has filled the room which it kept, on a disk that has no more.
	ErrNoRoom = errors.New("no room is left for the journal")
	// ErrFacts marks facts, sets or regions that cannot be those of a volume.
	ErrFacts = errors.New("volume facts do not hold together")
	// ErrCheckpoint marks a checkpoint that is begun while another is under way, or used when it is over.
	ErrCheckpoint = errors.New("one checkpoint at a time, and each only once")
)

// ErrIndexNoRoom is returned by an index while its file system has less than a reserve left: it does its
// I/O through memory maps, where a full disk is a signal and not an error.
var ErrIndexNoRoom = errors.New("too little room is left for the index")

// DamagedError says which bytes are damaged. errors.Is(err, ErrDamaged) holds.
type DamagedError struct {
	Path   string
	Offset int64
	Reason string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged at offset %d: %s", e.Path, e.Offset, e.Reason)
}

// Is makes ErrDamaged the mark of every DamagedError.
func (e *DamagedError) Is(target error) bool { return target == ErrDamaged }
