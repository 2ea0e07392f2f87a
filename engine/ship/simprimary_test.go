package ship_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/ship"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/wire"
)

// simDevice is the primary's disk: one number a page, the first eight bytes of it.
type simDevice struct {
	pages   []uint64
	unsaved map[uint64]uint64 // as flushed last
	bad     map[uint64]bool   // cannot be read
}

func (d *simDevice) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	for i := int64(0); i < int64(len(b)); i += pageSize {
		p := uint64((off + i) / pageSize)
		if d.bad[p] {
			return 0, errors.New("unreadable")
		}
		le.PutUint64(b[i:], d.pages[p])
	}
	return len(b), nil
}

func (d *simDevice) WriteAt(b []byte, off int64) (int, error) {
	for i := int64(0); i < int64(len(b)); i += pageSize {
		d.put(uint64((off+i)/pageSize), le.Uint64(b[i:]))
	}
	return len(b), nil
}

func (d *simDevice) put(p, v uint64) {
	if _, ok := d.unsaved[p]; !ok {
		d.unsaved[p] = d.pages[p]
	}
	d.pages[p] = v
	delete(d.bad, p)
}

func (d *simDevice) Zero(off, n int64, _ bool) error {
	for p := off / pageSize; p < (off+n)/pageSize; p++ {
		d.put(uint64(p), 0)
	}
	return nil
}

func (d *simDevice) Flush() error                                 { clear(d.unsaved); return nil }
func (d *simDevice) Discard(int64, int64) error                   { return nil }
func (d *simDevice) Close() error                                 { return nil }
func (d *simDevice) Get(_ context.Context, n int) ([]byte, error) { return make([]byte, n), nil }
func (d *simDevice) Put([]byte)                                   {}

func (d *simDevice) Info() blockdev.Info { return simInfo }

var simInfo = blockdev.Info{Size: simPages * pageSize, CheapZero: true, KnowsHoles: true}

func (d *simDevice) NextData(off int64) (blockdev.Extent, error) {
	for p := off / pageSize; p < simPages; p++ {
		if d.pages[p] != 0 || d.bad[uint64(p)] {
			return blockdev.Extent{Offset: p * pageSize, Length: pageSize}, nil
		}
	}
	return blockdev.Extent{Offset: simPages * pageSize}, nil
}

// simFacts is what the engine's facts hold of a volume with one mirror.
type simFacts struct {
	cut, committed, sent uint64
	bulk, attached       bool
}

// simJournal is what survives the primary: facts, the last checkpoint, and the marks since its T.
type simJournal struct {
	facts, appended simFacts // durable; appended behind it
	clean           bool
	needs, doubt    *blockdev.PageSet // of the checkpoint; nil: there was none
	hot             map[uint64]bool   // listed, and marked since
}

func (j *simJournal) clone() *simJournal {
	c := *j
	c.hot = maps.Clone(j.hot)
	return &c
}

// simItem is what the shell keeps of a record.
type simItem struct {
	off, length int64
	content     []uint64 // nil: zeroes
	tries       int
}

// hand is a batch that a reader holds.
type hand struct {
	epoch uint64
	items []simItem
}

// simPrimary is ship.Core with a real tracker and write path, and a thin copy of what the shell around it does
// (engine/ship*.go), one step at a time.
type simPrimary struct {
	w       *world
	core    *ship.Core
	tracker *track.Tracker
	sets    *track.Sets
	index   *track.Sets // of another consumer, which has cuts of its own
	path    *track.Path
	dev     *simDevice
	journal *simJournal
	later   map[uint64]bool // marks since the T of the checkpoint under way; nil: there is none
	listed  []uint64

	here        bool // the mirror attached in this process
	incarnation uint64
	connection  uint64
	paused      bool
	overwrite   bool
	stopped     bool // after a mismatch, until a person resumes

	session  *simConn
	full     bool
	hands    []hand // batches between reading and sending
	kept     map[uint64]simItem
	again    []simItem
	refused  []wire.Extent
	voids    *blockdev.PageSet
	offers   map[uint64]wire.Offer
	offerSeq uint64
	doubtAt  uint64
	tries    map[int64]int
}

