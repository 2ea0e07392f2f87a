package engine

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/wire"
)

const page = blockdev.PageSize

// What is not what it says is refused, is in no staging and no chain, and comes again under a new Seq.
func TestMirrorRefusesDamage(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.rebase(2, 0, 3)
	p.change(0, 2*testBlock, 2)
	wrong := p.frame(3, 0, testBlock)
	wrong.Hash[3] ^= 1
	packed := p.frame(3, testBlock, testBlock)
	packed.Codec, packed.Payload = wire.CodecLZ4, []byte{0xff, 1, 2, 3}
	p.send(wrong, packed)
	var naks []wire.NakEntry
	for len(naks) < 2 {
		naks = append(naks, expect[*wire.Nak](p).Entries...)
	}
	if naks[0].Seq != wrong.Seq || naks[0].Cause != wire.NakHash || naks[1].Seq != packed.Seq || naks[1].Cause != wire.NakCodec {
		t.Fatalf("naks %+v", naks)
	}
	p.stage(3, 0, 2*testBlock)
	p.commit(2, 3)
	p.applied(3)
	w.mustHold(p.content)
	w.mustIndex()
	if st := w.status(); st.Primary.RetriedBlocks != 2 {
		t.Errorf("retried %d blocks", st.Primary.RetriedBlocks)
	}
}

// What is staged for an epoch that was given up goes over to a later one, except the pages that are void; a
// later record wins.
func TestMirrorRebase(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.change(0, 3*testBlock, 2)
	p.rebase(2, 0, 3)
	p.stage(3, 0, 3*testBlock)
	p.change(page, 2*page, 3) // written again: these are void in 5
	p.change(testBlock, page, 4)
	p.rebase(2, 3, 5, wire.Extent{Offset: page, Length: 2 * page}, wire.Extent{Offset: testBlock, Length: page})
	p.stage(5, page, 2*page)
	p.stage(5, testBlock, page)
	p.zero(5, 2*testBlock+page, 3*page)
	p.commit(2, 5)
	p.applied(5)
	w.mustHold(p.content)
	w.mustIndex()
	// One that was given up for good.
	p.rebase(5, 0, 6)
	p.stage(6, 0, testBlock)
	p.rebase(5, 6, 0)
	p.change(mib-page, page, 6)
	p.rebase(5, 0, 7)
	p.stage(7, mib-page, page)
	p.commit(5, 7)
	p.applied(7)
	w.mustHold(p.content)
}

// A connection that is lost in the middle of an epoch loses nothing that was acknowledged. Neither does a
// clean restart; a power cut goes back to a point that was told.
func TestMirrorGoesOnMidEpoch(t *testing.T) {
	for _, how := range []string{"connection", "restart", "power cut"} {
		t.Run(how, func(t *testing.T) {
			w := newMirrorWorld(t, mib)
			p := w.synced()
			p.change(0, mib, 2)
			p.rebase(2, 0, 3)
			p.stage(3, 0, mib/2)
			seq, chain := p.seq, p.chain
			if how == "power cut" { // a Rebase is a durable point
				p.rebase(2, 3, 4)
				seq, chain = p.seq, p.chain
				p.stage(4, mib/2, testBlock)
				p.t.Logf("at %d of %d", seq, p.seq)
				c := w.crash(0)
				p.hangUp()
				p.moveTo(c)
				p.chain = chain
				p.pages = map[int64]bool{}
				for at := int64(0); at < mib/2; at += page {
					p.pages[at] = true
				}
				w.kill()
				w = c
			}
			epoch := uint64(3)
			if how != "connection" {
				p.hangUp()
			}
			if how == "restart" {
				w.stop()
			}
			switch how {
			case "connection":
				p.hangUp()
			case "power cut":
				epoch = 4
				fallthrough
			default:
				w.open()
			}
			a := p.dial()
			if a.StagedNumber != epoch || a.StagedBase != 2 || a.StagedSeq != seq || a.StagedChain != chain.Sum() ||
				a.StagedRecords != chain.Records() || a.StagedIncarnation != p.incarnation || a.LastCut != 2 {
				t.Fatalf("the mirror says %+v, want seq %d", a, seq)
			}
			p.stage(epoch, mib/2, mib/2)
			p.commit(2, epoch)
			p.applied(epoch)
			w.mustHold(p.content)
		})
	}
}

