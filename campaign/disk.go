package campaign

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/campaign/daemon"
)

// diskPlaces are those where bytes lie still.
var diskPlaces = []*place{
	{name: "mirror-running", number: "6", title: "mirror's device, running", try: (*trial).mirrorRunning},
	{name: "mirror-stopped", number: "6", title: "mirror's device, stopped", try: stoppedMirror(syscall.SIGTERM)},
	{name: "mirror-killed", number: "6", title: "mirror's device, after kill -9", try: stoppedMirror(syscall.SIGKILL)},
	{name: "mirror-scrub", number: "6", title: "mirror's device, running, scrub", try: (*trial).mirrorScrubbed},
	{name: "primary-running", number: "7", title: "primary's device, running", try: (*trial).primaryRunning},
	{name: "mirror-index", number: "8", title: "mirror's index", try: inIndex(false)},
	{name: "primary-index", number: "8", title: "primary's index", try: inIndex(true)},
	{name: "committed-running", number: "9", title: "committed staging, running", try: (*trial).committedRunning},
	{name: "committed-killed", number: "9", title: "committed staging, after kill -9", try: (*trial).committedKilled},
	{name: "partial", number: "9", title: "staging in part, stopped", try: (*trial).partial},
	{name: "mirror-journal", number: "10", title: "mirror's journal, stopped or after kill -9", try: inJournal(false)},
	{name: "primary-journal", number: "10", title: "primary's journal, stopped or after kill -9", try: inJournal(true)},
}

// settled is a cut that is good, before anything is done to it.
func (t *trial) settled() error {
	if err := t.writes(false); err != nil {
		return err
	}
	at, err := t.cut(t.ctx)
	if err == nil && at != good {
		err = fmt.Errorf("before the flip: %s", at)
	}
	return err
}

// somewhere is a bit of the volume.
func (t *trial) somewhere() int64 { return t.rng.Int64N(volumeSize * 8) }

// mirrorRunning: nobody looks at what lies still, save verify.
func (t *trial) mirrorRunning() error {
	if err := t.settled(); err != nil {
		return err
	}
	bit := t.somewhere()
	if err := flipAt(t.dst, bit); err != nil {
		return err
	}
	return t.foundByVerify(bit)
}

// stoppedMirror: a clean stop lets the next start see that somebody else wrote, and compare; behind a kill it is
// verify that finds it.
func stoppedMirror(stop syscall.Signal) func(*trial) error {
	return func(t *trial) error {
		if err := t.settled(); err != nil {
			return err
		}
		bit := t.somewhere()
		if err := t.restart(t.mirror, stop, func() error { return flipAt(t.dst, bit) }); err != nil {
			return err
		}
		at, err := t.cut(t.ctx)
		if err != nil {
			return err
		}
		if at != good {
			return t.judgeAt(at)
		}
		same, err := sameFiles(t.src, t.dst)
		if err != nil {
			return err
		}
		if same {
			t.found, t.corrected = true, true
			p, err := t.peer(t.ctx)
			t.cost = max(0, p.Shipped-t.shipped-t.brought)
			return err
		}
		return t.foundByVerify(bit)
	}
}

// mirrorScrubbed: the mirror finds it by itself, and heals it with what the primary has. A block that was written in part
// has no checksum there until a scrub has noted one: then it is a verify that finds it.
func (t *trial) mirrorScrubbed() error {
	if err := t.settled(); err != nil {
		return err
	}
	bit := t.somewhere()
	if err := flipAt(t.dst, bit); err != nil {
		return err
	}
	a := t.mirror.Ask(t.ctx, "scrub", "v", "--rate", "10GiB", "--json")
	c, err := readChecked(a)
	if err != nil {
		return err
	}
	if a.Code == 0 && len(c.Healed) == 0 && c.Unknown > 0 {
		t.also("no checksum there yet, found by verify")
		return t.foundByVerify(bit)
	}
	if a.Code != 0 || !holds(c.Healed, bit) || len(c.Extents) > 0 {
		return fmt.Errorf("a bit at %d was turned over, and scrub says %s", bit/8, a)
	}
	same, err := sameFiles(t.src, t.dst)
	t.found, t.corrected, t.wronglyGood = true, true, !same
	t.also("healed by the scrub")
	return err
}

// primaryRunning: the primary's index tells a verify that it is the primary's disk, and the mirror has what was
// written. Of a block that is not indexed yet nobody can tell who is wrong, so it is the mirror that becomes read-only;
// what rotted is written anew before the repair, which would bring it to the mirror. Put back behind the primary's
// back it would not do: the indexer may have noted what was rotten meanwhile.
func (t *trial) primaryRunning() error {
	if err := t.settled(); err != nil {
		return err
	}
	if err := t.indexed(); err != nil {
		return err
	}
	bit := t.somewhere()
	if err := flipAt(t.src, bit); err != nil {
		return err
	}
	different, c, err := t.verify()
	switch {
	case err != nil || !different:
		return err
	case len(c.Rot) > 0:
		return t.healPrimary(c, bit)
	}
	if err := t.foundAtMirror(c, bit); err != nil {
		return err
	}
	t.also("told as the mirror's fault")
	return t.writeRight(bit)
}