func newSimPrimary(w *world, dev *simDevice, j *simJournal) *simPrimary {
	p := &simPrimary{w: w, dev: dev, journal: j, incarnation: w.rng.Uint64() | 1, kept: map[uint64]simItem{}, offers: map[uint64]wire.Offer{}, tries: map[int64]int{}}
	j.appended = j.facts
	p.tracker = track.NewTracker(simPages, p, w.now)
	p.sets = p.tracker.AddConsumer("m", track.NewCapture(track.CaptureConfig{Pages: simPages, BlockPages: blockPages, Memory: 40 * pageSize}))
	p.index = p.tracker.AddConsumer("index", nil)
	var err error
	if p.path, err = track.NewPath(track.Config{Device: dev, Size: simPages * pageSize, BlockSize: blockPages * pageSize, Tracker: p.tracker,
		Observer: track.Observer{GaveUp: func(*track.Sets, error) { p.full = true }}}); err != nil {
		w.t.Fatal(err)
	}
	f := j.facts
	p.core = ship.New(w.config, generation, p.incarnation, ship.History{Committed: f.committed, Sent: f.sent, Bulk: f.bulk, Known: f.attached})
	p.restore()
	j.clean = false
	return p
}

// restore is primary.restore.
func (p *simPrimary) restore() {
	j := p.journal
	hot := blockdev.NewPageSet(simPages)
	for r := range j.hot {
		hot.Add(r*regionPages, min(regionPages, simPages-r*regionPages))
	}
	switch {
	case j.needs == nil || !j.facts.attached:
		p.tracker.DoubtAll(p.sets)
		return
	case j.clean:
		for at, n, ok := j.needs.NextSet(0); ok; at, n, ok = j.needs.NextSet(at + n) {
			p.tracker.Dirty(p.sets, at, n)
		}
	default:
		p.tracker.Doubt(p.sets, j.needs)
		p.tracker.Doubt(p.sets, hot)
	}
	p.tracker.Doubt(p.sets, j.doubt)
}

// Mark and Sync are the journal of the write path.
func (p *simPrimary) Mark(regions []uint64) (uint64, error) {
	for _, r := range regions {
		p.journal.hot[r] = true
		if p.later != nil {
			p.later[r] = true
		}
	}
	return 0, nil
}

func (p *simPrimary) Sync(uint64) error { return nil }

// The facts (primaryfacts.go).
func (p *simPrimary) sync() { p.journal.facts = p.journal.appended }

func (p *simPrimary) number() uint64 {
	f := &p.journal.appended
	f.cut++
	f.sent = f.cut
	p.sync()
	return f.cut
}

func (p *simPrimary) committed(n uint64, bulk bool) { // appended, not synced
	p.journal.appended.committed, p.journal.appended.bulk = n, bulk
}

// beginCheckpoint and endCheckpoint are primary.checkpoint.
func (p *simPrimary) beginCheckpoint(limit int) {
	p.later = map[uint64]bool{}
	p.listed = p.tracker.BeginCheckpoint(p.w.now().Add(-keepHot), limit)
}

func (p *simPrimary) endCheckpoint(clean bool) {
	p.dev.Flush()
	j := p.journal
	n := p.tracker.Snapshot()[0]
	j.appended.attached = j.appended.attached || p.here
	p.sync()
	j.needs, j.doubt, j.hot, j.clean = n.Needs, n.Doubt, p.later, clean
	for _, r := range p.listed {
		j.hot[r] = true
	}
	p.later = nil
}

