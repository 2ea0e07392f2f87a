package wire

// The rules of the messages of live sessions alone, as those in check.go.

// pageSize is what voids and holes are counted in. Only the last page of a volume may be shorter.
const pageSize = 4 << 10

func (m *Attach) check() error {
	switch {
	case m.VolumeID == [16]byte{} || m.Generation.ID == [16]byte{} || m.Incarnation == 0:
		return broken("Attach without a volume id, a generation or an incarnation")
	case !validBlockSize(m.BlockSize):
		return broken("block size %d", m.BlockSize)
	case m.Size < 1:
		return broken("Attach of a volume of %d bytes", m.Size)
	case m.Committed > m.LastSent:
		return broken("Attach with committed cut %d above %d, the last that was sent", m.Committed, m.LastSent)
	case len(m.Devices) > MaxDevices:
		return broken("%d devices in Attach, limit %d", len(m.Devices), MaxDevices)
	}
	if err := checkFlags("Attach", uint32(m.Flags), uint32(AttachOverwrite|AttachRebuilt)); err != nil {
		return err
	}
	return checkString("name of the volume", m.Volume, MaxName)
}

func (m *Attached) check() error {
	switch {
	case m.Size < 0 || m.DataEnd < 0 || m.DataEnd > m.Size || m.Room < 0:
		return broken("Attached with size %d, data end %d, room %d", m.Size, m.DataEnd, m.Room)
	case m.DataEnd > 0 && m.Flags&AttachedBlank == 0:
		return broken("Attached with data end %d of a mirror that is not blank", m.DataEnd)
	case m.Window < MaxRun:
		return broken("first window of %d bytes, want at least %d", m.Window, MaxRun)
	case m.MaxOffers == 0:
		return broken("no offer allowed")
	}
	if err := m.checkStaged(); err != nil {
		return err
	}
	known := AttachedBulk | AttachedInconsistent | AttachedBlank | AttachedPageCache | AttachedDoubts | AttachedReadOnly
	return checkFlags("Attached", uint32(m.Flags), uint32(known))
}

func (m *Attached) checkStaged() error {
	switch {
	case m.StagedNumber > 0 && m.StagedBase >= m.StagedNumber:
		return broken("Attached with epoch %d staged on base %d", m.StagedNumber, m.StagedBase)
	case m.StagedNumber > 0:
		return nil
	case m.StagedIncarnation != 0 || m.StagedBase != 0 || m.StagedSeq != 0 || m.StagedRecords != 0 || m.StagedChain != Hash{}:
		return broken("Attached tells of a staged epoch without its number")
	}
	return nil
}

func (m *Rebase) check() error {
	switch {
	case m.Old == 0 && m.New == 0:
		return broken("Rebase of nothing to nothing")
	case m.New > 0 && m.Base >= m.New:
		return broken("Rebase to epoch %d on base %d", m.New, m.Base)
	case m.Old > 0 && m.New > 0 && m.Old >= m.New:
		return broken("Rebase from epoch %d back to %d", m.Old, m.New)
	case len(m.Voids) > 0 && (m.Old == 0 || m.New == 0):
		return broken("Rebase from %d to %d with voids, where nothing is carried over", m.Old, m.New)
	case m.More && len(m.Voids) == 0:
		return broken("Rebase without voids, and more to follow")
	case len(m.Voids) > MaxEntries:
		return broken("%d extents in Rebase, limit %d", len(m.Voids), MaxEntries)
	}
	return checkPages("void", m.Voids, !m.More)
}

func (m *Report) check() error {
	if m.Room < 0 || m.Staged < 0 {
		return broken("Report of room %d and %d bytes staged", m.Room, m.Staged)
	}
	return nil
}

// lastClass is the highest class of a mismatch (see Suspect).
const lastClass = 6

func checkClass(what string, class uint8) error {
	if class < 1 || class > lastClass {
		return broken("unknown class %d in %s", class, what)
	}
	return nil
}

func (m *Suspect) check() error {
	if err := checkClass("Suspect", m.Class); err != nil {
		return err
	}
	if err := checkCount("entries in Suspect", len(m.Entries), MaxSuspects); err != nil {
		return err
	}
	end := int64(0)
	for i := range m.Entries {
		e := &m.Entries[i]
		if err := checkRange("suspect", e.Offset, int64(e.Length)); err != nil {
			return err
		}
		if e.Length > MaxZeroExtent {
			return broken("suspect of %d bytes, limit %d", e.Length, MaxZeroExtent)
		}
		if e.Offset < end {
			return broken("suspect at %d+%d, where the one before ends at %d", e.Offset, e.Length, end)
		}
		end = e.Offset + int64(e.Length)
	}
	return nil
}

