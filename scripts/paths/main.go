// Paths puts a bad path between a real primary and its mirror, under load, and sees what the two make of it (package
// paths):
//
//	go run ./scripts/paths                       all of it: about eight minutes
//	go run ./scripts/paths -only hold-5s,resets  some scenarios
//	go run ./scripts/paths -short                those that are done within seconds
//	go run ./scripts/paths -insecure             without TLS and keys
//	go run ./scripts/paths -list                 their names
//
// It prints the table of docs/RESILIENCE.md and exits 1 where something was not as expected.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/campaign/daemon"
	"github.com/blkmirror/blkmirror/paths"
)

func main() {
	only := flag.String("only", "", "only these `SCENARIOS`, separated by commas")
	short := flag.Bool("short", false, "only what is done within seconds, and with fewer repetitions")
	insecure := flag.Bool("insecure", false, "without TLS and keys; what leaves the machine is not run then")
	race := flag.Bool("race", false, "build the daemons with the race detector")
	seed := flag.Uint64("seed", 0, "seed of what is written; 0: a new one each time")
	list := flag.Bool("list", false, "list the scenarios")
	flag.Parse()
	if *list {
		fmt.Println(strings.Join(paths.Names(), "\n"))
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := paths.Options{Short: *short, Plain: *insecure, Seed: *seed, Log: os.Stderr}
	if *short {
		o.Only = paths.ShortNames()
	}
	if *only != "" {
		o.Only = strings.Split(*only, ",")
	}
	failed, err := run(ctx, o, *race)
	if err != nil {
		fmt.Fprintln(os.Stderr, "paths:", err)
		os.Exit(2)
	}
	if failed {
		os.Exit(1)
	}
}

func run(ctx context.Context, o paths.Options, race bool) (failed bool, err error) {
	root, err := daemon.Root(ctx)
	if err != nil {
		return false, err
	}
	if o.Temp, err = os.MkdirTemp("", "paths"); err != nil {
		return false, err
	}
	defer os.RemoveAll(o.Temp)
	if o.Binary, err = daemon.Build(ctx, root, o.Temp, fmt.Sprintf("-race=%v", race)); err != nil {
		return false, err
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	fmt.Fprintf(os.Stderr, "paths: seed %d, in %s\n", o.Seed, o.Temp)
	began := time.Now()
	table, err := paths.Run(ctx, o)
	if table != nil {
		fmt.Print(table)
		fmt.Printf("\nseed %d, %.0f s\n", o.Seed, time.Since(began).Seconds())
		failed = table.Failed()
	}
	return failed, err
}
