package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// What a verify or a repair came to, on its way from the primary to a mirror's node (wire.Ended), and back.

func (r *VerifyResult) put(m *wire.Ended) {
	m.Flags |= wire.EndedResult
	m.Outcome = wire.Outcome{Mirror: wire.CleanText(r.Mirror), Compared: r.CheckedBytes, Skipped: r.SkippedBytes, ResumedAt: r.ResumedAt,
		Nanoseconds: nanoseconds(r.Seconds)}
	m.Differ, m.Rot = told(r.Extents), told(r.Rot)
}

func verifyResultOf(volume string, m *wire.Ended) VerifyResult {
	o := &m.Outcome
	return VerifyResult{Volume: volume, Mirror: o.Mirror, CheckedBytes: o.Compared, SkippedBytes: o.Skipped, ResumedAt: o.ResumedAt,
		Seconds: seconds(o.Nanoseconds), Extents: untold(m.Differ), Rot: untold(m.Rot)}
}

func (r *RepairResult) put(m *wire.Ended) {
	m.Flags |= wire.EndedResult
	if r.Nothing {
		m.Flags |= wire.EndedNothing
	}
	m.Outcome = wire.Outcome{Mirror: wire.CleanText(r.Mirror), Compared: r.ComparedBytes, Blocks: r.Blocks, Shipped: r.ShippedBytes,
		Nanoseconds: nanoseconds(r.Seconds)}
	m.Differ = told(r.Extents)
}

func repairResultOf(volume string, m *wire.Ended) RepairResult {
	o := &m.Outcome
	return RepairResult{Volume: volume, Mirror: o.Mirror, Nothing: m.Flags&wire.EndedNothing != 0, Blocks: o.Blocks, ComparedBytes: o.Compared,
		ShippedBytes: o.Shipped, Seconds: seconds(o.Nanoseconds), Extents: untold(m.Differ)}
}

// putError tells an error as a client of this node would be told.
func putError(m *wire.Ended, err error) {
	if err == nil {
		return
	}
	said := errorOf(err)
	m.Flags |= wire.EndedError
	m.Failure = wire.Failure{Kind: uint8(said.kind()), Op: wire.CleanText(said.Op), On: wire.CleanText(said.On),
		Text: wire.CleanText(said.Error), Next: wire.CleanText(said.Next)}
}

func errorTold(m *wire.Ended) error {
	if m.Flags&wire.EndedError == 0 {
		return nil
	}
	f := &m.Failure
	return &Error{Kind: Kind(f.Kind), Op: f.Op, On: f.On, Err: errors.New(f.Text), Next: f.Next}
}

// bounded keeps the lists within what a mirror takes. What is left out is told: there is more than anybody looks at.
func bounded(m *wire.Ended, err error) error {
	all := len(m.Differ) + len(m.Rot)
	m.Differ = m.Differ[:min(len(m.Differ), wire.MaxListed)]
	m.Rot = m.Rot[:min(len(m.Rot), wire.MaxListed-len(m.Differ))]
	if left := all - len(m.Differ) - len(m.Rot); left > 0 && err == nil {
		return &Error{Kind: KindIntegrity, Op: "list", On: "what differs", Err: fmt.Errorf("%d ranges more than the %d that are listed", left, wire.MaxListed),
			Next: "see the status of the mirror for the rest"}
	}
	return err
}

func nanoseconds(s float64) int64 { return int64(s * float64(time.Second)) }
func seconds(n int64) float64     { return time.Duration(n).Seconds() }

func told(extents []CheckedExtent) []wire.Extent {
	var list []wire.Extent
	for _, e := range extents {
		list = append(list, wire.Extent(e))
	}
	return list
}

func untold(extents []wire.Extent) []CheckedExtent {
	var list []CheckedExtent
	for _, e := range extents {
		list = append(list, CheckedExtent(e))
	}
	return list
}
