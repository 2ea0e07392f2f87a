package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/blkmirror/blkmirror/blockdev"
)

// A scrub compares a node's own device with its own index, in the background and without the network. A block
// that differs although nothing that we know of has changed it is rot. mirrorscrub.go is that of a mirror.
//
// A block is judged only while nothing changes it. On a primary that is what a watch tells: a block of which the
// index needs no page has a valid entry or none, and until somebody writes to it the indexer has no business
// there either. What a client writes ends the watch, and nothing that was seen under it counts.

// ScrubOptions say how a scrub goes.
type ScrubOptions struct {
	Rate int64 // bytes a second that are read; 0: DefaultScrubRate
}

// ScrubResult is what a scrub came to. `scrub --json` prints it: only ever added to.
type ScrubResult struct {
	Volume       string          `json:"volume"`
	Role         string          `json:"role"`
	CheckedBytes int64           `json:"checked_bytes"`        // that have an entry
	UnknownBytes int64           `json:"unknown_bytes"`        // that had none
	SkippedBytes int64           `json:"skipped_bytes"`        // written all the time, not indexed yet, in doubt, or unreadable
	Extents      []CheckedExtent `json:"extents"`              // rot
	Healed       []CheckedExtent `json:"healed,omitempty"`     // rot, and what could not be read, that was replaced by what the primary has
	Unreadable   []CheckedExtent `json:"unreadable,omitempty"` // the device gives an error there
	Seconds      float64         `json:"seconds"`
}

const (
	DefaultScrub     = 7 * 24 * time.Hour // between scheduled scrubs
	MinScrub         = time.Minute
	DefaultScrubRate = 32 << 20 // bytes a second

	scrubLook  = time.Minute // how often it is seen whether one is due; also before one that failed is tried again
	scrubTries = 3           // readings before a block counts as rotten
	scrubParts = 6           // of one scrub, at once, each with a buffer
	scrubReads = 128         // a second, as long as they are smaller than a chunk
	scrubPause = 50 * time.Millisecond
	scrubFile  = "scrub.json" // in the volume's folder
	maxRot     = 1 << 16      // blocks that are remembered
)

// ParseScrub reads what a user says of the schedule: weekly, daily, off, or a time.
func ParseScrub(text string) (time.Duration, error) {
	switch text {
	case "weekly":
		return DefaultScrub, nil
	case "daily":
		return 24 * time.Hour, nil
	case "off":
		return -1, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < MinScrub {
		return 0, fmt.Errorf("give weekly, daily, off, or a time of at least %v", MinScrub)
	}
	return d, nil
}

// scrubEvery is the time between two scheduled scrubs; 0: there are none.
func (c *VolumeConfig) scrubEvery() time.Duration { return max(0, cmp.Or(c.Scrub, DefaultScrub)) }

// scrubbing is what one scrub of either role keeps, and of it what one of its parts does, which look at different
// blocks at once: while one of them waits for the disk, another one hashes. Blocks are settled one way or another
// exactly once.
type scrubbing struct {
	geometry
	blocks   uint64
	most     uint64 // blocks that are looked at in one go
	parts    int
	limit    *rate.Limiter
	progress func(CheckProgress)
	buf      []byte
	now      func() time.Time
	began    time.Time

	mu     sync.Mutex // of the whole, for its parts
	result ScrubResult

	pending    *blockdev.PageSet // blocks that changed while they were looked at
	rot        *blockdev.PageSet
	healed     *blockdev.PageSet // that were rotten
	unreadable *blockdev.PageSet
}

func newScrubbing(g geometry, chunk int64, limit *rate.Limiter, progress func(CheckProgress)) (*scrubbing, error) {
	chunk = max(chunk, g.blockSize)
	limit.SetBurst(int(chunk))
	blocks := uint64((g.size + g.blockSize - 1) / g.blockSize)
	buf, err := pageBuffer(int(chunk))
	if err != nil {
		return nil, err
	}
	return &scrubbing{geometry: g, blocks: blocks, most: uint64(max(1, chunk/g.blockSize)), parts: scrubParts, limit: limit, progress: progress, buf: buf, now: time.Now, began: time.Now(),
		pending: blockdev.NewPageSet(blocks), rot: blockdev.NewPageSet(blocks), healed: blockdev.NewPageSet(blocks), unreadable: blockdev.NewPageSet(blocks)}, nil
}

// by has the time taken by a node's own clock.
func (x *scrubbing) by(now func() time.Time) { x.now, x.began = now, now() }

// join takes over what a part has found, and tells how far it is.
func (x *scrubbing) join(part *scrubbing) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, found := &x.result, &part.result
	r.CheckedBytes, r.UnknownBytes, r.SkippedBytes = r.CheckedBytes+found.CheckedBytes, r.UnknownBytes+found.UnknownBytes, r.SkippedBytes+found.SkippedBytes
	*found = ScrubResult{}
	for _, s := range [][2]*blockdev.PageSet{{x.pending, part.pending}, {x.rot, part.rot}, {x.healed, part.healed}, {x.unreadable, part.unreadable}} {
		if s[1].Count() > 0 {
			s[0].Union(s[1])
			s[1].Clear()
		}
	}
	x.tell()
}

// pace is how a scrub of these options goes, and how much it reads at once: little where it goes slowly, so that a
// client's request that comes behind a reading does not wait long.
func (o ScrubOptions) pace(most int64) (limit *rate.Limiter, chunk int64) {
	perSecond := cmp.Or(o.Rate, DefaultScrubRate)
	return rate.NewLimiter(rate.Limit(perSecond), 0), min(most, perSecond/scrubReads)
}

