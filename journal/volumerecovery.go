package journal

import (
	"fmt"
	"maps"
	"slices"
)

// volumeReplay gathers what the records of a volume's log add up to. Only at the end it is known which
// checkpoint is the last, and which marks are older than its T.
type volumeReplay struct {
	fs         FS
	dir        string
	regionSize int64

	state  VolumeState
	found  bool
	facts  LSN              // of the record that has told the facts
	lists  listsAt          // those of the facts
	newest listsAt          // of the last lists record, which no facts may have named yet
	marks  map[uint64]LSN   // region: of its last mark
	marked LSN              // the last mark
	record checkpointRecord // the last one
	bytes  int64            // of marks and facts
}

// replay applies one record. One that checks and still makes no sense is damage too.
func (r *volumeReplay) replay(lsn LSN, t Type, body []byte) error {
	switch t {
	case typeMark:
		return r.mark(lsn, body)
	case typeFacts:
		r.bytes += frameSize(len(body))
		return r.setFacts(lsn, body)
	case typeLists:
		r.bytes += frameSize(len(body))
		lists, err := decodeLists(body)
		r.newest = listsAt{lsn: lsn, replicaLists: lists}
		return err
	case typeCheckpoint:
		record, facts, err := decodeCheckpointRecord(body)
		if err != nil {
			return err
		}
		if record.number <= r.record.number || record.first > lsn || record.first < r.record.first {
			return fmt.Errorf("checkpoint record %+v behind %+v: %w", record, r.record, ErrDamaged)
		}
		r.record = record
		return r.setFacts(lsn, facts)
	}
	return fmt.Errorf("record of unknown type %d: %w", t, ErrDamaged)
}

func (r *volumeReplay) mark(lsn LSN, body []byte) error {
	if r.marks == nil {
		r.marks = map[uint64]LSN{}
	}
	r.bytes += frameSize(len(body))
	r.marked = lsn
	return decodeMark(body, func(region uint64) { r.marks[region] = lsn })
}

func (r *volumeReplay) setFacts(lsn LSN, body []byte) error {
	facts, lists, err := decodeFacts(body)
	if err != nil {
		return err
	}
	switch lists {
	case 0:
		r.lists = listsAt{}
	case r.lists.lsn:
	case r.newest.lsn:
		r.lists = r.newest
	default:
		// Gone with a segment that a checkpoint has dropped, if all is well: then other facts follow.
		r.lists = listsAt{lsn: lists, missing: true}
	}
	facts.Mirror.setLists(r.lists.replicaLists)
	if err := facts.checkReadOnly(); err != nil {
		return fmt.Errorf("facts record and its lists: %w: %w", err, ErrDamaged)
	}
	r.state.Facts, r.facts, r.found = facts, lsn, true
	return nil
}

// verify is called when all records were replayed and nothing was changed yet. It completes the state.
func (r *volumeReplay) verify(oldest segmentHeader) error {
	if oldest.number == 0 {
		return r.verifyEmpty()
	}
	if r.record.number == 0 && oldest.first != 1 || r.record.number != 0 && oldest.first > r.record.first {
		return &DamagedError{segmentPath(r.dir, oldest.number), 0,
			fmt.Sprintf("records before %d are missing, and no checkpoint replaces them", oldest.first)}
	}
	if !r.found && len(r.marks) > 0 {
		return fmt.Errorf("%s: marks and no facts: %w", r.dir, ErrDamaged)
	}
	if r.lists.missing {
		return fmt.Errorf("%s: facts name lists in record %d, which is missing: %w", r.dir, r.lists.lsn, ErrDamaged)
	}
	if r.record.number != 0 {
		sets, hot, err := readCheckpointFile(r.fs, r.dir, oldest.id, r.record, r.state.Facts.limits(r.regionSize))
		if err != nil {
			return err
		}
		r.state.Sets, r.state.Hot = sets, hot
	}
	for _, region := range slices.Sorted(maps.Keys(r.marks)) {
		if limit := r.state.Facts.regions(r.regionSize); region >= limit {
			return fmt.Errorf("%s: mark of region %d, the volume has %d: %w",
				r.dir, region, limit, ErrDamaged)
		}
		if r.marks[region] >= r.record.first {
			r.state.Hot = append(r.state.Hot, region)
		}
	}
	slices.Sort(r.state.Hot)
	r.state.Hot = slices.Compact(r.state.Hot)
	r.state.Found = r.found
	// Who marks a region writes to the device: facts from before it say nothing about now.
	r.state.Facts.Clean = r.state.Facts.Clean && r.marked < r.facts
	return nil
}

// verifyEmpty looks at a folder without a segment. A checkpoint is never older than the first of them.
func (r *volumeReplay) verifyEmpty() error {
	names, err := r.fs.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if number, ok := checkpointNumber(name); ok {
			return &DamagedError{checkpointPath(r.dir, number), 0, "there is a checkpoint and no segment"}
		}
	}
	return nil
}
