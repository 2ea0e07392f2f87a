package blockdev

import (
	"errors"
	"fmt"
)

// Why a device could not be opened.
var (
	ErrMounted   = errors.New("is mounted")
	ErrBusy      = errors.New("is in use by another program")
	ErrReadOnly  = errors.New("is read-only")
	ErrDirectory = errors.New("is a directory")
	ErrEmpty     = errors.New("is empty")
	ErrNotDisk   = errors.New("is neither a block device nor a regular file")
)

// What can happen to a request.
var (
	ErrOutOfRange = errors.New("range is outside the device")
	ErrShortIO    = errors.New("device moved fewer bytes than asked")
)

// Error says what was tried on which device, where, and what happened. The cause is wrapped: callers
// use errors.Is with the sentinels of this package and with syscall.Errno values such as ENOSPC.
type Error struct {
	Op     string // "open", "read", "write", "flush", "zero", "discard", "map", "lock", ...
	Path   string
	Offset int64 // with Length 0: the request has no range
	Length int64
	Err    error
}

func (e *Error) Error() string {
	if e.Length == 0 {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Path, e.Err)
	}
	return fmt.Sprintf("%s %s at %d+%d: %v", e.Op, e.Path, e.Offset, e.Length, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }
