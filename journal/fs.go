package journal

// FS is the file system as the journal uses it. Paths are the caller's; names of one folder are never
// used by two owners at once (see LockDir). Every method may be called concurrently.
//
// Durability: Create, Rename and Remove take effect at once and survive a crash only after
// SyncDir of the folder that holds the name; until then each of them may be lost, alone or together.
type FS interface {
	// Create makes a new empty file, open for reading and writing. A name that exists is an error
	// (fs.ErrExist).
	Create(path string) (File, error)

	// Open opens an existing file, for reading and, with write, for writing. A missing one is
	// fs.ErrNotExist.
	Open(path string, write bool) (File, error)

	// Rename gives a file or a folder another name on the same file system, atomically: a crash leaves
	// one of both names. A file of that name is replaced.
	Rename(from, to string) error

	// Remove removes a file or an empty folder.
	Remove(path string) error

	// Mkdir makes a folder and all that lead to it, durably. One that exists is no error.
	Mkdir(path string) error

	// ReadDir lists the names in a folder, in ascending order.
	ReadDir(path string) ([]string, error)

	// SyncDir makes the names in a folder durable.
	SyncDir(path string) error
}

// File is an open file. ReadAt may be called concurrently with everything but Close; WriteAt, Truncate
// and Sync are called by one goroutine at a time.
type File interface {
	// ReadAt is io.ReaderAt.
	ReadAt(p []byte, off int64) (n int, err error)

	// WriteAt writes all of p at off, or fails with n < len(p); what lies in the range afterwards is
	// then unknown. It is durable after a Sync only; a crash before that may keep any of its sectors.
	WriteAt(p []byte, off int64) (n int, err error)

	// Truncate sets the size. New space reads as zeroes. It is durable after a Sync only.
	Truncate(size int64) error

	// Sync makes every completed WriteAt and Truncate durable. After an error nothing is known about
	// them, and a later Sync that succeeds says nothing about them either.
	Sync() error

	// Size is the present size in bytes.
	Size() (int64, error)

	// Close releases the file. It does not sync.
	Close() error
}

// Allocator is a File that can keep room for itself. A file system without it keeps none.
type Allocator interface {
	// Allocate sees to it that writes below size find room also when the disk is full, and that the file
	// has at least that size. What was not written reads as zeroes. It is durable after a Sync only.
	// Where it fails, any part of the room may be taken.
	Allocate(size int64) error
}

// Puncher is a File that can give room back in its middle.
type Puncher interface {
	// Punch makes n bytes at off, within the file, read as zeroes and gives their room back. It is durable
	// after a Sync only.
	Punch(off, n int64) error
}
