package journal

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
)

// replicaLists is what a lists record holds of a mirror's state.
type replicaLists struct {
	holes, doubts, quarantine []blockdev.Extent
	readOnly                  ReadOnly
}

func (m *ReplicaFacts) lists() replicaLists {
	return replicaLists{m.Holes, m.Doubts, m.Quarantine, m.ReadOnly}
}

func (m *ReplicaFacts) setLists(l replicaLists) {
	m.Holes, m.Doubts, m.Quarantine, m.ReadOnly = l.holes, l.doubts, l.quarantine, l.readOnly
}

// extents are the lists in the order of the record.
func (l *replicaLists) extents() [3][]blockdev.Extent {
	return [3][]blockdev.Extent{l.holes, l.doubts, l.quarantine}
}

func (l *replicaLists) empty() bool {
	return len(l.holes)+len(l.doubts)+len(l.quarantine) == 0 && l.readOnly.Class == 0
}

func (l *replicaLists) equal(o *replicaLists) bool {
	a, b := &l.readOnly, &o.readOnly
	return slices.Equal(l.holes, o.holes) && slices.Equal(l.doubts, o.doubts) && slices.Equal(l.quarantine, o.quarantine) &&
		a.Class == b.Class && a.Epoch == b.Epoch && a.Since == b.Since && a.Reason == b.Reason && slices.Equal(a.Blocks, b.Blocks)
}

// clone shares nothing with what the caller may go on changing.
func (l *replicaLists) clone() replicaLists {
	c := replicaLists{slices.Clone(l.holes), slices.Clone(l.doubts), slices.Clone(l.quarantine), l.readOnly}
	c.readOnly.Blocks = slices.Clone(c.readOnly.Blocks)
	return c
}

// Lists: what a mirror was told of holes, what it can no longer vouch for, what is in quarantine, and why.
// It holds from the facts record on that names it.
//
//	 0       1       2       3       4       5       6       7
//	+-------------------------------+-------------------------------+
//	| version = 1                   | number of quarantined extents |   0
//	+-------------------------------+-------------------------------+
//	| number of holes               | number of doubts              |   8
//	+-------------------------------+-------------------------------+
//	| holes, then doubts, then quarantine: offset and length in     |  16
//	| bytes, 8 bytes each                                           |
//	| where the mirror is read-only: its cause                      |
//	+---------------------------------------------------------------+
func encodeLists(l *replicaLists) []byte {
	size := listsHead + extentSize*(len(l.holes)+len(l.doubts)+len(l.quarantine))
	if r := &l.readOnly; r.Class != 0 {
		size += readOnlyHead + badBlockSize*len(r.Blocks) + len(r.Reason)
	}
	b := make([]byte, listsHead, size)
	le := binary.LittleEndian
	le.PutUint32(b[0:], listsVersion)
	le.PutUint32(b[4:], uint32(len(l.quarantine)))
	le.PutUint32(b[8:], uint32(len(l.holes)))
	le.PutUint32(b[12:], uint32(len(l.doubts)))
	for _, list := range l.extents() {
		for _, e := range list {
			b = le.AppendUint64(b, uint64(e.Offset))
			b = le.AppendUint64(b, uint64(e.Length))
		}
	}
	if l.readOnly.Class != 0 {
		b = appendReadOnly(b, &l.readOnly)
	}
	return b
}

