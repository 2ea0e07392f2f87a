package devtest_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
	"github.com/blkmirror/blkmirror/blockdev/devtest/pagepool"
)

// diskModel says of each sector what it may hold after a power cut.
type diskModel struct {
	now     []byte
	sectors []sectorModel
	seq     int
	written uint64
	failed  bool
}

type sectorModel struct {
	durable  []byte
	versions []sectorVersion
}

type sectorVersion struct {
	data  []byte
	seq   int
	doubt bool
}

func newDiskModel(size int) *diskModel {
	m := &diskModel{now: make([]byte, size), sectors: make([]sectorModel, (size+sector-1)/sector)}
	for i := range m.sectors {
		m.sectors[i].durable = bytes.Clone(m.sector(m.now, i))
	}
	return m
}

func (m *diskModel) sector(of []byte, i int) []byte {
	return of[i*sector : min(len(of), (i+1)*sector)]
}

func (m *diskModel) write(p []byte, off int) {
	copy(m.now[off:], p)
	m.seq++
	for i := off / sector; i*sector < off+len(p); i++ {
		s := &m.sectors[i]
		s.versions = append(s.versions, sectorVersion{bytes.Clone(m.sector(m.now, i)), m.seq, false})
		m.written++
	}
}

// flush settles each sector by its newest version up to seq, unless that is in doubt.
func (m *diskModel) flush(seq int, fail bool) {
	m.failed = m.failed || fail
	for i := range m.sectors {
		s := &m.sectors[i]
		n := 0
		for n < len(s.versions) && s.versions[n].seq <= seq {
			s.versions[n].doubt = s.versions[n].doubt || fail
			n++
		}
		if n > 0 && !s.versions[n-1].doubt {
			s.durable = s.versions[n-1].data
			s.versions = s.versions[n:]
		}
	}
}

// settle makes this content durable.
func (m *diskModel) settle(data []byte) {
	copy(m.now, data)
	m.failed = false
	for i := range m.sectors {
		m.sectors[i] = sectorModel{durable: bytes.Clone(m.sector(m.now, i))}
	}
}

// content of a living disk does not keep it from using pages again, as Page does.
func content(d *devtest.Disk) []byte {
	out := make([]byte, d.Info().Size)
	if _, err := d.ReadAt(out, 0); err == nil {
		return out
	}
	out = nil
	for n := range d.Pages() {
		out = append(out, d.Page(n)...)
	}
	return out[:d.Info().Size]
}

// check compares all that can be asked of the disk.
func (m *diskModel) check(d *devtest.Disk, rng *rand.Rand) error {
	if !bytes.Equal(content(d), m.now) {
		return errors.New("what is read is not what was written")
	}
	if f, err := d.Facts(); err != nil || f.SectorsWritten != m.written {
		return fmt.Errorf("%d sectors counted (%v), want %d", f.SectorsWritten, err, m.written)
	}
	durable := m.durable()
	doubtful := 0
	for _, s := range m.sectors {
		if len(s.versions) > 0 {
			doubtful++
		}
	}
	if n := d.Doubtful(); n != doubtful {
		return fmt.Errorf("%d sectors in doubt, want %d", n, doubtful)
	}
	for n := range d.Pages() {
		at := int(n) * page
		end := min(len(m.now), at+page)
		settled := true
		for i := at / sector; i*sector < end; i++ {
			settled = settled && len(m.sectors[i].versions) == 0
		}
		if d.Settled(n) != settled {
			return fmt.Errorf("page %d: settled is %v", n, !settled)
		}
		for what, c := range map[string]struct {
			id   uint64
			data []byte
		}{"now": {d.PageID(n), m.now[at:end]}, "durable": {d.DurableID(n), durable[at:end]}} {
			whole := append(bytes.Clone(c.data), make([]byte, page-len(c.data))...)
			if c.id != devtest.ContentID(whole) || (c.id == 0) != blockdev.IsZero(whole) {
				return fmt.Errorf("page %d: the id of %s is %x", n, what, c.id)
			}
		}
	}
	if rng.IntN(6) > 0 { // what has heirs does not use its pages again
		return nil
	}
	if !bytes.Equal(content(d.Clone()), m.now) {
		return errors.New("a snapshot is something else")
	}
	return m.checkCuts(d, durable, rng)
}

func (m *diskModel) durable() (out []byte) {
	for _, s := range m.sectors {
		out = append(out, s.durable...)
	}
	return out
}

func (m *diskModel) checkCuts(d *devtest.Disk, durable []byte, rng *rand.Rand) error {
	if !bytes.Equal(content(d.PowerCutKeep(func(int64, int) int { return 0 })), durable) {
		return errors.New("what is durable is not")
	}
	if !bytes.Equal(content(d.PowerCutWrites(func(devtest.Write) bool { return false })), durable) ||
		!bytes.Equal(content(d.PowerCutWrites(func(devtest.Write) bool { return true })), m.now) {
		return errors.New("a cut that keeps no writes, or all, is wrong")
	}
	last, picked := int64(-1), bytes.Clone(durable)
	var failure error
	c := d.PowerCutKeep(func(s int64, versions int) int {
		if s <= last || versions != len(m.sectors[s].versions)+1 {
			failure = fmt.Errorf("sector %d after %d: asked among %d, want %d", s, last, versions, len(m.sectors[s].versions)+1)
			return 0
		}
		last = s
		k := rng.IntN(versions)
		if k > 0 {
			copy(picked[s*sector:], m.sectors[s].versions[k-1].data)
		}
		return k
	})
	if failure == nil && !bytes.Equal(content(c), picked) {
		failure = errors.New("a cut kept other versions than were picked")
	}
	after := content(d.PowerCut(rng))
	for i, s := range m.sectors {
		got := m.sector(after, i)
		legal := bytes.Equal(got, s.durable)
		for _, v := range s.versions {
			legal = legal || bytes.Equal(got, v.data)
		}
		if !legal {
			return fmt.Errorf("sector %d after a power cut is none of its versions", i)
		}
	}
	return failure
}

