package replica

import (
	"reflect"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

func unreadable(wanted bool, firstPage int64) *Unreadable {
	return &Unreadable{Cause: journal.ReadOnly{Class: journal.ClassDevice, Since: 1, Reason: "cannot be read"},
		Extents: []blockdev.Extent{{Offset: firstPage * page, Length: page}}, Wanted: wanted}
}

// What cannot be read makes the mirror read-only, durably before the session ends. A repair that brings it goes on when
// it meets it again, or something else of the kind; what it does not bring ends its session. The device carries the
// kernel's flag while nothing is to be written.
func TestUnreadable(t *testing.T) {
	c, p := ready(t)
	offer := &Offer{&wire.Offer{Seq: 1, Length: 4 * page, Unit: page, Hashes: make([]wire.Hash, 4)}}
	run(t, c,
		step{offer, "FlushDevice Compare"},
		step{unreadable(true, 1), "Journal End21 FlagDevice"},
		step{&Compared{}, ""},
		step{&Lost{}, ""},
		step{attach(), "Attached Quarantine"},
		step{&Repair{&wire.Repair{}}, "FlagDevice"},
		step{offer, "Compare"},
		step{unreadable(true, 1), ""},
		step{unreadable(true, 2), "Journal"},
		step{&Compared{}, ""},
		step{p.rebase(2, 0, 3), "BeginStaging"},
		step{p.data(3, page, 2*page), "Append Ack"},
		step{unreadable(false, 9), "DropStaging Journal End21 FlagDevice"},
		step{&Lost{}, ""},
	)
	want := []blockdev.Extent{{Offset: page, Length: 2 * page}, {Offset: 9 * page, Length: page}}
	if got := c.Facts().Mirror; !reflect.DeepEqual(got.Quarantine, want) || got.ReadOnly.Class != journal.ClassDevice {
		t.Errorf("quarantine %v, want %v, of %+v", got.Quarantine, want, got.ReadOnly)
	}
	// The next process has the flag set again.
	c = New(c.Facts(), nil)
	if got := words(c.Begin()); got != "FlagDevice" {
		t.Errorf("it begins with %q", got)
	}
	p = &primary{}
	run(t, c,
		step{&Measured{Limit: 200 << 10}, ""},
		step{attach(), "Attached Quarantine"},
		step{&Repair{&wire.Repair{}}, "FlagDevice"},
		step{p.rebase(2, 0, 3), "BeginStaging"},
		step{p.data(3, page, 2*page), "Append Ack"},
		step{p.data(3, 9*page, page), "Append Ack"},
		step{p.commit(2, 3), "Reserve"},
		step{&Reserved{true}, "SealStaging Journal Committed Apply"},
		step{&Lost{}, ""},
		step{&Applied{Epoch: 3}, "Journal RemoveStaging"},
	)
	if c.ReadOnly().Class != 0 || c.QuarantinePages() != 0 {
		t.Errorf("after the repair %+v", c.ReadOnly())
	}
}

// While runs are under way in place the flag would fail them.
func TestFlagWaitsForWrites(t *testing.T) {
	c, _ := ready(t)
	run(t, c,
		step{&Bulk{&wire.Bulk{Base: 2, Number: 3}}, "Journal DropIndex"},
		step{&Direct{}, "Write"},
		step{&Direct{}, "Write"},
		step{&Mismatched{Cause: unreadable(false, 1).Cause, Extents: unreadable(false, 1).Extents}, "Journal End21"},
		step{&Written{}, ""},
		step{&Written{}, "FlagDevice"},
		step{&Lost{}, ""},
	)
}
