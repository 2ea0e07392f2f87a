package identity

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The folder. Each file is replaced whole: temporary file, write, fsync, rename, fsync of the folder; so a
// reader needs no lock and finds the old one or the new one, also after a power cut. Who changes a file holds
// the lock from the moment in which he reads it.
const (
	ownFile   = "own.pem"
	trustFile = "trusted.json"
	lockFile  = "lock"
	tempMark  = ".new"

	maxFile   = 16 << 20
	lockRetry = 5 * time.Millisecond
)

// Refusals of the folder, by errors.Is.
var (
	ErrExposed = errors.New("open to other users")
	ErrDamaged = errors.New("damaged")
	ErrLocked  = errors.New("locked by another process")
	ErrTooMuch = errors.New("more than the file may hold")
)

// folder is the files as the node uses them: a seam for tests that fail a step, or cut the power at it.
type folder interface {
	// read returns a file and its mode. A missing one is fs.ErrNotExist.
	read(name string) ([]byte, fs.FileMode, error)
	// create makes or empties a file of mode 0600 and writes it; sync makes its bytes durable.
	create(name string, content []byte) error
	sync(name string) error
	rename(from, to string) error
	// syncDir makes the names durable.
	syncDir() error
	// lock takes the lock of the folder, or returns ErrLocked where others have it for longer than wait.
	lock(wait time.Duration) (unlock func(), err error)
}

// replace gives a file new content, durably.
func replace(f folder, name string, content []byte) error {
	temp := name + tempMark
	if err := f.create(temp, content); err != nil {
		return err
	}
	if err := f.sync(temp); err != nil {
		return err
	}
	if err := f.rename(temp, name); err != nil {
		return err
	}
	return f.syncDir()
}

// dir is the folder on disk, by its path.
type dir string

func openDir(path string) (dir, error) {
	made := false
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		made = true
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", fmt.Errorf("make the folder of the keys: %w", err)
	}
	if made {
		if err := giveDir(path); err != nil {
			return "", fmt.Errorf("make the folder of the keys: %w", err)
		}
		if err := syncPath(filepath.Dir(path)); err != nil {
			return "", err
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("open the folder of the keys: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("%w: others can replace the files in %s: chmod 0700 %s", ErrExposed, path, path)
	}
	return dir(path), nil
}

func (d dir) path(name string) string { return filepath.Join(string(d), name) }

func (d dir) read(name string) ([]byte, fs.FileMode, error) { return readFile(d.path(name)) }

func readFile(path string) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, 0, err
	}
	if len(content) > maxFile {
		return nil, 0, fmt.Errorf("read %s: %w: larger than %d bytes", path, ErrDamaged, maxFile)
	}
	return content, info.Mode(), nil
}

func (d dir) create(name string, content []byte) error {
	f, err := os.OpenFile(d.path(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = f.Chmod(0o600) // one that was left by a power cut, or a umask that takes the owner's rights
	if err == nil {
		err = d.give(f)
	}
	if err == nil {
		_, err = f.Write(content)
	}
	return errors.Join(err, f.Close())
}

// give makes a file that root has made the folder's owner's: a command that was said with sudo must not lock the
// daemon out of its own keys.
func (d dir) give(f *os.File) error {
	return giveAs(f, string(d))
}

// giveDir is the same for the folder that was just made: it is the owner's of the state directory.
func giveDir(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(giveAs(f, filepath.Dir(path)), f.Close())
}

// giveAs makes what root has made the owner's of a folder.
func giveAs(f *os.File, folder string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

func (d dir) sync(name string) error { return syncPath(d.path(name)) }

func (d dir) rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d dir) syncDir() error { return syncPath(string(d)) }

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lock polls, because a process that was stopped with the lock in its hands must not stop this one.
func (d dir) lock(wait time.Duration) (unlock func(), err error) {
	f, err := os.OpenFile(d.path(lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the folder of the keys: %w", err)
	}
	if err := d.give(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the folder of the keys: %w", err)
	}
	for deadline := time.Now().Add(wait); ; time.Sleep(lockRetry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !time.Now().Before(deadline) {
			f.Close()
			return nil, fmt.Errorf("%w: %s, for longer than %v", ErrLocked, f.Name(), wait)
		}
	}
}
