package sim

import (
	"math/rand/v2"
	"time"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/wire"
)

// setup is what a seed says about a whole history: its sizes, and how much goes wrong.
type setup struct {
	mirrors  int
	pages    int64
	short    int64 // bytes that the last page lacks
	block    int64
	region   int64
	hot      int   // regions that make a checkpoint due
	indexed  int64 // bytes between two syncs of the index
	interval time.Duration
	onFull   string
	spread   int64 // bytes around the focus that clients write to
	clients  int
	writes   int // of a hundred requests, where zeroes and trims have the rest up to 83
	readers  int
	capture  int64 // bytes in memory
	spool    int64
	trouble  int // faults in a thousand steps
	kinds    []int
	blank    bool // mirrors begin with zeroes
	warm     bool // they are in step when the faults begin
	noisy    bool // lines damage what they carry
	tight    bool // there is little room for staging from the beginning
	patience int  // steps without faults after which everything has to be equal
	tiny     bool // a volume of some pages (script.go)
	stubborn bool // lines damage some place again and again, and staging rots, so that mirrors become read-only
	worn     bool // pages of mirrors' disks cannot be read until they are written
	careful  bool // somebody verifies, scrubs and repairs
}

func (s *setup) size() int64            { return s.pages*pageSize - s.short }
func (s *setup) name(mirror int) string { return string(rune('a' + mirror)) }

// The sizes are such that what takes gigabytes elsewhere happens within some pages here.
const (
	segmentSize = 64 << 10
	window      = wire.MaxRun // the least there can be
)

var intervals = []time.Duration{0, 100 * time.Millisecond, time.Second}

func newSetup(rng *rand.Rand) setup {
	s := setup{
		mirrors:  1 + rng.IntN(6)/3,
		pages:    6 + rng.Int64N(48),
		block:    pageSize << (2 * min(1, rng.IntN(4))),
		region:   pageSize << rng.IntN(5),
		hot:      []int{1, 1, 3, 6}[rng.IntN(4)],
		indexed:  pageSize << (3 * rng.IntN(4)),
		interval: intervals[rng.IntN(len(intervals))],
		onFull:   []string{"hold", "bulk"}[rng.IntN(2)],
		clients:  1 + rng.IntN(4),
		readers:  1 + rng.IntN(3),
		capture:  pageSize * []int64{1, 3, 64}[rng.IntN(3)],
		spool:    pageSize * []int64{0, 3, 64}[rng.IntN(3)],
		trouble:  []int{0, 4, 12, 40}[rng.IntN(4)],
		patience: 40000,
	}
	if rng.IntN(3) == 0 {
		s.short = 512 * rng.Int64N(8)
	}
	s.writes = 70 - 35*(rng.IntN(4)/3)
	s.tight = rng.IntN(5) == 0
	s.warm = rng.IntN(4) > 0
	s.noisy = rng.IntN(8) == 0
	s.blank = rng.IntN(2) == 0
	if s.tight && rng.IntN(2) == 0 { // one bulk after the other
		s.onFull, s.blank, s.warm = "bulk", true, false
	}
	if rng.IntN(12) == 0 {
		s.mirrors = 3
	}
	s.spread = pageSize * (2 + rng.Int64N(s.pages))
	for i := range faults {
		if rng.IntN(3) > 0 {
			s.kinds = append(s.kinds, i)
		}
	}
	return s
}

func (s *setup) primarySizes() engine.Sizes {
	if s.tiny {
		return s.tinyPrimary()
	}
	return engine.Sizes{Region: s.region, Segment: segmentSize, ReserveMin: 16 << 10, ReserveMax: 64 << 10,
		CaptureMemory: s.capture, CaptureSpool: s.spool, CheckpointBytes: 16 << 10, CheckpointHot: s.hot,
		IndexSync: s.indexed, ShipBatch: 6 * pageSize, ShipMemory: 16 << 20, OfferBytes: 8 * pageSize, PageOffers: s.size() / 2,
		BulkFlush: 8 * pageSize, SmallRest: 4 * pageSize, VerifyTree: 4}
}

func (s *setup) mirrorSizes() engine.Sizes {
	if s.tiny {
		return s.tinyMirror()
	}
	return engine.Sizes{Region: s.region, Segment: segmentSize, ReserveMin: 16 << 10, ReserveMax: 64 << 10,
		Window: window, StagingSync: 8 * pageSize, Chunk: 16 * pageSize}
}
