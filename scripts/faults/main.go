// Faults turns over single bits in real daemons and sees whether each is found (campaign):
//
//	go run ./scripts/faults                      100 times at every place
//	go run ./scripts/faults -n 10                10 times
//	go run ./scripts/faults -only payload,9      at some places, by name or number
//	go run ./scripts/faults -list                the places
//
// It prints a table and exits 1 where a flip was missed, or what was found could not be put right.
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

	"github.com/blkmirror/blkmirror/campaign"
	"github.com/blkmirror/blkmirror/campaign/daemon"
)

func main() {
	n := flag.Int("n", 100, "turn over `N` bits at each place")
	only := flag.String("only", "", "only at `PLACES`, by name or number, separated by commas")
	seed := flag.Uint64("seed", 0, "seed of all random choices; 0: a new one each time")
	verbose := flag.Bool("v", false, "tell of the trials at files which byte it was, and what became of it")
	list := flag.Bool("list", false, "list the places")
	flag.Parse()
	if *list {
		fmt.Println(strings.Join(campaign.Names(), "\n"))
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	missed, err := run(ctx, *n, *only, *seed, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(2)
	}
	if missed {
		os.Exit(1)
	}
}

func run(ctx context.Context, n int, only string, seed uint64, verbose bool) (missed bool, err error) {
	root, err := daemon.Root(ctx)
	if err != nil {
		return false, err
	}
	temp, err := os.MkdirTemp("", "faults")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(temp)
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	o := campaign.Options{Root: root, Temp: temp, Trials: n, Seed: seed, Log: os.Stderr, Verbose: verbose}
	if only != "" {
		o.Only = strings.Split(only, ",")
	}
	fmt.Fprintf(os.Stderr, "faults: seed %d, in %s\n", seed, temp)
	began := time.Now()
	table, err := campaign.Run(ctx, o)
	if table != nil {
		fmt.Print(table)
		fmt.Printf("\nseed %d, %.0f s\n", seed, time.Since(began).Seconds())
		missed = table.Missed()
	}
	return missed, err
}
