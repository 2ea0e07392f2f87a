package journal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// pagesLocked lists the pages in [from, to] that exist in the cache or in the database, ascending.
func (x *Index) pagesLocked(from, to uint64) ([]uint64, error) {
	var pages []uint64
	for number := range x.cache {
		if from <= number && number <= to {
			pages = append(pages, number)
		}
	}
	txn := x.db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{indexPageKey}})
	defer it.Close()
	for it.Seek(pageKey(from)); it.Valid(); it.Next() {
		number, ok := parsePageKey(it.Item().Key())
		if ok && number > to {
			break
		}
		if ok && x.cache[number] == nil {
			pages = append(pages, number)
		}
	}
	slices.Sort(pages)
	return pages, nil
}

// readPageLocked fills a blank page from the database. A value that does not check is absent.
func (x *Index) readPageLocked(number uint64, p *indexPage) error {
	ok, err := x.viewLocked(pageKey(number), func(v []byte) error {
		x.stats.PageReads++
		return decodePage(v, number, p)
	})
	if !ok {
		p.known = [len(p.known)]uint64{}
	}
	return err
}

// viewLocked shows fn the value of a key and reports whether there is one that fn accepts.
func (x *Index) viewLocked(key []byte, fn func(v []byte) error) (bool, error) {
	found := false
	err := x.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return item.Value(func(v []byte) error {
			found = fn(v) == nil
			if !found {
				x.stats.BadValues++
			}
			return nil
		})
	})
	if err != nil {
		return false, fmt.Errorf("read index %s, key %x: %w: %w", x.dir, key, ErrIndexDamaged, err)
	}
	return found, nil
}

// writeBackLocked makes the dirty pages durable, in ascending order, a few at a time.
func (x *Index) writeBackLocked() error {
	var dirty []uint64
	for number, p := range x.cache {
		if p.dirty {
			dirty = append(dirty, number)
		}
	}
	slices.Sort(dirty)
	const perCommit = 32 // badger takes 15 % of a memtable in one transaction
	for batch := range slices.Chunk(dirty, perCommit) {
		x.buf = x.buf[:0]
		err := x.commitLocked(func(txn *badger.Txn) error {
			for _, number := range batch {
				if err := x.setPageLocked(txn, number); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, number := range batch {
			x.cache[number].dirty = false
		}
		x.stats.PageWrites += uint64(len(batch))
		trimIfLarge(x.dir)
	}
	if x.saved == x.count {
		return nil
	}
	err := saveCount(x.dir, x.count)
	if err == nil {
		err = syncDir(x.dir) // badger syncs the contents of a new file, but not always its name
	}
	if err == nil {
		x.saved = x.count
	} else {
		x.err = fmt.Errorf("write index %s: %w", x.dir, err)
	}
	return x.err
}

// setPageLocked adds a page's value to a transaction; a page that knows nothing has none. The values of
// one transaction lie in x.buf until it is committed.
func (x *Index) setPageLocked(txn *badger.Txn, number uint64) error {
	p := &x.cache[number].indexPage
	if p.count() == 0 {
		return txn.Delete(pageKey(number))
	}
	start := len(x.buf)
	x.buf = appendPage(x.buf, number, p)
	return txn.Set(pageKey(number), x.buf[start:len(x.buf):len(x.buf)])
}

// commitLocked runs one transaction, durably. Its failure is sticky.
func (x *Index) commitLocked(fill func(*badger.Txn) error) error {
	err := keepRoom(x.dir)
	if err == nil {
		txn := x.db.NewTransaction(true)
		defer txn.Discard()
		if err = fill(txn); err == nil {
			err = txn.Set([]byte{indexCountKey}, encodeCount(x.count+1))
		}
		if err == nil {
			err = txn.Commit()
		}
	}
	if err != nil {
		x.err = fmt.Errorf("write index %s: %w", x.dir, err)
		return x.err
	}
	x.count++
	return nil
}

// eachPage calls fn for every page's value in ascending order. v is valid during the call.
func eachPage(txn *badger.Txn, fn func(number uint64, v []byte) error) error {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{indexPageKey}})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		number, ok := parsePageKey(it.Item().Key())
		if !ok {
			continue
		}
		if err := it.Item().Value(func(v []byte) error { return fn(number, v) }); err != nil {
			return err
		}
	}
	return nil
}