// extent are the bytes of blocks.
func (x *scrubbing) extent(b, n uint64) blockdev.Extent {
	off := int64(b) * x.blockSize
	return blockdev.Extent{Offset: off, Length: min(int64(b+n)*x.blockSize, x.size) - off}
}

// tell tells how far it is.
func (x *scrubbing) tell() {
	if x.progress != nil {
		r := &x.result
		x.progress(CheckProgress{Done: r.CheckedBytes + r.UnknownBytes + r.SkippedBytes, Total: x.size})
	}
}

func (x *scrubbing) checked(b uint64) { x.result.CheckedBytes += x.extent(b, 1).Length }
func (x *scrubbing) unknown(b uint64) { x.result.UnknownBytes += x.extent(b, 1).Length }
func (x *scrubbing) skipped(b uint64) { x.result.SkippedBytes += x.extent(b, 1).Length }

func (x *scrubbing) cannotRead(b uint64) {
	x.unreadable.Add(b, 1)
	x.skipped(b)
}

// looker looks at blocks.
type looker func(ctx context.Context, b, n uint64) error

// all looks at every block, in parts, and once more, so many rounds, at those that changed meanwhile.
func (x *scrubbing) all(ctx context.Context, rounds int, pause func() error, of func(part *scrubbing) looker) error {
	if err := x.once(ctx, of); err != nil {
		return err
	}
	look := of(x)
	for round := 0; round < rounds && x.pending.Count() > 0; round++ {
		if err := pause(); err != nil {
			return err
		}
		again := x.pending.Clone()
		x.pending.Clear()
		for b, n, ok := again.NextRun(0, x.most); ok; b, n, ok = again.NextRun(b+n, x.most) {
			if err := look(ctx, b, n); err != nil {
				return err
			}
			x.tell()
		}
	}
	return nil
}

// once looks at every block once. A single part needs no goroutine.
func (x *scrubbing) once(ctx context.Context, of func(part *scrubbing) looker) error {
	var parts []*scrubbing
	for range x.parts {
		p, err := newScrubbing(x.geometry, int64(len(x.buf)), x.limit, nil)
		if err != nil {
			return err
		}
		parts = append(parts, p)
	}
	var next atomic.Uint64
	if len(parts) == 1 {
		return x.part(ctx, parts[0], &next, of(parts[0]))
	}
	work, ctx := errgroup.WithContext(ctx)
	for _, p := range parts {
		work.Go(func() error { return x.part(ctx, p, &next, of(p)) })
	}
	return work.Wait()
}

// part looks at what no other part has looked at, as long as there is something.
func (x *scrubbing) part(ctx context.Context, p *scrubbing, next *atomic.Uint64, look looker) error {
	for {
		b := next.Add(x.most) - x.most
		if b >= x.blocks {
			return nil
		}
		err := look(ctx, b, min(x.most, x.blocks-b))
		if x.join(p); err != nil {
			return err
		}
	}
}

// each looks at blocks one by one.
func each(ctx context.Context, b, n uint64, look looker) error {
	for i := range n {
		if err := look(ctx, b+i, 1); err != nil {
			return err
		}
	}
	return nil
}

// finish makes the result.
func (x *scrubbing) finish(volume, role string) ScrubResult {
	r := x.result
	r.Volume, r.Role, r.Extents, r.Seconds = volume, role, listed(x.extents(x.rot)), x.now().Sub(x.began).Seconds()
	r.Unreadable, r.Healed = x.extents(x.unreadable), x.extents(x.healed)
	for b, n, ok := x.pending.NextSet(0); ok; b, n, ok = x.pending.NextSet(b + n) {
		r.SkippedBytes += x.extent(b, n).Length
	}
	return r
}

func (x *scrubbing) extents(set *blockdev.PageSet) (list []CheckedExtent) {
	for b, n, ok := set.NextSet(0); ok; b, n, ok = set.NextSet(b + n) {
		list = append(list, CheckedExtent(x.extent(b, n)))
	}
	return list
}

// scrubError is what a scrub says in the end. An unreadable block is told when everything was looked at.
func (r *ScrubResult) scrubError(ctx context.Context, err error) error {
	if _, told := errors.AsType[*Error](err); err != nil && !told && (ctx.Err() != nil || errors.Is(err, errVolumeStops)) {
		return &Error{Kind: KindNetwork, Op: "scrub", On: r.Volume, Err: fmt.Errorf("interrupted: %w", cmp.Or(context.Cause(ctx), err)), Next: "run it again"}
	}
	if err == nil && len(r.Unreadable) > 0 {
		e, next := r.Unreadable[0], "the volume goes on"
		if r.Role == "mirror" {
			next = "`blkmirror repair VOLUME` has them written again"
		}
		return &Error{Kind: KindDevice, Op: "scrub", On: r.Volume, Err: fmt.Errorf("%d ranges cannot be read, the first at %d+%d", len(r.Unreadable), e.Offset, e.Length),
			Next: "check the disk (dmesg, smartctl); " + next}
	}
	return err
}

// summary is for the log.
func (r *ScrubResult) summary(err error) string {
	text := fmt.Sprintf("scrub: %d bytes are as the index has them, %d had no entry, %d were left out, %d ranges are rotten, %d were and are healed, %.0f s", r.CheckedBytes, r.UnknownBytes,
		r.SkippedBytes, len(r.Extents), len(r.Healed), r.Seconds)
	if err != nil {
		text += fmt.Sprintf("; %v", err)
	}
	return text
}
