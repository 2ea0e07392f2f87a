package journal

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// isVolumeLog says whether a folder with these names is the journal of a volume.
func isVolumeLog(dir string, names []string) bool {
	for _, name := range names {
		if _, ok := segmentNumber(name); ok {
			s, err := readSegmentHeader(OS, filepath.Join(dir, name))
			return err == nil && s.header.kind == KindVolume
		}
	}
	return false
}

// dumpVolume prints the journal in a volume's folder.
func dumpVolume(w io.Writer, dir string, names []string) error {
	fmt.Fprintf(w, "volume folder %s\n", dir)
	err := dumpVolumeLog(w, filepath.Join(dir, volumeLogDir))
	for _, name := range names {
		if strings.HasPrefix(name, volumeLogDir+damagedSuffix) {
			fmt.Fprintf(w, "set aside as damaged: %s\n", filepath.Join(dir, name))
		}
	}
	return err
}

// dumpVolumeLog prints the records and the state that they and the checkpoint add up to.
func dumpVolumeLog(w io.Writer, dir string) error {
	r := volumeReplay{fs: OS, dir: dir, regionSize: RegionSize}
	err := dumpLog(w, dir, r.replay)
	if err == nil {
		err = r.verifyAll()
		if err != nil {
			fmt.Fprintf(w, "DAMAGED: %v\n", err)
		}
	}
	if err != nil {
		fmt.Fprintln(w, "state: the journal is damaged; `blkmirror rebuild` sets it aside")
		return err
	}
	if r.record.number == 0 {
		fmt.Fprintln(w, "checkpoint: none")
	} else {
		fmt.Fprintf(w, "checkpoint %d: %d bytes, from segment %d, LSN %d\n",
			r.record.number, r.record.size, r.record.segment, r.record.first)
	}
	dumpSets(w, r.state.Sets)
	if !r.found {
		fmt.Fprintln(w, "state: nothing is known")
		return nil
	}
	dumpFacts(w, &r.state.Facts)
	fmt.Fprintf(w, "hot: %d regions of %d%s\n", len(r.state.Hot), r.state.Facts.regions(RegionSize), runsOf(r.state.Hot))
	return nil
}

// verifyAll is verify for who has not opened the log.
func (r *volumeReplay) verifyAll() error {
	segs, err := listSegments(r.fs, r.dir, KindVolume)
	if err != nil {
		return err
	}
	var oldest segmentHeader
	if len(segs) > 0 {
		oldest = segs[0].header
	}
	return r.verify(oldest)
}

func dumpSets(w io.Writer, sets []NamedSet) {
	for _, s := range sets {
		fmt.Fprintf(w, "  set %q: %d of %d\n", s.Name, s.Pages.Count(), s.Pages.Len())
	}
}

func dumpFacts(w io.Writer, f *VolumeFacts) {
	fmt.Fprintf(w, "state: volume %x, role %s, size %d, block size %d\n", f.UUID, roleName(f.Role), f.Size, f.BlockSize)
	fmt.Fprintf(w, "state: clean %t, paused %t, rebuilt %t, boot %q\n", f.Clean, f.Paused, f.Rebuilt, f.BootID)
	dumpGeneration(w, "generation", f.Generation)
	for _, g := range f.Parents {
		dumpGeneration(w, "parent", g)
	}
	fmt.Fprintf(w, "state: cut %d\n", f.Cut)
	for _, m := range f.Mirrors {
		fmt.Fprintf(w, "state: mirror %q: node %x, committed %d, sent %d, bulk %t, attached %t, read-only %t\n",
			m.Name, m.Node, m.Committed, m.Sent, m.Bulk, m.Attached, m.ReadOnly)
	}
	if f.Role == RoleMirror {
		m := &f.Mirror
		fmt.Fprintf(w, "state: primary %x, incarnation %x\n", m.Node, m.Incarnation)
		fmt.Fprintf(w, "state: committed %d, applied %d, epochs %d\n", m.Committed, m.Applied, m.Epochs)
		fmt.Fprintf(w, "state: bulk %t, inconsistent %t, in place %t towards %d, unproven %t\n",
			m.Bulk, m.Inconsistent, m.InPlace, m.Under, m.Unproven)
		dumpExtents(w, "holes", m.Holes)
		dumpExtents(w, "doubts", m.Doubts)
		if m.ReadOnly.Class != 0 {
			dumpReadOnly(w, &m.ReadOnly)
			dumpExtents(w, "extents in quarantine", m.Quarantine)
		}
	}
	if len(f.Device) > 0 {
		fmt.Fprintf(w, "state: device %q\n", f.Device)
	}
}

