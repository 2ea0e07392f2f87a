package sim

// What is needed has to have a reason, and what is refused as well: no invariant is broken by too much, but a
// mirror that is sent what it has, or a primary that takes no writes, is not what anybody wants.

// reasons are the pages that a mirror may need, whatever it holds: written to, doubted, not compared. A page
// that is seen not to be needed has none left.
type reasons []bool

func newReasons(w *World) (all []reasons) {
	for range w.setup.mirrors {
		all = append(all, make(reasons, w.setup.pages))
	}
	return all
}

// because notes that pages may be needed from now on, by all mirrors or, from 0 on, by one.
func (o *oracle) because(mirror int, first, end uint64) {
	for i, r := range o.reasons {
		if mirror >= 0 && i != mirror {
			continue
		}
		for p := first; p < min(end, uint64(len(r))); p++ {
			r[p] = true
		}
	}
}

// checkReasons finds pages that are needed without a reason.
func (o *oracle) checkReasons(mirror int, m *mirrorNode) {
	p := o.w.primary
	if p.volume.Unproven() {
		return // any block may be found to differ
	}
	for _, t := range p.tasks {
		if t.op != nil && t.op.changes() {
			first, end := t.op.pages()
			o.because(-1, first, end)
		}
	}
	l := p.lines[mirror]
	if l.everything {
		o.because(mirror, 0, uint64(len(o.reasons[mirror])))
	}
	for _, e := range l.quarantine { // a repair may want it at any time
		o.because(mirror, uint64(e.Offset)/pageSize, uint64(e.Offset+e.Length-1)/pageSize+1)
	}
	needs, reasons := p.volume.Needs(mirror), o.reasons[mirror]
	for page := range reasons {
		switch needed := needs.Contains(uint64(page)); {
		case !needed:
			reasons[page] = false
		case !reasons[page]:
			o.w.failf("page %d is in needs(%s) and has no reason to be: nobody wrote it, doubts it or has still to compare it", page, m.name)
		}
	}
}

// checkRefusal: writes are refused only where the journal or a flush has failed. A spool that is full costs a
// cut and no more (I8).
func (o *oracle) checkRefusal() {
	p := o.w.primary
	if err := p.volume.Failure(); err != nil && !p.failed {
		o.w.failf("I8: writes are refused, and neither the journal nor a flush has failed: %v", err)
	}
}
