package wire

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
)

// brokenReadOnly lists messages about mismatches that break a rule, for TestBroken. many are more extents
// than any frame may have.
func brokenReadOnly(many []Extent) map[string]Message {
	offer := func(f func(*Offer)) Message { m := *sample(TypeOffer).(*Offer); f(&m); return &m }
	quarantine := func(f func(*Quarantine)) Message { m := *sample(TypeQuarantine).(*Quarantine); f(&m); return &m }
	suspects := func(entries ...SuspectEntry) Message { return &Suspect{Class: 1, Entries: entries} }
	long := make([]SuspectEntry, MaxSuspects+1)
	for i := range long {
		long[i] = SuspectEntry{Offset: int64(i), Length: 1}
	}
	return map[string]Message{
		"offer flags":        offer(func(m *Offer) { m.Flags = 4 }),
		"offer of trees":     offer(func(m *Offer) { m.Flags = OfferTree }),
		"offer large verify": &Offer{Length: 4096, Unit: 2 * MaxBlock, Flags: OfferVerify, Hashes: make([]Hash, 1)},
		"offer large tree":   &Offer{Length: 4096, Unit: 2 * MaxTree, Flags: OfferVerify | OfferTree, Hashes: make([]Hash, 1)},
		"offer odd tree":     &Offer{Length: 4096, Unit: 3 * MaxBlock, Flags: OfferVerify | OfferTree, Hashes: make([]Hash, 1)},

		"suspect class":      &Suspect{Entries: long[:1]},
		"suspect class 7":    &Suspect{Class: 7, Entries: long[:1]},
		"suspect nothing":    suspects(),
		"suspects too many":  suspects(long...),
		"suspect empty":      suspects(SuspectEntry{}),
		"suspect before 0":   suspects(SuspectEntry{Offset: -1, Length: 1}),
		"suspect end":        suspects(SuspectEntry{Offset: math.MaxInt64, Length: 1}),
		"suspect too long":   suspects(SuspectEntry{Length: MaxZeroExtent + 1}),
		"suspect order":      suspects(SuspectEntry{Offset: 4096, Length: 1}, SuspectEntry{Length: 1}),
		"suspect overlap":    suspects(SuspectEntry{Length: 4097}, SuspectEntry{Offset: 4096, Length: 1}),
		"suspect twice":      suspects(long[0], long[0]),
		"quarantine class":   quarantine(func(m *Quarantine) { m.Class = 0 }),
		"quarantine class 7": quarantine(func(m *Quarantine) { m.Class = 7 }),
		"quarantine reason":  quarantine(func(m *Quarantine) { m.Reason = "two\nlines" }),
		"quarantine story":   quarantine(func(m *Quarantine) { m.Reason = strings.Repeat("r", MaxText+1) }),
		"quarantine nothing": quarantine(func(m *Quarantine) { m.Extents = nil }),
		"quarantine much":    quarantine(func(m *Quarantine) { m.Extents = many[:MaxEntries+1] }),
		"quarantine empty":   quarantine(func(m *Quarantine) { m.Extents = []Extent{{4096, 0}} }),
		"quarantine end":     quarantine(func(m *Quarantine) { m.Extents = []Extent{{math.MaxInt64, 1}} }),
	}
}

// TestQuarantineFrames: a Quarantine of any number of extents comes out of its frames as it was, and frames
// of two causes do not.
func TestQuarantineFrames(t *testing.T) {
	head := Quarantine{Class: 3, Epoch: 8, Since: -1, Reason: "of block 7"}
	for _, n := range []int{1, MaxEntries - 1, MaxEntries, MaxEntries + 1, 3 * MaxEntries, 3*MaxEntries + 7} {
		whole := head
		for i := range n {
			whole.Extents = append(whole.Extents, Extent{int64(2*i) * pageSize, pageSize})
		}
		frames := whole.Frames()
		if want := (n + MaxEntries - 1) / MaxEntries; len(frames) != want {
			t.Errorf("%d extents make %d frames, want %d", n, len(frames), want)
		}
		var got *Quarantine
		for _, m := range frames {
			if _, err := appendFrame(nil, m); err != nil {
				t.Fatalf("%d extents: %v", n, err)
			}
			if f := m.(*Quarantine); got == nil {
				got = f
			} else if err := got.Join(f); err != nil {
				t.Fatalf("%d extents: %v", n, err)
			}
		}
		if !reflect.DeepEqual(got, &whole) {
			t.Errorf("%d extents come out as %d, more %v", n, len(got.Extents), got.More)
		}
	}
	for name, edit := range map[string]func(first, next *Quarantine){
		"no more": func(first, next *Quarantine) { first.More = false },
		"class":   func(first, next *Quarantine) { next.Class++ },
		"epoch":   func(first, next *Quarantine) { next.Epoch++ },
		"since":   func(first, next *Quarantine) { next.Since++ },
		"reason":  func(first, next *Quarantine) { next.Reason += "." },
	} {
		m, next := head, head
		m.More, m.Extents, next.Extents = true, []Extent{{0, 4096}}, []Extent{{8192, 4096}}
		edit(&m, &next)
		before := m
		if err := m.Join(&next); !errors.Is(err, ErrProtocol) || !reflect.DeepEqual(m, before) {
			t.Errorf("%s: %v, and %+v is left", name, err, m)
		}
	}
}
