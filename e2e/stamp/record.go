package stamp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A history in a file is text, one event per line, in the order in which they happened:
//
//	blkmirror-history 1 pages 16384 run 7
//	issue 1 data 5+3     request 1 is about to be sent: it writes stamped pages 5, 6 and 7
//	issue 2 zero 100+1   … and this one zeroes; with trim it may leave each page as it was
//	ack 1                the reply to request 1 was read
//	found 2              its reply was lost; a look at the volume shows it, whole
//	lost 2 100           … or missing on these pages, which hold what was there before
//	flush 3              all that was acknowledged by instant 3 was flushed since
//	rewind 1             the volume was put back to what it was after request 1; what came later is void
//
// Every line but the first, flush and rewind is an instant of the logical clock, counted from 1. An issue is
// in the file before the first byte of its request is sent, so a history whose writer was killed is complete.
const recordHead = "blkmirror-history 1 pages %d run %d\n"

// LogTo writes the history to w from now on, each event with one Write. It is called before the first one.
func (h *History) LogTo(w io.Writer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = w
	h.record(recordHead, h.Pages(), h.run)
	return h.logErr
}

// LogErr tells whether the log has everything.
func (h *History) LogErr() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.logErr
}

// record appends one line to the log, with h.mu held. The first failure stays: a history with a gap is none.
func (h *History) record(format string, args ...any) {
	if h.log == nil || h.logErr != nil {
		return
	}
	if _, err := fmt.Fprintf(h.log, format, args...); err != nil {
		h.logErr = fmt.Errorf("write the history: %w", err)
	}
}

func (h *History) recordLost(seq Seq, lost []int64) {
	if len(lost) == 0 {
		h.record("found %d\n", seq)
		return
	}
	words := make([]string, len(lost))
	for i, page := range lost {
		words[i] = strconv.FormatInt(page, 10)
	}
	h.record("lost %d %s\n", seq, strings.Join(words, " "))
}

// maxPages bounds what a file can make us allocate: a volume of 256 GiB.
const maxPages = 1 << 26

// LoadHistory reads what LogTo wrote. A last line without its end is left out: its writer was killed.
func LoadHistory(path string) (*History, error) {
	h, _, err := load(path)
	return h, err
}

// Continue reads a history and goes on with it in the same file, which the caller closes in the end.
func Continue(path string) (*History, io.Closer, error) {
	h, length, err := load(path)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := f.Truncate(length); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	h.log = f
	return h, f, nil
}

// load tells as well how long the file is without a last line that has no end.
func load(path string) (h *History, length int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	head, err := r.ReadString('\n')
	var pages int64
	var run uint64
	if _, bad := fmt.Sscanf(head, recordHead, &pages, &run); err != nil || bad != nil || pages < 1 || pages > maxPages {
		return nil, 0, fmt.Errorf("%s is no history: it begins with %.40q", path, head)
	}
	h, length = NewHistory(pages, run), int64(len(head))
	for number := 2; ; number++ {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return h, length, nil
		}
		if err == nil {
			err = h.replay(strings.Fields(line))
		}
		if err != nil {
			return nil, 0, fmt.Errorf("%s, line %d: %.80q: %w", path, number, line, err)
		}
		length += int64(len(line))
	}
}

var errEvent = errors.New("no event of a history")

// replay does one event again.
func (h *History) replay(words []string) error {
	if len(words) < 2 {
		return errEvent
	}
	n, err := strconv.ParseInt(words[1], 10, 64)
	if err != nil {
		return err
	}
	if words[0] == "issue" {
		return h.replayIssue(Seq(n), words[2:])
	}
	if words[0] == "flush" {
		h.flushed = Tick(n)
		return nil
	}
	if n < 0 || n > int64(len(h.writes)) || n == 0 && words[0] != "rewind" {
		return errEvent
	}
	seq := Seq(n)
	switch words[0] {
	case "rewind":
		h.rewind(seq)
	case "ack":
		h.acked(seq)
	case "found", "lost":
		lost := make([]int64, len(words)-2)
		for i, word := range words[2:] {
			if lost[i], err = strconv.ParseInt(word, 10, 64); err != nil {
				return err
			}
		}
		return h.settled(seq, lost)
	default:
		return errEvent
	}
	return nil
}

func (h *History) replayIssue(seq Seq, words []string) error {
	var page, n int64
	if len(words) != 2 || !slices.Contains([]string{"data", "zero", "trim"}, words[0]) || int(seq) != len(h.writes)+1 {
		return errEvent
	}
	if _, err := fmt.Sscanf(words[1], "%d+%d", &page, &n); err != nil {
		return err
	}
	if page < 0 || n < 1 || page > h.Pages() || n > h.Pages()-page {
		return errEvent
	}
	h.issued(page, n, words[0])
	return nil
}

// open lists the requests without a known outcome, in the order of their issue.
func (h *History) open() []Seq {
	var open []Seq
	for i, w := range h.writes {
		seq := Seq(i + 1)
		if w.Acked == Never && slices.Contains(h.versions[w.Page], seq) {
			open = append(open, seq)
		}
	}
	return open
}