// connect is shipper.connect up to the begin of the session.
func (p *simPrimary) connect(m *simMirror) {
	p.connection++
	f := p.journal.appended
	a := &wire.Attach{Volume: "v", VolumeID: [16]byte{1}, Generation: generation, Incarnation: p.incarnation, Connection: p.connection,
		Size: simPages * pageSize, BlockSize: blockPages * pageSize, Committed: f.committed, LastSent: max(f.sent, f.committed)}
	if p.overwrite {
		a.Flags = wire.AttachOverwrite
	}
	c := &simConn{}
	answer, err := m.attach(c, a)
	if err != nil {
		p.w.t.Fatalf("%srefused: %v", p.w.story(), err)
	}
	p.attached(c, answer)
}

// attached is shipper.attached and apply.
func (p *simPrimary) attached(c *simConn, a *wire.Attached) {
	f := &p.journal.appended
	f.cut = max(f.cut, a.LastCut, a.StagedNumber)
	v := p.core.Attached(a, p.overwrite)
	p.w.log("attached at %d (bulk %t), staged %d up to %d: %+v", a.LastCut, a.Flags&wire.AttachedBulk != 0, a.StagedNumber, a.StagedSeq, v)
	p.session = c
	if v.Refused != "" {
		return
	}
	p.overwrite = false
	p.core.AllowOffers(3)
	anew := v.AllDirty || v.AllDoubt != ""
	st := p.core.State()
	note := func() {
		f.attached, f.committed, f.bulk, f.sent = f.attached && !anew, st.Committed, st.BulkBase, max(f.sent, st.Committed)
		p.here = true
		p.sync()
	}
	if !anew {
		note()
	}
	p.apply(&v)
	if anew {
		note()
	}
	p.offerSeq, p.doubtAt = 0, 0
	clear(p.offers)
	p.w.known = true
}

func (p *simPrimary) apply(v *ship.Attachment) {
	t := p.tracker
	if v.Committed || v.Flushed {
		t.Committed(p.sets)
	}
	for _, r := range runs(v.Unsure) {
		t.Dirty(p.sets, r.First, r.Count)
	}
	if v.Uncommit {
		t.Uncommit(p.sets)
	}
	if v.AllDirty || v.AllDoubt != "" || v.Restart {
		t.DropEpoch(p.sets)
		p.forgetKept()
		p.voids = nil
	}
	switch {
	case v.AllDirty:
		t.Dirty(p.sets, 0, t.Pages())
	case v.AllDoubt != "":
		t.DoubtAll(p.sets)
	}
	if v.Uncommit {
		p.forgetKept()
		p.voids = nil
	}
	if len(v.NotStaged) > 0 {
		t.GiveUp(p.sets, runs(v.NotStaged))
	}
	var missing []track.Run
	var again []simItem
	for i, r := range v.Lost {
		if it, ok := p.kept[r.Seq]; ok && !v.Answered[i] {
			again = append(again, it)
			continue
		}
		missing = append(missing, runs([]wire.Extent{{Offset: r.Offset, Length: r.Length}})...)
	}
	clear(p.kept)
	p.again = append(again, p.again...)
	if len(missing) > 0 && !t.WantAgain(p.sets, missing) {
		p.core.Spoil()
	}
}

func (p *simPrimary) forgetKept() {
	clear(p.kept)
	p.again, p.refused, p.full = nil, nil, false
}

func (p *simPrimary) lost() {
	p.letGo() // readers end with the session, and what they hold is kept
	p.session = nil
	p.core.Lost(p.w.now())
}

// letGo has readers give up what they hold.
func (p *simPrimary) letGo() {
	for _, h := range p.hands {
		p.again = append(p.again, h.items...)
	}
	p.hands = nil
}

// next is shipper.next.
func (p *simPrimary) next() ship.Action {
	n := p.tracker.Counts(p.sets)
	c := ship.Counts{Fresh: n.Open + n.Waiting, Todo: n.Todo + n.Captured, Staged: n.Staged, Doubt: n.Doubt, Holes: n.Holes,
		Hands: len(p.hands) + len(p.again), Full: p.full}
	a := p.core.Next(p.w.now(), c)
	if p.session == nil && a.Kind != ship.GiveUp && a.Kind != ship.Void {
		return ship.Action{}
	}
	return a
}

