package replica

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

const (
	volumeSize = 1 << 20
	page       = blockdev.PageSize
)

func facts(committed uint64, edits ...func(*journal.VolumeFacts)) journal.VolumeFacts {
	f := journal.VolumeFacts{UUID: [16]byte{1}, Size: volumeSize, BlockSize: 64 << 10, Role: journal.RoleMirror,
		Generation: journal.Generation{ID: [16]byte{2}, Counter: 1}}
	f.Mirror.Committed, f.Mirror.Applied, f.Mirror.Node = committed, committed, [32]byte{5}
	for _, edit := range edits {
		edit(&f)
	}
	return f
}

func attach(edits ...func(*wire.Attach)) *Attach {
	m := &wire.Attach{VolumeID: [16]byte{1}, Generation: wire.Generation{ID: [16]byte{2}, Counter: 1}, Incarnation: 11,
		Size: volumeSize, BlockSize: 64 << 10}
	for _, edit := range edits {
		edit(m)
	}
	return &Attach{Message: m, Node: [32]byte{5}}
}

// primary makes the events of an epoch, with the chain that they come to.
type primary struct {
	seq   uint64
	chain wire.Chain
	pages *blockdev.PageSet
}

func (p *primary) rebase(base, old, new uint64, voids ...wire.Extent) *Rebase {
	p.seq++
	m := &wire.Rebase{Seq: p.seq, Base: base, Old: old, New: new, Voids: voids}
	if old == 0 {
		p.chain, p.pages = wire.Chain{}, blockdev.NewPageSet(volumeSize/page)
	}
	for _, v := range voids {
		p.pages.Remove(uint64(v.Offset/page), uint64(v.Length/page))
	}
	p.chain.AddRebase(m)
	return &Rebase{m}
}

func (p *primary) data(epoch uint64, off int64, n int) *Record {
	p.seq++
	d := &wire.Data{Seq: p.seq, Epoch: epoch, Offset: off, RawLength: uint32(n), PayloadLength: n, Codec: wire.CodecRaw, Hash: wire.Hash{byte(p.seq)}}
	p.chain.Add(d)
	p.pages.Add(uint64(off/page), uint64(n/page))
	return &Record{Data: d, Found: d.Hash}
}

// bad is a record that is not what it says: it is in no chain.
func (p *primary) bad(epoch uint64, off int64) *Record {
	p.seq++
	return &Record{Data: &wire.Data{Seq: p.seq, Epoch: epoch, Offset: off, RawLength: page, PayloadLength: page}, Cause: wire.NakHash}
}

func (p *primary) commit(base, epoch uint64) *Commit {
	return &Commit{&wire.Commit{Epoch: epoch, Base: base, Records: p.chain.Records(), Pages: p.pages.Count(), Chain: p.chain.Sum()}, p.pages}
}

// words tells actions shortly.
func words(actions []Action) string {
	var out []string
	for _, a := range actions {
		switch a := a.(type) {
		case Send:
			out = append(out, strings.TrimPrefix(reflect.TypeOf(a.Message).String(), "*wire."))
		case Nak:
			out = append(out, fmt.Sprintf("Nak%d", a.Entry.Cause))
		case End:
			out = append(out, fmt.Sprintf("End%d", a.Code))
		default:
			out = append(out, strings.TrimPrefix(reflect.TypeOf(a).String(), "replica."))
		}
	}
	return strings.Join(out, " ")
}

// step is an event and what comes of it.
type step struct {
	event Event
	want  string
}

func run(t *testing.T, c *Core, steps ...step) {
	t.Helper()
	for i, s := range steps {
		if got := words(c.Step(s.event)); got != s.want {
			t.Fatalf("step %d, %T: %q, want %q", i, s.event, got, s.want)
		}
	}
}

// ready is a mirror at cut 2 with its primary attached, and room for three records of a block.
func ready(t *testing.T) (*Core, *primary) {
	c := New(facts(2), nil)
	run(t, c, step{&Measured{Limit: 200 << 10}, ""}, step{attach(), "Attached"})
	return c, &primary{}
}

