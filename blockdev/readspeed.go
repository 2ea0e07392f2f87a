package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ReadSpeed is what ReadSample measured.
type ReadSpeed struct {
	Bytes  int64
	Took   time.Duration
	Direct bool // around the page cache
}

const (
	sampleRead    = 1 << 20 // one request
	sampleReaders = 8       // as many as a sync has
)

// ReadSample reads some of a device or image, spread over all of it, until limit bytes or the time is over. It
// takes no lock, as it changes nothing and looks at nothing: the device may be in use by anybody.
func ReadSample(ctx context.Context, path string, limit int64, length time.Duration) (ReadSpeed, error) {
	f, direct, err := openSample(path)
	if err != nil {
		return ReadSpeed{}, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size < sampleRead {
		err = fmt.Errorf("too small to be measured: less than %d bytes", sampleRead)
	}
	if err != nil {
		return ReadSpeed{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	reads := min(limit, size) / sampleRead
	stride := size / reads / sampleRead * sampleRead
	pool := NewPool(sampleReaders * sampleRead)
	var next, done atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	began := time.Now()
	for range sampleReaders {
		all.Go(func() {
			b, _ := pool.Get(context.Background(), sampleRead) // there is room for one each
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= reads {
					return
				}
				n, err := f.ReadAt(b, i*stride)
				done.Add(int64(n))
				if err != nil && !errors.Is(err, io.EOF) {
					failed.CompareAndSwap(nil, &err)
					return
				}
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return ReadSpeed{}, *err
	}
	return ReadSpeed{Bytes: done.Load(), Took: time.Since(began), Direct: direct}, nil
}

// openSample opens with O_DIRECT where the file system has it. A named pipe is not waited for.
func openSample(path string) (f *os.File, direct bool, err error) {
	const flags = os.O_RDONLY | unix.O_NONBLOCK
	f, err = os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if direct = err == nil; errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(path, flags, 0)
	}
	if err != nil {
		return nil, false, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() && fi.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		err = ErrNotDisk
	}
	if err != nil {
		f.Close()
		return nil, false, err
	}
	return f, direct, nil
}
