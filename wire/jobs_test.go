package wire

import (
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// randomJob is randomMessage for what is said about a job.
func randomJob(r *rand.Rand, kind Type, id [16]byte, text func(limit int) string, extents func() []Extent) Message {
	switch kind {
	case TypeAsk:
		m := &Ask{ID: id, Job: Job(1 + r.IntN(3))}
		switch m.Job {
		case JobVerify:
			m.Rate, m.Mirror = r.Int64(), text(MaxText)
		case JobRepair:
			m.Flags, m.From, m.Mirror = AskFlags(r.IntN(4)), AskFrom(r.IntN(3)), text(MaxText)
		}
		return m
	case TypeTold:
		total := r.Int64N(math.MaxInt64)
		return &Told{id, r.Int64N(total + 1), total, text(MaxText)}
	}
	m := &Ended{ID: id, Flags: []EndedFlags{EndedResult, EndedError, EndedResult | EndedError}[r.IntN(3)]}
	if m.Flags&EndedError != 0 {
		m.Failure = Failure{uint8(r.IntN(lastKind + 1)), text(MaxText), text(MaxText), text(MaxText), text(MaxText)}
	}
	if m.Flags&EndedResult != 0 {
		m.Flags |= EndedNothing * EndedFlags(r.IntN(2))
		m.Outcome = Outcome{text(MaxText), r.Int64(), r.Int64(), r.Int64(), r.Int64(), r.Int64(), r.Int64()}
		m.Differ, m.Rot = extents(), extents()
	}
	if len(m.Differ)+len(m.Rot) > 0 {
		m.Flags |= EndedMore * EndedFlags(r.IntN(2))
	}
	return m
}

// brokenJobs lists messages about jobs that break a rule, for TestBroken. many are more extents than any frame may have.
func brokenJobs(many []Extent) map[string]Message {
	verify := func(f func(*Ask)) Message { m := Ask{ID: [16]byte{1}, Job: JobVerify}; f(&m); return &m }
	repair := func(f func(*Ask)) Message { m := *sample(TypeAsk).(*Ask); f(&m); return &m }
	end := func(f func(*Ask)) Message { m := Ask{ID: [16]byte{1}, Job: JobEnd}; f(&m); return &m }
	told := func(f func(*Told)) Message { m := *sample(TypeTold).(*Told); f(&m); return &m }
	ended := func(f func(*Ended)) Message { m := *sample(TypeEnded).(*Ended); f(&m); return &m }
	failed := func(f func(*Ended)) Message { m := Ended{ID: [16]byte{1}, Flags: EndedError}; f(&m); return &m }
	done := func(f func(*Ended)) Message { m := Ended{ID: [16]byte{1}, Flags: EndedResult}; f(&m); return &m }
	long := strings.Repeat("t", MaxText+1)
	return map[string]Message{
		"ask without id":     verify(func(m *Ask) { m.ID = [16]byte{} }),
		"ask for nothing":    verify(func(m *Ask) { m.Job = 0 }),
		"ask for job 4":      verify(func(m *Ask) { m.Job = 4 }),
		"ask flags":          repair(func(m *Ask) { m.Flags = 4 }),
		"ask from 3":         repair(func(m *Ask) { m.From = 3 }),
		"ask rate":           verify(func(m *Ask) { m.Rate = -1 }),
		"ask name":           verify(func(m *Ask) { m.Mirror = "a\nb" }),
		"ask long name":      verify(func(m *Ask) { m.Mirror = long }),
		"verify all":         verify(func(m *Ask) { m.Flags = AskAll }),
		"verify from":        verify(func(m *Ask) { m.From = FromMirror }),
		"repair rate":        repair(func(m *Ask) { m.Rate = 1 }),
		"end dry run":        end(func(m *Ask) { m.Flags = AskDryRun }),
		"end from":           end(func(m *Ask) { m.From = FromPrimary }),
		"end rate":           end(func(m *Ask) { m.Rate = 1 }),
		"end name":           end(func(m *Ask) { m.Mirror = "east" }),
		"told without id":    told(func(m *Told) { m.ID = [16]byte{} }),
		"told before 0":      told(func(m *Told) { m.Done = -1 }),
		"told total":         told(func(m *Told) { m.Done, m.Total = 0, -1 }),
		"told beyond":        told(func(m *Told) { m.Done = m.Total + 1 }),
		"told name":          told(func(m *Told) { m.Mirror = "a\xff" }),
		"ended without id":   ended(func(m *Ended) { m.ID = [16]byte{} }),
		"ended with nothing": ended(func(m *Ended) { m.Flags = 0 }),
		"ended flags":        ended(func(m *Ended) { m.Flags |= 16 }),
		"ended kind":         ended(func(m *Ended) { m.Failure.Kind = lastKind + 1 }),
		"ended compared":     ended(func(m *Ended) { m.Outcome.Compared = -1 }),
		"ended skipped":      ended(func(m *Ended) { m.Outcome.Skipped = -1 }),
		"ended resumed":      ended(func(m *Ended) { m.Outcome.ResumedAt = -1 }),
		"ended blocks":       ended(func(m *Ended) { m.Outcome.Blocks = -1 }),
		"ended shipped":      ended(func(m *Ended) { m.Outcome.Shipped = -1 }),
		"ended early":        ended(func(m *Ended) { m.Outcome.Nanoseconds = -1 }),
		"ended name":         ended(func(m *Ended) { m.Outcome.Mirror = long }),
		"ended op":           ended(func(m *Ended) { m.Failure.Op = "\x00" }),
		"ended on":           ended(func(m *Ended) { m.Failure.On = long }),
		"ended text":         ended(func(m *Ended) { m.Failure.Text = "two\nlines" }),
		"ended next":         ended(func(m *Ended) { m.Failure.Next = long }),
		"ended empty":        ended(func(m *Ended) { m.Differ = []Extent{{4096, 0}} }),
		"ended rot":          ended(func(m *Ended) { m.Rot = []Extent{{math.MaxInt64, 1}} }),
		"ended much":         ended(func(m *Ended) { m.Differ = many[:MaxEntries] }),
		"ended more":         done(func(m *Ended) { m.Flags |= EndedMore }),
		"result untold":      failed(func(m *Ended) { m.Outcome.Blocks = 1 }),
		"extents untold":     failed(func(m *Ended) { m.Differ = many[:1] }),
		"rot untold":         failed(func(m *Ended) { m.Rot = many[:1] }),
		"nothing untold":     failed(func(m *Ended) { m.Flags |= EndedNothing }),
		"error untold":       done(func(m *Ended) { m.Failure.Text = "x" }),
		"kind untold":        done(func(m *Ended) { m.Failure.Kind = 1 }),
	}
}

// More extents are to differ than there are: no message can say that, but a meta can.
func TestEndedCounts(t *testing.T) {
	m := sample(TypeEnded)
	for differ, want := range map[uint16]bool{0: true, 2: true, 3: true, 4: false, math.MaxUint16: false} {
		meta := appendMeta(nil, m)
		le.PutUint16(meta[28:], differ)
		got, err := decodeMeta(header{kind: TypeEnded, meta: uint32(len(meta))}, meta)
		if (err == nil) != want || err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("%d of 3 differ: %v", differ, err)
		}
		if e, ok := got.(*Ended); ok && err == nil && (len(e.Differ) != int(differ) || len(e.Rot) != 3-int(differ)) {
			t.Errorf("%d of 3 differ: %+v", differ, e)
		}
	}
}