func dumpGeneration(w io.Writer, what string, g Generation) {
	fmt.Fprintf(w, "state: %s %x, counter %d, child of %x at cut %d\n", what, g.ID, g.Counter, g.Parent, g.ParentCut)
}

func dumpReadOnly(w io.Writer, r *ReadOnly) {
	since := time.Unix(r.Since, 0).UTC().Format(time.RFC3339)
	fmt.Fprintf(w, "state: read-only: %v, epoch %d, since %s: %q\n", r.Class, r.Epoch, since, r.Reason)
	for i := range r.Blocks {
		fmt.Fprintf(w, "  block at %d: want %x, got %x\n", r.Blocks[i].Offset, r.Blocks[i].Want, r.Blocks[i].Got)
	}
}

func dumpExtents(w io.Writer, what string, list []blockdev.Extent) {
	fmt.Fprintf(w, "state: %d %s\n", len(list), what)
	for _, e := range list {
		fmt.Fprintf(w, "  %d bytes at %d\n", e.Length, e.Offset)
	}
}

func roleName(role uint8) string {
	switch role {
	case RolePrimary:
		return "primary"
	case RoleMirror:
		return "mirror"
	}
	return fmt.Sprint(role)
}

// runsOf prints ascending numbers, runs of them as first-last.
func runsOf(numbers []uint64) string {
	var out strings.Builder
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		fmt.Fprintf(&out, " %d", numbers[i])
		if j > i {
			fmt.Fprintf(&out, "-%d", numbers[j])
		}
		i = j + 1
	}
	return out.String()
}

// describeVolumeRecord is one line for a record; ok is false where it is not understood.
func describeVolumeRecord(t Type, body []byte) (line string, ok bool) {
	switch t {
	case typeMark:
		var regions []uint64
		if decodeMark(body, func(r uint64) { regions = append(regions, r) }) == nil {
			return "mark" + runsOf(regions), true
		}
	case typeFacts:
		if f, lists, err := decodeFacts(body); err == nil {
			return "facts " + describeFacts(&f, lists), true
		}
	case typeLists:
		if l, err := decodeLists(body); err == nil {
			line := fmt.Sprintf("lists holes %d doubts %d", len(l.holes), len(l.doubts))
			if l.readOnly.Class != 0 {
				line += fmt.Sprintf(" quarantine %d read-only %v", len(l.quarantine), l.readOnly.Class)
			}
			return line, true
		}
	case typeCheckpoint:
		r, facts, err := decodeCheckpointRecord(body)
		if err != nil {
			break
		}
		if f, lists, err := decodeFacts(facts); err == nil {
			return fmt.Sprintf("checkpoint %d bytes %d checksum %08x from segment %d LSN %d facts %s",
				r.number, r.size, r.sum, r.segment, r.first, describeFacts(&f, lists)), true
		}
	}
	return "", false
}

func describeFacts(f *VolumeFacts, lists LSN) string {
	if f.Role == RoleMirror {
		return fmt.Sprintf("role mirror committed %d applied %d clean %t lists %d",
			f.Mirror.Committed, f.Mirror.Applied, f.Clean, lists)
	}
	return fmt.Sprintf("role primary cut %d mirrors %d clean %t", f.Cut, len(f.Mirrors), f.Clean)
}

// dumpCheckpointFile prints a checkpoint on its own. Whether it counts is for the journal to say.
func dumpCheckpointFile(w io.Writer, path string) error {
	f, err := OS.Open(path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	b := make([]byte, min(checkpointFileHead, size))
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return err
	}
	h, err := decodeCheckpointFileHeader(b)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	fmt.Fprintf(w, "checkpoint file %s: number %d, log %x, %d bytes\n", path, h.number, h.id, size)
	any := VolumeFacts{Size: MaxVolumeSize}
	c := checkpointReader{limits: any.limits(RegionSize)}
	at := int64(0)
	err = eachPiece(f, size, h, func(off int64, b []byte) error {
		if at = off; off == 0 {
			return nil
		}
		return c.piece(b[4], b[pieceHead:])
	})
	if err == nil {
		err = c.complete()
	}
	dumpSets(w, c.sets)
	fmt.Fprintf(w, "  hot: %d regions%s\n", len(c.hot), runsOf(c.hot))
	if errors.Is(err, ErrDamaged) {
		err = &DamagedError{path, at, err.Error()}
		fmt.Fprintf(w, "DAMAGED: %v\n", err)
	}
	return err
}
