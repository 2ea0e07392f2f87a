package stamp

import (
	"encoding/gob"
	"errors"
	"os"
)

// record is a history in a file.
type record struct {
	Run      uint64
	Clock    Tick
	Writes   []Write
	Versions [][]Seq
}

// Save writes the history to a file, for a check by another process.
func (h *History) Save(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = gob.NewEncoder(f).Encode(record{h.run, h.clock, h.writes, h.versions})
	return errors.Join(err, f.Close())
}

// LoadHistory reads what Save wrote.
func LoadHistory(path string) (*History, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r record
	if err := gob.NewDecoder(f).Decode(&r); err != nil {
		return nil, err
	}
	return &History{run: r.Run, clock: r.Clock, writes: r.Writes, versions: r.Versions, reserved: make([]bool, len(r.Versions))}, nil
}
