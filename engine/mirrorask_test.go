package engine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/blkmirror/blkmirror/wire"
)

// asked is a verify at a mirror in the background.
type asked struct {
	results  []VerifyResult
	err      error
	progress []CheckProgress
	done     chan struct{}
	cancel   context.CancelFunc
}

func (w *mirrorWorld) ask(o VerifyOptions) *asked {
	a := &asked{done: make(chan struct{})}
	var ctx context.Context
	ctx, a.cancel = context.WithCancel(w.t.Context())
	go func() {
		defer close(a.done)
		a.results, a.err = w.m.verify(ctx, o, func(p CheckProgress) { a.progress = append(a.progress, p) })
	}()
	w.t.Cleanup(func() { a.cancel(); <-a.done })
	return a
}

// waits waits until a request is under way here.
func (w *mirrorWorld) waits() {
	w.t.Helper()
	eventually(w.t, "a request is under way", func() bool {
		w.m.jobs.mu.Lock()
		defer w.m.jobs.mu.Unlock()
		return w.m.jobs.under != ""
	})
}

// An Ask is the same with every connection, and what comes for it is told; what comes for another one is passed over.
func TestMirrorAsks(t *testing.T) {
	w := newMirrorWorld(t, mib+5000)
	p := w.synced()
	a := w.ask(VerifyOptions{Rate: 77, Mirror: "east"})
	first := *expect[*wire.Ask](p)
	if first.Job != wire.JobVerify || first.Rate != 77 || first.Mirror != "east" {
		t.Errorf("asked %+v", first)
	}
	p.send(&wire.Told{ID: first.ID, Done: 1, Total: 5, Mirror: "east"})
	p.hangUp()
	p.dial()
	if again := *expect[*wire.Ask](p); again != first {
		t.Errorf("asked %+v, then %+v", first, again)
	}
	differ := wire.Extent{Offset: testBlock, Length: testBlock}
	rot := wire.Extent{Offset: mib, Length: 5000}
	end := &wire.Ended{ID: first.ID, Flags: wire.EndedResult | wire.EndedError, Differ: []wire.Extent{differ}, Rot: []wire.Extent{rot},
		Outcome: wire.Outcome{Mirror: "east", Compared: 9, Skipped: 8, ResumedAt: 7, Nanoseconds: 1500000000},
		Failure: wire.Failure{Kind: uint8(KindDevice), Op: "a", On: "b", Text: "c", Next: "d"}}
	part := *end
	part.Flags, part.Rot = part.Flags|wire.EndedMore, nil
	end.Differ = nil
	p.send(&wire.Told{ID: [16]byte{1}, Done: 3, Total: 5}, &wire.Ended{ID: [16]byte{1}, Flags: wire.EndedResult, Differ: []wire.Extent{differ}},
		&wire.Told{ID: first.ID, Done: 5, Total: 5, Mirror: "east"}, &part, &wire.Fetch{Length: testBlock}, end)
	<-a.done
	want := []VerifyResult{{Volume: "v", Mirror: "east", CheckedBytes: 9, SkippedBytes: 8, ResumedAt: 7, Seconds: 1.5,
		Extents: []CheckedExtent{CheckedExtent(differ)}, Rot: []CheckedExtent{CheckedExtent(rot)}}}
	if diff := cmp.Diff(want, a.results); diff != "" {
		t.Error(diff)
	}
	e, ok := errors.AsType[*Error](a.err)
	if !ok || e.Kind != KindDevice || e.Error() != "a b: c" || e.Next != "d" {
		t.Errorf("%v", a.err)
	}
	if diff := cmp.Diff([]CheckProgress{{"east", 1, 5}, {"east", 5, 5}}, a.progress); diff != "" {
		t.Error(diff)
	}
	p.send(end) // nobody waits for it any more
	expect[*wire.Fetched](p)

	a = w.ask(VerifyOptions{})
	other := expect[*wire.Ask](p)
	if other.ID == first.ID {
		t.Error("two requests have one id")
	}
	if b := w.ask(VerifyOptions{}); true {
		<-b.done
		wantKind(t, b.err, KindState)
		if !strings.Contains(b.err.Error(), "a verify is under way") {
			t.Error(b.err)
		}
	}
	a.cancel()
	if m := expect[*wire.Ask](p); m.Job != wire.JobEnd || m.ID != other.ID {
		t.Errorf("its client went away, and the primary was told %+v", m)
	}
	<-a.done
	wantKind(t, a.err, KindNetwork)
}