func TestEpoch(t *testing.T) {
	c, p := ready(t)
	run(t, c,
		step{p.rebase(2, 0, 3), "BeginStaging"},
		step{p.data(3, 0, 4*page), "Append Ack"},
		step{p.bad(3, 4*page), "Nak1"},
		step{p.data(3, 4*page, page), "Append Ack"},
		step{p.rebase(2, 3, 4, wire.Extent{Offset: 0, Length: page}), "RebaseStaging Synced"},
		step{p.data(4, 0, page), "Append Ack"},
		step{p.commit(2, 4), "Reserve"},
		step{&Reserved{true}, "SealStaging Journal Committed Apply"},
		// The next one is staged meanwhile, and committed behind it.
		step{p.rebase(4, 0, 5), "BeginStaging"},
		step{p.data(5, 0, page), "Append Ack"},
		step{p.commit(4, 5), "Reserve"},
		step{&Reserved{true}, "SealStaging Journal Committed"},
		step{&Applied{Epoch: 4}, "Journal RemoveStaging Apply"},
		step{&Measured{Limit: 200 << 10}, "Report"},
		step{&Applied{Epoch: 5}, "Journal RemoveStaging"},
		step{&Lost{}, ""},
	)
	if f := c.Facts().Mirror; f.Committed != 5 || f.Applied != 5 || len(f.Epochs) != 0 || f.Incarnation != 11 {
		t.Errorf("facts %+v", f)
	}
}

func TestStagingIsSyncedNowAndThen(t *testing.T) {
	c, p := ready(t)
	run(t, c, step{&Measured{Limit: 1 << 40}, "Report"}, step{p.rebase(2, 0, 3), "BeginStaging"})
	synced := 0
	for i := range 3000 {
		switch got := words(c.Step(p.data(3, int64(i%16)<<16, 64<<10))); got {
		case "Append Ack":
		case "Append Ack SyncStaging Synced":
			synced++
		default:
			t.Fatalf("record %d: %q", i, got)
		}
	}
	if synced != 2 {
		t.Errorf("synced %d times", synced)
	}
}

func TestRoom(t *testing.T) {
	const limit = 20 * page
	c, p := ready(t)
	run(t, c,
		step{&Measured{Limit: limit}, ""},
		step{p.rebase(2, 0, 3), "BeginStaging"},
		step{p.data(3, 0, 16*page), "Append Ack"},
		step{p.commit(2, 3), "Reserve"},
		step{&Reserved{true}, "SealStaging Journal Committed Apply"},
		step{p.rebase(3, 0, 4), "BeginStaging"},
		step{p.data(4, 0, 16*page), ""}, // waits: what is applied makes room
	)
	if !c.Holding() {
		t.Fatal("nothing waits")
	}
	run(t, c,
		step{&Applied{Epoch: 3}, "Journal RemoveStaging"}, // the room is not known yet
		step{&Measured{Limit: limit}, "Report Append Ack"},
		step{p.data(4, 16<<12, 16*page), "Nak4"}, // nothing is left to apply
		step{&Lost{}, "SyncStaging"},
	)
	if c.Holding() {
		t.Error("a session that is lost holds")
	}
}

// The device has no room: the epoch stays staged, and what stands on it is refused until a Rebase begins on
// the cut that holds.
func TestCommitWithoutRoom(t *testing.T) {
	c, p := ready(t)
	run(t, c, step{p.rebase(2, 0, 3), "BeginStaging"}, step{p.data(3, 0, page), "Append Ack"})
	chain, pages := p.chain, p.pages
	run(t, c,
		step{p.commit(2, 3), "Reserve"},
		step{&Reserved{false}, "Nak4 Report"},
		step{p.rebase(3, 0, 4), ""},
		step{p.data(4, 0, page), "Nak4"},
	)
	p.chain, p.pages = chain, pages
	run(t, c,
		step{p.rebase(2, 3, 5), "RebaseStaging Synced"},
		step{p.commit(2, 5), "Reserve"},
		step{&Reserved{true}, "SealStaging Journal Committed Apply"},
	)
}