// TestEndedFrames: an Ended of any number of extents comes out of its frames as it was; frames of two do not belong
// together, and no more is taken than was agreed.
func TestEndedFrames(t *testing.T) {
	head := *sample(TypeEnded).(*Ended)
	head.Flags, head.Differ, head.Rot = EndedResult|EndedError, nil, nil
	list := func(n int) (extents []Extent) {
		for i := range n {
			extents = append(extents, Extent{int64(2*i) * pageSize, pageSize})
		}
		return extents
	}
	for _, n := range [][2]int{{0, 0}, {1, 0}, {0, 1}, {MaxEntries - 1, 1}, {MaxEntries, 1}, {7, 2 * MaxEntries}, {3*MaxEntries + 7, MaxEntries}, {MaxListed - 9, 9}} {
		whole := head
		whole.Differ, whole.Rot = list(n[0]), list(n[1])
		frames := whole.Frames()
		if want := max(1, (n[0]+n[1]+MaxEntries-1)/MaxEntries); len(frames) != want {
			t.Errorf("%d extents make %d frames, want %d", n, len(frames), want)
		}
		var got *Ended
		for _, m := range frames {
			if _, err := appendFrame(nil, m); err != nil {
				t.Fatalf("%d extents: %v", n, err)
			}
			if f := m.(*Ended); got == nil {
				got = f
			} else if err := got.Join(f); err != nil {
				t.Fatalf("%d extents: %v", n, err)
			}
		}
		if !reflect.DeepEqual(append([]Extent{}, got.Differ...), append([]Extent{}, whole.Differ...)) || len(got.Rot) != n[1] || got.Flags != whole.Flags {
			t.Errorf("%d extents come out as %d and %d, flags %d", n, len(got.Differ), len(got.Rot), got.Flags)
		}
	}
	for name, edit := range map[string]func(first, next *Ended){
		"no more":  func(first, next *Ended) { first.Flags &^= EndedMore },
		"id":       func(first, next *Ended) { next.ID[0]++ },
		"flags":    func(first, next *Ended) { next.Flags |= EndedNothing },
		"outcome":  func(first, next *Ended) { next.Outcome.Blocks++ },
		"failure":  func(first, next *Ended) { next.Failure.Text += "." },
		"too many": func(first, next *Ended) { first.Differ = list(MaxListed) },
	} {
		m, next := head, head
		m.Flags |= EndedMore
		m.Differ, next.Rot = list(1), list(1)
		edit(&m, &next)
		before := m
		if err := m.Join(&next); !errors.Is(err, ErrProtocol) || !reflect.DeepEqual(m, before) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
