package stamp

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Disk is what a Writer writes to: an NBD export (Client), or a file or device for tools that have no export.
// All methods may be called from any goroutine.
type Disk interface {
	Read(b []byte, off int64) error
	Write(b []byte, off int64, flags uint16) error
	Zero(off int64, n int, flags uint16) error
	Trim(off int64, n int) error
	Flush() error
	Bytes() int64
	Close()
}

// Open opens what a Load names.
func Open(l Load) (Disk, error) {
	if l.Network == "file" {
		f, err := os.OpenFile(l.Address, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		return file{f}, nil
	}
	c, err := Dial(l.Network, l.Address, l.Export)
	if err != nil {
		return nil, err // no nil Client in an interface
	}
	return c, nil
}

// Target reads the name of a disk: nbd+unix:///EXPORT?socket=PATH, nbd://HOST:PORT/EXPORT, or an absolute path.
func Target(name string) (Load, error) {
	if filepath.IsAbs(name) {
		return Load{Network: "file", Address: name}, nil
	}
	u, err := url.Parse(name)
	if err != nil {
		return Load{}, err
	}
	l := Load{Network: "tcp", Address: u.Host, Export: strings.TrimPrefix(u.Path, "/")}
	if u.Scheme == "nbd+unix" {
		l.Network, l.Address = "unix", u.Query().Get("socket")
	}
	if u.Scheme != "nbd" && u.Scheme != "nbd+unix" || l.Address == "" {
		return Load{}, fmt.Errorf("%q is no disk: give nbd+unix:///EXPORT?socket=PATH, nbd://HOST:PORT/EXPORT or an absolute path", name)
	}
	return l, nil
}

// file is a disk that is reached through the file system. Nobody but us changes it, so nothing gets lost.
type file struct{ f *os.File }

func (d file) Read(b []byte, off int64) error {
	if _, err := d.f.ReadAt(b, off); err != nil {
		return fmt.Errorf("read %s: %w", d.f.Name(), err)
	}
	return nil
}

func (d file) Write(b []byte, off int64, flags uint16) error {
	if _, err := d.f.WriteAt(b, off); err != nil {
		return fmt.Errorf("write %s: %w", d.f.Name(), err)
	}
	if flags&FUA != 0 {
		return d.Flush()
	}
	return nil
}

func (d file) Zero(off int64, n int, flags uint16) error { return d.Write(make([]byte, n), off, flags) }
func (d file) Trim(off int64, n int) error               { return d.Zero(off, n, 0) }
func (d file) Flush() error                              { return d.f.Sync() }
func (d file) Close()                                    { d.f.Close() }

// Bytes is the size; of a device too, whose end can be sought. 0 where that fails: no page is then there.
func (d file) Bytes() int64 {
	n, _ := d.f.Seek(0, 2)
	return n
}
