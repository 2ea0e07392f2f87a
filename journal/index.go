package journal

import (
	"errors"
	"fmt"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"
)

// Index maps block numbers to SHA-256 sums, durably, in badger. All methods may be called concurrently.
//
// An entry may be absent, never wrong: values that do not check read as absent. Correctness of
// replication rests on nothing here, and everything here can be rebuilt by reading the device.
//
// After a failed write the index is done for: every later call fails with that cause.
type Index struct {
	dir    string
	unlock func()
	stop   chan struct{} // closed: runTrim ends
	done   chan struct{} // closed: runTrim has ended

	mu    sync.Mutex // guards all that follows, and is held during I/O
	db    *badger.DB // nil: closed
	cache map[uint64]*cachedPage
	free  []*cachedPage // slots that the cache will use again
	buf   []byte        // encoded pages of one transaction
	err   error         // sticky
	stats IndexStats
	count uint64 // of transactions in the database
	saved uint64 // of those that the file beside it says are durable

	log indexLogger
}

// Entry is what an index knows about one block.
type Entry struct {
	Known bool
	Hash  [hashSize]byte
}

// IndexStats counts what happened to an index since it was opened.
type IndexStats struct {
	BadValues  uint64 // pages and blobs that did not check, and count as absent
	PageReads  uint64
	PageWrites uint64
	LastError  string // the last thing badger complained about in the background
}

// indexOptions keep badger's share of the memory small: see TestIndexMemory.
func indexOptions(dir string, log badger.Logger) badger.Options {
	o := badger.DefaultOptions(dir)
	o.TableSizeMultiplier = 1 // a table is built in memory at twice its size, on every level
	return o.
		WithLogger(log).
		WithMetricsEnabled(false).
		WithSyncWrites(true). // db.Sync leaves out memtables that are being flushed
		WithDetectConflicts(false).
		WithMemTableSize(4 << 20).
		WithNumMemtables(2).
		WithBaseTableSize(1 << 20).
		WithBlockSize(17 << 10). // one full page
		WithNumLevelZeroTables(3).
		WithNumLevelZeroTablesStall(8).
		WithNumCompactors(2).
		WithNumGoroutines(1).
		WithValueThreshold(64 << 10). // pages stay in the tree, there is no value log to collect
		WithValueLogFileSize(1 << 20).
		WithCompression(options.None). // hashes do not compress
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithBypassLockGuard(true) // LockDir is ours, and has an error to match
}

// OpenIndex opens the index in a folder of its own, or makes one. ErrIndexDamaged: it cannot be opened,
// and RemoveIndex is the remedy; ErrLocked: another process has it.
func OpenIndex(dir string) (*Index, error) {
	if err := finishRemoval(dir); err != nil {
		return nil, fmt.Errorf("open index %s: %w", dir, err)
	}
	unlock, err := LockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	x := &Index{dir: dir, unlock: unlock, cache: map[uint64]*cachedPage{}}
	if err = takeRoom(dir); err == nil { // opening writes through memory maps already
		err = checkTables(dir)
	}
	if err == nil {
		err = dropUnborn(dir)
	}
	if err == nil {
		x.db, err = openBadger(indexOptions(dir, &x.log))
	}
	if err == nil {
		if x.count, err = checkCount(x.db, dir); err != nil {
			err = errors.Join(err, x.db.Close())
		}
	}
	if err != nil {
		giveRoom(dir)
		unlock()
		return nil, fmt.Errorf("open index %s: %w", dir, err)
	}
	x.stop, x.done = make(chan struct{}), make(chan struct{})
	go runTrim(dir, x.stop, x.done)
	return x, nil
}

// openBadger marks every failure but those of the operating system as damage.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrIndexDamaged, r)
		}
	}()
	db, err = badger.Open(o)
	if err == nil {
		return db, nil
	}
	for _, cause := range []error{unix.ENOSPC, unix.EDQUOT, unix.EACCES, unix.EPERM, unix.EROFS, unix.EIO,
		unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, cause) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrIndexDamaged, err)
}

// Get fills dst with what is known about the blocks from first on.
func (x *Index) Get(first uint64, dst []Entry) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.readyLocked(); err != nil {
		return err
	}
	for n := 0; n < len(dst); {
		page, at := (first+uint64(n))/indexPageSize, int((first+uint64(n))%indexPageSize)
		p, err := x.pageLocked(page)
		if err != nil {
			return err
		}
		for ; at < indexPageSize && n < len(dst); at, n = at+1, n+1 {
			dst[n] = Entry{}
			if p.has(at) {
				dst[n] = Entry{true, p.hashes[at]}
			}
		}
	}
	return nil
}

// Put sets the hash of a block. It is durable after Sync.
func (x *Index) Put(block uint64, hash [hashSize]byte) error {
	return x.PutRun(block, [][hashSize]byte{hash})
}

