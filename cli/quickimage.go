package cli

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/blkmirror/blkmirror/bench"
)

const (
	pageSize    = 4096
	largestFile = 16 << 20 // so that a few large ones do not crowd out the rest
)

// makeImage makes the disk, and returns the numbers of the pages that hold data of files. These can be
// changed without harm to a file system around them.
func (q *quickstart) makeImage(ctx context.Context) ([]int64, error) {
	mkfs := findTool("mkfs.ext4")
	if mkfs == "" {
		q.note("mkfs.ext4 is not installed: a mixture of random, repetitive and empty areas instead of real files")
		if err := bench.WriteImage(ctx, q.source, q.size, bench.Mixed, 1); err != nil {
			return nil, err
		}
		return findPages(ctx, q.source, func(page []byte) bool { return !bench.IsZero(page) })
	}
	files := newFileSet(filepath.Join(q.dir, "files"), q.size)
	defer os.RemoveAll(files.dir)
	if err := files.collect(ctx); err != nil {
		return nil, err
	}
	if err := createSparse(q.source, q.size); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", fmt.Sprint(pageSize), "-d", files.dir, q.source)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", mkfs, err, out)
	}
	q.note("an ext4 file system with %d files of this machine, %s", files.count, formatBytes(files.bytes))
	return findPages(ctx, q.source, files.holds)
}

// fileSet gathers real files in a folder, for mkfs.ext4 -d.
type fileSet struct {
	dir                string
	count              int
	bytes              int64
	maxCount, maxBytes int64
	seed               maphash.Seed
	pages              map[uint64]struct{} // hashes of their whole pages
}

func newFileSet(dir string, image int64) *fileSet {
	// Enough to be a real file system, little enough to be made in seconds.
	return &fileSet{dir: dir, maxCount: image >> 17, maxBytes: image / 100 * 45,
		seed: maphash.MakeSeed(), pages: map[uint64]struct{}{}}
}

// collect copies what it can read and stops when it has enough. Where a machine has nothing to offer,
// the file system is just emptier.
func (s *fileSet) collect(ctx context.Context) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	for _, root := range []string{"/usr/bin", "/usr/lib", "/usr/local", "/usr/share"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case s.full():
				return fs.SkipAll
			case err != nil && d != nil && d.IsDir():
				return fs.SkipDir
			case err != nil || !d.Type().IsRegular():
				return nil
			}
			info, err := d.Info()
			if err != nil || info.Mode().Perm()&0o004 == 0 || !s.fits(info.Size()) {
				return nil // gone, not meant for everybody's eyes, or too large
			}
			return s.add(path)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// full leaves a little room: looking for the file that fits exactly would go through the whole machine.
func (s *fileSet) full() bool { return int64(s.count) >= s.maxCount || s.bytes >= s.maxBytes/100*97 }

func (s *fileSet) fits(size int64) bool {
	return size > 0 && size <= min(largestFile, s.maxBytes/50) && s.bytes+roundUp(size) <= s.maxBytes
}

func roundUp(size int64) int64 { return (size + pageSize - 1) &^ (pageSize - 1) }

// add copies one file. One that cannot be read is left out; one that cannot be written is an error.
func (s *fileSet) add(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer in.Close()
	content, err := io.ReadAll(io.LimitReader(in, largestFile+1))
	if err != nil || !s.fits(int64(len(content))) {
		return nil
	}
	to := filepath.Join(s.dir, fmt.Sprintf("%03d", s.count/256), fmt.Sprintf("%03d-%s", s.count%256, shortened(filepath.Base(path))))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(to, content, 0o644); err != nil {
		return err
	}
	s.count++
	s.bytes += roundUp(int64(len(content)))
	for ; len(content) >= pageSize; content = content[pageSize:] {
		s.pages[maphash.Bytes(s.seed, content[:pageSize])] = struct{}{}
	}
	return nil
}

func shortened(base string) string { return base[max(0, len(base)-200):] }

// holds tells whether a page is one of the files'. A page of zeroes could be anything else as well.
func (s *fileSet) holds(page []byte) bool {
	_, ok := s.pages[maphash.Bytes(s.seed, page)]
	return ok && !bench.IsZero(page)
}

func findPages(ctx context.Context, path string, wanted func([]byte) bool) ([]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []int64
	buffer := make([]byte, 256*pageSize)
	for at := int64(0); ; {
		n, err := io.ReadFull(&readerContext{ctx, f}, buffer)
		for page := range n / pageSize {
			if wanted(buffer[page*pageSize:][:pageSize]) {
				found = append(found, at/pageSize+int64(page))
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func createSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// findTool looks also where the tools of the system administrator are, which are not in everybody's PATH.
func findTool(tool string) string {
	for _, path := range []string{tool, "/usr/sbin/" + tool, "/sbin/" + tool} {
		if found, err := exec.LookPath(path); err == nil && !strings.HasPrefix(found, ".") {
			return found
		}
	}
	return ""
}
