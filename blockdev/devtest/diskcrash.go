package devtest

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"strconv"
)

// What comes of a Disk: after a kill, after a power cut, as a snapshot. The disk itself is not changed, so
// that many crashes of one moment can be had. None takes Hook or Garbage along.

// Killed is the disk as the next process finds it: what was written is there, and what of it was not
// flushed still is not.
func (d *Disk) Killed() *Disk {
	return d.heir(func(_ uint32, s slot) slot {
		s.log = slices.Clone(s.log)
		return s
	})
}

// Clone is a snapshot: what is read now, durable. Its facts are those of this moment.
func (d *Disk) Clone() *Disk {
	return d.heir(func(_ uint32, s slot) slot { return slot{now: s.now, durable: s.now} })
}

// PowerCut is the disk as a power cut at this moment might leave it: every sector that was written since the
// last Flush holds, independently, its durable content or any version since. That all is lost, or all kept,
// of a page or of everything, is likelier than chance would have it.
func (d *Disk) PowerCut(rng *rand.Rand) *Disk {
	const oldest, newest = 0, 1
	way := rng.IntN(8)
	return d.cut(func(_ uint32, s slot) image {
		how := way
		if way > newest {
			how = rng.IntN(4)
		}
		switch how {
		case oldest:
			return s.durable
		case newest:
			return s.now
		}
		return d.mix(s, func(_, versions int) int { return rng.IntN(versions) })
	})
}

// PowerCutKeep is the PowerCut that pick decides: for every unflushed sector, in order, which of its versions
// stays. 0 is the durable one.
func (d *Disk) PowerCutKeep(pick func(sector int64, versions int) int) *Disk {
	slices.Sort(d.dirty)
	return d.cut(func(n uint32, s slot) image {
		return d.mix(s, func(i, versions int) int { return pick(int64(n)*sectorsPerPage+int64(i), versions) })
	})
}

// PowerCutWrites is the PowerCut that keeps some requests whole and loses the others.
func (d *Disk) PowerCutWrites(keep func(Write) bool) *Disk {
	kept := map[int]bool{}
	for _, w := range d.Unflushed() {
		kept[w.Seq] = keep(w)
	}
	return d.cut(func(_ uint32, s slot) image {
		left := s.durable
		for _, v := range s.log {
			if kept[v.seq] {
				left = d.blend(left, v.data, v.sectors)
			}
		}
		return left
	})
}

func (d *Disk) cut(keep func(n uint32, s slot) image) *Disk {
	c := d.heir(func(n uint32, s slot) slot {
		left := keep(n, s)
		return slot{now: left, durable: left}
	})
	c.boots++
	c.boot, c.written = "boot-"+strconv.Itoa(c.boots), 0
	return c
}

func (d *Disk) heir(keep func(n uint32, s slot) slot) *Disk {
	return &Disk{platter: d.copyOf(keep), boot: d.boot, boots: d.boots, diskSeq: d.diskSeq}
}

// mix is the page with a version of each sector.
func (d *platter) mix(s slot, pick func(sector, versions int) int) image {
	left := s.durable
	for i := range sectorsPerPage {
		bit := sectorMask(1) << i
		versions := 1
		for _, v := range s.log {
			if v.sectors&bit != 0 {
				versions++
			}
		}
		if versions == 1 {
			continue
		}
		nth := pick(i, versions)
		for _, v := range s.log {
			if v.sectors&bit == 0 {
				continue
			}
			if nth--; nth == 0 {
				left = d.withSector(left, i, v.data, s.durable.data)
			}
		}
	}
	return left
}

// withSector takes a sector from data. The first one copies the page, which was shared until then.
func (d *platter) withSector(m image, sector int, data, shared *pageData) image {
	if m.data == shared {
		return d.blend(m, data, 1<<sector)
	}
	if data == nil {
		data = &zeroPage
	}
	copy(m.data.Data[sector*SectorSize:(sector+1)*SectorSize], data.Data[sector*SectorSize:])
	return m
}

// Write is what a request has written and no flush has made durable: whole sectors.
type Write struct {
	Seq            int // in the order in which they were carried out
	Offset, Length int64
}

// Unflushed lists the requests whose data a power cut may take, in order. Of one that a flush reached in
// part the range may cover what is durable.
func (d *Disk) Unflushed() []Write {
	at := map[int]int{}
	var out []Write
	for _, n := range d.dirty {
		for _, v := range d.pages[n].log {
			from, to := v.sectors.span()
			from, to = from+int64(n)*pageSize, to+int64(n)*pageSize
			i, ok := at[v.seq]
			if !ok {
				at[v.seq] = len(out)
				out = append(out, Write{v.seq, from, to - from})
				continue
			}
			from, to = min(from, out[i].Offset), max(to, out[i].Offset+out[i].Length)
			out[i].Offset, out[i].Length = from, to-from
		}
	}
	slices.SortFunc(out, func(a, b Write) int { return cmp.Compare(a.Seq, b.Seq) })
	return out
}

// Doubtful is the number of unflushed sectors: those of which PowerCutKeep asks.
func (d *Disk) Doubtful() (sectors int) {
	for _, n := range d.dirty {
		var all sectorMask
		for _, v := range d.pages[n].log {
			all |= v.sectors
		}
		for ; all != 0; all &= all - 1 {
			sectors++
		}
	}
	return sectors
}

// span is the range in bytes from the first sector to the last.
func (m sectorMask) span() (from, to int64) {
	for i := range int64(sectorsPerPage) {
		if m&(1<<i) == 0 {
			continue
		}
		if to == 0 {
			from = i * SectorSize
		}
		to = (i + 1) * SectorSize
	}
	return from, to
}

// InFlight lists the requests that are in the Hook, in the order in which they came.
func (d *Disk) InFlight() []Call {
	calls := make([]Call, len(d.flying))
	for i, f := range d.flying {
		calls[i] = f.Call
	}
	return calls
}

// Land has some of the requests in flight of a killed disk reach it all the same, picked by rng, whole or in
// part. The process had asked for them and never heard of them again.
func (d *Disk) Land(rng *rand.Rand) {
	d.land(func(Call) func() bool {
		switch rng.IntN(4) {
		case 0:
			return func() bool { return true }
		case 1:
			return func() bool { return rng.IntN(2) == 0 }
		}
		return nil
	})
}

// LandOnly is the Land of the requests that keep picks, whole.
func (d *Disk) LandOnly(keep func(Call) bool) {
	d.land(func(c Call) func() bool {
		if !keep(c) {
			return nil
		}
		return func() bool { return true }
	})
}

func (d *Disk) land(pieces func(Call) func() bool) {
	if !d.dead {
		panic("devtest: what is in flight on a living disk lands by itself")
	}
	flying := d.flying
	d.flying = nil
	for _, f := range flying {
		if f.Op == OpRead || f.Op == OpMap || d.check(f.Op, f.Offset, f.Length) != nil {
			continue
		}
		pick := pieces(f.Call)
		switch {
		case pick == nil:
		case f.Op != OpFlush:
			r := request{Call: f.Call, dev: &d.platter, p: f.p}
			r.pieces(pick)
		case d.flushErr == nil && pick():
			d.flushUntil(f.seq)
		}
	}
}
