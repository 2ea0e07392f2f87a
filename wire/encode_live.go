package wire

// The metas of live sessions alone, as those in encode.go; decode_live.go holds the other half of each pair.

// Sizes of metas, and of the part of a meta that does not vary.
const (
	attachFixed  = 120
	attachedSize = 200
	rebaseFixed  = 40
	syncedSize   = 56
	bulkSize     = 16
	reportSize   = 40

	suspectFixed    = 16
	suspectSize     = 80
	quarantineFixed = 24
	repairSize      = 8
	fetchSize       = 48

	askFixed   = 32
	toldFixed  = 40
	endedFixed = 80

	doorSize  = 8
	knockSize = 16
)

// Generation, within Attach and Attached
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          id, 16 bytes                         |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            counter                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                        parent, 16 bytes                       |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           parent cut                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendGeneration(b []byte, g *Generation) []byte {
	b = append(b, g.ID[:]...)
	b = le.AppendUint64(b, g.Counter)
	b = append(b, g.Parent[:]...)
	return le.AppendUint64(b, g.ParentCut)
}

// Attach
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                      volume id, 16 bytes                      |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                      generation, 48 bytes                     |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          incarnation                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           connection                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              size                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|          block size           |             flags             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           committed                           |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           last sent                           |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| volume length |    devices    |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|        volume ..., then one hash of 32 bytes a device ...     |
//	+---------------------------------------------------------------+
func appendAttach(b []byte, m *Attach) []byte {
	b = append(b, m.VolumeID[:]...)
	b = appendGeneration(b, &m.Generation)
	b = le.AppendUint64(b, m.Incarnation)
	b = le.AppendUint64(b, m.Connection)
	b = le.AppendUint64(b, uint64(m.Size))
	b = le.AppendUint32(b, m.BlockSize)
	b = le.AppendUint32(b, uint32(m.Flags))
	b = le.AppendUint64(b, m.Committed)
	b = le.AppendUint64(b, m.LastSent)
	b = le.AppendUint16(b, uint16(len(m.Volume)))
	b = le.AppendUint16(b, uint16(len(m.Devices)))
	b = append(b, 0, 0, 0, 0)
	b = append(b, m.Volume...)
	return appendHashes(b, m.Devices)
}

// Attached
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                      volume id, 16 bytes                      |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                      generation, 48 bytes                     |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            last cut                           |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            applied                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            in place                           |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|             flags             |          max offers           |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              size                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            data end                           |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              room                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             window                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                       staged incarnation                      |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          staged base                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                         staged number                         |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           staged seq                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                         staged records                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                     staged chain, 32 bytes                    |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendAttached(b []byte, m *Attached) []byte {
	b = append(b, m.VolumeID[:]...)
	b = appendGeneration(b, &m.Generation)
	b = le.AppendUint64(b, m.LastCut)
	b = le.AppendUint64(b, m.Applied)
	b = le.AppendUint64(b, m.InPlace)
	b = le.AppendUint32(b, uint32(m.Flags))
	b = le.AppendUint32(b, m.MaxOffers)
	b = le.AppendUint64(b, uint64(m.Size))
	b = le.AppendUint64(b, uint64(m.DataEnd))
	b = le.AppendUint64(b, uint64(m.Room))
	b = le.AppendUint64(b, m.Window)
	b = le.AppendUint64(b, m.StagedIncarnation)
	b = le.AppendUint64(b, m.StagedBase)
	b = le.AppendUint64(b, m.StagedNumber)
	b = le.AppendUint64(b, m.StagedSeq)
	b = le.AppendUint64(b, m.StagedRecords)
	return append(b, m.StagedChain[:]...)
}

// Rebase: void extents, each of offset and length, until the meta ends.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              seq                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              base                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              old                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              new                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| more  |                       reserved                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|            one extent of 16 bytes a range of voids ...        |
//	+---------------------------------------------------------------+
func appendRebase(b []byte, m *Rebase) []byte {
	b = le.AppendUint64(b, m.Seq)
	b = le.AppendUint64(b, m.Base)
	b = le.AppendUint64(b, m.Old)
	b = le.AppendUint64(b, m.New)
	b = append(b, bit(m.More), 0, 0, 0, 0, 0, 0, 0)
	return appendExtents(b, m.Voids)
}

// Synced
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             epoch                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              seq                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            records                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                        chain, 32 bytes                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendSynced(b []byte, m *Synced) []byte {
	b = le.AppendUint64(b, m.Epoch)
	b = le.AppendUint64(b, m.Seq)
	b = le.AppendUint64(b, m.Records)
	return append(b, m.Chain[:]...)
}

