// Command replay rebuilds a disk as it was at some moment from the log of a dm-log-writes device.
//
//	replay list LOG                                  every entry
//	replay points --after MARK --count N LOG         moments worth looking at: "entry tick" a line
//	replay apply --from A --to B LOG DISK            write the entries A to B-1 to DISK
//
// A mark "t123" in the log is an instant of package stamp: the tick of a point is that of the last mark
// before it. Half of the points lie right before, at and behind a flush, the others anywhere.
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "replay:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	f := flag.NewFlagSet("replay", flag.ExitOnError)
	from := f.Int("from", 0, "first entry")
	to := f.Int("to", -1, "entry behind the last; -1: all")
	after := f.String("after", "", "a mark: only what comes behind it")
	count := f.Int("count", 30, "how many points")
	seed := f.Uint64("seed", 1, "of the choice of points")
	if len(args) == 0 {
		return fmt.Errorf("list, points or apply?")
	}
	f.Parse(args[1:])
	file, err := os.Open(f.Arg(0))
	if err != nil {
		return err
	}
	defer file.Close()
	l, err := readLog(file)
	if err != nil {
		return err
	}
	switch args[0] {
	case "list":
		for i, e := range l.entries {
			fmt.Println(i, e)
		}
		return nil
	case "points":
		return printPoints(l, *after, *count, *seed)
	case "apply":
		if *to < 0 {
			*to = len(l.entries)
		}
		return apply(l, file, *from, *to, f.Arg(1))
	}
	return fmt.Errorf("no command %q", args[0])
}

func printPoints(l *log, after string, count int, seed uint64) error {
	first := 0
	if after != "" {
		if first = l.find(after); first < 0 {
			return fmt.Errorf("no mark %q in the log", after)
		}
	}
	tick := 0
	entry := 0
	for _, p := range l.points(first+1, count, seed) {
		for ; entry < p; entry++ {
			if n, err := strconv.Atoi(strings.TrimPrefix(l.entries[entry].mark, "t")); err == nil {
				tick = n
			}
		}
		fmt.Println(p, tick)
	}
	return nil
}
