package engine

import (
	"context"
	"fmt"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// beginCompare compares the device with its own index, beside the owner, where a stranger may have written to
// it. Blocks that differ, or of which the index knows nothing, are doubted. An epoch that is applied
// meanwhile changes a block and its entry one after the other: at worst such a block is doubted in vain.
func (m *mirror) beginCompare() {
	s := m.store
	if s.suspicion == "" || m.broken != nil {
		return
	}
	m.log(fmt.Sprintf("%s is compared with its index: %s", m.config.Path, s.suspicion))
	m.update(func(v *mirrorView) { v.comparing, v.compared, v.why = true, 0, s.suspicion })
	m.step(&replica.Comparing{Running: true}, nil)
	s.busy++
	m.spawn(func() {
		err := s.compareAll(s.ctx)
		m.post(func() {
			s.busy--
			m.update(func(v *mirrorView) { v.comparing = false })
			switch {
			case s.ctx.Err() != nil: // it is begun again with the next start
			case err != nil:
				m.fail("compare device with its index", err)
			default:
				s.suspicion = ""
				m.step(&replica.Comparing{BootID: s.bootID}, nil)
				m.publish()
			}
		})
	})
}

// compareAll walks the volume in pages of the index.
func (s *mirrorStore) compareAll(ctx context.Context) error {
	span := s.blockSize * recheckBlocks
	entries := make([]journal.Entry, recheckBlocks)
	buf, err := blockdev.NewPool(s.m.chunk).Get(ctx, int(s.m.chunk))
	if err != nil {
		return err
	}
	var doubts []blockdev.Extent
	tell := func() {
		found := doubts
		doubts = nil
		s.m.post(func() { s.m.step(&replica.Doubted{Extents: found}, nil); s.m.publish() })
	}
	told := s.m.now()
	for pos := int64(0); pos < s.size && ctx.Err() == nil; pos += span {
		end := min(pos+span, s.size)
		page := entries[:(end-pos+s.blockSize-1)/s.blockSize]
		if err := s.index.lookUp(pos, page); err != nil {
			return err
		}
		if doubts, err = s.comparePage(doubts, pos, page, buf); err != nil {
			return err
		}
		s.m.update(func(v *mirrorView) { v.compared = end })
		if len(doubts) > 0 && s.m.now().Sub(told) >= flushEvery || len(doubts) >= journal.MaxListed {
			tell()
			told = s.m.now()
		}
	}
	tell()
	return nil
}

// comparePage adds what of a page of the index is to be doubted.
func (s *mirrorStore) comparePage(doubts []blockdev.Extent, pos int64, entries []journal.Entry, buf []byte) ([]blockdev.Extent, error) {
	perChunk := int(s.m.chunk / s.blockSize)
	hashes := make([]wire.Hash, perChunk)
	for i, j := range stretches(len(entries), func(i, j int) bool { return entries[i].Known == entries[j].Known && j%perChunk != 0 }) {
		off := pos + int64(i)*s.blockSize
		end := min(pos+int64(j)*s.blockSize, s.size)
		if !entries[i].Known {
			doubts = doubt(doubts, off, end)
			continue
		}
		bad, err := s.readAround(buf[:end-off], off, s.blockSize)
		if err != nil {
			return nil, err
		}
		if len(bad) > 0 {
			s.m.post(func() { s.m.unreadable(bad, false) })
		}
		s.hashBlocks(buf[:end-off], hashes[:j-i])
		for k := i; k < j; k++ {
			if hashes[k-i] != entries[k].Hash {
				at := pos + int64(k)*s.blockSize
				doubts = doubt(doubts, at, s.blockEnd(at))
			}
		}
	}
	return doubts, nil
}

func doubt(list []blockdev.Extent, off, end int64) []blockdev.Extent {
	if n := len(list); n > 0 && list[n-1].End() == off {
		list[n-1].Length = end - list[n-1].Offset
		return list
	}
	return append(list, blockdev.Extent{Offset: off, Length: end - off})
}