func TestBulk(t *testing.T) {
	c := New(journal.VolumeFacts{}, nil)
	p := &primary{}
	run(t, c,
		step{&Measured{Limit: 1 << 30}, ""},
		step{attach(), "DropIndex Journal Attached"},
		step{&Bulk{&wire.Bulk{Number: 3}}, "Journal DropIndex"},
		step{&Direct{}, "Write"},
		step{&Direct{}, "Write"},
		step{&Flush{&wire.Flush{Number: 3}}, ""}, // waits for both
		step{&Written{}, ""},
		step{&Written{}, "FlushDevice Journal Flushed"},
		step{&Bulk{&wire.Bulk{Base: 3, Number: 4}}, "Journal"}, // the number is durable before the first byte
		step{&Direct{}, "Write"},
		step{p.rebase(3, 0, 4), ""}, // so does a Rebase
		step{&Written{}, "BeginStaging"},
		step{&Direct{}, "End4"},
		step{&Lost{}, "SyncStaging"},
		step{attach(), "SyncStaging Attached"},
		step{&Bulk{&wire.Bulk{Base: 3, Number: 4}}, "DropStaging"},
		step{&Flush{&wire.Flush{Number: 4}}, "FlushDevice Journal Flushed"},
	)
	run(t, c,
		step{&Direct{}, "End4"}, // behind a Flush, without a number
		step{&Lost{}, ""},
		step{attach(), "Attached"},
	)
	if f := c.Facts(); !f.Mirror.Bulk || !f.Mirror.InPlace || !f.Mirror.Inconsistent || f.Mirror.Committed != 4 || len(f.Parents) != 0 {
		t.Errorf("facts %+v", f)
	}
	p.seq++
	run(t, c,
		step{p.rebase(4, 0, 5), "BeginStaging"},
		step{p.commit(4, 5), "Reserve"},
		step{&Reserved{true}, "SealStaging Journal Committed Apply"},
	)
	if f := c.Facts().Mirror; f.Bulk || f.InPlace || f.Inconsistent {
		t.Errorf("facts %+v", f)
	}
}

func TestOffers(t *testing.T) {
	c, p := ready(t)
	offer := &Offer{&wire.Offer{Seq: 1, Length: page, Unit: page, Hashes: make([]wire.Hash, 1)}}
	run(t, c,
		step{offer, "FlushDevice Compare"},
		step{offer, "Compare"},
		step{p.rebase(2, 0, 3), "BeginStaging"},
		step{p.commit(2, 3), "Reserve"},
		step{&Reserved{true}, "SealStaging Journal Committed"}, // applied when the device may change
		step{offer, ""},
		step{&Compared{}, ""},
		step{&Compared{}, "Apply"},
		step{&Applied{Epoch: 3}, "Journal RemoveStaging Compare"},
		step{p.rebase(3, 0, 4), "BeginStaging"},
		step{offer, "End4"},
	)
}

func TestDoubts(t *testing.T) {
	c, p := ready(t)
	run(t, c,
		step{&Doubted{[]blockdev.Extent{{Offset: 0, Length: 8 * page}, {Offset: 16 * page, Length: page}}}, "Journal Doubt"},
		step{&Lost{}, ""},
		step{attach(), "Attached Doubt"},
		step{&Offer{&wire.Offer{Seq: 1, Length: 4 * page, Unit: page, Hashes: make([]wire.Hash, 4)}}, "FlushDevice Compare"},
		step{&Compared{[]blockdev.Extent{{Offset: 0, Length: 4*page + 100}}}, ""},
		step{p.rebase(2, 0, 3), "BeginStaging"},
		step{p.data(3, 4*page, 2*page), "Append Ack"},
		step{p.commit(2, 3), "Reserve"},
		step{&Reserved{true}, "SealStaging Journal Committed Apply"},
		step{&Applied{Epoch: 3, Damaged: []blockdev.Extent{{Offset: 5 * page, Length: page}}, Cause: journal.ReadOnly{Class: journal.ClassStaging}},
			"Journal End21 RemoveStaging FlagDevice"},
	)
	want := []blockdev.Extent{{Offset: 5 * page, Length: 3 * page}, {Offset: 16 * page, Length: page}}
	if got := c.Facts().Mirror.Doubts; !reflect.DeepEqual(got, want) {
		t.Errorf("doubts %v, want %v", got, want)
	}
	// They are there again in the next process.
	if again := New(c.Facts(), nil); again.DoubtPages() != 4 {
		t.Errorf("%d pages in doubt", again.DoubtPages())
	}
}

// As many epochs as the journal can name may be committed and not applied; the next Commit waits.
func TestManyEpochs(t *testing.T) {
	c, p := ready(t)
	for n := uint64(3); n < 3+journal.MaxEpochs; n++ {
		run(t, c, step{p.rebase(n-1, 0, n), "BeginStaging"}, step{p.commit(n-1, n), "Reserve"})
		c.Step(&Reserved{true})
	}
	last := uint64(2 + journal.MaxEpochs)
	run(t, c,
		step{p.rebase(last, 0, last+1), "BeginStaging"},
		step{p.commit(last, last+1), ""},
		step{&Applied{Epoch: 3}, "Journal RemoveStaging Apply Reserve"},
		step{&Reserved{true}, "SealStaging Journal Committed"},
	)
}

