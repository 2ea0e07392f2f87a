package journal

import (
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// A page that does not check, or of another version, is absent, is counted, and can be written again.
func TestIndexBadPageIsAbsent(t *testing.T) {
	x, err := OpenIndex(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	var p indexPage
	p.set(0, sequence(1))
	flipped := appendPage(nil, 0, &p)
	flipped[80] ^= 1
	newer := appendPage(nil, 1, &p)
	newer[0] = indexVersion + 1
	err = x.db.Update(func(txn *badger.Txn) error {
		for number, v := range [][]byte{flipped, newer, appendPage(nil, 0, &p), nil} { // page 2 holds that of 0
			if err := txn.Set(pageKey(uint64(number)), v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]Entry, 4*indexPageSize)
	if err := x.Get(0, got); err != nil {
		t.Fatal(err)
	}
	for b, e := range got {
		if e.Known {
			t.Errorf("block %d is known", b)
		}
	}
	if n := x.Stats().BadValues; n != 4 {
		t.Errorf("%d bad values were counted, not 4", n)
	}
	if err := x.Put(0, sequence(2)); err != nil {
		t.Fatal(err)
	}
	if err := x.Get(0, got[:1]); err != nil || got[0].Hash != sequence(2) {
		t.Errorf("after a new put: %v, %v", got[0], err)
	}
}
