package nbd

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// The data of options: pure functions on bytes that nobody has checked.

// maxOptionData is the longest data of an option that is looked at: an INFO with the longest name and
// every kind of information, or a list of queries. Longer ones are skipped.
const maxOptionData = 32 << 10

// fields takes values from the front of b. After the first that is not there every other one is empty,
// and err says so.
type fields struct {
	b   []byte
	err error
}

func (f *fields) take(n int) []byte {
	if f.err == nil && (n < 0 || n > len(f.b)) {
		f.err = fmt.Errorf("%w: %d bytes where %d are needed", errMalformed, len(f.b), n)
	}
	if f.err != nil {
		return nil
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) uint16() uint16 {
	if v := f.take(2); v != nil {
		return be.Uint16(v)
	}
	return 0
}

func (f *fields) uint32() uint32 {
	if v := f.take(4); v != nil {
		return be.Uint32(v)
	}
	return 0
}

// text takes a string and its length in front of it.
func (f *fields) text() string {
	n := f.uint32()
	if f.err == nil && n > maxString {
		f.err = fmt.Errorf("%w: a string of %d bytes, at most %d are allowed", errMalformed, n, maxString)
	}
	if f.err != nil {
		return ""
	}
	v := f.take(int(n))
	if f.err == nil {
		f.err = checkText(v)
	}
	return string(v)
}

// checkText is what the protocol asks of every string, besides its length.
func checkText(b []byte) error {
	if !utf8.Valid(b) || slices.Contains(b, 0) {
		return fmt.Errorf("%w: a string that is not UTF-8 or has NUL in it", errMalformed)
	}
	return nil
}

// end checks that nothing is left.
func (f *fields) end() error {
	if f.err == nil && len(f.b) > 0 {
		f.err = fmt.Errorf("%w: %d bytes too many", errMalformed, len(f.b))
	}
	return f.err
}

// infoData is the data of INFO and GO.
type infoData struct {
	name   string
	wanted []uint16 // kinds of information
}

// parseInfo reads it.
//
//	4 length  name  2 count  count × 2 kind
func parseInfo(b []byte) (d infoData, err error) {
	f := fields{b: b}
	d.name = f.text()
	for n := f.uint16(); n > 0 && f.err == nil; n-- {
		d.wanted = append(d.wanted, f.uint16())
	}
	return d, f.end()
}

// metaData is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaData struct {
	name    string
	queries []string
}

// parseMeta reads it.
//
//	4 length  name  4 count  count × (4 length  query)
func parseMeta(b []byte) (d metaData, err error) {
	f := fields{b: b}
	d.name = f.text()
	for n := f.uint32(); n > 0 && f.err == nil; n-- {
		d.queries = append(d.queries, f.text())
	}
	return d, f.end()
}

// allocation tells whether the queries ask for base:allocation, when listing or when setting.
func (d metaData) allocation(list bool) bool {
	if list && len(d.queries) == 0 {
		return true
	}
	return slices.ContainsFunc(d.queries, func(q string) bool {
		return q == metaAllocation || list && q == metaAllocation[:strings.IndexByte(metaAllocation, ':')+1]
	})
}