func (m *Quarantine) check() error {
	if err := checkClass("Quarantine", m.Class); err != nil {
		return err
	}
	if err := checkCount("extents in Quarantine", len(m.Extents), MaxEntries); err != nil {
		return err
	}
	for _, e := range m.Extents {
		if err := checkRange("extent in Quarantine", e.Offset, e.Length); err != nil {
			return err
		}
	}
	return checkString("reason", m.Reason, MaxText)
}

// checkPages wants whole pages, ascending and disjoint. The last extent may end within a page, where it can
// be the volume's last one, whose size is known to the engine; of a list that goes on it cannot.
func checkPages(what string, extents []Extent, last bool) error {
	end := int64(0)
	for i, e := range extents {
		if err := checkRange(what, e.Offset, e.Length); err != nil {
			return err
		}
		if e.Offset < end {
			return broken("%s at %d+%d, where the one before ends at %d", what, e.Offset, e.Length, end)
		}
		short := e.Length%pageSize != 0 && (!last || i < len(extents)-1)
		if e.Offset%pageSize != 0 || short {
			return broken("%s at %d+%d, which is no range of whole pages", what, e.Offset, e.Length)
		}
		end = e.Offset + e.Length
	}
	return nil
}

// Frames cuts a Rebase of any number of voids into the frames that say it, with nothing but Ping and Pong
// between them. They share m's voids.
func (m *Rebase) Frames() []Message {
	var frames []Message
	rest := m.Voids
	for {
		f := *m
		n := min(len(rest), MaxEntries)
		f.Voids = rest[:n:n]
		rest = rest[n:]
		f.More = len(rest) > 0
		frames = append(frames, &f)
		if !f.More {
			return frames
		}
	}
}

// Join is the other half of Frames: it adds the frame that followed m directly, which has More set. An error
// wraps ErrProtocol and leaves m as it was.
func (m *Rebase) Join(next *Rebase) error {
	switch {
	case !m.More:
		return broken("Rebase %d behind one that said no more", next.Seq)
	case next.Seq != m.Seq || next.Base != m.Base || next.Old != m.Old || next.New != m.New:
		return broken("Rebase %d from %d to %d on %d, where more of %d from %d to %d on %d is due",
			next.Seq, next.Old, next.New, next.Base, m.Seq, m.Old, m.New, m.Base)
	case len(next.Voids) == 0:
		return broken("Rebase %d without the voids that were to follow", next.Seq)
	case len(m.Voids) > 0:
		last := m.Voids[len(m.Voids)-1]
		if first := next.Voids[0]; first.Offset < last.Offset+last.Length {
			return broken("void at %d+%d, where the one before ends at %d", first.Offset, first.Length, last.Offset+last.Length)
		}
	}
	m.Voids = append(m.Voids, next.Voids...)
	m.More = next.More
	return nil
}

// Frames cuts a Quarantine of any number of extents into the frames that say it. They share m's extents.
func (m *Quarantine) Frames() []Message {
	var frames []Message
	rest := m.Extents
	for {
		f := *m
		n := min(len(rest), MaxEntries)
		f.Extents = rest[:n:n]
		rest = rest[n:]
		f.More = len(rest) > 0
		frames = append(frames, &f)
		if !f.More {
			return frames
		}
	}
}

// Join is the other half of Frames: it adds the frame that followed m directly, which has More set. An error
// wraps ErrProtocol and leaves m as it was.
func (m *Quarantine) Join(next *Quarantine) error {
	switch {
	case !m.More:
		return broken("Quarantine behind one that said no more")
	case next.Class != m.Class || next.Epoch != m.Epoch || next.Since != m.Since || next.Reason != m.Reason:
		return broken("Quarantine for another cause than the frame before")
	}
	m.Extents = append(m.Extents, next.Extents...)
	m.More = next.More
	return nil
}

func checkFetch(offset int64, length uint32) error {
	if length == 0 || length > MaxBlock {
		return broken("fetch of %d bytes, limit %d", length, MaxBlock)
	}
	return checkRange("fetch", offset, int64(length))
}

func (m *Fetched) check() error {
	if m.PayloadLength != 0 && m.PayloadLength != int(m.Length) {
		return broken("Fetched with a payload of %d bytes, want %d or none", m.PayloadLength, m.Length)
	}
	return checkFetch(m.Offset, m.Length)
}

