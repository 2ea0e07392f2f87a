package journal

import (
	"cmp"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
)

// StagingPiece is what one record brings to the volume, where no later one brings anything else.
type StagingPiece struct {
	Offset, Length int64 // a part of the record's range
	Record         StagingRecord
	At             int64 // of its payload, for ReadPayload
}

// Plan calls fn for what the epoch changes: pieces that do not overlap, in ascending order, each of the last
// record that has its pages; void pages are in none. Together they are exactly Pages. What a Data brings in
// one stretch is one piece; a Zero's may come in several. An error of fn ends it.
//
// Memory: at most PlanPieces of 24 bytes, and a set of the pages that they cover. Where an epoch has more
// pieces, it is planned in several passes over the tables, each for the next part of the volume; frames that
// have nothing there are skipped by their heads.
func (s *Staging) Plan(fn func(p StagingPiece) error) error {
	r, err := s.reader()
	if err != nil || s.pages.Count() == 0 {
		return err
	}
	p := &planner{r: r, last: s.last, pages: s.pages, block: uint64(r.header.BlockSize / blockdev.PageSize)}
	p.limit = max(s.opts.PlanPieces, 2*int(p.block))
	p.pieces = make([]planPiece, 0, min(uint64(p.limit), s.pages.Count()))
	// As many pages as will probably make fewer pieces than the limit: a pass may overrun, at a price.
	budget := max(1, max(1, s.pages.Count()/s.records)*uint64(p.limit)/4*3)
	for from := uint64(0); from < s.pages.Len(); from = p.to {
		p.take(from, budget)
		if err := p.collect(); err != nil {
			return err
		}
		for _, piece := range p.pieces {
			out, err := p.read(piece)
			if err != nil {
				return err
			}
			if err := fn(out); err != nil {
				return err
			}
		}
	}
	return nil
}

// planner plans one part of the volume after another.
type planner struct {
	r     *stagingFile
	last  int64
	pages *blockdev.PageSet
	block uint64 // pages of a block
	limit int    // of pieces: at least two blocks' pages

	from, to uint64            // the pages of this part, whole blocks
	todo     *blockdev.PageSet // those of them that the epoch brings and no record met so far has
	pieces   []planPiece

	ahead []byte // of the file, what read has read last
	at    int64
}

// planPiece is a run of pages, and where the record stands that brings it.
type planPiece struct {
	page  uint64
	count uint32 // a record has at most 1 GiB
	entry int64
}

// take begins the part of the volume that goes on at a page, with so many pages that the epoch brings, and
// up to the end of a block, so that no data is cut.
func (p *planner) take(from, budget uint64) {
	p.from, p.to = from, p.pages.Len()
	for page := from; budget > 0; {
		first, count, ok := p.pages.NextRun(page, budget)
		if !ok {
			break
		}
		page = first + count
		if budget -= count; budget == 0 {
			p.to = min(p.to, (page+p.block-1)/p.block*p.block)
		}
	}
	p.pieces = p.pieces[:0]
	p.todo = blockdev.NewPageSet(p.pages.Len())
	for page := from; page < p.to; {
		first, count, ok := p.pages.NextRun(page, p.to-page)
		if !ok || first >= p.to {
			return
		}
		count = min(count, p.to-first)
		p.todo.Add(first, count)
		page = first + count
	}
}

// collect finds the pieces of a part. It meets the last record first: what a page has then, it keeps. Void
// pages need no care: if they are still to be found, a record behind the rebase has them.
func (p *planner) collect() error {
	err := p.r.backward(p.last, func(off int64, f *stagingHead) error {
		if p.todo.Count() == 0 {
			return errStagingDone
		}
		if f.kind != frameRecords {
			return nil
		}
		if first, count := pageRange(f.low, f.high-f.low); first >= p.to || first+count <= p.from {
			return nil
		}
		entries, err := p.r.table(off, f)
		for i := len(entries) - 1; i >= 0; i-- {
			p.meet(&entries[i])
		}
		return err
	})
	if err == nil && p.todo.Count() > 0 {
		page, _, _ := p.todo.NextSet(0)
		err = p.r.damaged(p.last, "no record has page %d", page)
	}
	slices.SortFunc(p.pieces, byPage)
	return err
}

func byPage(a, b planPiece) int { return cmp.Compare(a.page, b.page) }

// meet gives a record those of its pages that are still to be found. It looks page by page, since the next
// one that is in the set may be far behind the record.
func (p *planner) meet(e *stagingEntry) {
	first, count := pageRange(e.rec.Offset, e.rec.Length)
	end := first + count
	for page := max(first, p.from); page < min(end, p.to); {
		if !p.todo.Contains(page) {
			page++
			continue
		}
		if len(p.pieces) == p.limit {
			p.shrink()
			continue
		}
		_, n, _ := p.todo.NextRun(page, end-page)
		p.pieces = append(p.pieces, planPiece{page, uint32(n), e.off})
		p.todo.Remove(page, n)
		page += n
	}
}

// shrink leaves the upper half of too many pieces to the next part. The lower one begins in another block: it
// has as many pieces as a block has pages, or more.
func (p *planner) shrink() {
	slices.SortFunc(p.pieces, byPage)
	half := len(p.pieces) / 2
	to := p.pieces[half].page / p.block * p.block
	p.todo.Remove(to, p.to-to)
	for half > 0 && p.pieces[half-1].page >= to {
		half--
	}
	p.pieces, p.to = p.pieces[:half], to
	if last := &p.pieces[half-1]; last.page+uint64(last.count) > to {
		last.count = uint32(to - last.page) // a zero
	}
}

// read makes a piece what the caller gets.
func (p *planner) read(piece planPiece) (StagingPiece, error) {
	if piece.entry < p.at || piece.entry+stagingEntrySize > p.at+int64(len(p.ahead)) {
		if p.ahead == nil {
			p.ahead = make([]byte, stagingAlign)
		}
		b, err := p.r.read(p.ahead[:stagingAlign], piece.entry)
		if err != nil {
			return StagingPiece{}, err
		}
		p.ahead, p.at = b, piece.entry
	}
	rec, at, ok := decodeEntry(p.ahead[piece.entry-p.at:], &p.r.header, &p.r.id, piece.entry)
	first, count := pageRange(rec.Offset, rec.Length)
	if !ok || piece.page < first || piece.page+uint64(piece.count) > first+count {
		return StagingPiece{}, p.r.damaged(piece.entry, "the record changed while it was read")
	}
	offset := int64(piece.page) * blockdev.PageSize
	length := min(int64(piece.count)*blockdev.PageSize, p.r.header.Size-offset)
	return StagingPiece{Offset: offset, Length: length, Record: rec, At: at}, nil
}
