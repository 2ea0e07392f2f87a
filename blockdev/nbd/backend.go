package nbd

import (
	"errors"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Backend is a volume as the server sees it.
//
// Every method may be called from many goroutines at once. Ranges are inside [0, Size), which the server
// checks, and of any alignment. p is only the callee's during the call; buffers are aligned to
// blockdev.Alignment at their first byte.
//
// Errors go to the log as they are, and to the client as the code that errors.go gives them.
type Backend interface {
	// Size does not change while a client is connected.
	Size() int64

	// ReadOnly is asked when a client connects and before every request that would change something: a
	// volume may become read-only later.
	ReadOnly() bool

	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error

	// Zero makes a range read as zeroes; with mayFree the space may be given back.
	Zero(off, n int64, mayFree bool) error

	// Trim is a hint that the content of a range is not needed.
	Trim(off, n int64) error

	// Flush makes durable everything that was answered before the call, on any connection.
	Flush() error

	// CheapZero tells that Zero needs no data transfer.
	CheapZero() bool

	// NextData is blockdev.Device.NextData.
	NextData(off int64) (blockdev.Extent, error)
}

// Export is a volume under a name.
type Export struct {
	Name        string // at most 4096 bytes, in UTF-8; the protocol recommends no more than 256
	Description string // for people; the same limits
	Backend     Backend
}

// ErrReadOnly is what a Backend's errors wrap that come of the volume being read-only.
var ErrReadOnly = errors.New("the volume is read-only")
