package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Create makes a sparse image file of the given size. The file must not exist. When Create returns, the
// file and its name are durable; when it fails, there is no file.
func Create(path string, size int64) error {
	if err := create(path, size); err != nil {
		return &Error{Op: "create", Path: path, Err: err}
	}
	return nil
}

func create(path string, size int64) (err error) {
	// 0600: it will hold all that the disk holds.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return cause(err)
	}
	defer func() {
		err = errors.Join(err, cause(f.Close()))
		if err != nil {
			os.Remove(path)
		}
	}()
	if err := setSize(f, size); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Extend gives an existing image file of length 0 its size. A file that holds anything is left alone and
// refused, and so is one that somebody else has locked.
func Extend(path string, size int64) error {
	if err := extend(path, size); err != nil {
		return &Error{Op: "extend", Path: path, Err: err}
	}
	return nil
}

func extend(path string, size int64) error {
	f, err := Open(path, Options{Write: true}) // for its refusals and its lock
	if err != nil {
		return err
	}
	defer f.Close()
	if f.info.Block {
		return errors.New("a block device cannot be extended")
	}
	if f.info.Size != 0 {
		return fmt.Errorf("it holds %d bytes already", f.info.Size)
	}
	fd, err := unix.Dup(f.fd)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	return setSize(file, size)
}

func setSize(f *os.File, size int64) error {
	if size < 0 {
		return fmt.Errorf("size %d: %w", size, unix.EINVAL)
	}
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("set its size to %d: %w", size, cause(err))
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync: %w", cause(err))
	}
	return nil
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// cause takes the path off an error of package os, because Error says it already.
func cause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