// Where there is no primary one is waited for, unless a person has to do something first.
func TestMirrorAsksNobody(t *testing.T) {
	w := newMirrorWorld(t, mib)
	w.open()
	refused := func(kind Kind, o VerifyOptions, words string) {
		t.Helper()
		a := w.ask(o)
		<-a.done
		wantKind(t, a.err, kind)
		if e, _ := errors.AsType[*Error](a.err); !strings.Contains(e.Error()+e.Next, words) {
			t.Errorf("%v; %s", a.err, e.Next)
		}
	}
	refused(KindState, VerifyOptions{}, "no primary has attached")
	refused(KindUsage, VerifyOptions{Mirror: "a\nb"}, "--mirror")
	refused(KindUsage, VerifyOptions{Mirror: strings.Repeat("x", wire.MaxText+1)}, "--mirror")
	w.stop()
	p := w.synced()
	p.hangUp()
	if err := w.m.pause(); err != nil {
		t.Fatal(err)
	}
	refused(KindState, VerifyOptions{}, "blkmirror resume v")
	if err := w.m.resume(""); err != nil {
		t.Fatal(err)
	}
	a := w.ask(VerifyOptions{})
	w.waits()
	p.dial()
	m := expect[*wire.Ask](p)
	p.send(&wire.Ended{ID: m.ID, Flags: wire.EndedResult})
	<-a.done
	if a.err != nil || len(a.results) != 1 {
		t.Errorf("%+v, %v", a.results, a.err)
	}
	p.hangUp()
	a = w.ask(VerifyOptions{})
	w.waits()
	w.stop()
	<-a.done
	wantKind(t, a.err, KindNetwork)
	if !errors.Is(a.err, errDaemonStops) {
		t.Error(a.err)
	}
}

// A primary that does not know the Ask loses one connection by it, and the person is told where to go.
func TestMirrorAsksAnOldPrimary(t *testing.T) {
	w := newMirrorWorld(t, mib)
	p := w.synced()
	a := w.ask(VerifyOptions{})
	expect[*wire.Ask](p)
	p.send(&wire.Halt{Code: wire.CodeProtocol, Text: "frame of type 35"})
	<-a.done
	wantKind(t, a.err, KindState)
	if !strings.Contains(a.err.Error(), "does not know") {
		t.Error(a.err)
	}
	p.hangUp()
	p.dial()
	p.send(&wire.Fetch{Length: testBlock})
	expect[*wire.Fetched](p) // and no Ask
}

