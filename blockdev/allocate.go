package blockdev

// Allocate makes sure that later writes to [off, off+n) find room: an image file has its holes there filled
// with space that reads as zeroes. What cannot be done ahead, as on a block device, is no error.
func (f *File) Allocate(off, n int64) error {
	err := f.check(off, n, true)
	if err == nil && !f.info.Block && n > 0 {
		err = f.fallocate(0, off, off+n)
	}
	if unsupported(err) {
		return nil
	}
	return f.failure("allocate", off, n, err)
}
