package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// The history outlives the process in one small file (docs/FORMATS.md). Nothing rests on it: one that cannot be
// read is begun anew, and one that cannot be written is told.

const (
	disconnectsFile    = "disconnects.json" // in the state directory
	disconnectsVersion = 1
	maxDisconnectsFile = 4 << 20         // bytes that are read; 100 entries of the longest texts are less
	keepEvery          = 5 * time.Second // at the most
)

// disconnectsRecord is the file.
type disconnectsRecord struct {
	Version int          `json:"version"`
	History []Disconnect `json:"history"`
}

// openDisconnects takes up what an earlier process kept, and keeps what comes, until it is closed.
func openDisconnects(path string, log func(string)) *disconnects {
	d := newDisconnects(log, time.Now)
	d.path = path
	history, err := readDisconnects(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log(fmt.Sprintf("the history of disconnects begins anew: %s: %v", path, err))
	}
	d.history = history
	d.saver.Go(d.routineKeep)
	return d
}

func readDisconnects(path string) ([]Disconnect, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blob, err := io.ReadAll(io.LimitReader(f, maxDisconnectsFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(blob) > maxDisconnectsFile:
		return nil, fmt.Errorf("it has more than %d bytes", maxDisconnectsFile)
	}
	return parseDisconnects(blob)
}

func parseDisconnects(blob []byte) ([]Disconnect, error) {
	var r disconnectsRecord
	if err := json.Unmarshal(blob, &r); err != nil {
		return nil, err
	}
	switch {
	case r.Version != disconnectsVersion:
		return nil, fmt.Errorf("it has version %d, this program knows %d", r.Version, disconnectsVersion)
	case len(r.History) > maxHistory:
		return nil, fmt.Errorf("it has %d entries, at most %d are kept", len(r.History), maxHistory)
	}
	return r.History, nil
}

// routineKeep writes the file when it is behind, and not all the time.
func (d *disconnects) routineKeep() {
	for {
		select {
		case <-d.stop:
			d.save()
			return
		case <-d.unsaved:
		}
		d.save()
		select {
		case <-d.stop:
		case <-time.After(keepEvery):
		}
	}
}

func (d *disconnects) save() {
	blob, err := json.Marshal(disconnectsRecord{Version: disconnectsVersion, History: d.list("")})
	if err == nil {
		err = writeDurably(d.path, append(blob, '\n'))
	}
	if err != nil {
		d.log(fmt.Sprintf("the history of disconnects is not kept: %v", err))
	}
}

// close writes what is not written yet.
func (d *disconnects) close() {
	close(d.stop)
	d.saver.Wait()
}
