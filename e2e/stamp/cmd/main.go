// Command stamp is package stamp for shell scripts: it writes stamped pages through an NBD export, and
// checks images against what it wrote.
//
//	stamp write   --socket S --export V --record FILE [--time D] [--hook CMD --hooks N]
//	stamp check   --record FILE [--since TICK] IMAGE    the image is a cut, not older than TICK
//	stamp durable --record FILE --since TICK IMAGE      the image lacks nothing acknowledged by TICK
//
// A hook is run by `sh -c` while writing goes on, after a flush; STAMP_TICK is an instant by which all was
// flushed. Exit code 1: the image is wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

type options struct {
	socket, export, record, hook string
	seed                         uint64
	seconds                      time.Duration
	depth, hooks                 int
	longest                      int64
	pause                        time.Duration
	since                        int64
	trim                         bool
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "stamp write|check|durable: see the head of its source")
		os.Exit(2)
	}
	var o options
	f := flag.NewFlagSet("stamp", flag.ExitOnError)
	f.StringVar(&o.socket, "socket", "", "unix socket of the NBD server")
	f.StringVar(&o.export, "export", "", "name of the export")
	f.StringVar(&o.record, "record", "", "file of the history")
	f.StringVar(&o.hook, "hook", "", "command that is run while writing")
	f.IntVar(&o.hooks, "hooks", 1, "how often the hook is run")
	f.Uint64Var(&o.seed, "seed", 1, "of what is written where")
	f.DurationVar(&o.seconds, "time", 0, "how long to write; with hooks: between them")
	f.IntVar(&o.depth, "depth", 4, "requests under way at once")
	f.Int64Var(&o.longest, "longest", 8, "pages of the longest request")
	f.DurationVar(&o.pause, "pause", 0, "between two requests of a worker")
	f.Int64Var(&o.since, "since", 0, "an instant")
	f.BoolVar(&o.trim, "trim", false, "send TRIM as well")
	f.Parse(os.Args[2:])
	var err error
	switch os.Args[1] {
	case "write":
		err = write(o)
	case "check", "durable":
		err = check(os.Args[1], o, f.Arg(0))
	default:
		err = fmt.Errorf("no command %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stamp:", err)
		os.Exit(1)
	}
}

// write writes until the time is over, the hooks have run, or SIGTERM comes.
func write(o options) error {
	c, err := stamp.Dial("unix", o.socket, o.export)
	if err != nil {
		return err
	}
	c.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	f, err := os.Create(o.record)
	if err != nil {
		return err
	}
	defer f.Close()
	h := stamp.NewHistory(c.Size/stamp.PageSize, o.seed)
	if err := h.LogTo(f); err != nil {
		return err
	}
	w := stamp.NewWriter(h, stamp.Load{
		Network: "unix", Address: o.socket, Export: o.export,
		Depth: o.depth, Longest: o.longest, Seed: o.seed, Pause: o.pause, NoTrim: !o.trim,
	})
	w.Start()
	if o.hook == "" {
		o.hooks = 1
	}
	for range o.hooks {
		select {
		case <-ctx.Done():
		case <-time.After(o.seconds):
		}
		if o.hook != "" && ctx.Err() == nil {
			err = errors.Join(err, hook(w, o.hook))
		}
	}
	err = errors.Join(err, w.Stop(), h.LogErr())
	fmt.Printf("%d writes, %d without a reply, %d errors, tick %d\n", h.Writes(), w.Lost.Load(), w.Errors.Load(), h.Now())
	return err
}

func hook(w *stamp.Writer, command string) error {
	tick, err := w.Flush()
	if err != nil {
		return err
	}
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = append(os.Environ(), "STAMP_TICK="+strconv.FormatInt(int64(tick), 10))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("hook: %w", err)
	}
	return nil
}

func check(how string, o options, image string) error {
	h, err := stamp.LoadHistory(o.record)
	if err != nil {
		return err
	}
	if how == "durable" {
		return h.DurableFile(image, stamp.Tick(o.since))
	}
	cut, err := h.CheckFile(image)
	if err != nil {
		return err
	}
	fmt.Printf("cut between %d and %d of %d, %d of %d writes\n", cut.First, cut.Last, h.Now(), cut.Writes, h.Writes())
	if int64(cut.Last) < o.since {
		return fmt.Errorf("the cut is older than %d", o.since)
	}
	return nil
}
