package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
)

// SyncState is what the target of a one-shot sync remembers. The zero value knows nothing.
type SyncState struct {
	Source    [32]byte // fingerprint of the source's facts
	BlockSize uint32   // bytes; hashes and positions are of blocks of this size
	Size      int64    // bytes of the volume
	Position  int64    // everything below is durably equal to that source
	LastHash  [32]byte // SHA-256 of the block that ends at Position
	Facts     []byte   // of the target device, opaque; nil: it may have changed since (a run is or was under way)
	Complete  bool     // the last run reached the end
}

// check says whether the numbers can be those of a run.
func (s SyncState) check() error {
	if s.BlockSize < 512 || s.BlockSize > 1<<20 || s.BlockSize&(s.BlockSize-1) != 0 {
		return fmt.Errorf("%w: block size %d", ErrState, s.BlockSize)
	}
	if s.Size < 0 || s.Position < 0 || s.Position > s.Size {
		return fmt.Errorf("%w: position %d of %d", ErrState, s.Position, s.Size)
	}
	return nil
}

// SyncLog keeps a SyncState in a folder of its own:
//
//	DIR/lock   held while it is in use (LockDir)
//	DIR/log/   a Log of kind KindSync
//
// Other files in the folder are the caller's. Methods may be called concurrently. Each returns when what
// it says is durable. After an error of one of them the log is done for, as Log says.
type SyncLog struct {
	log *Log

	mu    sync.Mutex
	state SyncState
	begun bool
}

const (
	syncLogDir    = "log"
	damagedSuffix = ".damaged"
)

// OpenSync opens what a folder remembers, or starts to. The caller holds LockDir of the folder.
// ErrDamaged: see SetAsideSync.
func OpenSync(fs FS, dir string) (*SyncLog, error) {
	s := &SyncLog{}
	var err error
	s.log, err = Open(fs, filepath.Join(dir, syncLogDir), Options{Kind: KindSync}, s.replay)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// replay applies one record. One that checks and still makes no sense is damage too.
func (s *SyncLog) replay(_ LSN, t Type, body []byte) error {
	if t == typeBegin {
		state, err := decodeBegin(body)
		s.state, s.begun = state, err == nil
		return err
	}
	if !s.begun {
		return fmt.Errorf("record of type %d before any begin: %w", t, ErrDamaged)
	}
	switch t {
	case typeProgress:
		position, last, err := decodeProgress(body)
		if err != nil {
			return err
		}
		next := s.state.at(position, last)
		if err := next.check(); err != nil {
			return fmt.Errorf("progress record: %w: %w", err, ErrDamaged)
		}
		s.state = next
	case typeSettle:
		facts, complete, err := decodeSettle(body)
		if err != nil {
			return err
		}
		s.state.Facts, s.state.Complete = facts, complete
	default:
		return fmt.Errorf("record of unknown type %d: %w", t, ErrDamaged)
	}
	return nil
}

// at is the state after progress: the target is being written, so that nothing else is known of it.
func (s SyncState) at(position int64, last [32]byte) SyncState {
	s.Position, s.LastHash = position, last
	s.Facts, s.Complete = nil, false
	return s
}

// State is what is remembered.
func (s *SyncLog) State() SyncState {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.state
	state.Facts = bytes.Clone(state.Facts)
	return state
}

// Begin says that a run starts which may write to the target: it must have returned before the first
// byte is written. Facts and Complete of the state are taken as unknown. A position that a former run
// reached may be kept.
//
// Begin compacts: (1) a new segment, (2) the whole state durable in it, (3) only then the older ones go.
// A crash between any two leaves the old state or the new one.
func (s *SyncLog) Begin(state SyncState) error {
	state = state.at(state.Position, state.LastHash)
	if err := state.check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	segment, err := s.log.Rotate()
	if err != nil {
		return err
	}
	if _, err := s.log.AppendSync(typeBegin, encodeBegin(state)); err != nil {
		return err
	}
	s.state, s.begun = state, true
	return s.log.DropBefore(segment)
}

// Progress says that everything below position is durably equal to the source; last is the hash of the
// block that ends there.
func (s *SyncLog) Progress(position int64, last [32]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.state.at(position, last)
	if !s.begun {
		return ErrNotBegun
	}
	if err := next.check(); err != nil {
		return err
	}
	if _, err := s.log.AppendSync(typeProgress, encodeProgress(position, last)); err != nil {
		return err
	}
	s.state = next
	return nil
}

// Settle says that the run is over, cleanly or not, and the target durable as it is: these are its facts
// now (nil: not known), and whether it is complete.
func (s *SyncLog) Settle(facts []byte, complete bool) error {
	if len(facts) > MaxFacts {
		return fmt.Errorf("%w: facts of %d bytes, at most %d", ErrTooLarge, len(facts), MaxFacts)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		return ErrNotBegun
	}
	if _, err := s.log.AppendSync(typeSettle, encodeSettle(facts, complete)); err != nil {
		return err
	}
	s.state.Facts, s.state.Complete = nil, complete
	if len(facts) > 0 {
		s.state.Facts = bytes.Clone(facts)
	}
	return nil
}

// Close releases the files.
func (s *SyncLog) Close() error { return s.log.Close() }

// SetAsideSync gives a damaged log in a sync folder another name, durably, so that OpenSync starts with
// nothing known. It returns that name, for the user to be told. The log's own folder is renamed, as a
// whole: a crash leaves it where it was or takes it away, never half of it, which would read as an older
// state.
func SetAsideSync(fsys FS, dir string) (to string, err error) {
	return setAside(fsys, dir, syncLogDir)
}

// setAside renames a log's folder in dir. None is no error, and has no name.
func setAside(fsys FS, dir, name string) (to string, err error) {
	from := filepath.Join(dir, name)
	if _, err := fsys.ReadDir(from); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	for n := 1; ; n++ {
		to = from + damagedSuffix
		if n > 1 {
			to = fmt.Sprintf("%s.%d", to, n)
		}
		if _, err := fsys.ReadDir(to); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("set %s aside: %w", from, err)
		}
		break
	}
	err = fsys.Rename(from, to)
	if err == nil {
		err = fsys.SyncDir(dir)
	}
	if err != nil {
		return "", fmt.Errorf("set %s aside: %w", from, err)
	}
	return to, nil
}