// Another process of the primary cannot know what was staged.
func TestMirrorDropsStagingOfAnotherIncarnation(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.rebase(2, 0, 3)
	p.stage(3, 0, testBlock)
	p.hangUp()
	p.incarnation++
	if a := p.dial(); a.StagedNumber != 0 {
		t.Fatalf("the mirror says %+v", a)
	}
	p.seq = 0
	p.change(0, testBlock, 5)
	p.rebase(2, 0, 3)
	p.stage(3, 0, testBlock)
	p.commit(2, 3)
	p.applied(3)
	w.mustHold(p.content)
}

// A Commit is taken only where everything about it is right.
func TestMirrorChecksCommit(t *testing.T) {
	for name, edit := range map[string]func(*wire.Commit){
		"records":       func(m *wire.Commit) { m.Records++ },
		"pages":         func(m *wire.Commit) { m.Pages++ },
		"chain":         func(m *wire.Commit) { m.Chain[0] ^= 1 },
		"base":          func(m *wire.Commit) { m.Base-- },
		"epoch":         func(m *wire.Commit) { m.Epoch++ },
		"records less ": func(m *wire.Commit) { m.Records-- },
	} {
		t.Run(name, func(t *testing.T) {
			w := newMirrorWorld(t, mib)
			p := w.synced()
			before := append([]byte(nil), p.content...)
			p.change(0, testBlock, 2)
			p.rebase(2, 0, 3)
			p.stage(3, 0, testBlock)
			p.sendCommit(2, 3, edit)
			if code := p.lastWord(); code != wire.CodeIntegrity {
				t.Errorf("ended with %v", code)
			}
			p.hangUp()
			if a := p.dial(); a.LastCut != 2 || a.StagedNumber != 3 {
				t.Errorf("afterwards: %+v", a)
			}
			w.mustHold(before)
			p.commit(2, 3) // the right one is taken all the same
			p.applied(3)
			w.mustHold(p.content)
		})
	}
}

// Holes and what is unproven are kept and told until a later commit says otherwise.
func TestMirrorKeepsHoles(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.rebase(2, 0, 3)
	p.sendCommit(2, 3, func(m *wire.Commit) {
		m.Flags, m.Holes = wire.CommitUnproven, []wire.Extent{{Offset: 0, Length: page}, {Offset: 5 * page, Length: 2 * page}}
	})
	expect[*wire.Committed](p)
	p.applied(3)
	p.hangUp()
	w.stop()
	w.open()
	if st := w.status(); !st.Unproven || st.Primary.Holes != 3*page {
		t.Errorf("status %+v %+v", st, st.Primary)
	}
	p.dial()
	p.rebase(3, 0, 4)
	p.commit(3, 4)
	if st := w.status(); st.Unproven || st.Primary.Holes != 0 {
		t.Errorf("status %+v %+v", st, st.Primary)
	}
}

