package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Badger writes through memory maps of sparse files, where a full disk is no error but SIGBUS, and the end
// of the process. It also writes when it is closed. So an open index holds a ballast: room that is its own
// while the disk fills up, and that is let go before it is needed.
const (
	indexBallast  = 80 << 20 // enough for what badger has in memory, and a compaction under way
	indexLowWater = 64 << 20 // free beside it, or nothing more is written

	ballastName = "ballast"
)

// takeRoom makes sure that there is room, and keeps the ballast of it. A file system that cannot
// preallocate has none; there the low water is all.
func takeRoom(dir string) error {
	giveRoom(dir) // of a process that was killed
	room, err := roomIn(dir)
	if err != nil {
		return err
	}
	if room < indexBallast+indexLowWater {
		return noRoom(room, indexBallast+indexLowWater)
	}
	f, err := os.OpenFile(filepath.Join(dir, ballastName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, indexBallast)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		giveRoom(dir)
		return fmt.Errorf("keep room for the index: %w", err)
	}
	return nil
}

// keepRoom fails where the disk is so full that badger could be killed by it. Before that it lets the ballast
// go, once: with that the last writes of a run that ends for want of room still succeed.
func keepRoom(dir string) error {
	room, err := roomIn(dir)
	if err != nil || room >= indexLowWater {
		return err
	}
	giveRoom(dir)
	if room, err = roomIn(dir); err != nil || room >= indexLowWater {
		return err
	}
	return noRoom(room, indexLowWater)
}

// giveRoom lets the ballast go. Where that fails there was none, or the disk is beyond help.
func giveRoom(dir string) { os.Remove(filepath.Join(dir, ballastName)) }

func roomIn(dir string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return s.Bavail * uint64(s.Bsize), nil
}

func noRoom(room, want uint64) error {
	return fmt.Errorf("%w: %d bytes, at least %d: %w", ErrIndexNoRoom, room, want, unix.ENOSPC)
}