// PutRun sets the hashes of consecutive blocks. They are durable after Sync.
func (x *Index) PutRun(first uint64, hashes [][hashSize]byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.readyLocked(); err != nil {
		return err
	}
	for len(hashes) > 0 {
		page, at := first/indexPageSize, int(first%indexPageSize)
		p, err := x.pageLocked(page)
		if err != nil {
			return err
		}
		n := min(len(hashes), indexPageSize-at)
		for i, h := range hashes[:n] {
			p.set(at+i, h)
		}
		p.dirty = true
		hashes, first = hashes[n:], first+uint64(n)
	}
	return nil
}

// Delete forgets count blocks from first on; count may go beyond any volume. It costs time for pages
// that exist only. It is durable after Sync.
func (x *Index) Delete(first, count uint64) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.readyLocked(); err != nil {
		return err
	}
	if count == 0 {
		return nil
	}
	last := first + count - 1
	if last < first {
		last = ^uint64(0)
	}
	pages, err := x.pagesLocked(first/indexPageSize, last/indexPageSize)
	if err != nil {
		return err
	}
	for _, number := range pages {
		from, to := 0, indexPageSize
		if number == first/indexPageSize {
			from = int(first % indexPageSize)
		}
		if number == last/indexPageSize {
			to = int(last%indexPageSize) + 1
		}
		if to-from == indexPageSize {
			err = x.blankLocked(number)
		} else {
			err = x.clearLocked(number, from, to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Sync makes everything that was put, deleted or set before the call durable.
func (x *Index) Sync() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.readyLocked(); err != nil {
		return err
	}
	return x.writeBackLocked()
}

// Each calls fn for every known block in ascending order, as of the call. fn may use the index. An error
// of fn ends it and is returned.
func (x *Index) Each(fn func(block uint64, hash [hashSize]byte) error) error {
	x.mu.Lock()
	err := x.readyLocked()
	if err == nil {
		err = x.writeBackLocked()
	}
	var txn *badger.Txn
	if err == nil {
		txn = x.db.NewTransaction(false)
	}
	x.mu.Unlock()
	if err != nil {
		return err
	}
	defer txn.Discard()
	return eachPage(txn, func(number uint64, v []byte) error {
		var p indexPage
		if decodePage(v, number, &p) != nil {
			return nil
		}
		for i := range p.hashes {
			if !p.has(i) {
				continue
			}
			if err := fn(number*indexPageSize+uint64(i), p.hashes[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// SetMeta keeps a small blob under a name; nil removes it. It is durable on return, and with it all that
// was put and deleted before.
func (x *Index) SetMeta(name string, blob []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.readyLocked(); err != nil {
		return err
	}
	err := x.commitLocked(func(txn *badger.Txn) error {
		if blob == nil {
			return txn.Delete(metaKey(name))
		}
		return txn.Set(metaKey(name), appendMeta(nil, name, blob))
	})
	if err != nil {
		return err
	}
	return x.writeBackLocked()
}

// Meta returns the blob of a name, or nil.
func (x *Index) Meta(name string) ([]byte, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.readyLocked(); err != nil {
		return nil, err
	}
	var blob []byte
	_, err := x.viewLocked(metaKey(name), func(v []byte) error {
		b, err := decodeMeta(v, name)
		blob = append([]byte{}, b...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return blob, nil
}

// Stats are the counts since the index was opened.
func (x *Index) Stats() IndexStats {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.stats
	s.LastError = x.log.last()
	return s
}

// Reset forgets everything, durably.
func (x *Index) Reset() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.db == nil {
		return fmt.Errorf("index %s %w", x.dir, ErrClosed)
	}
	clear(x.cache)
	x.closeLocked() // what it could not write is removed now
	if err := RemoveIndex(x.dir); err != nil {
		return err
	}
	fresh, err := OpenIndex(x.dir)
	if err != nil {
		return err
	}
	x.db, x.unlock, x.stop, x.done = fresh.db, fresh.unlock, fresh.stop, fresh.done
	x.count, x.saved, x.err = 0, 0, nil
	return nil
}

// Close makes everything durable and releases the folder. A second call does nothing.
func (x *Index) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.db == nil {
		return nil
	}
	err := x.err
	if err == nil {
		err = x.writeBackLocked()
	}
	return errors.Join(err, x.closeLocked())
}

func (x *Index) closeLocked() error {
	close(x.stop)
	<-x.done
	giveRoom(x.dir) // badger writes out what it holds in memory
	err := x.db.Close()
	x.db = nil
	x.unlock()
	if err != nil {
		return fmt.Errorf("close index %s: %w", x.dir, err)
	}
	return nil
}

func (x *Index) readyLocked() error {
	if x.db == nil {
		return fmt.Errorf("index %s %w", x.dir, ErrClosed)
	}
	return x.err
}
