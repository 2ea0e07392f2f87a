package bench

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// copyOnce starts a primary and a mirror that have never seen each other, and takes the time until the mirror has
// everything, durably.
func (r *liveRun) copyOnce(ctx context.Context, c liveContender, check bool) (s LiveSample, err error) {
	for _, path := range []string{r.image("mirror"), r.state("mirror"), r.state("primary")} {
		if err := os.RemoveAll(path); err != nil {
			return s, err
		}
	}
	unix.Sync() // what the last one left in the page cache must not be written during our time
	began := time.Now()
	o, err := c.export.open(ctx, r) // returns when the mirror follows
	if err != nil {
		return s, err
	}
	s.Measured.BytesPerSecond = float64(r.options.Size) / time.Since(began).Seconds()
	s.Value = r.scenario.value(s.Measured)
	if err = errors.Join(o.stop(&s), ctx.Err()); err == nil && check {
		s.Compared = true
		err = compare(ctx, r.image("primary"), r.image("mirror"), r.options.Size)
	}
	return s, err
}
