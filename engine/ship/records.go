package ship

import (
	"slices"
	"sort"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

const pageSize = blockdev.PageSize

// Record is one Data or Zero that was sent.
type Record struct {
	Seq    uint64
	Offset int64
	Length int64
	Zero   bool
	Hash   wire.Hash // of the raw bytes; of a Zero its ZeroHash
	Tries  int       // how often these pages were sent again after a mismatch
	Bytes  int64     // that it took on the wire
}

// entry is a record that is not durable at the mirror.
type entry struct {
	Record
	answered bool
	link     wire.Hash // the chain behind it, once it was acknowledged
	number   uint64    // records in the chain by then
}

// records is the list of what was sent since the last point that the mirror said is durable, in the order
// of Seq. Its bytes are the shell's, until each is acknowledged. It is bounded: by the window as far as it
// is unanswered, by what a mirror stages between two synced points (64 MiB) as far as it is not.
type records struct {
	seq    uint64 // the last one used; never goes back
	list   []entry
	open   int // of list, unanswered
	chain  wire.Chain
	synced wire.Synced
	epoch  uint64 // number of the staging; 0: none was begun
	bulk   bool
}

func (r *records) unanswered() int { return r.open }

// Unanswered is how many records the mirror has not answered.
func (c *Core) Unanswered() int { return c.records.unanswered() }

// NextSeq is the number for the next record.
func (c *Core) NextSeq() uint64 { return c.records.seq + 1 }

// Sent notes a record that is about to go out, with NextSeq as its Seq.
func (c *Core) Sent(rec Record, bulk bool) {
	r := &c.records
	r.seq, r.bulk = rec.Seq, bulk
	r.list = append(r.list, entry{Record: rec})
	r.open++
}

// rebase takes a Rebase into order and chain. There is nothing unanswered before it.
func (r *records) rebase(m *wire.Rebase) {
	r.seq = m.Seq
	r.chain.AddRebase(m)
	r.list = append(r.list, entry{Record: Record{Seq: m.Seq}, answered: true, link: r.chain.Sum(), number: r.chain.Records()})
}

// last is the Seq of the last record that is staged, where nothing is unanswered.
func (r *records) last() uint64 {
	if n := len(r.list); n > 0 {
		return r.list[n-1].Seq
	}
	return r.synced.Seq
}

// back goes back to the end of an epoch whose Commit was refused: everything behind it is refused as well,
// once it is answered. The list of the epoch itself is gone, so all of it counts as durable: a mirror that
// lost some of it has to begin anew.
func (r *records) back(e *epoch) {
	r.list = slices.DeleteFunc(r.list, func(x entry) bool { return x.answered })
	r.chain, r.epoch = wire.ChainAt(e.chain, e.records), e.number
	r.synced = wire.Synced{Epoch: e.number, Seq: e.seq, Records: e.records, Chain: e.chain}
}

// restart forgets everything: a new staging begins. There is nothing unanswered.
func (r *records) restart() {
	*r = records{seq: r.seq}
}

// orphan returns the extents that are unanswered. They stay in the list: their answers are still due.
func (r *records) orphan() []wire.Extent {
	var out []wire.Extent
	for i := range r.list {
		if !r.list[i].answered {
			out = append(out, wire.Extent{Offset: r.list[i].Offset, Length: r.list[i].Length})
		}
	}
	return out
}

// find returns the entry of a Seq. In an epoch answers come in order, so it must be the first unanswered.
func (r *records) find(seq uint64) *entry {
	i := sort.Search(len(r.list), func(i int) bool { return r.list[i].Seq >= seq })
	if i == len(r.list) || r.list[i].Seq != seq || r.list[i].answered {
		return nil
	}
	if !r.bulk && i > 0 && !r.list[i-1].answered {
		return nil
	}
	return &r.list[i]
}

// Verdict is what an answer comes to.
type Verdict uint8

const (
	Taken        Verdict = iota // confirmed
	Reship                      // it has to be sent again, from the kept copy
	Final                       // it was sent again often enough: a mismatch
	NoRoomAt                    // refused for want of room
	NoRoomForAll                // the same, of a Commit
	Unknown                     // no such record, or out of order: the peer breaks the protocol
)

// Acked takes one entry of an Ack in.
func (c *Core) Acked(a wire.AckEntry) (Record, Verdict) {
	r := &c.records
	e := r.find(a.Seq)
	if e == nil || a.Offset != e.Offset {
		return Record{}, Unknown
	}
	e.answered = true
	r.open--
	if !r.bulk { // the mirror holds it, whatever it answered
		if e.Zero {
			r.chain.AddZero(&wire.Zero{Seq: e.Seq, Offset: e.Offset, Length: e.Length})
		} else {
			r.chain.Add(&wire.Data{Seq: e.Seq, Offset: e.Offset, RawLength: uint32(e.Length), Hash: e.Hash})
		}
		e.link, e.number = r.chain.Sum(), r.chain.Records()
	}
	rec := e.Record
	verdict := Taken
	if a.Hash != rec.Hash {
		verdict = again(rec)
	}
	r.trim()
	return rec, verdict
}

// Naked takes one entry of a Nak in: the record is in no staging and no chain. One of Seq 0 is about the
// Commit, and what stands on it is refused as well.
func (c *Core) Naked(n wire.NakEntry) (Record, Verdict) {
	if n.Seq == 0 && n.Cause == wire.NakRoom && c.sent != nil && !c.sent.refused {
		c.sent.refused = true
		return Record{}, NoRoomForAll
	}
	r := &c.records
	e := r.find(n.Seq)
	if e == nil || n.Offset != e.Offset {
		return Record{}, Unknown
	}
	rec := e.Record
	e.answered = true
	r.open--
	if i := sort.Search(len(r.list), func(i int) bool { return r.list[i].Seq >= n.Seq }); !r.bulk {
		r.list = append(r.list[:i], r.list[i+1:]...)
	}
	r.trim()
	if n.Cause == wire.NakRoom {
		return rec, NoRoomAt
	}
	return rec, again(rec)
}

func again(rec Record) Verdict {
	if rec.Tries >= MaxTries {
		return Final
	}
	return Reship
}

// Synced takes a durable point in. The mirror answers records before it says that they are durable, so ok is
// false where it claims what is not answered, or another chain.
func (c *Core) Synced(m *wire.Synced) (ok bool) {
	r := &c.records
	if m.Epoch != r.epoch || m.Seq <= r.synced.Seq {
		return true // of a staging that is committed or given up
	}
	for i := range r.list {
		e := &r.list[i]
		if e.Seq > m.Seq {
			break
		}
		if !e.answered || e.Seq == m.Seq && (e.link != m.Chain || e.number != m.Records) {
			return false
		}
	}
	if m.Seq > r.seq {
		return false
	}
	r.synced = *m
	r.trim()
	return true
}

// trim drops what is settled: in bulk what is answered, in an epoch what is durable as well.
func (r *records) trim() {
	n := 0
	for n < len(r.list) && r.list[n].answered && (r.bulk || r.list[n].Seq <= r.synced.Seq) {
		n++
	}
	if n == 0 {
		return
	}
	r.list = r.list[n:]
	if len(r.list) == 0 {
		r.list = nil
	}
}

// resume compares what a mirror has staged with what was sent, after a lost connection. Where they agree,
// the chain goes on behind it and lost are the records that have to be sent again: kept says of each
// whether it was answered, in which case its bytes are not kept any more. Where they do not: ok is false.
func (r *records) resume(seq, count uint64, link wire.Hash) (lost []Record, answered []bool, ok bool) {
	if seq < r.synced.Seq || seq > r.seq {
		return nil, nil, false
	}
	chain := wire.ChainAt(r.synced.Chain, r.synced.Records)
	n := 0
	for ; n < len(r.list) && r.list[n].Seq <= seq; n++ {
		e := &r.list[n]
		if e.answered {
			chain = wire.ChainAt(e.link, e.number)
			continue
		}
		// Its answer was lost. What the mirror did not refuse it has.
		if e.Zero {
			chain.AddZero(&wire.Zero{Seq: e.Seq, Offset: e.Offset, Length: e.Length})
		} else {
			chain.Add(&wire.Data{Seq: e.Seq, Offset: e.Offset, RawLength: uint32(e.Length), Hash: e.Hash})
		}
	}
	if chain.Records() != count || chain.Sum() != link {
		return nil, nil, false
	}
	for _, e := range r.list[n:] {
		lost = append(lost, e.Record)
		answered = append(answered, e.answered)
	}
	*r = records{seq: r.seq, chain: chain, epoch: r.epoch, synced: wire.Synced{Epoch: r.epoch, Seq: seq, Records: count, Chain: link}}
	return lost, answered, true
}
