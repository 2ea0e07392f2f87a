// Package track is the hot write path of a primary: what every write of a client goes through, and what
// the shippers read behind it.
//
//	RangeLock   who may touch which pages now
//	Tracker     which pages which consumer still has to be sent, and which regions are durably marked
//	Capture     contents of a cut that were about to be overwritten, one store per consumer
//	Path        the four put together over a Device: write, zero, trim, and reading what is closed
//
// A consumer is a mirror, or the index, which is kept up like one. The package has no goroutine and no
// clock of its own: the daemon and the simulator run the same code.
//
// Locks, in the order in which they may be taken: a range of the RangeLock, then Tracker.mu, then
// Capture.mu. No device, journal or spool is touched under one of the two mutexes.
//
// # Why a cut is exact
//
// A write takes its range exclusively, and then Begin is its entry: one step under Tracker.mu, as CutStep
// is. So each write is wholly before or wholly after a cut.
//
//   - A write that entered before the cut and has not reached the device yet holds its range until it has;
//     its pages were in open, so the cut put them into todo, and a shipper reads a page of todo only under
//     the shared range: it waits for the write.
//   - A write that entered after the cut learns in its Begin, the same step, which consumers have its pages
//     in todo. It keeps their old content for these before it writes. Between its Begin and that moment no
//     shipper can read the pages, which the writer holds, so they are still to be captured; and where the
//     consumer gave up or took another cut meanwhile, its round has changed and the content is dropped:
//     to the later cut the write belongs already.
//   - A shipper that holds the shared range keeps such a writer out until what it read is entered as read;
//     the page is in todo no more and the writer, whose Begin comes after it has the range, captures
//     nothing.
//   - A page in todo of two consumers at different cuts was not written in between (else it had been
//     captured for the first and left its todo), so one content serves both.
package track

import "errors"

// Sizes of the design.
const (
	regionPages = 1024  // 4 MiB, the unit of durable marks
	claimPages  = 256   // 1 MiB: what a shipper reads at once, and the grid that it keeps to
	holePages   = 16384 // 64 MiB: a hole that a shipper passes over at once
	holeWorth   = 16    // 64 KiB: a shorter run costs less to read than to ask the file system about
	zeroPiece   = 64 << 20
)

// ErrGivenUp: the pass that was being read is over, because its cut was given up or dropped; nothing can
// be read until the consumer takes another cut. What was handed out before stays what it was: content of
// that cut.
var ErrGivenUp = errors.New("the cut was given up")

// ErrUnfinished: not everything of an epoch was read, or the commit before it is unanswered.
var ErrUnfinished = errors.New("the epoch is not complete")

// Run is a range of pages.
type Run struct {
	First, Count uint64
}

// End is the first page behind the run.
func (r Run) End() uint64 { return r.First + r.Count }