// Report
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           committed                           |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            applied                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              room                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             staged                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|compare|       reserved        |           quarantine          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendReport(b []byte, m *Report) []byte {
	b = le.AppendUint64(b, m.Committed)
	b = le.AppendUint64(b, m.Applied)
	b = le.AppendUint64(b, uint64(m.Room))
	b = le.AppendUint64(b, uint64(m.Staged))
	b = append(b, bit(m.Comparing), 0, 0, 0)
	return le.AppendUint32(b, m.Quarantine)
}

// Suspect: entries until the meta ends.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| class |                       reserved                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             epoch                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            offset                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|            length             |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                  hash of the primary, 32 bytes                |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                  hash of the mirror, 32 bytes                 |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendSuspect(b []byte, m *Suspect) []byte {
	b = append(b, m.Class, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint64(b, m.Epoch)
	for i := range m.Entries {
		e := &m.Entries[i]
		b = le.AppendUint64(b, uint64(e.Offset))
		b = le.AppendUint32(b, e.Length)
		b = append(b, 0, 0, 0, 0)
		b = append(b, e.Want[:]...)
		b = append(b, e.Got[:]...)
	}
	return b
}

// Quarantine: extents, each of offset and length, until the meta ends.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| class | more  | reason length |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             epoch                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             since                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|      reason ..., then one extent of 16 bytes a range ...      |
//	+---------------------------------------------------------------+
func appendQuarantine(b []byte, m *Quarantine) []byte {
	b = append(b, m.Class, bit(m.More))
	b = le.AppendUint16(b, uint16(len(m.Reason)))
	b = append(b, 0, 0, 0, 0)
	b = le.AppendUint64(b, m.Epoch)
	b = le.AppendUint64(b, uint64(m.Since))
	b = append(b, m.Reason...)
	return appendExtents(b, m.Extents)
}

// Repair
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|  all  |                       reserved                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendRepair(b []byte, m *Repair) []byte {
	return append(b, bit(m.All), 0, 0, 0, 0, 0, 0, 0)
}

// Fetch and Fetched. The length of a Fetched's payload is in the frame's header.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            offset                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|            length             |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|               SHA-256 of the block, 32 bytes                  |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendFetch(b []byte, offset int64, length uint32, hash Hash) []byte {
	b = le.AppendUint64(b, uint64(offset))
	b = le.AppendUint32(b, length)
	b = append(b, 0, 0, 0, 0)
	return append(b, hash[:]...)
}

// Ask
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          id, 16 bytes                         |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|  job  | flags |     from      | mirror length |   reserved    |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              rate                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           mirror ...                          |
//	+---------------------------------------------------------------+
func appendAsk(b []byte, m *Ask) []byte {
	b = append(b, m.ID[:]...)
	b = append(b, byte(m.Job), byte(m.Flags))
	b = le.AppendUint16(b, uint16(m.From))
	b = le.AppendUint16(b, uint16(len(m.Mirror)))
	b = append(b, 0, 0)
	b = le.AppendUint64(b, uint64(m.Rate))
	return append(b, m.Mirror...)
}

// Told
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          id, 16 bytes                         |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              done                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             total                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| mirror length |                    reserved                   |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           mirror ...                          |
//	+---------------------------------------------------------------+
func appendTold(b []byte, m *Told) []byte {
	b = append(b, m.ID[:]...)
	b = le.AppendUint64(b, uint64(m.Done))
	b = le.AppendUint64(b, uint64(m.Total))
	b = le.AppendUint16(b, uint16(len(m.Mirror)))
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, m.Mirror...)
}

// Ended: extents, each of offset and length, until the meta ends.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          id, 16 bytes                         |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| flags | kind  | mirror length |   op length   |   on length   |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|  text length  |  next length  |    differ     |   reserved    |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            compared                           |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            skipped                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           resumed at                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             blocks                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            shipped                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          nanoseconds                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                mirror, op, on, text, next ...,                |
//	|            then one extent of 16 bytes a range ...            |
//	+---------------------------------------------------------------+
func appendEnded(b []byte, m *Ended) []byte {
	o, f := &m.Outcome, &m.Failure
	b = append(b, m.ID[:]...)
	b = append(b, byte(m.Flags), f.Kind)
	texts := [...]string{o.Mirror, f.Op, f.On, f.Text, f.Next}
	for _, s := range texts {
		b = le.AppendUint16(b, uint16(len(s)))
	}
	b = le.AppendUint16(b, uint16(len(m.Differ)))
	b = append(b, 0, 0)
	for _, n := range [...]int64{o.Compared, o.Skipped, o.ResumedAt, o.Blocks, o.Shipped, o.Nanoseconds} {
		b = le.AppendUint64(b, uint64(n))
	}
	for _, s := range texts {
		b = append(b, s...)
	}
	return appendExtents(appendExtents(b, m.Differ), m.Rot)
}

// Door
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|     port      |                   reserved                    |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendDoor(b []byte, m *Door) []byte {
	return append(le.AppendUint16(b, m.Port), 0, 0, 0, 0, 0, 0)
}
