package sim

import (
	"github.com/blkmirror/blkmirror/wire"
)

// indexCheck is I12: an index entry may be absent, never wrong. Hashing costs time, so what was found right is
// looked at again only where the block or its entry has changed.
type indexCheck struct {
	blocks []checkedBlock
}

type checkedBlock struct {
	pages []content
	hash  wire.Hash
}

// checkIndexes looks at the entries that count: those of blocks of a primary that its index does not need, and
// those of a mirror that has nothing to apply. Content that came about behind the engine's back is left out.
func (o *oracle) checkIndexes() {
	if p := o.w.primary; p.volume != nil {
		needs := p.volume.NeedsIndex()
		o.checkIndex(&p.node, needs.Contains)
		o.checkRotten()
	}
	for _, m := range o.w.mirrors {
		if m.m != nil && m.m.Failed() == nil && m.known && len(m.facts.Epochs) == 0 && !m.torn {
			o.checkIndex(&m.node, func(uint64) bool { return false })
		}
	}
}

// checkIndex compares a node's index with its disk, save for blocks with a page that is left out.
func (o *oracle) checkIndex(n *node, out func(page uint64) bool) {
	s := &o.w.setup
	perBlock := uint64(s.block) / pageSize
	if n.checked.blocks == nil {
		n.checked.blocks = make([]checkedBlock, n.w.blocks())
	}
blocks:
	for b := range n.checked.blocks {
		entry, known := n.index.Known(uint64(b))
		if !known {
			continue
		}
		first, end := uint64(b)*perBlock, min(uint64(b+1)*perBlock, uint64(s.pages))
		for page := first; page < end; page++ {
			if n.taint[page] != clean || out(page) {
				continue blocks
			}
		}
		if c := &n.checked.blocks[b]; !c.still(n, first, end, entry) {
			if c.look(n, first, end); c.hash != entry {
				o.w.failf("I12: the index of %s knows block %d by another hash than its content has", n.name, b)
			}
		}
	}
}

// still tells that a block and its entry are as they were when they were found to fit.
func (c *checkedBlock) still(n *node, first, end uint64, entry wire.Hash) bool {
	if c.pages == nil || c.hash != entry {
		return false
	}
	for page := first; page < end; page++ {
		if c.pages[page-first] != n.disk.PageID(page) {
			return false
		}
	}
	return true
}

// look hashes a block.
func (c *checkedBlock) look(n *node, first, end uint64) {
	c.pages = c.pages[:0]
	var content []byte
	for page := first; page < end; page++ {
		c.pages = append(c.pages, n.disk.PageID(page))
		content = append(content, n.disk.Page(page)...)
	}
	if over := int64(end)*pageSize - n.w.setup.size(); over > 0 { // the last page is hashed at its true length
		content = content[:int64(len(content))-over]
	}
	size := n.w.setup.size() - int64(first)*pageSize
	c.hash = wire.Sum(content[:min(int64(len(content)), size)])
}

func (w *World) blocks() int64 { return (w.setup.size() + w.setup.block - 1) / w.setup.block }