// The next epoch is staged while the one before is applied, and what does not fit waits until that is done.
func TestMirrorStagingLimit(t *testing.T) {
	w := newMirrorWorld(t, mib)
	w.limit = 300 << 10
	slow, stop := make(chan struct{}), make(chan struct{})
	w.rules = []devtest.Rule{{Op: devtest.OpWrite, When: devtest.Touches(7*testBlock, 1), Times: 1,
		Effect: devtest.Hook(func(devtest.Call) { close(slow); <-stop })}}
	w.open()
	p := newPrimary(w)
	p.dial()
	p.change(0, mib, 1)
	p.send(&wire.Bulk{Number: 2})
	p.bulkRange(0, 6*testBlock)
	p.flush(2)
	p.rebase(2, 0, 3)
	p.stage(3, 6*testBlock, 3*testBlock)
	p.commit(2, 3)
	<-slow // the first epoch hangs in the device
	p.rebase(3, 0, 4)
	p.stage(4, 9*testBlock, testBlock)
	sent := p.ship(4, 10*testBlock, testBlock)
	select {
	case <-time.After(50 * time.Millisecond):
	case <-p.w.m.ended:
	}
	if st := w.status(); st.Primary.AppliedEpoch != 2 || st.Primary.CommittedEpoch != 3 {
		t.Fatalf("status %+v", st.Primary)
	}
	close(stop)
	p.acks(wire.LevelStaged, sent...)
	p.applied(3)
	// Nothing is left to apply, and it does not fit: this is said.
	p.stage(4, 11*testBlock, 2*testBlock)
	p.frame(4, 13*testBlock, testBlock)
	p.seq--
	refused := p.frame(4, 13*testBlock, testBlock)
	p.send(refused)
	if e := expect[*wire.Nak](p).Entries[0]; e.Cause != wire.NakRoom || e.Seq != refused.Seq {
		t.Fatalf("nak %+v", e)
	}
	// Given up, and carried over without the half of it, which makes room.
	p.rebase(2+1, 4, 5, wire.Extent{Offset: 9 * testBlock, Length: 4 * testBlock})
	p.hangUp()
	w.limit = 1 << 30
	w.stop()
	w.open()
	p.dial()
	p.rebase(3, 0, 6)
	p.stage(6, 9*testBlock, 7*testBlock)
	p.commit(3, 6)
	p.applied(6)
	w.mustHold(p.content)
}

// A device without room for an epoch refuses its Commit. What is staged stays, and what stands on the epoch
// is refused with it.
func TestMirrorDeviceWithoutRoom(t *testing.T) {
	w := newMirrorWorld(t, mib)
	var room atomic.Int64
	room.Store(4 * testBlock)
	w.free = room.Load
	p := w.synced()
	p.change(0, 8*testBlock, 2)
	p.rebase(2, 0, 3)
	p.stage(3, 0, 8*testBlock)
	whole, pages := p.chain, p.pages
	m := p.sendCommit(2, 3)
	p.rebase(3, 0, 4) // on its way already
	ahead := p.frame(4, 0, page)
	p.send(ahead)
	var naks []wire.NakEntry
	for len(naks) < 2 {
		naks = append(naks, expect[*wire.Nak](p).Entries...)
	}
	if naks[0] != (wire.NakEntry{Cause: wire.NakRoom}) || naks[1].Seq != ahead.Seq || naks[1].Cause != wire.NakRoom {
		t.Fatalf("naks %+v", naks)
	}
	if st := w.status(); st.Epoch != 2 {
		t.Fatalf("status %+v", st)
	}
	// Room was found: the same Commit is taken, or the epoch is carried over.
	room.Store(16 * testBlock)
	p.chain, p.pages = whole, pages
	p.rebase(2, 3, 5)
	p.commit(2, 5)
	p.applied(5)
	w.mustHold(p.content)
	_ = m
}

// One connection at a time: a newer one of the same process takes over, an older one is sent away.
func TestMirrorConnections(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.change(0, 2*testBlock, 2)
	p.rebase(2, 0, 3)
	p.stage(3, 0, testBlock)

	second := newPrimary(w)
	second.connection, second.content = p.connection, p.content
	if _, err := func() (*wire.Attached, error) { second.connection--; return second.knock() }(); !errors.Is(err, wire.ErrReplaced) && !isRefused(err, wire.CodeReplaced) {
		t.Fatalf("an older connection: %v", err)
	}
	second.hangUp()
	second.connection = p.connection
	done := make(chan wire.Code, 1)
	go func() { done <- p.lastWord(); p.conn.Close(nil) }()
	if a := second.dial(); a.StagedSeq != p.seq {
		t.Fatalf("attached %+v", a)
	}
	if code := <-done; code != wire.CodeReplaced {
		t.Errorf("the older one was told %v", code)
	}
	second.seq, second.chain, second.pages = p.seq, p.chain, p.pages
	second.stage(3, testBlock, testBlock)
	second.commit(2, 3)
	second.applied(3)
	w.mustHold(second.content)
}

func isRefused(err error, code wire.Code) bool {
	var remote *wire.RemoteError
	return errors.As(err, &remote) && remote.Code == code
}