// decodeLists copies all that it returns.
func decodeLists(b []byte) (l replicaLists, err error) {
	if err := checkVersion("lists", b, listsHead, listsVersion); err != nil {
		return l, err
	}
	le := binary.LittleEndian
	nq, nh, nd := int64(le.Uint32(b[4:])), int64(le.Uint32(b[8:])), int64(le.Uint32(b[12:]))
	if nh > MaxListed || nd > MaxListed || nq > MaxListed || int64(len(b)) < listsHead+extentSize*(nh+nd+nq) {
		return l, fmt.Errorf("lists record of %d bytes with %d, %d and %d extents: %w", len(b), nh, nd, nq, ErrDamaged)
	}
	all := make([]blockdev.Extent, nh+nd+nq)
	for i := range all {
		at := b[listsHead+extentSize*i:]
		all[i] = blockdev.Extent{Offset: int64(le.Uint64(at)), Length: int64(le.Uint64(at[8:]))}
		if !sane(all[i]) {
			return l, fmt.Errorf("lists record with extent %+v: %w", all[i], ErrDamaged)
		}
	}
	l.holes, l.doubts, l.quarantine = nilIfEmpty(all[:nh:nh]), nilIfEmpty(all[nh:nh+nd:nh+nd]), nilIfEmpty(all[nh+nd:])
	switch rest := b[listsHead+extentSize*len(all):]; {
	case len(rest) > 0:
		l.readOnly, err = decodeReadOnly(rest)
	case nq > 0:
		err = fmt.Errorf("lists record with %d quarantined extents and no cause: %w", nq, ErrDamaged)
	}
	return l, err
}

// The cause why a mirror is read-only:
//
//	 0       1       2       3       4       5       6       7
//	+-------+-------+---------------+-------------------------------+
//	| class | zero  | len. of reason| number of bad blocks          |   0
//	+-------+-------+---------------+-------------------------------+
//	| epoch                                                         |   8
//	+---------------------------------------------------------------+
//	| since, in Unix seconds, signed                                |  16
//	+---------------------------------------------------------------+
//	| bad blocks, 72 bytes each: offset, 8 bytes; the hash that it  |  24
//	| must have, and the one that it has, 32 bytes each             |
//	| reason                                                        |
//	+---------------------------------------------------------------+
func appendReadOnly(b []byte, r *ReadOnly) []byte {
	le := binary.LittleEndian
	b = append(b, byte(r.Class), 0)
	b = le.AppendUint16(b, uint16(len(r.Reason)))
	b = le.AppendUint32(b, uint32(len(r.Blocks)))
	b = le.AppendUint64(b, r.Epoch)
	b = le.AppendUint64(b, uint64(r.Since))
	for i := range r.Blocks {
		one := &r.Blocks[i]
		b = le.AppendUint64(b, uint64(one.Offset))
		b = append(b, one.Want[:]...)
		b = append(b, one.Got[:]...)
	}
	return append(b, r.Reason...)
}

// decodeReadOnly reads a cause that ends where b does.
func decodeReadOnly(b []byte) (r ReadOnly, err error) {
	if len(b) < readOnlyHead {
		return r, fmt.Errorf("lists record with %d bytes too many: %w", len(b), ErrDamaged)
	}
	le := binary.LittleEndian
	r.Class, r.Epoch, r.Since = Class(b[0]), le.Uint64(b[8:]), int64(le.Uint64(b[16:]))
	reason, blocks := int64(le.Uint16(b[2:])), int64(le.Uint32(b[4:]))
	if r.Class == 0 || r.Class > ClassRot || b[1] != 0 || reason > MaxReason || blocks > MaxBadBlocks ||
		int64(len(b)) != readOnlyHead+badBlockSize*blocks+reason {
		return ReadOnly{}, fmt.Errorf("lists record with a cause of %d bytes, %v, %d bad blocks: %w",
			len(b), r.Class, blocks, ErrDamaged)
	}
	b = b[readOnlyHead:]
	for ; blocks > 0; blocks-- {
		one := BadBlock{Offset: int64(le.Uint64(b)), Want: [32]byte(b[8:40]), Got: [32]byte(b[40:])}
		if one.Offset < 0 {
			return ReadOnly{}, fmt.Errorf("lists record with a bad block at %d: %w", one.Offset, ErrDamaged)
		}
		r.Blocks = append(r.Blocks, one)
		b = b[badBlockSize:]
	}
	r.Reason = string(b)
	return r, nil
}
