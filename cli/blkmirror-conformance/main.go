// Command blkmirror-conformance judges tools that keep a second copy of a disk: blkmirror, or any other through
// an adapter. docs/CONFORMANCE.md tells how.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal kills, should the clean end hang
	os.Exit(Main(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