// drive does what the core says, and tells whether that was anything.
func (p *simPrimary) drive() bool {
	a := p.next()
	if a.Kind == ship.Wait {
		return false
	}
	p.w.log("%s base %d old %d new %d again %t %s", kinds[a.Kind], a.Base, a.Old, a.New, a.Again, a.Reason)
	switch a.Kind {
	case ship.Cut:
		n := p.number()
		p.w.cut(n)
		if voids := p.tracker.CutStep(p.sets.Epoch())[0]; voids != nil {
			p.voided().Union(voids)
		}
		p.full, p.refused = false, nil
		p.core.CutTaken(n, p.w.now())
	case ship.SendRebase:
		m := &wire.Rebase{Seq: p.core.NextSeq(), Base: a.Base, Old: a.Old, New: a.New}
		if a.Old != 0 && p.voids != nil {
			for at, n, ok := p.voids.NextSet(0); ok; at, n, ok = p.voids.NextSet(at + n) {
				m.Voids = append(m.Voids, wire.Extent{Offset: int64(at) * pageSize, Length: int64(n) * pageSize})
			}
		}
		p.voids = nil
		p.core.Rebased(m)
		p.send(m)
	case ship.SendCommit:
		p.commit(a)
	case ship.GiveUp:
		p.giveUp()
	case ship.Void:
		p.tracker.VoidStaging(p.sets)
		p.voids = nil
		p.core.Voided()
	case ship.Drop:
		var m *wire.Rebase
		if a.Old != 0 {
			m = &wire.Rebase{Seq: p.core.NextSeq(), Old: a.Old}
			p.send(m)
		}
		p.voids = nil
		p.tracker.DropEpoch(p.sets)
		p.core.Dropped(m)
	case ship.BeginBulk:
		p.tracker.DropEpoch(p.sets)
		p.forgetKept()
		p.core.BulkBegun(p.w.now())
		p.send(&wire.Bulk{Base: a.Base})
	case ship.Pass:
		n := p.number()
		p.tracker.CutStep(p.sets.Bulk())
		p.core.PassBegun(n, p.tracker.Counts(p.sets).Todo, p.w.now())
	case ship.Flush:
		p.flush()
	case ship.Offer:
		p.offer()
	case ship.RetryHoles:
		p.tracker.RetryHoles(p.sets)
	}
	return true
}

func (p *simPrimary) voided() *blockdev.PageSet {
	if p.voids == nil {
		p.voids = blockdev.NewPageSet(simPages)
	}
	return p.voids
}

func (p *simPrimary) commit(a ship.Action) {
	if a.Again {
		p.send(p.core.CommitAgain(false))
		return
	}
	var holes []wire.Extent
	var count uint64
	for _, r := range p.tracker.Holes(p.sets, 1<<20) {
		holes = append(holes, wire.Extent{Offset: int64(r.First) * pageSize, Length: int64(r.Count) * pageSize})
		count += r.Count
	}
	pages := p.tracker.Counts(p.sets).Staged
	if err := p.tracker.StartCommit(p.sets); err != nil {
		if errors.Is(err, track.ErrUnfinished) {
			p.w.t.Fatalf("%sCommit: %v", p.w.story(), err)
		}
		p.full = true
		return
	}
	p.send(p.core.CommitSent(pages, holes, count, false))
}

func (p *simPrimary) giveUp() {
	p.letGo()
	unanswered, uncommit := p.core.GaveUp(p.full, p.w.now())
	extents := append(unanswered, p.refused...)
	for _, it := range p.again {
		extents = append(extents, wire.Extent{Offset: it.off, Length: it.length})
	}
	p.forgetKept()
	if uncommit {
		p.tracker.Uncommit(p.sets)
		return
	}
	p.tracker.GiveUp(p.sets, runs(extents))
	for _, r := range runs(unanswered) {
		p.voided().Add(r.First, r.Count)
	}
}