// Whoever is not this mirror's primary is sent away, and nothing changes.
func TestMirrorRefusesPrimaries(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	p.generation.Counter = 3
	p.generation.ID[0] = 3
	p.hangUp()
	p.dial() // a newer generation is seen
	p.hangUp()
	for _, c := range []struct {
		name string
		edit func(*wire.Attach)
		want wire.Code
	}{
		{"another volume", func(a *wire.Attach) { a.VolumeID[5] = 5 }, wire.CodeHistory},
		{"an older generation", func(a *wire.Attach) { a.Generation = wire.Generation{ID: [16]byte{9}, Counter: 1} }, wire.CodeOlder},
		{"a sibling", func(a *wire.Attach) { a.Generation.ID[1] = 9 }, wire.CodeHistory},
		{"another size", func(a *wire.Attach) { a.Size += page }, wire.CodeHistory},
		{"another block size", func(a *wire.Attach) { a.BlockSize = 4096 }, wire.CodeHistory},
	} {
		if _, err := p.knock(c.edit); !isRefused(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		p.hangUp()
	}
	// The generation of the content is told until a commit in the new one.
	a := p.dial()
	if a.Generation.Counter != 1 || a.LastCut != 2 {
		t.Errorf("attached %+v", a)
	}
	p.rebase(2, 0, 3)
	p.commit(2, 3)
	p.hangUp()
	if a := p.dial(); a.Generation != p.generation {
		t.Errorf("attached %+v", a)
	}
	// A person may have another volume replace it.
	p.applied(3)
	p.hangUp()
	p.volume[7] = 7
	if a := p.dial(func(a *wire.Attach) { a.Flags = wire.AttachOverwrite }); a.VolumeID != [16]byte{} || a.LastCut != 0 ||
		a.Flags != wire.AttachedInconsistent || a.Generation != (wire.Generation{}) {
		t.Errorf("attached %+v", a)
	}
}

// Whatever a primary sends that makes no sense ends the session, and changes nothing.
func TestMirrorRefusesNonsense(t *testing.T) {
	data := func(seq, epoch uint64, off, n int64) *wire.Data {
		b := make([]byte, n)
		return &wire.Data{Seq: seq, Epoch: epoch, Offset: off, RawLength: uint32(n), Codec: wire.CodecRaw, Hash: wire.Sum(b), Payload: b}
	}
	for _, c := range []struct {
		name string
		send []wire.Message
		want wire.Code
	}{
		{"data without an epoch", []wire.Message{data(100, 9, 0, page)}, wire.CodeProtocol},
		{"data in place outside bulk", []wire.Message{data(100, 0, 0, page)}, wire.CodeProtocol},
		{"zero in place outside bulk", []wire.Message{&wire.Zero{Seq: 100, Offset: 0, Length: page}}, wire.CodeProtocol},
		{"data of another epoch", []wire.Message{data(100, 4, 0, page)}, wire.CodeProtocol},
		{"data behind the end", []wire.Message{data(100, 3, 2*mib, page)}, wire.CodeProtocol},
		{"data across the end", []wire.Message{data(100, 3, mib+page, 2*page)}, wire.CodeProtocol},
		{"data across blocks", []wire.Message{data(100, 3, testBlock-page, 2*page)}, wire.CodeProtocol},
		{"data of half a page", []wire.Message{data(100, 3, 0, page/2)}, wire.CodeProtocol},
		{"data inside a page", []wire.Message{data(100, 3, 512, page)}, wire.CodeProtocol},
		{"an old sequence", []wire.Message{data(1, 3, 0, page)}, wire.CodeProtocol},
		{"zero behind the end", []wire.Message{&wire.Zero{Seq: 100, Epoch: 3, Offset: 0, Length: 2 * mib}}, wire.CodeProtocol},
		{"zero of half a page", []wire.Message{&wire.Zero{Seq: 100, Epoch: 3, Offset: 0, Length: 100}}, wire.CodeProtocol},
		{"rebase on another cut", []wire.Message{&wire.Rebase{Seq: 100, Base: 1, New: 4}}, wire.CodeIntegrity},
		{"rebase of what is not staged", []wire.Message{&wire.Rebase{Seq: 100, Base: 2, Old: 4, New: 5}}, wire.CodeProtocol},
		{"rebase with an old sequence", []wire.Message{&wire.Rebase{Seq: 1, Base: 2, Old: 3, New: 5}}, wire.CodeProtocol},
		{"void behind the end", []wire.Message{&wire.Rebase{Seq: 100, Base: 2, Old: 3, New: 5, Voids: []wire.Extent{{Offset: mib, Length: 4 * page}}}}, wire.CodeProtocol},
		{"half a rebase", []wire.Message{&wire.Rebase{Seq: 100, Base: 2, Old: 3, New: 5, More: true, Voids: []wire.Extent{{Offset: 0, Length: page}}},
			&wire.Bulk{}}, wire.CodeProtocol},
		{"offer while something is staged", []wire.Message{&wire.Offer{Seq: 1, Length: page, Unit: page, Hashes: make([]wire.Hash, 1)}}, wire.CodeProtocol},
		{"offer behind the end", []wire.Message{&wire.Offer{Seq: 1, Offset: 2 * mib, Length: page, Unit: page, Hashes: make([]wire.Hash, 1)}}, wire.CodeProtocol},
		{"flush outside bulk", []wire.Message{&wire.Flush{Number: 9}}, wire.CodeProtocol},
		{"bulk on another cut", []wire.Message{&wire.Bulk{Base: 1, Number: 9}}, wire.CodeIntegrity},
		{"bulk to an old number", []wire.Message{&wire.Bulk{Base: 2, Number: 2}}, wire.CodeProtocol},
		{"a flush that goes back", []wire.Message{&wire.Bulk{Base: 2, Number: 3}, &wire.Flush{Number: 2}}, wire.CodeProtocol},
		{"a mirror's message", []wire.Message{&wire.Ack{Entries: []wire.AckEntry{{Seq: 1, Level: wire.LevelStaged}}}}, wire.CodeProtocol},
		{"suspects behind the end", []wire.Message{&wire.Suspect{Class: 5, Entries: []wire.SuspectEntry{{Offset: 2 * mib, Length: page}}}}, wire.CodeProtocol},
		{"fetch of what is no block", []wire.Message{&wire.Fetch{Offset: page, Length: testBlock}}, wire.CodeProtocol},
		{"fetch behind the end", []wire.Message{&wire.Fetch{Offset: 2 * mib, Length: testBlock}}, wire.CodeProtocol},
		{"fetched what was not asked", []wire.Message{&wire.Fetched{Offset: 0, Length: testBlock}}, wire.CodeProtocol},
		{"fetched, with a payload", []wire.Message{&wire.Fetched{Offset: 0, Length: testBlock, Payload: make([]byte, testBlock)}}, wire.CodeProtocol},
		{"told what was not asked", []wire.Message{&wire.Told{ID: [16]byte{1}, Total: 1}}, wire.CodeProtocol},
		{"the end of what was not asked", []wire.Message{&wire.Ended{ID: [16]byte{1}, Flags: wire.EndedResult}}, wire.CodeProtocol},
		{"a sync's message", []wire.Message{&wire.Open{Volume: "v", BlockSize: testBlock, Size: mib}}, wire.CodeProtocol},
		{"a second attach", []wire.Message{&wire.Attach{Volume: "v", VolumeID: [16]byte{1}, Generation: wire.Generation{ID: [16]byte{9}, Counter: 1},
			Incarnation: 11, Connection: 9, Size: mib + 5000, BlockSize: testBlock}}, wire.CodeProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newMirrorWorld(t, mib+5000)
			p := w.synced()
			p.rebase(2, 0, 3)
			p.stage(3, 0, 2*page)
			for _, m := range c.send {
				p.conn.Send(m)
			}
			if code := p.lastWord(); code != c.want {
				t.Errorf("ended with %v", code)
			}
			p.hangUp()
			w.mustHold(p.content)
			if st := w.status(); st.Epoch != 2 || st.State != "ok" && !strings.Contains(c.name, "flush that goes") {
				t.Errorf("status %+v", st)
			}
			if p.dial(); p.attached.LastCut != 2 {
				t.Errorf("attached %+v", p.attached)
			}
		})
	}
}