// act does one random thing to both, and returns the disk with which to go on.
func (m *diskModel) act(d *devtest.Disk, rng *rand.Rand) (*devtest.Disk, error) {
	size := len(m.now)
	off := rng.IntN(size)
	n := min(1+rng.IntN(1<<rng.IntN(15)), size-off)
	if rng.IntN(2) == 0 {
		off, n = off/page*page, min(page, size-off/page*page)
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	var err error
	switch rng.IntN(20) {
	default:
		_, err = d.WriteAt(p, int64(off))
		m.write(p, off)
	case 0, 1:
		err = d.Zero(int64(off), int64(n), true)
		m.write(make([]byte, n), off)
	case 2, 3, 4:
		err = m.flushAmidWrites(d, rng, p, off)
	case 5:
		whole := append(p, make([]byte, page-min(page, n))...)[:page]
		at := off / page * page
		d.Poke(uint64(off/page), whole)
		m.seq++
		for i := at / sector; i*sector < min(size, at+page); i++ {
			copy(m.now[at:], whole)
			m.sectors[i] = sectorModel{durable: bytes.Clone(m.sector(m.now, i))}
			m.written++
		}
	case 6:
		bit := rng.IntN(min(page, size-off/page*page) * 8)
		d.Rot(uint64(off/page), bit)
		i, at := (off/page*page+bit/8)/sector, bit/8%sector
		m.now[i*sector+at] ^= 1 << (bit % 8)
		s := &m.sectors[i]
		for _, data := range append([][]byte{s.durable}, dataOf(s.versions)...) {
			data[at] ^= 1 << (bit % 8)
		}
	case 7:
		d.Kill()
		d = d.Killed()
		m.failed = false
	case 8:
		if rng.IntN(4) == 0 {
			d = d.PowerCut(rng)
			m.settle(content(d))
			m.written = 0
		}
	}
	return d, err
}

func dataOf(versions []sectorVersion) (out [][]byte) {
	for _, v := range versions {
		out = append(out, v.data)
	}
	return out
}

// flushAmidWrites flushes, perhaps in vain, while a write comes in.
func (m *diskModel) flushAmidWrites(d *devtest.Disk, rng *rand.Rand, p []byte, off int) error {
	var e devtest.Effect
	fail := rng.IntN(4) == 0
	if fail {
		e = devtest.Fail(syscall.EIO)
	} else if rng.IntN(2) == 0 {
		e = devtest.Hook(func(devtest.Call) {})
	}
	seq, beside := m.seq, rng.IntN(2) == 0
	d.Hook = func(c devtest.Call) devtest.Effect {
		if c.Op != devtest.OpFlush {
			return devtest.Effect{}
		}
		if beside {
			d.WriteAt(p, int64(off))
			m.write(p, off)
		}
		return e
	}
	err := d.Flush()
	d.Hook = nil
	if m.failed || fail {
		if !errors.Is(err, syscall.EIO) {
			return fmt.Errorf("a flush that must fail: %v", err)
		}
		err = nil
	}
	if !m.failed {
		m.flush(seq, fail)
	}
	return err
}

func TestDiskAgainstModel(t *testing.T) {
	pool := new(pagepool.Pool)
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 7))
		size := 5*page - int(seed%3)*700
		d, m := devtest.NewDisk(int64(size)), newDiskModel(size)
		if seed%2 == 0 {
			pool.Reset()
			d = devtest.NewDiskIn(pool, int64(size))
		}
		type state struct{ now, durable []byte }
		kept := map[*devtest.Disk]state{} // what others have must stay as it is
		for step := range 150 {
			before, was := d, state{bytes.Clone(m.now), m.durable()}
			var err error
			if d, err = m.act(d, rng); err == nil {
				err = m.check(d, rng)
			}
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			if before != d {
				kept[before] = was
			}
			if rng.IntN(15) == 0 {
				kept[d.Clone()] = state{bytes.Clone(m.now), bytes.Clone(m.now)}
				kept[d.Killed()] = state{bytes.Clone(m.now), m.durable()}
			}
		}
		for other, want := range kept {
			lost := other.PowerCutKeep(func(int64, int) int { return 0 })
			if !bytes.Equal(content(other), want.now) || !bytes.Equal(content(lost), want.durable) {
				t.Fatalf("seed %d: another disk was changed", seed)
			}
			all := other.PowerCutWrites(func(devtest.Write) bool { return true })
			if !bytes.Equal(content(all), want.now) {
				t.Fatalf("seed %d: the cache of another disk was changed", seed)
			}
		}
	}
}