func (p *simPrimary) flush() {
	n := p.number()
	for len(p.hands) > 0 {
		p.ship(0)
	}
	if !p.tracker.BulkFlush(p.sets) {
		p.w.t.Fatalf("%sno flush can be begun", p.w.story())
	}
	p.core.FlushSent(n, p.tracker.Counts(p.sets).Todo == 0, p.w.now())
	p.send(&wire.Flush{Number: n})
}

func (p *simPrimary) send(m any) {
	if p.session == nil {
		p.w.t.Fatalf("%s%T without a session", p.w.story(), m)
	}
	p.session.down = append(p.session.down, m)
}

// read takes a batch, as routineRead does.
func (p *simPrimary) read() {
	epoch, ok := p.core.MayShip()
	if !ok || p.session == nil {
		return
	}
	if n := min(len(p.again), 3); n > 0 {
		p.hands = append(p.hands, hand{epoch, slices.Clone(p.again[:n])})
		p.again = p.again[n:]
		return
	}
	pieces, _, err := p.path.ReadClosed(context.Background(), p.sets, (1+p.w.rng.IntN(40))*pageSize, p.dev)
	if err != nil && !errors.Is(err, track.ErrGivenUp) {
		p.w.t.Fatalf("%sread: %v", p.w.story(), err)
	}
	var items []simItem
	for _, x := range pieces {
		if x.Err != nil {
			continue
		}
		for first := x.First; first < x.End(); {
			n := x.End() - first
			var content []uint64
			if !x.Zero {
				n = min(n, blockPages-first%blockPages)
				for i := range n {
					content = append(content, le.Uint64(x.Data[(first-x.First+i)*pageSize:]))
				}
			}
			items = append(items, simItem{off: int64(first) * pageSize, length: int64(n) * pageSize, content: content})
			first += n
		}
	}
	if len(items) > 0 {
		p.hands = append(p.hands, hand{epoch, items})
	}
}

// ship sends a batch.
func (p *simPrimary) ship(i int) {
	epoch, batch := p.hands[i].epoch, p.hands[i].items
	p.hands = slices.Delete(p.hands, i, i+1)
	for _, it := range batch {
		d := &dataMsg{content: it.content, damaged: it.content != nil && !p.w.quiet && p.w.rng.IntN(60) == 0}
		seq := p.core.NextSeq()
		rec := ship.Record{Seq: seq, Offset: it.off, Length: it.length, Zero: it.content == nil, Tries: it.tries}
		if it.content == nil {
			rec.Hash = wire.ZeroHash(it.off, it.length)
			d.zero = &wire.Zero{Seq: seq, Epoch: epoch, Offset: it.off, Length: it.length}
		} else {
			rec.Hash = hashOf(it.content)
			d.data = &wire.Data{Seq: seq, Epoch: epoch, Offset: it.off, RawLength: uint32(it.length), Hash: rec.Hash, PayloadLength: len(it.content) * payload}
		}
		p.core.Sent(rec, epoch == 0)
		p.kept[seq] = it
		p.send(d)
	}
	if epoch == 0 {
		p.core.Shipped(1)
	}
}

func (p *simPrimary) offer() {
	first, n, ok := p.tracker.NextDoubt(p.sets, p.doubtAt, 100)
	if !ok {
		p.doubtAt = 0
		p.core.Swept()
		return
	}
	p.doubtAt = first + n
	p.offerSeq++
	p.core.Offered()
	o := wire.Offer{Seq: p.offerSeq, Offset: int64(first) * pageSize, Length: uint32(n * pageSize), Unit: pageSize}
	for at := first; at < first+n; at++ {
		if p.dev.bad[at] {
			p.tracker.Differs(p.sets, first, n)
			p.core.Wanted()
			return
		}
		o.Hashes = append(o.Hashes, hashOf(p.dev.pages[at:at+1]))
	}
	p.offers[o.Seq] = o
	p.send(&o)
}

