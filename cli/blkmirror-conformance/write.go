package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

type writeFlags struct {
	to, history string
	writes      int
	time, pause time.Duration
	seed        uint64
	depth       int
	longest     int64
	trim, again bool
}

func (a *app) write(ctx context.Context, args []string) error {
	var o writeFlags
	f := a.flags("write")
	f.StringVar(&o.to, "to", "", "`DISK`: nbd+unix:///EXPORT?socket=PATH, nbd://HOST:PORT/EXPORT, or the path of an image or device; all zeroes at the beginning, and overwritten")
	f.StringVar(&o.history, "history", "", "`FILE` of what is written, made anew")
	f.BoolVar(&o.again, "continue", false, "go on with the history that is there")
	f.IntVar(&o.writes, "writes", 0, "end after `N` writes")
	f.DurationVar(&o.time, "time", 0, "end after this `TIME`; without it and --writes: at a signal")
	f.Uint64Var(&o.seed, "seed", 0, "of what is written where; 0: a new `N` each time")
	f.IntVar(&o.depth, "depth", 4, "`N` requests under way at once")
	f.Int64Var(&o.longest, "longest", 8, "`PAGES` of the longest request")
	f.DurationVar(&o.pause, "pause", 0, "of each of the depth after a request")
	f.BoolVar(&o.trim, "trim", false, "send TRIM as well")
	if _, err := a.parse(f, args, 0, 0); err != nil {
		return err
	}
	if o.to == "" || o.history == "" || o.depth < 1 || o.longest < 1 {
		return usageError{errors.New("write needs --to and --history; --depth and --longest are 1 or more")}
	}
	load, err := stamp.Target(o.to)
	if err != nil {
		return usageError{err}
	}
	d, err := stamp.Open(load)
	if err != nil {
		return err
	}
	pages := d.Bytes() / stamp.PageSize
	d.Close()
	if o.longest > pages {
		return usageError{fmt.Errorf("--longest %d: the disk has %d pages", o.longest, pages)}
	}
	o.seed = seedOr(o.seed)
	h, log, err := openHistory(o, pages)
	if err != nil {
		return err
	}
	load.Depth, load.Longest, load.Pause, load.Seed, load.NoTrim = o.depth, o.longest, o.pause, o.seed, !o.trim
	return errors.Join(a.writeOn(ctx, o, h, load), log.Close())
}

func openHistory(o writeFlags, pages int64) (*stamp.History, io.Closer, error) {
	if o.again {
		h, log, err := stamp.Continue(o.history)
		if err == nil && h.Pages() > pages {
			err = errors.Join(fmt.Errorf("the history is of %d pages, the disk has %d", h.Pages(), pages), log.Close())
		}
		return h, log, err
	}
	log, err := os.Create(o.history)
	if err != nil {
		return nil, nil, err
	}
	h := stamp.NewHistory(pages, o.seed)
	if err := h.LogTo(log); err != nil {
		return nil, nil, errors.Join(err, log.Close())
	}
	return h, log, nil
}

// writeOn writes until it is enough, and flushes in the end where somebody answers.
func (a *app) writeOn(ctx context.Context, o writeFlags, h *stamp.History, load stamp.Load) error {
	begin, most := time.Now(), h.Writes()+o.writes
	if o.writes > 0 {
		load.Most = most
	}
	w := stamp.NewWriter(h, load)
	w.Start()
	for enough := false; !enough && ctx.Err() == nil && w.Err() == nil && h.LogErr() == nil; {
		time.Sleep(time.Millisecond)
		enough = o.writes > 0 && h.Writes() >= most || o.time > 0 && time.Since(begin) >= o.time
	}
	rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := w.Quiesce(rest)
	if err == nil {
		_, err = w.Flush()
	}
	err = errors.Join(err, w.Stop(), h.LogErr())
	fmt.Fprintf(a.stdout, "%d writes, %d without a reply, %d errors, instant %d, seed %d\n", h.Writes(), w.Lost.Load(), w.Errors.Load(), h.Now(), o.seed)
	return err
}
