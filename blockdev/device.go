// Package blockdev is the room of disks: what blkmirror reads, writes and makes durable.
//
// A Device is an image file or a Linux block device, opened with O_DIRECT. Around it stand the aligned
// buffer pool, page sets, and the facts by which a device is recognised again. The package knows no
// network and no journal.
package blockdev

// Sizes that formats and the wire rely on. They are frozen.
const (
	PageSize = 4 << 10 // unit of dirty tracking
	// Alignment is what buffers are aligned to, and what offsets and lengths should be multiples of to
	// take the fast path. It covers logical sectors of 512 and 4096 bytes.
	Alignment = 4096
)

// Device is a fixed-size array of bytes with explicit durability.
//
// Concurrency: every method may be called from many goroutines at once, except Close, which must come
// last. Overlapping concurrent writes leave the bytes of one of them per logical sector; who needs an
// order holds a range lock.
//
// Alignment: any offset and length is accepted. Requests that are multiples of the logical sector, from
// a buffer aligned to Alignment, go straight to the device; others are bounced, and writes of partial
// sectors are read-modify-written under a lock that excludes the same sectors from other writes.
//
// Bounds: a request that is not wholly inside [0, Size) fails with ErrOutOfRange and touches nothing.
//
// Errors are *Error: operation, path, byte range, cause.
type Device interface {
	// ReadAt fills p from off. n < len(p) only together with an error. What is returned after a
	// completed WriteAt of the same range is that write's data.
	ReadAt(p []byte, off int64) (n int, err error)

	// WriteAt writes p at off. The data is durable only after a later Flush. After an error any part of
	// the range may hold old or new bytes. p is not kept.
	WriteAt(p []byte, off int64) (n int, err error)

	// Flush makes every write, zero and discard that completed before the call durable, and the size of
	// a file with it. The first failure is sticky: that Flush and all later ones fail with the same
	// cause, because the kernel may have dropped the dirty pages that it could not write.
	Flush() error

	// Zero makes [off, off+n) read as zeroes. With mayFree the space may be given back.
	Zero(off, n int64, mayFree bool) error

	// Discard tells the device that [off, off+n) is not needed. What is read there afterwards is not
	// defined on a block device; use Zero where content matters. Not supported is not an error.
	Discard(off, n int64) error

	// NextData returns the first range at or after off that may hold anything but zeroes: everything
	// between off and its Offset reads as zero. Past the last data Length is 0 and Offset is Size. A
	// device that cannot tell answers with all the rest.
	NextData(off int64) (Extent, error)

	// Info is constant for the life of the device.
	Info() Info

	// Close releases the device. It does not flush.
	Close() error
}

// Extent is a range of bytes.
type Extent struct {
	Offset, Length int64
}

// End is the offset of the first byte behind the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Info describes a device as it was opened.
type Info struct {
	Path           string // as the user named it
	Size           int64  // bytes
	LogicalSector  int    // smallest unit of I/O, bytes: 512 or 4096
	PhysicalSector int    // unit that the device writes atomically, bytes
	Block          bool   // a block device, not a file
	Writable       bool
	Direct         bool // false: the file system refused O_DIRECT, I/O goes through the page cache
	CheapZero      bool // Zero costs no data transfer (files; block devices with write-zeroes offload)
	KnowsHoles     bool // NextData tells holes apart (files)
}