// What is committed is applied again by the next process, in order, before anything else.
func TestBeginGoesOn(t *testing.T) {
	c := New(facts(7, func(f *journal.VolumeFacts) { f.Mirror.Applied, f.Mirror.Epochs = 4, []uint64{5, 7} }), nil)
	if got := words(c.Begin()); got != "Apply" {
		t.Fatalf("begins with %q", got)
	}
	run(t, c, step{&Applied{Epoch: 5}, "Journal RemoveStaging Apply"}, step{&Applied{Epoch: 7}, "Journal RemoveStaging"})
}

func TestStagedPart(t *testing.T) {
	staged := func() *Staged { return &Staged{Incarnation: 11, Base: 2, Number: 3, Seq: 40} }
	for _, c := range []struct {
		name string
		edit func(*wire.Attach)
		base uint64
		want string
	}{
		{"is kept", nil, 2, "SyncStaging Attached"},
		{"of another incarnation", func(a *wire.Attach) { a.Incarnation++ }, 2, "DropStaging Attached"},
		{"of another generation", func(a *wire.Attach) { a.Generation = wire.Generation{ID: [16]byte{7}, Counter: 2} }, 2, "Journal DropStaging Attached"},
		{"on another base", nil, 1, "DropStaging Attached"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := staged()
			st.Base = c.base
			core := New(facts(2), st)
			a := attach()
			if c.edit != nil {
				c.edit(a.Message)
			}
			run(t, core, step{a, c.want})
		})
	}
}

func TestAdmit(t *testing.T) {
	for _, c := range []struct {
		name  string
		facts journal.VolumeFacts
		edit  func(*wire.Attach)
		want  wire.Code // 0: admitted
	}{
		{"a new mirror", journal.VolumeFacts{}, nil, 0},
		{"its primary", facts(2), nil, 0},
		{"a newer generation", facts(2), func(a *wire.Attach) { a.Generation = wire.Generation{ID: [16]byte{7}, Counter: 2} }, 0},
		{"paused", facts(2, func(f *journal.VolumeFacts) { f.Paused = true }), nil, wire.CodePaused},
		{"another volume", facts(2), func(a *wire.Attach) { a.VolumeID[3]++ }, wire.CodeHistory},
		{"another volume, meant", facts(2), func(a *wire.Attach) { a.VolumeID[3]++; a.Flags = wire.AttachOverwrite }, 0},
		{"another volume, meant, but epochs wait", facts(2, func(f *journal.VolumeFacts) { f.Mirror.Epochs = []uint64{2} }),
			func(a *wire.Attach) { a.VolumeID[3]++; a.Flags = wire.AttachOverwrite }, wire.CodeBusy},
		{"another volume, meant, and smaller", facts(2), func(a *wire.Attach) { a.VolumeID[3]++; a.Size--; a.Flags = wire.AttachOverwrite }, wire.CodeHistory},
		{"another size", facts(2), func(a *wire.Attach) { a.Size++ }, wire.CodeHistory},
		{"another block size", facts(2), func(a *wire.Attach) { a.BlockSize *= 2 }, wire.CodeHistory},
		{"an older generation", facts(2), func(a *wire.Attach) { a.Generation = wire.Generation{ID: [16]byte{7}} }, wire.CodeOlder},
		{"an older generation, meant", facts(2), func(a *wire.Attach) {
			a.Generation, a.Flags = wire.Generation{ID: [16]byte{7}}, wire.AttachOverwrite
		}, 0},
		{"a sibling", facts(2), func(a *wire.Attach) { a.Generation.ID[0]++ }, wire.CodeHistory},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := attach()
			if c.edit != nil {
				c.edit(a.Message)
			}
			got := New(c.facts, nil).Admit(a.Message)
			switch {
			case c.want == 0 && got != nil:
				t.Errorf("refused: %+v", got)
			case c.want != 0 && (got == nil || got.Code != c.want || got.Text == "" || got.Next == ""):
				t.Errorf("got %+v, want %v", got, c.want)
			}
		})
	}
}
