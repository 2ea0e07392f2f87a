package journal_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
)

const (
	page         = blockdev.PageSize
	stagingPages = 41 // the last one is short
	stagingSize  = 40*page + 1000
)

// little makes much happen with few records.
var little = journal.StagingOptions{BufferSize: 4 << 10, PlanPieces: 3}

func stagingHeader(epoch uint64) journal.StagingHeader {
	return journal.StagingHeader{Volume: [16]byte{1}, Generation: [16]byte{2}, Incarnation: 3, Base: 5, Epoch: epoch,
		BlockSize: 4 * page, Size: stagingSize}
}

// stagingModel is what a staging file should say, kept in the simplest way.
type stagingModel struct {
	epoch  uint64
	point  journal.StagingPoint
	sealed string // "" where it is not
	recs   []modelRecord
	owner  [stagingPages]int // 1 + index of the record that brings a page; 0: none
}

type modelRecord struct {
	rec  journal.StagingRecord
	live map[int]bool // pages that are not void
}

func pagesOf(r journal.StagingRecord) (pages []int) {
	for p := r.Offset / page; p*page < r.Offset+r.Length; p++ {
		pages = append(pages, int(p))
	}
	return pages
}

func (m *stagingModel) append(rec journal.StagingRecord) {
	live := map[int]bool{}
	for _, p := range pagesOf(rec) {
		live[p] = true
		m.owner[p] = len(m.recs) + 1
	}
	m.recs = append(m.recs, modelRecord{rec, live})
}

func (m *stagingModel) rebase(epoch uint64, voids []blockdev.Extent) {
	m.epoch = epoch
	for _, v := range voids {
		for _, p := range pagesOf(journal.StagingRecord{Offset: v.Offset, Length: v.Length}) {
			m.owner[p] = 0
			for _, r := range m.recs {
				delete(r.live, p)
			}
		}
	}
}

func (m *stagingModel) pages() (n uint64) {
	for _, o := range m.owner {
		if o > 0 {
			n++
		}
	}
	return n
}

// String is everything that can be asked of a staging file, one line each.
func (m *stagingModel) String() string {
	var b strings.Builder
	p := m.point
	fmt.Fprintf(&b, "epoch %d point %d %d %x sealed %q pages %d\n", m.epoch, p.Seq, p.Records, p.Chain[:2], m.sealed,
		m.pages())
	for _, r := range m.recs {
		if len(r.live) > 0 {
			fmt.Fprintf(&b, "record %s\n", describe(r.rec))
		}
	}
	for p := 0; p < stagingPages; {
		from, o := p, m.owner[p]
		for p < stagingPages && m.owner[p] == o {
			p++
		}
		if o > 0 {
			end := min(int64(p)*page, stagingSize)
			fmt.Fprintf(&b, "piece %d+%d %s\n", from*page, end-int64(from)*page, describe(m.recs[o-1].rec))
		}
	}
	return b.String()
}

func describe(r journal.StagingRecord) string {
	return fmt.Sprintf("%d: kind %d codec %d free %t %d+%d hash %x payload %d", r.Seq, r.Kind, r.Codec, r.MayFree,
		r.Offset, r.Length, r.Hash[:4], r.PayloadLength)
}

// told is the same of a staging file; a payload that is not its record's says so.
func told(s *journal.Staging) (string, error) {
	var b strings.Builder
	extra, sealed := s.Sealed()
	if sealed != (extra != nil) {
		return "", fmt.Errorf("sealed %t with %q", sealed, extra)
	}
	p, h := s.Point(), s.Header()
	if want := stagingHeader(h.Epoch); h != want {
		return "", fmt.Errorf("header %+v, want %+v", h, want)
	}
	if s.PageCount() != s.Pages().Count() {
		return "", fmt.Errorf("PageCount %d, of the set %d", s.PageCount(), s.Pages().Count())
	}
	fmt.Fprintf(&b, "epoch %d point %d %d %x sealed %q pages %d\n", h.Epoch, p.Seq, p.Records, p.Chain[:2], extra,
		s.PageCount())
	payload := func(rec journal.StagingRecord, at int64) (string, error) {
		got := make([]byte, rec.PayloadLength)
		if rec.Kind == journal.StagingZero {
			return "", nil
		}
		if err := s.ReadPayload(rec, at, got); err != nil {
			return "", err
		}
		if !bytes.Equal(got, payloadOf(rec.Seq, len(got))) {
			return " BAD PAYLOAD", nil
		}
		return "", nil
	}
	err := s.Each(func(rec journal.StagingRecord, at int64) error {
		bad, err := payload(rec, at)
		fmt.Fprintf(&b, "record %s%s\n", describe(rec), bad)
		return err
	})
	if err != nil {
		return "", err
	}
	var last journal.StagingPiece
	print := func() {
		if last.Length > 0 {
			bad, perr := payload(last.Record, last.At)
			err = errors.Join(err, perr)
			fmt.Fprintf(&b, "piece %d+%d %s%s\n", last.Offset, last.Length, describe(last.Record), bad)
		}
	}
	err = s.Plan(func(p journal.StagingPiece) error {
		if p.Record.Kind == journal.StagingZero && p.Record == last.Record && p.Offset == last.Offset+last.Length {
			last.Length += p.Length // it may come in several
			return nil
		}
		print()
		last = p
		return err
	})
	print()
	return b.String(), err
}

