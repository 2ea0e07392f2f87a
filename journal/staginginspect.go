package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// isStagingName reports whether a bare name is one of staging, a temporary one too.
func isStagingName(name string) bool {
	bare, _ := strings.CutSuffix(name, tempSuffix)
	_, ok := stagingEpoch(bare)
	return ok
}

// isStagingFile goes by the name, or by what the file begins with.
func isStagingFile(path string) bool {
	if isStagingName(filepath.Base(path)) {
		return true
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [len(stagingMagic)]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && string(magic[:]) == stagingMagic
}

// dumpStagingDir prints all staging of a folder.
func dumpStagingDir(w io.Writer, dir string, names []string) error {
	var bad error
	for _, name := range names {
		if isStagingName(name) {
			bad = errors.Join(bad, dumpStaging(w, filepath.Join(dir, name)))
		}
	}
	return bad
}

// dumpStaging prints one file. Payloads are not looked at.
func dumpStaging(w io.Writer, path string) error {
	err := dumpStagingFrames(w, path)
	if errors.Is(err, ErrDamaged) {
		fmt.Fprintf(w, "DAMAGED: %v\n", err)
	}
	return err
}

func dumpStagingFrames(w io.Writer, path string) error {
	f, err := OS.Open(path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	r, end, err := scanStaging(f, path)
	if err != nil {
		return err
	}
	h := r.header
	fmt.Fprintf(w, "staging %s: epoch %d on base %d, made for epoch %d, file %x, %d bytes\n", path, end.epoch, h.Base,
		h.Epoch, r.id, r.size)
	fmt.Fprintf(w, "  volume %x of %d bytes, blocks of %d, generation %x, incarnation %d\n", h.Volume, h.Size,
		h.BlockSize, h.Generation, h.Incarnation)
	err = r.forward(end.head.next(end.mark), func(off int64, f *stagingHead) error { return r.dumpFrame(w, off, f) })
	if err != nil {
		return err
	}
	if strings.HasSuffix(path, tempSuffix) {
		fmt.Fprintln(w, "  temporary: it has never had a synced point, the next start removes it")
		return nil
	}
	if err := checkStagingEnd(r, end, 0); err != nil {
		return err
	}
	s := newStaging(OS, filepath.Dir(path), StagingOptions{}, h)
	if err := s.replay(r, end); err != nil {
		return err
	}
	if tail := end.head.end(end.mark); tail < r.size {
		fmt.Fprintf(w, "  tail at %d: %d bytes that were never promised; the next start cuts them\n", tail, r.size-tail)
	}
	fmt.Fprintf(w, "staging: %d records up to %d, %d pages, sealed %t\n", s.records, end.point.Seq, s.pages.Count(),
		end.seal)
	return nil
}

func (r *stagingFile) dumpFrame(w io.Writer, off int64, f *stagingHead) error {
	if f.kind == frameRecords {
		entries, err := r.table(off, f)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "  records at %d: %d, payloads of %d bytes, durable below %d\n", off, f.count, f.payload, f.durable)
		for _, e := range entries {
			fmt.Fprintf(w, "    %d: %s\n", e.rec.Seq, describeStaging(&e))
		}
		return nil
	}
	body, ok, err := r.body(off, f)
	if err == nil && !ok {
		err = r.damaged(off, "the synced point does not check")
	}
	if err != nil {
		return err
	}
	p := decodePoint(body)
	point := fmt.Sprintf("%d records up to %d, chain %x", p.Records, p.Seq, p.Chain)
	switch f.kind {
	case framePoint:
		fmt.Fprintf(w, "  point at %d: %s\n", off, point)
	case frameFooter:
		foot := decodeFooter(body)
		fmt.Fprintf(w, "  footer at %d: %s, base %d, %d pages, extra of %d bytes\n", off, point, foot.base, foot.pages,
			len(foot.extra))
	case frameRebase:
		rb, err := decodeRebase(body, &r.header)
		if err != nil {
			return r.damaged(off, "%v", err)
		}
		fmt.Fprintf(w, "  rebase at %d: %d, epoch %d to %d, %s\n", off, rb.seq, rb.old, rb.new, point)
		for _, v := range rb.voids {
			fmt.Fprintf(w, "    void %d at %d\n", v.Length, v.Offset)
		}
	}
	return nil
}

func describeStaging(e *stagingEntry) string {
	r := &e.rec
	if r.Kind == StagingData {
		return fmt.Sprintf("data %d at %d, codec %d, payload %d at %d, hash %x", r.Length, r.Offset, r.Codec,
			r.PayloadLength, e.at, r.Hash)
	}
	if r.MayFree {
		return fmt.Sprintf("zero %d at %d, may be freed", r.Length, r.Offset)
	}
	return fmt.Sprintf("zero %d at %d", r.Length, r.Offset)
}