func (m *Ask) check() error {
	switch {
	case m.ID == [16]byte{}:
		return broken("Ask without an id")
	case m.Job < JobVerify || m.Job > JobEnd:
		return broken("Ask for unknown job %d", m.Job)
	case m.Flags&^(AskAll|AskDryRun) != 0 || m.From > FromMirror || m.Rate < 0:
		return broken("Ask with flags %#x, from %d, rate %d", m.Flags, m.From, m.Rate)
	case m.Job != JobRepair && (m.Flags != 0 || m.From != FromNobody):
		return broken("Ask for job %d with what is said of a repair", m.Job)
	case m.Job != JobVerify && m.Rate != 0:
		return broken("Ask for job %d with a rate", m.Job)
	case m.Job == JobEnd && m.Mirror != "":
		return broken("Ask for an end with a name")
	}
	return checkString("name of the mirror", m.Mirror, MaxText)
}

func (m *Told) check() error {
	if m.ID == [16]byte{} || m.Done < 0 || m.Total < m.Done {
		return broken("Told of %x: %d of %d bytes", m.ID, m.Done, m.Total)
	}
	return checkString("name of the mirror", m.Mirror, MaxText)
}

// lastKind is the highest kind of a Failure.
const lastKind = 6

func (m *Ended) check() error {
	o, f, n := &m.Outcome, &m.Failure, len(m.Differ)+len(m.Rot)
	switch {
	case m.ID == [16]byte{}:
		return broken("Ended without an id")
	case m.Flags&(EndedResult|EndedError) == 0:
		return broken("Ended with neither a result nor an error")
	case m.Flags&EndedResult == 0 && (*o != Outcome{} || n > 0 || m.Flags&EndedNothing != 0):
		return broken("Ended without a result that tells one")
	case m.Flags&EndedError == 0 && *f != Failure{}:
		return broken("Ended without an error that tells one")
	case f.Kind > lastKind:
		return broken("Ended with an error of unknown kind %d", f.Kind)
	case n > MaxEntries:
		return broken("%d extents in Ended, limit %d", n, MaxEntries)
	case m.Flags&EndedMore != 0 && n == 0:
		return broken("Ended without extents, and more to follow")
	case min(o.Compared, o.Skipped, o.ResumedAt, o.Blocks, o.Shipped, o.Nanoseconds) < 0:
		return broken("Ended with %+v", *o)
	}
	known := EndedMore | EndedResult | EndedNothing | EndedError
	if err := checkFlags("Ended", uint32(m.Flags), uint32(known)); err != nil {
		return err
	}
	for _, list := range [][]Extent{m.Differ, m.Rot} {
		for _, e := range list {
			if err := checkRange("extent in Ended", e.Offset, e.Length); err != nil {
				return err
			}
		}
	}
	for _, s := range []string{o.Mirror, f.Op, f.On, f.Text, f.Next} {
		if err := checkString("text of Ended", s, MaxText); err != nil {
			return err
		}
	}
	return nil
}

// Frames cuts an Ended of any number of extents into the frames that say it. They share m's extents.
func (m *Ended) Frames() []Message {
	var frames []Message
	differ, rot := m.Differ, m.Rot
	for {
		f := *m
		n := min(len(differ), MaxEntries)
		k := min(len(rot), MaxEntries-n)
		f.Differ, f.Rot = differ[:n:n], rot[:k:k]
		differ, rot = differ[n:], rot[k:]
		if len(differ)+len(rot) > 0 {
			f.Flags |= EndedMore
		}
		frames = append(frames, &f)
		if f.Flags&EndedMore == 0 {
			return frames
		}
	}
}

// Join is the other half of Frames: it adds a frame that followed m, which has EndedMore set. An error wraps ErrProtocol
// and leaves m as it was.
func (m *Ended) Join(next *Ended) error {
	switch {
	case m.Flags&EndedMore == 0:
		return broken("Ended behind one that said no more")
	case next.ID != m.ID || next.Flags|EndedMore != m.Flags || next.Outcome != m.Outcome || next.Failure != m.Failure:
		return broken("Ended that tells something else than the frame before")
	case len(m.Differ)+len(m.Rot)+len(next.Differ)+len(next.Rot) > MaxListed:
		return broken("Ended with more than %d extents", MaxListed)
	}
	m.Differ, m.Rot = append(m.Differ, next.Differ...), append(m.Rot, next.Rot...)
	m.Flags = next.Flags
	return nil
}

func (m *Door) check() error {
	if m.Port == 0 {
		return broken("Door without a port")
	}
	return nil
}

func (m *Knock) check() error {
	if m.VolumeID == [16]byte{} {
		return broken("Knock without a volume id")
	}
	return nil
}
