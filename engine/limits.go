package engine

import (
	"math"
	"time"
)

// What the copy pipeline may hold and how long it waits. Every queue of the engine is bounded by one of
// these, in bytes or in entries of known size.
const (
	DefaultBlockSize = 64 << 10
	MinBlockSize     = 4 << 10
	MaxBlockSize     = 1 << 20

	chunkSize     = 1 << 20  // unit of reading, offering and batching; a multiple of every block size
	sourceChunks  = 24       // chunks that the source works on at once: read, hashed, offered, packed
	sourceReads   = 8        // of these, reads in flight
	sourceMemory  = 56 << 20 // two buffers a chunk (raw, packed), and a retried block
	windowBytes   = 24 << 20 // unacknowledged raw payload that the target grants
	slowWindow    = 2 << 20  // the same where a rate is to be kept: what may come at once before it
	targetMemory  = 80 << 20 // window, packed payloads, offers' and read-back buffers
	targetWriters = 6
	targetOffers  = 4 // offers being compared at once
	maxOffers     = sourceChunks
	maxDuties     = 4        // Flush and Commit that wait; an honest source has two
	maxUnacked    = 16 << 10 // records that may be open, whatever the window
	maxPieces     = 8 << 10  // spans begun behind one that is not confirmed

	maxReships      = 3 // of one block, before a mismatch is final
	flushEvery      = 2 * time.Second
	lastFlushNumber = math.MaxUint64   // of the Flush that nobody waits for
	openTimeout     = 60 * time.Second // a target that lives may take that long to open its device
	slotTimeout     = 5 * time.Second  // what a new session waits for the end of a former one
	byeTimeout      = 5 * time.Second  // what a stopping side grants the other for its last words
	backoffFirst    = 200 * time.Millisecond
	backoffMax      = 30 * time.Second

	captureMemory = 64 << 20 // old contents that a mirror's cut still needs, in memory …
	captureSpool  = 1 << 30  // … and then in a file

	recheckBlocks  = 512      // blocks that are looked up in the index at once: one of its pages
	maxDoubts      = 64 << 10 // extents; more are merged into one that covers all
	maxExtentsRead = 1 << 17  // extents of a target that are looked at to find its last data
)
