package wire

func (r *reader) generation() Generation {
	return Generation{ID: r.id(), Counter: r.u64(), Parent: r.id(), ParentCut: r.u64()}
}

func decodeAttach(r *reader) *Attach {
	m := &Attach{
		VolumeID:    r.id(),
		Generation:  r.generation(),
		Incarnation: r.u64(),
		Connection:  r.u64(),
		Size:        r.i64(),
		BlockSize:   r.u32(),
		Flags:       AttachFlags(r.u32()),
		Committed:   r.u64(),
		LastSent:    r.u64(),
	}
	volume, devices := r.u16(), r.u16()
	r.reserved(4)
	m.Volume = r.str(int(volume))
	m.Devices = r.hashes(int(devices))
	return m
}

func decodeAttached(r *reader) *Attached {
	return &Attached{
		VolumeID:          r.id(),
		Generation:        r.generation(),
		LastCut:           r.u64(),
		Applied:           r.u64(),
		InPlace:           r.u64(),
		Flags:             AttachedFlags(r.u32()),
		MaxOffers:         r.u32(),
		Size:              r.i64(),
		DataEnd:           r.i64(),
		Room:              r.i64(),
		Window:            r.u64(),
		StagedIncarnation: r.u64(),
		StagedBase:        r.u64(),
		StagedNumber:      r.u64(),
		StagedSeq:         r.u64(),
		StagedRecords:     r.u64(),
		StagedChain:       r.hash(),
	}
}

func decodeRebase(r *reader) *Rebase {
	m := &Rebase{Seq: r.u64(), Base: r.u64(), Old: r.u64(), New: r.u64(), More: r.bit("more")}
	r.reserved(7)
	m.Voids = r.extents()
	return m
}

func decodeReport(r *reader) *Report {
	m := &Report{Committed: r.u64(), Applied: r.u64(), Room: r.i64(), Staged: r.i64(), Comparing: r.bit("comparing")}
	r.reserved(3)
	m.Quarantine = r.u32()
	return m
}

func decodeSuspect(r *reader) *Suspect {
	m := &Suspect{Class: r.u8()}
	r.reserved(7)
	m.Epoch = r.u64()
	m.Entries = make([]SuspectEntry, r.count(suspectSize))
	for i := range m.Entries {
		e := &m.Entries[i]
		e.Offset, e.Length = r.i64(), r.u32()
		r.reserved(4)
		e.Want, e.Got = r.hash(), r.hash()
	}
	return m
}

func decodeQuarantine(r *reader) *Quarantine {
	m := &Quarantine{Class: r.u8(), More: r.bit("more")}
	reason := r.u16()
	r.reserved(4)
	m.Epoch, m.Since = r.u64(), r.i64()
	m.Reason = r.str(int(reason))
	m.Extents = r.extents()
	return m
}

func decodeRepair(r *reader) *Repair {
	m := &Repair{All: r.bit("all")}
	r.reserved(7)
	return m
}

func decodeFetch(r *reader) (offset int64, length uint32, hash Hash) {
	offset, length = r.i64(), r.u32()
	r.reserved(4)
	return offset, length, r.hash()
}

func decodeAsk(r *reader) *Ask {
	m := &Ask{ID: r.id(), Job: Job(r.u8()), Flags: AskFlags(r.u8()), From: AskFrom(r.u16())}
	mirror := r.u16()
	r.reserved(2)
	m.Rate = r.i64()
	m.Mirror = r.str(int(mirror))
	return m
}

func decodeTold(r *reader) *Told {
	m := &Told{ID: r.id(), Done: r.i64(), Total: r.i64()}
	mirror := r.u16()
	r.reserved(6)
	m.Mirror = r.str(int(mirror))
	return m
}

func decodeEnded(r *reader) *Ended {
	m := &Ended{ID: r.id(), Flags: EndedFlags(r.u8())}
	o, f := &m.Outcome, &m.Failure
	f.Kind = r.u8()
	texts := [...]*string{&o.Mirror, &f.Op, &f.On, &f.Text, &f.Next}
	var lengths [len(texts)]uint16
	for i := range lengths {
		lengths[i] = r.u16()
	}
	differ := int(r.u16())
	r.reserved(2)
	for _, n := range [...]*int64{&o.Compared, &o.Skipped, &o.ResumedAt, &o.Blocks, &o.Shipped, &o.Nanoseconds} {
		*n = r.i64()
	}
	for i, s := range texts {
		*s = r.str(int(lengths[i]))
	}
	extents := r.extents()
	if differ > len(extents) {
		r.fail("%d extents where %d are to differ", len(extents), differ)
		return m
	}
	if differ > 0 {
		m.Differ = extents[:differ:differ]
	}
	if differ < len(extents) {
		m.Rot = extents[differ:]
	}
	return m
}

func decodeDoor(r *reader) *Door {
	m := &Door{r.u16()}
	r.reserved(6)
	return m
}