// Whatever a primary says about a job that cannot be true ends its session; the one who asked is answered by the next.
func TestMirrorRefusesWrongEnds(t *testing.T) {
	many := make([]wire.Extent, wire.MaxEntries)
	for i := range many {
		many[i] = wire.Extent{Length: 1}
	}
	result := func(id [16]byte, more wire.EndedFlags, extents ...wire.Extent) *wire.Ended {
		return &wire.Ended{ID: id, Flags: wire.EndedResult | more, Differ: extents}
	}
	for _, c := range []struct {
		name string
		send func(id [16]byte) []wire.Message
	}{
		{"an extent behind the end", func(id [16]byte) []wire.Message {
			return []wire.Message{result(id, 0, wire.Extent{Offset: mib, Length: 4096})}
		}},
		{"an extent across the end", func(id [16]byte) []wire.Message {
			return []wire.Message{result(id, 0, wire.Extent{Offset: mib - 4096, Length: 8192})}
		}},
		{"rot behind the end", func(id [16]byte) []wire.Message {
			return []wire.Message{&wire.Ended{ID: id, Flags: wire.EndedResult, Rot: []wire.Extent{{Offset: 1 << 50, Length: 1}}}}
		}},
		{"extents of nobody's behind the end", func(id [16]byte) []wire.Message {
			return []wire.Message{result([16]byte{1}, 0, wire.Extent{Offset: mib, Length: 4096})}
		}},
		{"two ends in one", func(id [16]byte) []wire.Message {
			other := result(id, 0, many[:1]...)
			other.Outcome.Compared = 1
			return []wire.Message{result(id, wire.EndedMore, many[:1]...), other}
		}},
		{"extents without an end", func(id [16]byte) (all []wire.Message) {
			for range wire.MaxListed/wire.MaxEntries + 1 {
				all = append(all, result(id, wire.EndedMore, many...))
			}
			return all
		}},
		{"an Ask", func(id [16]byte) []wire.Message { return []wire.Message{&wire.Ask{ID: id, Job: wire.JobVerify}} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newMirrorWorld(t, mib)
			p := w.synced()
			a := w.ask(VerifyOptions{})
			first := *expect[*wire.Ask](p)
			p.send(&wire.Told{ID: first.ID})
			p.send(c.send(first.ID)...)
			if code := p.lastWord(); code != wire.CodeProtocol {
				t.Errorf("ended with %v", code)
			}
			p.hangUp()
			p.dial()
			if again := *expect[*wire.Ask](p); again != first {
				t.Errorf("asked %+v, then %+v", first, again)
			}
			p.send(result(first.ID, 0, many[:2]...))
			<-a.done
			if a.err != nil || len(a.results) != 1 || len(a.results[0].Extents) != 2 {
				t.Errorf("%+v, %v", a.results, a.err)
			}
		})
	}
}

// What a job came to is on the other node what it was here.
func TestEndedResults(t *testing.T) {
	v := VerifyResult{Volume: "v", Mirror: "east", CheckedBytes: 1, SkippedBytes: 2, ResumedAt: 3, Seconds: 4.5,
		Extents: []CheckedExtent{{0, 4096}, {8192, 1}}, Rot: []CheckedExtent{{1 << 40, 2}}}
	m := &wire.Ended{}
	v.put(m)
	if diff := cmp.Diff(v, verifyResultOf("v", m)); diff != "" {
		t.Error(diff)
	}
	r := RepairResult{Volume: "v", Mirror: "east", Nothing: true, Blocks: 1, ComparedBytes: 2, ShippedBytes: 3, Seconds: 0.25, Extents: []CheckedExtent{{5, 6}}}
	m = &wire.Ended{}
	r.put(m)
	if diff := cmp.Diff(r, repairResultOf("v", m)); diff != "" {
		t.Error(diff)
	}
	for kind := KindOther; kind <= KindState; kind++ {
		m = &wire.Ended{}
		putError(m, &Error{Kind: kind, Op: "a", On: "b", Err: errors.New("two\nlines"), Next: "d"})
		e, ok := errors.AsType[*Error](errorTold(m))
		if !ok || e.Kind != kind || e.Error() != "a b: two lines" || e.Next != "d" {
			t.Errorf("kind %d: %v", kind, e)
		}
	}
	m = &wire.Ended{}
	if putError(m, nil); errorTold(m) != nil {
		t.Error("an error out of nothing")
	}
	m.Differ, m.Rot = make([]wire.Extent, wire.MaxListed-1), make([]wire.Extent, 5)
	err := bounded(m, nil)
	wantKind(t, err, KindIntegrity)
	if len(m.Differ) != wire.MaxListed-1 || len(m.Rot) != 1 || !strings.Contains(err.Error(), "4 ranges more") {
		t.Errorf("%d and %d extents, %v", len(m.Differ), len(m.Rot), err)
	}
}