// writeRight writes the page that a bit was turned over in as it was.
func (t *trial) writeRight(bit int64) error {
	b, err := os.ReadFile(t.src)
	if err != nil {
		return err
	}
	b[bit/8] ^= 1 << (bit % 8)
	off := bit / 8 / pageSize * pageSize
	if err := t.nbd.Write(b[off:off+pageSize], off, 0); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	t.brought += pageSize
	return t.nbd.Flush()
}

// indexed waits until the primary's index knows most of the volume.
func (t *trial) indexed() error {
	return daemon.Until(t.ctx, "the primary's index", func() (bool, error) {
		v, err := t.primary.Volume(t.ctx)
		return err == nil && v.IndexNeeds < volumeSize/2, err
	})
}

// healPrimary: it is told, the mirror is left as it is, and a person has the block taken from there.
func (t *trial) healPrimary(c checked, bit int64) error {
	v, err := t.primary.Volume(t.ctx)
	if err != nil {
		return err
	}
	if !holds(c.Rot, bit) || len(c.Extents) > 0 || len(v.Rot) != 1 || v.Rot[0] != bit/8/blockSize || v.Mirrors[0].ReadOnly != nil {
		return fmt.Errorf("a bit at %d was turned over, and verify says %+v, status %+v", bit/8, c, v)
	}
	t.found = true
	t.also("told as rot, taken from the mirror")
	a := t.primary.Ask(t.ctx, "repair", "v", "--from", "mirror", "--json")
	if c, err = readChecked(a); err != nil {
		return err
	}
	if a.Code != 0 || !holds(c.Extents, bit) {
		return fmt.Errorf("a bit at %d is rotten, and repair says %s", bit/8, a)
	}
	same, err := sameFiles(t.src, t.dst)
	t.wronglyGood = !same
	return err
}

// files are those below a folder that hold anything, and the one that holds most.
func files(dir string, but ...string) (paths []string, largest string, err error) {
	most := 0
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || slices.Contains(but, filepath.Base(path)) {
			return err
		}
		b, err := os.ReadFile(path)
		used := len(b) - bytes.Count(b, []byte{0})
		if used > most {
			most, largest = used, path
		}
		if used > 0 {
			paths = append(paths, path)
		}
		return err
	})
	if err == nil && len(paths) == 0 {
		err = fmt.Errorf("%s: nothing is in it", dir)
	}
	return paths, largest, err
}

// side is the daemon of a place.
func (t *trial) side(primary bool) (n *daemon.Node, device string) {
	if primary {
		return t.primary, t.src
	}
	return t.mirror, t.dst
}

// inIndex: the device is touched as well, so that it is compared with the index at the start.
func inIndex(primary bool) func(*trial) error {
	return func(t *trial) error {
		if err := t.settled(); err != nil {
			return err
		}
		n, device := t.side(primary)
		dir, err := n.Folder()
		if err != nil {
			return err
		}
		index := filepath.Join(dir, "index")
		born, what := int64(0), ""
		err = t.restart(n, syscall.SIGTERM, func() (err error) {
			if born, err = birth(index); err == nil {
				what, err = t.flipIn(index, "LOCK", "ballast")
			}
			now := time.Now()
			return errors.Join(err, os.Chtimes(device, now, now))
		})
		if err != nil {
			return err
		}
		if err := t.judge(); err != nil {
			return err
		}
		again, err := birth(index)
		if err == nil && born != again && !t.wronglyGood {
			t.found, t.corrected = true, true
			t.also("index made anew")
		}
		if err != nil {
			return err
		}
		return t.judgeLog(n, what, "index")
	}
}

// birth is when a folder was made.
func birth(path string) (int64, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BTIME, &st)
	return st.Btime.Sec*1e9 + int64(st.Btime.Nsec), err
}

// flipIn turns over a bit somewhere in the files of a folder, in every second trial or so in the one that holds most.
func (t *trial) flipIn(dir string, but ...string) (what string, err error) {
	all, path, err := files(dir, but...)
	if err != nil {
		return "", err
	}
	if t.rng.IntN(2) == 0 {
		path = all[t.rng.IntN(len(all))]
	}
	bit, err := t.flipUsed(path)
	return fmt.Sprintf("%s at byte %d", filepath.Base(path), bit/8), err
}

