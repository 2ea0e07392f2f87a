package engine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/blkmirror/blkmirror/wire"
)

// At a mirror's node verify and repair come to what they come to at the primary's.
func TestVerifyAndRepairAtTheMirror(t *testing.T) {
	t.Parallel() // it waits most of the time
	p := newLivePair(t, 2, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	m := p.mirrors[1]
	verify := func(n *liveNode, o VerifyOptions) ([]VerifyResult, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		results, err := Verify(ctx, n.control(), "v", o, nil)
		for i := range results {
			results[i].Seconds = 0
		}
		return results, err
	}
	repair := func(n *liveNode, o RepairOptions) (RepairResult, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		results, err := Repair(ctx, n.control(), "v", o, nil)
		if len(results) != 1 {
			return RepairResult{}, err
		}
		results[0].Seconds = 0
		return results[0], err
	}
	same := func() []VerifyResult {
		t.Helper()
		there, err := verify(m, VerifyOptions{Rate: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		here, err := verify(p.primary, VerifyOptions{Mirror: "mirror1"})
		if diff := cmp.Diff(here, there); err != nil || diff != "" || len(there) != 1 {
			t.Errorf("%v: %s", err, diff)
		}
		return there
	}
	if r := same(); r[0].CheckedBytes != liveSize || len(r[0].Extents) != 0 {
		t.Errorf("verify %+v", r)
	}
	p.spoil(m.volume.Path, 3*DefaultBlockSize+7)
	p.spoil(m.volume.Path, 40*DefaultBlockSize)
	if r := same(); !slices.Equal(r[0].Extents, blocksAt(3, 40)) || m.status().State != "read-only" {
		t.Errorf("verify %+v", r)
	}
	if r, err := repair(m, RepairOptions{DryRun: true, Mirror: "mirror1"}); err != nil || r.Blocks != 2 || !slices.Equal(r.Extents, blocksAt(3, 40)) || m.status().State != "read-only" {
		t.Errorf("dry run %+v, %v", r, err)
	}
	if r, err := repair(m, RepairOptions{}); err != nil || r.Mirror != "mirror1" || r.Blocks != 2 || r.ShippedBytes == 0 || r.ShippedBytes > 2*DefaultBlockSize {
		t.Errorf("repair %+v, %v", r, err)
	}
	if r, err := repair(m, RepairOptions{}); err != nil || !r.Nothing {
		t.Errorf("another repair %+v, %v", r, err)
	}
	p.spoil(m.volume.Path, 17*DefaultBlockSize)
	if r, err := repair(m, RepairOptions{All: true}); err != nil || r.ShippedBytes == 0 || r.ComparedBytes < liveSize {
		t.Errorf("repair of everything %+v, %v", r, err)
	}
	p.settle()
	p.equal(1)

	// What is refused is refused with the same words.
	alike := func(kind Kind, err, other error) {
		t.Helper()
		wantKind(t, err, kind)
		a, _ := errors.AsType[*Error](err)
		b, _ := errors.AsType[*Error](other)
		if b == nil || a.Error() != b.Error() || a.Next != b.Next {
			t.Errorf("%v; %s\n%v; %v", err, a.Next, other, b)
		}
	}
	_, err := verify(m, VerifyOptions{Mirror: "mirror0"})
	wantKind(t, err, KindUsage)
	_, err = repair(m, RepairOptions{From: "mirror", All: true})
	_, other := repair(p.primary, RepairOptions{From: "mirror", All: true})
	alike(KindUsage, err, other)

	tick := time.Tick(200 * time.Millisecond)
	eventually(t, "the primary's index has it", func() bool { <-tick; return p.scrub(p.primary).CheckedBytes >= 4*mib })
	p.spoil(p.primary.volume.Path, 5*DefaultBlockSize)
	if r := same(); !slices.Equal(r[0].Rot, blocksAt(5)) || len(r[0].Extents) != 0 {
		t.Errorf("verify of rot %+v", r)
	}
	_, err = repair(m, RepairOptions{All: true})
	_, other = repair(p.primary, RepairOptions{All: true, Mirror: "mirror1"})
	alike(KindState, err, other)
	if r, err := repair(m, RepairOptions{From: "mirror"}); err != nil || r.Mirror != "mirror1" || !slices.Equal(r.Extents, blocksAt(5)) {
		t.Errorf("repair from the mirror %+v, %v", r, err)
	}
	p.settle()
	p.equal(1)
}

// A job goes on over lost connections and a new process of the primary, and ends with its client.
func TestErrandOverConnections(t *testing.T) {
	p := newLivePair(t, 1, nil)
	c := p.client()
	p.write(c, 0, 4*mib)
	p.settle()
	m := p.mirrors[0]
	p.spoil(m.volume.Path, 3*DefaultBlockSize)
	seen := make(chan CheckProgress, 1000)
	type end struct {
		results []VerifyResult
		err     error
	}
	begin := func(ctx context.Context) <-chan end {
		done := make(chan end, 1)
		go func() {
			results, err := Verify(ctx, m.control(), "v", VerifyOptions{Rate: 6 * mib}, func(p CheckProgress) { seen <- p })
			done <- end{results, err}
		}()
		return done
	}
	done := begin(t.Context())
	some := func() {
		t.Helper()
		for got := range seen {
			if got.Done > 0 {
				return
			}
		}
	}
	some()
	if _, err := Verify(t.Context(), p.primary.control(), "v", VerifyOptions{}, nil); err == nil || !strings.Contains(err.Error(), "a verify is under way") {
		t.Errorf("a verify beside it: %v", err)
	}
	p.primary.stop()
	select {
	case e := <-done:
		t.Fatalf("it ended with its primary: %+v", e)
	case <-time.After(3 * awakeEvery):
	}
	p.primary.start()
	e := <-done
	if e.err != nil || len(e.results) != 1 || !slices.Equal(e.results[0].Extents, blocksAt(3)) {
		t.Errorf("%+v", e)
	}
	if _, err := Repair(t.Context(), m.control(), "v", RepairOptions{}, nil); err != nil {
		t.Error(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done = begin(ctx)
	some()
	cancel()
	<-done
	eventually(t, "the primary is free again", func() bool {
		_, err := Verify(t.Context(), p.primary.control(), "v", VerifyOptions{}, nil)
		return err == nil
	})
	p.settle()
	p.equal(0)
}

// What a mirror may say, and what becomes of the job that it asked for before.
func TestErrandsOfOneMirror(t *testing.T) {
	s := &shipper{}
	s.errands.wake = make(chan struct{}, 1)
	x := &s.errands
	session := func() *shipSession {
		l := &link{}
		l.ctx, l.cancel = context.WithCancelCause(t.Context())
		return &shipSession{link: l}
	}
	ask := func(id byte, job wire.Job) *wire.Ask { return &wire.Ask{ID: [16]byte{id}, Job: job} }
	one, two := session(), session()
	take := func(session *shipSession, m *wire.Ask) {
		t.Helper()
		if err := s.takeAsk(session, m); err != nil {
			t.Fatal(err)
		}
	}
	take(one, ask(1, wire.JobEnd)) // of nothing
	if x.next() != nil {
		t.Fatal("an end is a beginning")
	}
	take(one, ask(1, wire.JobVerify))
	e := x.next()
	if e == nil || x.next() != nil {
		t.Fatal("it is to be begun once")
	}
	told := func(want int) {
		t.Helper()
		wanted, _, words := x.look(e)
		if !wanted || len(words) != want {
			t.Errorf("wanted %v, %d words, want %d", wanted, len(words), want)
		}
	}
	told(1)
	told(0)
	x.note(e, CheckProgress{"east", 1, 2})
	told(1)
	one.end(errDone)
	x.note(e, CheckProgress{"east", 2, 2})
	told(0) // to nobody
	if err := s.takeAsk(two, ask(1, wire.JobRepair)); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("something else under its id: %v", err)
	}
	take(two, ask(1, wire.JobVerify))
	if x.next() != nil {
		t.Error("it is begun again")
	}
	told(1)
	e.ended, e.due = &wire.Ended{ID: [16]byte{1}, Flags: wire.EndedResult, Differ: make([]wire.Extent, wire.MaxEntries+1)}, true
	told(3)
	told(0)
	take(two, ask(1, wire.JobVerify))
	told(3)
	for id := byte(2); id < 200; id++ { // whatever comes in between is never begun
		take(two, ask(id, wire.JobVerify))
	}
	if wanted, _, _ := x.look(e); wanted {
		t.Error("it is wanted beside another one")
	}
	if e = x.next(); e == nil || e.ask.ID != [16]byte{199} {
		t.Fatalf("next is %+v", e)
	}
	two.end(errDone)
	told(0)
	e.wanted = e.wanted.Add(-errandKept)
	if wanted, _, _ := x.look(e); wanted || x.last != nil {
		t.Error("nobody has come back for it, and it is wanted")
	}
	take(two, ask(199, wire.JobVerify))
	if x.next() == nil {
		t.Error("it is not begun anew")
	}
	take(two, ask(199, wire.JobEnd))
	if x.last != nil {
		t.Error("it is wanted behind its end")
	}
}