// handle is shipper.handle.
func (p *simPrimary) handle(msg wire.Message) {
	switch m := msg.(type) {
	case *wire.Ack:
		for _, e := range m.Entries {
			rec, v := p.core.Acked(e)
			p.settle(rec, v)
		}
	case *wire.Nak:
		for _, e := range m.Entries {
			rec, v := p.core.Naked(e)
			p.settle(rec, v)
		}
	case *wire.Synced:
		if !p.core.Synced(m) {
			p.w.t.Fatalf("%sSynced %+v is not what was sent", p.w.story(), m)
		}
	case *wire.Committed:
		if _, ok := p.core.Committed(m); !ok {
			p.w.t.Fatalf("%sCommitted %+v was not asked", p.w.story(), m)
		}
		p.committed(m.Epoch, false)
		p.tracker.Committed(p.sets)
	case *wire.Flushed:
		n := p.tracker.Counts(p.sets)
		if !p.core.Flushed(m.Number, n.Open+n.Waiting) {
			p.w.t.Fatalf("%sFlushed %+v was not asked", p.w.story(), m)
		}
		p.committed(m.Number, true)
		p.tracker.BulkFlushed(p.sets)
	case *wire.Want:
		o := p.offers[m.Seq]
		delete(p.offers, m.Seq)
		for i := range o.Hashes {
			at := uint64(o.Offset/pageSize) + uint64(i)
			if m.Bits[i/8]>>(i%8)&1 != 0 {
				p.tracker.Differs(p.sets, at, 1)
			} else {
				p.tracker.Equal(p.sets, at, 1)
			}
		}
		p.core.Wanted()
	case *wire.Report:
		p.core.Report(m, p.w.now())
	case *wire.Doubt:
		for _, r := range runs(m.Extents) {
			p.tracker.Dirty(p.sets, r.First, r.Count)
		}
	default:
		p.w.t.Fatalf("%sunexpected %T", p.w.story(), msg)
	}
}

func (p *simPrimary) settle(rec ship.Record, v ship.Verdict) {
	it, kept := p.kept[rec.Seq]
	delete(p.kept, rec.Seq)
	switch v {
	case ship.Unknown:
		p.w.t.Fatalf("%san answer to nothing", p.w.story())
	case ship.NoRoomForAll:
		p.core.NoRoom(1)
		return
	case ship.NoRoomAt:
		p.core.NoRoom(1)
		p.refused = append(p.refused, wire.Extent{Offset: rec.Offset, Length: rec.Length})
		p.full = true
		return
	case ship.Taken:
		delete(p.tries, rec.Offset)
		return
	}
	p.tries[rec.Offset]++
	if v == ship.Final || p.tries[rec.Offset] > ship.MaxTries {
		p.w.log("mismatch at %d", rec.Offset/pageSize)
		p.core.Spoil()
		p.dirty(rec)
		p.stopped = true
		p.w.cutLine()
		return
	}
	if epoch, ok := p.core.MayShip(); kept && ok && epoch != 0 {
		it.tries = p.tries[rec.Offset]
		p.again = append(p.again, it)
		return
	}
	p.dirty(rec)
}

func (p *simPrimary) dirty(rec ship.Record) {
	p.tracker.Dirty(p.sets, uint64(rec.Offset/pageSize), uint64(rec.Length/pageSize))
}

func runs(extents []wire.Extent) (out []track.Run) {
	for _, e := range extents {
		out = append(out, track.Run{First: uint64(e.Offset / pageSize), Count: uint64(e.Length / pageSize)})
	}
	return out
}

var kinds = [...]string{"Wait", "Cut", "SendRebase", "SendCommit", "GiveUp", "Void", "Drop", "BeginBulk", "Pass", "Flush", "Offer", "RetryHoles"}

func (p *simPrimary) String() string {
	return fmt.Sprintf("%+v, sets %+v, hands %d, again %d, kept %d", p.core.State(), p.tracker.Counts(p.sets), len(p.hands), len(p.again), len(p.kept))
}