// dataAt is a record of data.
func dataAt(seq uint64, offset, length int64, payload int) journal.StagingRecord {
	return journal.StagingRecord{Seq: seq, Kind: journal.StagingData, Offset: offset, Length: length, PayloadLength: payload}
}

// payloadOf is the payload of a record.
func payloadOf(seq uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seq), byte(seq >> 8)}).Read(b)
	return b
}

// stagingWork is a workload of random steps that the seed fixes, against a model.
type stagingWork struct {
	fs     journal.FS
	rng    *rand.Rand
	s      *journal.Staging
	m      *stagingModel // of what was appended
	seq    uint64
	maySay []string // what a recovery may tell: the last state that was promised, and those tried since
}

func newStagingWork(fs journal.FS, seed uint64) *stagingWork {
	return &stagingWork{fs: fs, rng: rand.New(rand.NewPCG(seed, 1)), maySay: []string{"nothing"}}
}

// run does steps until one fails.
func (w *stagingWork) run(steps int) (err error) {
	if w.s == nil {
		w.m = &stagingModel{epoch: 7}
		if w.s, err = journal.CreateStaging(w.fs, testDir, stagingHeader(7), little); err != nil {
			return err
		}
	}
	for i := range steps {
		switch k := w.rng.IntN(24); {
		case i == steps-1:
			err = w.seal()
		case k < 16:
			err = w.append()
		case k < 19:
			err = w.sync()
		case k < 21:
			err = w.rebase()
		case k < 23:
			err = w.seal()
		default:
			err = w.reopen()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *stagingWork) unseal() {
	if _, sealed := w.s.Sealed(); sealed {
		w.s.Unseal()
		w.m.sealed = ""
	}
}

func (w *stagingWork) append() error {
	w.unseal()
	w.seq += 1 + w.rng.Uint64N(3)
	first := w.rng.Int64N(stagingPages)
	rec := journal.StagingRecord{Seq: w.seq, Kind: journal.StagingZero, Offset: first * page}
	rec.MayFree = w.rng.IntN(2) == 0
	rec.Length = min((1+w.rng.Int64N(stagingPages))*page, stagingSize-rec.Offset)
	var payload []byte
	if w.rng.IntN(4) > 0 {
		rec.Kind, rec.MayFree, rec.Codec = journal.StagingData, false, uint8(w.rng.IntN(3))
		rec.Length = min(rec.Length, (first/4+1)*4*page-rec.Offset)
		payload = payloadOf(w.seq, 1+w.rng.IntN(5000))
		rec.PayloadLength, rec.Hash = len(payload), sha256.Sum256(payload)
	}
	w.m.append(rec)
	return w.s.Append(rec, payload)
}

// point is one of the present state, and announces that a recovery may tell it.
func (w *stagingWork) point() journal.StagingPoint {
	chain := sha256.Sum256([]byte{byte(w.seq)})
	w.m.point = journal.StagingPoint{Seq: w.seq, Records: uint64(len(w.m.recs)), Chain: chain}
	w.maySay = append(w.maySay, w.m.String())
	return w.m.point
}

func (w *stagingWork) promised(err error) error {
	if err == nil {
		w.maySay = w.maySay[len(w.maySay)-1:]
	}
	return err
}

func (w *stagingWork) sync() error {
	w.unseal()
	w.seq += w.rng.Uint64N(2)
	return w.promised(w.s.Sync(w.point()))
}

func (w *stagingWork) rebase() error {
	w.unseal()
	w.seq++
	var voids []blockdev.Extent
	for at := int64(0); at < stagingPages; {
		n := min(1+w.rng.Int64N(6), stagingPages-at)
		if w.rng.IntN(2) == 0 {
			voids = append(voids, blockdev.Extent{Offset: at * page, Length: min((at+n)*page, stagingSize) - at*page})
		}
		at += n
	}
	w.m.rebase(w.m.epoch+1+w.rng.Uint64N(3), voids)
	return w.promised(w.s.Rebase(w.seq, w.m.epoch, voids, w.point()))
}

func (w *stagingWork) seal() error {
	w.unseal()
	w.m.sealed = fmt.Sprintf("extra %d", w.seq)
	return w.promised(w.s.Seal(5, w.m.pages(), w.point(), []byte(w.m.sealed)))
}

// reopen is a restart without a crash: what is not synced is lost.
func (w *stagingWork) reopen() error {
	if err := w.sync(); err != nil {
		return err
	}
	if err := w.s.Close(); err != nil {
		return err
	}
	if list, err := journal.ListStaging(w.fs, testDir); err != nil || !slices.Equal(list, []uint64{w.m.epoch}) {
		return errors.Join(err, fmt.Errorf("listed %d, want %d", list, w.m.epoch))
	}
	s, err := journal.OpenStaging(w.fs, testDir, w.m.epoch, little)
	if err != nil {
		return err
	}
	w.s = s
	return w.agree()
}

// agree compares the open file with the model, where all is promised.
func (w *stagingWork) agree() error {
	got, err := told(w.s)
	if err == nil && got != w.m.String() {
		err = fmt.Errorf("it tells\n%swant\n%s", got, w.m)
	}
	return err
}

// recovered is what a start finds.
func recovered(mem journal.FS) (string, *journal.Staging, error) {
	list, err := journal.ListStaging(mem, testDir)
	if err != nil {
		return "", nil, err
	}
	if len(list) == 0 {
		return "nothing", nil, nil
	}
	s, err := journal.OpenStaging(mem, testDir, list[0], little)
	if err != nil {
		return "", nil, err
	}
	got, err := told(s)
	if err == nil && len(list) > 1 {
		err = fmt.Errorf("listed %d", list)
	}
	return got, s, err
}

// afterwards checks what a start finds, that it finds the same after a power cut right behind it, and that
// it can be worked on.
func (w *stagingWork) afterwards(mem *journaltest.MemFS) error {
	got, s, err := recovered(mem)
	if err != nil {
		return err
	}
	if !slices.Contains(w.maySay, got) {
		return fmt.Errorf("found\n%swant one of\n%s", got, strings.Join(w.maySay, "or\n"))
	}
	again, _, err := recovered(mem.Crash(0))
	if err != nil || again != got {
		return errors.Join(err, fmt.Errorf("found\n%sand after a power cut\n%s", got, again))
	}
	if s == nil {
		if names, err := mem.ReadDir(testDir); err != nil || len(names) > 0 {
			return errors.Join(err, fmt.Errorf("left over: %q", names))
		}
		return nil
	}
	s.Unseal()
	p := s.Point()
	rec := journal.StagingRecord{Seq: p.Seq + 1, Kind: journal.StagingZero, Offset: 0, Length: stagingSize}
	if err := s.Append(rec, nil); err != nil {
		return err
	}
	if err := s.Sync(journal.StagingPoint{Seq: p.Seq + 1}); err != nil {
		return err
	}
	want, err := told(s)
	if err != nil {
		return err
	}
	if again, _, err := recovered(mem.Crash(0)); err != nil || again != want {
		return errors.Join(err, fmt.Errorf("after more work\n%sand after a power cut\n%s", want, again))
	}
	if err := errors.Join(s.Close(), journal.RemoveStaging(mem, testDir, s.Header().Epoch)); err != nil {
		return err
	}
	if names, err := mem.Crash(0).ReadDir(testDir); err != nil || len(names) > 0 {
		return errors.Join(err, fmt.Errorf("left over after removal: %q", names))
	}
	return nil
}

// stagingFS is a file system with an empty folder.
func stagingFS() *journaltest.MemFS {
	mem := journaltest.New()
	if err := mem.Mkdir(testDir); err != nil {
		panic(err)
	}
	return mem
}

func isNone(err error) bool { return errors.Is(err, fs.ErrNotExist) }
