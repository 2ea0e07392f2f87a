package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
)

// Badger takes a log that is cut or rotten in the middle for one that ends there, and goes on with what it
// was before: entries that were replaced or deleted come back, and are wrong. So each transaction counts
// itself under this key, and a file beside says up to which one everything was durable. An index that
// counts less than its file is damaged.
const (
	indexCountKey  = 'c'
	indexCountFile = "committed"
	indexCountSize = 16
)

// The count, in the file and under the key:
//
//	 0       1       2       3       4       5       6       7
//	+-------------------------------+-------------------------------+
//	| version = 1                   | CRC32C of the count           |   0
//	+-------------------------------+-------------------------------+
//	| count of transactions that are durable                        |   8
//	+---------------------------------------------------------------+
//
// It is written in place: it lies in one sector. The version is in no checksum, and need not be: an index whose
// count is not understood is filled anew, whatever the reason.
func encodeCount(n uint64) []byte {
	b := make([]byte, indexCountSize)
	binary.LittleEndian.PutUint32(b, indexVersion)
	binary.LittleEndian.PutUint64(b[8:], n)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

func decodeCount(b []byte) (uint64, error) {
	if len(b) != indexCountSize {
		return 0, fmt.Errorf("count has %d bytes, not %d: %w", len(b), indexCountSize, ErrDamaged)
	}
	if crc32.Checksum(b[8:], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return 0, fmt.Errorf("count does not check: %w", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(b); v != indexVersion {
		return 0, fmt.Errorf("count %w: %d, known is %d", ErrVersion, v, indexVersion)
	}
	return binary.LittleEndian.Uint64(b[8:]), nil
}

// saveCount makes the count durable. Everything that it counts is durable already.
func saveCount(dir string, n uint64) error {
	f, err := os.OpenFile(filepath.Join(dir, indexCountFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	file := osFile{f}
	err = writeAt(file, encodeCount(n), 0)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, f.Close())
}

// checkCount returns the database's count, which must not be below that of the file.
func checkCount(db *badger.DB, dir string) (uint64, error) {
	var have, want uint64
	data, err := os.ReadFile(filepath.Join(dir, indexCountFile))
	if err == nil {
		want, err = decodeCount(data)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil // an index that was never synced
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrIndexDamaged, err)
	}
	err = db.View(func(txn *badger.Txn) error {
		item, err := txn.Get([]byte{indexCountKey})
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return item.Value(func(v []byte) error {
			have, err = decodeCount(v)
			return err
		})
	})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrIndexDamaged, err)
	}
	if have < want {
		return 0, fmt.Errorf("%w: it holds %d transactions of %d", ErrIndexDamaged, have, want)
	}
	return have, nil
}

// checkTables looks at the end of each table that counts. Where the lengths there are nonsense badger would
// panic in a goroutine of its own, and take the process along; everything else it checks itself. A table
// that the manifest does not name was being made or removed when the process was killed; badger removes it.
//
//	index | length of the index, 4 | checksum | length of the checksum, 4, big-endian both
func checkTables(dir string) error {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, 0, indexOptions(dir, &indexLogger{}))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIndexDamaged, err)
	}
	for id := range manifest.Tables {
		err := checkTable(table.NewFilename(id, dir))
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrIndexDamaged, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func checkTable(path string) error {
	f, err := openOS(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	end, err := f.Size()
	if err != nil {
		return err
	}
	for range 2 { // the checksum, then the index
		var b [4]byte
		if end >= 4 {
			if _, err := f.ReadAt(b[:], end-4); err != nil {
				return err
			}
		}
		n := int64(binary.BigEndian.Uint32(b[:]))
		if n < 4 || n > end-4 {
			return fmt.Errorf("%w: table %s has no end", ErrIndexDamaged, path)
		}
		end -= 4 + n
	}
	return nil
}