// judgeLog sees whether a daemon's log tells of the flip, where nothing else did: it was of no consequence.
func (t *trial) judgeLog(n *daemon.Node, what, word string) error {
	t.note = what
	if t.corrected {
		p, err := t.peer(t.ctx)
		t.cost = max(0, p.Shipped-t.shipped-t.brought)
		return err
	}
	if t.found || t.wronglyGood {
		return nil
	}
	for line := range strings.Lines(n.Log.String()) {
		for _, says := range []string{"dropped", "damaged", "anew", "is not what"} {
			if strings.Contains(line, word) && strings.Contains(line, says) {
				t.found, t.corrected = true, true
				t.also(word + " " + says)
				return nil
			}
		}
	}
	t.harmless = true
	return nil
}

// staging is a staging file of the mirror; mostly there is one.
func (t *trial) staging() (path string, err error) {
	dir, err := t.mirror.Folder()
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(dir, "staging", "*.staging*"))
	if err == nil && len(found) == 0 {
		err = errors.New("there is no staging file")
	}
	if err != nil {
		return "", err
	}
	return found[t.rng.IntN(len(found))], nil
}

// committed brings a cut into the mirror's staging, and holds it there.
func (t *trial) committed() error {
	if err := t.trigger("hold"); err != nil {
		return err
	}
	if err := t.writes(false); err != nil {
		return err
	}
	if a := t.primary.Ask(t.ctx, "cut", "v"); a.Code != 0 {
		return fmt.Errorf("cut: %s", a)
	}
	v, err := t.primary.Volume(t.ctx)
	if err != nil {
		return err
	}
	at, err := t.await(t.ctx, func(_, _ *daemon.Volume, peer *daemon.Peer) bool {
		return peer.Committed >= v.Epoch && peer.Applied < v.Epoch
	})
	if err == nil && at != good {
		err = fmt.Errorf("before the flip: %s", at)
	}
	return err
}

func (t *trial) committedRunning() error {
	defer t.untrigger("hold")
	if err := t.committed(); err != nil {
		return err
	}
	what, err := t.flipStaging()
	if err != nil {
		return err
	}
	t.untrigger("hold")
	if err := t.judge(); err != nil {
		return err
	}
	return t.judgeLog(t.mirror, what, "staged")
}

func (t *trial) flipStaging() (what string, err error) {
	path, err := t.staging()
	if err != nil {
		return "", err
	}
	bit, err := t.flipUsed(path)
	return fmt.Sprintf("%s at byte %d", filepath.Base(path), bit/8), err
}

func (t *trial) committedKilled() error {
	defer t.untrigger("hold")
	if err := t.committed(); err != nil {
		return err
	}
	return t.flippedWhileDown(syscall.SIGKILL, func() { t.untrigger("hold") })
}

// flippedWhileDown has a bit of staging turned over while the mirror does not run.
func (t *trial) flippedWhileDown(stop syscall.Signal, before func()) error {
	what := ""
	err := t.restart(t.mirror, stop, func() (err error) {
		before()
		what, err = t.flipStaging()
		return err
	})
	if err != nil {
		return err
	}
	if err := t.judge(); err != nil {
		return err
	}
	return t.judgeLog(t.mirror, what, "staged")
}

// partial: everything is staged but its commit, when the line is lost.
func (t *trial) partial() error {
	held := make(chan struct{}, 16)
	t.link.arm(func(toMirror bool, f *frame) bool {
		if toMirror && f.kind() == typeCommit {
			select {
			case held <- struct{}{}:
			default:
			}
			return false
		}
		return true
	})
	defer t.link.arm(nil)
	if err := t.writes(false); err != nil {
		return err
	}
	if a := t.primary.Ask(t.ctx, "cut", "v"); a.Code != 0 {
		return fmt.Errorf("cut: %s", a)
	}
	select {
	case <-held:
	case <-time.After(daemon.Patience):
		return errors.New("no Commit came")
	}
	t.link.to("")
	return t.flippedWhileDown(syscall.SIGTERM, func() {})
}

// inJournal turns a bit over in a segment or checkpoint. Half of the trials kill the daemon with writes that the
// mirror does not have.
func inJournal(primary bool) func(*trial) error {
	return func(t *trial) error {
		if err := t.settled(); err != nil {
			return err
		}
		n, _ := t.side(primary)
		stop := syscall.SIGTERM
		if t.number%2 == 1 {
			stop = syscall.SIGKILL
			if err := t.writes(false); err != nil {
				return err
			}
		}
		what := ""
		err := t.restart(n, stop, func() error {
			dir, err := n.Folder()
			if err == nil {
				what, err = t.flipIn(filepath.Join(dir, "journal"), "spare.1", "spare.2", "reserve", "lock")
			}
			return err
		})
		if err != nil {
			return err
		}
		if err := t.judge(); err != nil {
			return err
		}
		return t.judgeLog(n, what, "journal")
	}
}
