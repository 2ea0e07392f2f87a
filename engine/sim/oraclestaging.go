package sim

import (
	"slices"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/journal/journaltest"
	"github.com/blkmirror/blkmirror/wire"
)

const stagingDir = mirrorDir + "/staging"

// checkStaging: what a mirror finds staged when it starts is what was sent, payload by payload, whatever a
// crash has left of the file. It looks at a copy, since to open staging repairs it.
func (o *oracle) checkStaging(m *mirrorNode, fs *journaltest.MemFS) {
	names, err := fs.ReadDir(stagingDir)
	if err != nil || len(names) == 0 {
		return // there is none yet
	}
	fs = fs.Clone()
	epochs, err := journal.ListStaging(fs, stagingDir)
	if err != nil {
		return // the mirror finds that out for itself
	}
	for _, epoch := range epochs {
		st, err := journal.OpenStaging(fs, stagingDir, epoch, journal.StagingOptions{BufferSize: 1, FrameRecords: 1})
		if err != nil {
			continue
		}
		err = st.Each(func(r journal.StagingRecord, at int64) error {
			if r.Kind != journal.StagingData {
				return nil
			}
			raw, payload := make([]byte, r.Length), make([]byte, r.PayloadLength)
			if err := st.ReadPayload(r, at, payload); err != nil {
				return err
			}
			if !m.rotten && (wire.Unpack(wire.Codec(r.Codec), raw, payload) != nil || wire.Sum(raw) != wire.Hash(r.Hash)) {
				o.w.failf("%s has staged record %d of epoch %d with another content than it was sent (committed %v)",
					m.name, r.Seq, epoch, slices.Contains(m.facts.Epochs, epoch))
			}
			return nil
		})
		if err != nil {
			o.w.failf("%s cannot read what is staged of epoch %d: %v", m.name, epoch, err)
		}
		st.Close()
	}
}
